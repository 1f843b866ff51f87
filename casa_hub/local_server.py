"""What a server on this machine holds while it runs: the Keeper's view of a `CasaLocalSpawner`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from casa_hub.delivery.local.delivery import Delivered
from casa_hub.facility import Facility
from casa_hub.keeper.kept import Holding
from casa_hub.naming import Server
from casa_hub.record import ServerRecord


class LocalServer:
    """The server of one `CasaLocalSpawner`, as `casa_hub.keeper.kept.Kept`."""

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        self._renewing = asyncio.Lock()

    @property
    def server(self) -> Server:
        """See `Kept`."""
        server: Server = self._spawner.casa_server
        return server

    @property
    def running_start(self) -> str | None:
        """See `Kept`."""
        one = self._delivered()
        return one.start_id if one is not None else None

    def first_holding(self) -> Holding | None:
        """See `Kept`."""
        one = self._delivered()
        return Holding(one.start_id, one.record) if one is not None else None

    async def holding(self) -> Holding | None:
        """See `Kept`."""
        return self.first_holding()

    async def renew(self, names: Collection[str], *, anyhow: bool = False) -> Holding | None:
        """See `Kept`."""
        async with self._renewing:  # each goes on from the record that the one before left
            held = self.first_holding()
            if held is None or not isinstance(held.record, ServerRecord):
                return held
            facility = Facility.of(self._spawner)
            request = await facility.request_of(self._spawner, self.server, held.start_id, datetime.now(UTC))
            minted = facility.renew(request, names, held.record, anyhow=anyhow, username=self._spawner.user.name)
            if not minted.credentials:
                return Holding(held.start_id, held.record, minted.missing, minted.later)
            # The routes of the others are there, as they were at the start.
            new = [name for name in minted.credentials if name not in held.record.credentials]
            routes = [route for name in new for route in facility.minters[name].routes(self.server)]
            await self._spawner.delivery.renew(replace(minted, routes=tuple(routes)))
            return Holding(held.start_id, minted.record, minted.missing, minted.later)

    async def lacks(self, since: float) -> Collection[str] | None:  # noqa: ARG002 - it is looked at now
        """See `Kept`."""
        one = self._delivered()
        return None if one is None else await self._spawner.delivery.lacks(self.server, one.start_id)

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        """See `Kept`."""
        delivery, one = self._spawner.delivery, self._delivered()
        if one is None:
            return {}
        start_id = one.start_id
        missing: Mapping[str, str] = {}
        if "files" in things:
            lost = await delivery.lost(self.server)
            holding = await self.renew(lost, anyhow=True) if lost else None
            missing = {} if holding is None else holding.failed
        await delivery.restore(self.server, start_id, self._spawner.pid)
        return {"files": "; ".join(f"{name}: {why}" for name, why in missing.items())} if missing else {}

    async def withdraw(self) -> None:
        """See `Kept`."""
        start_id = self._spawner.casa_start_id
        if start_id:
            await self._spawner.delivery.empty(self.server, start_id)

    def _delivered(self) -> Delivered | None:
        one: Delivered | None = self._spawner.delivery.delivered(self.server)
        mine = one is not None and one.start_id == self._spawner.casa_start_id and not one.withdrawn
        return one if mine else None
