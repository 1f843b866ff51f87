"""Tokens of a real Keycloak for one service each: which it gives, which it refuses, and what the hub makes of that."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from casa_hub.checks import exchange as checks
from casa_hub.checks.findings import Status
from casa_hub.credentials.exchange import TokenExchange
from casa_hub.credentials.exchange_services import read_services
from casa_hub.credentials.fetching import Answer, Fetched, FetchError, Why
from casa_hub.credentials.tokens import unverified_claims
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Client
from tests.hub.test_membership_lost import ended
from tests.peers.test_keycloak import LogIn, Member, log_in, realm  # noqa: F401 - fixtures
from tests.peers.test_keycloak_hub import MakeServers, make_servers  # noqa: F401 - a fixture
from tests.peers.test_keycloak_hub import Member as HubMember
from tests.support.hub import Hub
from tests.support.keycloak import OFFLINE, ONLINE, Keycloak, Realm
from tests.support.waiting import until

(TAPE,) = read_services({"tape": {"audience": "tape", "scope": "tape.stage"}})


@dataclass
class Exchanger:
    """Somebody who has logged in by a client of their own, and a service that is that client's alone."""

    member: Member
    audience: str
    scope: str
    fetches: Fetches

    async def exchanged(self, **service: str) -> Fetched:
        wanted = {"audience": self.audience, "scope": self.scope} | service
        fetch = TokenExchange._for(replace(TAPE, **wanted))().fetch  # type: ignore[arg-type]
        reply = await self.fetches.ask(fetch, self.member.tokens.access_token)
        answer = Answer(reply.status, reply.body, datetime.now(UTC), self.member.realm.issuer, self.member.account.id)
        return fetch.read(answer)

    async def refused(self, **service: str) -> FetchError:
        with pytest.raises(FetchError) as caught:
            await self.exchanged(**service)
        assert self.member.tokens.access_token not in str(caught.value)
        return caught.value


MakeExchanger = Callable[[list[str]], Any]


@pytest.fixture
async def exchanger(log_in: LogIn) -> AsyncIterator[MakeExchanger]:  # noqa: F811
    open_ones: list[Any] = []

    async def make(scope: list[str]) -> Exchanger:
        member = await log_in(scope)
        audience, wanted = f"tape-{secrets.token_hex(4)}", f"stage-{secrets.token_hex(4)}"
        member.realm.add_client(audience, secrets.token_urlsafe(24), "http://127.0.0.1:9")
        member.realm.let_exchange(member.client_id)
        member.realm.add_audience(member.client_id, audience, wanted)
        issuer = Issuer(Client(member.realm.issuer, member.client_id, member.secret))
        fetches = Fetches(issuer)
        open_ones.extend((fetches, issuer))
        return Exchanger(member, audience, wanted, fetches)

    yield make
    for one in open_ones:
        await one.close()


# -- what it gives


@pytest.mark.parametrize("scope", [OFFLINE, ONLINE], ids=["offline", "online"])
async def test_a_token_is_for_one_service_and_lives_by_itself(exchanger: MakeExchanger, scope: list[str]) -> None:
    one = await exchanger(scope)
    got = await one.exchanged()
    claims = unverified_claims(got.value)
    assert claims["aud"] == one.audience
    assert one.scope in claims["scope"].split()
    assert (claims["sub"], claims["iss"]) == (one.member.account.id, one.member.realm.issuer)
    assert got.expires_at.timestamp() == claims["exp"]
    assert 290 < (got.expires_at - got.at).total_seconds() <= 300
    own = unverified_claims(one.member.tokens.access_token)
    assert one.audience not in str(own.get("aud"))
    assert claims["jti"] != own["jti"]


async def test_each_exchange_gives_another_token(exchanger: MakeExchanger) -> None:
    one = await exchanger(OFFLINE)
    first, second = await one.exchanged(), await one.exchanged()
    assert unverified_claims(first.value)["jti"] != unverified_claims(second.value)["jti"]


async def test_an_older_access_token_of_a_living_session_is_taken(exchanger: MakeExchanger) -> None:
    one = await exchanger(OFFLINE)
    older = one.member.tokens
    assert (await one.member.refreshed()).verdict == "yes"
    one.member.tokens = older
    assert await one.exchanged()


async def test_who_asks_keycloak_about_a_token_is_refused_after_the_session(exchanger: MakeExchanger) -> None:
    """EOS asks userinfo. There a token needs the scope openid, which the exchange must ask for."""
    one = await exchanger(ONLINE)
    plain, asked = await one.exchanged(), await one.exchanged(scope=f"openid {one.scope}")
    assert (await one.member.seen(asked.value)).verdict == "yes"
    refused = await one.member.seen(plain.value)
    assert (refused.verdict, refused.status) == ("cant-say", 403)
    one.member.realm.end_sessions(one.member.account)
    assert (await one.member.seen(asked.value)).verdict == "log-in-again"


# -- what it refuses


@dataclass(frozen=True)
class Row:
    """What is wrong, and what is said of it."""

    happens: Callable[[Exchanger], None]
    words: str
    why: Why = Why.REFUSED


def _forbid(one: Exchanger) -> None:
    realm = one.member.realm  # noqa: F811
    realm.change_client(one.member.client_id, attributes={"standard.token.exchange.enabled": "false"})


AGAIN = "Log out and in again."
ROWS = {
    "the client may not exchange": Row(_forbid, "standard.token.exchange.enabled"),
    "the service's client is disabled": Row(
        lambda one: one.member.realm.change_client(one.audience, enabled=False), "is disabled in Keycloak"
    ),
    "the hub's secret is wrong": Row(
        lambda one: one.member.realm.change_client(one.member.client_id, secret="another"),
        "client_id and client_secret",
    ),
    "the hub's client is disabled": Row(
        lambda one: one.member.realm.change_client(one.member.client_id, enabled=False), "client_id and client_secret"
    ),
    "the account is disabled": Row(lambda one: one.member.realm.disable(one.member.account), AGAIN, Why.SIGN_IN),
    "the account is deleted": Row(lambda one: one.member.realm.delete(one.member.account), AGAIN, Why.SIGN_IN),
    "the consent is revoked": Row(
        lambda one: one.member.realm.revoke_consent(one.member.account, one.member.client_id), AGAIN, Why.SIGN_IN
    ),
    "an administrator logs out": Row(lambda one: one.member.realm.log_out(one.member.account), AGAIN, Why.SIGN_IN),
}


@pytest.mark.parametrize("name", ROWS)
async def test_a_refusal_says_who_does_what(exchanger: MakeExchanger, name: str) -> None:
    row, one = ROWS[name], await exchanger(OFFLINE)
    row.happens(one)
    error = await one.refused()
    assert (error.why, row.words in str(error)) == (row.why, True), str(error)


async def test_an_ended_session_asks_for_a_log_in_unless_it_is_an_offline_one(exchanger: MakeExchanger) -> None:
    offline, online = await exchanger(OFFLINE), await exchanger(ONLINE)
    for one in (offline, online):
        one.member.realm.end_sessions(one.member.account)
    assert await offline.exchanged()
    assert (await online.refused()).why is Why.SIGN_IN


async def test_only_what_the_client_s_scopes_bring_can_be_had(exchanger: MakeExchanger) -> None:
    one = await exchanger(OFFLINE)
    for service, words in (
        ({"audience": "nobody"}, "Audience not found"),
        ({"scope": ""}, "a client scope with an audience mapper"),
        ({"scope": "nonsense"}, "may not ask for the scope nonsense (invalid_scope: Invalid scopes: nonsense)"),
    ):
        error = await one.refused(**service)
        assert (error.why, words in str(error)) == (Why.REFUSED, True), str(error)


# -- what `casa-hub check` finds out, with a token that nobody has


def _nothing(one: Exchanger) -> None:
    """All is as it should be."""


CHECKED: dict[str, tuple[Callable[[Exchanger], None], Status, str]] = {
    "sound": (_nothing, Status.OK, "lets this hub's client exchange tokens"),
    "the client may not exchange": (_forbid, Status.ERROR, "In Keycloak, the client needs Standard token exchange"),
    "the hub's secret is wrong": (
        lambda one: one.member.realm.change_client(one.member.client_id, secret="another"),
        Status.ERROR,
        "client_id and client_secret",
    ),
    "the hub's client is disabled": (
        lambda one: one.member.realm.change_client(one.member.client_id, enabled=False),
        Status.ERROR,
        "client_id and client_secret",
    ),
}


@pytest.mark.parametrize("name", CHECKED)
async def test_a_check_with_a_token_that_nobody_has_tells_what_is_wrong_with_the_client(
    exchanger: MakeExchanger, name: str
) -> None:
    (happens, status, words), one = CHECKED[name], await exchanger(OFFLINE)
    happens(one)
    client = Client(one.member.realm.issuer, one.member.client_id, one.member.secret)
    minter = TokenExchange._for(replace(TAPE, audience=one.audience, scope=one.scope))()  # type: ignore[arg-type]
    site: Any = SimpleNamespace(
        authenticator=SimpleNamespace(provider_side=SimpleNamespace(client=client)),
        facility=SimpleNamespace(fetches={minter.name: minter.fetch}),
        sound={minter.name},
    )
    grants, found = [finding async for finding in checks.look(site)]
    assert (grants.status, grants.problem) == (Status.OK, "offers token exchange")
    assert (found.status, found.thing) == (status, "exchange:tape")
    assert words in str(found)


# -- in a hub

#: Seconds that every token of the realm lives.
LIFE = 9
SERVICES = """
c.Facility.credentials = ["bearer", "dask", "exchange"]
c.TokenExchange.services = {
    "tape": {"audience": "tape", "scope": "tape.stage", "environment": {"TAPE_TOKEN": "{file}"}},
    "closed": {"audience": "closed", "scope": "tape.stage"},
}
"""


@pytest.fixture(scope="module")
def short(keycloak: Keycloak) -> Realm:
    made = keycloak.realm(accessTokenLifespan=LIFE)
    for client in ("tape", "closed"):
        made.add_client(client, secrets.token_urlsafe(24), "http://127.0.0.1:9")
    return made


@pytest.fixture(scope="module")
def hub(make_servers: MakeServers, short: Realm) -> Hub:  # noqa: F811
    made = make_servers(short, OFFLINE, more=SERVICES)
    short.let_exchange("hub-0")
    short.add_audience("hub-0", "tape", "tape.stage")
    return made.start()


def test_a_server_has_a_living_token_over_three_lives_and_none_after_the_end(hub: Hub, short: Realm) -> None:
    member = HubMember(hub, short).starts()
    file = member.server / "tape_token"
    assert requests.get(hub.url + member.path, timeout=30).json()["TAPE_TOKEN"] == str(file)
    assert file.stat().st_mode & 0o777 == 0o600
    seen: dict[str, str] = {}
    begin = time.time()
    while time.time() < begin + 3 * LIFE:
        token = file.read_text()
        claims = unverified_claims(token)
        assert claims["exp"] > time.time() - 0.5, f"an expired token after {time.time() - begin:.1f} s"
        assert (claims["aud"], claims["sub"]) == ("tape", member.account.id)
        seen[claims["jti"]] = token
        time.sleep(0.1)
    assert len(seen) >= 3, f"{len(seen)} tokens in {3 * LIFE} s"
    told = [event for event in member.audit() if event.get("credential") == "exchange:tape"]
    assert set(seen) <= {event["identifiers"]["jti"] for event in told}
    assert not any(part in hub.log for token in seen.values() for part in (token, token.rpartition(".")[2]))

    short.disable(member.account)
    until(member.left_by_itself, f"the end of {member.name}'s access", timeout=60)
    assert not file.exists()
    assert ended(member)["reason"].startswith("The identity provider says that the account is disabled.")


def test_a_service_that_keycloak_refuses_is_missing_and_says_why(hub: Hub, short: Realm) -> None:
    member = HubMember(hub, short).starts()
    assert not (member.server / "closed_token").exists()
    assert (member.server / "tape_token").exists()
    (line,) = [line for line in hub.log.splitlines() if "No exchange:closed for" in line and member.name in line]
    assert "Requested audience not available" in line
    assert "Tell the operator of this hub" in line


def test_exchange_that_is_switched_off_while_servers_run_is_told_and_comes_back_by_itself(
    hub: Hub, short: Realm
) -> None:
    member = HubMember(hub, short).starts()
    file = member.server / "tape_token"
    before, since = file.read_text(), len(hub.log)
    short.let_exchange("hub-0", allowed=False)
    try:
        told = hub.wait_for_all(r".*standard\.token\.exchange\.enabled.*", 1, since=since, timeout=30)[0][0]
        refused = HubMember(hub, short).starts()
        assert not (refused.server / "tape_token").exists()
    finally:
        short.let_exchange("hub-0")
    assert "Tell the operator of this hub" in told
    for one in (member, refused):
        until(lambda one=one: _lives(one.server / "tape_token", before), f"{one.name} has a new token", timeout=60)
        assert unverified_claims((one.server / "tape_token").read_text())["sub"] == one.account.id
        assert one.runs


def _lives(file: Path, before: str) -> bool:
    text = file.read_text() if file.exists() else before
    return text != before and unverified_claims(text)["exp"] > time.time()
