"""The one thing of a hub that goes on while servers run: renewals, membership rounds, departures."""

from __future__ import annotations

from typing import Any

from casa_hub.facility import Facility
from casa_hub.keeper.departures import Departures
from casa_hub.keeper.renewals import Renewals
from casa_hub.keeper.times import Keeper


class Upkeep:
    """One a hub (`Upkeep.of`); made at its start."""

    def __init__(self, app: Any, facility: Facility, keeper: Keeper) -> None:
        self.renewals = Renewals(app, facility)
        self.departures = Departures(app, keeper)

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Upkeep:
        """The one of the hub with these tornado settings."""
        upkeep: Upkeep = settings["casa_upkeep"]
        return upkeep
