"""Credentials outside of servers, by the hub's API: who gets them, for how long, and what the audit knows."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509

from casa_hub.audit import PREFIX
from casa_hub.membership.recheck import FRESH
from casa_hub.processes import signed_in
from tests.hub.conftest import MakeHub
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.person import Person
from tests.support.scale import one_for_both_hubs
from tests.support.waiting import until

OPERATOR = "token-of-the-operator-0123456789"
RECHECK = 3.0
#: Seconds that are promised from the change at the provider to the end of access.
PROMISED = RECHECK + 30

CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 50, "slow_stop_timeout": 50}}
c.JupyterHub.services.append({{"name": "operator", "api_token": "{OPERATOR}"}})
c.JupyterHub.load_roles.append(
    {{"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate"]}}
)
{credentials("xcache", "htcondor", "dask", "bearer", required=())}
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.124.0.0/16"
c.Keeper.recheck_interval = {RECHECK}
"""


@pytest.fixture(scope="module")
def make_facility(make_hub: MakeHub) -> Iterator[Any]:
    hubs: list[Hub] = []

    def make(more: str = "") -> Hub:
        hub = make_hub(CONFIG + more)
        (hub.directory / "traefik").mkdir()
        make_keys(hub.directory)
        hubs.append(hub)
        return hub.start()

    yield make
    for hub in hubs:
        end(hub)


@pytest.fixture(scope="module")
def hub(make_facility: Any) -> Hub:
    started: Hub = make_facility()
    return started


@pytest.fixture(scope="module")
def strict(make_facility: Any) -> Hub:
    """A hub whose operator says what users may, and which asks the provider rarely."""
    roles = [
        {"name": "user", "scopes": ["self", scope("xcache")]},
        {"name": "ci-jobs", "services": ["ci"], "scopes": [scope("xcache")]},
    ]
    started: Hub = make_facility(
        f"""
c.LocalDelivery.network = "127.125.0.0/16"
c.Keeper.recheck_interval = 3000
c.JupyterHub.services.append({{"name": "ci", "api_token": "token-of-ci"}})
c.JupyterHub.load_roles.extend({roles!r})
"""
    )
    return started


@pytest.fixture
def alice(hub: Hub, idp: IdP) -> Person:
    idp.rotate = False
    return Person(hub, idp)


def ask(person: Person, name: str, token: str | None = None, **body: Any) -> requests.Response:
    return person.hub.api("POST", f"/casa/credentials/{name}", token=token or person.token, json=body)


def token_with(person: Person, *scopes: str, note: str = "") -> str:
    """A new token of this person with these scopes alone."""
    body = {"scopes": list(scopes), "note": note}
    answer = person.hub.api("POST", f"/users/{person.name}/tokens", token=person.token, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def scope(name: str) -> str:
    return f"custom:casa-hub:credential:{name}"


def audit(hub: Hub, since: int, person: Person) -> list[dict[str, Any]]:
    lines = hub.log[since:].splitlines()
    events = [json.loads(line.partition(PREFIX)[2]) for line in lines if PREFIX in line]
    return [event for event in events if event["username"] == person.name]


def life(answer: dict[str, Any]) -> float:
    """Seconds from now on."""
    return (datetime.fromisoformat(answer["expires_at"]) - datetime.now(UTC)).total_seconds()


# -- what one gets -----------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_the_list_says_what_there_is_and_for_how_long(alice: Person) -> None:
    answer = alice.hub.api("GET", "/casa/credentials", token=alice.token)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    listed = {one["name"]: one for one in answer.json()["credentials"]}
    assert answer.json()["user"] == alice.name
    assert {name: one["lifetime"] for name, one in listed.items()} == {
        "xcache": 3600,
        "htcondor": 3600,
        "dask": 3600,
        "bearer": None,
    }
    assert listed["xcache"] == {
        "name": "xcache",
        "title": "XCache macaroon",
        "lifetime": 3600,
        "files": ["xcache_token"],
        "scope": scope("xcache"),
        "allowed": True,
    }
    assert listed["dask"]["files"] == ["ca.pem", "usercert.pem"]


def test_a_credential_comes_with_its_files_and_what_finds_them(alice: Person) -> None:
    answer = ask(alice, "htcondor")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    got = answer.json()
    assert (got["user"], got["name"]) == (alice.name, "htcondor")
    assert 3500 < life(got) <= 3600
    assert set(got["files"]) == {"condor_token", "condor_tokens.d/condor_token"}
    assert base64.b64decode(got["files"]["condor_token"]).count(b".") == 2
    assert got["environment"]["UID_DOMAIN"] == "pool.example.org"
    assert got["environment"]["_CONDOR_SEC_TOKEN_DIRECTORY"] == "{directory}/condor_tokens.d"
    xcache = ask(alice, "xcache", lifetime=90).json()
    assert 80 < life(xcache) <= 90
    assert xcache["environment"] == {
        "XCACHE_HOST": "xcache.example.org",
        "XCACHE_PORT": "1094",
        "BEARER_TOKEN_FILE": "{directory}/xcache_token",
    }


def test_nobody_gets_a_longer_life_than_the_facility_gives(alice: Person) -> None:
    assert life(ask(alice, "xcache", lifetime=10**9).json()) <= 3600


@pytest.mark.both_hubs
def test_the_audit_tells_who_asked_by_which_token(alice: Person) -> None:
    token = token_with(alice, scope("xcache"), note="CI of\nalice")
    since = len(alice.hub.log)
    got = ask(alice, "xcache", token).json()
    answer = alice.browser.post(
        f"{alice.hub.url}/hub/api/casa/credentials/xcache", headers=alice.browser._xsrf(), timeout=60
    )
    assert answer.status_code == 200, answer.text
    assert base64.b64decode(got["files"]["xcache_token"]).decode() not in alice.hub.log
    first, second = audit(alice.hub, since, alice)
    assert (first["action"], first["credential"], first["identifiers"]) == ("minted", "xcache", got["identifiers"])
    assert first["by"].startswith("token a")
    assert first["by"].endswith(f" of {alice.name}: CI of alice")
    assert second["by"] == f"page of {alice.name}"
    assert token not in alice.hub.log


@pytest.mark.both_hubs
def test_dask_is_that_of_the_running_server_and_of_a_client_alone(alice: Person) -> None:
    refused = ask(alice, "dask")
    assert (refused.status_code, refused.json()["status"]) == (409, 409)
    assert refused.json()["message"] == f"server {alice.name}: it doesn't run. Start it first."

    assert alice.browser.spawn("lab").status_code == 201
    assert ask(alice, "dask").status_code == 409  # the default server still doesn't run
    got = ask(alice, "dask", server="lab", lifetime=120).json()
    assert set(got["files"]) == {"ca.pem", "usercert.pem"}
    ca, mine = (x509.load_pem_x509_certificate(base64.b64decode(got["files"][name])) for name in sorted(got["files"]))
    mine.verify_directly_issued_by(ca)
    assert life(got) <= 120
    assert mine.not_valid_after_utc == datetime.fromisoformat(got["expires_at"])
    theirs = {file.read_bytes() for file in alice.hub.directory.glob(f"servers/{alice.name}--lab/**/ca.pem")}
    assert theirs == {base64.b64decode(got["files"]["ca.pem"])}
    assert alice.hub.api("DELETE", f"/users/{alice.name}/servers/lab").status_code in (202, 204)


# -- who doesn't -------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_token_without_the_scope_gets_nothing(alice: Person) -> None:
    other, none = token_with(alice, scope("htcondor")), token_with(alice, "read:users:name!user")
    assert ask(alice, "htcondor", other).status_code == 200
    for token in (other, none, "nobody-s-token"):
        answer = ask(alice, "xcache", token)
        assert (answer.status_code, answer.json()["status"]) == (403, 403)
    listed = alice.hub.api("GET", "/casa/credentials", token=other).json()["credentials"]
    assert {one["name"]: one["allowed"] for one in listed} == {
        "xcache": False,
        "htcondor": True,
        "dask": False,
        "bearer": False,
    }
    assert alice.hub.api("GET", "/casa/credentials", token=none).status_code == 403


@pytest.mark.both_hubs
def test_the_token_of_a_server_has_no_scope(alice: Person) -> None:
    assert alice.browser.spawn().status_code == 201
    (process,) = alice.hub.directory.glob(f"servers/{alice.name}/process")
    running = signed_in(process)
    assert running is not None
    environment = Path(f"/proc/{running.pid}/environ").read_bytes().split(b"\0")
    (token,) = (line.split(b"=", 1)[1] for line in environment if line.startswith(b"JUPYTERHUB_API_TOKEN="))
    answer = ask(alice, "dask", token.decode())
    assert answer.status_code == 403, answer.text
    assert ask(alice, "dask").status_code == 200
    assert alice.hub.api("DELETE", f"/users/{alice.name}/server").status_code in (202, 204)


@pytest.mark.both_hubs
def test_a_service_has_no_credentials_whatever_its_scopes(strict: Hub) -> None:
    answer = strict.api("POST", "/casa/credentials/xcache", token="token-of-ci", json={})
    words = "A service has no credentials. Use the token of a user"
    assert (answer.status_code, answer.json()["message"]) == (403, words)


@pytest.mark.both_hubs
def test_an_operator_says_what_users_may_by_the_role_user(strict: Hub, idp: IdP) -> None:
    idp.rotate = False
    bob = Person(strict, idp)
    assert ask(bob, "xcache").status_code == 200
    assert ask(bob, "htcondor").status_code == 403


def test_nobody_reaches_another_user_s_server(alice: Person, idp: IdP) -> None:
    eve = Person(alice.hub, idp)
    assert alice.browser.spawn("lab").status_code == 201
    for name in ("lab", f"../{alice.name}/lab", f"{alice.name}/lab", f"{alice.name}--lab"):
        answer = ask(eve, "dask", server=name)
        assert answer.status_code == 409, answer.text
    assert alice.hub.api("DELETE", f"/users/{alice.name}/servers/lab").status_code in (202, 204)


@pytest.mark.both_hubs
@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.example.org"}, {"X-XSRFToken": "made-up"}])
def test_a_forged_request_of_a_browser_gets_nothing(alice: Person, headers: dict[str, str]) -> None:
    since = len(alice.hub.log)
    answer = alice.browser.post(
        f"{alice.hub.url}/hub/api/casa/credentials/xcache", headers=headers, json={}, timeout=60
    )
    assert answer.status_code == 403
    assert not audit(alice.hub, since, alice)


@pytest.mark.parametrize(
    ("body", "words"),
    one_for_both_hubs(
        [
            ("[1]", "The request must be a JSON object"),
            ("0", "The request must be a JSON object"),
            ('{"lifetime": "1h"}', "lifetime must be a number of seconds, 1 or more"),
            ('{"lifetime": true}', "lifetime must be a number of seconds, 1 or more"),
            ('{"lifetime": 0}', "lifetime must be a number of seconds, 1 or more"),
            ('{"server": 7}', "server must be the name of a server"),
            ('{"sever": "x"}', "There is no field 'sever'. Did you mean server?"),
        ]
    ),
)
def test_what_is_asked_wrongly_is_told(alice: Person, body: str, words: str) -> None:
    answer = alice.hub.api("POST", "/casa/credentials/xcache", token=alice.token, data=body)
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["message"]


def test_what_there_is_not_is_told(alice: Person) -> None:
    answer = ask(alice, "xcach")
    assert (answer.status_code, answer.json()["status"]) == (404, 404)
    assert (
        "This hub has no credential 'xcach' for use outside of servers. Did you mean xcache?"
        in (answer.json()["message"])
    )


def test_a_key_that_is_gone_is_told_to_whoever_asks(alice: Person) -> None:
    key = alice.hub.directory / "htcondor.key"
    key.rename(key.with_suffix(".away"))
    since = len(alice.hub.log)
    answer = ask(alice, "htcondor", token_with(alice, scope("htcondor"), note="CI\nof alice"))
    key.with_suffix(".away").rename(key)
    assert (answer.status_code, answer.json()["status"]) == (503, 503)
    assert "HTCondor.key_file" in answer.json()["message"]
    assert f" of {alice.name}: CI of alice: HTCondor.key_file" in alice.hub.log[since:]
    assert ask(alice, "htcondor").status_code == 200


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_revoke_ends_the_token_and_tells_what_is_still_outside(alice: Person) -> None:
    token = token_with(alice, scope("xcache"))
    got = [ask(alice, "xcache", token).json(), ask(alice, "htcondor").json()]
    since = len(alice.hub.log)
    body = {"user": alice.name, "reason": "stolen laptop"}
    assert alice.hub.api("POST", "/casa-hub/revoke", token=OPERATOR, json=body).status_code == 200
    assert ask(alice, "xcache", token).status_code == 403
    events = audit(alice.hub, since, alice)
    revoked = [event for event in events if event["action"] == "revoked"]
    assert {json.dumps(one["identifiers"]) for one in revoked} == {json.dumps(one["identifiers"]) for one in got}
    assert {(one["reason"], one["by"]) for one in revoked} == {("stolen laptop", "service operator")}
    assert all("servername" not in one for one in revoked)
    # What a new log-in has is its own, and what ended is told once.
    assert alice.browser.log_in(alice.sub).status_code == 200
    since = len(alice.hub.log)
    assert alice.hub.api("POST", "/casa-hub/revoke", token=OPERATOR, json=body).status_code == 200
    assert [event["action"] for event in audit(alice.hub, since, alice)] == ["access-ended"]


def test_a_leaver_s_token_ends_within_the_bound_and_what_is_outside_is_told(alice: Person) -> None:
    token = token_with(alice, scope("xcache"))
    got = ask(alice, "xcache", token).json()
    since = len(alice.hub.log)
    alice.is_in_groups("/cms", "/cms/other")
    took = until(
        lambda: "access-ended" in {event["action"] for event in audit(alice.hub, since, alice)}, "the end", timeout=90
    )
    assert took < PROMISED
    assert ask(alice, "xcache", token).status_code == 403
    (revoked,) = (event for event in audit(alice.hub, since, alice) if event["action"] == "revoked")
    assert (revoked["credential"], revoked["identifiers"]) == ("xcache", got["identifiers"])
    assert revoked["expires_at"] == got["expires_at"]


def test_the_membership_is_asked_for_again_before_a_mint_as_before_a_start(strict: Hub, idp: IdP) -> None:
    """The token itself still counts then: this hub asks the provider rarely."""
    idp.rotate = False
    carol = Person(strict, idp)
    assert ask(carol, "xcache").status_code == 200
    carol.is_in_groups("/cms", "/cms/other")
    strict.put_forward(FRESH + 1)
    since = len(strict.log)
    answer = ask(carol, "xcache")
    assert answer.status_code == 403
    assert "/cms/uscms" in answer.json()["message"]
    assert audit(strict, since, carol)[0]["action"] == "refused"
    assert "minted" not in {event["action"] for event in audit(strict, since, carol)}
