"""What both deliveries have in common: the parcel, and the verbs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from traitlets.config import LoggingConfigurable

if TYPE_CHECKING:
    from casa_hub.naming import Server


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
    #: What a restarted hub must know of this start: JSON-able, credential names, identifiers, expiries. No secret.
    record: Mapping[str, Any]


class Delivery(LoggingConfigurable):
    """Brings parcels to servers and takes them away again. Every verb may be repeated without harm."""

    @abstractmethod
    async def deliver(self, parcel: Parcel) -> None:
        """Give a starting server its files and routes; all of it or nothing.

        Raises:
            DeliveryError: nothing is left behind then.
        """

    @abstractmethod
    async def renew(self, parcel: Parcel) -> None:
        """Replace the files of a running server, all at once; readers see the old set or the new one."""

    @abstractmethod
    async def withdraw(self, server: Server, start_id: str) -> None:
        """Take everything of this start away; what belongs to another start or server is left alone."""
