"""The audit: who was given which credential and why it was withdrawn.

Each event is a line in the hub's log, and an event of JupyterHub's event log (`jupyter_events`,
``c.EventLogger.handlers``), which drops events unless the operator configures a handler. The hub remembers the last
ones, for the page of its administrators.

Events hold the public identifiers of credentials, by which storage and batch administrators block a stolen one; never
the credentials themselves.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from casa_hub.jupyterhub import HubApp

#: Beginning of each line, after the log's own header; JSON follows.
PREFIX = "casa-hub audit: "
#: Name of the logger; with ``c.JupyterHub.logging_config`` it can have its own handlers and level.
LOGGER = "casa_hub.audit"
#: How many events a hub remembers: of credentials that were minted and renewed, and as many of all others. A hundred
#: servers that start would else drive out what somebody should look at.
REMEMBERED = 100
#: Our key in JupyterHub's `tornado_settings`, which live as long as the hub, unlike a global.
_KEY = "casa_hub_audit"
#: Most characters of a text and most identifiers of an event: texts from outside must not fill a disk.
_LONGEST, _MOST = 1000, 20


class Action(StrEnum):
    """What happened."""

    #: A credential was minted for a starting server, or for a laptop.
    MINTED = "minted"
    #: A credential was minted again for a running server.
    RENEWED = "renewed"
    #: A credential was withdrawn from a server before it expired: block it if the server is not to be trusted.
    REVOKED = "revoked"
    #: A log-in or a server was refused.
    REFUSED = "refused"
    #: A user's access was ended.
    ACCESS_ENDED = "access-ended"
    #: A lost membership is held back; access goes on.
    HELD_BACK = "held-back"
    #: The operator confirmed a lost membership that was held back.
    CONFIRMED = "confirmed"
    #: The operator ignores a lost membership that is held back; access goes on for longer.
    IGNORED = "ignored"
    #: The operator asked for new credentials of a user's servers.
    RENEWAL_ASKED = "renewal-asked"
    #: A user's sessions were ended by a log-out at the identity provider.
    LOGGED_OUT = "logged-out"
    #: A user name was given to another identity.
    REBOUND = "rebound"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the audit."""

    action: Action
    username: str
    #: Name of the server; "" for the default server, None if the event is about the user.
    server: str | None = None
    start_id: str = ""
    #: Name of the credential; "" if the event is about no credential.
    credential: str = ""
    #: The credential's public identifiers (`Credential.identifiers`).
    identifiers: Mapping[str, str] = field(default_factory=dict)
    #: Expiry of the credential, ISO 8601; None if it doesn't expire.
    expires_at: str | None = None
    reason: str = ""
    #: The user's name when the server was started, if it has changed since.
    started_as: str = ""
    #: Who asked for it; "" for the hub itself.
    by: str = ""


#: Actions that every start and every renewal brings.
_ROUTINE = {Action.MINTED, Action.RENEWED}
#: Actions after which somebody may have to do something; their lines are warnings.
_WARNINGS = {Action.REVOKED, Action.REFUSED, Action.ACCESS_ENDED, Action.HELD_BACK}


def tell(settings: Mapping[str, Any], event: Event) -> None:
    """Record an event. Never raises; blocks only for the operator's own handlers.
    `settings`: those of JupyterHub's tornado application.
    """
    app = settings.get("app")
    logger = _logger(app)
    try:
        data = fields(event, datetime.now(UTC))
        # JSON in ASCII: no character of a name can end the line and forge another one.
        logger.log(logging.WARNING if event.action in _WARNINGS else logging.INFO, "%s%s", PREFIX, json.dumps(data))
        if app is not None:
            _remember(app.tornado_settings, event.action, data)
        _emit(settings.get("eventlog") or getattr(app, "eventlog", None), data)
    except Exception as error:  # noqa: BLE001 - the caller must go on, because the event has already happened
        logger.error("An audit event (%s) could not be recorded: %s", event.action, type(error).__name__)  # noqa: TRY400


def last_events(app: HubApp, *, routine: bool = False) -> list[dict[str, Any]]:
    """The last events of a hub (`fields`), the newest first; `routine`: those of credentials minted and renewed."""
    return list(reversed(app.tornado_settings.get(_KEY, {}).get(routine, ())))


def _remember(settings: dict[str, Any], action: Action, data: dict[str, Any]) -> None:
    if _KEY not in settings:
        settings[_KEY] = {routine: deque(maxlen=REMEMBERED) for routine in (False, True)}
    settings[_KEY][action in _ROUTINE].append(data)


def fields(event: Event, now: datetime) -> dict[str, Any]:
    """The fields of an event by its schema, without empty ones and without control characters."""
    texts = {
        "started_as": event.started_as,
        "start_id": event.start_id,
        "credential": event.credential,
        "expires_at": event.expires_at,
        "reason": event.reason,
        "by": event.by,
    }
    data: dict[str, Any] = {
        "time": now.isoformat(timespec="milliseconds"),
        "action": str(event.action),
        "username": _clean(event.username),
    }
    if event.server is not None:
        data["servername"] = _clean(event.server)
    data |= {name: _clean(text) for name, text in texts.items() if text}
    if event.identifiers:
        chosen = list(event.identifiers.items())[:_MOST]
        data["identifiers"] = {_clean(name): _clean(value) for name, value in chosen}
    return data


@cache
def schema() -> dict[str, Any]:
    """The schema of the events."""
    content: dict[str, Any] = yaml.safe_load((files("casa_hub") / "audit_event.yaml").read_text())
    return content


def _emit(eventlog: Any, data: Mapping[str, Any]) -> None:
    if eventlog is None:
        return
    # At the hub's first event. Not at its start: JupyterHub's versions create the event log at different times.
    if schema()["$id"] not in eventlog.schemas:
        eventlog.register_event_schema(schema())
    eventlog.emit(schema_id=schema()["$id"], data=dict(data))


def _logger(app: Any) -> logging.Logger:
    logger = logging.getLogger(LOGGER)
    if app is not None:
        logger.parent = app.log  # so that the hub's handlers get the line; JupyterHub does the same for tornado
    return logger


def _clean(text: Any) -> str:
    """Text without characters that control a terminal or a reader of logs (Unicode categories C and Zl, Zp)."""
    characters = str(text)[:_LONGEST]
    if characters.isprintable():  # nearly always, and a renewal of a thousand servers is thousands of events
        return characters
    return "".join(" " if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in characters)
