"""Running servers without processes: credentials are minted for real, and delivered to a variable.

For what the Keeper does with many of them; that deliveries are sound is for the tests with a real hub.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from casa_hub.credentials.base import AccessToken, Request
from casa_hub.credentials.fetching import Outcomes
from casa_hub.facility import Facility
from casa_hub.naming import Server
from casa_hub.record import ServerRecord, parse_text
from casa_hub.servers.running import Holding


async def _nothing(names: Collection[str]) -> Outcomes:
    return {}


class RunningServer:
    """One server, as the protocol of the same name: a hub that was restarted knows only what it held at its start."""

    def __init__(
        self,
        facility: Facility,
        server: Server,
        start_id: str,
        token: AccessToken | None = None,
        clock: Callable[[], float] = time.time,
        *,
        fetched: Outcomes | None = None,
    ) -> None:
        self.facility = facility
        self.clock = clock
        self.server = server
        self.running_start: str | None = start_id
        self.token = token
        minted = facility.mint(replace(self.request(), fetched=fetched or {}))
        self.files = dict(minted.files)
        #: As text, since that is what a real home keeps.
        self.at_start = self.text = json.dumps(minted.record.to_document())
        #: Raises what goes wrong with a delivery.
        self.fault: Callable[[], None] = lambda: None
        #: Seconds of a delivery.
        self.takes = 0.0
        #: Names of each renewal that was tried, and how often somebody asked what it holds.
        self.asked: list[tuple[str, ...]] = []
        self.looked = 0
        self.withdrawn = False
        #: What it lacks beside credentials, and the tries to bring it back.
        self.gone: set[str] = set()
        self.brought: list[tuple[str, ...]] = []
        #: Names of each fetch, and what it brings.
        self.fetches: list[tuple[str, ...]] = []
        self.fetching: Callable[[Collection[str]], Awaitable[Outcomes]] = _nothing
        self._renewing = asyncio.Lock()

    def request(self) -> Request:
        assert self.running_start
        return Request(self.server, self.running_start, datetime.fromtimestamp(self.clock(), UTC), self.token)

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.text)
        return record

    def known_holding(self) -> Holding | None:
        return self._holding(self.at_start)

    async def holding(self) -> Holding | None:
        self.looked += 1
        await asyncio.sleep(self.takes)
        self.fault()
        return self._holding(self.text)

    async def fetch(self, names: Collection[str]) -> Outcomes:
        self.fetches.append(tuple(names))
        return await self.fetching(names)

    async def renew(
        self, names: Collection[str], *, force: bool = False, fetched: Outcomes | None = None
    ) -> Holding | None:
        async with self._renewing:
            self.asked.append(tuple(names))
            holding = self._holding(self.text)
            if holding is None or not isinstance(holding.record, ServerRecord):
                return holding
            request = replace(self.request(), fetched=fetched or {})
            minted = self.facility.renew(request, names, holding.record, force=force)
            await asyncio.sleep(self.takes)
            self.fault()
            self.files |= minted.files
            self.text = json.dumps(minted.record.to_document())
            return Holding(holding.start_id, minted.record, minted.missing, minted.later)

    async def lacks(self, since: float) -> Collection[str] | None:
        return None if self.withdrawn else sorted(self.gone)

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        self.brought.append(tuple(things))
        await asyncio.sleep(self.takes)
        self.fault()
        self.gone -= set(things)
        return {}

    async def withdraw(self) -> None:
        self.withdrawn, self.files = True, {}

    def _holding(self, text: str) -> Holding | None:
        if not self.running_start or self.withdrawn:
            return None
        return Holding(self.running_start, parse_text(text))


class Spawner:
    """As much of JupyterHub's as the Keeper looks at."""

    def __init__(self, running: RunningServer) -> None:
        self.casa_server = running
        self.name = running.server.name
        self.ready = True
        self.pending = False
        self.user: User | None = None


@dataclass
class User:
    """A user of the hub, and their servers."""

    name: str
    spawners: dict[str, Spawner]


@dataclass
class App:
    """A hub with servers."""

    users: dict[int, User] = field(default_factory=dict)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("hub"))

    def add(self, running: RunningServer) -> Spawner:
        spawner = Spawner(running)
        spawner.user = User(running.server.username, {running.server.name: spawner})
        self.users[len(self.users)] = spawner.user
        return spawner
