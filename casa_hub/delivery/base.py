"""What both deliveries have in common: the parcel, its record, and the verbs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from traitlets.config import LoggingConfigurable

if TYPE_CHECKING:
    from casa_hub.naming import Server

#: Version of the record that `Parcel.record` becomes; raised when its meaning changes, with a step in `read_record`.
RECORD_VERSION = 2

#: What each version of a record says of a credential.
_ENTRY = {"issued_at", "expires_at", "identifiers", "state", "files"}
_SINCE_2 = {"order", "earlier"}


def read_record(document: Any) -> dict[str, Any] | None:
    """A record (`Facility.mint`) as this version knows it; None for what it can't read, as a later version's.

    Servers run on while their hub is upgraded, so records of all earlier versions are brought up to the present one:

    - 1 had no `order`, and of a credential neither that nor `earlier`.
    """
    match document:
        case {"version": 1, "credentials": dict(credentials), "missing": dict()} if _are(credentials, _ENTRY):
            entries = {name: {**entry, "order": 0, "earlier": []} for name, entry in credentials.items()}
            return {**document, "version": RECORD_VERSION, "order": 0, "credentials": entries}
        case {"version": 2, "order": int(), "credentials": dict(credentials), "missing": dict()} if _are(
            credentials, _ENTRY | _SINCE_2
        ):
            return dict(document)
    return None


def _are(credentials: Mapping[str, Any], keys: set[str]) -> bool:
    """Whether all can be read. Whoever may change a server's objects may have edited it, too."""
    return all(isinstance(entry, dict) and keys <= entry.keys() and _is(entry) for entry in credentials.values())


def _is(entry: Mapping[str, Any]) -> bool:
    match entry:
        case {"identifiers": dict(), "state": dict(), "files": list()}:
            earlier, order = entry.get("earlier", []), entry.get("order", 0)
        case _:
            return False
    ends = [entry["expires_at"]]
    for one in earlier if isinstance(earlier, list) else [None]:
        match one:
            case {"identifiers": dict(), "expires_at": end}:
                ends.append(end)
            case _:
                return False
    return isinstance(order, int) and _is_time(entry["issued_at"]) and all(end is None or _is_time(end) for end in ends)


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() is not None
    except (TypeError, ValueError):
        return False


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
