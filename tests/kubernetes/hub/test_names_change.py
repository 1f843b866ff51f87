"""Servers that run while names change: of the hub, of its user, or where two hubs call themselves the same."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kubernetes.hub.servers import NONE, OPERATOR, Site, open_site
from tests.support.kubernetes.api import MERGE, Api, eventually

OpenHub = Callable[..., Site]

SPAWNERS = {
    "our spawner": "",
    "hooks": """
import casa_hub.hooks
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
casa_hub.hooks.install(c)
""",
}


@pytest.fixture
def open_hub(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenHub]:
    with contextlib.ExitStack() as stack:
        yield lambda config="": stack.enter_context(open_site(plane, tmp_path_factory, config + OPERATOR))


@pytest.fixture
def site(open_hub: OpenHub) -> Site:
    return open_hub()


def runs(site: Site, user: str) -> bool:
    return bool(site.hub.api("GET", f"/users/{user}").json()["servers"].get("", {}).get("ready"))


def rename(site: Site, before: str, after: str) -> None:
    assert site.hub.api("PATCH", f"/users/{before}", json={"name": after}).status_code == 200


def renewed(site: Site, pod: dict[str, Any]) -> int:
    """How often the credentials of a pod's server were renewed."""
    return int(json.loads(site.of(pod)["Secret"]["metadata"]["annotations"]["casa-hub/record"])["order"])


def is_renewed(site: Site, pod: dict[str, Any], user: str) -> None:
    """An operator has it renewed, and nothing is wrong with it."""
    before = renewed(site, pod)
    report = site.hub.api("POST", "/casa-hub/renew", json={"users": [user], "credentials": ["xcache"]}).json()
    assert (len(report["renewed"]), report["failed"]) == (1, {}), site.hub.log[-5000:]
    assert renewed(site, pod) == before + 1
    status = site.hub.api("GET", "/casa-hub/status").json()
    assert not any(user in str(status[kind]) for kind in ("unkept", "unsure", "overdue")), status


def test_a_hub_that_gets_an_id_goes_on_with_its_servers(site: Site) -> None:
    """A site whose hub was alone sets `Facility.hub_id` when a second one comes."""
    site.ready("ada")
    pod = site.pod("ada")
    before = pod["metadata"]["uid"]
    with (site.hub.directory / "jupyterhub_config.py").open("a") as config:
        config.write('c.Facility.hub_id = "cms"\n')
    site.restart()
    site.ready("bea")  # by then the hub has looked for what an earlier one left
    assert runs(site, "ada")
    assert site.pod("ada")["metadata"]["uid"] == before
    is_renewed(site, pod, "ada")
    assert site.of(pod)["Secret"]["metadata"]["annotations"]["casa-hub/server"] == '["", "ada", ""]'
    site.stop("ada")
    site.ready("ada")
    assert site.pod("ada")["metadata"]["annotations"]["casa-hub/server"] == '["cms", "ada", ""]'


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("spawner", SPAWNERS)
def test_a_renamed_user_keeps_the_server_that_runs(open_hub: OpenHub, spawner: str, restart: bool) -> None:
    site = open_hub(SPAWNERS[spawner])
    site.ready("ada")
    pod = site.pod("ada")
    rename(site, "ada", "grace")
    # Another person gets the name; by that alone grace's server is none that is left over.
    assert site.hub.api("POST", "/users/ada").status_code == 201
    if restart:
        site.restart()
    site.ready("bea")
    assert runs(site, "grace")
    is_renewed(site, pod, "grace")
    assert site.collect() == {}
    # Nor can that person take it over by starting a server. (Before this package is asked, JupyterHub may fail itself,
    # and then show a server where there is none.)
    if site.hub.api("POST", "/users/ada/server").status_code < 400:
        ours = "a server that was started under this name still runs; its user is now called grace"
        site.hub.wait_for(f"{ours}|is only allowed a single parent")  # the latter is JupyterHub's own failure
    site.settle("ada")
    if spawner == "our spawner":  # KubeSpawner itself ends whatever pod has the name
        site.hub.api("DELETE", "/users/ada/server")
        site.settle("ada")
    assert runs(site, "grace")
    assert site.plane.request("GET", f"{site.pods}/jupyter-ada")["metadata"]["uid"] == pod["metadata"]["uid"]
    is_renewed(site, pod, "grace")
    site.stop("grace")
    site.stop("bea")
    eventually(lambda: site.ours() == NONE and not site.names())


def test_a_server_whose_identity_no_hub_has_saved_is_left_alone_and_told_of(site: Site) -> None:
    """An earlier version of this package started it and saved its start id only; then its user was renamed."""
    site.ready("ada")
    pod = site.pod("ada")
    rename(site, "ada", "grace")
    site.hub.stop()
    with contextlib.closing(sqlite3.connect(site.hub.directory / "hub.sqlite")) as database, database:
        for number, text in database.execute("select id, state from spawners").fetchall():
            state = {key: value for key, value in json.loads(text).items() if key != "casa_server"}
            database.execute("update spawners set state = ? where id = ?", (json.dumps(state), number))
    site.hub.start()
    assert runs(site, "grace")
    site.hub.api("POST", "/casa-hub/renew", json={})
    assert renewed(site, pod) == 0
    unkept = site.hub.api("GET", "/casa-hub/status").json()["unkept"]
    assert list(unkept) == ["grace"]
    assert "started for another user name" in unkept["grace"]
    site.stop("grace")
    eventually(lambda: site.ours() == NONE and not site.names())


def test_what_a_pod_says_of_its_user_is_not_believed(site: Site, plane: Api) -> None:
    """Whoever may change a pod doesn't get another user's credentials by it."""
    site.ready("ada")
    pod = site.pod("ada")
    site.hub.stop()
    named = {"metadata": {"annotations": {"casa-hub/server": '["", "bea", ""]'}}}
    name = site.of(pod)["Secret"]["metadata"]["name"]
    for path in (f"{site.pods}/jupyter-ada", f"/api/v1/namespaces/{site.namespace}/secrets/{name}"):
        plane.request("PATCH", path, named, content_type=MERGE)
    site.hub.start()
    site.hub.api("POST", "/casa-hub/renew", json={})
    assert renewed(site, pod) == 0
    assert list(site.hub.api("GET", "/casa-hub/status").json()["unkept"]) == ["ada"]
    assert runs(site, "ada")
    site.stop("ada")
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
