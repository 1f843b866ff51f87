"""Whatever fails between hub and API server: a server is there with all that is its own, or nothing of it is."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.kubernetes.hub.faulty import (
    PASSING,
    POD,
    ROUTE,
    ROUTES_REQUIRED,
    SECRET,
    SERVICE,
    THIS_POD,
    Faulty,
    open_faulty,
)
from tests.kubernetes.hub.servers import NONE
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.fault_proxy import Answer, Delay, Fault, Hold, Reset
from tests.support.scale import pairs

#: What a start asks for.
TARGETS = {"Pod": ("POST", POD), "Secret": ("PATCH", SECRET), "Service": ("PATCH", SERVICE)}
TARGETS["IngressRouteTCP"] = ("PATCH", ROUTE)
STOP = ("DELETE", THIS_POD)


@pytest.fixture(scope="module")
def shared(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with open_faulty(plane, tmp_path_factory, ROUTES_REQUIRED) as site:
        yield site


@pytest.fixture
def site(shared: Faulty) -> Iterator[Faulty]:
    yield shared
    shared.proxy.clear()


def starts_and_stops(site: Faulty, user: str = "ada") -> None:
    site.ready(user)
    site.whole(user)
    site.stop(user)
    site.nothing_left()


# -- a start


@pytest.mark.shortened
@pytest.mark.parametrize(("kind", "named"), pairs(TARGETS, PASSING))
def test_a_start_outlives_a_fault_that_passes(site: Faulty, kind: str, named: str) -> None:
    fault = PASSING[named]
    rule = site.proxy.on(*TARGETS[kind], fault, times=1 if isinstance(fault, Hold) else 2)
    site.ready("ada")
    assert rule.hits == rule.times
    site.whole("ada")
    site.stop("ada")
    site.nothing_left()


@pytest.mark.shortened
@pytest.mark.parametrize(("kind", "status"), pairs(TARGETS, [403, 404, 422]))
def test_a_start_that_is_refused_leaves_nothing_and_says_what_and_why(site: Faulty, kind: str, status: int) -> None:
    rule = site.proxy.on(*TARGETS[kind], Answer(status, "no such luck"))
    said = site.fails("ada")
    assert rule.hits == 1, "it was tried again"
    assert f"{kind} {site.namespace}/{'jupyter-ada' if kind == 'Pod' else 'casa-ada-'}" in said
    assert "no such luck" in said
    site.nothing_left()
    starts_and_stops(site)


@pytest.mark.parametrize("kind", ["Secret", "Service", "IngressRouteTCP"])
def test_something_else_in_the_place_of_an_object_fails_the_start(site: Faulty, kind: str) -> None:
    site.proxy.on(*TARGETS[kind], Answer(409, "conflict with another manager"))
    said = site.fails("ada")
    assert f"{kind} {site.namespace}/casa-ada-" in said
    assert "something else is in its place (conflict with another manager)" in said
    site.nothing_left()
    starts_and_stops(site)


def test_a_pod_in_the_way_that_has_gone_by_then_is_none(site: Faulty) -> None:
    rule = site.proxy.on("POST", POD, Answer(409, "already exists"), times=2)
    starts_and_stops(site)
    assert rule.hits == 2


def test_a_quota_that_two_starts_met_at_is_asked_again(site: Faulty) -> None:
    met = Answer(409, 'Operation cannot be fulfilled on resourcequotas "q": the object has been modified')
    rules = [site.proxy.on(*target, met) for target in TARGETS.values()]
    starts_and_stops(site)
    assert [rule.hits for rule in rules] == [1, 1, 1, 1]


@pytest.mark.shortened
@pytest.mark.parametrize(
    ("kind", "fault"),
    pairs(["Pod", "Secret"], [Answer(503), Answer(429, retry_after=30), Hold(), Reset(), Reset(after=True)]),
)
def test_a_fault_that_does_not_pass_fails_the_start_in_time(site: Faulty, kind: str, fault: Fault) -> None:
    site.proxy.on(*TARGETS[kind], fault, times=math.inf)
    begun = time.monotonic()
    said = site.fails("ada")
    assert time.monotonic() - begun < 25  # six for the start; JupyterHub itself would give up after forty
    assert f"{kind} {site.namespace}/" in said
    site.proxy.clear()
    site.nothing_left()
    starts_and_stops(site)


def test_a_creation_that_comes_through_when_all_have_given_up_is_undone(site: Faulty) -> None:
    rule = site.proxy.on("POST", POD, Hold(), times=math.inf)
    site.fails("ada")
    assert site.list("pods") == []
    rule.release()
    eventually(lambda: site.list("pods"))
    site.nothing_left()
    starts_and_stops(site)


def test_a_failed_start_that_could_not_be_undone_is_undone_later(site: Faulty) -> None:
    site.proxy.on("PATCH", SECRET, Answer(403))
    forbidden = site.proxy.on("DELETE", THIS_POD, Answer(403), times=math.inf)
    site.fails("ada")
    assert [pod["metadata"]["name"] for pod in site.list("pods")] == ["jupyter-ada"]
    assert f"Pod {site.namespace}/jupyter-ada" in site.hub.log
    assert forbidden.hits
    site.proxy.clear()
    site.nothing_left()


def test_a_start_in_a_namespace_of_its_own_is_undone_later_too(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A hook or a profile may choose the namespace, and with user namespaces each person has one."""
    elsewhere = plane.make_namespace()
    config = f"c.KubeSpawner.pre_spawn_hook = lambda spawner: setattr(spawner, 'namespace', {elsewhere!r})\n"
    with open_faulty(plane, tmp_path_factory, ROUTES_REQUIRED + config) as site:
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{elsewhere}/rolebindings/hub"
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "hub"},
            "subjects": [{"kind": "ServiceAccount", "name": "hub", "namespace": site.namespace}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        }
        plane.apply(rbac, binding)
        pods = f"/api/v1/namespaces/{elsewhere}/pods"
        site.proxy.on("PATCH", SECRET, Answer(403))
        site.proxy.on("DELETE", THIS_POD, Answer(403), times=math.inf)
        site.fails("ada")
        assert [pod["metadata"]["name"] for pod in plane.request("GET", pods)["items"]] == ["jupyter-ada"]
        site.proxy.clear()
        eventually(lambda: plane.request("GET", pods)["items"] == [])
    plane.delete_namespace(elsewhere)


def test_the_next_start_does_not_wait_for_what_an_earlier_one_left(site: Faulty) -> None:
    site.proxy.on("PATCH", SECRET, Answer(403))
    site.proxy.on("DELETE", THIS_POD, Answer(403), times=2)
    site.fails("ada")
    [left] = site.list("pods")
    site.proxy.clear()
    site.ready("ada")
    assert site.whole("ada")["metadata"]["uid"] != left["metadata"]["uid"]
    site.stop("ada")
    site.nothing_left()


def test_a_pod_that_vanishes_before_it_gets_its_objects_leaves_none(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody but the hub's clock notices: the watch has never shown the pod."""
    config = "c.KubeSpawner.start_timeout = 8\nc.KubeSpawner.k8s_api_request_timeout = 6\n"
    with open_faulty(plane, tmp_path_factory, config) as site:
        rule = site.proxy.on("POST", POD, Hold(after=True))
        site.begin("ada")
        eventually(lambda: site.list("pods"))
        plane.request("DELETE", f"{site.pods}/jupyter-ada")
        rule.release()
        assert site.progress("ada")[-1].get("failed")
        site.settle("ada")
        site.nothing_left()
        starts_and_stops(site)


def test_a_hub_whose_clock_runs_out_in_the_middle_of_a_launch_leaves_nothing(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = """
c.KubeSpawner.k8s_api_request_timeout = 10
c.KubeSpawner.pre_spawn_hook = lambda spawner: setattr(spawner, "start_timeout", 3 if Path("hurry").exists() else 40)
"""
    with open_faulty(plane, tmp_path_factory, config) as site:
        hurry = site.hub.directory / "hurry"
        hurry.touch()
        for method, path in TARGETS.values():
            rule = site.proxy.on(method, path, Delay(6))
            site.fails("ada")
            assert rule.hits == 1
            site.nothing_left()
        hurry.unlink()
        starts_and_stops(site)


def test_an_orderly_end_of_the_hub_undoes_a_start(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    with open_faulty(plane, tmp_path_factory) as site:
        rule = site.proxy.on("PATCH", SECRET, Hold())
        site.begin("ada")
        rule.wait()
        assert len(site.list("pods")) == 1
        site.hub.end(signal.SIGINT)
        assert site.hub.stop() == 0
        site.nothing_left()
        for complaint in ("Task was destroyed", "never retrieved", "never awaited", "Unclosed"):
            assert complaint not in site.hub.log
        rule.drop()
        site.hub.start()
        starts_and_stops(site)


def test_a_start_that_is_cancelled_while_a_request_hangs_leaves_nothing(site: Faulty) -> None:
    rule = site.proxy.on("PATCH", SECRET, Hold(), times=math.inf)
    site.begin("ada")
    rule.wait()
    # JupyterHub cancels the start, and waits for a second only.
    assert site.hub.api("DELETE", "/users/ada/servers/").status_code == 500
    rule.release()
    site.settle("ada")  # the cancelled start still ends, and a new one would be taken for it
    site.nothing_left()
    starts_and_stops(site)


# -- pods that never run


@pytest.fixture(scope="module")
def without_kubelet(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with open_faulty(plane, tmp_path_factory, pods=False) as site:
        yield site


def test_a_pod_that_vanishes_before_it_runs_fails_the_start_at_once(plane: Api, without_kubelet: Faulty) -> None:
    site = without_kubelet
    site.begin("ada")
    eventually(lambda: all(site.ours().values()))
    time.sleep(3)  # the hub has seen it by then; a pod that nobody saw ends in the start's time-out
    plane.request("DELETE", f"{site.pods}/jupyter-ada")
    gone = time.monotonic()
    last = site.progress("ada")[-1]
    assert time.monotonic() - gone < 20  # that time-out is forty
    assert f"Pod {site.namespace}/jupyter-ada: it was removed while the server was starting" in last["message"]
    site.settle("ada")
    site.nothing_left()


def test_a_start_that_is_cancelled_leaves_nothing(without_kubelet: Faulty) -> None:
    site = without_kubelet
    site.begin("ada")
    eventually(lambda: all(site.ours().values()))
    assert site.hub.api("DELETE", "/users/ada/servers/").status_code in {202, 204}
    site.settle("ada")
    site.nothing_left()


# -- without its routes, where nothing required needs them


def test_a_server_starts_without_its_routes_and_says_so(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    with open_faulty(plane, tmp_path_factory) as site:
        site.proxy.on("PATCH", SERVICE, Answer(403, "not here"))
        site.proxy.on("PATCH", ROUTE, Answer(422, "nor here"))
        for plural in ("services", "ingressroutetcps"):  # tried again while the server runs
            site.proxy.on("POST", rf"/{plural}\?", Answer(403), times=math.inf)
        site.ready("ada")
        assert {kind: len(found) for kind, found in site.ours().items()} == {**dict.fromkeys(NONE, 0), "Secret": 1}
        for kind, why in (("Service", "not here"), ("IngressRouteTCP", "nor here")):
            assert f"No {kind} for " in site.hub.log
            assert why in site.hub.log
        site.stop("ada")
        site.nothing_left()


# -- a stop


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_stop_outlives_a_fault_that_passes(site: Faulty, fault: Fault) -> None:
    site.ready("ada")
    rule = site.proxy.on(*STOP, fault, times=2 if fault in {Answer(500), Answer(503)} else 1)
    site.stop("ada")
    assert rule.hits >= 1
    site.proxy.clear()
    site.nothing_left()


def test_a_pod_that_somebody_else_ended_first_is_stopped(plane: Api, site: Faulty) -> None:
    site.ready("ada")
    since = len(site.hub.log)
    rule = site.proxy.on(*STOP, Hold())
    assert site.hub.api("DELETE", "/users/ada/servers/").status_code in {202, 204}
    rule.wait()
    plane.request("DELETE", f"{site.pods}/jupyter-ada")
    rule.release()
    site.settle("ada")
    assert "could not be stopped" not in site.hub.log[since:]
    site.nothing_left()


@pytest.mark.parametrize("fault", [Answer(403, "not you"), Answer(422), Answer(503), Hold(), Reset()])
def test_a_stop_that_fails_is_told_and_made_up_for(site: Faulty, fault: Fault) -> None:
    site.ready("ada")
    site.proxy.on(*STOP, fault, times=math.inf)
    since = len(site.hub.log)
    site.stop("ada")
    assert "could not be stopped" in site.hub.log[since:]
    assert f"Pod {site.namespace}/jupyter-ada" in site.hub.log[since:]
    assert site.ours()["Secret"] == []  # it runs on, but without credentials to come
    site.proxy.clear()
    site.nothing_left()
    starts_and_stops(site)


def test_a_user_whose_server_could_not_be_stopped_can_be_deleted(site: Faulty) -> None:
    site.ready("eve")
    site.proxy.on(*STOP, Answer(403), times=math.inf)
    site.stop("eve")
    assert site.hub.api("DELETE", "/users/eve").status_code == 204
    site.proxy.clear()
    site.nothing_left()


# -- the API server away


def test_the_api_server_may_be_away_for_half_a_minute(site: Faulty) -> None:
    for user in ("bob", "carol"):
        site.ready(user)
    bobs = site.whole("bob")["metadata"]["uid"]
    took, over = list[float](), threading.Event()

    def ask() -> None:
        while not over.wait(0.2):
            begun = time.monotonic()
            requests.get(f"{site.hub.url}/hub/health", timeout=60).raise_for_status()
            took.append(time.monotonic() - begun)

    asking = threading.Thread(target=ask)
    asking.start()
    site.proxy.go_away()
    back = time.monotonic() + 30
    try:
        site.begin("ada")
        assert site.hub.api("DELETE", "/users/carol/servers/").status_code in {202, 204}
        said = site.progress("ada")[-1]
        assert said.get("failed"), said
        assert f"Pod {site.namespace}/jupyter-ada: the Kubernetes API server gave no answer" in said["message"]
        site.settle("carol")
        assert site.hub.api("GET", "/users/bob").json()["servers"][""]["ready"]
        time.sleep(max(0.0, back - time.monotonic()))
    finally:
        over.set()
        asking.join()
        site.proxy.come_back()
    # Six requests and more are given up after two seconds each. A machine that stands still does so for once.
    assert [seconds for seconds in sorted(took)[:-2] if seconds >= 1] == []
    eventually(lambda: [pod["metadata"]["uid"] for pod in site.list("pods")] == [bobs])
    site.whole("bob")
    site.ready("ada")
    site.ready("carol")
    for user in ("ada", "bob", "carol"):
        site.whole(user)
        site.stop(user)
    site.nothing_left()
