"""A running server, as the Keeper sees it: the same in a pod and on one machine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from casa_hub.naming import Server


@dataclass(frozen=True, slots=True)
class Holding:
    """What a running server holds now."""

    start_id: str
    #: See `Facility.mint`.
    record: Mapping[str, Any]


class Kept(Protocol):
    """Spawners bring one as their attribute ``casa_kept``."""

    @property
    def server(self) -> Server:
        """Whose it is."""

    async def holding(self) -> Holding | None:
        """What it holds; None if it doesn't run, or was started without this package.

        Raises:
            DeliveryError: it runs, but that can't be said now.
        """

    async def renew(self, names: Collection[str], *, anyhow: bool = False) -> Holding | None:
        """Mint some of its credentials anew and replace their files, all at once; None if it doesn't run.

        One that can't be minted keeps its file, as does one that would be valid for a shorter time than what is
        there, unless `anyhow` (its key was replaced). What it holds afterwards tells which were renewed.

        Raises:
            DeliveryError: nothing was replaced.
        """

    async def withdraw(self) -> None:
        """Take its files and its routes away at once, while it still runs; repeated without harm.

        Raises:
            DeliveryError: something of it is still there.
        """


def running(app: Any) -> Iterator[tuple[Any, Any, Kept | None]]:
    """User, spawner and server of all that run on a hub; no server for spawners that aren't ours.

    Of JupyterHub's objects in memory, where every running server has its spawner: no query.
    """
    for user in list(dict.values(app.users)):
        for spawner in list(user.spawners.values()):
            if spawner.ready:
                yield user, spawner, getattr(spawner, "casa_kept", None)
