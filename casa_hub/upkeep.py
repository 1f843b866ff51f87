"""Everything that goes on in the background: renewals, mending, membership checks, and ends of access."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from casa_hub.facility import Facility
from casa_hub.jupyterhub import HubApp, HubSpawner
from casa_hub.keeper.mending import Mending
from casa_hub.keeper.renewals import Renewals
from casa_hub.membership.mass_loss import MassLoss
from casa_hub.membership.member import Members
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.revocation import Revocations
from casa_hub.membership.rounds import Rounds


class Upkeep:
    """Built once per hub, at its start; `Upkeep.of` finds it."""

    def __init__(self, app: HubApp, facility: Facility, members: Members, recheck: Recheck | None) -> None:
        """`recheck`: None with an authenticator that isn't ours, which knows of no memberships."""
        self._facility = facility
        self.renewals = Renewals(app, facility)
        self.revocations = Revocations(app, members, None if recheck is None else recheck.log_ins)
        self.mending = Mending(app, self.revocations.may_end, self.renewals)
        self.mass_loss = MassLoss(app, members, recheck, self.revocations)
        if recheck is not None:
            recheck.on_verdict = self.mass_loss.heard
        self.rounds = Rounds(app, members, recheck, self.revocations, self.mass_loss)

    def begin(self) -> None:
        """Start the background tasks. JupyterHub cancels them when the hub ends."""
        self.renewals.begin()
        if self._facility.minters:
            self.mending.begin()
        self.rounds.begin()

    def started(self, spawner: HubSpawner, missing: Mapping[str, str] | None = None) -> None:
        """A server has just started; `missing`: what it could not have beside credentials -> why."""
        self.renewals.started(spawner)
        self.mending.started(spawner, missing or {})

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Upkeep:
        """The `Upkeep` of the hub with these tornado settings."""
        upkeep: Upkeep = settings["casa_upkeep"]
        return upkeep
