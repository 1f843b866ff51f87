"""The hub's answers, checked: nothing of another shape, and no file name that could harm, comes further. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .errors import ClientError
from .names import is_credential, is_file, is_variable
from .schedule import moment

_TELL = "Is this program as new as the hub? Else tell the hub's operator."


@dataclass(frozen=True, slots=True)
class Issued:
    """A credential that the hub has made."""

    name: str
    #: For people, at the start of a sentence: "XCache macaroon".
    title: str
    #: Aware UTC, by the hub's clock.
    issued_at: datetime
    #: None if it doesn't expire.
    expires_at: datetime | None
    #: Path below a directory -> content.
    files: Mapping[str, bytes] = field(repr=False)
    #: Variables, in whose values ``{directory}`` stands for that directory.
    environment: Mapping[str, str]
    #: Whose it is; empty if the hub didn't say.
    user: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A credential that the hub can make."""

    name: str
    title: str
    #: Seconds that it lives at most; None if the hub doesn't decide that.
    lifetime: int | None
    #: Whether the hub's token is for it.
    allowed: bool


def issued(name: str, answer: Any) -> Issued:
    """The credential of this name, from the hub's JSON. Raises ClientError."""
    try:
        files = {_file(path): base64.b64decode(content, validate=True) for path, content in answer["files"].items()}
        expires = answer["expires_at"]
        environment = answer.get("environment") or {}
        result = Issued(
            name=answer["name"],
            title=_text(answer["title"]),
            issued_at=moment(answer["issued_at"]),
            expires_at=None if expires is None else moment(expires),
            files=files,
            environment={key: _text(value) for key, value in environment.items() if is_variable(key)},
            user=_text(answer.get("user", "")),
        )
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error):
        raise ClientError(name, "the hub's answer is no credential", _TELL) from None
    if result.name != name or not files:
        raise ClientError(name, "the hub's answer is another credential, or has no files", _TELL)
    return result


def offers(answer: Any) -> tuple[str, list[Offer]]:
    """The user's name, and what the hub can make for them. Raises ClientError."""
    try:
        found = [
            Offer(
                name=each["name"],
                title=_text(each["title"]),
                lifetime=None if each.get("lifetime") is None else int(each["lifetime"]),
                allowed=each["allowed"] is True,
            )
            for each in answer["credentials"]
        ]
        if not all(is_credential(offer.name) for offer in found):
            raise ValueError("not a name")  # noqa: TRY301 - it is told with the others
        return _text(answer["user"]), found
    except (KeyError, TypeError, ValueError):
        raise ClientError("the hub", "its answer is no list of credentials", _TELL) from None


def _file(path: object) -> str:
    if not isinstance(path, str) or not is_file(path):
        raise ValueError("not a file's name")
    return path


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("not a text")
    return value
