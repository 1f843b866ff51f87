"""Servers that run while names change: of the hub, of its user, or where two hubs call themselves the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.hub.servers import NONE, Site, open_site
from tests.support.kubernetes.api import Api, eventually

pytestmark = pytest.mark.both_hubs


@pytest.fixture
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(plane, tmp_path_factory) as opened:
        yield opened


def runs(site: Site, user: str) -> bool:
    return bool(site.hub.api("GET", f"/users/{user}").json()["servers"].get("", {}).get("ready"))


def test_a_hub_that_gets_an_id_goes_on_with_its_servers(site: Site) -> None:
    """A site whose hub was alone sets `Facility.hub_id` when a second one comes."""
    site.ready("ada")
    before = site.pod("ada")["metadata"]["uid"]
    with (site.hub.directory / "jupyterhub_config.py").open("a") as config:
        config.write('c.Facility.hub_id = "cms"\n')
    site.restart()
    site.ready("bea")  # by then the hub has looked for what an earlier one left
    assert runs(site, "ada")
    assert site.pod("ada")["metadata"]["uid"] == before
    site.stop("ada")
    site.ready("ada")
    assert site.pod("ada")["metadata"]["annotations"]["casa-hub/server"] == '["cms", "ada", ""]'


def test_a_renamed_user_keeps_the_server_that_runs(site: Site) -> None:
    site.ready("ada")
    assert site.hub.api("PATCH", "/users/ada", json={"name": "grace"}).status_code == 200
    site.restart()
    site.ready("bea")
    assert runs(site, "grace")
    site.stop("grace")
    site.stop("bea")
    eventually(lambda: site.ours() == NONE and not site.names())


def test_a_hub_that_calls_itself_the_same_ends_nobody_elses_servers(
    site: Site, plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two hubs in one namespace with databases of their own, and no `Facility.hub_id`."""
    config = 'c.KubeSpawner.pod_name_template = "dev-{user_server}"\n'
    with open_site(plane, tmp_path_factory, config, namespace=site.namespace, pods=False) as other:
        other.ready("ada")
        other.stop("ada")  # known there, and idle
        site.ready("ada")
        before = site.pod("ada")["metadata"]["uid"]
        other.restart()
        other.ready("bea")  # by then it has looked
        assert site.pod("ada")["metadata"]["uid"] == before
        assert "Removing pod" not in other.hub.log
        other.stop("bea")
    assert runs(site, "ada")
