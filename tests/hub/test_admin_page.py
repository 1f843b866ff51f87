"""The page for administrators: who sees it, what it says, and that nobody else's form does anything."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from markupsafe import escape

from casa_hub.audit import PREFIX
from casa_hub.issuer.tokens import new_private_key
from tests.hub.conftest import MakeHub
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.person import Person
from tests.support.waiting import until

PAGE = "/hub/casa/admin"
ADMIN, OPERATOR = ["/cms", "/cms/admins"], ["/cms", "/cms/admins", "/cms/facility"]

CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 50, "slow_stop_timeout": 50}}
c.JupyterHub.load_roles.append(
    {{"name": "operators", "groups": ["/cms/facility"], "scopes": ["custom:casa-hub:operate"]}}
)
{credentials("bearer", "dask", required=("bearer", "dask"))}c.Facility.bearer_token_file = "access_token"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.124.0.0/16"
c.Keeper.recheck_interval = 3
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.url = "https://hub.example.org/hub/casa/issuer"
"""

#: What no page may show as it is.
MARKUP = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG, admin_groups=["/cms/admins"], allowed_groups=["/cms/uscms", f"/cms/{MARKUP}"])
    (hub.directory / "traefik").mkdir()
    make_keys(hub.directory, "dask")
    (hub.directory / "issuer").mkdir()
    (hub.directory / "issuer/2026-11.pem").write_bytes(new_private_key()[1])
    yield hub.start()
    end(hub)


@pytest.fixture
def operator(hub: Hub, idp: IdP) -> Person:
    return Person(hub, idp, groups=OPERATOR)


def seen(person: Person, **query: Any) -> str:
    """The page, as its administrator reads it."""
    answer = person.browser.page(PAGE, params=query)
    assert answer.status_code == 200, answer.text
    return answer.text


def row(page: str, name: str) -> str:
    """The rows of a user, as text with one blank between words."""
    rows = re.findall(rf'<tr data-user="{re.escape(str(escape(name)))}">(.*?)</tr>', page, re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", " ".join(rows)).split())


def token_of(page: str) -> str:
    found = re.search(r'name="_xsrf" value="([^"]+)"', page)
    assert found
    return found[1]


def send(person: Person, fields: dict[str, Any], **headers: str) -> requests.Response:
    """Send a form, with this browser's own token unless the fields have another."""
    fields = {"_xsrf": token_of(seen(person)), **fields}
    return person.browser.post(person.hub.url + PAGE, data=fields, headers=headers, timeout=60)


def decides(person: Person, ask: str, **more: str) -> str:
    """Press a button, read the question, and say yes. Returns what the page says then."""
    asked = send(person, {"ask": ask})
    assert asked.status_code == 200, asked.text
    form = re.search(r'<form method="post"[^>]*id="casa-sure">.*?</form>', asked.text, re.DOTALL)
    assert form, asked.text
    fields: dict[str, Any] = {"user": []}
    for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form[0]):
        fields = (
            {**fields, name: html.unescape(value)}
            if name != "user"
            else {**fields, "user": [*fields["user"], html.unescape(value)]}
        )
    done = person.browser.post(person.hub.url + PAGE, data={**fields, **more}, timeout=60)
    assert done.status_code == 200, done.text
    told = re.search(r'id="casa-told">(.*?)</div>', done.text, re.DOTALL)
    assert told, done.text
    return html.unescape(told[1])


def audit(hub: Hub, action: str, since: int) -> list[dict[str, Any]]:
    events = [json.loads(line.partition(PREFIX)[2]) for line in hub.log[since:].splitlines() if PREFIX in line]
    return [event for event in events if event["action"] == action]


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_members_don_t_see_it_nor_its_link(hub: Hub, idp: IdP) -> None:
    member = Person(hub, idp)
    answer = member.browser.page(PAGE)
    assert answer.status_code == 403
    assert "casa-admin" not in answer.text
    assert PAGE not in member.browser.page("/hub/home").text


@pytest.mark.both_hubs
def test_who_isn_t_logged_in_is_asked_to(hub: Hub) -> None:
    answer = Browser(hub).page(PAGE, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (302, "/hub/login")


@pytest.mark.both_hubs
def test_administrators_look_and_are_told_how_to_do_more(hub: Hub, idp: IdP, operator: Person) -> None:
    admin = Person(hub, idp, groups=ADMIN)
    page = seen(admin)
    assert "the scope <code>custom:casa-hub:operate</code>" in page
    assert row(page, operator.name).startswith(f"{operator.name} in ")
    assert 'name="ask"' not in page
    assert f'href="{PAGE}">Facility' in admin.browser.page("/hub/home").text
    for fields in ({"ask": f"revoke {operator.name}"}, {"action": "revoke", "user": operator.name}):
        assert send(admin, fields).status_code == 403
    assert operator.access() == (True, True)


@pytest.mark.both_hubs
def test_a_token_is_not_a_browser(hub: Hub, operator: Person) -> None:
    headers = {"Authorization": f"token {operator.token}"}
    assert requests.get(hub.url + PAGE, headers=headers, timeout=60, allow_redirects=False).status_code in (302, 403)
    data = {"action": "revoke", "user": operator.name}
    assert requests.post(hub.url + PAGE, headers=headers, data=data, timeout=60).status_code == 403
    assert operator.access() == (True, True)


@pytest.mark.both_hubs
@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"_xsrf": ""}, {}),
        ({"_xsrf": "forged"}, {}),
        ({}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": "https://elsewhere.example"}),
        ({}, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}),
    ],
    ids=["without a token", "a forged token", "another site's form", "a sister site's form"],
)
def test_a_form_that_isn_t_this_page_s_own_does_nothing(
    hub: Hub, idp: IdP, operator: Person, fields: dict[str, str], headers: dict[str, str]
) -> None:
    user = Person(hub, idp)
    answer = send(operator, {"action": "revoke", "user": user.name, **fields}, **headers)
    assert answer.status_code == 403
    assert user.access() == (True, True)


@pytest.mark.both_hubs
def test_the_token_of_another_session_is_refused(hub: Hub, idp: IdP, operator: Person) -> None:
    other = Person(hub, idp, groups=ADMIN)
    fields = {"action": "revoke", "user": other.name, "_xsrf": token_of(seen(operator))}
    assert send(other, fields).status_code == 403


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"ask": "explode"}, 400),
        ({"action": "revoke"}, 400),
        ({"action": "revoke", "user": ["a", "b"]}, 400),
        ({"ask": "revoke nobody-has-this-name"}, 404),
        ({"ask": "revoke caf\ud800".encode("utf-8", "surrogatepass")}, 400),
        ({}, 400),
    ],
)
def test_what_makes_no_sense_is_refused(operator: Person, fields: dict[str, Any], status: int) -> None:
    assert send(operator, fields).status_code == status


# -- what it says, and does --------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_it_shows_servers_keys_and_events_and_nothing_secret(hub: Hub, idp: IdP, operator: Person) -> None:
    user = Person(hub, idp)
    assert user.browser.spawn().status_code == 201
    page = seen(operator, search=user.name)
    assert re.search(rf"{user.name} in 20[-\d: ]+UTC {user.name} bearer: .*dask: 20[-\d: ]+UTC", row(page, user.name))
    assert "Dask.secret_file" in page
    assert "0 days" in page
    assert re.search(
        r"<code>FacilityIssuer.keys: 2026-11.pem</code></th>\s*<td.*\s*<td data-label=\"Age\">0 days", page
    )
    assert "FacilityIssuer.keys: 2026-11.pem: signs." in page
    assert re.search(r"Dask secret [0-9a-f]+: in use by 1 servers\.", page)
    assert "All is well." in page
    assert re.search(r"Last answer</dt>\s*<dd><time", page)
    assert re.search(rf">minted</th>\s*<td data-label=\"Who\">{user.name}<", page)
    secrets = idp.secrets() | {*(hub.directory / "dask.secret").read_text().split()}
    secrets |= {*(hub.directory / "issuer/2026-11.pem").read_text().splitlines()}
    assert not [secret for secret in secrets if secret in page]

    since = len(hub.log)
    assert "Renewed: 1 servers." in decides(operator, f"renew {user.name}")
    (event,) = audit(hub, "renewal-asked", since)
    assert (event["username"], event["by"]) == (user.name, f"user {operator.name}")

    told = decides(operator, f"revoke {user.name}", reason="lent out the  laptop")
    assert f"{user.name}: access ended; stopped: the default server; tokens deleted: " in told
    assert user.access() == (False, False)
    (event,) = audit(hub, "access-ended", since)
    assert (event["username"], event["by"], event["reason"]) == (
        user.name,
        f"user {operator.name}",
        "lent out the laptop",
    )
    assert row(seen(operator, search=user.name), user.name) == ""
    assert "lent out the laptop" in seen(operator)


def test_a_question_alone_does_nothing(hub: Hub, idp: IdP, operator: Person) -> None:
    user = Person(hub, idp)
    asked = send(operator, {"ask": f"revoke {user.name}"})
    assert f"End all access of {user.name}?" in asked.text
    assert user.access() == (True, True)


def test_markup_in_names_and_reasons_is_text(hub: Hub, idp: IdP, operator: Person) -> None:
    sub = "sub-markup"
    idp.put_user(sub, preferred_username=MARKUP, **{"wlcg.groups": ["/cms/uscms"]})
    browser = Browser(hub)
    assert browser.log_in(sub).status_code == 200
    page = seen(operator, search=MARKUP)
    assert MARKUP not in page
    assert str(escape(MARKUP)) in page
    question = send(operator, {"ask": f"revoke {MARKUP}"}).text
    assert MARKUP not in question
    told = decides(operator, f"revoke {MARKUP}", reason=f"because {MARKUP}")
    assert f"{MARKUP}: access ended" in told  # unescaped by `decides`
    assert not browser.is_in()
    page = seen(operator)
    assert MARKUP not in page
    assert str(escape(f"because {MARKUP}")) in page


def test_what_is_held_back_is_confirmed_ignored_or_settled_by_a_yes(hub: Hub, idp: IdP, operator: Person) -> None:
    people = [Person(hub, idp) for _ in range(6)]
    names = {person.name for person in people}
    for person in people:
        person.is_in_groups("/cms")

    def held() -> set[str]:
        return set(re.findall(r'value="confirm ([^"]+)"', seen(operator)))

    until(lambda: held() == names, "all are held back")
    since, page = len(hub.log), seen(operator)
    assert MARKUP not in page
    assert f"This hub is for members of /cms/{escape(MARKUP)} or /cms/uscms." in page
    assert "If these are true, end their access: casa-hub confirm" in page
    first, second, *others = people

    assert decides(operator, f"confirm {first.name}").strip() == f"<p>Access ends: {first.name}.</p>"
    until(lambda: first.access() == (False, False), "the confirmed one is out")
    assert held() == names - {first.name}
    assert second.api() == 200

    assert second.name in decides(operator, f"ignore {second.name}")
    assert "ignored" in row(seen(operator), second.name)
    assert "ignored until 20" in seen(operator)
    assert {(e["username"], e["by"]) for e in audit(hub, "ignored", since)} == {(second.name, f"user {operator.name}")}

    second.is_in_groups("/cms/uscms")
    until(lambda: second.name not in held(), "a yes settles it")
    assert second.access() == (True, True)

    told = decides(operator, "confirm")
    assert all(person.name in told for person in others)
    until(lambda: not any(person.api() == 200 for person in others), "all others are out")
    assert held() == set()
    confirmed = {(event["username"], event["by"]) for event in audit(hub, "confirmed", since)}
    assert confirmed == {(person.name, f"user {operator.name}") for person in (first, *others)}
