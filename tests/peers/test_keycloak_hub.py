"""A whole hub whose people log in at a real Keycloak, and what of them ends, and when, by what happens there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.hub.test_membership_lost import CREDENTIALS, SERVERS, User, ended
from tests.support import keycloak as peer
from tests.support.chromium import OpenTab
from tests.support.facility_config import make_keys
from tests.support.hub import CLIENT_SECRET, Browser, Hub, casa_config
from tests.support.keycloak import OFFLINE, ONLINE, Account, Keycloak, Realm
from tests.support.local_servers import end
from tests.support.waiting import until

MEMBERS = "/cms/uscms"
RECHECK, REVOKED_GRACE = 5.0, 10.0
#: Seconds that are promised from what happens at the provider to the end of access.
PROMISED = RECHECK + 30
BACKCHANNEL = "POST /hub/backchannel-logout"

networks = itertools.count(120)

MakeServers = Callable[..., Hub]


@pytest.fixture(scope="module")
def make_servers(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeServers]:
    """Makes hubs with a client each, not yet started, whose servers are ended with the module whatever happens."""
    hubs: list[Hub] = []

    def make(realm: Realm, scope: list[str], *, max_age: float = 600.0, more: str = "") -> Hub:
        client_id = f"hub-{len(hubs)}"
        text = casa_config(realm.issuer, provider="keycloak", client_id=client_id, scope=scope)
        text += SERVERS.format(
            credentials=CREDENTIALS, net=next(networks), recheck=RECHECK, grace=120.0, max_age=max_age
        )
        text += f"c.Keeper.revoked_grace = {REVOKED_GRACE}\n"
        hub = Hub(tmp_path_factory.mktemp("hub"), text + more, proxy=True)
        hubs.append(hub)
        realm.add_client(client_id, CLIENT_SECRET, hub.url, backchannel=True)
        (hub.directory / "traefik").mkdir()
        make_keys(hub.directory, "dask")
        return hub

    yield make
    for hub in hubs:
        end(hub)
    assert not any(CLIENT_SECRET in hub.log for hub in hubs)


@pytest.fixture(scope="module")
def realm(keycloak: Keycloak) -> Realm:
    """Access tokens so short-lived that each check is a refresh."""
    return keycloak.realm(accessTokenLifespan=6)


@pytest.fixture(scope="module")
def offline(make_servers: MakeServers, realm: Realm) -> Hub:
    return make_servers(realm, OFFLINE).start()


@pytest.fixture(scope="module")
def online(make_servers: MakeServers, realm: Realm) -> Hub:
    return make_servers(realm, ONLINE).start()


class Member(User):
    """Somebody new at Keycloak who has logged in to the hub by its form, with an API token and perhaps a server."""

    def __init__(self, hub: Hub, realm: Realm) -> None:
        self.hub, self.realm, self.since = hub, realm, len(hub.log)
        self.account: Account = realm.add_account(MEMBERS)
        self.name = self.account.name
        self.browser = Browser(hub)
        self.log_in()
        self.token = self.browser.token()

    def __repr__(self) -> str:
        return f"Member({self.name})"

    def log_in(self) -> None:
        answer = peer.log_in(self.browser, self.account)
        assert answer.status_code == 200, answer.text
        assert self.browser.user() == self.account.name

    def left_by_itself(self) -> bool:
        """Whether all that the server had is gone: nobody asks the hub, which would look at the membership then."""
        routes = "".join(map(Path.read_text, self.routes()))
        file = self.server / "access_token"
        return not (self.process.alive or file.exists() or self.server.name in routes)


def test_a_member_signs_in_by_keycloak_s_form_in_a_real_browser(offline: Hub, realm: Realm, open_tab: OpenTab) -> None:
    account = realm.add_account(MEMBERS)
    tab = open_tab(offline)
    tab.page.goto("/hub/login?next=/hub/home")
    tab.page.get_by_role("button", name="Sign in with Keycloak").click()
    tab.page.get_by_label("Username").fill(account.name)
    tab.page.get_by_label("Password", exact=True).fill(account.password)
    tab.page.get_by_role("button", name="Sign In").click()
    expect(tab.page).to_have_url(f"{offline.url}/hub/home")
    expect(tab.page.get_by_role("navigation")).to_contain_text(account.name)


@pytest.mark.parametrize("scope", ["offline", "online"])
@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda m: m.realm.leave(m.account, MEMBERS), "This hub is for members of"),
        (lambda m: m.realm.disable(m.account), "The identity provider says that the account is disabled."),
    ],
    ids=["the group is lost", "the account is disabled"],
)
def test_an_explicit_no_ends_all_access_though_nobody_opens_a_page(
    request: pytest.FixtureRequest, realm: Realm, scope: str, happens: Callable[[Member], Any], words: str
) -> None:
    member = Member(request.getfixturevalue(scope), realm).starts()
    happens(member)
    until(member.left_by_itself, f"the end of {member.name}'s access", timeout=PROMISED)
    until(lambda: member.has_nothing, "the end of the pages and of the API", timeout=5)
    assert ended(member)["reason"].startswith(words)


@pytest.mark.parametrize("scope", ["offline", "online"])
def test_a_deleted_account_has_nothing_after_the_grace_of_a_sign_in_taken_back(
    request: pytest.FixtureRequest, realm: Realm, scope: str
) -> None:
    """Keycloak says no "no" of it: so it answers to a session that has ended, too."""
    member = Member(request.getfixturevalue(scope), realm).starts()
    realm.delete(member.account)
    deleted = time.monotonic()
    until(
        member.left_by_itself,
        f"the end of {member.name}'s access",
        timeout=REVOKED_GRACE + PROMISED,
        more=lambda: member.hub.log[-5000:],
    )
    assert time.monotonic() - deleted >= REVOKED_GRACE - 1
    until(lambda: member.has_nothing, "the end of the pages and of the API", timeout=5)
    assert ended(member)["reason"].startswith("The sign-in was taken back at the identity provider before its time.")


@pytest.mark.parametrize(
    "logs_out",
    [
        lambda m: m.realm.log_out(m.account),
        lambda m: m.realm.end_sessions(m.account),
        lambda m: peer.sign_out(m.browser, m.realm),
    ],
    ids=["all sessions by an administrator", "one session by an administrator", "the person"],
)
def test_a_log_out_reaches_the_hub_and_ends_an_online_session(
    online: Hub, realm: Realm, logs_out: Callable[[Member], None]
) -> None:
    """At once, without waiting for a check; servers and API tokens go on."""
    member = Member(online, realm).starts()
    since = len(online.log)
    logs_out(member)
    online.wait_for_all(rf"200 {BACKCHANNEL}", 1, since=since)
    assert not member.browser.is_in()
    assert member.api() == 200
    assert member.runs
    (event,) = [event for event in member.audit() if event["action"] == "logged-out"]
    assert "its refresh token is dropped" in event["reason"]
    assert not member.stored()["refresh_token"]
    member.log_in()
    assert member.has_all


def test_a_person_s_log_out_does_not_end_an_offline_session(offline: Hub, realm: Realm) -> None:
    """Keycloak tells the hub nothing, and goes on to answer refreshes: `offline_access` asks for just this."""
    member = Member(offline, realm).starts()
    since = len(offline.log)
    peer.sign_out(member.browser, realm)
    before = member.stored()
    until(lambda: member.stored()["access_token"] != before["access_token"], "a check after the log-out")
    assert member.has_all
    assert BACKCHANNEL not in offline.log[since:]


def test_an_administrator_s_log_out_takes_an_offline_session_back_and_tells_nobody(offline: Hub, realm: Realm) -> None:
    """All tokens of before are stale then: the next check finds a sign-in that was taken back."""
    member = Member(offline, realm).starts()
    since = len(offline.log)
    realm.log_out(member.account)
    until(lambda: not member.browser.is_in(), "pages ask for a log-in", timeout=PROMISED)
    assert BACKCHANNEL not in offline.log[since:]
    assert "The sign-in was taken back" in member.browser.page("/hub/home").text
    assert member.runs
    member.log_in()
    assert member.has_all
    time.sleep(REVOKED_GRACE)  # after which the log-in of before would have ended all
    assert member.has_all


def test_a_sign_in_that_runs_out_is_told_before_and_counts_for_its_time_after(
    keycloak: Keycloak, make_servers: MakeServers
) -> None:
    """Without `offline_access` Keycloak's sessions have an end that no refresh moves."""
    life, max_age = 60, 15.0
    realm = keycloak.realm(ssoSessionMaxLifespan=life, accessTokenLifespan=6)
    with make_servers(realm, ONLINE, max_age=max_age).running() as hub:
        begin = time.monotonic()
        member = Member(hub, realm).starts()

        def page() -> str:
            return member.browser.page("/hub/home").text

        assert "Your sign-in runs out at" not in page()
        until(lambda: "Your sign-in runs out at" in page(), "a notice", timeout=life + RECHECK)
        assert time.monotonic() - begin <= life + 5
        assert member.has_all
        until(lambda: not member.browser.is_in(), "pages ask for a log-in", timeout=PROMISED)
        assert member.runs
        assert member.api() == 200
        until(member.left_by_itself, f"the end of {member.name}'s access", timeout=max_age + PROMISED)
        assert time.monotonic() - begin >= life + max_age - 2 * RECHECK
        assert ended(member)["reason"].startswith("No new log-in in time")
