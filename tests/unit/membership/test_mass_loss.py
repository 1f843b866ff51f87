"""What becomes of a "no" once it is known whether it is one of many: the hub and its revocations are the test's."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from jupyterhub import orm

from casa_hub import metrics
from casa_hub.audit import Action, last_events
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership import mass_loss as module
from casa_hub.membership.mass_loss import MassLoss
from casa_hub.membership.member import Access, Members, Standing
from casa_hub.membership.policy import Refused
from casa_hub.membership.settings import Keeper

AGAIN = Verdict.LOG_IN_AGAIN


class Hub:
    """As much of a hub as the gate needs, with a server for each of its users; all are out unless a test says else."""

    def __init__(self, count: int) -> None:
        self.now = 1.7e9
        self.names = [f"user-{number}" for number in range(count)]
        self.users = {name: SimpleNamespace(name=name, active=True, api_tokens=[]) for name in self.names}
        self.tornado_settings: dict[str, Any] = {"app": self}
        self.log = logging.getLogger("hub")
        self.db = orm.new_session_factory("sqlite:///:memory:")()
        self.members = Members(Keeper(), lambda: self.now)
        self.began: list[str] = []
        #: Since when the sign-ins of those who are out are taken back; 0: they are no members instead.
        self.revoked_at = 0.0
        self.out = set(self.names)
        self.last_yes = dict.fromkeys(self.names, self.now - 60)
        self.gate = self.a_gate()

    def a_gate(self) -> MassLoss:
        revocations: Any = SimpleNamespace(has_any=lambda _: True, end=self.end)
        renewals: Any = SimpleNamespace(hand_out_token=self.hand_out_token)
        return MassLoss(self, self.members, self, revocations, renewals)  # type: ignore[arg-type]

    def restart(self) -> None:
        """Another process has the database, and asks everybody anew."""
        self.members = Members(Keeper(), lambda: self.now)
        self.gate = self.a_gate()
        self.gate.resume()

    def held(self) -> set[str]:
        return {held.username for held in self.gate.held()}

    def audited(self, action: Action) -> set[tuple[str, str]]:
        return {(event["username"], event.get("by", "")) for event in last_events(self) if event["action"] == action}  # type: ignore[arg-type]

    def last(self, name: str) -> Standing:
        if name in self.out and self.revoked_at:
            session = f"that of {name}"
            last_yes = self.last_yes[name]
            return Standing(AGAIN, self.now, "taken back", last_yes, session, revoked_at=self.revoked_at)
        verdict = Verdict.NO if name in self.out else Verdict.YES
        return Standing(verdict, self.now, "not in /cms", self.last_yes[name])

    async def of(self, user: Any, **_: Any) -> Standing:
        standing = self.last(user.name)
        self.hear(user.name, standing)
        return standing

    def hear(self, name: str, standing: Standing) -> None:
        self.members[name].standing = standing
        self.gate.heard(self.members[name])

    async def hand_out_token(self, user: Any) -> None:
        pass

    async def end(self, user: Any, reason: str, *, why: str, by: str) -> None:
        self.began.append(user.name)

    async def hears_all(self) -> None:
        """Of everybody's "no", until it has been weighed."""
        for name in sorted(self.out):
            self.hear(name, self.last(name))
        while self.gate._weighing is not None:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(50)
    monkeypatch.setattr(module, "watched", lambda _: dict.fromkeys(hub.names, True))
    return hub


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_confirmed_of_many_doesn_t_take_the_hub_s_loop_for_itself(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an access begins with a commit: five hundred in one turn held a hub for nine seconds."""
    await hub.hears_all()
    assert len(hub.gate.held()) == 50
    assert hub.gate.confirm("operator") == sorted(hub.names)
    await turns(20)
    assert len(hub.began) == 1
    monkeypatch.setattr(module, "RATE", 1e6)
    async with asyncio.timeout(10):
        while len(hub.began) < 50:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


async def test_who_is_heard_of_again_before_his_turn_to_leave_is_not_held_back_again(hub: Hub) -> None:
    await hub.hears_all()
    hub.gate.confirm()
    await hub.hears_all()
    assert hub.gate.held() == []


async def test_an_end_that_fails_is_no_reason_to_forget_the_no(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's database may be locked: the next "no" is weighed as the first was."""
    monkeypatch.setattr(module, "RATE", 1e6)
    hub.out = {hub.names[0]}
    failed = asyncio.Event()

    async def locked(*_: Any, **__: Any) -> None:
        failed.set()
        raise OSError("database is locked")

    end, hub.gate._revocations.end = hub.gate._revocations.end, locked  # type: ignore[method-assign]
    await hub.hears_all()
    await failed.wait()
    await turns(5)
    hub.gate._revocations.end = end  # type: ignore[method-assign]
    await hub.hears_all()
    async with asyncio.timeout(10):
        while not hub.began:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


async def test_those_who_left_long_ago_and_come_back_all_at_once_hold_nobody_back(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old cookies of last month's school; anybody with three of them could delay the end of a fourth by the grace."""
    monkeypatch.setattr(module, "RATE", 1e6)
    hub.out = set(hub.names[40:])
    for name in hub.out:
        hub.last_yes[name], hub.users[name].active = hub.now - 30 * 86400, False
    monkeypatch.setattr(module, "watched", lambda _: dict.fromkeys(hub.names[:40], True))
    await hub.hears_all()
    hub.out.add(hub.names[0])
    await hub.hears_all()
    assert hub.gate.held() == []
    async with asyncio.timeout(10):
        while set(hub.began) != hub.out:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


async def test_whose_server_ran_on_without_a_hub_is_weighed_with_the_others(hub: Hub) -> None:
    """After a long pause everybody's last "yes" is old: a mapper that is gone must still raise the alarm."""
    hub.last_yes = dict.fromkeys(hub.names, hub.now - 86400)
    await hub.hears_all()
    assert len(hub.gate.held()) == 50
    assert hub.began == []


async def test_a_hundred_sign_ins_taken_back_at_once_are_held_back(hub: Hub) -> None:
    """A provider that has lost its sessions, in a restart say, refuses every refresh token before its time."""
    hub.revoked_at = hub.now
    await hub.hears_all()
    assert len(hub.gate.held()) == 50
    standing = hub.last(hub.names[0])
    follows = hub.members.outcome(hub.members[hub.names[0]])
    assert (follows.access, follows.ends_at) == (Access.LOG_IN, standing.last_yes + Keeper().outage_grace)
    assert hub.began == []
    hub.out.clear()
    for name in hub.names:  # they have signed in again
        hub.hear(name, hub.last(name))
    assert hub.gate.held() == []


@pytest.mark.parametrize("revoked", [True, False], ids=["taken back", "a no"])
async def test_who_has_tokens_and_no_server_is_weighed_with_the_others(hub: Hub, revoked: bool) -> None:
    hub.revoked_at = hub.now if revoked else 0.0
    hub.last_yes = dict.fromkeys(hub.names, hub.now - 86400)
    for user in hub.users.values():
        user.active, user.api_tokens = False, ["one"]
    await hub.hears_all()
    assert len(hub.gate.held()) == 50


async def test_who_has_only_a_page_open_is_weighed_while_the_last_yes_counts(hub: Hub) -> None:
    for user in hub.users.values():
        user.active = False
    await hub.hears_all()
    assert len(hub.gate.held()) == 50


async def test_a_sign_in_taken_back_ends_at_once_only_where_its_grace_is_over(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RATE", 1e6)
    hub.revoked_at, hub.out = hub.now, {hub.names[0]}
    await hub.hears_all()
    await turns(20)
    assert hub.began == []  # the rounds end it in an hour
    hub.now += Keeper().revoked_grace
    await hub.hears_all()
    async with asyncio.timeout(10):
        while hub.began != [hub.names[0]]:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


async def test_what_an_operator_confirms_of_sign_ins_taken_back_ends_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.revoked_at = hub.now
    await hub.hears_all()
    monkeypatch.setattr(module, "RATE", 1e6)
    hub.gate.confirm("operator")
    async with asyncio.timeout(10):
        while set(hub.began) != set(hub.names):  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


async def test_of_what_is_held_back_an_operator_confirms_some_and_the_others_stay(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.hears_all()
    monkeypatch.setattr(module, "RATE", 1e6)
    assert hub.gate.confirm("operator", ["user-7", "user-3", "nobody"]) == ["user-3", "user-7"]
    assert hub.held() == set(hub.names) - {"user-3", "user-7"}
    async with asyncio.timeout(10):
        while len(hub.began) < 2:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)
    assert set(hub.began) == {"user-3", "user-7"}
    assert hub.audited(Action.CONFIRMED) == {("user-3", "operator"), ("user-7", "operator")}


async def test_what_is_ignored_goes_on_for_another_grace_and_no_longer(hub: Hub) -> None:
    await hub.hears_all()
    hub.now += 3 * 3600
    assert hub.gate.ignore("operator", ["user-3", "nobody"]) == ["user-3"]
    assert hub.audited(Action.IGNORED) == {("user-3", "operator")}
    until = {held.username: (held.until, held.ignored) for held in hub.gate.held()}
    grace, last_yes = Keeper().outage_grace, hub.last_yes["user-3"]
    assert until["user-3"] == (hub.now + grace, True)
    assert until["user-4"] == (last_yes + grace, False)
    hub.now += grace
    assert hub.members.outcome(hub.members["user-3"]).access is Access.OFF
    for _ in range(20):  # however often
        hub.gate.ignore("operator", ["user-3"])
        hub.now += 3600
    assert hub.members.outcome(hub.members["user-3"]).access is Access.OFF


async def test_a_restart_asks_nobody_to_ignore_it_again(hub: Hub) -> None:
    """The grace since the last "yes" is over by then: all of them would be out because of the restart."""
    await hub.hears_all()
    hub.gate.ignore("operator", hub.names)
    hub.now += Keeper().outage_grace - 10
    hub.restart()
    await hub.hears_all()
    assert hub.held() == set(hub.names)
    assert {hub.members.outcome(hub.members[name]).access for name in hub.names} == {Access.ON}
    assert hub.began == []


async def test_what_was_ignored_of_one_person_in_an_earlier_hub_isn_t_weighed_as_the_only_one(hub: Hub) -> None:
    await hub.hears_all()
    hub.gate.ignore("operator", ["user-3"])
    hub.restart()
    hub.out = {"user-3"}
    await hub.hears_all()
    await turns(20)
    assert (hub.held(), hub.began) == ({"user-3"}, [])


async def test_a_yes_ends_what_was_ignored_for_a_later_hub_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 1e6)
    await hub.hears_all()
    hub.gate.ignore("operator", hub.names)
    hub.out.clear()
    for name in hub.names:
        hub.hear(name, hub.last(name))
    hub.restart()
    hub.out = {"user-3"}
    await hub.hears_all()
    async with asyncio.timeout(10):
        while hub.began != ["user-3"]:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)


async def test_what_was_ignored_long_ago_is_forgotten(hub: Hub) -> None:
    await hub.hears_all()
    hub.gate.ignore("operator", hub.names)
    hub.now += 2 * 86400
    hub.restart()
    assert {member.ignored_at for member in hub.members} <= {0.0}
    hub.now -= 86400
    hub.restart()  # not by the table either
    assert {member.ignored_at for member in hub.members} <= {0.0}


def refused_groups(hub: Hub, name: str, withheld: Literal["scope", "profile"]) -> None:
    decision = Refused("the scope wasn't granted", frozenset(), claim_missing=True, claim_withheld=withheld)
    standing = Standing(Verdict.CANT_SAY, hub.now, decision.reason, hub.now - 60, "one", decision, our_fault=True)
    hub.hear(name, standing)


async def test_groups_that_are_kept_from_one_person_are_no_alarm_for_everybody(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """INDIGO IAM's scope policy denied one person the scope, and the log said that nobody could be confirmed."""
    refused_groups(hub, hub.names[0], "scope")
    refused_groups(hub, hub.names[0], "scope")
    assert "nobody's membership" not in caplog.text
    refused_groups(hub, hub.names[1], "scope")
    refused_groups(hub, hub.names[2], "scope")
    assert caplog.text.count("nobody's membership") == 1


async def test_a_client_that_lost_its_profile_is_an_alarm_at_once(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    refused_groups(hub, hub.names[0], "profile")
    assert "nobody's membership" in caplog.text


async def test_a_client_that_is_refused_and_what_is_held_back_are_counted_apart(hub: Hub) -> None:
    """One gauge counted both, so an alarm about one of them hid the other, and sent operators to the wrong page."""

    def counted() -> tuple[float, float]:
        return metrics.HELD_BACK._value.get(), metrics.CLIENT_REFUSED._value.get()

    refused = Standing(Verdict.CANT_SAY, hub.now, "invalid_client", hub.now - 60, our_fault=True)
    hub.hear("user-0", refused)
    assert counted() == (0, 1)
    assert [name for name, _ in hub.gate.client_refused()] == ["user-0"]
    await hub.hears_all()
    assert counted() == (50, 0)
    hub.hear("user-0", refused)
    assert counted() == (50, 1)  # heard of by two ways, until one of them is settled
    for name in hub.names:
        hub.gate.release(name)
    assert counted() == (0, 0)
