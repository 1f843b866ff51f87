"""The credentials of one server, from its start to its end: what is the same in a pod and on one machine."""

from __future__ import annotations

import asyncio
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from casa_hub.delivery.deadline import Deadline
from casa_hub.facility import Facility, Minted
from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubSpawner
from casa_hub.keeper.kept import Holding, check_name
from casa_hub.naming import Server
from casa_hub.record import ServerRecord
from casa_hub.startup import on_hub_start
from casa_hub.steps import told


class Given(Protocol):
    """What a running start was given, as its delivery knows it."""

    @property
    def server(self) -> Server:
        """The identity that the start was made for."""


G = TypeVar("G", bound=Given)


class ServerCredentials(ABC, Generic[G]):
    """The server of one spawner object. Once it runs, the Keeper's (`casa_hub.keeper.kept.Kept`)."""

    def __init__(self, spawner: HubSpawner) -> None:
        self._spawner = spawner
        #: The last start, also an earlier hub's (JupyterHub keeps it with the spawner's state); "" if none is known.
        self.start_id = ""
        #: What that start was made for: its user, or the hub, may have got another name since. None: it isn't known.
        self._identity: Server | None = None
        self._renewing = asyncio.Lock()

    @property
    def hub(self) -> CasaHub:
        return CasaHub.of(self._spawner.user.settings["app"])

    @property
    def facility(self) -> Facility:
        return self.hub.facility

    @property
    def server(self) -> Server:
        """The identity that the server's credentials are made for: that of its start, as long as it runs."""
        return self._identity or self._named

    @property
    def _named(self) -> Server:
        """The identity of a start that begins now."""
        return self.facility.server(self._spawner.user.name, self._spawner.name)

    # -- a start

    async def _mint(self) -> tuple[Minted, list[str]]:
        """Credentials for a new start, and a sentence for each; nothing is delivered.

        The membership has been checked: the authenticator's `pre_spawn_start` is asked before any spawner.

        Raises:
            CredentialError: a required one could not be minted.
            DeliveryError: the server of a user who was renamed still runs under this name.
            ConfigurationError: the hub's configuration can't work; or two credentials want the same file.
        """
        app = self._spawner.user.settings["app"]
        on_hub_start(app)
        # A hundred starts come here in one turn of the hub's loop, after what JupyterHub did in it: others go first.
        await asyncio.sleep(0)
        server, now = self._named, datetime.now(UTC)
        check_name(app, self._spawner, server)
        minted = self.facility.mint(await self.facility.request_of(self._spawner, server, secrets.token_hex(16), now))
        return minted, told(self.facility, minted, now)

    # -- while it runs

    async def holding(self) -> Holding | None:
        """See `Kept`."""
        async with self._renewing:
            given = await self._running(self._deadline())
            return None if given is None else self._holding(given)

    async def renew(self, names: Collection[str], *, anyhow: bool = False) -> Holding | None:
        """See `Kept`."""
        async with self._renewing:  # each goes on from the record that the one before left
            return await self._renew(names, anyhow, self._deadline())

    async def _renew(self, names: Collection[str], anyhow: bool, deadline: Deadline) -> Holding | None:
        given = await self._running(deadline)
        if given is None:
            return None
        held = self._holding(given)
        if not isinstance(held.record, ServerRecord):
            return held
        request = await self.facility.request_of(self._spawner, given.server, held.start_id, datetime.now(UTC))
        username = self._spawner.user.name
        minted = self.facility.renew(request, names, held.record, anyhow=anyhow, username=username)
        if minted.credentials:
            await self._replace(given, minted, deadline)
        record = minted.record if minted.credentials else held.record
        return Holding(held.start_id, record, minted.missing, minted.later)

    @abstractmethod
    async def _running(self, deadline: Deadline) -> G | None:
        """What the start that runs has now; None as `Kept.holding`. Raises DeliveryError."""

    @abstractmethod
    def _holding(self, given: G) -> Holding:
        """The same, for the Keeper."""

    @abstractmethod
    async def _replace(self, given: G, minted: Minted, deadline: Deadline) -> None:
        """Bring what was renewed. Raises DeliveryError."""

    def _deadline(self) -> Deadline:
        """Of one piece of work, for a delivery that waits for somebody else."""
        return Deadline(math.inf)
