"""Renewal on a real API server, through all that goes wrong between it and the hub: never to an older state."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.kubernetes.hub.faulty import PASSING, SECRET, Faulty, open_faulty
from tests.kubernetes.hub.servers import NONE
from tests.support.called import CALLED, call
from tests.support.kubernetes.api import MERGE, Api, eventually
from tests.support.kubernetes.fault_proxy import Answer, Delay, Hold

#: Seconds that macaroons live; the others live for hours, so that each renewal is of one credential. The longer one
#: is for where a new one must be there in time: a third of it is left for that.
LIFE, LONG = 9, 27
CONFIG = f"""
c.XCache.lifetime = {LIFE}
c.TraefikRoutes.network_policy_peers = [{{"podSelector": {{"matchLabels": {{"app": "traefik"}}}}}}]
{CALLED}
"""


@pytest.fixture(scope="module")
def shared(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with open_faulty(plane, tmp_path_factory, CONFIG) as site:
        yield site


@pytest.fixture
def site(shared: Faulty) -> Iterator[Faulty]:
    yield shared
    shared.proxy.clear()
    shared.clear()


class Watched:
    """Every state that a server's Secret goes through, of which none may be worse than the one before."""

    def __init__(self, site: Faulty, user: str = "ada") -> None:
        self._site = site
        pod = site.pod(user)
        self._path = f"/api/v1/namespaces/{site.namespace}/secrets/{site.of(pod)['Secret']['metadata']['name']}"
        self.states: list[tuple[int, str]] = []
        self.look()

    def look(self) -> dict[str, Any]:
        secret = self._site.plane.request("GET", self._path)
        times = [datetime.fromisoformat(one["time"]) for one in secret["metadata"]["managedFields"]]
        #: When it was written last; the API server notes the second.
        self.written = max(times).timestamp()
        record: dict[str, Any] = json.loads(secret["metadata"]["annotations"]["casa-hub/record"])
        state = record.get("order", 0), secret["data"]["xcache_token"]
        if not self.states or state != self.states[-1]:
            before, self.states = self.states, [*self.states, state]
            # Another record has other files, and the other way round: they change together.
            assert not before or (state[0] > before[-1][0] and state[1] not in {token for _, token in before})
        return record

    def order(self) -> int:
        return int(self.look()["order"])

    def expires(self) -> float:
        entry = self.look()["credentials"]["xcache"]
        return datetime.fromisoformat(entry["expires_at"]).timestamp()

    def wait_for(self, order: int) -> None:
        eventually(lambda: self.order() >= order, timeout=90)


def test_a_secret_is_renewed_again_and_again_also_by_the_next_hub(site: Faulty) -> None:
    site.ready("ada")
    watched = Watched(site)
    before = site.files(site.pod("ada"))
    for number in (1, 2):
        watched.wait_for(number)
        assert watched.expires() > time.time()
    site.restart()
    watched.wait_for(3)
    after = site.files(site.pod("ada"))
    assert {name for name in before if before[name] != after[name]} == {"xcache_token"}
    assert json.loads(site.pod("ada")["metadata"]["annotations"]["casa-hub/record"])["order"] == 0, "no request for it"
    site.stop("ada")
    eventually(lambda: site.ours() == NONE)


def test_nothing_is_asked_while_nothing_is_due(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    with open_faulty(plane, tmp_path_factory, "c.XCache.lifetime = 3600\n") as site:
        site.ready("ada")
        site.restart()
        eventually(lambda: site.hub.api("GET", "/users/ada").json()["servers"][""]["ready"])
        site.proxy.answered.clear()
        time.sleep(3)
        assert [path for _, path, _ in site.proxy.answered if "/secrets" in path] == []


def test_renewals_outlive_faults_that_pass(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each fault meets a server of its own, all in the same life."""
    with open_faulty(plane, tmp_path_factory, f"c.XCache.lifetime = {LONG}\n") as site:
        users = {fault: f"user-{number}" for number, fault in enumerate(PASSING)}
        rules, watched = {}, {}
        for fault, user in users.items():
            renewal = rf"/secrets/casa-{user}-[^/?]*\?fieldManager=casa-hub$"  # a start's has more in its query
            rules[fault] = site.proxy.on("PATCH", renewal, PASSING[fault], times=1)
            site.begin(user)
        for fault, user in users.items():
            assert site.progress(user)[-1].get("ready"), site.hub.log[-20000:]
            watched[fault] = Watched(site, user)
        for fault, user in users.items():
            rules[fault].wait()
            watched[fault].wait_for(1)
            first = json.loads(site.pod(user)["metadata"]["annotations"]["casa-hub/record"])["credentials"]["xcache"]
            end = datetime.fromisoformat(first["expires_at"]).timestamp()
            assert watched[fault].written < end, f"{fault}: the old one was no longer valid"
        for fault, user in users.items():
            assert re.search(rf'"action": "renewed".*"{user}"|"{user}".*"action": "renewed"', site.hub.log), fault
            watched[fault].wait_for(2)


def test_a_renewal_that_fails_is_told_keeps_the_old_files_and_comes_later(site: Faulty) -> None:
    site.ready("ada")
    watched = Watched(site)
    since = len(site.hub.log)
    site.proxy.on("PATCH", SECRET, Answer(403, "not here"), times=10**6)
    site.hub.wait_for_all(r"No new xcache for .*ada.* keeps the one it has.*not here", 1, since=since)
    site.hub.wait_for_all(r"xcache of .*ada.* expires at .*, and there is no new one: .*not here", 1, since=since)
    assert watched.order() == 0
    site.proxy.clear()
    watched.wait_for(1)
    site.hub.wait_for_all(r"xcache of .*ada.* is renewed after all", 1, since=since)


def test_a_late_request_of_an_earlier_try_changes_nothing(site: Faulty) -> None:
    """It was given up; the next one came through; then it arrives."""
    site.ready("ada")
    watched = Watched(site)
    # Twice: within a renewal, the request itself is tried again with the same content.
    held = site.proxy.on("PATCH", SECRET, Hold(), times=3)
    held.wait(3)
    watched.wait_for(1)
    order, token = watched.states[-1]
    answered = len(site.proxy.answered)
    held.release()
    eventually(lambda: sum(method == "PATCH" for method, _, _ in site.proxy.answered[answered:]) >= held.hits)
    late = [status for method, _, status in site.proxy.answered[answered:] if method == "PATCH"]
    assert late.count(422) >= held.hits - 1
    watched.look()
    assert watched.states.count((order, token)) == 1
    watched.wait_for(order + 1)


def test_a_request_that_was_given_up_and_came_through_is_gone_on_from(site: Faulty) -> None:
    site.ready("ada")
    watched = Watched(site)
    slow = site.proxy.on("PATCH", SECRET, Delay(7), times=10**6)
    slow.wait(1)
    eventually(lambda: watched.order() == 1)
    site.proxy.clear()
    watched.wait_for(2)
    record = watched.look()
    assert record["order"] == record["credentials"]["xcache"]["order"]


def test_a_secret_of_the_first_version_is_renewed(site: Faulty, plane: Api) -> None:
    site.ready("ada")
    pod = site.pod("ada")
    site.hub.stop()
    record = json.loads(pod["metadata"]["annotations"]["casa-hub/record"])
    record["version"] = 1
    del record["order"]
    for entry in record["credentials"].values():
        del entry["order"], entry["earlier"]
    text = {"metadata": {"annotations": {"casa-hub/record": json.dumps(record, indent=1)}}}
    name = site.of(pod)["Secret"]["metadata"]["name"]
    for path in (f"{site.pods}/jupyter-ada", f"/api/v1/namespaces/{site.namespace}/secrets/{name}"):
        plane.request("PATCH", path, text, content_type=MERGE)
    site.hub.start()
    watched = Watched(site)
    eventually(lambda: watched.look()["version"] == 2)
    assert watched.order() >= 1


def test_a_server_of_a_later_version_runs_on_and_is_told_of(site: Faulty, plane: Api) -> None:
    site.ready("ada")
    pod = site.pod("ada")
    record = json.loads(pod["metadata"]["annotations"]["casa-hub/record"])
    site.hub.stop()
    text = {"metadata": {"annotations": {"casa-hub/record": json.dumps({**record, "version": 3})}}}
    name = site.of(pod)["Secret"]["metadata"]["name"]
    for path in (f"{site.pods}/jupyter-ada", f"/api/v1/namespaces/{site.namespace}/secrets/{name}"):
        plane.request("PATCH", path, text, content_type=MERGE)
    since = len(site.hub.log)
    site.hub.start()
    site.hub.wait_for_all(
        r"No credential of the server .*ada.* is renewed: its record was written by a newer version", 1, since=since
    )
    time.sleep(LIFE)
    assert site.hub.log[since:].count("No credential of the server") == 1
    assert site.hub.api("GET", "/users/ada").json()["servers"][""]["ready"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_withdrawn_server_has_nothing_any_more_and_stops_as_ever(site: Faulty, restarted: bool) -> None:
    site.ready("ada")
    site.ready("bea")
    uid = site.pod("ada")["metadata"]["uid"]
    call(site.hub, "withdraw", "ada")
    call(site.hub, "withdraw", "ada")  # to the same effect
    start_id = site.pod("ada")["metadata"]["labels"]["casa-hub/start-id"]
    assert site.ours(start_id) == NONE
    # It still runs: without its policy, more than Traefik could reach it.
    policies = f"/apis/networking.k8s.io/v1/namespaces/{site.namespace}/networkpolicies"
    assert len(site.plane.request("GET", f"{policies}?labelSelector=casa-hub/start-id={start_id}")["items"]) == 1
    since = len(site.hub.log)
    if restarted:
        site.restart()
    Watched(site, "bea").wait_for(1)
    time.sleep(LIFE / 2)
    assert site.pod("ada")["metadata"]["uid"] == uid
    assert site.ours(start_id) == NONE
    assert "No new " not in site.hub.log[since:]
    site.stop("ada")
    site.stop("bea")
    site.nothing_left()


def test_a_withdrawal_does_not_wait_for_a_renewal_that_hangs(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    patient = "c.KubeSpawner.k8s_api_request_timeout = 60\nc.KubeSpawner.k8s_api_request_retry_timeout = 120\n"
    with open_faulty(plane, tmp_path_factory, CONFIG + patient) as site:
        site.ready("ada")
        held = site.proxy.on("PATCH", SECRET, Hold(), times=10**6)
        held.wait()
        begun = time.monotonic()
        call(site.hub, "withdraw", "ada")
        assert time.monotonic() - begun < 20
        assert site.ours() == NONE
        held.release()
        time.sleep(1)
        assert site.ours() == NONE
        site.stop("ada")
        site.nothing_left()
