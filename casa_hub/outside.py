"""What people hold outside of their servers, on laptops and in CI: noted until it expires.

When somebody's access ends, the audit tells these credentials as `revoked`, as it tells those of the servers. The notes
are in the hub's memory: after a restart of the hub, the events `minted` alone know what was handed out before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from casa_hub.audit import Action, Event
from casa_hub.errors import CredentialError
from casa_hub.moments import exact

#: Credentials that one person may hold outside at the same time; they are kept in memory.
MOST = 1000


@dataclass(frozen=True, slots=True)
class HandedOut:
    """One credential that was handed out; public facts."""

    #: Name of the credential.
    credential: str
    #: Name of the server to which it belongs; None if it belongs to none.
    server: str | None
    #: Start of that server, or "".
    start_id: str
    #: The user's name for which it was minted.
    started_as: str
    #: `Credential.identifiers`.
    identifiers: Mapping[str, str]
    #: None if it doesn't expire.
    expires_at: datetime | None

    def event(self, action: Action, username: str, *, reason: str = "", by: str = "") -> Event:
        """An event of the audit about it; `username`: the user's present name."""
        return Event(
            action=action,
            username=username,
            server=self.server,
            start_id=self.start_id,
            credential=self.credential,
            identifiers=self.identifiers,
            expires_at=exact(self.expires_at),
            reason=reason,
            started_as=self.started_as if self.started_as != username else "",
            by=by,
        )


class Outside:
    """The credentials outside of servers, by JupyterHub's id of the user, which stays when the user is renamed."""

    def __init__(self) -> None:
        self._held: dict[int, list[HandedOut]] = {}

    def note(self, user_id: int, new: HandedOut, now: datetime) -> None:
        """Note one more. Raises CredentialError if the person holds too many at the same time."""
        same = (new.credential, new.identifiers)
        others = [one for one in self.held(user_id, now) if (one.credential, one.identifiers) != same]
        if len(others) >= MOST:
            problem = f"you hold {MOST} credentials outside of servers that have not expired yet"
            raise CredentialError(new.credential, problem, "Use one until it expires instead of many at a time.")
        self._held[user_id] = [*others, new]

    def held(self, user_id: int, now: datetime) -> list[HandedOut]:
        """What this person holds now."""
        return [one for one in self._held.get(user_id, ()) if one.expires_at is None or one.expires_at > now]

    def take(self, user_id: int, now: datetime) -> list[HandedOut]:
        """What this person holds now; the notes are gone then."""
        held = self.held(user_id, now)
        self._held.pop(user_id, None)
        return held
