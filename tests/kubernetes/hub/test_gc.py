"""`casa-hub gc` where servers are pods: what has no living server goes, and nothing else."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.hub.servers import KINDS, NONE, OPERATOR, Site, open_site
from tests.support.kubernetes.api import Api, eventually

ORPHAN = {"propagationPolicy": "Orphan", "gracePeriodSeconds": 0}
#: The hub's own looks find nothing that a test is about.
QUIET = "c.Spawner.poll_interval = 3600\n"
POLICY = 'c.TraefikRoutes.network_policy_peers = [{"podSelector": {"matchLabels": {"app": "traefik"}}}]\n'


@pytest.fixture
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(plane, tmp_path_factory, OPERATOR + QUIET) as opened:
        yield opened


def delete_pod_only(site: Site, pod: dict[str, Any]) -> None:
    """As ``kubectl delete pod --cascade=orphan``: what the pod owns stays."""
    name = pod["metadata"]["name"]
    site.plane.request("DELETE", f"{site.pods}/{name}", ORPHAN)
    eventually(lambda: name not in site.names())
    owners = [one["metadata"].get("ownerReferences") for one in site.ours()["Secret"]]
    assert None in owners  # Kubernetes has done so


def of_one_start(site: Site, pod: dict[str, Any]) -> set[str]:
    objects = site.ours(pod["metadata"]["labels"]["casa-hub/start-id"])
    return {f"{kind} {site.namespace}/{one['metadata']['name']}" for kind, ones in objects.items() for one in ones}


def forget(site: Site, user: str) -> None:
    """Of a database that was restored from before this user came."""
    site.hub.stop()
    with sqlite3.connect(site.hub.directory / "hub.sqlite") as db:
        whose = "(SELECT id FROM users WHERE name = ?)"
        db.execute(f"DELETE FROM servers WHERE id IN (SELECT server_id FROM spawners WHERE user_id = {whose})", (user,))
        db.execute(f"DELETE FROM spawners WHERE user_id = {whose}", (user,))
        db.execute(f"DELETE FROM api_tokens WHERE user_id = {whose}", (user,))
        db.execute("DELETE FROM users WHERE name = ?", (user,))
    site.hub.start()


def test_nothing_is_found_where_all_is_well(site: Site) -> None:
    assert site.collect() == {}
    site.ready("ada")
    site.ready("ada", "second")
    assert site.collect() == {}
    assert len(site.of(site.pod("ada"))) == len(KINDS)
    site.stop("ada")
    eventually(lambda: len(site.ours()["Secret"]) == 1)
    assert site.collect() == {}


def test_what_outlived_its_pod_is_removed(site: Site) -> None:
    site.ready("ada")
    site.ready("bea")
    pod = site.pod("ada")
    left = of_one_start(site, pod)
    delete_pod_only(site, pod)
    told = dict.fromkeys(left, "its pod is gone")
    assert len(left) == 3
    assert site.collect(dry_run=True) == told
    assert of_one_start(site, pod) == left
    since = len(site.hub.log)
    assert site.collect() == told
    assert of_one_start(site, pod) == set()
    assert site.collect() == {}
    for thing in left:
        assert f"removed {thing}: its pod is gone" in site.hub.log[since:]
    assert len(site.of(site.pod("bea"))) == len(KINDS)


def test_a_server_that_the_database_has_forgotten_is_removed_on_demand_only(site: Site) -> None:
    site.ready("ada")
    site.ready("bea")
    forget(site, "ada")
    site.ready("cyd")  # by then the hub has looked for what an earlier one left
    name = site.pod("ada")["metadata"]["name"]
    told = {f"Pod {site.namespace}/{name}": "server '' of ada isn't in this hub's database"}
    assert site.collect(dry_run=True) == told
    assert name in site.names()
    assert site.collect() == told
    eventually(lambda: name not in site.names())
    eventually(lambda: len(site.ours()["Secret"]) == 2)  # by Kubernetes' garbage collector
    assert {"bea", "cyd"} == {pod["metadata"]["annotations"]["hub.jupyter.org/username"] for pod in site.list("pods")}
    assert site.collect() == {}


def test_the_policy_of_a_vanished_pod_is_removed(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    with open_site(plane, tmp_path_factory, OPERATOR + QUIET + POLICY) as site:
        site.ready("ada")
        policies = f"/apis/networking.k8s.io/v1/namespaces/{site.namespace}/networkpolicies"
        (policy,) = plane.request("GET", policies)["items"]
        delete_pod_only(site, site.pod("ada"))
        assert f"NetworkPolicy {site.namespace}/{policy['metadata']['name']}" in site.collect()
        assert plane.request("GET", policies)["items"] == []


def test_a_user_s_new_name_makes_no_leftover_of_the_server(site: Site) -> None:
    site.ready("ada")
    assert site.hub.api("PATCH", "/users/ada", json={"name": "grace"}).status_code == 200
    assert site.collect() == {}
    site.restart()
    assert site.collect() == {}
    assert site.hub.api("GET", "/users/grace").json()["servers"][""]["ready"]


def test_another_hub_s_things_are_not_looked_at(
    site: Site, plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two hubs in one namespace with the same `Facility.hub_id`; one has left something behind."""
    config = OPERATOR + QUIET + 'c.KubeSpawner.pod_name_template = "dev-{user_server}"\n'
    with open_site(plane, tmp_path_factory, config, namespace=site.namespace, pods=False) as other:
        for user in ("ada", "bea"):
            other.ready(user)
        left = of_one_start(other, other.pod("ada"))
        delete_pod_only(other, other.pod("ada"))
        site.ready("cyd")
        assert site.collect() == {}
        assert other.hub.api("GET", "/users/bea").json()["servers"][""]["ready"]
        assert set(other.collect()) == left
        assert len(site.of(site.pod("cyd"))) == len(KINDS)
        other.stop("bea")


def test_servers_that_are_just_starting_or_ending_lose_nothing(site: Site) -> None:
    """Collected again and again while servers come and go."""
    ended, found = threading.Event(), list[dict[str, str]]()

    def collect() -> None:
        while not ended.is_set():
            found.append(site.collect())

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for turn in range(4):
            users = [f"user-{number}" for number in range(4)]
            for user in users:
                site.begin(user)
            for user in users:
                assert site.progress(user)[-1].get("ready"), site.hub.log[-10000:]
            for user in users:
                assert len(site.of(site.pod(user))) == len(KINDS), turn
            for user in users:
                site.stop(user)
            eventually(lambda: not site.names())
    finally:
        ended.set()
        collector.join()
    assert len(found) > 10
    # At most what Kubernetes' garbage collector was about to remove.
    assert {why for one in found for why in one.values()} <= {"its pod is gone"}
    eventually(lambda: site.ours() == NONE)
