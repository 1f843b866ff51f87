"""What `casa_hub.servers.renewals` knows of each running server: what it has, and when the next try is due."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto

from casa_hub.jupyterhub import HubSpawner
from casa_hub.servers import renewal_schedule
from casa_hub.servers.running import RunningServer


class State(Enum):
    """What a server has of a credential."""

    #: It has the credential.
    HELD = auto()
    #: It has the credential, but an earlier hub process may have died before it delivered a newer one. One silent try
    #: finds that out.
    UNSURE = auto()
    #: It should have the credential and has not.
    MISSING = auto()
    #: The credential's entry in the server's record can't be read, so it is never renewed.
    UNREADABLE = auto()


@dataclass(slots=True)
class RenewedCredential:
    """One credential of a server. Times are epoch seconds."""

    state: State
    issued: float
    expires: float | None
    #: When the next try is due; None if time brings none.
    at: float | None
    #: `CredentialRecord.order`.
    order: int = 0
    #: Whether the next try must replace it even by one that expires sooner: its key or its user's token is another one.
    force: bool = False
    #: Failed tries in a row, and why the last one failed.
    failures: int = 0
    why: str = ""
    #: Whether the log has said that it is about to expire.
    warned: bool = False
    #: As `casa_hub.servers.renewals.Held.secret`.
    secret: str = ""
    #: Whether somebody is being asked for what a new one is made of.
    asking: bool = False

    @property
    def overdue(self) -> bool:
        """Whether the server has it, and its renewal fails."""
        return self.state is State.UNREADABLE or (self.state is not State.MISSING and self.failures > 0)

    def is_due(self, now: float) -> bool:
        """Whether to try now; a first renewal may come early, along with the renewal of another credential."""
        if self.at is None or self.asking:
            return False
        if self.state is State.HELD and not self.failures and self.expires is not None:
            return renewal_schedule.along(self.issued, self.expires, self.at) <= now
        return self.at <= now

    def life_left(self, now: float) -> float:
        """The part of its life that is left, 0 to 1; 1 if it doesn't expire."""
        if self.expires is None:
            return 1.0
        return min(max((self.expires - now) / max(self.expires - self.issued, 1e-3), 0.0), 1.0)


@dataclass(slots=True, eq=False)
class RenewedServer:
    """One start of a server."""

    spawner: HubSpawner
    running: RunningServer
    identity: str
    start_id: str
    credentials: dict[str, RenewedCredential] = field(default_factory=dict)
    #: Why none of its credentials can be renewed, without a full stop; "" if they can.
    unkept: str = ""
    #: When to read its newest record, because the record of its start is unreadable.
    look: float | None = None
    #: When there is something to do next.
    at: float | None = None
    busy: bool = False
    #: When its user last asked for a renewal.
    asked_at: float = -math.inf

    def due(self, now: float) -> list[str]:
        """Names of the credentials that are due."""
        return [name for name, one in self.credentials.items() if one.is_due(now)]
