"""What sites add to a log-in: a hook of their own, names as they write them, technical users, two tabs, long links."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any

import pytest

from casa_hub.web.pages import ATTEMPTS, LONGEST_LINK
from tests.hub.conftest import MakeHub
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.person import MEMBER, Person

EVENT = '"action": '


def events(hub: Hub, name: str) -> list[dict[str, Any]]:
    lines = (line[line.index("{") :] for line in hub.log.splitlines() if EVENT in line)
    return [event for event in map(json.loads, lines) if event["username"] == name]


HOOK = """
def hook(authenticator, handler, model):
    claims = model["auth_state"]["oauth_user"]
    if claims.get("broken") == "raises":
        raise ValueError("token-in-the-text")
    if claims.get("broken") == "nothing":
        return None
    if claims.get("broken") == "no state":
        return {**model, "auth_state": None}
    model["name"] = model["name"].partition("@")[0]
    model["auth_state"]["institution"] = "Example University"
    model["groups"] = [*model["groups"], "gpu-users"]
    return model

c.CasaOAuthenticator.post_auth_hook = hook
c.CasaOAuthenticator.blocked_users = {"Mallory"}
c.CasaOAuthenticator.technical_users = {"Health-Check"}
c.JupyterHub.services.append({"name": "operator", "api_token": "token-of-the-operator"})
c.JupyterHub.load_roles.append({"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate"]})
"""


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Hub:
    return make_hub(HOOK, provider="keycloak").start()


def member(idp: IdP, sub: str, name: str, **claims: Any) -> str:
    idp.put_user(sub, preferred_username=name, groups=MEMBER, **claims)
    return sub


# -- a hook of the site ----------------------------------------------------------------------------------------------


def test_what_a_hook_adds_survives_refreshes(hub: Hub, idp: IdP) -> None:
    """From the first refresh on a site's own key was gone, and no server of that user started any more."""
    person = Person(hub, idp, "groups")
    hub.put_forward(3000)  # the access token is due
    assert person.access() == (True, True)
    assert idp.requests["refresh_token"] > 0
    user = hub.api("GET", f"/users/{person.name}").json()
    assert user["auth_state"]["institution"] == "Example University"
    assert "gpu-users" in user["groups"]
    assert set(MEMBER) <= set(user["groups"])


def test_a_name_that_a_hook_makes_is_bound_to_whom_had_it_first(hub: Hub, idp: IdP) -> None:
    """A second person came in as the first: the binding was looked at with the name before the hook."""
    assert Browser(hub).log_in(member(idp, "sam-1", "sam@lab-one.example")).status_code == 200
    assert Browser(hub).log_in(member(idp, "sam-2", "sam@lab-two.example")).status_code == 403
    assert Browser(hub).log_in("sam-1").status_code == 200
    assert hub.api("GET", "/users/sam@lab-one.example").status_code == 404


def test_a_blocked_name_is_blocked_also_when_a_hook_makes_it(hub: Hub, idp: IdP) -> None:
    assert Browser(hub).log_in(member(idp, "mallory-1", "mallory@lab.example")).status_code == 403
    assert [event["action"] for event in events(hub, "mallory")] == ["refused"]


def test_a_refused_log_in_is_a_no_for_an_earlier_one_under_the_name_that_a_hook_made(hub: Hub, idp: IdP) -> None:
    """It was looked for under the provider's name only: without a refresh token it went on for a day."""
    before = Browser(hub)
    assert before.log_in(member(idp, "zoe-1", "zoe@lab.example")).status_code == 200
    assert before.user() == "zoe"
    idp.put_user("zoe-1", preferred_username="zoe@lab.example", groups=["/other"])
    assert Browser(hub).log_in("zoe-1").status_code == 403
    assert not before.is_in()


@pytest.mark.parametrize("broken", ["raises", "nothing", "no state"])
def test_a_hook_that_fails_lets_nobody_in_and_is_named(hub: Hub, idp: IdP, broken: str) -> None:
    answer = Browser(hub).log_in(member(idp, f"b-{broken}", f"b-{broken.replace(' ', '')}", broken=broken))
    assert answer.status_code == 403
    assert "CasaOAuthenticator.post_auth_hook" in answer.text
    assert "token-in-the-text" not in hub.log + answer.text
    assert hub.api("GET", f"/users/b-{broken.replace(' ', '')}").status_code == 404


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_block_blocks_however_its_name_is_written(hub: Hub, idp: IdP) -> None:
    """`blocked_users: {"Mallory"}` blocked nobody: user names are lower case here."""
    assert Browser(hub).log_in(member(idp, "mallory-2", "Mallory")).status_code == 403
    hub.wait_for(r"blocked_users: 'Mallory' is read as 'mallory'")


# -- technical users -------------------------------------------------------------------------------------------------


def test_a_technical_user_has_tokens_without_a_log_in_and_never_a_browser_session(hub: Hub, idp: IdP) -> None:
    hub.api("POST", "/users/health-check")
    token = hub.api("POST", "/users/health-check/tokens", json={}).json()["token"]
    assert hub.api("GET", "/user", token=token).status_code == 200
    hub.put_forward(3 * 86400)
    assert hub.api("GET", "/user", token=token).status_code == 200
    answer = Browser(hub).log_in(member(idp, "hc", "health-check"))
    assert answer.status_code == 403
    assert "technical user" in answer.text


def test_who_had_the_name_of_a_technical_user_before_can_t_end_what_is_that_user_s(hub: Hub, idp: IdP) -> None:
    """A refused log-in is a "no" for the same person's earlier ones: it ended the health check's servers."""
    sub = member(idp, "hc-before", "health-check")
    with sqlite3.connect(hub.directory / "hub.sqlite") as db:
        bound = ("2026-01-01 00:00:00.000000", "health-check", idp.issuer, sub)
        db.execute("INSERT INTO casa_hub_identities (bound_at, username, issuer, sub) VALUES (?, ?, ?, ?)", bound)
    hub.api("POST", "/users/health-check")
    token = hub.api("POST", "/users/health-check/tokens", json={}).json()["token"]
    assert Browser(hub).log_in(sub).status_code == 403
    time.sleep(2)
    assert hub.api("GET", "/user", token=token).status_code == 200


def test_who_has_no_log_in_and_is_not_technical_is_told_so_at_a_start(hub: Hub) -> None:
    hub.api("POST", "/users/nobody-yet")
    answer = hub.api("POST", "/users/nobody-yet/server")
    assert answer.status_code == 403
    assert "no log-in of this user is stored" in answer.text


# -- the cookie of a log-in ------------------------------------------------------------------------------------------


def attempts(browser: Browser) -> list[str]:
    return [cookie.name for cookie in browser.cookies if cookie.name.startswith("oauthenticator-state")]


def begin(browser: Browser, **query: str) -> str:
    """Go to the provider's page, in another tab: its address."""
    answer = browser.get(f"{browser.hub.url}/hub/oauth_login", params=query, allow_redirects=False, timeout=30)
    assert answer.status_code == 302
    return str(answer.headers["Location"])


def finish(browser: Browser, address: str, sub: str) -> Any:
    """Press the provider's button: the hub's answer at the callback, which leads on if all is well."""
    back = browser.post(address, data={"sub": sub}, timeout=60, allow_redirects=False)
    return browser.get(back.headers["Location"], timeout=60, allow_redirects=False)


def test_two_tabs_can_log_in_at_the_same_time(hub: Hub, idp: IdP) -> None:
    """The second tab's cookie took the place of the first one's, whose log-in then failed."""
    sub, browser = member(idp, "tabs", "tabs"), Browser(hub)
    first, second = begin(browser), begin(browser)
    assert len(attempts(browser)) == 2
    for address in (first, second):
        assert finish(browser, address, sub).status_code == 302
    assert attempts(browser) == []
    assert finish(browser, first, sub).status_code == 400  # each is good for one use


def test_attempts_that_came_to_nothing_go(hub: Hub) -> None:
    browser = Browser(hub)
    for _ in range(ATTEMPTS + 3):
        begin(browser)
    assert len(attempts(browser)) == ATTEMPTS


@pytest.mark.parametrize(
    ("length", "character", "kept"),
    [
        (LONGEST_LINK - 100, "x", True),
        (LONGEST_LINK + 1, "x", False),
        (60_000, "x", False),
        (LONGEST_LINK - 100, "\N{LATIN SMALL LETTER U WITH DIAERESIS}", False),
    ],
)
def test_a_log_in_works_whatever_the_length_of_the_link_that_it_leads_to(
    hub: Hub, idp: IdP, length: int, character: str, kept: bool
) -> None:
    sub, browser = member(idp, "links", "links"), Browser(hub)
    link = "/hub/home?" + character * (length - 10)
    address = begin(browser, next=link)
    (name,) = attempts(browser)
    value = next(cookie.value for cookie in browser.cookies if cookie.name == name)
    assert len(name) + len(value or "") < 4096
    answer = finish(browser, address, sub)
    assert answer.status_code == 302
    assert answer.headers["Location"].endswith(link) is kept
    assert browser.is_in()


# -- what only the operator can mend ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "setting"), [("invalid_scope", "scope"), ("unauthorized_client", "client_id")])
def test_a_client_that_may_not_ask_so_is_the_operators_affair(hub: Hub, error: str, setting: str) -> None:
    browser = Browser(hub)
    address = begin(browser)
    state = address.partition("state=")[2].partition("&")[0]
    said = "Scope 'wlcg.groups' not allowed <b>for</b> client"
    since = len(hub.log)
    answer = browser.get(
        f"{hub.url}/hub/oauth_callback?state={state}", params={"error": error, "error_description": said}, timeout=30
    )
    assert answer.status_code == 403
    assert "operator of this hub must act" in answer.text
    assert "<b>" not in answer.text
    assert "[E" in hub.log[since:]
    assert f"CasaOAuthenticator.{setting}" in hub.log[since:]
