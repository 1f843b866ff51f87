"""The commands of helm-values/README.md, of traefik.yaml and at the top of dev.yaml, run as they are written, on a real
API server.

But for what needs nodes: nothing is waited for, the chart's hooks (pods that pull images) are left out, and a chart
is the one of these tests instead of its repository's. Traefik's definitions are those of the tests, too.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.helm.conftest import VALUES
from tests.support.helm import ROOT, VERSION, helm
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.peers import require

Shell = Callable[[str], str]


@pytest.fixture
def shell(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Shell]:
    """Runs text in a directory like a checkout of this project, with kubectl and helm on PATH."""
    require(helm)
    if not shutil.which("openssl"):
        pytest.skip("the commands need openssl(1)")
    programs, directory = tmp_path / "bin", tmp_path / "checkout"
    programs.mkdir()
    directory.mkdir()
    (programs / "kubectl").symlink_to(control_plane.program)
    (programs / "helm").symlink_to(helm())
    (directory / "helm-values").symlink_to(VALUES)
    for name in ("xcache", "condor", "dask"):
        (directory / name).write_text(f"of {name}")
    kubeconfig = tmp_path / "kubeconfig"
    control_plane.kubectl("config", "view", "--raw", "--flatten", stdout=kubeconfig.open("w"))
    control_plane.kubectl(
        "--kubeconfig", str(kubeconfig), "config", "set-context", "--current", f"--namespace={namespace}"
    )

    def run(text: str) -> str:
        text = text.replace("NAMESPACE", namespace).replace("--wait", "")
        text = re.sub(r"helm (install|upgrade)", r"helm \1 --no-hooks --skip-crds", text)
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "KUBECONFIG": str(kubeconfig),
        }
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    run("helm uninstall --no-hooks --ignore-not-found jupyterhub traefik")  # they have objects outside their namespace


def held(plane: Api, namespace: str, secret: str) -> dict[str, bytes]:
    data = plane.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{secret}")["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


def test_those_of_the_readme(plane: Api, namespace: str, chart: Path, shell: Shell) -> None:
    blocks = re.findall(r"(?:^    .*\n)+", (VALUES / "README.md").read_text(), re.MULTILINE)
    keys, hub, install = ["".join(line[4:] for line in block.splitlines(keepends=True)) for block in blocks]

    shell(keys)
    assert held(plane, namespace, "casa-hub-keys") == {
        key: f"of {key}".encode() for key in ("xcache", "condor", "dask")
    }
    shell(hub)
    made = held(plane, namespace, "casa-hub")
    assert made["values.yaml"] == b'hub: {config: {CasaOAuthenticator: {client_secret: "..."}}}\n'
    for key in ("hub.config.JupyterHub.cookie_secret", "hub.config.CryptKeeper.keys"):
        assert re.fullmatch(rb"[0-9a-f]{64}", made[key])
    shell(install.replace("jupyterhub/jupyterhub", str(chart)))
    deployment = plane.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/hub")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"casa-hub", "casa-hub-keys"} <= {one["secret"]["secretName"] for one in volumes if "secret" in one}
    assert plane.request("GET", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/casa-hub")


TRIAL = re.findall(r"^#   (.*)$", (VALUES / "dev.yaml").read_text(), re.MULTILINE)


def test_those_of_the_trial(plane: Api, namespace: str, chart: Path, shell: Shell) -> None:
    assert len(TRIAL) == 5
    for command in TRIAL:
        if "port-forward" not in command and "traefik/traefik" not in command:
            shell(command.replace("jupyterhub/jupyterhub", str(chart)))
    assert len(base64.b64decode(held(plane, namespace, "casa-hub-keys")["dask"])) == 48
    assert plane.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/hub")
    assert ports(plane, namespace, "proxy-public") == {"http": 80}  # as it is forwarded


def test_those_of_the_issuer_s_keys(plane: Api, namespace: str, shell: Shell) -> None:
    """A new key comes beside the old one, and the old one goes, without the files that are no longer there."""
    page = (ROOT / "docs" / "issuer.md").read_text()
    create, add, remove = re.findall(r"^ +(kubectl (?:.*\\\n)*.*)$", page, re.MULTILINE)
    shell(f"echo first > 2026-11.pem; {create}; rm 2026-11.pem")
    shell(f"echo second > 2027-05.pem; {add}")
    assert held(plane, namespace, "casa-hub-issuer") == {"2026-11.pem": b"first\n", "2027-05.pem": b"second\n"}
    shell(remove)
    assert set(held(plane, namespace, "casa-hub-issuer")) == {"2027-05.pem"}


def ports(plane: Api, namespace: str, service: str) -> dict[str, int]:
    spec = plane.request("GET", f"/api/v1/namespaces/{namespace}/services/{service}")["spec"]
    return {one["name"]: one["port"] for one in spec["ports"]}


def of_a_facility() -> str:
    """The command at the top of traefik.yaml."""
    blocks = re.findall(r"(?:^#   .*\n)+", (VALUES / "traefik.yaml").read_text(), re.MULTILINE)
    (block,) = [one for one in blocks if "helm" in one]
    return " ".join(line.strip("#\\ ") for line in block.splitlines())


@pytest.mark.parametrize("values", ["dev", "cms", "atlas", "opendata"])
def test_traefik_is_the_one_that_the_values_let_in(
    values: str, plane: Api, namespace: str, traefik_chart: Path, shell: Shell
) -> None:
    command = TRIAL[2] if values == "dev" else of_a_facility()
    shell(command.replace("traefik/traefik", str(traefik_chart)).replace("-n traefik", f"-n {namespace}"))
    assert {"dask": 8786, "daskworker": 8788}.items() <= ports(plane, namespace, "traefik").items()
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/traefik"
    pod = plane.request("GET", path)["spec"]["template"]
    arguments = pod["spec"]["containers"][0]["args"]
    for wanted in "entryPoints.dask.address=:8786/tcp", "entryPoints.daskworker.address=:8788/tcp":
        assert f"--{wanted}" in arguments
    assert "--providers.kubernetescrd" in arguments
    assert not [argument for argument in arguments if "namespaces=" in argument]  # all of them

    release = yaml.safe_load((VALUES / f"{values}.yaml").read_text())
    ((peer,),) = [rule["from"] for rule in release["singleuser"]["networkPolicy"]["ingress"]]
    assert peer["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    if values == "dev":
        assert set(peer) == {"podSelector"}  # in the same namespace
    else:
        there = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        assert f" -n {there} " in command
    if name := release.get("ingress", {}).get("ingressClassName"):
        assert plane.request("GET", f"/apis/networking.k8s.io/v1/ingressclasses/{name}")


def test_the_chart_names_the_image_that_the_hubs_is_built_on(chart: Path, shell: Shell) -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text()
    (command,) = set(re.findall(r"^ +hub=\$\((helm show values .*)\)$", page, re.MULTILINE))
    assert re.fullmatch(rf"\S+/k8s-hub:{VERSION}", shell(command.replace("jupyterhub/jupyterhub", str(chart))))
