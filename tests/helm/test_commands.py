"""The commands of helm-values/README.md and at the top of dev.yaml, run as they are written, on a real API server.

But for what needs nodes: nothing is waited for, the chart's hooks (pods that pull images) are left out, and the chart
is the one of these tests instead of its repository's.
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

from tests.helm.conftest import VALUES
from tests.support.helm import helm
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.control_plane import ControlPlane

Shell = Callable[[str], str]


@pytest.fixture
def namespace(plane: Api) -> Iterator[str]:
    name = plane.make_namespace()
    yield name
    plane.delete_namespace(name)


@pytest.fixture
def shell(control_plane: ControlPlane, namespace: str, chart: Path, tmp_path: Path) -> Iterator[Shell]:
    """Runs text in a directory like a checkout of this project, with kubectl and helm on PATH."""
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
        text = text.replace("jupyterhub/jupyterhub", str(chart)).replace("NAMESPACE", namespace)
        text = text.replace("--wait", "").replace("helm install", "helm install --no-hooks")
        text = text.replace("helm upgrade", "helm upgrade --no-hooks")
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
    run("helm uninstall --no-hooks --ignore-not-found jupyterhub")  # it has objects outside its namespace


def held(plane: Api, namespace: str, secret: str) -> dict[str, bytes]:
    data = plane.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{secret}")["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


def test_those_of_the_readme(plane: Api, namespace: str, shell: Shell) -> None:
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
    shell(install)
    deployment = plane.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/hub")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"casa-hub", "casa-hub-keys"} <= {one["secret"]["secretName"] for one in volumes if "secret" in one}
    assert plane.request("GET", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/casa-hub")


def test_those_of_the_trial(plane: Api, namespace: str, shell: Shell) -> None:
    commands = re.findall(r"^#   (.*)$", (VALUES / "dev.yaml").read_text(), re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        if "port-forward" not in command and "traefik/traefik" not in command:
            shell(command)
    assert len(base64.b64decode(held(plane, namespace, "casa-hub-keys")["dask"])) == 48
    assert plane.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/hub")
