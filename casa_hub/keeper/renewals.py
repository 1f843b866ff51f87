"""The task that renews what servers hold, when two thirds of its life are gone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from casa_hub.facility import Facility


@dataclass(frozen=True, slots=True)
class Report:
    """How `Renewals.renew_now` went."""

    #: Servers (identity) all of whose credentials were renewed.
    renewed: tuple[str, ...]
    #: Server (identity) -> why some weren't, as a sentence.
    failed: dict[str, str]


class Renewals:
    """Lives on the hub's event loop."""

    def __init__(self, app: Any, facility: Facility) -> None:
        self._app = app
        self._facility = facility

    def started(self, spawner: Any) -> None:
        """A server has just started: look at it without waiting for the next look around."""

    async def renew_now(self, usernames: Collection[str] | None = None, names: Collection[str] = ()) -> Report:
        """Renew at once, in haste: `names` (default: all credentials) of all running servers, or of these users."""
        raise NotImplementedError
