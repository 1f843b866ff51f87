"""What a delivery brings to a server, in a cluster as on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
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
class Parcel:
    """All that a server is to be given, minted and ready."""

    server: Server
    start_id: str
    #: Path below the server's secrets directory (``xcache_token``, ``condor_tokens.d/condor_token``) -> content.
    files: Mapping[str, bytes] = field(repr=False)
    routes: tuple[Route, ...]
    #: What a restarted hub must know of this start. No secret.
    record: ServerRecord
