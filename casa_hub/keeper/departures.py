"""What follows when somebody's access ends, in an order in which nothing is lost half way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from casa_hub.keeper.times import Keeper


@dataclass(frozen=True, slots=True)
class Departed:
    """What a departure has ended."""

    servers: tuple[str, ...]
    tokens: int
    #: What could not be done yet, and is tried again; sentences.
    still: tuple[str, ...]


class Departures:
    """Lives on the hub's event loop."""

    def __init__(self, app: Any, keeper: Keeper) -> None:
        self._app = app
        self._keeper = keeper

    async def end(self, user: Any, reason: str, *, why: str, by: str = "") -> Departed:
        """End all access of one of the hub's users: servers, their credentials and routes, tokens, cookies, sessions.

        Args:
            user: JupyterHub's user.
            reason: a sentence for the audit and for the user's page.
            why: for the metrics: "no", "outage", "age", "operator", "deleted".
            by: who asked for it; "" for the hub itself.
        """
        raise NotImplementedError
