"""What the chart makes of each values file, for its own schema and for a real API server."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.conftest import FILES, VALUES, Render
from tests.helm.test_values import leaves
from tests.support.helm import VERSION, run_helm
from tests.support.kubernetes.api import Api

RESTRICTED = {f"pod-security.kubernetes.io/{what}": "restricted" for what in ("enforce", "warn")}


@pytest.fixture
def restricted(plane: Api) -> Any:
    """A namespace whose pods must fit Pod Security `restricted`."""
    name = plane.make_namespace(RESTRICTED)
    yield name
    plane.delete_namespace(name)


def dry_run(plane: Api, namespace: str, text: str) -> str:
    """What the API server, asked to take it and not to keep it, warns of."""
    command = ["apply", "--server-side", "--dry-run=server", "--namespace", namespace, "--filename", "-"]
    try:
        done: Any = plane.kubectl(*command, input=text, stderr=subprocess.STDOUT)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stdout)
    return "\n".join(line for line in done.splitlines() if not line.endswith("serverside-applied (server dry run)"))


@pytest.mark.parametrize("name", FILES)
def test_the_charts_schema_takes_it(name: str, chart: Path) -> None:
    done = run_helm("lint", "--strict", chart, "--values", VALUES / f"{name}.yaml")
    # Of the chart's own files; where its source is used, there is nothing to complain of either.
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("wrong", [{"hub": {"extraVolume": []}}, {"singleuser": {"uid": "jovyan"}}])
def test_the_charts_schema_is_asked(wrong: dict[str, Any], chart: Path, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(wrong))
    done = run_helm("template", chart, "--values", tmp_path / "values.yaml")
    assert done.returncode != 0
    assert "schema" in done.stderr


def test_it_is_the_chart_that_the_values_are_for(render: Render) -> None:
    (hub,) = [one for one in render("dev") if one["kind"] == "Deployment" and one["metadata"]["name"] == "hub"]
    assert hub["metadata"]["labels"]["helm.sh/chart"] == f"jupyterhub-{VERSION}"


@pytest.mark.parametrize("name", FILES)
def test_the_api_server_takes_it_in_a_restricted_namespace(
    name: str, plane: Api, restricted: str, render: Render
) -> None:
    objects = render(name, namespace=restricted)
    assert dry_run(plane, restricted, yaml.safe_dump_all(objects)) == ""


def test_the_api_server_takes_what_the_chart_cannot_carry(plane: Api, restricted: str) -> None:
    text = plane.kubectl("kustomize", str(VALUES))
    kinds = [one["kind"] for one in yaml.safe_load_all(text)]
    assert sorted(kinds) == ["NetworkPolicy", "Role", "RoleBinding"]
    assert dry_run(plane, restricted, text) == ""


@pytest.mark.parametrize("name", FILES)
def test_the_release_holds_no_secret_of_the_operators(name: str, render: Render) -> None:
    """What the chart makes up itself is in its own Secret; the keys and the client's secret are in none."""
    secrets = {one["metadata"]["name"] for one in render(name) if one["kind"] == "Secret"}
    assert secrets == {"hub"}


def test_okd_chooses_users_and_groups(render: Render) -> None:
    """A pod that asks for a user, or for a group of its volumes, outside the namespace's range is refused there."""
    for one in render("atlas"):
        for path, _ in leaves(one):
            assert path[-1] not in {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"}, (one["kind"], path)
            assert path[-2:] != ("securityContext", "privileged")


def test_a_guest_of_a_cluster_needs_no_rights_beyond_its_namespace(render: Render) -> None:
    kinds = {one["kind"] for one in render("atlas")}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "PriorityClass", "DaemonSet", "Namespace"}


@pytest.mark.parametrize("name", FILES)
def test_the_sidecars_image_is_on_the_nodes(name: str, render: Render) -> None:
    """It is the server's own, or the puller has it, too."""
    config = yaml.safe_load((VALUES / f"{name}.yaml").read_text())["hub"]["config"]
    image = config.get("KubernetesDelivery", {}).get("sidecar_image")
    if image is None:
        return
    pullers = [one for one in render(name) if one["kind"] == "DaemonSet"]
    assert len(pullers) == 2  # before an upgrade, and on new nodes
    for one in pullers:
        assert image in [container["image"] for container in one["spec"]["template"]["spec"]["initContainers"]]
