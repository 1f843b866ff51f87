"""The record of a server: its credentials and their public facts. Stored in pods, Secrets and state files; no secrets.

::

    {"version", "server", "start_id", "order",
     "credentials": {name: {"issued_at", "expires_at", "identifiers", "state", "files", "order", "earlier"}},
     "missing": {name: reason}}

Times are ISO 8601 in UTC. `order` counts the server's renewals; in a credential it is the number of the renewal that
minted it. `earlier` has ``identifiers`` and ``expires_at`` of the credentials that this one replaced and that have not
expired yet: to block the server's credentials means to block those, too.

`missing` are credentials that could not be minted so far. If such a credential also stands in `credentials`, its files
were removed later and could not be minted again yet; then its `files` are empty.

Whoever may change a server's objects can edit its record, and a newer version of this package may have written it. So
each entry is parsed by itself. An unreadable entry is not renewed, and its readable parts are kept for the audit
(`to_block`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from casa_hub.credentials.base import Credential, Request
from casa_hub.moments import exact

#: Version of the format. A new version needs a step in `parse`.
VERSION = 2

#: Most replaced credentials in an entry: the record has to fit into an annotation. Only renewals on request can exceed
#: it, and the audit has all credentials.
_EARLIER = 16

#: Why a server's credentials are not renewed; for people.
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
        return {"identifiers": dict(self.identifiers), "expires_at": exact(self.expires_at)}


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """A credential that a server has."""

    issued_at: datetime
    #: None if it doesn't expire.
    expires_at: datetime | None
    identifiers: Mapping[str, str]
    #: `Request.state` of its next renewal.
    state: Mapping[str, str]
    files: tuple[str, ...]
    #: Number of the renewal that minted it; 0 for the start.
    order: int = 0
    #: Credentials that it replaced and that have not expired yet, the newest first.
    earlier: tuple[Replaced, ...] = ()

    @classmethod
    def from_minted(
        cls, new: Credential, order: int, before: CredentialRecord | None, now: datetime
    ) -> CredentialRecord:
        """The entry of a new credential; `before`: the entry of the credential that it replaces."""
        replaced: tuple[Replaced, ...] = ()
        if before is not None:
            replaced = _unexpired((Replaced(before.identifiers, before.expires_at), *before.earlier), now)
        # Without credentials of the same identifiers: they are blocked together with the new one.
        earlier = tuple(each for each in replaced if each.identifiers != dict(new.identifiers))[:_EARLIER]
        files = tuple(sorted(new.files))
        return cls(new.issued_at, new.expires_at, dict(new.identifiers), dict(new.state), files, order, earlier)

    def to_document(self) -> Document:
        """For JSON."""
        return {
            "issued_at": exact(self.issued_at),
            "expires_at": exact(self.expires_at),
            "identifiers": dict(self.identifiers),
            "state": dict(self.state),
            "files": list(self.files),
            "order": self.order,
            "earlier": [each.to_document() for each in self.earlier],
        }


@dataclass(frozen=True, slots=True)
class UnreadableCredential:
    """An entry that this version can't read, or must not renew."""

    #: The entry as it was found.
    document: Any = field(repr=False)
    #: The readable parts: of the replaced credentials, and last of the credential itself. Unreadable identifiers are
    #: empty, an unreadable expiry is None.
    traces: tuple[Replaced, ...]

    @property
    def expires_at(self) -> datetime | None:
        """When the credential expires; None if it doesn't, or if the time is unreadable."""
        return self.traces[-1].expires_at


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A record that this version can read, except perhaps for some of its entries."""

    #: `Server.identity`.
    server: str
    start_id: str
    order: int
    credentials: Mapping[str, CredentialRecord]
    #: Name of a credential that could not be minted -> why.
    missing: Mapping[str, str]
    #: Name of a credential -> its entry that was edited. It is not renewed.
    unreadable: Mapping[str, UnreadableCredential] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Names of all credentials that the server has."""
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
    """A record that this version can't renew anything by."""

    #: For people, without a full stop: "its record was written by a newer version of casa_hub".
    why: str
    #: The record as it was found.
    document: Any = field(default=None, repr=False)
    #: Name of a credential -> the readable parts of its entry.
    credentials: Mapping[str, UnreadableCredential] = field(default_factory=dict)

    def to_document(self) -> Any:
        """For JSON."""
        return self.document


AnyRecord: TypeAlias = ServerRecord | Unreadable


@dataclass(frozen=True, slots=True)
class ToBlock:
    """A credential that has to be blocked at the services that accept it, in case it was copied."""

    #: Name of the credential; "" if unknown.
    credential: str
    identifiers: Mapping[str, str]
    expires_at: datetime | None
    #: Why the identifiers may be incomplete; "" if they are complete.
    problem: str = ""


def to_block(record: AnyRecord, now: datetime) -> list[ToBlock]:
    """All credentials of a record that may still be valid."""
    found = []
    if isinstance(record, ServerRecord):
        for name, entry in record.credentials.items():
            replaced = (*entry.earlier, Replaced(entry.identifiers, entry.expires_at))
            found += [ToBlock(name, each.identifiers, each.expires_at) for each in _unexpired(replaced, now)]
        problem, entries = EDITED_ENTRY, record.unreadable
    else:
        # A record under another name is complete: nobody has edited it.
        problem, entries = "" if record.why == UNDER_ANOTHER_NAME else record.why, record.credentials
        if not entries:
            found.append(ToBlock("", {}, None, record.why))
    for name, broken in entries.items():
        found += [ToBlock(name, each.identifiers, each.expires_at, problem) for each in _unexpired(broken.traces, now)]
    return found


def next_record(
    request: Request,
    minted: Mapping[str, Credential],
    missing: Mapping[str, str],
    before: ServerRecord | None = None,
) -> ServerRecord:
    """The record after a mint. `missing`: credentials that could not be minted -> why.
    `before`: the record so far; None at a start.
    """
    present, now = before.credentials if before else {}, request.now
    order = before.order + bool(minted) if before else 0
    known = {name: _without_expired(entry, now) for name, entry in present.items()}
    for name, new in minted.items():
        known[name] = CredentialRecord.from_minted(new, order, known.get(name), now)
    broken = before.unreadable if before else {}
    still = {name: why for name, why in (before.missing if before else {}).items() if name not in minted}
    # If only the renewal of a credential failed, the server still has it, so it isn't missing.
    now_missing = {name: why for name, why in missing.items() if name not in known and name not in broken}
    return ServerRecord(request.server.identity, request.start_id, order, known, still | now_missing, unreadable=broken)


def parse_text(text: str | None) -> AnyRecord:
    """As `parse`, for JSON text. No text (None) counts as an edited record."""
    try:
        return parse(json.loads(text or ""))
    except (ValueError, RecursionError):
        return Unreadable(EDITED, text)


def parse(document: Any) -> AnyRecord:
    """Read a record from decoded JSON, which is untrusted.

    Servers run on while their hub is upgraded, so all earlier versions must be readable:

    - Version 1 had no `order`, and its credentials had neither `order` nor `earlier`.
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
    """An unreadable record with the readable parts of its entries; `credentials`: the entries, if there are any."""
    entries = credentials if isinstance(credentials, dict) else {}
    return Unreadable(why, document, {str(name): _traced(entry) for name, entry in entries.items()})


def under_another_name(record: AnyRecord) -> Unreadable:
    """The record of a server that must not get new credentials, because its user or hub has another name now."""
    if isinstance(record, Unreadable):
        return record
    document = record.to_document()
    return unreadable(document, UNDER_ANOTHER_NAME, document["credentials"])


def _of_version_2(entry: Any) -> Any:
    return {**entry, "order": 0, "earlier": []} if isinstance(entry, dict) else entry


def _read(entry: Any) -> CredentialRecord | None:
    """Read an entry of the present version; None if it isn't exactly as this package writes entries."""
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
        for each in earlier:
            match each:
                case {"identifiers": dict(others), "expires_at": end} if _texts(others) == others:
                    replaced.append(Replaced(others, _expiry(end)))
                case _:
                    return None
        issued, expires = _moment(issued_at), _expiry(expires_at)
    except ValueError:
        return None
    return CredentialRecord(issued, expires, identifiers, state, tuple(files), order, tuple(replaced))


def _traced(entry: Any) -> UnreadableCredential:
    """The readable parts of any entry."""

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
    """The pairs of text and text among these."""
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
    return replace(entry, earlier=_unexpired(entry.earlier, now))


def _unexpired(credentials: Iterable[Replaced], now: datetime) -> tuple[Replaced, ...]:
    return tuple(each for each in credentials if each.expires_at is None or each.expires_at > now)


def outlives(new: Credential, entry: CredentialRecord) -> bool:
    """Whether a new credential is valid for longer than the recorded one."""
    if new.expires_at is None or entry.expires_at is None:
        return new.expires_at is None
    return new.expires_at > entry.expires_at


def better_from(new: Credential, entry: CredentialRecord) -> datetime:
    """From when on a newly minted credential will outlive the recorded one, which `new` doesn't."""
    if new.expires_at is None or entry.expires_at is None:  # the recorded one doesn't expire
        return datetime.max.replace(tzinfo=UTC)
    # One second more, because some minters cut their times to whole seconds.
    return entry.expires_at - (new.expires_at - new.issued_at) + timedelta(seconds=1)
