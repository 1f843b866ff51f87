"""A running server, in a pod or on one machine, as renewals, mending and revocations see it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from casa_hub.credentials.fetching import Outcomes
from casa_hub.errors import CasaError, DeliveryError
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.naming import Server
from casa_hub.record import AnyRecord


@dataclass(frozen=True, slots=True)
class Holding:
    """What a running server holds now."""

    start_id: str
    #: `Unreadable`: the server runs, but its credentials are not renewed.
    record: AnyRecord
    #: After a renewal: name of a credential that was not renewed -> why, for people. Not secret.
    failed: Mapping[str, str] = field(default_factory=dict)
    #: See `Minted.later`.
    later: Mapping[str, datetime] = field(default_factory=dict)


class RunningServer(Protocol):
    """The protocol of a spawner's attribute ``casa_server``."""

    @property
    def server(self) -> Server:
        """The identity of the running start, which stays the same when its user or hub is renamed.

        For a server that doesn't run: the identity of its next start.
        """

    @property
    def running_start(self) -> str | None:
        """The id of the running start; "" if it was started without this package. Without I/O.

        None if it isn't known now, or if the credentials were withdrawn.
        """

    def known_holding(self) -> Holding | None:
        """What the server holds by the newest record that this process knows. Without I/O.

        Another hub may have renewed since, so its expiry times are lower bounds. None if the server doesn't run, if it
        was started without this package, or if its credentials were withdrawn.
        """

    async def holding(self) -> Holding | None:
        """What the server holds; None as for `known_holding`.
        Raises DeliveryError if the server's record can't be read now.
        """

    async def fetch(self, names: Collection[str]) -> Outcomes:
        """Ask others for what new ones of these credentials are made of, newer than what the server has.

        It may take a minute; so no renewal of something else should wait for it. Never raises.
        """

    async def renew(
        self, names: Collection[str], *, force: bool = False, fetched: Outcomes | None = None
    ) -> Holding | None:
        """Mint some credentials of the server anew and replace their files, all at once. None as for `holding`.

        A credential keeps its file if it can't be minted, or if the new one would not be valid for longer (but see
        `force`: its key or its user's token has changed). The result has the server's newest record, in which the
        renewed credentials have the highest `order`, and in `failed` the credentials that were not renewed. An
        unreadable record is returned as it is; nothing is renewed then. `fetched`: by `fetch`.
        Raises DeliveryError if the renewal failed, as far as is known.
        """

    async def lacks(self, since: float) -> Collection[str] | None:
        """What the server lacks although its record promises it: a `Secret`, `files`, `routes` ...; no credentials.

        All should have existed from `since` (`time.monotonic`) on. None if it isn't known yet, if the server doesn't
        run, or if its credentials were withdrawn. Raises DeliveryError if it can't be found out now.
        """

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        """Make `things` (of `lacks`) anew, credentials included. Returns those still missing -> why, for people.

        Does nothing if the credentials were withdrawn or the server no longer runs.
        Raises CasaError if nothing was brought back, as far as is known.
        """

    async def withdraw(self) -> None:
        """Remove files and routes of the server at once, while it still runs. May be repeated.

        From then on it is neither renewed nor mended; it can be stopped as usual.
        Raises DeliveryError if not all could be removed.
        """


def running_server(spawner: HubSpawner) -> RunningServer | None:
    """The server of a spawner; None if the spawner isn't of this package."""
    running: RunningServer | None = getattr(spawner, "casa_server", None)
    return running


def check_name(app: HubApp, spawner: HubSpawner, server: Server) -> None:
    """Check that no other server runs under this server's name, after which its files, hosts and pod are named.

    If an administrator renames a user, a running server keeps the old name. Somebody who then gets the old name can't
    start a server of that name until the other one has stopped. Raises DeliveryError then.
    """
    for user in list(dict.values(app.users or {})):
        for other in list(user.spawners.values()):
            running = running_server(other)
            if other is spawner or running is None or not other.active:
                continue
            if (running.server.username, running.server.name) == (server.username, server.name):
                problem = f"a server that was started under this name still runs; its user is now called {user.name}"
                raise DeliveryError(f"server {shown(server.username, server.name)}", problem, "Stop that server first.")


def reason_of(error: Exception, app: HubApp, work: str) -> str:
    """Why some `work` on a running server failed, for people; the log gets the traceback of an unexpected error."""
    if isinstance(error, CasaError):
        return str(error)
    app.log.error("%s failed", work, exc_info=error)
    return "an error of the hub; its log says more"


def shown(username: str, name: str, started_as: str = "") -> str:
    """A server, for people: ``alice``, ``alice/name`` or ``alice1 (started as alice)``."""
    called = f"{username}/{name}" if name else username
    return f"{called} (started as {started_as})" if started_as not in {"", username} else called


def running_servers(app: HubApp) -> Iterator[tuple[HubUser, HubSpawner, RunningServer | None]]:
    """User, spawner and server of each running server; None as server if the spawner isn't of this package.

    Without a query: each running server has its spawner in JupyterHub's memory.
    """
    # None before the hub has read its database.
    for user in list(dict.values(app.users or {})):
        for spawner in list(user.spawners.values()):
            if spawner.ready:
                yield user, spawner, running_server(spawner)
