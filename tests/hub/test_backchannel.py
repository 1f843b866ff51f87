"""The identity provider tells the hub that somebody has logged out there (OpenID Connect Back-Channel Logout 1.0)."""

from __future__ import annotations

import itertools
import json
import socket
import sqlite3
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests

from casa_hub.identity.logout import EVENT
from casa_hub.web.backchannel import BODY_LIMIT
from tests.hub.conftest import MakeHub
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.scale import one_for_both_hubs
from tests.support.tokens import Signer, by_hand

OURS, FOREIGN = Signer("back-channel"), Signer("foreign")
numbers = itertools.count(1)
CALLBACK = "http://127.0.0.1:9/callback"


#: Sees browsers as a server does: each has a token for it, by the hub's own OAuth.
SERVICE = """
c.JupyterHub.services.append({
    "name": "web", "url": "http://127.0.0.1:9", "api_token": "secret-of-the-service", "oauth_no_confirm": True,
    "oauth_redirect_uri": "http://127.0.0.1:9/callback", "oauth_client_id": "service-web",
})
c.JupyterHub.load_roles.append({"name": "user", "scopes": ["self", "access:services!service=web"]})
"""


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Hub:
    return make_hub(SERVICE).start()


@pytest.fixture(scope="module")
def online(make_hub: MakeHub) -> Hub:
    """Refresh tokens end with the session at the provider."""
    return make_hub(provider="keycloak", scope=["openid", "profile"], groups_claim="groups").start()


@pytest.fixture
def idp(idp: IdP) -> IdP:
    """Has a key that the tests sign with, and tells the session in its ID tokens."""
    idp.change["/jwks"] = lambda document: {"keys": [*document["keys"], OURS.jwk()]}

    def with_session(document: dict[str, Any], sid: str = "") -> dict[str, Any]:
        claims = jwt.decode(document["id_token"], options={"verify_signature": False})
        return {**document, "id_token": OURS.sign(claims | {"sid": sid or f"session of {claims['sub']}"})}

    idp.change["/oauth2/token"] = with_session
    return idp


class Person:
    """Somebody who has logged in, with a browser and an API token."""

    def __init__(self, hub: Hub, idp: IdP) -> None:
        number = next(numbers)
        self.hub, self.sub, self.name = hub, f"sub-{number}", f"person-{number}"
        groups = {"wlcg.groups": ["/cms/uscms"], "groups": ["/cms/uscms"]}
        idp.put_user(self.sub, preferred_username=self.name, **groups)
        self.browser = Browser(hub)
        self.log_in()
        self.token = self.browser.token()

    @property
    def sid(self) -> str:
        return f"session of {self.sub}"

    def log_in(self) -> None:
        answer = self.browser.log_in(self.sub)
        assert answer.status_code == 200, answer.text

    def api(self) -> int:
        return self.hub.api("GET", "/user", token=self.token).status_code

    def stored(self) -> dict[str, Any]:
        return dict(self.hub.api("GET", f"/users/{self.name}").json()["auth_state"])

    def code_for_service(self) -> str:
        """What the browser brings to a service that it opens."""
        query = {"client_id": "service-web", "redirect_uri": CALLBACK, "response_type": "code"}
        answer = self.browser.page("/hub/api/oauth2/authorize", params=query, allow_redirects=False)
        assert answer.status_code == 302, answer.text
        return parse_qs(urlsplit(answer.headers["Location"]).query)["code"][0]


def redeemed(hub: Hub, code: str) -> requests.Response:
    """What the service makes of it."""
    form = {"client_id": "service-web", "client_secret": "secret-of-the-service", "code": code}
    form |= {"grant_type": "authorization_code", "redirect_uri": CALLBACK}
    return requests.post(f"{hub.url}/hub/api/oauth2/token", data=form, timeout=30)


def claims(idp: IdP, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {"iss": idp.issuer, "aud": "hub", "iat": now, "exp": now + 120, "jti": f"jti-{next(numbers)}"}
    good |= {"events": {EVENT: {}}, **changes}
    return {name: value for name, value in good.items() if value is not None}


def token(idp: IdP, **changes: Any) -> str:
    return OURS.sign(claims(idp, **changes), typ="logout+jwt")


def post(hub: Hub, logout_token: str, **more: Any) -> requests.Response:
    url = f"{hub.url}/hub/backchannel-logout"
    return requests.post(url, **{"data": {"logout_token": logout_token}, "timeout": 30, **more})


def audits(hub: Hub, since: int, name: str) -> list[dict[str, Any]]:
    lines = [
        line.split("casa-hub audit: ", 1)[1] for line in hub.log[since:].splitlines() if "casa-hub audit: " in line
    ]
    return [event for event in map(json.loads, lines) if event["username"] == name]


@pytest.mark.both_hubs
def test_a_log_out_ends_the_browser_s_sessions_and_nothing_else(hub: Hub, idp: IdP) -> None:
    person, other = Person(hub, idp), Person(hub, idp)
    assert person.browser.spawn().status_code in (201, 202)
    hub.wait_for(rf"User {person.name} took")
    seen_by_service = redeemed(hub, person.code_for_service()).json()["access_token"]
    assert hub.api("GET", "/user", token=seen_by_service).json()["name"] == person.name
    not_redeemed = person.code_for_service()
    second = Browser(hub)
    assert second.log_in(person.sub).status_code == 200
    before, since = person.stored(), len(hub.log)

    answer = post(hub, token(idp, sub=person.sub, sid=person.sid))
    assert (answer.status_code, answer.headers["Cache-Control"], answer.text) == (200, "no-store", "")
    assert not person.browser.is_in()
    assert not second.is_in()
    assert hub.api("GET", "/user", token=seen_by_service).status_code == 403
    assert redeemed(hub, not_redeemed).status_code == 400
    # What works without a session goes on: the server, API tokens, and the refresh token that offline_access gave.
    assert hub.api("GET", f"/users/{person.name}").json()["servers"][""]["ready"]
    assert person.api() == 200
    assert person.stored()["refresh_token"] == before["refresh_token"]
    assert other.browser.is_in()
    (event,) = audits(hub, since, person.name)
    assert event["action"] == "logged-out"
    assert "1 tokens end" in event["reason"]

    person.log_in()
    assert person.browser.is_in()
    assert hub.api("DELETE", f"/users/{person.name}/servers/").status_code in (202, 204)


@pytest.mark.both_hubs
def test_the_refresh_token_of_a_session_goes_with_it(online: Hub, idp: IdP) -> None:
    person = Person(online, idp)
    assert person.stored()["refresh_token"]
    assert post(online, token(idp, sub=person.sub)).status_code == 200
    assert person.stored()["refresh_token"] is None
    assert not person.browser.is_in()
    assert person.api() == 200  # as long as the membership counts


def test_another_session_s_end_leaves_the_refresh_token(online: Hub, idp: IdP) -> None:
    """JupyterHub has one cookie for all of a user's browsers, so all end; the newest log-in's tokens are still good."""
    person = Person(online, idp)
    assert post(online, token(idp, sub=person.sub, sid="the session before")).status_code == 200
    assert not person.browser.is_in()
    assert person.stored()["refresh_token"]


def test_a_session_without_its_subject_is_found(online: Hub, idp: IdP) -> None:
    person, other = Person(online, idp), Person(online, idp)
    assert post(online, token(idp, sid=person.sid)).status_code == 200
    assert not person.browser.is_in()
    assert person.stored()["refresh_token"] is None
    assert other.browser.is_in()


def test_a_session_before_the_newest_is_found_without_its_subject(online: Hub, idp: IdP) -> None:
    """Its browser's cookie is as good as the newest one's: the provider was told "done" while that browser went on."""
    person, other = Person(online, idp), Person(online, idp)
    second = Browser(online)
    with_session, number = idp.change["/oauth2/token"], next(numbers)
    idp.change["/oauth2/token"] = lambda document: with_session(document, f"second session {number}")
    assert second.log_in(person.sub).status_code == 200
    assert person.stored()["casa"]["earlier_sids"] == [person.sid]
    assert person.browser.is_in()
    assert post(online, token(idp, sid=person.sid)).status_code == 200
    assert not person.browser.is_in()
    assert not second.is_in()  # JupyterHub has one cookie for both
    assert person.stored()["refresh_token"]  # of the newest log-in, whose session goes on
    assert other.browser.is_in()


def test_who_isn_t_logged_in_here_is_logged_out(online: Hub, idp: IdP) -> None:
    assert post(online, token(idp, sub="nobody")).status_code == 200
    assert post(online, token(idp, sid="no session")).status_code == 200
    person = Person(online, idp)
    for _ in range(2):
        assert post(online, token(idp, sub=person.sub)).status_code == 200
    assert online.api("DELETE", f"/users/{person.name}").status_code == 204
    assert post(online, token(idp, sub=person.sub)).status_code == 200


FORGED = {
    "foreign key": lambda idp, sub: FOREIGN.sign(claims(idp, sub=sub), kid=OURS.kid),
    "no signature": lambda idp, sub: by_hand({"alg": "none", "kid": OURS.kid}, claims(idp, sub=sub)),
    "another audience": lambda idp, sub: token(idp, sub=sub, aud="other"),
    "another issuer": lambda idp, sub: token(idp, sub=sub, iss="https://evil.example.org"),
    "expired": lambda idp, sub: token(idp, sub=sub, exp=int(time.time()) - 120),
    "no event": lambda idp, sub: token(idp, sub=sub, events={}),
    "an ID token": lambda idp, sub: token(idp, sub=sub, nonce="n"),
    "nonsense": lambda idp, sub: "nonsense",
}


@pytest.mark.parametrize("case", one_for_both_hubs(FORGED))
def test_what_the_provider_hasn_t_said_ends_nothing(online: Hub, idp: IdP, case: str) -> None:
    person = Person(online, idp)
    forged = FORGED[case](idp, person.sub)
    answer = post(online, forged)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (400, "no-store")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json()["error"] == "invalid_request"
    assert answer.json()["error_description"].startswith("logout token: ")
    assert person.browser.is_in()
    assert person.stored()["refresh_token"]
    assert case == "nonsense" or forged not in online.log


def test_a_copy_doesn_t_end_the_next_log_in(online: Hub, idp: IdP) -> None:
    person = Person(online, idp)
    said = token(idp, sub=person.sub)
    assert post(online, said).status_code == 200
    person.log_in()
    assert post(online, said).status_code == 400
    assert person.browser.is_in()


@pytest.mark.parametrize(
    ("request_", "words"),
    one_for_both_hubs(
        [
            ({"data": {}}, "one logout_token in a form"),
            ({"data": [("logout_token", "a"), ("logout_token", "b")]}, "one logout_token in a form"),
            ({"json": {"logout_token": "a"}}, "one logout_token in a form"),
            ({"data": b"logout_token=\xff"}, "one logout_token in a form"),
            ({"data": "&".join(f"a{number}=b" for number in range(20))}, "one logout_token in a form"),
            ({"data": "logout_token=%ff%fe"}, "not a signed JWT"),
        ]
    ),
    ids=["empty", "two", "JSON", "no text", "many fields", "no text within"],
)
def test_what_is_no_such_request_is_refused(online: Hub, idp: IdP, request_: dict[str, Any], words: str) -> None:
    answer = post(online, "", **{"data": None, **request_})
    assert answer.status_code == 400
    assert words in answer.json()["error_description"]


@pytest.mark.both_hubs
def test_a_large_request_isn_t_read(online: Hub, idp: IdP) -> None:
    head = "POST /hub/backchannel-logout HTTP/1.1\r\nHost: hub\r\nContent-Length: {}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(online.url).port), timeout=60) as connection:
        connection.sendall(head.format(BODY_LIMIT + 1).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert post(online, "a" * (BODY_LIMIT - 100)).status_code == 400
    chunked = post(online, "", data=iter([b"logout_token=", b"a" * BODY_LIMIT]))
    assert chunked.status_code == 400


@pytest.mark.both_hubs
def test_a_browser_can_t_be_made_to_ask_for_anything_here(online: Hub, idp: IdP) -> None:
    """Neither its cookie nor an API token is looked at: a forged form of another site does what it does without."""
    person = Person(online, idp)
    asked = idp.requests["/userinfo"]
    answer = person.browser.post(f"{online.url}/hub/backchannel-logout", data={"logout_token": "x"}, timeout=30)
    assert answer.status_code == 400
    assert not answer.cookies
    assert requests.get(f"{online.url}/hub/backchannel-logout", timeout=30).status_code == 405
    assert idp.requests["/userinfo"] == asked


def test_a_log_out_that_fails_says_so(make_hub: MakeHub, idp: IdP) -> None:
    hub = make_hub(provider="keycloak", scope=["openid", "profile"], groups_claim="groups")
    with hub.running():
        person = Person(hub, idp)
        with sqlite3.connect(hub.directory / "hub.sqlite") as db:
            db.execute("ALTER TABLE casa_hub_identities RENAME TO away")
        answer = post(hub, token(idp, sub=person.sub))
        assert answer.status_code == 400
        assert "the hub's database failed" in answer.json()["error_description"]
        with sqlite3.connect(hub.directory / "hub.sqlite") as db:
            db.execute("ALTER TABLE away RENAME TO casa_hub_identities")
        assert post(hub, token(idp, sub=person.sub)).status_code == 200
        assert not person.browser.is_in()


def test_a_provider_whose_keys_are_away_has_not_said_it(make_hub: MakeHub, idp: IdP) -> None:
    hub = make_hub(provider="keycloak", scope=["openid"], groups_claim="groups")
    idp.answers["/jwks"] = (503, {})
    with hub.running():
        answer = post(hub, token(idp, sub="s"))
        assert answer.status_code == 400
        assert "no key set" in answer.json()["error_description"]
