"""The credentials of one server, from its start to its end: the common part of pods and local servers."""

from __future__ import annotations

import asyncio
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from typing import Generic, Protocol, TypeVar

from casa_hub.credentials.fetching import Outcomes
from casa_hub.delivery.deadline import Deadline
from casa_hub.facility import Facility, Minted
from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubSpawner
from casa_hub.naming import Server
from casa_hub.policy.limits import Asked
from casa_hub.policy.table import Entitlement
from casa_hub.progress import sentences_of
from casa_hub.record import ServerRecord
from casa_hub.servers import rules
from casa_hub.servers.running import Holding, check_name
from casa_hub.startup import on_hub_start


class RunningStart(Protocol):
    """A running start and what its delivery has brought."""

    @property
    def server(self) -> Server:
        """The server's identity at its start."""


D = TypeVar("D", bound=RunningStart)


class ServerCredentials(ABC, Generic[D]):
    """The server of one spawner object. While it runs, it is a `casa_hub.servers.running.RunningServer`."""

    def __init__(self, spawner: HubSpawner) -> None:
        self._spawner = spawner
        #: Id of the last start, perhaps by an earlier hub process (from the spawner's state); "" if unknown.
        self.start_id = ""
        #: The server's identity at that start; user and hub may have other names now. None if unknown.
        self._identity: Server | None = None
        #: Whether the rules let the start under way through (`casa_hub.servers.rules`).
        self.admitted = False
        self._renewing = asyncio.Lock()

    @property
    def hub(self) -> CasaHub:
        return CasaHub.of(self._spawner.user.settings["app"])

    @property
    def facility(self) -> Facility:
        return self.hub.facility

    @property
    def server(self) -> Server:
        """The identity for which the server's credentials are minted: that of its start as long as it runs."""
        return self._identity or self._named

    @property
    def entitlement(self) -> Entitlement:
        """What the server's owner gets by the rules, by the groups that JupyterHub knows now."""
        return self.facility.policy.of(self._spawner.user)

    @property
    def _named(self) -> Server:
        """The identity by the present names of user and server, for a new start."""
        return self.facility.server(self._spawner.user.name, self._spawner.name)

    # -- a start

    def admit(self, beside: Asked) -> None:
        """Hold the start to the rules of the server's owner. Raises RefusedStart.

        `beside`: what containers beside the server's own ask for.
        """
        self.admitted = False
        on_hub_start(self._spawner.user.settings["app"])
        policy = self.facility.policy
        rules.cap(self._spawner, self.entitlement, beside)
        rules.check_amounts(self._spawner, policy, partial(Asked.of_settings, self._spawner))
        rules.check_number(self._spawner, policy)
        self.admitted = True

    async def _mint(self, say: Callable[[str], None]) -> tuple[Minted, list[str]]:
        """Mint the credentials of a new start, and describe each in a sentence. Nothing is delivered yet.

        `say`: is told a sentence if somebody has to be asked first, which may take seconds. The authenticator's
        `pre_spawn_start` has already checked the membership.

        Raises:
            CredentialError: a required credential could not be minted.
            DeliveryError: the server of a renamed user still runs under this name.
            ConfigurationError: the hub's configuration can't work, or two credentials want the same file.
        """
        app = self._spawner.user.settings["app"]
        on_hub_start(app)
        # JupyterHub may have begun a hundred starts in this turn of the hub's loop: let other work go first.
        await asyncio.sleep(0)
        fetched = await self.facility.fetch(self._spawner, say=say)
        check_name(app, self._spawner, self._named)  # afterwards: a user may be renamed within these seconds
        server, now = self._named, datetime.now(UTC)
        request = await self.facility.request_of(self._spawner, server, secrets.token_hex(16), now, fetched=fetched)
        minted = self.facility.mint(request)
        return minted, sentences_of(self.facility, minted, now)

    # -- while it runs: what `RunningServer` says

    @abstractmethod
    def known_holding(self) -> Holding | None:
        """As `RunningServer.known_holding`."""

    async def holding(self) -> Holding | None:
        async with self._renewing:
            running = await self._running(self._deadline())
            return None if running is None else self._holding(running)

    async def fetch(self, names: Collection[str]) -> Outcomes:
        held = self.known_holding()
        record = None if held is None else held.record
        entries = record.credentials if isinstance(record, ServerRecord) else {}
        has = {name: entry.issued_at for name, entry in entries.items() if entry.files}
        return await self.facility.fetch(self._spawner, names=names, newer_than=has)

    async def renew(
        self, names: Collection[str], *, force: bool = False, fetched: Outcomes | None = None
    ) -> Holding | None:
        async with self._renewing:  # each renewal starts from the record of the one before
            return await self._renew(names, force, fetched, self._deadline())

    async def _renew(
        self, names: Collection[str], force: bool, fetched: Outcomes | None, deadline: Deadline
    ) -> Holding | None:
        running = await self._running(deadline)
        if running is None:
            return None
        held = self._holding(running)
        if not isinstance(held.record, ServerRecord):
            return held
        now = datetime.now(UTC)
        request = await self.facility.request_of(
            self._spawner, running.server, held.start_id, now, names=names, fetched=fetched
        )
        username = self._spawner.user.name
        minted = self.facility.renew(request, names, held.record, force=force, username=username)
        if minted.credentials:
            await self._replace(running, minted, deadline)
        record = minted.record if minted.credentials else held.record
        return Holding(held.start_id, record, minted.missing, minted.later)

    @abstractmethod
    async def _running(self, deadline: Deadline) -> D | None:
        """The running start with what it has now; None as for `RunningServer.holding`. Raises DeliveryError."""

    @abstractmethod
    def _holding(self, running: D) -> Holding:
        """What a running start holds."""

    @abstractmethod
    async def _replace(self, running: D, minted: Minted, deadline: Deadline) -> None:
        """Deliver renewed credentials. Raises DeliveryError."""

    def _deadline(self) -> Deadline:
        """The deadline of one renewal; none if the delivery doesn't wait for another program."""
        return Deadline(math.inf)
