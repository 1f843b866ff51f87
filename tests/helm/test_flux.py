"""examples/flux: a person who follows its README has a repository whose parts fit each other and the values files.

Flux itself isn't run here; kustomize is kubectl's own.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.conftest import VALUES
from tests.support.helm import ROOT, TRAEFIK_VERSION, VERSION
from tests.support.kubernetes import build
from tests.support.peers import require

EXAMPLE = ROOT / "examples" / "flux"
HUB_SECRET = {"values.yaml", "hub.config.JupyterHub.cookie_secret", "hub.config.CryptKeeper.keys"}
KEYS = {"xcache", "condor", "dask"}

Kustomize = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's copying makes, beside a checkout of this project."""
    directory = tmp_path_factory.mktemp("repository")
    (directory / "casa_hub").symlink_to(ROOT)
    commands = re.findall(r"^    (cp .*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        subprocess.run(shlex.split(command), cwd=directory, check=True)
    return directory / "facility"


@pytest.fixture(scope="module")
def kustomize(facility: Path) -> Kustomize:
    kubectl = require(build.programs) / "kubectl"

    def run(part: str) -> list[dict[str, Any]]:
        done = subprocess.run([kubectl, "kustomize", facility / part], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # it warns of what is deprecated
        return list(yaml.safe_load_all(done.stdout))

    return run


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def test_all_of_it_is_yaml() -> None:
    files = list(EXAMPLE.rglob("*.yaml"))
    assert len(files) >= 15
    for path in files:
        assert all(yaml.safe_load_all(path.read_text())), path


@pytest.mark.parametrize(
    ("part", "name", "version", "values"),
    [("casa-hub", "jupyterhub", VERSION, "cms.yaml"), ("traefik", "traefik", TRAEFIK_VERSION, "traefik.yaml")],
)
def test_a_release_has_its_chart_and_the_values_to_the_letter(
    part: str, name: str, version: str, values: str, kustomize: Kustomize
) -> None:
    objects = kustomize(part)
    release, repository = only(objects, "HelmRelease"), only(objects, "HelmRepository")
    chart = release["spec"]["chart"]["spec"]
    assert chart["chart"] == name
    assert chart["version"] == version
    assert chart["sourceRef"] == {"kind": "HelmRepository", "name": repository["metadata"]["name"]}
    assert release["metadata"]["namespace"] == repository["metadata"]["namespace"]

    given = only(objects, "ConfigMap")
    assert release["spec"]["valuesFrom"] == [{"kind": "ConfigMap", "name": given["metadata"]["name"]}]
    assert given["data"] == {"values.yaml": (VALUES / values).read_text()}


def test_other_values_are_another_release(facility: Path, kustomize: Kustomize) -> None:
    """Flux upgrades when the HelmRelease changes, so the name of its ConfigMap does."""
    before = only(kustomize("casa-hub"), "HelmRelease")
    file = facility / "casa-hub" / "values.yaml"
    kept = file.read_text()
    try:
        file.write_text(kept + "# changed\n")
        assert only(kustomize("casa-hub"), "HelmRelease") != before
    finally:
        file.write_text(kept)


def test_what_the_chart_cannot_carry_is_with_it(kustomize: Kustomize) -> None:
    resources = yaml.safe_load((VALUES / "kustomization.yaml").read_text())["resources"]
    ours = [one for name in resources for one in yaml.safe_load_all((VALUES / name).read_text())]
    found = {(one["kind"], one["metadata"]["name"]) for one in kustomize("casa-hub")}
    assert {(one["kind"], one["metadata"]["name"]) for one in ours} <= found
    binding = only(kustomize("casa-hub"), "RoleBinding")
    assert binding["metadata"]["namespace"] == "jupyterhub"
    assert [one["name"] for one in binding["subjects"]] == ["hub"]


@pytest.mark.parametrize(("part", "kind"), [("secrets-sealed", "SealedSecret"), ("secrets-sops", "Secret")])
def test_the_secrets_are_those_that_the_values_ask_for(part: str, kind: str, kustomize: Kustomize) -> None:
    objects = kustomize(part)
    held = {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}
    data = {name: one["spec"]["encryptedData"] if kind == "SealedSecret" else one["data"] for name, one in held.items()}
    assert {name: set(keys) for name, keys in data.items()} == {"casa-hub": HUB_SECRET, "casa-hub-keys": KEYS}
    assert {one["metadata"].get("namespace") for one in held.values()} == {"jupyterhub"}
    space = only(objects, "Namespace")["metadata"]
    assert space["name"] == "jupyterhub"
    assert space["annotations"]["kustomize.toolkit.fluxcd.io/prune"] == "disabled"  # homes are in it

    hub = yaml.safe_load((VALUES / "cms.yaml").read_text())["hub"]
    assert {hub["existingSecret"], hub["extraVolumes"][0]["secret"]["secretName"]} == set(data)


def test_nothing_in_it_can_be_read_that_is_secret() -> None:
    for path in EXAMPLE.rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            if one.get("kind") == "Secret":
                assert {"sops", "data"} <= set(one), path
                assert all(str(value).startswith("ENC[") for value in one["data"].values()), path
            assert "stringData" not in one, path


def test_the_commands_make_the_secrets_that_are_asked_for(tmp_path: Path) -> None:
    """As far as the pipe: what encrypts isn't here."""
    kubectl = require(build.programs) / "kubectl"
    for name in ("values.yaml", "xcache", "condor", "dask"):
        (tmp_path / name).write_text(f"of {name}")
    text = (EXAMPLE / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    kubectl (create secret generic casa-hub.*?)\|", text, re.MULTILINE)
    made = {}
    for command in commands:
        script = f"exec {shlex.quote(str(kubectl))} {command}"
        done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        secret = yaml.safe_load(done.stdout)
        assert secret["metadata"]["namespace"] == "jupyterhub"
        made[secret["metadata"]["name"]] = set(secret["data"])
    assert made == {"casa-hub": HUB_SECRET, "casa-hub-keys": KEYS}


def test_flux_is_told_of_every_part(facility: Path) -> None:
    told = {
        one["metadata"]["name"]: one["spec"] for one in yaml.safe_load_all((facility / "facility.yaml").read_text())
    }
    for spec in told.values():
        assert (facility.parent / spec["path"] / "kustomization.yaml").exists()
    assert {one["name"] for one in told["casa-hub"]["dependsOn"]} == set(told) - {"casa-hub"}
    assert all(spec["sourceRef"]["kind"] == "GitRepository" for spec in told.values())
