"""The server of one `CasaLocalSpawner`: a process of this machine, with a directory, an address and routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.local.delivery import Delivered, LocalDelivery
from casa_hub.errors import DeliveryError
from casa_hub.facility import Minted
from casa_hub.keeper.kept import Holding
from casa_hub.record import ServerRecord
from casa_hub.server_credentials import ServerCredentials

if TYPE_CHECKING:
    from casa_hub.local_spawner import CasaLocalSpawner

#: In a spawner's state.
START_ID = "casa_start_id"


class LocalServer(ServerCredentials[Delivered]):
    """The server of one `CasaLocalSpawner` object."""

    _spawner: CasaLocalSpawner

    def __init__(self, spawner: CasaLocalSpawner) -> None:
        super().__init__(spawner)
        #: Whether a start is under way; nothing is known to run then.
        self.starting = False
        self._minted: Minted | None = None

    @property
    def delivery(self) -> LocalDelivery:
        return self.hub.delivery(LocalDelivery)

    # -- a start: mint, deliver

    async def mint(self) -> list[str]:
        """Credentials for a new start. Returns a sentence for each; raises as `_mint`."""
        minted, sentences = await self._mint()
        self._minted, self.start_id, self._identity, self.starting = minted, minted.start_id, minted.server, True
        return sentences

    async def deliver(self) -> tuple[str, dict[str, str]]:
        """Bring what was minted. Returns the server's address and environment; raises as `LocalDelivery.deliver`."""
        minted, self._minted = self._minted, None
        assert minted is not None  # noqa: S101 - it comes first
        await self.delivery.deliver(minted)
        one = self.delivery.delivered(minted.server)
        assert one is not None  # noqa: S101 - it was delivered just now
        return one.address, self.facility.environment(minted, PurePosixPath(self.delivery.path(one.server)))

    def adopt(self, one: Delivered) -> None:
        """Take over what an earlier hub has started."""
        self.start_id, self._identity = one.start_id, one.server

    # -- while it runs

    @property
    def running_start(self) -> str | None:
        """See `Kept`."""
        one = self._delivered()
        return one.start_id if one is not None else None

    def first_holding(self) -> Holding | None:
        """See `Kept`."""
        one = self._delivered()
        return self._holding(one) if one is not None else None

    async def lacks(self, since: float) -> Collection[str] | None:  # noqa: ARG002 - it is looked at now
        """See `Kept`."""
        one = self._delivered()
        return None if one is None else await self.delivery.lacks(self.server, one.start_id)

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        """See `Kept`."""
        one = self._delivered()
        if one is None:
            return {}
        missing: Mapping[str, str] = {}
        if "files" in things:
            lost = await self.delivery.lost(self.server)
            holding = await self.renew(lost, anyhow=True) if lost else None
            missing = {} if holding is None else holding.failed
        await self.delivery.restore(self.server, one.start_id, self._spawner.pid)
        return {"files": "; ".join(f"{name}: {why}" for name, why in missing.items())} if missing else {}

    async def withdraw(self) -> None:
        """See `Kept`."""
        if self.start_id and not self.starting:
            await self.delivery.withdraw(self.server, self.start_id)

    def _delivered(self) -> Delivered | None:
        one = None if self.starting else self.delivery.delivered(self.server)
        return one if one is not None and one.start_id == self.start_id and not one.withdrawn else None

    async def _running(self, deadline: Deadline) -> Delivered | None:  # noqa: ARG002 - nobody is waited for
        return self._delivered()

    def _holding(self, given: Delivered) -> Holding:
        return Holding(given.start_id, given.record)

    async def _replace(self, given: Delivered, minted: Minted, deadline: Deadline) -> None:  # noqa: ARG002
        known = given.record.credentials if isinstance(given.record, ServerRecord) else {}
        # The routes of the others are there, as they were at the start.
        new = [name for name in minted.credentials if name not in known]
        routes = [route for name in new for route in self.facility.minters[name].routes(given.server)]
        await self.delivery.renew(replace(minted, routes=tuple(routes)))

    # -- the end

    async def remove(self) -> None:
        """Take everything away that the last start was given. What can't be removed is logged."""
        if not self.start_id:
            return
        try:
            await self.delivery.remove(self.server, self.start_id)
        except DeliveryError as error:
            self._spawner.log.error("Credentials of a stopped server stay until the hub starts again: %s", error)  # noqa: TRY400
        self.start_id, self._identity = "", None
