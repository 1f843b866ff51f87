"""What running servers lack comes back, and to whom nothing comes; by a clock that jumps from one timer to the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY
from traitlets.config import Config

from casa_hub.errors import DeliveryError
from casa_hub.facility import Facility
from casa_hub.naming import Server
from casa_hub.servers import mending as module
from casa_hub.servers.mending import Mending
from casa_hub.servers.renewals import Renewals
from tests.support.jumping import JumpingLoop
from tests.support.running_server import App, RunningServer, Spawner
from tests.support.waiting import until_async


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    class Policy(asyncio.DefaultEventLoopPolicy):
        _loop_factory = JumpingLoop

    return Policy()


@pytest.fixture(autouse=True)
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=now))


def now() -> float:
    return asyncio.get_running_loop().time()


class Revocations:
    """As much as is asked of it."""

    def __init__(self) -> None:
        self.resumed = True
        self.ending: set[str] = set()

    def may_end(self, user: SimpleNamespace, name: str) -> bool:
        assert name == ""
        return not self.resumed or user.name in self.ending


class Hub:
    """A hub with servers, and what brings back what they lack."""

    def __init__(self) -> None:
        self.facility = Facility(config=Config())
        self.app = App()
        self.revocations = Revocations()
        self.renewals = Renewals(self.app, self.facility)
        self.mending = Mending(self.app, self.revocations.may_end, self.renewals)

    def add(self, user: str = "ada") -> tuple[Spawner, RunningServer]:
        running = RunningServer(self.facility, Server("", user), f"{len(self.app.users):032x}")
        return self.app.add(running), running

    def missing(self) -> list[tuple[str, str]]:
        return [(one.what, one.why) for one in self.mending.missing()]


@pytest.fixture
def hub() -> Hub:
    return Hub()


async def until(condition: Callable[[], object], seconds: float = 120) -> float:
    """Seconds that it took."""
    begun = now()
    await until_async(condition, seconds)
    return now() - begun


def metric(what: str) -> float | None:
    return REGISTRY.get_sample_value("casa_hub_missing", {"what": what})


def refusing(running: RunningServer) -> Callable[[], None]:
    """Nothing can be brought until what this returns is called."""

    def fault() -> None:
        raise DeliveryError("Service x", "not here", "Ask.")

    def works() -> None:
        running.fault = lambda: None

    running.fault = fault
    return works


async def test_what_was_deleted_comes_back_within_a_minute(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    _, running = hub.add()
    hub.mending.begin()
    await asyncio.sleep(100)
    assert running.brought == [], "it lacks nothing"
    running.gone = {"Secret", "Service"}
    with caplog.at_level(logging.WARNING):
        assert await until(lambda: not running.gone) <= 60
    assert [set(one) for one in running.brought] == [{"Secret", "Service"}]
    assert "has Secret again, which was missing" in caplog.text
    assert hub.missing() == []
    running.gone = {"Secret"}
    assert await until(lambda: not running.gone) <= 60


async def test_what_a_start_could_not_have_is_tried_again_ever_more_rarely_and_told_until_it_is_there(hub: Hub) -> None:
    spawner, running = hub.add()
    hub.mending.begin()
    running.gone, works = {"Service"}, refusing(running)
    hub.mending.started(spawner, {"Service": "a conflict"})
    assert hub.missing() == [("Service", "a conflict")]
    await until(lambda: running.brought, 3)
    await asyncio.sleep(3600)
    assert 10 <= len(running.brought) <= 16
    assert hub.missing() == [("Service", "Service x: not here. Ask.")]
    assert metric("Service") == 1
    works()
    assert await until(lambda: not running.gone, 700) <= 600
    await until(lambda: hub.missing() == [])
    assert metric("Service") == 0


async def test_the_next_hub_finds_what_a_start_could_not_have(hub: Hub) -> None:
    _, running = hub.add()
    running.gone = {"Service"}
    hub.mending.begin()
    assert await until(lambda: not running.gone) <= 60


async def test_nothing_comes_to_whose_access_ends(hub: Hub) -> None:
    _, leaving = hub.add("ada")
    _, staying = hub.add("bea")
    hub.revocations.ending = {"ada"}
    leaving.gone, staying.gone = {"Secret"}, {"Secret"}
    hub.mending.begin()
    await until(lambda: not staying.gone)
    await asyncio.sleep(1000)
    assert leaving.brought == []


async def test_nothing_comes_before_it_is_known_whose_access_an_earlier_hub_has_begun_to_end(hub: Hub) -> None:
    _, running = hub.add()
    running.gone = {"Secret"}
    hub.revocations.resumed = False
    hub.mending.begin()
    await asyncio.sleep(1000)
    assert running.brought == []
    hub.revocations.resumed = True
    assert await until(lambda: not running.gone) <= 60


async def test_an_access_that_ends_between_two_tries_ends_the_tries(hub: Hub) -> None:
    spawner, running = hub.add()
    running.gone, _ = {"Service"}, refusing(running)
    hub.mending.begin()
    hub.mending.started(spawner, {"Service": "a conflict"})
    await until(lambda: running.brought)
    hub.revocations.ending = {"ada"}
    tries = len(running.brought)
    await asyncio.sleep(1000)
    assert len(running.brought) == tries
    assert hub.missing() == []


async def test_a_server_that_was_withdrawn_or_stops_gets_nothing(hub: Hub) -> None:
    _, withdrawn = hub.add("ada")
    stopping, stops = hub.add("bea")
    await withdrawn.withdraw()
    withdrawn.running_start, withdrawn.gone = None, {"Secret"}
    stopping.ready, stopping.pending, stops.gone = False, True, {"Secret"}
    hub.mending.begin()
    await asyncio.sleep(1000)
    assert withdrawn.brought == stops.brought == []


async def test_a_server_whose_stop_has_begun_between_two_tries_gets_nothing(hub: Hub) -> None:
    spawner, running = hub.add()
    running.gone, works = {"Service"}, refusing(running)
    hub.mending.begin()
    hub.mending.started(spawner, {"Service": "a conflict"})
    await until(lambda: running.brought)
    spawner.pending = True
    works()
    tries = len(running.brought)
    await asyncio.sleep(100)
    assert len(running.brought) == tries


async def test_a_fault_of_a_third_party_ends_nothing(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    spawner, running = hub.add()
    running.gone = {"Service"}
    faults = iter([RuntimeError("SECRET")])

    def fault() -> None:
        for error in faults:
            raise error

    running.fault = fault
    hub.mending.begin()
    hub.mending.started(spawner, {"Service": "a conflict"})
    assert await until(lambda: not running.gone) <= 10
    assert not any("SECRET" in record.getMessage() for record in caplog.records)


async def test_a_server_that_cannot_be_looked_at_hides_no_other(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    _, odd = hub.add("ada")
    _, running = hub.add("bea")

    async def fails(since: float) -> list[str]:
        raise RuntimeError("SECRET")

    odd.lacks = fails  # type: ignore[method-assign]
    running.gone = {"Service"}
    hub.mending.begin()
    assert await until(lambda: not running.gone) <= 60
    await asyncio.sleep(300)
    assert sum("It is unknown what" in record.getMessage() for record in caplog.records) == 1
