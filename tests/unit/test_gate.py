"""What becomes of a "no" once it is known whether it is one of many: the hub and its departures are the test's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from casa_hub.identity.standing import Standing
from casa_hub.identity.verdicts import Verdict
from casa_hub.keeper import gate as module
from casa_hub.keeper.gate import Gate
from casa_hub.keeper.times import Keeper


class Hub:
    """As much of a hub as the gate needs, with a server for each of its users; all are out unless a test says else."""

    def __init__(self, count: int) -> None:
        self.now = 1.7e9
        self.names = [f"user-{number}" for number in range(count)]
        self.users = {name: SimpleNamespace(name=name, active=True, api_tokens=[]) for name in self.names}
        self.tornado_settings: dict[str, Any] = {}
        self.authenticator = SimpleNamespace(clock=lambda: self.now, standings=self, hand_out_token=self.hand_out)
        self.began: list[str] = []
        self.out = set(self.names)
        self.last_yes = dict.fromkeys(self.names, self.now - 60)
        departures: Any = SimpleNamespace(has_any=lambda _: True, ending=lambda *_: "", end=self.end)
        self.gate = Gate(self, Keeper(), departures)
        self.db: Any = None

    def last(self, name: str) -> Standing:
        verdict = Verdict.NO if name in self.out else Verdict.YES
        return Standing(verdict, self.now, "not in /cms", self.last_yes[name])

    async def of(self, user: Any, **_: Any) -> Standing:
        standing = self.last(user.name)
        self.gate.heard(user.name, standing)
        return standing

    async def hand_out(self, user: Any) -> None:
        pass

    async def end(self, user: Any, reason: str, *, why: str, by: str) -> None:
        self.began.append(user.name)

    async def hears_all(self) -> None:
        """Of everybody's "no", until it has been weighed."""
        for name in sorted(self.out):
            self.gate.heard(name, self.last(name))
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

    end, hub.gate._departures.end = hub.gate._departures.end, locked  # type: ignore[method-assign]
    await hub.hears_all()
    await failed.wait()
    await turns(5)
    hub.gate._departures.end = end  # type: ignore[method-assign]
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
