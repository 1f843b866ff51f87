"""Servers in namespaces of their users (`KubeSpawner.enable_user_namespaces`): what has no living server goes.

The hub is a ServiceAccount with the rules of the chart's Role, of ours, and the right to make a namespace, in a
ClusterRole: it needs no more.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.hub.servers import KINDS, NONE, OPERATOR, SECRETS, Site, open_site
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.hub import CHART_RULES, ROLE
from tests.support.kubernetes.pods import RunningPods

RBAC = "rbac.authorization.k8s.io"
ORPHAN = {"propagationPolicy": "Orphan", "gracePeriodSeconds": 0}
#: Pods have the same name in all namespaces. The hub's own later looks find nothing that a test is about.
CONFIG = """
c.KubeSpawner.enable_user_namespaces = True
c.KubeSpawner.user_namespace_template = "{prefix}-{{username}}"
c.KubeSpawner.pod_name_template = "notebook"
c.Spawner.poll_interval = 3600
# A start stays under way while a test looks around, on a busy machine, too.
c.KubeSpawner.start_timeout = 120
"""
USERS = ["ada", "bea", "cyd"]


def account(plane: Api, namespace: str) -> tuple[Path, list[str]]:
    """The hub's kubeconfig, and the paths of what is in no namespace."""
    ours = [rule for document in yaml.safe_load_all(ROLE.read_text()) for rule in document.get("rules", [])]
    namespaces = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["create"]}
    kubeconfig = plane.make_account("hub", namespace, [])
    common = {"apiVersion": f"{RBAC}/v1", "metadata": {"name": namespace}}
    role = {**common, "kind": "ClusterRole", "rules": [*CHART_RULES, *ours, namespaces]}
    subjects = [{"kind": "ServiceAccount", "name": "hub", "namespace": namespace}]
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": namespace}
    binding = {**common, "kind": "ClusterRoleBinding", "subjects": subjects, "roleRef": reference}
    paths = [f"/apis/{RBAC}/v1/{plural}/{namespace}" for plural in ("clusterroles", "clusterrolebindings")]
    for path, body in zip(paths, (role, binding), strict=True):
        plane.apply(path, body)
    return kubeconfig, paths


@contextlib.contextmanager
def open_sites(plane: Api, directories: pytest.TempPathFactory, config: str = "") -> Iterator[dict[str, Site]]:
    """A hub as each of its users' namespaces has it; their pods are not reported as running (`running`)."""
    prefix = plane.make_namespace()  # of the hub
    kubeconfig, paths = account(plane, prefix)
    config = OPERATOR + CONFIG.format(prefix=prefix) + config
    try:
        with open_site(plane, directories, config, namespace=prefix, pods=False, kubeconfig=kubeconfig) as opened:
            yield {user: Site(plane, f"{prefix}-{user}", opened.hub) for user in USERS}
    finally:
        for path in [
            *paths,
            f"/api/v1/namespaces/{prefix}",
            *(f"/api/v1/namespaces/{prefix}-{user}" for user in USERS),
        ]:
            if not plane.gone(path):
                plane.request("DELETE", path)


@pytest.fixture
def sites(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    with open_sites(plane, tmp_path_factory) as opened:
        yield opened


@pytest.fixture
def running(sites: dict[str, Site], plane: Api, tmp_path: Path) -> Iterator[None]:
    """Ada's and Bea's pods run."""
    with contextlib.ExitStack() as stack:
        for user in ("ada", "bea"):
            stack.enter_context(RunningPods(plane, sites[user].namespace, tmp_path))
        yield


def of_one_start(site: Site, pod: dict[str, Any]) -> set[str]:
    objects = site.ours(pod["metadata"]["labels"]["casa-hub/start-id"])
    return {f"{kind} {site.namespace}/{one['metadata']['name']}" for kind, ones in objects.items() for one in ones}


def forget(site: Site, user: str) -> None:
    """Of a database in which this user's server has stopped, though the pod is still there."""
    with sqlite3.connect(site.hub.directory / "hub.sqlite") as db:
        whose = "(SELECT id FROM users WHERE name = ?)"
        db.execute(f"UPDATE spawners SET server_id = NULL, state = NULL WHERE user_id = {whose}", (user,))


def add_anothers(site: Site, pod: dict[str, Any]) -> set[str]:
    """A pod and a Secret like this server's, but of another hub with the same `Facility.hub_id`. Their paths."""
    secret = site.of(pod)["Secret"]
    paths = set()
    for kind, collection, like in (
        ("Pod", site.pods, pod),
        ("Secret", SECRETS.format(site.namespace), secret),
    ):
        labels = {**like["metadata"]["labels"], "casa-hub/instance": "0" * 12, "casa-hub/start-id": "f" * 32}
        annotations = like["metadata"]["annotations"]
        metadata = {"name": "anothers", "labels": labels, "annotations": annotations}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": kind, "metadata": metadata}
        if kind == "Pod":
            body["spec"] = {"containers": [{"name": "notebook", "image": "none.test/singleuser:1"}]}
        site.plane.request("POST", collection, body)
        paths.add(f"{collection}/anothers")
    return paths


@pytest.mark.usefixtures("running")
def test_what_has_no_living_server_is_collected_in_all_namespaces(
    sites: dict[str, Site], plane: Api, tmp_path: Path
) -> None:
    ada, bea, cyd = (sites[user] for user in USERS)
    left = set()
    for user, site in (("ada", ada), ("bea", bea)):
        site.ready(user)
        pod = site.pod(user)
        left |= of_one_start(site, pod)
        site.plane.request("DELETE", f"{site.pods}/{pod['metadata']['name']}", ORPHAN)
        eventually(lambda site=site: site.names() == set())
        site.stop(user)
    assert len(left) == 2 * len(KINDS)
    bea.ready("bea")
    again = bea.pod("bea")
    anothers = add_anothers(bea, again)
    cyd.begin("cyd")  # under way until its pod runs
    eventually(cyd.has_one_start)

    told = dict.fromkeys(left, "its pod is gone")
    assert ada.collect(dry_run=True) == told
    assert ada.collect() == told
    assert ada.collect() == {}
    assert ada.ours() == NONE
    assert len(bea.of(again)) == len(KINDS)
    assert not [path for path in anothers if plane.gone(path)]
    with RunningPods(plane, cyd.namespace, tmp_path):
        assert cyd.progress("cyd")[-1].get("ready"), cyd.hub.log[-5000:]
    assert len(cyd.of(cyd.pod("cyd"))) == len(KINDS)
    assert "may not" not in ada.hub.log


@pytest.mark.usefixtures("running")
def test_a_pod_without_a_living_server_is_collected_though_anothers_has_its_name(sites: dict[str, Site]) -> None:
    """With a namespace for each user, the name of a pod tells nobody's."""
    ada, bea = sites["ada"], sites["bea"]
    ada.ready("ada")
    bea.ready("bea")
    forget(ada, "ada")
    told = {f"Pod {ada.namespace}/notebook": "server '' of ada doesn't run"}
    assert ada.collect(dry_run=True) == told
    assert ada.collect() == told
    eventually(lambda: ada.names() == set() and ada.ours() == NONE)
    assert bea.hub.api("GET", "/users/bea").json()["servers"][""]["ready"]


@pytest.mark.usefixtures("running")
def test_a_hub_that_starts_sweeps_all_namespaces(sites: dict[str, Site]) -> None:
    ada, bea = sites["ada"], sites["bea"]
    ada.ready("ada")
    bea.ready("bea")
    anothers = add_anothers(bea, bea.pod("bea"))
    half = ada.pod("ada")
    ada.stop("ada")
    eventually(lambda: ada.names() == set() and ada.ours() == NONE)
    ada.hub.stop()
    ada.make_half(half)
    forget(bea, "bea")  # its stop failed
    since = len(ada.hub.log)
    ada.hub.start()
    eventually(lambda: ada.names() == set() and bea.names() == {"anothers"})
    eventually(lambda: [one["metadata"]["name"] for one in bea.ours()["Secret"]] == ["anothers"])
    assert not [path for path in anothers if bea.plane.gone(path)]
    assert "may not" not in ada.hub.log[since:]
