"""The record of a server: what it was given, as its objects bear it. It holds no secret.

::

    {"version", "server", "start_id", "order",
     "credentials": {name: {"issued_at", "expires_at", "identifiers", "state", "files", "order", "earlier"}},
     "missing": {name: reason}}

Times are ISO 8601 in UTC. `order` counts the renewals of the server, and of a credential it says which of them brought
it. `earlier` are ``identifiers`` and ``expires_at`` of those that it replaced and that have not expired yet: whoever
must block a server's credentials must block those, too.

`missing` are credentials that could not be minted so far. One that is in `credentials` as well was there, but its files
were removed and could not be made anew yet; its `files` are empty then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from casa_hub.credentials.base import Credential, Request

#: Raised when the meaning changes, with a step in `read_record`.
VERSION = 2

#: What each version of a record says of a credential.
_ENTRY = {"issued_at", "expires_at", "identifiers", "state", "files"}
_SINCE_2 = {"order", "earlier"}

#: Of how many replaced credentials that have not expired yet a record tells: it has to fit into an annotation. Only
#: renewals on request come so often, and the audit tells of all.
_EARLIER = 16


def next_record(
    request: Request, minted: Mapping[str, Credential], missing: Mapping[str, str], before: Mapping[str, Any]
) -> dict[str, Any]:
    """The record after a mint.

    Args:
        request: what was minted for.
        minted: the new credentials, by name.
        missing: name of one that could not be minted -> why.
        before: the record so far, of the present version; empty at a start.
    """
    present, now = before.get("credentials", {}), request.now
    order = before["order"] + bool(minted) if before else 0
    known = {name: {**entry, "earlier": _alive(entry["earlier"], now)} for name, entry in present.items()}
    for name, one in minted.items():
        known[name] = {**_entry(one), "order": order, "earlier": _earlier(one, known.get(name), now)}
    still = {name: why for name, why in before.get("missing", {}).items() if name not in minted}
    return {
        "version": VERSION,
        "server": request.server.identity,
        "start_id": request.start_id,
        "order": order,
        "credentials": known,
        # One that was there before isn't missing because its renewal failed.
        "missing": still | {name: why for name, why in missing.items() if name not in known},
    }


def read_record(document: Any) -> dict[str, Any] | None:
    """A record as this version knows it; None for what it can't read, as a later version's.

    Servers run on while their hub is upgraded, so records of all earlier versions are brought up to the present one:

    - 1 had no `order`, and of a credential neither that nor `earlier`.
    """
    match document:
        case {"version": 1, "credentials": dict(credentials), "missing": dict()} if _are(credentials, _ENTRY):
            entries = {name: {**entry, "order": 0, "earlier": []} for name, entry in credentials.items()}
            return {**document, "version": VERSION, "order": 0, "credentials": entries}
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


def _entry(credential: Credential) -> dict[str, Any]:
    return {
        "issued_at": iso(credential.issued_at),
        "expires_at": iso(credential.expires_at),
        "identifiers": dict(credential.identifiers),
        "state": dict(credential.state),
        "files": sorted(credential.files),
    }


def _earlier(new: Credential, before: Mapping[str, Any] | None, now: datetime) -> list[dict[str, Any]]:
    """What `new` replaces and that hasn't expired, the newest first; without what is blocked together with `new`."""
    if before is None:
        return []
    replaced = {"identifiers": before["identifiers"], "expires_at": before["expires_at"]}
    alive = _alive([replaced, *before["earlier"]], now)
    return [one for one in alive if one["identifiers"] != dict(new.identifiers)][:_EARLIER]


def _alive(ones: Sequence[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    return [one for one in ones if one["expires_at"] is None or datetime.fromisoformat(one["expires_at"]) > now]


def outlives(new: Credential, entry: Mapping[str, Any]) -> bool:
    """Whether a new credential is valid for longer than the one that a record tells of."""
    if new.expires_at is None or entry["expires_at"] is None:
        return new.expires_at is None
    return new.expires_at > datetime.fromisoformat(entry["expires_at"])


def better_from(new: Credential, entry: Mapping[str, Any]) -> datetime:
    """When one that lives as long as `new`, which does not outlive the one that is there, will do so."""
    if new.expires_at is None or entry["expires_at"] is None:  # the one that is there doesn't expire
        return datetime.max.replace(tzinfo=UTC)
    # One second more: some minters cut their times to whole ones.
    return datetime.fromisoformat(entry["expires_at"]) - (new.expires_at - new.issued_at) + timedelta(seconds=1)


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
