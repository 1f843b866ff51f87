"""Memberships that are lost while servers run in pods: what ends, when, and what if Kubernetes or the hub fails.

Nobody opens a page meanwhile: what is measured is what the hub does by itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from casa_hub.audit import PREFIX
from casa_hub.credentials.tokens import unverified_claims
from tests.hub.conftest import assert_no_secret
from tests.kubernetes.hub.faulty import THIS_POD, Faulty, open_faulty
from tests.support.hub import casa_config
from tests.support.idp import IdP
from tests.support.kubernetes.api import MERGE, Api
from tests.support.kubernetes.fault_proxy import Answer, Hold
from tests.support.person import Person
from tests.support.waiting import until

RECHECK, GRACE = 3.0, 600.0
#: Seconds that are promised from the change at the provider to the end of access.
PROMISED = RECHECK + 30

CONFIG = f"""
c.Authenticator.allow_all = False
c.JupyterHub.services.append({{"name": "operator", "api_token": "token-of-the-operator"}})
c.JupyterHub.load_roles.append(
    {{"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate"]}}
)
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 40, "slow_stop_timeout": 40}}
c.Facility.required = ["xcache", "bearer"]
c.Facility.credentials = [*c.Facility.credentials, "exchange"]
c.TokenExchange.services = {{"tape": {{"audience": "https://tape.example.org", "scope": "storage.stage:/"}}}}
c.Keeper.recheck_interval = {RECHECK}
c.Keeper.outage_grace = {GRACE}

class Routes(NoProxy):
    # Tells the test which routes to servers there are.
    routes = set()
    async def add_route(self, routespec, target, data):
        self.routes.add(routespec)
        Path("routes").write_text(" ".join(self.routes))
    async def delete_route(self, routespec):
        self.routes.discard(routespec)
        Path("routes").write_text(" ".join(self.routes))

c.JupyterHub.proxy_class = Routes
"""
SPAWNERS = {
    "our spawner": 'c.JupyterHub.spawner_class = "casa"\n',
    "hooks": """
import casa_hub.hooks
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
casa_hub.hooks.install(c)
""",
}

Open = Callable[..., Faulty]


@pytest.fixture
def idp(idp: IdP) -> IdP:
    idp.rotate = True
    return idp


@pytest.fixture(scope="module")
def open_hub(plane: Api, provider: IdP, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Opens sites with hubs whose users log in at the provider; no log may hold a secret."""
    with contextlib.ExitStack() as stack:
        sites: list[Faulty] = []

        def make(spawner: str = "our spawner") -> Faulty:
            config = casa_config(issuer=provider.issuer) + CONFIG + SPAWNERS[spawner]
            sites.append(stack.enter_context(open_faulty(plane, tmp_path_factory, config)))
            return sites[-1]

        yield make
        for site in sites:
            assert_no_secret(site.hub.log, provider)


@pytest.fixture(scope="module")
def common(open_hub: Open) -> Faulty:
    return open_hub()


@pytest.fixture
def site(common: Faulty) -> Iterator[Faulty]:
    yield common
    common.proxy.clear()
    common.proxy.come_back()


@dataclass
class User(Person):
    """Somebody with a server in a pod."""

    site: Faulty = None  # type: ignore[assignment]

    def starts(self) -> User:
        answer = self.browser.spawn()
        assert answer.status_code in (201, 202), answer.text
        until(lambda: self.hub.api("GET", f"/users/{self.name}").json()["servers"][""]["ready"], "it is ready")
        self.site.whole(self.name)
        assert self.effects() == dict.fromkeys(self.effects(), False)
        assert self.access() == (True, True)
        return self

    def mine(self, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one for one in objects if f'"{self.name}"' in one["metadata"]["annotations"]["casa-hub/server"]]

    def effects(self) -> dict[str, bool]:
        """What has ended. The hub isn't asked: that would be one more reason for it to ask the provider."""
        there = self.site.ours()
        routes = (self.hub.directory / "routes").read_text().split()
        return {
            **{f"{kind} gone": not self.mine(found) for kind, found in there.items()},
            "pod gone": not self.mine(self.site.list("pods")),
            "hub's route gone": f"/user/{self.name}/" not in routes,
            "refresh token ended": any(self.idp.owner(token) == self.sub for token in self.idp.revoked),
        }

    def all_ended(self) -> bool:
        return all(self.effects().values())

    def audit(self, action: str) -> list[dict[str, Any]]:
        lines = [line.partition(PREFIX)[2] for line in self.hub.log.splitlines() if PREFIX in line]
        events = [json.loads(line) for line in lines]
        return [event for event in events if event["username"] == self.name and event["action"] == action]

    def told(self) -> str:
        """For a failure: what has ended, and the end of the hub's log."""
        return f"{self.effects()}\n{self.hub.log[-20000:]}"

    def has_left(self) -> None:
        """All is over, and was told."""
        until(self.all_ended, f"the end of {self.name}'s access", more=self.told)
        until(lambda: self.audit("access-ended"), "the audit's last word")
        assert self.access() == (False, False)
        assert {event["credential"] for event in self.audit("revoked")} >= {"xcache", "htcondor", "dask"}
        until(lambda: not self.hub.api("GET", f"/users/{self.name}").json()["auth_state"], "the log-in is forgotten")


def person(site: Faulty, idp: IdP) -> User:
    return User(site.hub, idp, site=site)


@pytest.mark.parametrize("spawner", SPAWNERS)
def test_who_loses_the_group_loses_pod_secret_and_routes(
    open_hub: Open, common: Faulty, idp: IdP, spawner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = common if spawner == "our spawner" else open_hub(spawner)
    user, other = person(site, idp).starts(), person(site, idp).starts()
    user.is_in_groups("/cms")
    begin, seen = time.monotonic(), dict[str, float]()

    def all_seen() -> bool:
        effects = user.effects()
        for effect in (name for name, there in effects.items() if there):
            seen.setdefault(effect, round(time.monotonic() - begin, 1))
        return len(seen) == len(effects)

    until(all_seen, f"the end of {user.name}'s access, so far {seen}", PROMISED)
    # These have ended before the first request to Kubernetes; asked for last, or else that would have been the reason.
    page, api = user.access()
    asked = round(time.monotonic() - begin, 1)
    with capsys.disabled():
        print(f"\n{spawner}: seconds from the change at the provider: {seen}, page and token refused: <= {asked}")
    assert (page, api) == (False, False)
    assert max(seen.values(), default=math.inf) <= PROMISED
    user.has_left()
    # The cookie is worth nothing any more, also when he is a member again; a new log-in is.
    user.is_in_groups("/cms/uscms")
    assert not user.browser.is_in()
    assert user.browser.log_in(user.sub).status_code == 200
    assert "Your access had ended at" in user.browser.page("/hub/home").text
    # And nobody else has noticed.
    assert other.access() == (True, True)
    site.whole(other.name)
    site.stop(other.name)


def test_an_exchanged_token_is_renewed_in_the_secret_and_goes_with_the_membership(site: Faulty, idp: IdP) -> None:
    idp.exchange_life = 15
    user = person(site, idp).starts()

    def token() -> str:
        [secret] = user.mine(site.ours()["Secret"])
        return base64.b64decode(secret["data"]["tape_token"]).decode()

    first = token()
    assert (unverified_claims(first)["aud"], unverified_claims(first)["sub"]) == ("https://tape.example.org", user.sub)
    until(lambda: token() != first, "a newer token is in the same file", more=user.told)
    assert "tape_token" not in site.hub.api("GET", f"/users/{user.name}").text
    user.is_in_groups("/cms")
    user.has_left()
    assert "exchange:tape" in {event["credential"] for event in user.audit("revoked")}


@pytest.mark.parametrize("fault", ["500", "unreachable", "403 for the pod"])
def test_what_kubernetes_cannot_do_is_tried_again_until_it_is_done(site: Faulty, idp: IdP, fault: str) -> None:
    user = person(site, idp).starts()
    since = len(site.hub.log)
    if fault == "500":
        site.proxy.on("DELETE", "", Answer(500), times=math.inf)
    elif fault == "unreachable":
        site.proxy.go_away()
    else:
        site.proxy.on("DELETE", THIS_POD, Answer(403), times=math.inf)
    user.is_in_groups()
    site.hub.wait_for_all(f"The end of the access of {user.name} is tried again", 1, since=since, timeout=90)
    # What needs no Kubernetes has ended.
    assert user.access() == (False, False)
    assert user.mine(site.list("pods"))
    assert not user.audit("access-ended")
    if fault != "403 for the pod":
        assert user.mine(site.ours()["Secret"])
    site.proxy.clear()
    site.proxy.come_back()
    user.has_left()


@pytest.mark.parametrize("arrives", [True, False], ids=["it-arrives", "it-is-lost"])
@pytest.mark.parametrize("step", ["Secret", "Pod"])
def test_a_hub_killed_in_the_middle_of_a_departure_goes_on_with_it(
    site: Faulty, idp: IdP, step: str, arrives: bool
) -> None:
    """Also if nobody says "no" any more."""
    user = person(site, idp).starts()
    rule = site.proxy.on("DELETE", "/secrets/casa-" if step == "Secret" else "/pods/", Hold())
    user.is_in_groups()
    rule.wait(timeout=PROMISED)
    site.hub.stop(signal.SIGKILL)
    rule.release() if arrives else rule.drop()
    idp.refresh_answers[user.sub] = (503, "<html>")
    idp.userinfo_answers[user.sub] = (503, "<html>")
    idp.revoked.clear()
    since = len(site.hub.log)
    site.hub.start()
    site.hub.wait_for_all(f"Going on with the end of the access of {user.name}", 1, since=since)
    user.has_left()


@pytest.mark.parametrize("restart", [False, True])
def test_a_renamed_user_who_loses_the_group_loses_pod_secret_and_routes(site: Faulty, idp: IdP, restart: bool) -> None:
    """An administrator has renamed the user while the server ran: everything of it still bears the old name."""
    idp.rotate = False  # a hub that ends between a refresh and its store loses a rotated token: that is another test's
    user = person(site, idp).starts()
    assert site.hub.api("PATCH", f"/users/{user.name}", json={"name": f"{user.name}-new"}).status_code == 200
    if restart:
        site.hub.stop()
        site.hub.start()
    user.is_in_groups()
    until(lambda: not user.mine(site.list("pods")), "its pod is gone", PROMISED, more=user.told)
    until(lambda: not any(user.mine(found) for found in site.ours().values()), "its objects are gone")
    old, user.name = user.name, f"{user.name}-new"
    until(lambda: user.audit("access-ended"), "the audit's last word")
    revoked = user.audit("revoked")
    assert {event["credential"] for event in revoked} >= {"xcache", "htcondor", "dask"}
    assert {event["started_as"] for event in revoked} == {old}
    assert user.access() == (False, False)


@pytest.mark.parametrize("found", ["an edited entry", "a newer version", "no Secret"])
def test_a_record_that_cannot_be_read_hides_nothing_from_the_audit(
    site: Faulty, idp: IdP, plane: Api, found: str
) -> None:
    """Somebody has changed a server's objects, or the hub was downgraded; then its user loses the group."""
    idp.rotate = False  # as above: the hub is stopped
    user = person(site, idp).starts()
    pod = site.pod(user.name)
    site.hub.stop()
    name = site.of(pod)["Secret"]["metadata"]["name"]
    secret = f"/api/v1/namespaces/{site.namespace}/secrets/{name}"
    record = json.loads(pod["metadata"]["annotations"]["casa-hub/record"])
    identifiers = {name: entry["identifiers"] for name, entry in record["credentials"].items()}
    if found == "no Secret":
        plane.request("DELETE", secret)
    else:
        record["credentials"]["xcache"]["expires_at"] = "never"
        record["version"] += found == "a newer version"
        text = {"metadata": {"annotations": {"casa-hub/record": json.dumps(record)}}}
        paths = [secret, f"{site.pods}/{pod['metadata']['name']}"]
        for path in paths if found == "a newer version" else [secret]:
            plane.request("PATCH", path, text, content_type=MERGE)
    since = len(site.hub.log)
    site.hub.start()
    if found == "a newer version":
        site.hub.wait_for_all(r"is renewed: its record was written by a newer version", 1, since=since)
    user.is_in_groups()
    user.has_left()
    told = {event["credential"]: event["identifiers"] for event in user.audit("revoked")}
    assert told == identifiers
    doubtful = {event["credential"] for event in user.audit("revoked") if "may not be all" in event["reason"]}
    assert doubtful == ({"xcache"} if found == "an edited entry" else {*identifiers})


def test_too_many_at_once_are_held_back_and_their_pods_run_on_until_it_is_confirmed(
    open_hub: Open, idp: IdP, capsys: pytest.CaptureFixture[str]
) -> None:
    site = open_hub()
    users = [person(site, idp).starts() for _ in range(5)]
    before = {one["metadata"]["uid"] for found in site.ours().values() for one in found}
    begin = time.monotonic()
    for user in users:
        user.is_in_groups()
    site.hub.wait_for(r"\[C .*no members any more.*all at once", timeout=PROMISED)
    until(lambda: all(user.audit("held-back") for user in users), "all are held back")
    held = time.monotonic() - begin
    # Two rounds later: the servers run on with what they have, and everybody is in.
    time.sleep(2 * RECHECK)
    assert {one["metadata"]["uid"] for found in site.ours().values() for one in found} == before
    assert all(user.access() == (True, True) for user in users)
    assert not any(user.audit("revoked") or user.audit("access-ended") for user in users)
    assert not {idp.owner(token) for token in idp.revoked} & {user.sub for user in users}

    confirmed = time.monotonic()
    answer = site.hub.api("POST", "/casa-hub/confirm", token="token-of-the-operator", json={})
    assert answer.json() == {"confirmed": sorted(user.name for user in users)}
    until(lambda: all(user.all_ended() for user in users), "all have left")
    with capsys.disabled():
        took = time.monotonic() - confirmed
        print(f"\nheld back {held:.1f} s after the change; five servers gone {took:.1f} s after the confirmation")
    for user in users:
        user.has_left()
    site.nothing_left()
