"""Many people at once, a real Keycloak, and tokens that are exchanged for each of them.

The hub here is what fetches: JupyterHub's database and encryption, log-ins, membership checks. It has no pages and no
servers, as five hundred processes would measure this machine; that servers get what was fetched is shown by a whole
hub in `test_keycloak_exchange`.

Keycloak takes each refresh token once: a session is lost if two use one, or if an answer with a new one is dropped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.crypto import CryptKeeper
from jupyterhub.user import User

from casa_hub.credentials.exchange import TokenExchange
from casa_hub.credentials.exchange_services import read_services
from casa_hub.credentials.fetching import Fetch, Fetched, FetchError, Outcomes, Why
from casa_hub.credentials.tokens import unverified_claims
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.session import Session
from casa_hub.identity.tokens import read_answer
from casa_hub.identity.transport import Client, Reply
from casa_hub.membership.fetching import Fetching
from casa_hub.membership.log_ins import LogIns
from casa_hub.membership.member import Members
from casa_hub.membership.policy import Allowed, Refused
from casa_hub.membership.recheck import FRESH, Recheck
from casa_hub.membership.settings import Keeper
from tests.support import keycloak as peer
from tests.support.keycloak import OFFLINE, Account, Keycloak, Realm
from tests.support.peers import require
from tests.support.scale import SOAK, STARTS_AT_ONCE
from tests.support.turns import Turns
from tests.support.waiting import until_async

MEMBERS = "/cms/uscms"
#: Seconds beyond `Keeper.fetch_patience` in which a start that waits gets its turn of a busy loop and processor.
TURN = 2.0
#: Log-ins at the same time.
_LOG_INS = 8


class Counted(Fetches):
    """Counts the requests for tokens."""

    asked = 0

    async def ask(self, fetch: Fetch, access_token: str) -> Reply:
        self.asked += 1
        return await super().ask(fetch, access_token)


@dataclass
class Person:
    account: Account
    user: User


@dataclass
class Start:
    """What one person's start was given. Times are seconds."""

    person: Person
    outcomes: Outcomes
    #: For what is fetched, after the membership check.
    waited: float


class _Identities:
    """Each name is its person's."""

    def check(self, *_: object, **__: str) -> None: ...


def _decide(_: str, claims: Mapping[str, Any], __: frozenset[str] | None) -> Allowed | Refused:
    groups = frozenset(claims.get("groups", ()))
    return Allowed(groups, admin=False) if MEMBERS in groups else Refused("not a member", groups, claim_missing=False)


class Hub:
    """A hub's database, log-ins, checks and fetches, by a client that may exchange tokens for two services."""

    def __init__(self, realm: Realm, directory: Path, patience: float) -> None:
        self.realm = realm
        self.client_id, secret = f"hub-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
        realm.add_client(self.client_id, secret, "http://127.0.0.1:9")
        realm.change_client(self.client_id, directAccessGrantsEnabled=True)
        realm.let_exchange(self.client_id)
        services = {}
        for name in ("rucio", "tape"):
            audience, scope = (f"{name}-{secrets.token_hex(4)}" for _ in range(2))
            realm.add_client(audience, secrets.token_urlsafe(24), "http://127.0.0.1:9")
            realm.add_audience(self.client_id, audience, scope)
            services[name] = {"audience": audience, "scope": scope}
        self.audiences = {f"exchange:{name}": service["audience"] for name, service in services.items()}
        minters = [TokenExchange._for(service)() for service in read_services(services)]
        self.wanted = {minter.name: minter.fetch for minter in minters}
        self.db = orm.new_session_factory(f"sqlite:///{directory / 'hub.sqlite'}")()
        self.issuer = Issuer(Client(realm.issuer, self.client_id, secret))
        self.fetches = Counted(self.issuer)
        self.members = Members(Keeper(fetch_patience=patience))
        self.log_ins = LogIns(self.members, self.issuer)
        self.recheck = Recheck(
            self.log_ins,
            _Identities(),  # type: ignore[arg-type]
            _decide,
            groups_live=True,
            on_yes=lambda *_: None,
        )
        self.fetching = Fetching(self.recheck, self.fetches)

    async def log_in(self, count: int) -> list[Person]:
        """So many new people, each with a session of their own, whose access token is due to be replaced."""
        room = asyncio.Semaphore(_LOG_INS)

        async def one(account: Account) -> Person:
            async with room:
                return await self._log_in(account)

        return list(await asyncio.gather(*map(one, self.realm.add_accounts(count, MEMBERS))))

    async def _log_in(self, account: Account) -> Person:
        form = {"grant_type": "password", "username": account.name, "password": account.password}
        headers, data = self.issuer.as_client({**form, "scope": " ".join(OFFLINE)})
        url = (await self.issuer.metadata()).token_endpoint
        async with (await self.issuer.session()).post(url, headers=headers, data=data) as response:
            answer = await response.json()
        tokens, problem = read_answer(answer, url, time.time())
        assert tokens is not None, answer
        assert problem is None
        tokens = replace(tokens, id_claims={"sub": account.id})
        session = Session.of_login(tokens, issuer=self.realm.issuer, claims={"sub": account.id, "groups": [MEMBERS]})
        session = replace(session, obtained_at=session.obtained_at - 600, expires_at=session.obtained_at)
        row = orm.User(name=account.name)
        self.db.add(row)
        self.db.commit()
        user = User(row, {}, self.db)
        await user.save_auth_state(session.to_auth_state())
        self.recheck.logged_in(user.name, session, Allowed(frozenset([MEMBERS]), admin=False))
        return Person(account, user)

    async def start(self, person: Person) -> Start:
        """As JupyterHub's: first the membership, then what is fetched."""
        await self.recheck.of(person.user, max_age=FRESH, for_server=True)
        return await self.fetch(person)

    async def fetch(self, person: Person, **more: Any) -> Start:
        begun = time.monotonic()
        outcomes = await self.fetching.of(person.user, self.wanted, **more)
        return Start(person, outcomes, time.monotonic() - begun)

    async def renewal(self, before: Start) -> Start:
        """Newer ones than a start was given, for its running server."""
        given = {name: one.at for name, one in before.outcomes.items() if isinstance(one, Fetched)}
        return await self.fetch(before.person, newer_than=given)

    async def start_all(self, people: Iterable[Person], *, checked: bool = False) -> list[Start]:
        """All at once, and each has a page open, which asks about the membership meanwhile. `checked`: the checks of
        the starts themselves are over.
        """
        pages = [asyncio.create_task(self.recheck.of(one.user, max_age=0, patience=1)) for one in people]
        starts = await asyncio.gather(*map(self.fetch if checked else self.start, people))
        await asyncio.gather(*pages)
        return list(starts)

    async def settled(self, seconds: float) -> None:
        """Until nothing is asked for and all is stored."""
        await until_async(lambda: not self.fetching._under_way and not self.fetching._background.tasks, seconds)

    def check(self, start: Start) -> int:
        """How many tokens a start was given, each of which must be the person's own, and for the service."""
        given = {name: one for name, one in start.outcomes.items() if isinstance(one, Fetched)}
        for name, one in given.items():
            claims = unverified_claims(one.value)
            assert (claims["sub"], claims["aud"]) == (start.person.account.id, self.audiences[name])
        return len(given)

    async def all_have_their_tokens(self, people: list[Person]) -> None:
        """Each person's next start has both tokens, and nobody asks Keycloak for them."""
        asked = self.fetches.asked
        starts = await asyncio.gather(*map(self.fetch, people))
        assert [self.check(start) for start in starts] == [len(self.wanted)] * len(people)
        tokens = [one.value for start in starts for one in start.outcomes.values() if isinstance(one, Fetched)]
        assert len(set(tokens)) == len(tokens)
        assert self.fetches.asked == asked

    async def no_session_is_lost(self, people: list[Person], first: Mapping[str, str]) -> None:
        """The stored refresh token of each is another than the `first` one, and Keycloak takes it."""
        room = asyncio.Semaphore(_LOG_INS)

        async def works(person: Person) -> None:
            async with room:
                session = await self.log_ins.session(person.user)
                assert session is not None
                assert session.refresh_token != first[person.user.name]
                await self.issuer.refresh(session.refresh_token, sub=person.account.id)

        await asyncio.gather(*map(works, people))

    async def refresh_tokens(self, people: list[Person]) -> dict[str, str]:
        sessions = {one.user.name: await self.log_ins.session(one.user) for one in people}
        return {name: session.refresh_token for name, session in sessions.items() if session is not None}


@asynccontextmanager
async def running(realm: Realm, directory: Path, patience: float = 10.0) -> AsyncIterator[Hub]:
    CryptKeeper.clear_instance()
    CryptKeeper.instance(keys=[os.urandom(32)])
    hub = Hub(realm, directory, patience)
    try:
        yield hub
    finally:
        await hub.fetches.close()
        await hub.issuer.close()
        hub.db.close()
        CryptKeeper.clear_instance()


@pytest.fixture(scope="module")
def realm(keycloak: Keycloak) -> Realm:
    return keycloak.realm()


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_many_who_start_at_once_wait_no_longer_than_the_bound_and_each_gets_their_own(
    keycloak: Keycloak, realm: Realm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(realm, tmp_path) as hub:
        people = await hub.log_in(STARTS_AT_ONCE)
        first = await hub.refresh_tokens(people)
        cpu, begun = keycloak.cpu, time.monotonic()
        with Turns() as turns:
            starts = await hub.start_all(people)
            started = time.monotonic() - begun
            await hub.settled(300)
        whole, cpu = time.monotonic() - begun, keycloak.cpu - cpu
        in_time = sum(map(hub.check, starts))
        waits = [start.waited for start in starts]
        with capsys.disabled():
            print(
                f"\n{len(people)} starts at once, {len(hub.wanted)} tokens each: {in_time} tokens in time, all after "
                f"{whole:.1f} s; a start waited for them {statistics.median(waits):.1f} s (median), "
                f"{max(waits):.1f} s (most); "
                f"all starts went on after {started:.1f} s with their checks; {hub.fetches.asked} exchanges, "
                f"{(hub.fetches.asked + 2 * len(people)) / whole:.0f} requests/s with refreshes and checks; "
                f"{cpu:.1f} s of Keycloak's CPU; {turns}"
            )
        assert max(waits) < hub.members.settings.fetch_patience + TURN
        late = [one for start in starts for one in start.outcomes.values() if isinstance(one, FetchError)]
        assert all("there is no answer after 10 seconds" in str(error) for error in late), late[0]
        await hub.all_have_their_tokens(people)
        await hub.no_session_is_lost(people, first)


@pytest.mark.timeout(300)
async def test_starts_go_on_without_a_keycloak_that_stands_still_and_have_their_tokens_when_it_goes_on(
    keycloak: Keycloak, realm: Realm, tmp_path: Path
) -> None:
    async with running(realm, tmp_path, patience=1.5) as hub:
        people = await hub.log_in(12)
        first = await hub.refresh_tokens(people)
        with keycloak.paused():
            starts = await hub.start_all(people, checked=True)
        assert max(start.waited for start in starts) < 1.5 + TURN
        for start in starts:
            for error in start.outcomes.values():
                assert isinstance(error, FetchError)
                assert (error.why, "there is no answer after 1.5 seconds" in str(error)) == (Why.OUTAGE, True)
        await hub.settled(60)
        await hub.all_have_their_tokens(people)
        await hub.no_session_is_lost(people, first)


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="starts a Keycloak of its own twice: make soak")
@pytest.mark.timeout(900)
async def test_a_killed_keycloak_costs_nobody_a_session_and_what_was_fetched_is_given_meanwhile(tmp_path: Path) -> None:
    """Its sessions are in its database, which is a file here."""
    server = Keycloak(require(peer.distribution), tmp_path, lasting=True)
    with server:
        realm = server.realm()
        async with running(realm, tmp_path) as hub:
            people = await hub.log_in(12)
            first = await hub.refresh_tokens(people)
            early, late = people[:6], people[6:]
            before = await hub.start_all(early)
            await hub.settled(60)
            server.kill()

            await hub.all_have_their_tokens(early)
            renewals = await asyncio.gather(*map(hub.renewal, before))
            starts = await hub.start_all(late)
            assert {_why(one) for start in (*renewals, *starts) for one in start.outcomes.values()} == {Why.OUTAGE}
            assert max(start.waited for start in starts) < hub.members.settings.fetch_patience + TURN

            with server:
                for person in people:
                    hub.recheck.doubt(person.user.name)
                renewals = await asyncio.gather(*map(hub.renewal, before))
                assert [hub.check(start) for start in renewals] == [2] * len(early)
                await hub.start_all(late)
                await hub.settled(60)
                await hub.all_have_their_tokens(people)
                await hub.no_session_is_lost(people, first)


def _why(outcome: object) -> Why | None:
    return outcome.why if isinstance(outcome, FetchError) else None
