"""The server of one `CasaLocalSpawner`: a process of this machine, with a directory, an address and routes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.local.delivery import Delivered, LocalDelivery
from casa_hub.errors import DeliveryError
from casa_hub.facility import Minted
from casa_hub.record import ServerRecord
from casa_hub.server_credentials import ServerCredentials
from casa_hub.servers.running import Holding

if TYPE_CHECKING:
    from casa_hub.local_spawner import CasaLocalSpawner

#: Key in a spawner's state: the id of the running start.
START_ID = "casa_start_id"


class LocalServer(ServerCredentials[Delivered]):
    """The server of one `CasaLocalSpawner` object."""

    _spawner: CasaLocalSpawner

    def __init__(self, spawner: CasaLocalSpawner) -> None:
        super().__init__(spawner)
        #: Whether a start is under way. Until it is over, the server doesn't count as running.
        self.starting = False
        self._minted: Minted | None = None

    @property
    def delivery(self) -> LocalDelivery:
        return self.hub.delivery(LocalDelivery)

    # -- a start: mint, deliver

    async def mint(self, say: Callable[[str], None] = lambda _: None) -> list[str]:
        """Mint the credentials of a new start. Returns a sentence for each; `say`, and what is raised: as `_mint`."""
        minted, sentences = await self._mint(say)
        self._minted, self.start_id, self._identity, self.starting = minted, minted.start_id, minted.server, True
        return sentences

    async def deliver(self) -> tuple[str, dict[str, str]]:
        """Deliver what was minted. Returns the server's address and environment; raises as `LocalDelivery.deliver`."""
        minted, self._minted = self._minted, None
        assert minted is not None  # noqa: S101 - `mint` comes first
        await self.delivery.deliver(minted)
        delivered = self.delivery.delivered(minted.server)
        assert delivered is not None  # noqa: S101 - it was delivered just now
        directory = PurePosixPath(self.delivery.path(delivered.server))
        return delivered.address, self.facility.environment(minted, directory)

    def adopt(self, delivered: Delivered) -> None:
        """Take over a start of the previous hub process."""
        self.start_id, self._identity = delivered.start_id, delivered.server

    # -- while it runs: what `RunningServer` says

    @property
    def running_start(self) -> str | None:
        running = self._delivered()
        return running.start_id if running is not None else None

    def known_holding(self) -> Holding | None:
        running = self._delivered()
        return self._holding(running) if running is not None else None

    async def lacks(self, since: float) -> Collection[str] | None:  # noqa: ARG002 - each call looks anew
        running = self._delivered()
        return None if running is None else await self.delivery.lacks(self.server, running.start_id)

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        running = self._delivered()
        if running is None:
            return {}
        missing: Mapping[str, str] = {}
        if "files" in things:
            lost = await self.delivery.lost(self.server)
            holding = await self.renew(lost, force=True) if lost else None
            missing = {} if holding is None else holding.failed
        await self.delivery.restore(self.server, running.start_id, self._spawner.pid)
        return {"files": "; ".join(f"{name}: {why}" for name, why in missing.items())} if missing else {}

    async def withdraw(self) -> None:
        if self.start_id and not self.starting:
            await self.delivery.withdraw(self.server, self.start_id)

    def _delivered(self) -> Delivered | None:
        has = None if self.starting else self.delivery.delivered(self.server)
        return has if has is not None and has.start_id == self.start_id and not has.withdrawn else None

    async def _running(self, deadline: Deadline) -> Delivered | None:  # noqa: ARG002 - needs no other program
        return self._delivered()

    def _holding(self, running: Delivered) -> Holding:
        return Holding(running.start_id, running.record)

    async def _replace(self, running: Delivered, minted: Minted, deadline: Deadline) -> None:  # noqa: ARG002
        known = running.record.credentials if isinstance(running.record, ServerRecord) else {}
        # The other credentials keep the routes of the start.
        new = [name for name in minted.credentials if name not in known]
        routes = [route for name in new for route in self.facility.minters[name].routes(running.server)]
        await self.delivery.renew(replace(minted, routes=tuple(routes)))

    # -- the end

    async def remove(self) -> None:
        """Remove all that the last start has. A failure is logged."""
        if not self.start_id:
            return
        try:
            await self.delivery.remove(self.server, self.start_id)
        except DeliveryError as error:
            self._spawner.log.error("Credentials of a stopped server stay until the hub starts again: %s", error)  # noqa: TRY400
        self.start_id, self._identity = "", None
