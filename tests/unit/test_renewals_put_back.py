"""What becomes of running servers when the hub's clock was wrong for a while, and is put right."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from datetime import datetime
from pathlib import Path

import pytest
from traitlets.config import Config

from casa_hub.errors import DeliveryError
from casa_hub.facility import Facility
from casa_hub.keeper import renewals as module
from casa_hub.keeper.renewals import Renewals
from casa_hub.naming import Server
from tests.support.kept import App, Kept
from tests.support.waiting import until_async

DAY = 86400.0


class Hub:
    """A hub with a server, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.ahead = 0.0
        key = directory / "xcache.key"
        key.write_bytes(base64.b64encode(os.urandom(64)))
        key.chmod(0o600)
        xcache = {"key_file": str(key), "site_name": "T3", "lifetime": 43200}
        self.facility = Facility(config=Config(Facility={"credentials": ["xcache"]}, XCache=xcache))
        self.app = App()
        self.renewals = Renewals(self.app, self.facility, self.clock)

    def clock(self) -> float:
        return time.time() + self.ahead

    def starts(self) -> Kept:
        self.renewals.begin()
        kept = Kept(self.facility, Server("", "ada"), "0" * 32, None, self.clock)
        self.renewals.started(self.app.add(kept))
        return kept


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(module, "_FIRST_LOOKS", 0.02)
    return Hub(tmp_path)


def hours_left(kept: Kept) -> float:
    end = datetime.fromisoformat(kept.record["credentials"]["xcache"]["expires_at"])
    return (end.timestamp() - time.time()) / 3600


async def test_what_a_clock_of_the_future_has_minted_is_replaced(hub: Hub) -> None:
    """XRootD refuses a macaroon that lives longer than a day; no other would have come before its own time."""
    hub.ahead = 10 * DAY
    kept = hub.starts()
    hub.ahead = 0
    await until_async(lambda: hours_left(kept) < 12.1)
    assert kept.asked == [("xcache",)]


async def test_what_failed_while_the_clock_was_ahead_is_tried_again_now(hub: Hub) -> None:
    kept = hub.starts()

    def fault() -> None:
        raise DeliveryError("Secret x", "the certificate has expired", "")

    kept.fault = fault
    hub.ahead = 10 * DAY
    await until_async(hub.renewals.overdue)
    hub.ahead = 0
    looked = kept.looked
    await until_async(lambda: kept.looked > looked)


async def test_a_minter_that_dates_ahead_is_not_asked_all_the_time(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = hub.starts()
    hub.renewals._clock = lambda: time.time() - 3600  # what is minted seems to be of the future, always
    await until_async(lambda: len(kept.asked) == 1)
    shown = asyncio.Event()
    look = hub.renewals._show

    async def show() -> None:
        await look()
        shown.set()

    monkeypatch.setattr(hub.renewals, "_show", show)
    for _ in range(3):
        shown.clear()
        await shown.wait()
    assert len(kept.asked) == 1
