"""What a running server owns and somebody deletes, or its start could not have: it comes back, on a real API server.

Within a minute, says the operators' guide; a busy machine is given more. The hub looks each half minute, but for
`make test` more often (`tests.support.scale`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509

from tests.kubernetes.hub.faulty import ROUTE, SERVICE, Faulty, open_faulty
from tests.kubernetes.hub.servers import KINDS, NONE, OPERATOR
from tests.support.called import CALLED, call
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.fault_proxy import Answer, Hold
from tests.support.scale import LOOK

pytestmark = pytest.mark.shortened

#: Seconds: a minute is promised.
PATIENCE = 120
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
CONFIG = (
    OPERATOR
    + CALLED
    + """
c.TraefikRoutes.network_policy_peers = [{"podSelector": {"matchLabels": {"app": "traefik"}}}]
"""
    + f"""
from casa_hub.servers import mending
mending._LOOK = {LOOK}
"""
)


@pytest.fixture(scope="module")
def shared(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with open_faulty(plane, tmp_path_factory, CONFIG) as site:
        yield site


@pytest.fixture
def site(shared: Faulty) -> Iterator[Faulty]:
    yield shared
    shared.proxy.clear()
    shared.clear()


def start_id(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["casa-hub/start-id"])


def delete(site: Faulty, kind: str, pod: dict[str, Any]) -> None:
    path = {**KINDS, "NetworkPolicy": POLICIES}[kind].format(site.namespace)
    found = site.plane.request("GET", f"{path}?labelSelector=casa-hub/start-id={start_id(pod)}")["items"]
    for one in found:
        site.plane.request("DELETE", f"{path}/{one['metadata']['name']}")
    assert found


def policies(site: Faulty, pod: dict[str, Any]) -> list[dict[str, Any]]:
    path = POLICIES.format(site.namespace)
    items: list[dict[str, Any]] = site.plane.request("GET", f"{path}?labelSelector=casa-hub/start-id={start_id(pod)}")[
        "items"
    ]
    return items


def is_whole(site: Faulty, pod: dict[str, Any]) -> bool:
    return [len(found) for found in site.ours(start_id(pod)).values()] == [1] * len(KINDS)


def record(site: Faulty, pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.of(pod)["Secret"]["metadata"]["annotations"]["casa-hub/record"])
    return found


def missing(site: Faulty) -> dict[str, str]:
    """The objects that `casa-hub status` names: kind -> why."""
    answer = site.hub.api("GET", "/casa-hub/status")
    assert answer.status_code == 200, answer.text
    # A credential may be missing for good: nobody here has an access token.
    return {one["what"]: one["why"] for one in answer.json()["missing"] if one["what"] != "bearer"}


def long(condition: Callable[[], object]) -> None:
    eventually(condition, timeout=PATIENCE)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_secret_that_is_deleted_by_hand_comes_back_with_fresh_credentials_of_the_same_start(
    site: Faulty, restarted: bool
) -> None:
    site.ready("ada")
    pod = site.pod("ada")
    before, files = record(site, pod), site.files(pod)
    if restarted:
        site.hub.stop()
    delete(site, "Secret", pod)
    if restarted:
        site.hub.start()
    long(lambda: is_whole(site, pod))
    assert site.pod("ada")["metadata"]["uid"] == pod["metadata"]["uid"], "the server runs on"
    after, again = record(site, pod), site.files(pod)  # owned by the pod
    assert set(again) == set(files)
    kept = {name for name in files if files[name] == again[name]}
    assert kept == {"ca.pem", "dask_fresh_token.py"}, "processes that run know that CA"
    x509.load_pem_x509_certificate(again["hostcert.pem"]).verify_directly_issued_by(
        x509.load_pem_x509_certificate(again["ca.pem"])
    )
    assert (after["order"], after["start_id"]) == (before["order"] + 1, start_id(pod))
    for name, entry in before["credentials"].items():
        earlier = after["credentials"][name]["earlier"]
        assert entry["identifiers"] in [one["identifiers"] for one in earlier], "a copy of it may have to be blocked"
    # And it is renewed from there.
    answer = site.hub.api("POST", "/casa-hub/renew", json={})
    assert answer.json() == {"renewed": ["ada"], "failed": {}}
    assert record(site, pod)["order"] == after["order"] + 1
    assert "No credential of the server" not in site.hub.log, "all of them are renewed"
    site.stop("ada")
    site.nothing_left()


def test_a_service_a_route_and_a_policy_that_are_deleted_by_hand_come_back(site: Faulty) -> None:
    site.ready("ada")
    pod = site.pod("ada")
    before, [policy] = site.of(pod), policies(site, pod)
    for kind in ("Service", "IngressRouteTCP", "NetworkPolicy"):
        delete(site, kind, pod)
    long(lambda: is_whole(site, pod) and policies(site, pod))
    after, [again] = site.of(pod), policies(site, pod)
    assert before["Secret"] == after["Secret"], "nobody has touched it"
    assert after["Service"]["spec"]["selector"] == before["Service"]["spec"]["selector"]
    assert after["IngressRouteTCP"]["spec"] == before["IngressRouteTCP"]["spec"]
    assert again["spec"] == policy["spec"]
    eventually(lambda: missing(site) == {})
    site.stop("ada")
    site.nothing_left()
    eventually(lambda: not policies(site, pod))


@pytest.mark.parametrize("target", [SERVICE, ROUTE], ids=["Service", "IngressRouteTCP"])
def test_one_unclear_409_costs_a_start_nothing(site: Faulty, target: str) -> None:
    rule = site.proxy.on("PATCH", target, Answer(409, "Conflict"))
    site.ready("ada")
    assert rule.hits == 1
    site.whole("ada")
    site.stop("ada")


def test_what_a_start_could_not_have_comes_while_the_server_runs(site: Faulty) -> None:
    site.proxy.on("PATCH", SERVICE, Answer(403, "not here"))
    refused = site.proxy.on("POST", r"/services\?", Answer(403, "nor now"), times=math.inf)
    events = site.ready("ada")
    assert any("Starting without Service" in each["message"] and "tried again" in each["message"] for each in events)
    pod = site.pod("ada")
    refused.wait()
    eventually(lambda: "nor now" in missing(site).get("Service", ""))
    site.proxy.clear()
    long(lambda: is_whole(site, pod))
    eventually(lambda: missing(site) == {})
    site.stop("ada")
    site.nothing_left()


def test_the_next_hub_brings_what_a_start_could_not_have(site: Faulty) -> None:
    site.proxy.on("PATCH", SERVICE, Answer(403, "not here"))
    site.proxy.on("POST", r"/services\?", Answer(403, "nor now"), times=math.inf)
    site.ready("ada")
    pod = site.pod("ada")
    site.hub.stop()
    site.proxy.clear()
    site.hub.start()
    long(lambda: is_whole(site, pod))
    site.stop("ada")
    site.nothing_left()


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_comes_back_to_a_server_that_was_withdrawn(site: Faulty, restarted: bool) -> None:
    site.ready("ada")
    site.ready("bea")
    ada, bea = site.pod("ada"), site.pod("bea")
    call(site.hub, "withdraw", "ada")
    if restarted:
        site.restart()
    delete(site, "Secret", bea)
    long(lambda: is_whole(site, bea))  # so there was a look
    time.sleep(LOOK + 5)  # and another one
    assert site.ours(start_id(ada)) == NONE
    site.stop("ada")
    site.stop("bea")
    site.nothing_left()


def test_a_withdrawal_takes_away_what_was_on_its_way_back(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    patient = "c.KubeSpawner.k8s_api_request_timeout = 60\nc.KubeSpawner.k8s_api_request_retry_timeout = 120\n"
    with open_faulty(plane, tmp_path_factory, CONFIG + patient) as site:
        site.ready("ada")
        pod = site.pod("ada")
        held = site.proxy.on("POST", r"/secrets\?", Hold(), times=math.inf)
        delete(site, "Secret", pod)
        held.wait(timeout=PATIENCE)
        begun = time.monotonic()
        call(site.hub, "withdraw", "ada")
        assert time.monotonic() - begun < 20, "it waited for the request that hangs"
        assert site.ours() == NONE
        answered = len(site.proxy.answered)
        held.release()
        eventually(lambda: ("POST", 201) in {(method, status) for method, _, status in site.proxy.answered[answered:]})
        eventually(lambda: site.ours() == NONE)
        time.sleep(LOOK + 5)  # a look later
        assert site.ours() == NONE
        site.stop("ada")
        site.nothing_left()


def test_a_deletion_is_not_undone_while_the_api_server_refuses_and_is_told(site: Faulty) -> None:
    site.ready("ada")
    pod = site.pod("ada")
    refused = site.proxy.on("POST", r"/secrets\?", Answer(403, "no such luck"), times=math.inf)
    delete(site, "Secret", pod)
    refused.wait(timeout=PATIENCE)
    eventually(lambda: "no such luck" in missing(site).get("Secret", ""))
    site.proxy.clear()
    long(lambda: is_whole(site, pod))
    eventually(lambda: missing(site) == {})
    site.stop("ada")
