# On a fresh machine, `make demo`, `make unit` and `make test` do everything: each sets up what it needs in .venv.
# PYTHON chooses the interpreter (3.11 to 3.14): make demo PYTHON=python3.13

PYTHON ?= python3
VENV := .venv
# The oldest JupyterHub that is supported, with the newest Python: what Zero-to-JupyterHub runs.
VENV_HUB5 := .venv-hub5
LOCK := tests/lock
# Tests that need no server of the facility, and take seconds.
UNIT := tests/unit

.PHONY: help demo demo-check demo-kubernetes demo-kubernetes-check unit test soak kubernetes keycloak seaweedfs lint docs bench lock image clean

help:
	@echo "make demo        a whole facility on this machine; open it in a browser"
	@echo "                 (DEMO=\"--port 8001 --directory DIR\" for another port and place)"
	@echo "make demo-check  the same, headless: tries everything and prints a table"
	@echo "make demo-kubernetes, make demo-kubernetes-check"
	@echo "                 both with servers on a Kubernetes of one node (as root; builds Kubernetes first, once)"
	@echo "make unit        the fast tests, for every save: two minutes; no Go, no root, no server of the facility,"
	@echo "                 and nothing of Debian's packages"
	@echo "make test        all tests, long ones shortened; what is about JupyterHub with 6 and 5.5: twenty minutes"
	@echo "                 (TESTS=\"tests/hub/test_login.py -k refused\" runs only those, and prepares only what they need)"
	@echo "make soak        what make test shortens or leaves out: long tests in full, everything with JupyterHub 5.5"
	@echo "make kubernetes  only builds the Kubernetes that tests run on: nine minutes, once; make test does it too"
	@echo "make keycloak    only fetches the Keycloak that tests run on, once; make test does it too"
	@echo "make seaweedfs   only builds the S3 that tests run on: four minutes, once; make test does it too"
	@echo "make lint        ruff, mypy --strict, and no import upwards (import-linter)"
	@echo "make docs        the documentation as a site (build/site), every link checked; renews the settings' reference"
	@echo "make bench       what a mint costs, a thousand servers to keep fresh, a page of 500 users, verifiers that ask for keys, a hundred starts at once"
	@echo "make lock        resolve the versions that the tests run with anew"
	@echo "make clean       removes the environments; what was fetched and built for the demo and the tests stays in the cache"
	@echo "make image       a hub's image for Kubernetes, from a wheel of this source"
	@echo "                 (HUB=the image of the chart's hub; left out, it says how to find that. IMAGE=registry.example.org/name:tag)"

demo: $(VENV)/.demo
	@exec $(VENV)/bin/casa-hub demo $(DEMO)

demo-check: $(VENV)/.demo
	@exec $(VENV)/bin/casa-hub demo --check $(DEMO)

demo-kubernetes: $(VENV)/.test kubernetes
	@exec $(VENV)/bin/python -m tests.support.kubernetes.demo $(DEMO)

demo-kubernetes-check: $(VENV)/.test kubernetes
	@exec $(VENV)/bin/python -m tests.support.kubernetes.demo --check $(DEMO)

# Needs .venv and nothing else.
unit: $(VENV)/.test
	$(VENV)/bin/python -m pytest -q -n auto --dist loadfile -m "not debian" $(UNIT)

# TESTS="tests/unit tests/hub/test_login.py" runs those only, with the first environment. Kubernetes is built if they
# run on it (tests/conftest.py).
ifdef TESTS
test: $(VENV)/.test
	CASA_HUB_BUILD=1 $(VENV)/bin/python -m pytest $(TESTS)
else
test: $(VENV)/.test $(VENV_HUB5)/.test kubernetes keycloak seaweedfs
	@$(VENV)/bin/python -m tests.support.all_tests $(VENV_HUB5)/bin/python
endif

soak: $(VENV)/.test $(VENV_HUB5)/.test kubernetes keycloak seaweedfs
	@$(VENV)/bin/python -m tests.support.all_tests --soak $(VENV_HUB5)/bin/python

# Never fails: without it (no Go, no root for a node) its tests are skipped, or fail where all peers are required.
kubernetes: $(VENV)/.test
	@$(VENV)/bin/python -m tests.support.kubernetes.build

# Likewise: without Java and Maven its tests are skipped. Where all peers are required, root lets Debian install both.
keycloak: $(VENV)/.test
	@$(VENV)/bin/python -m tests.support.keycloak

# Likewise, without Go.
seaweedfs: $(VENV)/.test
	@$(VENV)/bin/python -m tests.support.seaweedfs

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

docs: $(VENV)/.test
	$(VENV)/bin/python docs/make_reference.py
	$(VENV)/bin/python -m sphinx -c docs -b html -q -W --keep-going . build/site
	@echo "Open build/site/index.html"

bench: $(VENV)/.test
	$(VENV)/bin/python bench/bench.py
	$(VENV)/bin/python bench/renewals.py
	$(VENV)/bin/python bench/admin_page.py
	$(VENV)/bin/python bench/issuer_pages.py
	$(VENV)/bin/python bench/storm.py
	$(VENV)/bin/python bench/node.py

lock: $(VENV)/.test
	$(VENV)/bin/uv pip compile --quiet --universal --no-annotate --no-header --python-version 3.11 --upgrade \
	    --extra demo --group test --group lint --group docs pyproject.toml --output-file $(LOCK)/hub6.txt
	echo 'jupyterhub==5.5.*' | $(VENV)/bin/uv pip compile --quiet --universal --no-annotate --no-header \
	    --python-version 3.11 --upgrade --extra demo --group test pyproject.toml - --output-file $(LOCK)/hub5.txt

# Docker gets the wheel and the Dockerfile, nothing else of this directory. HUB is what it is built on: see there.
IMAGE ?= casa-hub:dev
ifdef HUB
image: $(VENV)/.test
	rm -rf image/dist
	$(VENV)/bin/uv build --quiet --wheel --out-dir image/dist
	docker build --build-arg HUB=$(HUB) --tag $(IMAGE) image
else
image:
	@echo "HUB is missing: the image of Zero to JupyterHub's hub, version 4.4.0, that this one is built on. Its chart"
	@echo "names it; when 'helm repo add jupyterhub https://hub.jupyter.org/helm-chart/' has been run:"
	@echo
	@echo "  hub=\$$(helm show values jupyterhub/jupyterhub --version 4.4.0 --jsonpath '{.hub.image.name}:{.hub.image.tag}')"
	@echo "  make image HUB=\$$hub IMAGE=$(IMAGE)"
	@exit 2
endif

clean:
	rm -rf $(VENV) $(VENV_HUB5)

$(VENV)/bin/python:
	@echo "Making $(VENV) with $$($(PYTHON) --version), and its pip ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or newer is needed: make ... PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "This Python can't make virtual environments (Debian: apt install python3-venv)"; exit 1; }
	@$@ -m pip install --quiet --upgrade 'pip>=25.1'

# Without a pip of its own: Debian's Python has none to give, and that of the other environment serves both.
$(VENV_HUB5)/bin/python: | $(VENV)/.demo
	@newest=$$($(VENV)/bin/python -m tests.support.newest_python) \
	    && echo "Making $(VENV_HUB5) with $$($$newest --version) ..." && $$newest -m venv --without-pip $(VENV_HUB5)

$(VENV)/.demo: pyproject.toml $(LOCK)/hub6.txt | $(VENV)/bin/python
	@echo "Installing casa_hub and what its demo runs (740 MB; a minute or two, once) ..."
	@$(VENV)/bin/python -m pip install --quiet --editable '.[demo]' --constraint $(LOCK)/hub6.txt
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing what the tests need (once) ..."
	@$(VENV)/bin/python -m pip install --quiet --group test --group lint --group docs \
	    --constraint $(LOCK)/hub6.txt
	@touch $@

$(VENV_HUB5)/.test: pyproject.toml $(LOCK)/hub5.txt | $(VENV_HUB5)/bin/python
	@echo "Installing the same with JupyterHub 5.5 (a minute or two, once) ..."
	@$(VENV)/bin/python -m pip --python $(VENV_HUB5)/bin/python install --quiet --editable '.[demo]' --group test \
	    --constraint $(LOCK)/hub5.txt
	@touch $@
