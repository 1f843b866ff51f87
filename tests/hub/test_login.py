"""Log in through the whole hub: who is let in, who isn't, and what the page says."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
import sqlite3
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
import requests

from tests.hub.conftest import MakeHub
from tests.support.hub import CLIENT_SECRET, Browser, Hub
from tests.support.idp import IdP
from tests.support.scale import one_for_both_hubs

JOIN = "https://iam.example.org/join"
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Hub:
    return make_hub(
        allowed_groups=["/cms/uscms", "/cms/opendata/*"],
        required_groups=["/cms"],
        blocked_groups=["/cms/suspended"],
        admin_groups=["/cms/operators"],
        allowed_users={"guest", "trouble"},
        admin_users={"root-like", "trouble-admin"},
        blocked_users={"banned"},
        join_url=JOIN,
        extra_authorize_params={"audience": "https://xcache.example.org", "nonce": "always the same"},
    ).start()


@pytest.fixture(scope="module")
def open_hub(make_hub: MakeHub) -> Hub:
    """For everybody but the blocked, and with the e-mail address as the user name."""
    return make_hub(
        allowed_groups=[], allow_all=True, blocked_groups=["/cms/suspended"], username_claim="email"
    ).start()


def person(idp: IdP, username: str, *groups: str, **claims: Any) -> str:
    """Somebody new at an IAM, which sends the parents of a group, too; without groups it leaves the claim out."""
    sub = f"sub-{next(numbers)}"
    paths = [group.split("/") for group in groups]
    sent = {"/".join(path[:depth]): None for path in paths for depth in range(2, len(path) + 1)}
    idp.put_user(sub, preferred_username=username, **({"wlcg.groups": list(sent)} if groups else {}), **claims)
    return sub


def text_of(answer: requests.Response) -> str:
    """What the page says, in one line."""
    main = re.search(r'<div class="container[^"]*" id="casa-.*?</div>', answer.text, re.DOTALL)
    assert main is not None, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", main[0])).split())


def user_of(hub: Hub, name: str) -> dict[str, Any]:
    answer = hub.api("GET", f"/users/{name}")
    answer.raise_for_status()
    return dict(answer.json())


# -- who is let in -----------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_member_is_let_in_and_the_groups_reach_the_hub(hub: Hub, idp: IdP) -> None:
    browser = Browser(hub)
    answer = browser.log_in(person(idp, "oksana", "/cms", "/cms/uscms", "/cms/uscms/t3"), next_path="/hub/token")
    assert (answer.status_code, urlsplit(answer.url).path) == (200, "/hub/token")
    assert browser.user() == "oksana"
    user = user_of(hub, "oksana")
    assert set(user["groups"]) == {"/cms", "/cms/uscms", "/cms/uscms/t3"}
    assert user["admin"] is False
    assert user["auth_state"]["oauth_user"]["preferred_username"] == "oksana"


@pytest.mark.both_hubs
def test_the_request_to_the_provider_has_pkce_nonce_scopes_and_what_the_operator_adds(hub: Hub, idp: IdP) -> None:
    Browser(hub).log_in(person(idp, "pkce", "/cms/uscms"))
    query = idp.authorization_requests[-1]
    assert query["code_challenge_method"] == "S256"
    assert len(query["nonce"]) == 43
    assert query["scope"] == "openid profile email offline_access wlcg.groups"
    assert query["audience"] == "https://xcache.example.org"
    assert idp.pkce_failures == 0


@pytest.mark.both_hubs
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("guest", ["/cms"]),  # allowed_users
        ("open", ["/cms/opendata/run1"]),  # a subgroup of an allowed one
        ("root-like", ["/cms"]),  # admin_users
        ("operator", ["/cms/operators"]),  # admin_groups
    ],
)
def test_every_way_in_lets_in(hub: Hub, idp: IdP, name: str, groups: list[str]) -> None:
    assert Browser(hub).log_in(person(idp, name, *groups)).status_code == 200
    assert user_of(hub, name)["admin"] is (name in {"root-like", "operator"})


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "no member": ("stranger", ["/cms", "/cms/other"], "This hub is for members of /cms/opendata or /cms/uscms."),
    "a group with a like name": ("like", ["/cms", "/cms/uscms2"], "for members of /cms/opendata or /cms/uscms."),
    "not of the required group": ("guest", ["/atlas"], "This hub is for members of /cms."),
    "blocked by group, though a member": ("m", ["/cms/uscms", "/cms/suspended"], "closed to members of /cms/suspended"),
    "blocked by group, though listed": ("trouble", ["/cms", "/cms/suspended"], "closed to members of /cms/suspended"),
    "blocked by group, though administrator": (
        "trouble-admin",
        ["/cms/operators", "/cms/suspended"],
        "closed to members of /cms/suspended",
    ),
    "blocked by name, though a member": ("banned", ["/cms/uscms"], "banned is blocked on this hub"),
}


@pytest.mark.parametrize("case", one_for_both_hubs(REFUSED))
def test_a_refused_person_is_told_why(hub: Hub, idp: IdP, case: str) -> None:
    name, groups, words = REFUSED[case]
    since = len(hub.log)
    browser = Browser(hub)
    answer = browser.log_in(person(idp, name, *groups))
    assert answer.status_code == 403
    assert words in text_of(answer)
    assert not browser.is_in()
    hub.wait_for_all(f"Log-in of {name} refused", 1, since=since)
    assert hub.api("GET", f"/users/{name}").status_code == (404 if name not in LISTED else 200)


#: JupyterHub makes these users from the configuration.
LISTED = {"guest", "trouble", "trouble-admin", "root-like"}


@pytest.mark.both_hubs
def test_the_refused_page_names_groups_and_where_to_join_and_nothing_else(hub: Hub, idp: IdP) -> None:
    claims = {"name": "Stranger Danger", "email": "stranger@example.org", "eduperson_assurance": ["high-value"]}
    sub = person(idp, "stranger2", "/cms", "/cms/other", **claims)
    answer = Browser(hub).log_in(sub)
    page = text_of(answer)
    reason = f"This hub is for members of /cms/opendata or /cms/uscms. Ask to join at {JOIN} ."
    assert reason in page
    for told_once in ("/cms/opendata", "/cms/uscms", JOIN):
        assert page.count(told_once) == 1
    assert "The groups that came with your sign-in: /cms , /cms/other" in page
    assert f'href="{JOIN}"' in answer.text
    assert "/cms/operators" not in answer.text
    for private in [sub, *(str(value) for value in claims.values()), *idp.token_answers[-1].values()]:
        assert str(private) not in answer.text.replace(str(idp.token_answers[-1]["scope"]), "")


def test_a_claim_that_is_missing_is_not_called_none(hub: Hub, idp: IdP) -> None:
    answer = Browser(hub).log_in(person(idp, "nogroup"))
    page = text_of(answer)
    assert answer.status_code == 403
    assert "either you are in none there, or it doesn't tell this hub your groups" in page
    assert "came with your sign-in" not in page
    answer = Browser(hub).log_in(person(idp, "empty", **{"wlcg.groups": []}))
    assert answer.status_code == 403
    assert "named no group of yours" in text_of(answer)
    assert "came with your sign-in" not in text_of(answer)


def test_a_group_claim_of_the_wrong_kind_lets_nobody_in(hub: Hub, idp: IdP) -> None:
    for claim in ({"/cms/uscms": True}, 7, [["/cms/uscms"]], ""):
        answer = Browser(hub).log_in(person(idp, "odd", **{"wlcg.groups": claim}))
        assert (answer.status_code, 'id="casa-failed"' in answer.text) == (403, True), claim


@pytest.mark.both_hubs
def test_administration_follows_the_groups_up_and_down_at_log_in(hub: Hub, idp: IdP) -> None:
    sub = person(idp, "rising", "/cms", "/cms/uscms")
    for group, admin in (("/cms/uscms", False), ("/cms/operators", True), ("/cms/uscms", False)):
        groups = ["/cms", group]
        idp.put_user(sub, preferred_username="rising", **{"wlcg.groups": groups})
        browser = Browser(hub)
        assert browser.log_in(sub).status_code == 200
        user = user_of(hub, "rising")
        assert user["admin"] is admin
        assert ("admin" in user["roles"]) is admin
        assert set(user["groups"]) == set(groups)
        assert browser.page("/hub/admin").status_code == (200 if admin else 403)


def test_everybody_is_allowed_but_the_blocked(open_hub: Hub, idp: IdP) -> None:
    anybody = person(idp, "x", email="any@example.org", email_verified=True)
    blocked = person(idp, "y", "/cms/suspended", email="bad@example.org", email_verified=True)
    assert Browser(open_hub).log_in(anybody).status_code == 200
    answer = Browser(open_hub).log_in(blocked)
    assert answer.status_code == 403
    assert "closed to members of /cms/suspended" in text_of(answer)


@pytest.mark.parametrize("verified", [{}, {"email_verified": False}, {"email_verified": "true"}])
def test_an_e_mail_address_is_a_name_only_when_verified(open_hub: Hub, idp: IdP, verified: dict[str, Any]) -> None:
    answer = Browser(open_hub).log_in(person(idp, "z", email="boss@example.org", **verified))
    assert answer.status_code == 403
    assert "not verified" in text_of(answer)
    assert "boss@example.org" not in text_of(answer)


def test_a_missing_name_claim_is_named(open_hub: Hub, idp: IdP) -> None:
    answer = Browser(open_hub).log_in(person(idp, "z"))
    assert answer.status_code == 403
    assert "the claim email, from which the user name is taken, is missing" in text_of(answer)


@pytest.mark.both_hubs
def test_nobody_is_allowed_by_default(make_hub: MakeHub, idp: IdP) -> None:
    hub = make_hub(allowed_groups=[])
    with hub.running():
        assert re.search("nobody is allowed to log in; set allowed_groups", hub.log)
        answer = Browser(hub).log_in(person(idp, "anybody", "/cms/uscms"))
        assert answer.status_code == 403
        assert "for the users on its list" in text_of(answer)


@pytest.mark.both_hubs
def test_existing_users_are_allowed_where_the_operator_says_so(make_hub: MakeHub, idp: IdP) -> None:
    hub = make_hub(allowed_groups=[], allow_existing_users=True)
    sub = person(idp, "veteran", "/cms")
    with hub.running():
        assert Browser(hub).log_in(sub).status_code == 403
        assert hub.api("POST", "/users/veteran").status_code == 201
        assert Browser(hub).log_in(sub).status_code == 200
        assert hub.api("DELETE", "/users/veteran").status_code == 204
        assert Browser(hub).log_in(sub).status_code == 403


# -- names and identities --------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_name_given_to_another_person_is_refused_and_told_to_the_operator(hub: Hub, idp: IdP) -> None:
    """Names are given again in the course of years; homes, jobs and groups hang on them."""
    first = person(idp, "hansen", "/cms/uscms")
    assert Browser(hub).log_in(first).status_code == 200
    second = person(idp, "Hansen", "/cms/uscms")  # JupyterHub's names are lower case
    since = len(hub.log)
    answer = Browser(hub).log_in(second)
    assert answer.status_code == 403
    assert "it belongs to another identity than the one that signed in" in text_of(answer)
    assert first not in answer.text
    hub.wait_for_all(r"\[E .*user name 'hansen': it belongs to another identity", 1, since=since)
    assert Browser(hub).log_in(first).status_code == 200


def test_a_refused_person_takes_no_name(hub: Hub, idp: IdP) -> None:
    assert Browser(hub).log_in(person(idp, "wanted", "/cms")).status_code == 403
    assert Browser(hub).log_in(person(idp, "wanted", "/cms/uscms")).status_code == 200


@pytest.mark.both_hubs
def test_the_name_stays_its_owner_s_when_the_hub_s_user_is_deleted(hub: Hub, idp: IdP) -> None:
    first = person(idp, "keeper", "/cms/uscms")
    assert Browser(hub).log_in(first).status_code == 200
    assert hub.api("DELETE", "/users/keeper").status_code == 204
    assert Browser(hub).log_in(person(idp, "keeper", "/cms/uscms")).status_code == 403
    assert Browser(hub).log_in(first).status_code == 200


@pytest.mark.both_hubs
@pytest.mark.parametrize("name", ["", " ", "a/b", "../x", " padded ", "a\nb", "a\0b", "x" * 256])
def test_a_name_that_the_hub_doesn_t_take_is_refused(hub: Hub, idp: IdP, name: str) -> None:
    answer = Browser(hub).log_in(person(idp, name, "/cms/uscms"))
    assert answer.status_code == 403
    assert 'id="casa-failed"' in answer.text


@pytest.mark.both_hubs
@pytest.mark.parametrize("name", ["üñï", "<b>&\"'", "x" * 200])
def test_a_hostile_name_is_only_a_name(hub: Hub, idp: IdP, name: str) -> None:
    browser = Browser(hub)
    answer = browser.log_in(person(idp, name, "/cms/uscms"))
    assert answer.status_code == 200
    assert browser.user() == name


def test_bindings_that_can_t_be_read_refuse_everybody(make_hub: MakeHub, idp: IdP) -> None:
    hub = make_hub()
    sub = person(idp, "somebody", "/cms/uscms")
    with hub.running():
        assert Browser(hub).log_in(sub).status_code == 200
        with sqlite3.connect(hub.directory / "hub.sqlite") as db:
            db.execute("ALTER TABLE casa_hub_identities RENAME TO away")
        for _ in range(2):  # and it doesn't come back empty
            answer = Browser(hub).log_in(sub)
            assert answer.status_code == 403
            assert "the hub's database can't say whose it is" in text_of(answer)
        with sqlite3.connect(hub.directory / "hub.sqlite") as db:
            db.execute("ALTER TABLE away RENAME TO casa_hub_identities")
        assert Browser(hub).log_in(sub).status_code == 200


# -- the way there and back ------------------------------------------------------------------------------------------


def test_a_provider_that_is_away_at_the_start_is_found_later(make_hub: MakeHub, idp: IdP) -> None:
    idp.answers["/.well-known/openid-configuration"] = (502, "<html>")
    hub = make_hub()
    with hub.running():
        answer = Browser(hub).log_in("sub")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "WLCG IAM gives no usable answer" in text_of(answer)
        assert "discovery answered 502" in hub.log
        idp.reset()
        assert Browser(hub).log_in(person(idp, "patient", "/cms/uscms")).status_code == 200


def callback(browser: Browser, hub: Hub, sub: str) -> str:
    """Where the provider sends the browser after a log-in, not yet followed."""
    consent = browser.page("/hub/oauth_login?next=/hub/home")
    answer = browser.post(consent.url, data={"sub": sub}, allow_redirects=False, timeout=60)
    return answer.headers["Location"]


def altered(url: str, **changes: str | None) -> str:
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()} | changes
    request = requests.Request("GET", url.partition("?")[0], params={k: v for k, v in query.items() if v is not None})
    return str(request.prepare().url)


def state(**content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


@pytest.mark.both_hubs
@pytest.mark.parametrize(
    "changes",
    [
        {"state": None},
        {"state": state(state_id="of another log-in")},
        {"state": "nonsense"},
        {"state": base64.urlsafe_b64encode(b"[]").decode()},
        {"code": None},
    ],
    ids=["no state", "other state", "nonsense", "a list", "no code"],
)
def test_a_callback_that_wasn_t_begun_here_is_refused(hub: Hub, idp: IdP, changes: dict[str, str | None]) -> None:
    browser = Browser(hub)
    url = callback(browser, hub, person(idp, "forged", "/cms/uscms"))
    tokens = idp.requests["/oauth2/token"]
    assert browser.get(altered(url, **changes), timeout=60).status_code == 400
    assert idp.requests["/oauth2/token"] == tokens
    assert not browser.is_in()


@pytest.mark.both_hubs
def test_a_callback_in_another_browser_is_refused(hub: Hub, idp: IdP) -> None:
    """Log-in forgery: the attacker's code in the victim's browser."""
    url = callback(Browser(hub), hub, person(idp, "attacker", "/cms/uscms"))
    victim = Browser(hub)
    assert victim.get(url, timeout=60).status_code == 400
    # The victim has begun a log-in of his own: state, PKCE and nonce are his.
    own = callback(victim, hub, person(idp, "victim", "/cms/uscms"))
    mixed = altered(own, code=parse_qs(urlsplit(url).query)["code"][0])
    answer = victim.get(mixed, timeout=60)
    assert answer.status_code == 403
    assert "Signing in at WLCG IAM failed" in text_of(answer)
    assert idp.pkce_failures == 1
    assert not victim.is_in()


def test_a_code_is_good_for_one_log_in(hub: Hub, idp: IdP) -> None:
    browser = Browser(hub)
    url = callback(browser, hub, person(idp, "again", "/cms/uscms"))
    assert browser.get(url, timeout=60).status_code == 200
    assert browser.get(url, timeout=60).status_code == 400


def test_an_id_token_of_another_log_in_is_refused(hub: Hub, idp: IdP) -> None:
    """The provider takes the code, but the ID token was made for another browser: only the nonce tells."""
    sub = person(idp, "replayed", "/cms/uscms")
    Browser(hub).log_in(sub)
    old = idp.token_answers[-1]["id_token"]
    idp.change["/oauth2/token"] = lambda document: {**document, "id_token": old}
    since = len(hub.log)
    browser = Browser(hub)
    answer = browser.log_in(sub)
    assert answer.status_code == 403
    assert "ID token: its nonce is not the one of this log-in" in text_of(answer)
    hub.wait_for_all(r"\[E .*Log-in failed: ID token: its nonce", 1, since=since)
    assert not browser.is_in()


def test_userinfo_of_somebody_else_is_refused(hub: Hub, idp: IdP) -> None:
    idp.change["/userinfo"] = lambda document: {**document, "sub": "somebody-else"}
    since = len(hub.log)
    answer = Browser(hub).log_in(person(idp, "swapped", "/cms/uscms"))
    assert answer.status_code == 403
    assert "userinfo: is for another subject than the ID token" in text_of(answer)
    hub.wait_for_all(r"\[E .*Log-in failed: userinfo: is for another subject", 1, since=since)


@pytest.mark.parametrize("path", ["/oauth2/token", "/userinfo", "/jwks"])
@pytest.mark.parametrize("answer", [(503, "<html>"), (200, "<html>"), (401, {"error": "invalid_client"})])
def test_a_provider_that_fails_half_way_is_said_to_be_unusable(
    make_hub: MakeHub, hub: Hub, idp: IdP, path: str, answer: tuple[int, Any]
) -> None:
    hub.put_forward(4000)  # the keys have to be read again
    idp.answers[path] = answer
    reply = Browser(hub).log_in(person(idp, f"halfway{next(numbers)}", "/cms/uscms"))
    known_keys_serve = path == "/jwks"
    assert reply.status_code == (200 if known_keys_serve else 503)


@pytest.mark.both_hubs
def test_a_log_in_cancelled_at_the_provider_is_no_error_of_the_hub(hub: Hub, idp: IdP) -> None:
    browser = Browser(hub)
    consent = browser.page("/hub/oauth_login")
    answer = browser.post(consent.url, data={"action": "deny"}, timeout=60)
    assert answer.status_code in (400, 403)
    hostile = f"{hub.url}/hub/oauth_callback?error=x&error_description=<script>alert(1)</script>"
    assert "<script>alert" not in browser.get(hostile, timeout=60).text


@pytest.mark.both_hubs
def test_the_provider_s_words_are_no_lines_of_the_log(hub: Hub) -> None:
    """Anybody could have written lines into the log that look like the hub's own."""
    browser = Browser(hub)
    query = dict(parse_qsl(urlsplit(browser.page("/hub/oauth_login").url).query))
    browser.get(
        f"{hub.url}/hub/oauth_callback",
        params={"state": query["state"], "error": "x", "error_description": "boo\n[I JupyterHub] User logged in: fake"},
        timeout=60,
    )
    line = hub.wait_for(r".*User logged in: fake.*")[0]
    assert "boo" in line


@pytest.mark.both_hubs
def test_the_state_of_an_address_is_no_line_of_the_log(hub: Hub) -> None:
    """Nobody has to be logged in for it: what is no JSON was logged as it is, a line of the audit say."""
    line = 'casa-hub audit: {"action": "minted", "username": "forged-in-a-state"}'
    for end in ("", "é"):
        forged = base64.urlsafe_b64encode(f"boo\n{line}{end}".encode()).decode()
        answer = Browser(hub).get(f"{hub.url}/hub/oauth_callback", params={"state": forged, "code": "x"}, timeout=60)
        assert answer.status_code == 400
    assert line not in hub.log


# -- every preset with what its provider really sends ----------------------------------------------------------------

WLCG = {"wlcg.groups": ["/cms", "/cms/uscms"], "preferred_username": "alice"}
PRESETS: dict[str, tuple[dict[str, Any], str, dict[str, Any], str, set[str]]] = {
    "cms-iam": ({"allowed_groups": ["/cms/uscms"]}, "iam-wlcg", {}, "alice", {"/cms", "/cms/uscms"}),
    "atlas-iam": ({"allowed_groups": ["cms/uscms"]}, "iam-wlcg", {}, "alice", {"/cms", "/cms/uscms"}),
    "wlcg-iam": (
        {"allowed_groups": ["/cms/uscms"], "groups_claim": "groups"},
        "iam-own-profile",
        {},
        "alice",
        {"/cms", "/cms/uscms"},
    ),
    "cilogon": (
        {
            "allowed_groups": ["CO:COU:OpenData Facility:members:active"],
            "allowed_idps": ["https://login.example.edu/idp/shibboleth"],
        },
        "cilogon-string",
        {"idp": "https://login.example.org/other"},
        "alice@example.edu",
        {"CO:members:all", "CO:COU:OpenData Facility:members:active"},
    ),
    "keycloak": ({"allowed_groups": ["/cms/uscms"]}, "keycloak-full-paths", {}, "alice", {"/cms/uscms"}),
    "oidc": (
        {
            "allowed_groups": ["/cms/uscms:role=manager"],
            "groups_claim": "eduperson_entitlement",
            "entitlement_namespace": "urn:geant:example.org",
            "entitlement_authority": "login.example.org",
        },
        "proxy-g002",
        {"eduperson_entitlement": ["urn:geant:example.org:group:cms:uscms:role=manager#other.example.net"]},
        "0f2ad7c1@example.org",
        {"/cms", "/cms/uscms", "/cms/uscms:role=manager"},
    ),
}


@pytest.fixture(scope="module")
def preset_hubs(make_hub: MakeHub) -> dict[str, Hub]:
    hubs = {name: make_hub(provider=name, **traits) for name, (traits, *_) in PRESETS.items()}
    for hub in hubs.values():
        hub.begin()  # all at once: each waits for the disk as much as for the processor
    for hub in hubs.values():
        hub.wait_for("JupyterHub is now running", timeout=200)
    return hubs


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_what_its_provider_sends(
    preset_hubs: dict[str, Hub], idp: IdP, claims_of: Any, name: str
) -> None:
    _, recorded, foreign, username, groups = PRESETS[name]
    hub, claims = preset_hubs[name], claims_of(recorded)
    sub = claims.pop("sub")
    claims.pop("iss", None)  # the provider of the test is another, and puts a user's claims into the ID token
    idp.put_user(sub, **claims)
    browser = Browser(hub)
    assert browser.log_in(sub).status_code == 200, hub.log[-3000:]
    assert browser.user() == username
    assert set(user_of(hub, username)["groups"]) == groups
    for claim in foreign:
        idp.put_user(sub, **{**claims, claim: foreign[claim]})
        assert Browser(hub).log_in(sub).status_code == 403, claim


# -- a hub that must not start ---------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_without_a_crypt_key_the_hub_says_what_to_set(make_hub: MakeHub) -> None:
    hub = make_hub()
    del hub.environment["JUPYTERHUB_CRYPT_KEY"]
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    hub.wait_for(r"JUPYTERHUB_CRYPT_KEY to the output of openssl rand -hex 32")
    assert CLIENT_SECRET not in hub.log


def test_a_misspelt_setting_is_no_silent_default(make_hub: MakeHub) -> None:
    """Of both sections: a time of memberships that is not read would be one nobody chose."""
    hub = make_hub("c.Keeper.outage_grase = 60\n", blocked_group=["/cms/suspended"])
    hub.begin()
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    hub.wait_for(r"CasaOAuthenticator\.blocked_group\b.*blocked_groups")
    hub.wait_for(r"Keeper\.outage_grase\b.*outage_grace")
