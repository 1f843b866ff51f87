"""When somebody's turn is: evenly spread, at the same place in each round, however many they are; and its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jupyterhub import orm
from sqlalchemy.exc import OperationalError

from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import Members, Standing
from casa_hub.membership.rounds import Rounds, turn
from casa_hub.membership.settings import Keeper

TIMES = st.floats(1.6e9, 2e9)
LENGTHS = st.floats(0.5, 1e5)


@given(st.text(), TIMES, LENGTHS)
def test_the_next_turn_is_within_one_round(name: str, now: float, length: float) -> None:
    at = turn(name, now, length)
    assert now < at <= now + length + 1e-3


@given(st.text(), TIMES, LENGTHS)
def test_turns_follow_each_other_at_the_length_of_a_round(name: str, now: float, length: float) -> None:
    first = turn(name, now, length)
    assert abs(turn(name, first + length / 1000, length) - first - length) < 1e-3


@given(st.text(), TIMES, LENGTHS, st.floats(0, 1))
def test_a_restart_in_between_changes_nothing(name: str, now: float, length: float, part: float) -> None:
    at = turn(name, now, length)
    between = now + (at - now) * part * 0.999
    assert abs(turn(name, between, length) - at) < 1e-3 or at - between < 1e-3


def test_five_hundred_users_are_asked_evenly() -> None:
    length = 225.0
    seconds = Counter(int(turn(f"user-{number}", 1.7e9, length) - 1.7e9) for number in range(500))
    assert max(seconds.values()) <= 10  # 2.2 on average
    tens = Counter(int(turn(f"user-{number}", 1.7e9, length) - 1.7e9) // 25 for number in range(500))
    assert min(tens.values()) >= 30  # of 55 on average


class Hub:
    """As much of a hub as rounds need to end somebody's access, or not to."""

    def __init__(self) -> None:
        self.now = 1.7e9
        self.db = orm.new_session_factory("sqlite:///:memory:")()
        self.ended: list[str] = []
        self.weighing = False
        self.keeper = Keeper()
        self.rounds = self.make_rounds()

    def make_rounds(self) -> Rounds:
        self.members = Members(self.keeper, lambda: self.now)
        mass_loss: Any = SimpleNamespace(heard=lambda _: None, release=lambda _: None, resume=lambda: None)
        revocations: Any = SimpleNamespace(has_any=lambda _: True, end=self.end, resume=self.end_all)
        recheck: Any = SimpleNamespace()
        return Rounds(self, self.members, recheck, revocations, mass_loss)

    async def end_all(self) -> None:
        """Nothing has begun to end."""

    async def restarts(self) -> None:
        self.rounds = self.make_rounds()
        assert await self.rounds._resume()

    async def end(self, user: Any, reason: str, *, why: str) -> None:
        self.ended.append(why)

    async def hear(self, verdict: Verdict, last_yes: float, *, later: float, revoked_at: float = 0.0) -> list[str]:
        self.now += later
        session_id = "a log-in" if last_yes else ""
        standing = Standing(verdict, self.now, "no answer", last_yes, session_id, revoked_at=revoked_at)
        member = self.members["alice"]
        member.standing, member.weighed_since = standing, self.now if self.weighing else None
        await self.rounds._follow(SimpleNamespace(name="alice"), standing)
        return self.ended


async def test_after_a_sleep_the_first_time_out_ends_nobody_s_access() -> None:
    """The last "yes" is older than the grace because nobody asked: the network may come up a second later."""
    hub = Hub()
    last_yes = hub.now - hub.keeper.outage_grace - 3600
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=0) == []
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=30) == []
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=31) == ["outage"]


async def test_an_answer_ends_a_silence() -> None:
    hub = Hub()
    last_yes = hub.now - hub.keeper.outage_grace - 3600
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=0) == []
    assert await hub.hear(Verdict.YES, hub.now + 50, later=50) == []
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=50) == []


async def test_a_silence_of_the_whole_grace_ends_the_access_with_it() -> None:
    hub = Hub()
    last_yes = hub.now
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=300) == []
    assert await hub.hear(Verdict.CANT_SAY, last_yes, later=hub.keeper.outage_grace - 300) == ["outage"]


async def test_a_restart_gives_no_more_time_to_whom_no_log_in_is_known_of() -> None:
    """Whose crypt key was lost, say: each restart of the hub gave them another day."""
    hub = Hub()
    day = hub.keeper.membership_max_age
    await hub.restarts()
    assert await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=0) == []
    for _ in range(3):
        await hub.restarts()
        assert await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=day / 4) == []
    await hub.restarts()
    assert await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=day / 4) == ["age"]


async def test_a_log_in_ends_that_time_for_good() -> None:
    hub = Hub()
    day = hub.keeper.membership_max_age
    await hub.restarts()
    await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=0)
    await hub.hear(Verdict.YES, hub.now, later=60)
    await hub.restarts()
    assert await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=2 * day) == []
    assert await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=-2 * day) == []  # the clock is put back
    assert await hub.hear(Verdict.LOG_IN_AGAIN, 0.0, later=day) == ["age"]


async def test_what_an_earlier_hub_has_begun_to_end_is_gone_on_with_when_the_database_can_be_read() -> None:
    """It was locked at the hub's start: until the next one, somebody whose access had ended kept the server."""
    tries: list[int] = []
    resumed = asyncio.Event()

    async def resume() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("SELECT", {}, Exception("database is locked"))
        resumed.set()

    def rollback() -> None:
        raise OperationalError("ROLLBACK", {}, Exception("server closed the connection unexpectedly"))

    start: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    start.set_result(None)
    app = SimpleNamespace(_start_future=start, db=SimpleNamespace(rollback=rollback))
    revocations: Any = SimpleNamespace(resume=resume)
    rounds = Rounds(app, Members(Keeper(recheck_interval=1)), None, revocations, None)  # type: ignore[arg-type]
    rounds.begin()
    async with asyncio.timeout(10):
        await resumed.wait()
        await asyncio.gather(*rounds._background.tasks)  # another authenticator knows of no memberships
    assert len(tries) == 3


async def test_a_sign_in_that_was_taken_back_ends_after_its_grace() -> None:
    """A deleted account kept its servers for a day, as if its refresh token had only become too old."""
    hub = Hub()
    since = hub.now
    assert await hub.hear(Verdict.LOG_IN_AGAIN, hub.now - 60, later=3599, revoked_at=since) == []
    assert await hub.hear(Verdict.LOG_IN_AGAIN, hub.now - 60, later=1, revoked_at=since) == ["revoked"]


async def test_a_sign_in_that_was_taken_back_does_not_end_while_it_is_weighed() -> None:
    hub = Hub()
    hub.weighing = True
    assert await hub.hear(Verdict.LOG_IN_AGAIN, hub.now - 60, later=4000, revoked_at=hub.now) == []
