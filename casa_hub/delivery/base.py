"""What a delivery brings to a server, in a cluster as on one machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from casa_hub.credentials.base import Credential
    from casa_hub.naming import Server
    from casa_hub.record import ServerRecord


@dataclass(frozen=True, slots=True)
class Route:
    """One host name whose TLS connections, told by SNI, are led untouched to a port of the server."""

    host: str
    #: What listens there; which entry point of Traefik that means is `TraefikRoutes`' business.
    purpose: Literal["scheduler", "worker"]
    #: Port at the server.
    port: int


@dataclass(frozen=True, slots=True)
class Minted:
    """The credentials of one server, minted and ready to be delivered (`Facility.mint`, `Facility.renew`)."""

    server: Server
    start_id: str
    credentials: Mapping[str, Credential]
    #: Name of a credential that could not be minted -> why, for people. Not secret.
    missing: Mapping[str, str]
    #: Path below the server's secrets directory (``xcache_token``, ``condor_tokens.d/condor_token``) -> content.
    files: Mapping[str, bytes] = field(repr=False)
    routes: tuple[Route, ...]
    #: What a restarted hub must know of this start. No secret.
    record: ServerRecord
    #: Of a renewal: a credential whose new one would have expired sooner than the one that is there, since its
    #: lifetime is set to less by now -> when a new one will last longer. Not in `missing`.
    later: Mapping[str, datetime] = field(default_factory=dict)


class Deadline:
    """The moment by which a piece of work must be done: handed down, so that its requests share one time-out."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())
