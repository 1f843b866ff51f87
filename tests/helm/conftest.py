"""The values files, through the real Helm and the real chart.

Without a chart (CASA_HUB_Z2JH_CHART or CASA_HUB_TRAEFIK_CHART names none, and it can't be pulled) its tests are skipped
with that reason, also where peers are required. See `tests.support.helm`.

`chart`   its directory or archive. `traefik_chart`: that of Traefik's.
`render`  makes the objects of a release from values: names of files in helm-values, or documents.
`hub_in`  runs a program in the hub's pod of such a release, with Secrets as helm-values/README.md has them made.
`probe`   the same with tests/helm/probe.py: settings as they arrived, and a user's pod.
`plane`   a real control plane.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.conftest import control_plane, namespace, namespace_labels, plane  # noqa: F401 - fixtures
from tests.support.helm import HUB_CHART, ROOT, TRAEFIK_CHART, helm, template
from tests.support.hub_pod import HubPod, Object
from tests.support.peers import require

VALUES = ROOT / "helm-values"
FILES = ("cms", "atlas", "opendata", "dev")
CLIENT_SECRET = "of the client, in no file of the release"
#: The hub doesn't serve here, and nothing is asked of the API server.
NO_CLUSTER = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "none",
    "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "none", "user": {"token": "none"}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
}

Render = Callable[..., list[Object]]
HubIn = Callable[..., subprocess.CompletedProcess[str]]
Probe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(helm)
    return HUB_CHART.or_skip(tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="session")
def traefik_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(helm)
    return TRAEFIK_CHART.or_skip(tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="session")
def render(chart: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    @cache
    def rendered(namespace: str, *parts: str) -> str:  # noqa: F811
        files = []
        for part in parts:
            named = VALUES / f"{part}.yaml"
            if part not in FILES:
                named = tmp_path_factory.mktemp("values") / "values.yaml"
                named.write_text(part)
            files.append(named)
        return json.dumps(template(chart, files, namespace=namespace))

    def render(*values: str | Object, namespace: str = "facility") -> list[Object]:  # noqa: F811
        parts = [part if isinstance(part, str) else json.dumps(part) for part in values]
        objects: list[Object] = json.loads(rendered(namespace, *parts))
        return objects

    return render


@pytest.fixture(scope="session")
def secrets() -> dict[str, dict[str, bytes]]:
    """What an operator makes by hand."""
    values = {"hub": {"config": {"CasaOAuthenticator": {"client_secret": CLIENT_SECRET}}}}
    return {
        "casa-hub": {
            "values.yaml": yaml.safe_dump(values).encode(),
            "hub.config.JupyterHub.cookie_secret": os.urandom(32).hex().encode(),
            "hub.config.CryptKeeper.keys": os.urandom(32).hex().encode(),
        },
        "casa-hub-keys": {
            "xcache": base64.b64encode(os.urandom(64)) + b"\n",
            "condor": os.urandom(64).replace(b"\0", b"\1"),
            "dask": base64.b64encode(os.urandom(48)) + b"\n",
        },
    }


@pytest.fixture(scope="session")
def hub_in(render: Render, secrets: dict[str, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> HubIn:
    def run(values: Sequence[str | Object], command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        directory = tmp_path_factory.mktemp("hub")
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(json.dumps(NO_CLUSTER))
        pod = HubPod(render(*values), secrets)
        return require(lambda: pod.run(command, directory, environment={"KUBECONFIG": str(kubeconfig)}))

    return run


@pytest.fixture(scope="session")
def probe(hub_in: HubIn, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    @cache
    def told(values: str) -> str:
        answer = tmp_path_factory.mktemp("probe") / "answer.json"
        program = str(Path(__file__).with_name("probe.py"))
        done = hub_in(json.loads(values), [sys.executable, program, str(answer)])
        assert done.returncode == 0, done.stdout + done.stderr
        return json.dumps(json.loads(answer.read_text()) | {"log": done.stdout + done.stderr})

    def probe(*values: str | Object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(told(json.dumps(values)))
        return found

    return probe
