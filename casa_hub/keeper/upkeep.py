"""Everything that goes on in the background while servers run: renewals, membership rounds, departures."""

from __future__ import annotations

from typing import Any

from casa_hub.facility import Facility
from casa_hub.keeper.departures import Departures
from casa_hub.keeper.gate import Gate
from casa_hub.keeper.renewals import Renewals
from casa_hub.keeper.rounds import Rounds
from casa_hub.keeper.times import Keeper


class Upkeep:
    """Built once per hub, at its start; `Upkeep.of` finds it."""

    def __init__(self, app: Any, facility: Facility, keeper: Keeper) -> None:
        self.renewals = Renewals(app, facility)
        self.departures = Departures(app, keeper)
        self.holdback = Gate(app, keeper, self.departures)
        self.rounds = Rounds(app, keeper, self.departures, self.holdback)

    def begin(self) -> None:
        """Start the background tasks. JupyterHub cancels them when the hub ends."""
        self.renewals.begin()
        self.rounds.begin()

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Upkeep:
        """The `Upkeep` of the hub with these tornado settings."""
        upkeep: Upkeep = settings["casa_upkeep"]
        return upkeep
