"""Memberships that are lost while servers run, and nobody opens a page: what ends, when, and what doesn't.

Hubs with real servers, routes and tokens, and with times made short by their configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from casa_hub.audit import PREFIX
from casa_hub.processes import signed_in
from tests.hub.conftest import MakeHub
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.person import CANT_SAY, LOG_IN_AGAIN, NO, Person
from tests.support.scale import scaled
from tests.support.waiting import until

#: The last two leave a slow machine the time to look at all that goes on meanwhile.
RECHECK, GRACE, MAX_AGE = 3.0, 20.0, 24.0
#: Seconds that are promised from the change at the provider to the end of access.
PROMISED = RECHECK + 30

SERVERS = """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 40, "slow_stop_timeout": 40}}
c.JupyterHub.services.append({{"name": "operator", "api_token": "token-of-the-operator"}})
c.JupyterHub.load_roles.append(
    {{"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate", "read:metrics"]}}
)
{credentials}c.Facility.bearer_token_file = "access_token"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.{net}.0.0/16"
c.Keeper.recheck_interval = {recheck}
c.Keeper.outage_grace = {grace}
c.Keeper.membership_max_age = {max_age}
"""
CREDENTIALS = credentials("bearer", "dask", required=("bearer", "dask"))
networks = iter(range(90, 120))

MakeServers = Callable[..., Hub]


@pytest.fixture(scope="module")
def make_servers(make_hub: MakeHub) -> Iterator[MakeServers]:
    """Makes hubs, not yet started, whose servers are ended with the module whatever happens."""
    hubs: list[Hub] = []

    def make(
        more: str = "", *, recheck: float = RECHECK, grace: float = GRACE, max_age: float = MAX_AGE, **traits: Any
    ) -> Hub:
        text = SERVERS.format(
            credentials=CREDENTIALS, net=next(networks), recheck=recheck, grace=grace, max_age=max_age
        )
        hub = make_hub(text + more, proxy=True, **traits)
        (hub.directory / "traefik").mkdir()
        make_keys(hub.directory, "dask")
        hubs.append(hub)
        return hub

    yield make
    for hub in hubs:
        end(hub)


#: Seconds that servers go on after a sign-in was taken back; less than a log-in counts.
REVOKED_GRACE = 12.0
#: A server waits with its start while there is a file `slow` in the hub's directory.
IAM = f"""
c.Keeper.revoked_grace = {REVOKED_GRACE}
wait = f'while [ -e {{os.path.abspath("slow")}} ]; do sleep 0.2; done; exec "$0" "$@"'
c.Spawner.cmd = ["sh", "-c", wait, *c.Spawner.cmd]
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0, "slow_stop_timeout": 40}}
"""


def forget_users(hub: Hub) -> None:
    """For the next test: the hub asks the provider about nobody any more, and no server runs."""

    def at_rest() -> bool:
        return not any(
            server["pending"] for user in hub.api("GET", "/users").json() for server in user["servers"].values()
        )

    until(at_rest, "no server is about to stop: JupyterHub deletes nobody meanwhile")
    for user in hub.api("GET", "/users").json():
        assert hub.api("DELETE", f"/users/{user['name']}").status_code == 204


@pytest.fixture(scope="module")
def iam_hub(make_servers: MakeServers) -> Hub:
    return make_servers(IAM, provider="wlcg-iam").start()


@pytest.fixture(scope="module")
def keycloak_hub(make_servers: MakeServers) -> Hub:
    return make_servers(provider="keycloak").start()


@pytest.fixture
def iam(iam_hub: Hub) -> Iterator[Hub]:
    yield iam_hub
    forget_users(iam_hub)


@pytest.fixture
def keycloak(keycloak_hub: Hub) -> Iterator[Hub]:
    yield keycloak_hub
    forget_users(keycloak_hub)


@pytest.fixture(autouse=True)
def _as_providers_do(idp: IdP) -> None:
    idp.rotate = True


# -- what somebody has -------------------------------------------------------------------------------------------------


class User(Person):
    """Somebody who may have a server that runs."""

    server: Path
    process: Any = None
    path = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        #: Where the hub's log was then.
        self.since = len(self.hub.log)

    def starts(self, name: str = "") -> User:
        before = set(self.hub.directory.glob("servers/*/process"))
        answer = self.browser.spawn(name)
        assert answer.status_code in (201, 202), answer.text
        self.path = f"/user/{self.name}/{name}".rstrip("/") + "/env"
        until(lambda: self.page() == 200, "the server answers")
        (file,) = set(self.hub.directory.glob("servers/*/process")) - before
        self.server, self.process = file.parent, signed_in(file)
        assert self.effects() == NOTHING
        return self

    @property
    def has_all(self) -> bool:
        return not any(self.effects().values())

    @property
    def has_nothing(self) -> bool:
        return all(self.effects().values())

    def effects(self) -> dict[str, bool]:
        """What has ended so far."""
        effects = {"page refused": not self.browser.is_in(), "API token refused": self.api() == 403}
        if self.process is None:
            return effects
        return effects | {
            "file gone": not (self.server / "access_token").exists(),
            "route gone": self.server.name not in "".join(map(Path.read_text, self.routes())),
            "server unreachable": self.page() != 200,
            "process gone": not self.process.alive,
        }

    def page(self) -> int:
        """The status of the server's page; where the hub answers instead, it sends the browser elsewhere."""
        return requests.get(self.hub.url + self.path, timeout=30, allow_redirects=False).status_code

    def routes(self) -> list[Path]:
        return sorted(self.hub.directory.glob("traefik/*"))

    @property
    def runs(self) -> bool:
        return self.process.alive and (self.server / "access_token").exists()

    def audit(self) -> list[dict[str, Any]]:
        return [event for event in audit(self.hub, self.since) if event["username"] == self.name]


NOTHING = dict.fromkeys(
    ["page refused", "API token refused", "file gone", "route gone", "server unreachable", "process gone"], False
)


def audit(hub: Hub, since: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line.partition(PREFIX)[2]) for line in hub.log[since:].splitlines() if PREFIX in line]


def measured(user: User, begin: float) -> dict[str, float]:
    """Seconds since `begin` until each effect was there."""
    seen: dict[str, float] = {}
    since = len(user.hub.log)

    def all_ended() -> bool:
        for effect, there in user.effects().items():
            if there:
                seen.setdefault(effect, round(time.monotonic() - begin, 1))
        return len(seen) == len(NOTHING)

    until(
        all_ended,
        f"the end of {user.name}'s access",
        timeout=PROMISED,
        more=lambda: f"so far {seen}\n{user.hub.log[since:]}",
    )
    return seen


def ended(user: User) -> dict[str, Any]:
    """The audit's last word."""
    until(lambda: any(event["action"] == "access-ended" for event in user.audit()), "the audit's last word")
    return next(event for event in user.audit() if event["action"] == "access-ended")


ENDED_REVOKED = 'casa_hub_access_ended_total{why="revoked"}'


def metric(hub: Hub, name: str) -> float:
    """The value of a metric, by its name or by its name with labels."""
    text = requests.get(
        f"{hub.url}/hub/metrics", headers={"Authorization": "token token-of-the-operator"}, timeout=30
    ).text
    (value,) = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return float(value)


# -- an explicit "no" --------------------------------------------------------------------------------------------------


@pytest.fixture
def user_of(iam: Hub, keycloak: Hub, idp: IdP) -> Callable[[str], User]:
    def make(provider: str) -> User:
        if provider == "keycloak-due":  # access tokens so short-lived that each check is a refresh
            idp.change["/oauth2/token"] = lambda document: document | {"expires_in": 3}
        idp.frozen = provider == "iam"
        hub, claim = (iam, "wlcg.groups") if provider == "iam" else (keycloak, "groups")
        return User(hub, idp, claim)

    return make


@pytest.mark.parametrize("row", NO)
def test_an_explicit_no_ends_all_access_though_nobody_opens_a_page(
    user_of: Callable[[str], User], idp: IdP, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    provider, happens = NO[row]
    user = user_of(provider).starts()
    happens(user)
    seconds = measured(user, time.monotonic())
    last = ended(user)
    with capsys.disabled():
        print(f"\n{row}: seconds from the change at the provider to each effect: {seconds}")
    assert max(seconds.values()) <= PROMISED
    # For those who must block what was copied out of the server.
    revoked = [event for event in user.audit() if event["action"] == "revoked"]
    assert {event["credential"] for event in revoked} >= {"dask"}
    assert all(event["reason"] == last["reason"] for event in revoked)
    assert all(event["identifiers"] for event in revoked if event["credential"] == "dask")
    # At the provider, and in the hub's own database.
    assert idp.revoked
    assert idp.owner(idp.revoked[-1]) == user.sub
    until(lambda: not user.hub.api("GET", f"/users/{user.name}").json()["auth_state"], "the log-in is forgotten")
    # A cookie is worth nothing any more, also when he is a member again; a new log-in is, and tells what was.
    idp.reset()
    idp.rotate = True
    user.is_in_groups("/cms/uscms")
    assert not user.browser.is_in()
    assert user.browser.log_in(user.sub).status_code == 200
    home = user.browser.page("/hub/home").text
    assert "Your access had ended at" in home
    assert "Your server was stopped." in home


# -- what is no "no" ---------------------------------------------------------------------------------------------------


def several(
    user_of: Callable[[str], User], table: dict[str, tuple[str, Callable[[Person], None]]], every: int
) -> list[User]:
    """Somebody for each row, every fourth with a server; then all that happens at the same time.

    `every`: in short, only every so many rows are taken; test_refresh has all of them.
    """
    rows = list(table.values())[:: scaled(every, 1)]
    users = [(user_of(provider), happens) for provider, happens in rows]
    for user, _ in users[::4]:
        user.starts()
    for user, happens in users:
        happens(user)
    return [user for user, _ in users]


@pytest.mark.shortened
def test_log_in_again_lets_servers_run_until_the_log_in_is_too_old(
    user_of: Callable[[str], User], idp: IdP, capsys: pytest.CaptureFixture[str]
) -> None:
    idp.refresh_life = 1.0  # so that a refusal comes after the token's end
    users = several(user_of, LOG_IN_AGAIN, every=2)
    begin = time.monotonic()
    until(lambda: not any(user.browser.is_in() for user in users), "pages ask for a log-in")
    page = users[0].browser.page("/hub/home").text
    assert "Please log in again:" in page
    assert "your servers stop at" in page
    assert all(user.api() == 200 for user in users)
    assert users[0].runs
    # One does as asked, and all is as before.
    back = users.pop(4)
    assert back.runs
    idp.refresh_answers.pop(back.sub, None)
    idp.userinfo_answers.pop(back.sub, None)
    assert back.browser.log_in(back.sub).status_code == 200
    for user in users:
        assert ended(user)["reason"].startswith("No new log-in in time")
        until(lambda user=user: user.has_nothing, f"the end of {user.name}'s access")
    took = time.monotonic() - begin
    assert MAX_AGE - RECHECK <= took <= MAX_AGE + 30
    assert back.has_all
    assert back.runs
    with capsys.disabled():
        print(f"\n{len(users)} log-ins that counted {MAX_AGE:g} s more: ended after {took:.1f} s")


def test_a_sign_in_that_was_taken_back_ends_after_its_grace_and_a_new_log_in_keeps_everything(
    iam: Hub, idp: IdP
) -> None:
    """Deleted accounts and revoked sessions answer like a token that is too old: their servers ran on for a day."""
    before = metric(iam, ENDED_REVOKED)
    leaver, stays = User(iam, idp).starts(), User(iam, idp).starts()
    for user in (leaver, stays):
        idp.revoke(user.sub)
    begin = time.monotonic()
    for user in (leaver, stays):
        until(lambda user=user: not user.browser.is_in(), "pages ask for a log-in", timeout=RECHECK + 30)
        page = user.browser.page("/hub/home").text
        assert "The sign-in was taken back at the identity provider before its time." in page
        assert "your servers stop at" in page
        assert user.api() == 200
        assert user.runs
    assert stays.browser.log_in(stays.sub).status_code == 200
    assert ended(leaver)["reason"].startswith("The sign-in was taken back")
    until(lambda: leaver.has_nothing, "the end of the leaver's access")
    assert REVOKED_GRACE - 1 <= time.monotonic() - begin <= REVOKED_GRACE + PROMISED
    assert {event["credential"] for event in leaver.audit() if event["action"] == "revoked"} >= {"dask"}
    assert metric(iam, ENDED_REVOKED) == before + 1
    assert stays.runs
    assert stays.has_all


@pytest.mark.shortened
def test_a_provider_that_can_t_say_is_forgiven_for_the_grace(
    user_of: Callable[[str], User], idp: IdP, capsys: pytest.CaptureFixture[str]
) -> None:
    users = several(user_of, CANT_SAY, every=3)
    begin = time.monotonic()
    hub = users[0].hub
    hub.wait_for(r"\[C .*nobody's membership can be confirmed")
    assert metric(hub, "casa_hub_memberships_client_refused") > 0
    until(lambda: "has not confirmed your membership since" in users[0].browser.page("/hub/home").text, "a notice")
    assert time.monotonic() - begin < GRACE
    assert all(user.has_all for user in users)
    # For some it is shorter than the grace, for others longer; both with servers.
    short, long = users[: len(users) // 2], users[len(users) // 2 :]
    for user in short:
        for answers in (idp.refresh_answers, idp.userinfo_answers):
            answers.pop(user.sub, None)
        user.is_in_groups("/cms/uscms")
    for user in long:
        until(lambda user=user: user.has_nothing, f"the end of {user.name}'s access")
        reason = ended(user)["reason"]
        assert reason.startswith("The identity provider has not confirmed the membership since")
    took = time.monotonic() - begin
    assert GRACE - RECHECK <= took <= GRACE + 30
    assert all(user.has_all for user in short)
    with capsys.disabled():
        print(f"\n{len(long)} outages longer than the grace of {GRACE:g} s: ended after {took:.1f} s")


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(make_servers: MakeServers) -> Hub:
    """A hub whose users are those of one test at a time: how many there are decides what is held back."""
    return make_servers(provider="wlcg-iam", grace=600).start()


@pytest.fixture
def nobody_else(counted: Hub, idp: IdP) -> Iterator[Hub]:
    """It, as if it had had no users before."""
    idp.rotate = False  # an answer that comes too late on a busy machine would cost a rotated token
    yield counted
    forget_users(counted)
    counted.put_forward(RECHECK)  # those who are out now are "lately" no more


@pytest.fixture
def five(nobody_else: Hub, idp: IdP) -> list[User]:
    """All users of a hub: five, so that the first three "no"s are believed."""
    users = [User(nobody_else, idp) for _ in range(5)]
    return [users[0].starts(), *users[1:]]


def test_a_provider_that_takes_back_all_sign_ins_at_once_ends_nobody_s_servers(five: list[User], idp: IdP) -> None:
    """A provider that has lost its sessions refuses every refresh token before its time."""
    hub = five[0].hub
    for user in five:
        idp.refresh_answers[user.sub] = (400, {"error": "invalid_grant", "error_description": "Session not active"})
    until(lambda: metric(hub, "casa_hub_memberships_held_back") == 5, "all are held back")
    assert re.search(r"\[C .*taken back their sign-ins, all at once", hub.log[five[0].since :])
    assert all(user.access() == (False, True) for user in five)
    assert five[0].runs
    # It has its sessions again: nobody has to do anything.
    idp.refresh_answers.clear()
    until(lambda: metric(hub, "casa_hub_memberships_held_back") == 0, "nobody is held back any more")
    assert all(user.access() == (True, True) for user in five)
    assert five[0].has_all


def nobody_has_groups(users: list[User]) -> None:
    """A mapper is gone."""
    for user in users:
        user.is_in_groups()


def held_back(users: list[User]) -> None:
    """Wait until all of them are."""
    hub, since = users[0].hub, users[0].since
    until(lambda: metric(hub, "casa_hub_memberships_held_back") == len(users), "all are held back")
    (_alarm,) = re.findall(r"\[C .*no members any more.*all at once", hub.log[since:])
    assert {event["username"] for event in audit(hub, since) if event["action"] == "held-back"} == {
        u.name for u in users
    }
    # Not even those who were found first are out for longer than it takes to ask the others.
    assert all(user.access() == (True, True) for user in users)
    assert users[0].runs


def test_a_claim_that_is_gone_for_all_is_held_back_until_it_is_there_again(five: list[User]) -> None:
    nobody_has_groups(five)
    held_back(five)
    for user in five:
        user.is_in_groups("/cms/uscms")
    hub = five[0].hub
    hub.wait_for_all('No "no" is held back any more', 1, since=five[0].since)
    assert metric(hub, "casa_hub_memberships_held_back") == 0
    assert all(user.access() == (True, True) for user in five)
    assert not [event for event in audit(hub, five[0].since) if event["action"] in ("access-ended", "revoked")]


def test_what_is_held_back_takes_effect_when_the_operator_confirms_it(five: list[User]) -> None:
    nobody_has_groups(five)
    held_back(five)
    hub = five[0].hub
    answer = hub.api("POST", "/casa-hub/confirm", token="token-of-the-operator", json={})
    assert answer.json() == {"confirmed": sorted(user.name for user in five)}
    for user in five:
        assert ended(user)["by"] == "service operator"
        assert user.access() == (False, False)
    assert five[0].has_nothing
    assert metric(hub, "casa_hub_memberships_held_back") == 0
    assert metric(hub, "casa_hub_access_ending") == 0


def test_what_is_held_back_takes_effect_when_the_grace_ends(make_servers: MakeServers, idp: IdP) -> None:
    with make_servers(provider="wlcg-iam", grace=24).running() as hub:
        users = [User(hub, idp) for _ in range(4)]
        users[0].starts()
        nobody_has_groups(users)
        begin = time.monotonic()
        held_back(users)
        for user in users:
            ended(user)
        assert 24 - RECHECK <= time.monotonic() - begin <= 24 + 30
        assert users[0].has_nothing


def test_with_few_users_nothing_is_held_back(nobody_else: Hub, idp: IdP) -> None:
    users = [User(nobody_else, idp) for _ in range(2)]
    nobody_has_groups(users)
    for user in users:
        assert ended(user)["reason"].startswith("This hub is for members of")
        assert user.access() == (False, False)
    assert not [event for event in audit(nobody_else, users[0].since) if event["action"] == "held-back"]


def test_one_of_many_is_out_though_the_others_have_to_be_asked(five: list[User]) -> None:
    out, *others = five
    out.is_in_groups()
    seconds = measured(out, time.monotonic())
    assert max(seconds.values()) <= PROMISED
    assert all(user.access() == (True, True) for user in others)


# -- hubs that die, and starts that are under way ----------------------------------------------------------------------


def test_a_hub_killed_in_the_middle_of_a_departure_goes_on_with_it(make_servers: MakeServers, idp: IdP) -> None:
    """Also if nobody says "no" any more: the operator has ended the access of a member."""
    hub = make_servers("c.JupyterHub.cleanup_servers = False\nc.Spawner.http_timeout = 60\n", recheck=60).start()
    user = User(hub, idp).starts()
    # The server takes its time to end: it gets no signal.
    os.kill(user.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(
            hub.api, "POST", "/casa-hub/revoke", token="token-of-the-operator", json={"user": user.name}
        )
        until(lambda: not (user.server / "access_token").exists(), "the files are withdrawn")
        assert user.api() == 403
        hub.stop(signal.SIGKILL)
        with contextlib.suppress(requests.ConnectionError):
            asked.result()
    assert user.process.alive
    os.kill(user.process.pid, signal.SIGCONT)
    hub.start()
    assert ended(user)["by"] == "service operator"
    until(lambda: user.has_nothing, "the end of the access")
    assert idp.owner(idp.revoked[-1]) == user.sub
    assert not user.hub.api("GET", f"/users/{user.name}").json()["auth_state"]
    # Nothing is left to go on with.
    hub.stop(signal.SIGKILL)
    since = len(hub.log)
    with hub.running():
        assert user.browser.log_in(user.sub).status_code == 200
        assert "Your access had ended at" in user.browser.page("/hub/home").text
        assert "Going on with the end" not in hub.log[since:]


def test_a_hub_killed_between_a_refresh_and_its_store_costs_a_log_in_and_no_server(
    make_servers: MakeServers, idp: IdP
) -> None:
    hub = make_servers("c.JupyterHub.cleanup_servers = False\n", max_age=600).start()
    user = User(hub, idp).starts()
    with idp.holding("refresh_token"):
        # Hubs of other tests ask the same provider.
        until(lambda: any(form["refresh_token"] == user.stored()["refresh_token"] for form in idp.held), "it asks")
        token = user.stored()["refresh_token"]
        hub.stop(signal.SIGKILL)
    # The provider has given a new refresh token to nobody, and ended the old one.
    until(lambda: any(form.get("refresh_token") == token for form in idp.token_requests), "the provider answers")
    hub.start()
    until(lambda: not user.browser.is_in(), "pages ask for a log-in")
    assert "used twice" in user.browser.page("/hub/home").text
    assert user.runs
    assert user.api() == 200
    stale = (user.server / "access_token").read_text()
    assert user.browser.log_in(user.sub).status_code == 200
    until(lambda: (user.server / "access_token").read_text() != stale, "the server gets the new token")
    assert user.has_all
    # And so it goes on.
    asked = idp.requests["refresh_token"]
    until(lambda: idp.requests["refresh_token"] > asked + 1, "further checks")
    assert user.has_all
    user.is_in_groups()
    ended(user)


def test_a_start_that_is_under_way_ends_with_the_access(iam: Hub, idp: IdP) -> None:
    def processes() -> set[Path]:
        return set(iam.directory.glob("servers/*/process"))

    user, before, slow = User(iam, idp), processes(), iam.directory / "slow"
    slow.touch()
    try:
        assert user.browser.spawn().status_code == 202
        until(lambda: processes() - before, "the process starts")
        (file,) = processes() - before
        user.server, user.process = file.parent, signed_in(file)
        assert (user.server / "access_token").exists()
        begin = time.monotonic()
        user.is_in_groups()
        until(lambda: not (user.server / "access_token").exists(), "the files are withdrawn")
        ended(user)
        assert time.monotonic() - begin <= PROMISED
    finally:
        slow.unlink()
    until(lambda: user.has_nothing, "the end of the access")


# -- other ways out ----------------------------------------------------------------------------------------------------


def test_an_administrator_s_removal_of_a_user_ends_all_servers_and_the_refresh_token(iam: Hub, idp: IdP) -> None:
    user = User(iam, idp)
    servers = []
    for name in ("named", ""):
        user.starts(name)
        servers.append((user.server, user.process))
    token = user.stored()["refresh_token"]
    answer = iam.api("DELETE", f"/users/{user.name}")
    assert answer.status_code == 204, answer.text
    assert not any(process.alive for _, process in servers)
    assert not any((server / "access_token").exists() for server, _ in servers)
    assert user.access() == (False, False)
    assert idp.revoked[-1] == token or idp.owner(idp.revoked[-1]) == user.sub
    assert ended(user)["by"] == "an administrator of the hub"
    revoked = {event["servername"] for event in user.audit() if event["action"] == "revoked"}
    assert "named" in revoked


def test_a_token_that_was_being_made_meanwhile_ends_with_the_others(make_servers: MakeServers, idp: IdP) -> None:
    """Whoever has stolen a token asks for more of them all the time; some requests are let in, and then wait."""
    hub = make_servers(provider="wlcg-iam", recheck=86400, grace=600, max_age=86400)
    with hub.running():
        user = User(hub, idp)
    with hub.running(), ThreadPoolExecutor() as threads, idp.holding("refresh_token") as release:
        # A hub that knows nobody yet asks first.
        making = threads.submit(hub.api, "POST", f"/users/{user.name}/tokens", token=user.token, json={})
        assert idp.arrived.wait(30)
        body = {"user": user.name}
        revoking = threads.submit(hub.api, "POST", "/casa-hub/revoke", token="token-of-the-operator", json=body)
        hub.wait_for(f"The access of {user.name} ends")
        release.set()
        assert revoking.result().json()["still"] == []
        made = making.result()
        assert made.status_code == 201, made.text
        assert user.browser.log_in(user.sub).status_code == 200
        assert hub.api("GET", "/user", token=made.json()["token"]).status_code == 403
        assert user.access() == (True, False)


def test_without_refresh_tokens_a_log_in_counts_for_its_time_and_pages_tell_its_end(iam: Hub, idp: IdP) -> None:
    idp.rotate = False
    idp.change["/oauth2/token"] = lambda document: {k: v for k, v in document.items() if k != "refresh_token"}
    user = User(iam, idp).starts()  # within the time; and the notice comes in its last quarter
    begin = time.monotonic()
    until(lambda: "Please log out and in again" in user.browser.page("/hub/home").text, "a notice")
    assert user.has_all
    assert ended(user)["reason"].startswith("No new log-in in time")
    assert time.monotonic() - begin <= MAX_AGE + 30
    until(lambda: user.has_nothing, "the end of the access")
    # A refused log-in is a "no" for what nobody can be asked about.
    other = User(iam, idp).starts()
    other.is_in_groups("/cms")
    assert Browser(iam).log_in(other.sub).status_code == 403
    assert ended(other)["reason"].startswith("This hub is for members of")
    until(lambda: other.has_nothing, "the end of the access")


def test_servers_of_whom_no_log_in_is_known_run_until_one_should_have_been(make_servers: MakeServers, idp: IdP) -> None:
    """The crypt key is lost, and with it all log-ins: nobody said "no"."""
    hub = make_servers("c.JupyterHub.cleanup_servers = False\n").start()
    users = [User(hub, idp).starts() for _ in range(2)]
    hub.stop(signal.SIGKILL)
    hub.environment["JUPYTERHUB_CRYPT_KEY"] = "0" * 64
    with hub.running():
        begin = time.monotonic()
        assert users[0].browser.log_in(users[0].sub).status_code == 200
        assert ended(users[1])["reason"].startswith("No log-in in time")
        assert time.monotonic() - begin >= MAX_AGE - RECHECK
        assert not users[1].process.alive
        assert users[0].runs
        users[0].is_in_groups()
        ended(users[0])
