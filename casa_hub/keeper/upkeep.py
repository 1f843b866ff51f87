"""Everything that goes on in the background while servers run: renewals, mending, membership rounds, departures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from casa_hub.facility import Facility
from casa_hub.keeper.departures import Departures
from casa_hub.keeper.gate import Gate
from casa_hub.keeper.mending import Mending
from casa_hub.keeper.renewals import Renewals
from casa_hub.keeper.rounds import Rounds
from casa_hub.keeper.times import Keeper


class Upkeep:
    """Built once per hub, at its start; `Upkeep.of` finds it."""

    def __init__(self, app: Any, facility: Facility, keeper: Keeper) -> None:
        self._facility = facility
        self.renewals = Renewals(app, facility)
        self.departures = Departures(app, keeper)
        self.mending = Mending(app, self.departures, self.renewals)
        self.holdback = Gate(app, keeper, self.departures)
        self.rounds = Rounds(app, keeper, self.departures, self.holdback)

    def begin(self) -> None:
        """Start the background tasks. JupyterHub cancels them when the hub ends."""
        self.renewals.begin()
        if self._facility.minters:
            self.mending.begin()
        self.rounds.begin()

    def started(self, spawner: Any, missing: Mapping[str, str] | None = None) -> None:
        """A server has just started; `missing`: what it could not have beside credentials -> why."""
        self.renewals.started(spawner)
        self.mending.started(spawner, missing or {})

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Upkeep:
        """The `Upkeep` of the hub with these tornado settings."""
        upkeep: Upkeep = settings["casa_upkeep"]
        return upkeep
