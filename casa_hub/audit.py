"""Who was given what and why it was taken away: events with a schema, and a line of the hub's log for each.

What storage and batch administrators need to block a stolen credential is its public identifier, never its content.

Events go to JupyterHub's own event log (`jupyter_events`, ``c.EventLogger.handlers``), which keeps none unless the
operator gives it a handler. The line of the log is there always.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from traitlets.config import Application

#: What each line begins with, after the log's own header; JSON follows.
PREFIX = "casa-hub audit: "
#: Its logger, a name to give handlers or a level of their own (``c.JupyterHub.logging_config``).
LOGGER = "casa_hub.audit"
#: Longest text and most identifiers of an event: what comes from outside must not fill a disk.
_LONGEST, _MOST = 1000, 20


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
    #: The name that the user had when the server was started, if it was another one.
    started_as: str = ""
    #: Who asked for it; "" for the hub itself.
    by: str = ""


#: Those that somebody may have to act upon.
_WARNINGS = {Action.REVOKED, Action.REFUSED, Action.ACCESS_ENDED, Action.HELD_BACK}


def tell(settings: Mapping[str, Any], event: Event) -> None:
    """Note an event. Never raises, and waits for nothing but the operator's handlers.

    Args:
        settings: the hub's tornado settings.
        event: what happened.
    """
    app = settings.get("app")
    if app is None and Application.initialized():
        # JupyterHub makes its settings anew in the course of its start, so whoever came before has others.
        app = Application.instance()
    logger = _logger(app)
    try:
        data = fields(event, datetime.now(UTC))
        # ASCII: no character of a name can end the line, or begin one that looks like another.
        logger.log(logging.WARNING if event.action in _WARNINGS else logging.INFO, "%s%s", PREFIX, json.dumps(data))
        _emit(settings.get("eventlog") or getattr(app, "eventlog", None), data)
    except Exception as error:  # noqa: BLE001 - what it tells of has happened already and must be gone on with
        logger.error("An event (%s) could not be noted: %s", event.action, type(error).__name__)  # noqa: TRY400


def fields(event: Event, now: datetime) -> dict[str, Any]:
    """The event as its schema has it: without what is empty, and without control characters."""
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
    # At the first event of a hub: some come before its start is over, and each version makes its event log elsewhere.
    if schema()["$id"] not in eventlog.schemas:
        eventlog.register_event_schema(schema())
    eventlog.emit(schema_id=schema()["$id"], data=dict(data))


def _logger(app: Any) -> logging.Logger:
    logger = logging.getLogger(LOGGER)
    if app is not None:
        logger.parent = app.log  # else the hub's handlers don't see it; JupyterHub does so with tornado's
    return logger


def _clean(text: Any) -> str:
    """Text without characters that control a terminal or a reader of logs (Unicode categories C and Zl, Zp)."""
    shown = str(text)[:_LONGEST]
    kept = (" " if unicodedata.category(one)[0] == "C" or one in "\u2028\u2029" else one for one in shown)
    return "".join(kept)
