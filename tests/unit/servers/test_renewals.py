"""Which server is renewed when, and what follows when that fails; by a clock that jumps from one timer to the next."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import ClassVar

import pytest
from prometheus_client import REGISTRY
from traitlets import Bool, Float
from traitlets.config import Config

from casa_hub import minters as minters_module
from casa_hub.credentials.base import AccessToken, Credential, Minter, Renewal, Request
from casa_hub.credentials.fetching import Fetch, Fetched, FetchError, Outcomes
from casa_hub.errors import CredentialError, DeliveryError
from casa_hub.facility import Facility
from casa_hub.naming import Server
from casa_hub.servers import renewal_schedule
from casa_hub.servers import renewals as module
from casa_hub.servers.renewals import Renewals
from casa_hub.servers.running import Holding
from tests.support.jumping import JumpingLoop
from tests.support.running_server import App, RunningServer, Spawner
from tests.support.waiting import until_async

LIFE = 0.6
#: Epoch seconds.
BEGIN = 1_800_000_000.0


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    class Policy(asyncio.DefaultEventLoopPolicy):
        _loop_factory = JumpingLoop

    return Policy()


def clock() -> float:
    """Of the hub and of everybody in it."""
    return BEGIN + asyncio.get_running_loop().time()


def now() -> datetime:
    return datetime.fromtimestamp(clock(), UTC)


class Token(Minter):
    """A credential of one file."""

    title = "Token"
    lifetime = Float(LIFE).tag(config=True)
    broken = Bool(False)
    minted: ClassVar[int] = 0

    def mint(self, request: Request) -> Credential:
        if self.broken:
            raise CredentialError("key", "can't be read", "Make it readable.")
        Token.minted += 1
        return Credential(
            name=self.name,
            files={self.name: str(Token.minted).encode()},
            issued_at=request.now,
            expires_at=self.end(request),
            identifiers={"jti": str(Token.minted)},
        )

    def end(self, request: Request) -> datetime | None:
        return request.now + timedelta(seconds=self.lifetime)


class Pass(Token):
    name = "pass"


class Badge(Token):
    name = "badge"


class Certificate(Token):
    name = "certificate"
    renewal: ClassVar[Renewal] = "request"

    def end(self, request: Request) -> datetime:
        return datetime(2100, 1, 1, tzinfo=UTC)


class Own(Token):
    """The user's own token."""

    name = "own"
    renewal: ClassVar[Renewal] = "token"

    def mint(self, request: Request) -> Credential:
        if request.token is None:
            raise CredentialError("token", "there is none", "Log in.")
        return super().mint(request)

    def end(self, request: Request) -> datetime | None:
        return request.token.expires_at if request.token is not None else None


class Pulled(Token):
    """What is fetched."""

    name = "pulled"

    @property
    def fetch(self) -> Fetch:
        return Fetch(f"a token for {self.name}", lambda _: fetched())

    def mint(self, request: Request) -> Credential:
        found = request.fetched_for(self.name)
        return replace(super().mint(request), issued_at=found.at, expires_at=found.expires_at)


class Hauled(Pulled):
    name = "hauled"


def fetched(life: float = LIFE) -> Fetched:
    return Fetched("very-secret", now(), now() + timedelta(seconds=life))


class Hub:
    """A Keeper, and servers for it."""

    def __init__(self, *credentials: str) -> None:
        self.facility = Facility(config=Config(Facility={"credentials": list(credentials)}))
        self.app = App()
        self.renewals = Renewals(self.app, self.facility, clock)

    def add(
        self, user: str = "ada", token: AccessToken | None = None, brought: Outcomes | None = None
    ) -> tuple[Spawner, RunningServer]:
        start_id = f"{len(self.app.users):032x}"
        running = RunningServer(self.facility, Server("", user), start_id, token, clock, fetched=brought)
        return self.app.add(running), running

    def restart(self) -> None:
        for task in self.renewals._background.tasks:
            task.cancel()
        self.renewals = Renewals(self.app, self.facility, clock)
        self.renewals.begin()

    def minter(self, name: str) -> Token:
        minter = self.facility.minters[name]
        assert isinstance(minter, Token)
        return minter


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    points = [
        EntryPoint(cls.name, f"{__name__}:{cls.__name__}", minters_module.GROUP)
        for cls in (Pass, Badge, Certificate, Own, Pulled, Hauled)
    ]
    monkeypatch.setattr(minters_module, "entry_points", lambda group: points)
    monkeypatch.setattr(
        module,
        "time",
        SimpleNamespace(
            monotonic=lambda: asyncio.get_running_loop().time(), strftime=time.strftime, gmtime=time.gmtime
        ),
    )
    monkeypatch.setattr(renewal_schedule, "_SHORTEST", 0.02)
    monkeypatch.setattr(module, "_FIRST_LOOKS", 0.05)
    monkeypatch.setattr(module, "_PACE", 0.001)


@pytest.fixture
def make() -> Callable[..., Hub]:
    """Makes hubs whose Keeper works, with these credentials."""

    def hub(*credentials: str) -> Hub:
        made = Hub(*credentials)
        made.renewals.begin()
        return made

    return hub


def order(running: RunningServer) -> int:
    return int(running.record["order"])


def is_of_order(running: RunningServer, number: int) -> bool:
    return order(running) == number


def expires(running: RunningServer, name: str = "pass") -> datetime:
    return datetime.fromisoformat(running.record["credentials"][name]["expires_at"])


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the Keeper has to say; the audit has its own logger."""
    return [record for record in caplog.records if record.name == "hub"]


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


# -- by time


async def test_a_server_is_renewed_again_and_again_before_anything_expires(make: Callable[..., Hub]) -> None:
    hub = make("pass", "badge")
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    for number in range(1, 4):
        end = expires(running)
        await until_async(partial(is_of_order, running, number))
        assert now() < end
        assert expires(running) > end
    assert running.asked == [("pass", "badge")] * 3, "one change of files for both"
    assert running.looked == 3


async def test_nothing_is_done_while_nothing_is_due(make: Callable[..., Hub]) -> None:
    hub = make("pass")
    hub.minter("pass").lifetime = 3600
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    await asyncio.sleep(0.3)
    assert (running.asked, running.looked) == ([], 0)


async def test_what_is_not_renewed_by_time_stays(make: Callable[..., Hub]) -> None:
    hub = make("pass", "certificate", "own")
    spawner, running = hub.add(token=AccessToken("t", now() + timedelta(seconds=LIFE)))
    before = dict(running.files)
    hub.renewals.started(spawner)
    await until_async(lambda: order(running) == 2)
    assert {name for name in before if running.files[name] != before[name]} == {"pass"}
    assert set(running.asked) == {("pass",)}


async def test_a_server_of_an_earlier_hub_is_found_and_asked_what_it_holds_when_something_may_be_due(
    make: Callable[..., Hub],
) -> None:
    hub = make("pass")
    _, running = hub.add()
    await until_async(lambda: order(running) == 1)
    hub.restart()
    looked = running.looked
    await until_async(lambda: order(running) == 2)
    # Once when the one of its start would have been due, which was renewed long since; once when this one is.
    assert running.looked - looked <= 2
    assert running.asked == [("pass",)] * 2


async def test_a_server_that_has_started_anew_is_another_one(make: Callable[..., Hub]) -> None:
    hub = make("pass")
    spawner, first = hub.add()
    hub.renewals.started(spawner)
    await until_async(lambda: order(first) == 1)
    spawner.casa_server = second = RunningServer(hub.facility, first.server, "f" * 32, clock=clock)
    first.running_start = None
    hub.renewals.started(spawner)
    await until_async(lambda: order(second) == 2)
    assert order(first) == 1


@pytest.mark.parametrize("end", ["stopped", "withdrawn", "gone"])
async def test_what_has_ended_is_not_renewed(make: Callable[..., Hub], end: str) -> None:
    hub = make("pass")
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    await until_async(lambda: order(running) == 1)
    if end == "stopped":
        spawner.ready, running.running_start = False, None
    elif end == "withdrawn":
        await running.withdraw()
    else:
        hub.app.users.clear()
    await asyncio.sleep(2 * LIFE)
    assert order(running) == 1
    assert len(running.asked) == 1


async def test_a_hundred_due_at_once_are_renewed_four_at_a_time(make: Callable[..., Hub]) -> None:
    hub = make("pass")
    hub.minter("pass").lifetime = 2
    busy, most = 0, 0

    class Slow(RunningServer):
        async def renew(
            self, names: Collection[str], *, force: bool = False, fetched: Outcomes | None = None
        ) -> Holding | None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.01)
            busy -= 1
            return await super().renew(names, force=force, fetched=fetched)

    servers = [Slow(hub.facility, Server("", f"user-{number}"), f"{number:032x}", clock=clock) for number in range(100)]
    for running in servers:
        hub.renewals.started(hub.app.add(running))
    await until_async(lambda: all(order(running) == 1 for running in servers))
    assert most == 4


# -- what fails


async def test_what_cannot_be_minted_stays_is_tried_again_and_told_twice(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    hub = make("pass", "badge")
    spawner, running = hub.add()
    hub.minter("pass").broken = True
    before = running.files["pass"]
    with caplog.at_level(logging.INFO):
        hub.renewals.started(spawner)
        await until_async(lambda: metric("casa_hub_credentials_overdue", credential="pass") == 1)
        assert metric("casa_hub_credentials_overdue", credential="badge") == 0
        await until_async(lambda: [one.levelname for one in told(caplog)] == ["WARNING", "ERROR"])
        assert running.files["pass"] == before
        hub.minter("pass").broken = False
        await until_async(lambda: running.files["pass"] != before)
        await until_async(lambda: metric("casa_hub_credentials_overdue", credential="pass") == 0)
    warning, error, after_all = (one.getMessage() for one in told(caplog))
    assert 'No new pass for ["", "ada", ""], it keeps the one it has, which is valid until ' in warning
    assert "key: can't be read. Make it readable." in warning
    assert "expires at" in error
    assert "there is no new one: key: can't be read" in error
    assert "renewed after all" in after_all
    assert running.record["credentials"]["badge"]["order"] >= 1, "the other one was renewed as ever"


async def test_a_delivery_that_fails_is_tried_again(make: Callable[..., Hub], caplog: pytest.LogCaptureFixture) -> None:
    hub = make("pass")
    spawner, running = hub.add()
    errors = iter([DeliveryError("Secret x", "no answer", ""), RuntimeError("SECRET"), None])

    def fault() -> None:
        error = next(errors, None)
        if error is not None:
            raise error

    running.fault = fault
    hub.renewals.started(spawner)
    end = expires(running)
    await until_async(lambda: order(running) == 1)
    assert now() < end
    assert "Secret x: no answer" in caplog.text


async def test_a_shorter_lifetime_is_no_failure(make: Callable[..., Hub], caplog: pytest.LogCaptureFixture) -> None:
    hub = make("pass")
    spawner, running = hub.add()
    hub.minter("pass").lifetime = LIFE / 6
    before = expires(running)
    hub.renewals.started(spawner)
    await until_async(lambda: order(running) == 1, seconds=10)
    assert expires(running) > before
    assert told(caplog) == []


async def test_what_never_lasts_longer_is_told(make: Callable[..., Hub], caplog: pytest.LogCaptureFixture) -> None:
    """As a token that an operator keeps in a file, and has forgotten."""
    hub = make("pass")
    spawner, running = hub.add()
    end = expires(running)
    hub.minter("pass").end = lambda request: end  # type: ignore[method-assign]
    hub.renewals.started(spawner)
    await until_async(lambda: "there is no new one: pass: a new one would be valid until" in caplog.text)
    assert order(running) == 0


async def test_a_server_of_which_nothing_is_known_is_counted_and_told_once(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    hub = make("pass")
    _, running = hub.add()
    running.at_start = running.text = running.text.replace('"version": 2', '"version": 3')
    await until_async(lambda: metric("casa_hub_servers_unkept") == 1)
    await asyncio.sleep(2 * LIFE)
    assert running.asked == []
    [line] = told(caplog)
    assert (
        'No credential of the server ["", "ada", ""] is renewed: its record was written by a newer' in line.getMessage()
    )
    report = await hub.renewals.renew_now()
    assert list(report.failed) == [running.server.identity]
    assert "its record was written by a newer version" in report.failed[running.server.identity]
    running.running_start = None
    hub.app.users.clear()
    await until_async(lambda: metric("casa_hub_servers_unkept") == 0)


async def test_a_credential_whose_entry_was_edited_is_told_of_and_the_others_are_renewed(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    hub = make("pass", "badge")
    _, running = hub.add()
    record = running.record
    record["credentials"]["badge"]["issued_at"] = "yesterday"
    running.at_start = running.text = json.dumps(record)
    await until_async(lambda: running.record["credentials"]["pass"]["order"] >= 2)
    [line] = told(caplog)
    assert 'badge of the server ["", "ada", ""] is not renewed: its entry' in line.getMessage()
    assert running.record["credentials"]["badge"] == record["credentials"]["badge"]
    assert metric("casa_hub_servers_unkept") == 0
    await until_async(lambda: metric("casa_hub_credentials_overdue", credential="badge") == 1)
    assert [(one.credential, one.server) for one in hub.renewals.overdue()] == [("badge", running.server.identity)]
    report = await hub.renewals.renew_now()
    assert "badge: " in report.failed[running.server.identity]


async def test_a_server_whose_newest_record_can_be_read_is_renewed(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    """The pod's annotation was edited, its Secret's wasn't."""
    hub = make("pass")
    _, running = hub.add()
    running.at_start = "{}"
    await until_async(lambda: order(running) >= 1)
    assert told(caplog) == []


async def test_what_is_nearest_to_its_end_is_shown(make: Callable[..., Hub]) -> None:
    hub = make("pass")
    hub.minter("pass").lifetime = 3600
    hub.add()
    hub.minter("pass").lifetime = 3
    hub.add("bea")
    await asyncio.sleep(0.4)
    left = metric("casa_hub_credential_life_left_ratio", credential="pass")
    assert left is not None
    assert 0.5 < left < 0.95
    hub.app.users.clear()
    await until_async(lambda: metric("casa_hub_credential_life_left_ratio", credential="pass") is None)


# -- what comes by itself


def token(seconds: float = 3600) -> AccessToken:
    return AccessToken("t", now() + timedelta(seconds=seconds))


async def test_a_new_token_is_brought_though_it_lives_shorter(make: Callable[..., Hub]) -> None:
    hub = make("pass", "own")
    spawner, running = hub.add(token=token())
    hub.renewals.started(spawner)
    running.token = token(60)
    await hub.renewals.bring(spawner, ["own", "no such"])
    assert expires(running, "own") == running.token.expires_at
    earlier = running.record["credentials"]["own"]["earlier"]
    assert len(earlier) == 1, "the one before is still valid, and may have to be blocked"


async def test_tokens_that_come_again_and_again_leave_nothing_behind(make: Callable[..., Hub]) -> None:
    hub = make("pass", "own")
    hub.minter("pass").lifetime = 3600
    spawner, running = hub.add(token=token())
    hub.renewals.started(spawner)
    for _ in range(20):
        await hub.renewals.bring(spawner, ["own"])
    assert order(running) == 20
    assert len(hub.renewals._due) == 1


async def test_a_token_that_could_not_be_delivered_is_delivered_later(make: Callable[..., Hub]) -> None:
    hub = make("own")
    spawner, running = hub.add(token=token(1))
    hub.renewals.started(spawner)
    running.token = token()
    errors = iter([DeliveryError("Secret x", "no answer", "")])

    def fault() -> None:
        for error in errors:
            raise error

    running.fault = fault
    await hub.renewals.bring(spawner, ["own"])
    assert order(running) == 0
    await until_async(lambda: order(running) == 1)


async def test_without_a_token_nobody_tries_again(make: Callable[..., Hub], caplog: pytest.LogCaptureFixture) -> None:
    hub = make("own")
    spawner, running = hub.add(token=token(LIFE))
    hub.renewals.started(spawner)
    running.token = None
    await hub.renewals.bring(spawner, ["own"])
    await asyncio.sleep(LIFE)
    assert len(running.asked) == 1
    assert len(told(caplog)) == 1


async def test_a_token_that_an_earlier_hub_did_not_live_to_deliver_is_delivered(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    hub = make("own")
    _, newer = hub.add("ada", token(60))
    _, same = hub.add("bea", token(60))
    _, none = hub.add("eve", token(60))
    newer.token, none.token = token(), None
    await until_async(lambda: order(newer) == 1 and same.asked and none.asked)
    await asyncio.sleep(0.2)
    assert (order(same), order(none)) == (0, 0)
    assert len(same.asked) == len(none.asked) == 1
    assert told(caplog) == []


async def test_it_is_delivered_also_where_the_earlier_hub_has_brought_others_before(make: Callable[..., Hub]) -> None:
    """What a server held at its start, which is all that is known at first, tells of an older one."""
    hub = make("own")
    running = RunningServer(hub.facility, Server("", "ada"), "1" * 32, token(60), clock)
    running.token = token(120)
    await running.renew(["own"])
    running.token = token()
    hub.app.add(running)
    await until_async(lambda: order(running) == 2)


async def test_a_token_whose_entry_was_edited_is_not_asked_for(make: Callable[..., Hub]) -> None:
    hub = make("own")
    _, running = hub.add(token=token())
    record = running.record
    record["credentials"]["own"]["issued_at"] = "yesterday"
    running.at_start = running.text = json.dumps(record)
    await until_async(hub.renewals.overdue)
    await asyncio.sleep(60)
    assert running.asked == []


async def test_a_token_that_could_not_be_looked_for_and_is_the_newest_is_not_overdue(make: Callable[..., Hub]) -> None:
    hub = make("own")
    _, running = hub.add(token=token(10**6))

    def fault() -> None:
        raise DeliveryError("Secret x", "no answer", "")

    running.fault = fault
    await until_async(hub.renewals.overdue)
    running.fault = lambda: None
    await until_async(lambda: running.asked and not hub.renewals.overdue(), 3600)


# -- what is missing


def lacking(hub: Hub) -> list[tuple[str, str]]:
    return [(one.server, one.what) for one in hub.renewals.missing()]


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_could_not_be_minted_at_the_start_comes_while_the_server_runs(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture, restarted: bool
) -> None:
    hub = make("pass", "certificate")
    hub.minter("pass").lifetime = 3600
    hub.minter("certificate").broken = True
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    if restarted:
        hub.restart()
        await until_async(hub.renewals.missing)
    [one] = hub.renewals.missing()
    assert (one.server, one.what) == (running.server.identity, "certificate")
    assert "key: can't be read. Make it readable." in one.why
    assert hub.renewals.overdue() == [], "what never came is not late"
    with caplog.at_level(logging.INFO):
        await until_async(lambda: len(running.asked) == 3, 60)
        hub.minter("certificate").broken = False
        await until_async(lambda: "certificate" in running.files, 60)
        await until_async(lambda: lacking(hub) == [])
    assert set(running.asked) == {("certificate",)}
    assert running.record["missing"] == {}
    assert "certificate of" in caplog.text
    assert "which was missing, is there now" in caplog.text
    await asyncio.sleep(60)
    assert len(running.asked) == 4, "it is tried again though it is there"


async def test_the_pauses_between_the_tries_for_what_is_missing_grow(make: Callable[..., Hub]) -> None:
    hub = make("pass", "badge")
    hub.minter("pass").lifetime = 10**6
    hub.minter("badge").broken = True
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    await asyncio.sleep(3600)
    # 2 + 4 + 8 ... + 512 seconds are a quarter of an hour; then one in ten minutes.
    assert 10 <= len(running.asked) <= 16


async def test_another_reason_for_which_something_is_missing_is_told_once(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    hub = make("own")
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    running.token = token(10**6)

    def fault() -> None:
        raise DeliveryError("Secret x", "not here", "Ask.")

    running.fault = fault
    await hub.renewals.bring(spawner, ["own"])
    await asyncio.sleep(600)
    [line] = [one.getMessage() for one in told(caplog)]
    assert "No new own for" in line
    assert "it runs without: Secret x: not here. Ask." in line
    assert [one.why for one in hub.renewals.missing()] == ["Secret x: not here. Ask."]


async def test_a_token_that_is_missing_comes_with_its_user_s_next_one(make: Callable[..., Hub]) -> None:
    hub = make("own")
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    await asyncio.sleep(600)
    assert running.asked == [], "nobody but the provider can have one"
    assert lacking(hub) == [(running.server.identity, "own")]
    running.token = token()
    await hub.renewals.bring(spawner, ["own"])
    assert "own" in running.files
    assert lacking(hub) == []


# -- on request


async def test_all_are_renewed_at_once_on_request(make: Callable[..., Hub]) -> None:
    hub = make("pass", "certificate", "own")
    servers = [hub.add(f"user-{number}", token() if number % 2 else None)[1] for number in range(10)]
    before = [dict(running.files) for running in servers]
    report = await hub.renewals.renew_now()
    assert sorted(report.renewed) == sorted(running.server.identity for running in servers)
    assert report.failed == {}
    for old, running in zip(before, servers, strict=True):
        assert all(running.files[name] != old[name] for name in old)


async def test_only_these_credentials_of_these_users_are_renewed(make: Callable[..., Hub]) -> None:
    hub = make("pass", "badge")
    servers = {user: hub.add(user)[1] for user in ("ada", "bea")}
    report = await hub.renewals.renew_now(["ada"], ["badge"])
    assert report.renewed == (servers["ada"].server.identity,)
    assert servers["ada"].asked == [("badge",)]
    assert servers["bea"].asked == []


async def test_a_request_tells_what_failed_and_it_is_tried_again(make: Callable[..., Hub]) -> None:
    hub = make("pass", "badge")
    hub.minter("badge").lifetime = hub.minter("pass").lifetime = 5
    _, good = hub.add("ada")
    _, bad = hub.add("bea")
    hub.minter("badge").lifetime = 1  # the new key's are shorter
    errors = iter([DeliveryError("Secret x", "no answer", "")])

    def fault() -> None:
        for error in errors:
            raise error

    bad.fault = fault
    report = await hub.renewals.renew_now(names=["badge"])
    assert report.renewed == (good.server.identity,)
    assert report.failed == {bad.server.identity: "badge: Secret x: no answer."}
    await until_async(lambda: order(bad) == 1)
    report = await hub.renewals.renew_now(["ada"], ["bagde"])
    assert report.failed == {good.server.identity: "bagde: this hub has no such credential"}


async def test_a_hub_without_credentials_has_nothing_to_do(make: Callable[..., Hub]) -> None:
    hub = make()
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    await hub.renewals.bring(spawner, ["bearer"])
    assert hub.renewals._background.tasks == set()
    assert running.asked == []


async def test_a_server_whose_record_was_taken_away_is_told_of(
    make: Callable[..., Hub], caplog: pytest.LogCaptureFixture
) -> None:
    """Its Secret was edited while it runs on: nothing of it is renewed any more."""
    hub = make("pass")
    spawner, running = hub.add()
    hub.renewals.started(spawner)
    running.text = "{}"
    await until_async(lambda: metric("casa_hub_servers_unkept") == 1)
    assert any("its record was edited or removed" in record.getMessage() for record in told(caplog))
    assert running.asked == []


# -- what is fetched


class Service:
    """What new ones are fetched from."""

    def __init__(self) -> None:
        self.life = LIFE
        self.gate: asyncio.Event | None = None
        self.error: FetchError | None = None
        self.asked: list[str] = []

    async def __call__(self, names: Collection[str]) -> Outcomes:
        self.asked += names
        if self.gate is not None:
            await self.gate.wait()
        return {name: self.error or fetched(self.life) for name in names}


@pytest.fixture
def service() -> Service:
    return Service()


def begin(hub: Hub, service: Service, user: str = "ada") -> RunningServer:
    """A server that has it all."""
    spawner, running = hub.add(user, brought={"pulled": fetched(service.life), "hauled": fetched(service.life)})
    running.fetching = service
    hub.renewals.started(spawner)
    return running


async def test_what_is_fetched_is_renewed_again_and_again_before_it_expires(
    make: Callable[..., Hub], service: Service
) -> None:
    hub = make("pulled", "hauled", "pass")
    running = begin(hub, service)
    for number in range(2, 7):
        end = expires(running, "pulled")
        await until_async(lambda number=number: order(running) >= number)
        assert now() < end
    assert running.fetches[0] == ("pulled", "hauled"), "together, for one change of files"


async def test_a_slow_fetch_holds_up_no_other_credential_and_no_other_server(
    make: Callable[..., Hub], service: Service
) -> None:
    hub = make("pulled", "hauled", "pass")
    hub.minter("pass").lifetime = service.life = 60
    service.gate = asyncio.Event()
    servers = [begin(hub, service, f"user-{number}") for number in range(20)]
    ends = [expires(running) for running in servers]
    await until_async(lambda: all(expires(running) > end for running, end in zip(servers, ends, strict=True)), 60)
    assert now() < min(ends)
    assert len(service.asked) == 40
    assert all(("pulled",) not in running.asked for running in servers)
    service.gate.set()
    await until_async(lambda: all(("pulled", "hauled") in running.asked for running in servers))


async def test_a_fetch_that_fails_is_told_once_and_tried_again(
    make: Callable[..., Hub], service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    hub = make("pulled", "hauled")
    service.life = 60
    running = begin(hub, service)
    service.error = FetchError("idp", "no answer", "Wait.")
    await until_async(lambda: len(running.fetches) == 3, 60)
    assert [one.credential for one in hub.renewals.overdue()] == ["pulled", "hauled"]
    assert [record.getMessage().partition(" for ")[0] for record in told(caplog)] == ["No new pulled", "No new hauled"]
    assert "idp: no answer. Wait." in caplog.text
    service.error = None
    await until_async(lambda: not hub.renewals.overdue(), 60)
    assert "very-secret" not in caplog.text


async def test_a_new_log_in_is_tried_at_once(make: Callable[..., Hub], service: Service) -> None:
    """Somebody did as the page said, "Log out and in again", and the page said it for six more minutes."""
    hub = make("pulled")
    service.life = 36000
    running = begin(hub, service)
    service.error = FetchError("idp", "the sign-in was taken back", "Log out and in again.")
    await until_async(lambda: bool(hub.renewals.overdue()), 36000)
    service.error = None
    tries = len(running.fetches)
    hub.renewals.logged_in("somebody-else")
    hub.renewals.logged_in(running.server.username)
    await until_async(lambda: not hub.renewals.overdue(), 5)
    assert len(running.fetches) == tries + 1


async def test_another_reason_for_the_same_failure_is_told(
    make: Callable[..., Hub], service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage became a refusal, for which an operator had to act, and the log said nothing of it."""
    hub = make("pulled")
    service.life = 600
    begin(hub, service)
    service.error = FetchError("idp", "no answer", "Wait.")
    await until_async(lambda: "no answer" in caplog.text, 600)
    service.error = FetchError("idp", "this hub's client may not", "Act.")
    await until_async(lambda: "this hub's client may not" in caplog.text, 600)
    assert len(told(caplog)) == 2


async def test_what_could_not_be_fetched_for_the_start_comes_to_the_running_server(
    make: Callable[..., Hub], service: Service
) -> None:
    hub = make("pulled", "pass")
    spawner, running = hub.add()
    running.fetching = service
    assert "pulled" not in running.files
    hub.renewals.started(spawner)
    await until_async(lambda: "pulled" in running.files)
    assert lacking(hub) == []


async def test_nothing_is_fetched_anew_because_the_hub_has_restarted(
    make: Callable[..., Hub], service: Service
) -> None:
    hub = make("pulled", "hauled")
    service.life = 3600
    begin(hub, service)
    for _ in range(3):
        hub.restart()
        await asyncio.sleep(300)
    assert service.asked == []


async def test_all_that_is_due_after_a_pause_of_the_hub_is_begun_in_turns(service: Service) -> None:
    """A thousand servers were asked for in one turn of the hub's loop."""
    hub = Hub("pulled", "hauled")
    service.life = 60
    servers = [begin(hub, service, f"user-{number}") for number in range(50)]
    begun: list[float] = []
    for running in servers:
        running.fetching = partial(_noted, begun)
    await asyncio.sleep(50)
    hub.renewals.begin()
    await until_async(lambda: len(begun) == 50)
    assert len(set(begun)) == 50


async def _noted(begun: list[float], names: Collection[str]) -> Outcomes:
    begun.append(asyncio.get_running_loop().time())
    return {name: fetched(60) for name in names}


async def test_a_renewal_by_force_that_failed_is_by_force_when_it_is_tried_again(
    make: Callable[..., Hub], service: Service
) -> None:
    """The operator has shortened what is fetched: without force the server would keep the longer one."""
    hub = make("pulled", "hauled")
    service.life = 3600
    running = begin(hub, service)
    service.error = FetchError("idp", "no answer", "Wait.")
    report = await hub.renewals.renew_now(names=["pulled"])
    assert report.failed == {running.server.identity: "pulled: idp: no answer. Wait."}
    service.error, service.life = None, 60
    before = expires(running, "pulled")
    await until_async(lambda: expires(running, "pulled") < before, 700)


async def test_on_request_the_others_don_t_wait_for_what_is_fetched(make: Callable[..., Hub], service: Service) -> None:
    """The operator replaces a key, and the provider is silent: each four servers took most of a minute."""
    hub = make("pulled", "hauled", "pass")
    hub.minter("pass").lifetime = service.life = 3600
    servers = [begin(hub, service, f"user-{number}") for number in range(30)]
    service.gate = asyncio.Event()
    asking = asyncio.create_task(hub.renewals.renew_now())
    await until_async(lambda: len(service.asked) == 60)
    assert all(running.asked == [("pass",)] for running in servers)
    service.gate.set()
    report = await asking
    assert report.failed == {}
    assert len(report.renewed) == 30
    assert all(running.asked == [("pass",), ("pulled", "hauled")] for running in servers)


async def test_on_request_only_what_is_named_is_fetched(make: Callable[..., Hub], service: Service) -> None:
    hub = make("pulled", "hauled", "pass")
    running = begin(hub, service)
    report = await hub.renewals.renew_now(["ada"], ["hauled", "nonsense"])
    assert running.fetches == [("hauled",)]
    assert report.failed == {running.server.identity: "nonsense: this hub has no such credential"}
