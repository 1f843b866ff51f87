"""Whose word counts when: an explicit "no" against silence, age and a log-in in between.

The provider is what a test lets it say; how real ones say it is in tests/hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from sqlalchemy.exc import OperationalError

from casa_hub.identity.errors import OIDCError
from casa_hub.identity.session import Session
from casa_hub.identity.tokens import Tokens
from casa_hub.identity.verdicts import Answer, Verdict, of_token_answer, of_userinfo_answer
from casa_hub.membership.log_ins import LogIns
from casa_hub.membership.member import Member, Members, Standing
from casa_hub.membership.policy import Allowed, Refused
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.settings import Keeper
from casa_hub.membership.usernames import IdentityError, UnknownOwnerError

ISSUER = "https://idp.example.org/"
NOW = 1_700_000_000.0
YES = Allowed(groups=frozenset({"/cms"}), admin=False)
NO = Refused(reason="not in /cms", found=frozenset(), claim_missing=False)


@dataclass
class User:
    """As much of JupyterHub's as checks need."""

    name: str = "alice"
    state: dict[str, Any] | None = None
    id: int = 1
    db: Any = field(
        default_factory=lambda: SimpleNamespace(is_active=True, in_transaction=lambda: False, rollback=lambda: None)
    )

    async def get_auth_state(self) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return self.state

    async def save_auth_state(self, state: dict[str, Any] | None) -> None:
        await asyncio.sleep(0)
        self.state = state

    @property
    def session(self) -> Session | None:
        return Session.from_auth_state(self.state)


async def locked(*_: Any) -> NoReturn:
    """In place of a read or a write of the hub's database."""
    raise OperationalError("SELECT", {}, Exception("database is locked"))


@dataclass
class World:
    """A user, a provider, and the checks between them."""

    live: bool = False
    refresh_token: str = "first"
    now: float = NOW
    #: What the provider makes of a refresh and of the membership; an exception is raised.
    says: Any = None
    decision: Allowed | Refused = YES
    binding: Exception | None = None
    told: list[tuple[Verdict, str]] = field(default_factory=list)
    tokens: list[Verdict] = field(default_factory=list)
    gate: asyncio.Event | None = None
    #: Access token -> what userinfo refuses it with; "": any.
    userinfo_says: dict[str, OIDCError] = field(default_factory=dict)
    refreshes: int = 0
    #: Seconds after the log-in at which the provider says that the refresh token ends.
    refresh_life: float | None = None
    client: Any = None

    def __post_init__(self) -> None:
        self.client = type("Client", (), {"issuer": ISSUER, "leeway": 60.0})()
        self.user = User()
        self.restarted()
        self.log_in()

    def restarted(self) -> Recheck:
        """Checks of a hub that knows no more than its database."""
        self.members = Members(Keeper(), lambda: self.now)
        self.log_ins = LogIns(self.members, self)  # type: ignore[arg-type]
        self.recheck = Recheck(
            self.log_ins,
            self,  # type: ignore[arg-type]
            self._decide,
            groups_live=self.live,
            on_yes=lambda *_: None,
        )
        self.recheck.on_verdict, self.recheck.on_tokens = self._heard, self._new_tokens
        return self.recheck

    def _heard(self, member: Member) -> None:
        assert member.standing is not None
        self.told.append((member.standing.verdict, member.standing.reason))

    async def _new_tokens(self, user: Any) -> None:
        assert self.members["alice"].standing is not None
        self.tokens.append(self.members["alice"].standing.verdict)

    def _decide(self, _: str, claims: Mapping[str, Any], __: frozenset[str] | None) -> Allowed | Refused:
        assert isinstance(claims, Mapping)
        return self.decision

    def log_in(self, session_id: str = "one", user: User | None = None, **more: Any) -> None:
        user = user or self.user
        session = Session(
            id=session_id,
            issuer=ISSUER,
            sub="sub",
            access_token="token",
            refresh_token=self.refresh_token,
            expires_at=self.now + 3600,
            obtained_at=self.now,
            scope=None,
            last_yes=self.now,
            claims={},
            refresh_expires_at=None if self.refresh_life is None else self.now + self.refresh_life,
            refresh_told_at=self.now,
        )
        session = replace(session, **more)
        user.state = session.to_auth_state()
        self.recheck.logged_in(user.name, session, YES)

    async def ask(self, *, later: float = 300.0, **more: Any) -> Standing:
        self.now += later
        return await self.recheck.of(self.user, max_age=100, **more)

    # -- the provider and the bindings

    async def refresh(self, token: str, *, sub: str) -> Tokens:
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.says, Exception):
            raise self.says
        self.refreshes += 1
        return Tokens("newer", token + "+", "", self.now + 3600, self.now, None)

    async def userinfo(self, token: str, *, sub: str) -> dict[str, Any]:
        said = self.userinfo_says.get(token, self.userinfo_says.get(""))
        if said is not None:
            raise said
        return {"sub": sub}

    def check(self, username: str, **_: str) -> None:
        if self.binding is not None:
            raise self.binding


def error(verdict: Verdict, *, our_fault: bool = False) -> OIDCError:
    return OIDCError("the token end point", Answer(verdict, f"says {verdict}", our_fault))


CANT_SAY, LOG_IN_AGAIN = error(Verdict.CANT_SAY), error(Verdict.LOG_IN_AGAIN)


@pytest.mark.parametrize("silence", [CANT_SAY, LOG_IN_AGAIN], ids=["no answer", "the session is dead"])
async def test_an_explicit_no_isn_t_taken_back_by_silence(silence: OIDCError) -> None:
    world = World()
    world.decision = NO
    assert (await world.ask()).verdict is Verdict.NO
    world.says = silence
    for _ in range(3):
        standing = await world.ask()
        assert (standing.verdict, standing.reason, standing.last_yes) == (Verdict.NO, NO.reason, NOW)
    world.says, world.decision = None, YES
    assert (await world.ask()).verdict is Verdict.YES


async def test_an_explicit_no_isn_t_taken_back_by_an_error_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A locked database at the next asking: pages would open again, and what the operator confirms would not happen."""
    world = World()
    world.decision = NO
    await world.ask()

    with monkeypatch.context() as patch:
        patch.setattr(world.user, "get_auth_state", locked)
        standing = await world.ask()
    assert (standing.verdict, standing.reason, standing.last_yes) == (Verdict.NO, NO.reason, NOW)
    world.decision = YES
    assert (await world.ask()).verdict is Verdict.YES


async def test_a_provider_that_is_slow_doesn_t_excuse_an_explicit_no() -> None:
    world = World()
    world.decision = NO
    await world.ask()
    world.gate = asyncio.Event()
    assert (await world.ask(patience=0.01)).verdict is Verdict.NO
    world.gate.set()
    await world.members["alice"].settled()


async def test_a_page_waits_for_the_provider_where_the_last_yes_counts_no_more() -> None:
    """Somebody who is back after a week would be refused, for want of two seconds."""
    world = World()
    world.gate = asyncio.Event()
    asking = asyncio.create_task(world.ask(later=7 * 86400.0, patience=0.01))
    await asyncio.sleep(0.05)
    assert not asking.done()
    world.gate.set()
    assert (await asking).verdict is Verdict.YES


async def test_a_no_remembers_the_last_yes_though_not_every_one_is_stored() -> None:
    """It decides when the grace ends of somebody who is held back."""
    world = World()
    assert (await world.ask()).last_yes == NOW + 300
    assert world.user.session is not None
    assert world.user.session.last_yes == NOW  # not worth a commit yet
    await world.recheck.refused(world.user, NO.reason, NO)
    assert (last := world.members["alice"].standing) is not None
    assert last.last_yes == NOW + 300
    world.decision = NO
    assert (await world.ask()).last_yes == NOW + 300


async def test_who_ends_an_access_waits_for_the_refresh_that_is_under_way() -> None:
    """It brings the refresh token that is to be ended; the one before is dead."""
    world = World()
    world.gate = asyncio.Event()
    asking = asyncio.create_task(world.ask())
    await asyncio.sleep(0.01)
    settled = asyncio.create_task(world.members["alice"].settled())
    await asyncio.sleep(0.01)
    assert not settled.done()
    world.gate.set()
    await settled
    assert world.user.session is not None
    assert world.user.session.refresh_token == "first+"
    await asking
    await world.members["alice"].settled()  # nobody asks


async def test_a_refresh_under_way_brings_back_no_token_that_a_log_out_has_dropped() -> None:
    """A provider's log-out came during a refresh, whose new token was stored again: the next check found it dead, and
    servers that should have counted by their age ended as if the sign-in had been taken back.
    """
    world = World()
    world.gate = asyncio.Event()
    asking = asyncio.create_task(world.ask())
    await asyncio.sleep(0.01)
    assert world.user.session is not None
    world.user.state = replace(world.user.session, refresh_token="").to_auth_state()
    world.gate.set()
    await asking
    assert world.user.session.refresh_token == ""


async def test_a_refused_log_in_ends_a_log_in_that_counts_by_its_age_also_after_a_restart() -> None:
    world = World(refresh_token="")
    assert (await world.ask()).aged
    await world.recheck.refused(world.user, NO.reason, NO)
    assert world.told[-1] == (Verdict.NO, NO.reason)
    for _ in range(2):
        standing = await world.ask()
        assert (standing.verdict, standing.reason) == (Verdict.NO, NO.reason)
        world.restarted()
    world.log_in("two")
    assert (await world.ask()).verdict is Verdict.YES


@pytest.mark.parametrize("said", [True, False], ids=["by what was said", "by what was never said"])
async def test_a_log_in_that_counts_by_its_age_is_held_against_the_rules_of_now(said: bool) -> None:
    """Somebody whom the operator has blocked went on for a day. What the claims never said is no "no"."""
    world = World(refresh_token="")
    world.restarted()
    world.decision = replace(NO, claim_missing=not said)
    standing = await world.ask()
    assert (standing.verdict, standing.aged) == ((Verdict.NO, False) if said else (Verdict.YES, True))


async def test_a_log_in_that_counts_by_its_age_outlives_a_hook_that_took_its_claims_away() -> None:
    world = World(refresh_token="")
    assert world.user.state is not None
    world.user.state["oauth_user"] = None
    world.restarted()
    assert (await world.ask()).aged


async def test_a_refused_log_in_wins_over_an_asking_that_began_before_it() -> None:
    world = World()
    world.gate = asyncio.Event()
    asking = asyncio.create_task(world.ask())
    await asyncio.sleep(0.01)
    await world.recheck.refused(world.user, NO.reason, NO)
    world.gate.set()
    assert (await asking).verdict is Verdict.NO
    # But where the provider can be asked, its newer word counts.
    assert (await world.ask()).verdict is Verdict.YES
    assert world.user.session is not None
    assert world.user.session.refused == ""


async def test_a_log_in_wins_over_a_no_that_was_asked_for_before_it() -> None:
    world = World()
    world.gate = asyncio.Event()
    asking = asyncio.create_task(world.ask())
    await asyncio.sleep(0.01)
    world.log_in("two")
    world.decision = NO
    world.gate.set()
    assert (await asking).verdict is Verdict.YES
    assert world.user.session is not None
    assert world.user.session.refresh_token == "first"


async def test_forgetting_a_log_in_leaves_a_later_one_alone() -> None:
    world = World()
    world.log_in("two")
    await world.log_ins.forget(world.user, "one")
    assert world.user.session is not None
    assert (last := world.members["alice"].standing) is not None
    assert last.session_id == "two"
    assert (await world.ask(later=1)).verdict is Verdict.YES
    await world.log_ins.forget(world.user, "two")
    assert world.user.session is None
    assert world.members["alice"].standing is None
    standing = await world.ask()
    assert (standing.verdict, standing.last_yes) == (Verdict.LOG_IN_AGAIN, 0.0)


async def test_a_name_of_another_owner_is_a_no_and_a_table_that_can_t_be_read_isn_t() -> None:
    world = World()
    world.binding = UnknownOwnerError("name", "can't say", "")
    assert (await world.ask()).verdict is Verdict.CANT_SAY
    world.binding = IdentityError("name", "somebody else's", "")
    assert (await world.ask()).verdict is Verdict.NO


async def test_what_is_our_own_fault_is_told_apart() -> None:
    world = World()
    world.says = error(Verdict.CANT_SAY, our_fault=True)
    standing = await world.ask()
    assert (standing.verdict, standing.our_fault) == (Verdict.CANT_SAY, True)
    world.says = None
    assert not (await world.ask()).our_fault
    world.decision = replace(NO, claim_withheld="scope")
    standing = await world.ask()
    assert (standing.verdict, standing.our_fault) == (Verdict.CANT_SAY, True)


async def test_a_server_s_token_is_replaced_when_two_thirds_of_its_life_are_gone() -> None:
    world = World(live=True)  # userinfo needs no new token
    standing = await world.ask(later=50)
    assert standing.due_at == NOW + 2400
    world.now = NOW + 2390
    assert (await world.ask(later=0)).due_at == NOW + 2400
    assert (await world.ask(later=20)).due_at == NOW + 2400  # fresh enough for a page
    assert world.tokens == []
    assert (await world.ask(later=0, for_server=True)).due_at == NOW + 2410 + 2400
    assert world.tokens == [Verdict.YES]
    assert (await world.ask(later=0, for_server=True)).due_at == NOW + 2410 + 2400  # once


async def test_after_a_restart_it_is_known_without_asking_when_a_token_is_due() -> None:
    world = World()
    known = await world.restarted().log_ins.known(world.user)
    assert (known.verdict, known.last_yes, known.due_at) == (Verdict.CANT_SAY, NOW, NOW + 2400)
    assert world.told == [(Verdict.YES, "")]  # that of the log-in: nobody was asked


async def test_new_tokens_that_came_with_a_no_are_not_handed_out_unless_it_is_held_back() -> None:
    world = World()
    world.decision = NO
    await world.ask()
    assert world.refreshes == 1
    assert world.tokens == []
    world.members["alice"].held_since = NOW
    await world.ask()
    assert world.tokens == [Verdict.NO]


@pytest.mark.parametrize("live", [False, True], ids=["log-out at the provider", "expired access token"])
async def test_an_explicit_no_isn_t_taken_back_by_a_log_in_that_counts_by_its_age(live: bool) -> None:
    """Who can't be asked any more would be a member again, for as long as a log-in counts."""
    world = World(live=live, refresh_token="" if live else "first")
    world.decision = NO
    assert (await world.ask()).verdict is Verdict.NO
    if not live:  # as the back-channel does
        assert world.user.session is not None
        world.user.state = replace(world.user.session, refresh_token="").to_auth_state()
        world.recheck.doubt("alice")
    standing = await world.ask(later=3600)
    assert (standing.verdict, standing.reason, standing.aged) == (Verdict.NO, NO.reason, False)


async def test_a_clock_that_was_put_back_makes_no_verdict_last() -> None:
    world = World()
    assert (await world.ask()).verdict is Verdict.YES
    world.decision = NO
    assert (await world.ask(later=-86400)).verdict is Verdict.NO
    world.says = CANT_SAY
    assert (await world.ask(later=60)).last_yes <= world.now  # else the grace would be longer by a day


async def test_a_rotated_refresh_token_survives_a_database_that_is_locked() -> None:
    world = World()
    store, rolled_back = world.user.save_auth_state, []

    world.user.db = SimpleNamespace(
        is_active=True, in_transaction=lambda: False, rollback=lambda: rolled_back.append(True)
    )
    world.user.save_auth_state = locked  # type: ignore[method-assign]
    assert (await world.ask()).verdict is Verdict.CANT_SAY
    assert rolled_back
    world.user.save_auth_state = store  # type: ignore[method-assign]
    assert (await world.ask()).verdict is Verdict.YES
    assert world.user.session is not None
    assert world.user.session.refresh_token == "first++"  # of the second refresh, by the first one's


async def test_a_log_in_that_is_forgotten_while_it_is_asked_about_is_none() -> None:
    world = World(gate=asyncio.Event())
    asking = asyncio.create_task(world.ask())
    await asyncio.sleep(0.01)
    await world.log_ins.forget(world.user, "one")
    assert world.gate is not None
    world.gate.set()
    assert (await asking).verdict is Verdict.LOG_IN_AGAIN
    assert world.members["alice"].standing is None


async def test_a_user_who_is_renamed_while_asked_about_leaves_no_answer_to_who_has_the_name_next() -> None:
    """That answer would have counted until the hub's end: nobody of that name would be asked about again."""
    world = World()
    world.gate = asyncio.Event()
    asking = asyncio.create_task(world.ask())
    await asyncio.sleep(0.01)
    world.user.name = "alice-of-before"
    world.gate.set()
    await asking
    world.user = User()
    world.log_in("two")
    assert (await world.ask()).verdict is Verdict.YES
    world.decision = NO
    assert (await world.ask()).verdict is Verdict.NO


async def test_a_request_of_somebody_else_that_fails_in_the_database_makes_nobody_s_membership_uncertain() -> None:
    world = World()
    db = world.user.db = SimpleNamespace(
        is_active=False, in_transaction=lambda: False, rollback=lambda: setattr(db, "is_active", True)
    )
    read = world.user.get_auth_state

    async def get_auth_state() -> dict[str, Any] | None:
        assert db.is_active, "Can't reconnect until invalid transaction is rolled back"
        return await read()

    world.user.get_auth_state = get_auth_state  # type: ignore[method-assign]
    world.decision = NO
    assert (await world.ask()).verdict is Verdict.NO


# -- a sign-in that was taken back, or has run out -------------------------------------------------------------------


async def test_a_refresh_token_refused_before_its_known_end_was_taken_back() -> None:
    """Deleted accounts, ended sessions and revoked consents all answer like a token that has run out."""
    world = World(refresh_life=30 * 86400.0)
    world.says = LOG_IN_AGAIN
    standing = await world.ask()
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, NOW + 300)
    assert standing.reason == ("The sign-in was taken back at the identity provider before its time. says log-in-again")


async def test_a_refresh_token_without_a_known_end_was_taken_back_when_it_is_refused() -> None:
    world = World()
    world.says = LOG_IN_AGAIN
    assert (await world.ask()).revoked_at == NOW + 300


@pytest.mark.parametrize("late", [-59.0, 0.0, 86400.0])
async def test_a_refresh_token_refused_at_its_known_end_has_run_out(late: float) -> None:
    """The provider's clock may be ahead of ours, by the leeway."""
    world = World(refresh_life=30 * 86400.0)
    world.says = LOG_IN_AGAIN
    standing = await world.ask(later=30 * 86400.0 + late)
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, 0.0)


async def test_since_when_a_sign_in_is_taken_back_outlives_a_restart_and_ends_with_a_log_in() -> None:
    world = World()
    world.says = LOG_IN_AGAIN
    await world.ask()
    world.restarted()
    assert (await world.ask(later=1000)).revoked_at == NOW + 300
    world.says = None
    world.log_in("two")
    standing = await world.ask()
    assert (standing.verdict, standing.revoked_at) == (Verdict.YES, 0.0)
    assert world.user.session is not None
    assert world.user.session.revoked_at == 0.0


async def test_a_sign_in_that_is_doubted_is_asked_about_again() -> None:
    """Held back for many at once, it may have been the provider's own fault."""
    world = World()
    world.says = LOG_IN_AGAIN
    await world.ask()
    world.says = None
    assert (await world.ask()).verdict is Verdict.LOG_IN_AGAIN
    world.recheck.doubt("alice")
    standing = await world.ask()
    assert (standing.verdict, standing.revoked_at) == (Verdict.YES, 0.0)


async def test_an_error_of_the_hub_takes_no_time_from_whom_no_log_in_is_known_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database that could not be read counted as an outage since 1970, and the access ended a minute later."""
    world = World()
    world.user.state = None
    world.restarted()
    await world.log_ins.known(world.user)

    monkeypatch.setattr(world.user, "get_auth_state", locked)
    standing = await world.ask()
    assert (standing.verdict, standing.session_id) == (Verdict.LOG_IN_AGAIN, "")


@pytest.mark.parametrize("restarted", [False, True], ids=["asked again", "after a restart"])
async def test_that_a_sign_in_was_taken_back_isn_t_taken_back_by_silence(restarted: bool) -> None:
    """An outage opened the pages again, let servers start, and gave four hours instead of one."""
    world = World()
    world.says = LOG_IN_AGAIN
    await world.ask()
    world.says = CANT_SAY
    if restarted:
        world.restarted()
    world.recheck.doubt("alice")
    standing = await world.ask(later=10)
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, NOW + 300)
    world.says = None  # it was the provider's fault: a "log in again" that it has just said would stay
    assert (await world.ask(later=20)).verdict is Verdict.LOG_IN_AGAIN
    assert (await world.ask(later=20)).verdict is Verdict.YES


async def test_that_a_sign_in_was_taken_back_isn_t_taken_back_by_an_error_of_the_hub_nor_by_a_slow_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.says = LOG_IN_AGAIN
    await world.ask()

    with monkeypatch.context() as patch:
        patch.setattr(world.user, "get_auth_state", locked)
        world.recheck.doubt("alice")
        standing = await world.ask(later=10)
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, NOW + 300)
    world.gate = asyncio.Event()
    assert (await world.ask(later=40, patience=0.01)).verdict is Verdict.LOG_IN_AGAIN
    world.gate.set()
    await world.members["alice"].settled()


async def test_a_sign_in_that_was_taken_back_does_not_run_out_later_on() -> None:
    """Keycloak's ends after 30 idle minutes: asked about again after those, it would count for a day."""
    world = World(refresh_life=1800.0)
    world.says = LOG_IN_AGAIN
    await world.ask()
    world.recheck.doubt("alice")
    standing = await world.ask(later=2000)
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, NOW + 300)


async def test_a_sign_in_that_was_taken_back_does_not_count_by_its_age_when_a_log_out_drops_its_token() -> None:
    world = World()
    world.says = LOG_IN_AGAIN
    await world.ask()
    assert world.user.session is not None
    world.user.state = replace(world.user.session, refresh_token="").to_auth_state()
    world.recheck.doubt("alice")
    standing = await world.ask(later=10)
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, NOW + 300)


async def test_a_yes_of_the_old_access_token_takes_back_that_a_sign_in_was_taken_back() -> None:
    """A provider that had lost its sessions for a moment: the next silence would count from then."""
    world = World(live=True)
    world.userinfo_says, world.says = {"": LOG_IN_AGAIN}, LOG_IN_AGAIN
    assert (await world.ask()).revoked_at == NOW + 300
    world.userinfo_says = {}
    world.recheck.doubt("alice")
    assert (await world.ask(later=10)).verdict is Verdict.YES
    assert world.user.session is not None
    assert world.user.session.revoked_at == 0.0


async def test_that_a_sign_in_was_taken_back_is_known_though_it_can_not_be_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.says = LOG_IN_AGAIN

    monkeypatch.setattr(world.user, "save_auth_state", locked)
    standing = await world.ask()
    assert (standing.verdict, standing.revoked_at) == (Verdict.LOG_IN_AGAIN, NOW + 300)


async def test_the_end_of_a_sign_in_is_told_a_day_before_or_in_the_last_tenth_of_its_life() -> None:
    world = World(live=True, refresh_life=30 * 86400.0)
    standing = await world.ask()
    assert (standing.sign_in_ends_at, standing.warn_at) == (NOW + 30 * 86400, NOW + 29 * 86400)
    world = World(live=True, refresh_life=36000.0)
    assert (await world.ask()).warn_at == NOW + 36000 - 3600


# -- what userinfo says ----------------------------------------------------------------------------------------------

UNEXPLAINED = OIDCError("userinfo", of_userinfo_answer(401, None))


async def test_userinfo_that_refuses_a_token_without_a_word_leads_to_a_refresh() -> None:
    """It was no usable answer, and a disabled account kept its server until the grace was over."""
    world = World(live=True)
    world.userinfo_says = {"token": UNEXPLAINED}
    assert (await world.ask()).verdict is Verdict.YES
    assert world.refreshes == 1


async def test_userinfo_that_refuses_a_new_token_without_a_word_says_nothing_of_the_person() -> None:
    world = World(live=True)
    world.userinfo_says = {"": UNEXPLAINED}
    standing = await world.ask()
    assert (standing.verdict, standing.revoked_at) == (Verdict.CANT_SAY, 0.0)
    assert "it refuses a new access token and does not say why" in standing.reason


async def test_without_a_refresh_token_a_refusal_without_a_word_asks_for_a_log_in() -> None:
    world = World(live=True, refresh_token="")
    world.userinfo_says = {"": UNEXPLAINED}
    assert (await world.ask()).verdict is Verdict.LOG_IN_AGAIN


DELETED = OIDCError("userinfo", of_userinfo_answer(404, {"error": "User 'ada' not found"}))


async def test_an_account_deleted_during_a_refresh_is_a_no_though_refreshes_only_fail() -> None:
    """INDIGO IAM 1.12, measured: its token end point says 500 for ever, and userinfo knows."""
    world = World()
    world.says = OIDCError("the token end point", of_token_answer(500, {"error": "server_error"}))
    assert (await world.ask()).verdict is Verdict.CANT_SAY
    world.userinfo_says = {"token": DELETED}
    assert (await world.ask()).verdict is Verdict.NO


async def test_of_a_provider_that_fails_no_other_word_of_userinfo_counts() -> None:
    world = World()
    world.says = OIDCError("the token end point", of_token_answer(503, None))
    world.userinfo_says = {"token": error(Verdict.LOG_IN_AGAIN)}
    standing = await world.ask()
    assert (standing.verdict, standing.revoked_at) == (Verdict.CANT_SAY, 0.0)
