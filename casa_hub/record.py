"""The record of a server: which credentials it was given. Pods, Secrets and state files bear it; it has no secret.

::

    {"version", "server", "start_id", "order",
     "credentials": {name: {"issued_at", "expires_at", "identifiers", "state", "files", "order", "earlier"}},
     "missing": {name: reason}}

Times are ISO 8601 in UTC. `order` counts the renewals of the server, and of a credential it says which renewal brought
it. `earlier` has ``identifiers`` and ``expires_at`` of the credentials that this one replaced and that have not expired
yet: whoever must block a server's credentials must block those, too.

`missing` are credentials that could not be minted so far. One that is in `credentials` as well was there, but its files
were removed and could not be made anew yet; its `files` are empty then.

Whoever may change a server's objects may have edited its record, and a newer version of this package may have written
it. So each entry is read by itself: one that can't be read is not renewed, and all that can be read of it is kept for
the audit (`to_block`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from casa_hub.credentials.base import Credential, Request

#: Raised when the meaning changes, with a step in `parse`.
VERSION = 2

#: Of how many replaced credentials that have not expired yet a record tells: it has to fit into an annotation. Only
#: renewals on request come so often, and the audit tells of all.
_EARLIER = 16

#: Why nothing of a server is renewed; for people.
WITHOUT_US = "it was started without casa_hub"
NEWER = "its record was written by a newer version of casa_hub"
EDITED = "its record was edited or removed"
UNDER_ANOTHER_NAME = "it was started for another user name or hub id, by a version of casa_hub that didn't save which"
EDITED_ENTRY = "its entry in the server's record was edited and can't be read"

Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A credential that a newer one has replaced."""

    identifiers: Mapping[str, str]
    expires_at: datetime | None

    def to_document(self) -> Document:
        """For JSON."""
        return {"identifiers": dict(self.identifiers), "expires_at": iso(self.expires_at)}


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """A credential that a server has."""

    issued_at: datetime
    #: None: it doesn't expire by itself.
    expires_at: datetime | None
    identifiers: Mapping[str, str]
    #: What its minter wants to know at the next renewal.
    state: Mapping[str, str]
    files: tuple[str, ...]
    #: Which renewal of the server brought it; 0: the start.
    order: int = 0
    #: Those that it replaced and that have not expired yet, the newest first.
    earlier: tuple[Replaced, ...] = ()

    @classmethod
    def of(cls, new: Credential, order: int, before: CredentialRecord | None, now: datetime) -> CredentialRecord:
        """Of a credential that was just minted; `before`: the one that it replaces."""
        replaced: tuple[Replaced, ...] = ()
        if before is not None:
            replaced = _alive((Replaced(before.identifiers, before.expires_at), *before.earlier), now)
        # Without those that are blocked together with the new one.
        earlier = tuple(each for each in replaced if each.identifiers != dict(new.identifiers))[:_EARLIER]
        files = tuple(sorted(new.files))
        return cls(new.issued_at, new.expires_at, dict(new.identifiers), dict(new.state), files, order, earlier)

    def to_document(self) -> Document:
        """For JSON."""
        return {
            "issued_at": iso(self.issued_at),
            "expires_at": iso(self.expires_at),
            "identifiers": dict(self.identifiers),
            "state": dict(self.state),
            "files": list(self.files),
            "order": self.order,
            "earlier": [each.to_document() for each in self.earlier],
        }


@dataclass(frozen=True, slots=True)
class UnreadableCredential:
    """An entry of a record that this version can't read, or may not act upon."""

    #: As it was found.
    document: Any = field(repr=False)
    #: What can be read of it, and of those that it replaced. The last is the credential itself; it has no identifiers
    #: if none can be read, and no expiry if that can't be read.
    traces: tuple[Replaced, ...]

    @property
    def expires_at(self) -> datetime | None:
        """When it expires; None if it doesn't, or if that can't be read."""
        return self.traces[-1].expires_at


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A record that this version can read, but perhaps for some of its entries."""

    #: `Server.identity`.
    server: str
    start_id: str
    order: int
    credentials: Mapping[str, CredentialRecord]
    #: Name of a credential that could not be minted -> why.
    missing: Mapping[str, str]
    #: Entries that somebody has edited, by the credential's name. They are not renewed.
    unreadable: Mapping[str, UnreadableCredential] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Of all credentials that the server has."""
        return {*self.credentials, *self.unreadable}

    def to_document(self) -> Document:
        """For JSON."""
        credentials = {name: entry.to_document() for name, entry in self.credentials.items()}
        return {
            "version": VERSION,
            "server": self.server,
            "start_id": self.start_id,
            "order": self.order,
            "credentials": credentials | {name: entry.document for name, entry in self.unreadable.items()},
            "missing": dict(self.missing),
        }


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that this version can't go on from: nothing of the server is renewed."""

    #: For people, without a full stop: "its record was written by a newer version of casa_hub".
    why: str
    #: As it was found.
    document: Any = field(default=None, repr=False)
    #: What can be read of its entries.
    credentials: Mapping[str, UnreadableCredential] = field(default_factory=dict)

    def to_document(self) -> Any:
        """For JSON."""
        return self.document


AnyRecord: TypeAlias = ServerRecord | Unreadable


@dataclass(frozen=True, slots=True)
class ToBlock:
    """A credential that must be blocked where it is used, if it was copied."""

    #: "" if not even that is known.
    credential: str
    identifiers: Mapping[str, str]
    expires_at: datetime | None
    #: Why that may not be all; "" if it is.
    problem: str = ""


def to_block(record: AnyRecord, now: datetime) -> list[ToBlock]:
    """All credentials that a record tells of and that may still be valid."""
    found = []
    if isinstance(record, ServerRecord):
        for name, entry in record.credentials.items():
            each = (*entry.earlier, Replaced(entry.identifiers, entry.expires_at))
            found += [ToBlock(name, one.identifiers, one.expires_at) for one in _alive(each, now)]
        problem, entries = EDITED_ENTRY, record.unreadable
    else:
        # Of such a server all is known.
        problem, entries = "" if record.why == UNDER_ANOTHER_NAME else record.why, record.credentials
        if not entries:
            found.append(ToBlock("", {}, None, record.why))
    for name, broken in entries.items():
        found += [ToBlock(name, one.identifiers, one.expires_at, problem) for one in _alive(broken.traces, now)]
    return found


def next_record(
    request: Request,
    minted: Mapping[str, Credential],
    missing: Mapping[str, str],
    before: ServerRecord | None = None,
) -> ServerRecord:
    """The record after a mint.

    Args:
        request: what was minted for.
        minted: the new credentials, by name.
        missing: name of one that could not be minted -> why.
        before: the record so far; None at a start.
    """
    present, now = before.credentials if before else {}, request.now
    order = before.order + bool(minted) if before else 0
    known = {name: _without_expired(entry, now) for name, entry in present.items()}
    for name, one in minted.items():
        known[name] = CredentialRecord.of(one, order, known.get(name), now)
    broken = before.unreadable if before else {}
    still = {name: why for name, why in (before.missing if before else {}).items() if name not in minted}
    # A credential that the server has isn't missing because its renewal failed.
    now_missing = {name: why for name, why in missing.items() if name not in known and name not in broken}
    return ServerRecord(request.server.identity, request.start_id, order, known, still | now_missing, unreadable=broken)


def parse_text(text: str | None) -> AnyRecord:
    """As `parse`, of a record that stands somewhere as JSON; None if there is none."""
    try:
        return parse(json.loads(text or ""))
    except (ValueError, RecursionError):
        return Unreadable(EDITED, text)


def parse(document: Any) -> AnyRecord:
    """The record that a decoded JSON document is.

    Servers run on while their hub is upgraded, so records of all earlier versions are read:

    - 1 had no `order`, and of a credential neither that nor `earlier`.
    """
    match document:
        case {"version": 1, "credentials": dict(credentials)}:
            order: Any = 0
            credentials = {name: _of_version_2(entry) for name, entry in credentials.items()}
        case {"version": 2, "order": order, "credentials": dict(credentials)}:
            pass
        case {"version": int(version), **rest} if version > VERSION:
            return unreadable(document, NEWER, rest.get("credentials"))
        case {**rest}:
            return unreadable(document, EDITED, rest.get("credentials"))
        case _:
            return Unreadable(EDITED, document)
    if not _is_count(order):
        return unreadable(document, EDITED, credentials)
    known, broken = {}, {}
    for name, entry in credentials.items():
        read = _read(entry)
        if read is None:
            broken[name] = _traced(entry)
        else:
            known[name] = read
    missing = document.get("missing")
    return ServerRecord(
        server=_text(document.get("server")),
        start_id=_text(document.get("start_id")),
        order=order,
        credentials=known,
        missing=_texts(missing) if isinstance(missing, dict) else {},
        unreadable=broken,
    )


def unreadable(document: Any, why: str, credentials: Any) -> Unreadable:
    """What the audit can be told of a record that nobody may go on from; `credentials`: its entries, if it has some."""
    entries = credentials if isinstance(credentials, dict) else {}
    return Unreadable(why, document, {str(name): _traced(entry) for name, entry in entries.items()})


def under_another_name(record: AnyRecord) -> Unreadable:
    """The record of a server that nobody may be given new credentials for."""
    if isinstance(record, Unreadable):
        return record
    document = record.to_document()
    return unreadable(document, UNDER_ANOTHER_NAME, document["credentials"])


def _of_version_2(entry: Any) -> Any:
    return {**entry, "order": 0, "earlier": []} if isinstance(entry, dict) else entry


def _read(entry: Any) -> CredentialRecord | None:
    """An entry of the present version; None if it isn't as this package writes it."""
    match entry:
        case {
            "issued_at": str(issued_at),
            "expires_at": expires_at,
            "identifiers": dict(identifiers),
            "state": dict(state),
            "files": list(files),
            "order": order,
            "earlier": list(earlier),
        } if _is_count(order) and all(isinstance(path, str) for path in files):
            pass
        case _:
            return None
    if _texts(identifiers) != identifiers or _texts(state) != state:
        return None
    replaced = []
    try:
        for one in earlier:
            match one:
                case {"identifiers": dict(others), "expires_at": end} if _texts(others) == others:
                    replaced.append(Replaced(others, _expiry(end)))
                case _:
                    return None
        issued, expires = _moment(issued_at), _expiry(expires_at)
    except ValueError:
        return None
    return CredentialRecord(issued, expires, identifiers, state, tuple(files), order, tuple(replaced))


def _traced(entry: Any) -> UnreadableCredential:
    """What can be read of an entry, whatever it is."""

    def trace(part: Any) -> Replaced:
        found = part if isinstance(part, dict) else {}
        identifiers = found.get("identifiers")
        try:
            expires_at = _expiry(found.get("expires_at"))
        except ValueError:
            expires_at = None
        return Replaced(_texts(identifiers) if isinstance(identifiers, dict) else {}, expires_at)

    earlier = entry.get("earlier") if isinstance(entry, dict) else None
    traces = [trace(part) for part in (earlier if isinstance(earlier, list) else [])]
    return UnreadableCredential(entry, (*traces, trace(entry)))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(pairs: Mapping[Any, Any]) -> dict[str, str]:
    """Those pairs that are texts."""
    return {key: value for key, value in pairs.items() if isinstance(key, str) and isinstance(value, str)}


def _expiry(value: Any) -> datetime | None:
    """Raises ValueError."""
    return None if value is None else _moment(value)


def _moment(value: Any) -> datetime:
    """Raises ValueError."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.utcoffset() is None:
            raise ValueError("without a time zone")
        return moment.astimezone(UTC)
    except (TypeError, OverflowError):
        raise ValueError("no time") from None


def _without_expired(entry: CredentialRecord, now: datetime) -> CredentialRecord:
    return replace(entry, earlier=_alive(entry.earlier, now))


def _alive(ones: Iterable[Replaced], now: datetime) -> tuple[Replaced, ...]:
    return tuple(one for one in ones if one.expires_at is None or one.expires_at > now)


def outlives(new: Credential, entry: CredentialRecord) -> bool:
    """Whether a new credential is valid for longer than the one that a record tells of."""
    if new.expires_at is None or entry.expires_at is None:
        return new.expires_at is None
    return new.expires_at > entry.expires_at


def better_from(new: Credential, entry: CredentialRecord) -> datetime:
    """When a credential that lives as long as `new`, which does not outlive the present one, will do so."""
    if new.expires_at is None or entry.expires_at is None:  # the present one doesn't expire
        return datetime.max.replace(tzinfo=UTC)
    # One second more: some minters cut their times to whole ones.
    return entry.expires_at - (new.expires_at - new.issued_at) + timedelta(seconds=1)


def iso(moment: datetime | None) -> str | None:
    """A time as records and the audit have it."""
    return None if moment is None else moment.astimezone(UTC).isoformat()
