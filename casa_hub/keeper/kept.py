"""A running server, as the Keeper sees it: the same in a pod and on one machine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from casa_hub.errors import CasaError, DeliveryError
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.naming import Server
from casa_hub.record import AnyRecord


@dataclass(frozen=True, slots=True)
class Holding:
    """What a running server holds now."""

    start_id: str
    #: `Unreadable`: it runs, but nothing of it is renewed.
    record: AnyRecord
    #: Of a renewal: a credential that was not renewed -> why, for people. Not secret.
    failed: Mapping[str, str] = field(default_factory=dict)
    #: See `Minted.later`.
    later: Mapping[str, datetime] = field(default_factory=dict)


class Kept(Protocol):
    """Spawners bring one as their attribute ``casa_kept``."""

    @property
    def server(self) -> Server:
        """The identity that the running start was given: its user, or its hub, may have got another name since.

        Of a server that doesn't run, the one that its next start will be given.
        """

    @property
    def running_start(self) -> str | None:
        """Which start of it runs; "" for one without this package. Costs nothing.

        None if that can't be said now, or its credentials were withdrawn.
        """

    def first_holding(self) -> Holding | None:
        """What it held when it started, or later, as far as that is known without asking anybody.

        No credential expires sooner than that says. None if it doesn't run, was started without this package, or its
        credentials were withdrawn.
        """

    async def holding(self) -> Holding | None:
        """What it holds; None as `first_holding`.

        Raises:
            DeliveryError: it runs, but that can't be said now.
        """

    async def renew(self, names: Collection[str], *, anyhow: bool = False) -> Holding | None:
        """Mint some of its credentials anew and replace their files, all at once; None as `holding`.

        A record that can't be read is handed back as it is, and nothing is renewed.

        One that can't be minted keeps its file, as does one that would not be valid for longer than what is there,
        unless `anyhow` (its key, or its user's token, is another one). What it holds afterwards tells which were
        renewed: those of the highest `order`; and which were not.

        Raises:
            DeliveryError: nothing is known to be replaced.
        """

    async def lacks(self, since: float) -> Collection[str] | None:
        """What it should have by its record, and has not: a `Secret`, `files`, `routes` ...; none of a credential.

        `since`: a moment (`time.monotonic`) from which on all of it should have been there. None if it can't be said
        yet, if it doesn't run, or if its credentials were withdrawn.

        Raises:
            DeliveryError: it runs, but that can't be said now.
        """

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        """Make anew what it lacks (`lacks`), credentials included. Returns what could not be had -> why, for people.

        Nothing is brought to one whose credentials were withdrawn, or which doesn't run any more.

        Raises:
            CasaError: nothing is known to be brought back.
        """

    async def withdraw(self) -> None:
        """Take its files and its routes away at once, while it still runs; repeated without harm.

        It is not renewed any more, nothing is brought back to it, and it is stopped as ever.

        Raises:
            DeliveryError: something of it is still there.
        """


def kept_of(spawner: HubSpawner) -> Kept | None:
    """The server of a spawner; None for one that isn't ours."""
    kept: Kept | None = getattr(spawner, "casa_kept", None)
    return kept


def check_name(app: HubApp, spawner: HubSpawner, server: Server) -> None:
    """Whether a server may start under a name: its files, its host names and its pod are called so.

    The administrator may have renamed a user whose server runs on under the old name; whoever has that name next must
    wait until it has stopped.

    Raises:
        DeliveryError: another user's server runs under this name.
    """
    for user in list(dict.values(app.users or {})):
        for other in list(user.spawners.values()):
            kept = kept_of(other)
            if other is spawner or kept is None or not other.active:
                continue
            if (kept.server.username, kept.server.name) == (server.username, server.name):
                problem = f"a server that was started under this name still runs; its user is now called {user.name}"
                raise DeliveryError(f"server {shown(server.username, server.name)}", problem, "Stop that one first.")


def reason_of(error: Exception, app: HubApp, work: str) -> str:
    """Why some work on a running server failed, for people; the log gets the traceback of an unexpected error.

    Args:
        error: what the work raised.
        app: the hub.
        work: what failed, for the log.
    """
    if isinstance(error, CasaError):
        return str(error)
    app.log.error("%s failed", work, exc_info=error)
    return "an error of the hub; its log says more"


def shown(username: str, name: str, started_as: str = "") -> str:
    """A server, for people: ``alice``, ``alice/name`` or ``alice1 (started as alice)``."""
    called = f"{username}/{name}" if name else username
    return f"{called} (started as {started_as})" if started_as not in {"", username} else called


def running(app: HubApp) -> Iterator[tuple[HubUser, HubSpawner, Kept | None]]:
    """User, spawner and server of all that run on a hub; no server for spawners that aren't ours.

    Of JupyterHub's objects in memory, where every running server has its spawner: no query.
    """
    # None before the hub has come so far.
    for user in list(dict.values(app.users or {})):
        for spawner in list(user.spawners.values()):
            if spawner.ready:
                yield user, spawner, kept_of(spawner)
