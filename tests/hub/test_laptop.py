"""The log-in of a laptop in the browser: what the page shows, where it leads, and what the token is good for."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from casa_hub.web.loopback_log_in import CODE_AGE
from tests.hub.conftest import MakeHub
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.laptop import REDIRECT, Laptop, sent_back
from tests.support.person import Person
from tests.support.scale import one_for_both_hubs

OPERATOR = "token-of-the-operator-0123456789"
XCACHE = "custom:casa-hub:credential:xcache"

CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.services.append({{"name": "operator", "api_token": "{OPERATOR}"}})
c.JupyterHub.load_roles.append(
    {{"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate"]}}
)
{credentials("xcache", "htcondor", required=())}
c.TraefikRoutes.kind = "none"
c.LocalDelivery.directory = "servers"
c.CasaOAuthenticator.laptop_token_lifetime = 86400

# The clock of the codes is the machine's own, which no test can put forward.
from casa_hub.web import loopback_log_in
first_init = loopback_log_in.Codes.__init__
loopback_log_in.Codes.__init__ = lambda self, clock: first_init(
    self, lambda: clock() + float(Path("ahead").read_text())
)
"""


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Hub:
    hub = make_hub(CONFIG)
    make_keys(hub.directory, "xcache", "htcondor")
    return hub.start()


@pytest.fixture
def alice(hub: Hub, idp: IdP) -> Person:
    idp.rotate = False
    return Person(hub, idp)


def ask(hub: Hub, name: str, token: str) -> int:
    return hub.api("POST", f"/casa/credentials/{name}", token=token, json={}).status_code


# -- what works --------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_laptop_gets_a_token_for_what_was_asked_and_nothing_else(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    back = laptop.answer(alice.browser)
    assert back.keys() == {"code", "state"}
    assert back["state"] == laptop.state
    answer = laptop.redeem(back["code"])
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    got = answer.json()
    assert (got["user"], got["scopes"]) == (alice.name, [XCACHE])
    left = datetime.fromisoformat(got["expires_at"]) - datetime.now(UTC)
    assert 86300 < left.total_seconds() <= 86400

    token = got["token"]
    assert ask(hub, "xcache", token) == 200
    assert ask(hub, "htcondor", token) == 403
    # JupyterHub tells each token whose it is, with the groups.
    assert not {"servers", "auth_state"} & hub.api("GET", f"/users/{alice.name}", token=token).json().keys()
    assert hub.api("POST", f"/users/{alice.name}/tokens", token=token, json={}).status_code in (403, 404)
    assert hub.api("POST", f"/users/{alice.name}/server", token=token).status_code in (403, 404)
    tokens = hub.api("GET", f"/users/{alice.name}/tokens", token=alice.token).json()["api_tokens"]
    (mine,) = (one for one in tokens if one["note"] == "casa-hub token on laptop.example.org")
    assert [scope for scope in mine["scopes"] if not scope.startswith("read:users:")] == [XCACHE]
    for secret in (token, back["code"], laptop.verifier):
        assert secret not in hub.log


@pytest.mark.both_hubs
def test_somebody_who_isn_t_logged_in_logs_in_first_and_comes_back_to_the_page(hub: Hub, alice: Person) -> None:
    laptop, browser = Laptop(hub), Browser(hub)
    to_log_in = laptop.page(browser)
    assert to_log_in.status_code == 302
    login, query = to_log_in.headers["Location"].split("?", 1)
    assert login == "/hub/login"
    consent = browser.page(f"/hub/oauth_login?{query}")
    page = browser.post(consent.url, data={"sub": alice.sub}, timeout=60)
    assert (page.status_code, page.url) == (200, hub.url + laptop.path)
    assert "asks for your credentials" in page.text
    assert ask(hub, "xcache", laptop.log_in(browser)) == 200


def test_without_names_a_laptop_may_have_all(hub: Hub, alice: Person) -> None:
    token = Laptop(hub, {"credentials": ""}).log_in(alice.browser)
    assert [ask(hub, name, token) for name in ("xcache", "htcondor")] == [200, 200]


def test_who_denies_sends_the_program_away(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    for answer in ("deny", ""):
        assert laptop.answer(alice.browser, answer) == {"error": "access_denied", "state": laptop.state}


@pytest.mark.both_hubs
def test_the_page_says_who_asks_for_what_until_when(hub: Hub, alice: Person) -> None:
    page = Laptop(hub, {"credentials": "xcache,htcondor"}).page(alice.browser)
    text = " ".join(re.sub(r"<[^>]*>", " ", page.text).split())
    assert "A program on laptop.example.org asks for your credentials" in text
    for words in (alice.name, "XCache macaroon", "HTCondor", REDIRECT):
        assert words in text
    assert page.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]


# -- attacks -----------------------------------------------------------------------------------------------------------


def test_markup_in_the_name_of_a_computer_is_only_text(hub: Hub, alice: Person) -> None:
    markup = "<script>alert(1)</script>\"'><b>"
    page = Laptop(hub, {"client": markup}).page(alice.browser)
    assert page.status_code == 200
    assert "<script>alert(1)" not in page.text
    assert "<b>" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text


@pytest.mark.parametrize(
    "address",
    ["https://evil.example.org/", "http://localhost:8080/", "http://127.0.0.1:8080@evil.example.org/", "javascript:1"],
)
def test_nobody_is_sent_to_another_computer(hub: Hub, alice: Person, address: str) -> None:
    laptop = Laptop(hub, {"redirect_uri": address})
    page = laptop.page(alice.browser)
    assert page.status_code == 400
    assert "This link can&#39;t be used" in page.text or "This link can't be used" in page.text
    assert "Location" not in page.headers
    xsrf = alice.browser._xsrf()["X-XSRFToken"]
    data = {**laptop.arguments, "answer": "allow", "_xsrf": xsrf}
    sent = alice.browser.post(f"{hub.url}/hub/casa/laptop", data=data, allow_redirects=False, timeout=60)
    assert (sent.status_code, "Location" in sent.headers) == (400, False)


def test_a_credential_that_somebody_may_not_have_is_not_even_shown(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub, {"credentials": "xcache,secret"})
    answer = laptop.page(alice.browser)
    assert answer.status_code == 302
    back = sent_back(answer)
    assert (back["error"], back["state"]) == ("invalid_scope", laptop.state)
    assert "secret" in back["error_description"]


@pytest.mark.parametrize(
    "headers",
    one_for_both_hubs(
        [{}, {"Origin": "https://evil.example.org"}, {"Referer": "https://evil.example.org/", "Cookie": ""}]
    ),
)
def test_a_forged_consent_is_refused(hub: Hub, alice: Person, headers: dict[str, str]) -> None:
    laptop = Laptop(hub)
    for xsrf in ({}, {"_xsrf": "made-up"}):
        data = {**laptop.arguments, **xsrf, "answer": "allow"}
        sent = alice.browser.post(
            f"{hub.url}/hub/casa/laptop", data=data, headers=headers, allow_redirects=False, timeout=60
        )
        assert sent.status_code == 403, sent.text
        assert "code=" not in sent.headers.get("Location", "")


@pytest.mark.both_hubs
def test_a_token_can_t_make_another_one(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    headers = {"Authorization": f"Bearer {alice.token}"}
    answers: list[requests.Response] = [
        requests.get(hub.url + laptop.path, headers=headers, allow_redirects=False, timeout=60),
        requests.post(
            f"{hub.url}/hub/casa/laptop",
            data={**laptop.arguments, "answer": "allow"},
            headers=headers,
            allow_redirects=False,
            timeout=60,
        ),
    ]
    assert [answer.status_code for answer in answers] == [302, 403]
    assert answers[0].headers["Location"].startswith("/hub/login")


def refused(answer: requests.Response) -> bool:
    document: dict[str, Any] = answer.json()
    assert answer.headers["Cache-Control"] == "no-store"
    return (answer.status_code, document["status"], document["error"]) == (400, 400, "invalid_grant")


def test_a_code_is_good_once(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    code = laptop.answer(alice.browser)["code"]
    assert laptop.redeem(code).status_code == 200
    assert refused(laptop.redeem(code))


def test_a_code_that_another_program_has_seen_is_worth_nothing(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    code = laptop.answer(alice.browser)["code"]
    assert refused(laptop.redeem(code, Laptop(hub).verifier))
    assert refused(laptop.redeem(code))
    for nothing in ("", "made-up"):
        assert refused(laptop.redeem(nothing))


def test_a_code_is_good_for_a_minute(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    code = laptop.answer(alice.browser)["code"]
    hub.put_forward(CODE_AGE)
    assert refused(laptop.redeem(code))


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_revoke_ends_a_laptop_s_token_and_a_code_that_is_not_redeemed_yet(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    token, code = laptop.log_in(alice.browser), laptop.answer(alice.browser)["code"]
    assert ask(hub, "xcache", token) == 200
    body = {"user": alice.name, "reason": "stolen laptop"}
    assert hub.api("POST", "/casa-hub/revoke", token=OPERATOR, json=body).status_code == 200
    assert ask(hub, "xcache", token) == 403
    assert laptop.redeem(code).status_code == 403


def test_a_new_log_in_brings_no_old_code_to_life(hub: Hub, alice: Person) -> None:
    laptop = Laptop(hub)
    code = laptop.answer(alice.browser)["code"]
    assert hub.api("POST", "/casa-hub/revoke", token=OPERATOR, json={"user": alice.name}).status_code == 200
    assert alice.browser.log_in(alice.sub).status_code == 200
    assert refused(laptop.redeem(code))
