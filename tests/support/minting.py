"""What the tests of minters share: one user, one clock, secrets that are easy to find in a text."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from pathlib import Path

from casa_hub.credentials.base import AccessToken, Credential, Request
from casa_hub.naming import Server

NOW = datetime(2026, 11, 21, 4, 0, 0, 123456, tzinfo=UTC)
START = "00112233445566778899aabbccddeeff"

#: What JupyterHub, or an identity provider without manners, may take for a user name.
HOSTILE = [
    "alice",
    "Alice",
    "josé",
    "jose\u0301",
    "../alice",
    "..",
    ".",
    "...",
    "a" * 200,
    "a" * 199 + "b",
    "😀" * 255,
    'a"b',
    "a'b",
    "a\nb",
    "a\r\nb",
    "a b",
    "a/b",
    "a\\b",
    "a\0b",
    "a%0Ab",
    "{username}",
    "alice@example.org",
    "*",
    "-rf",
    "a|b&c",
    " ",
]


def request(
    username: str = "alice",
    name: str = "",
    *,
    hub_id: str = "",
    start_id: str = START,
    now: datetime = NOW,
    token: AccessToken | None = None,
    state: dict[str, str] | None = None,
) -> Request:
    return Request(Server(hub_id, username, name), start_id, now, token, state or {})


def write(path: Path, content: bytes, mode: int = 0o400) -> str:
    """A key file, replaced as a whole if it is there."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.chmod(mode)
    new.rename(path)
    return str(path)


def encodings(secret: bytes) -> list[str]:
    """How a secret might be told by accident; pieces of it too."""
    pieces = [secret, secret[:12], secret[-12:]]
    texts = [text for piece in pieces for text in (piece.hex(), base64.b64encode(piece).decode().rstrip("="))]
    return [*texts, *(repr(piece)[2:-1] for piece in pieces)]


def shown(thing: object) -> str:
    """All that an ordinary print, log line or traceback would show of a thing."""
    texts = [repr(thing), str(thing)]
    if isinstance(thing, BaseException):
        texts += [repr(thing.args), shown(thing.__cause__) if thing.__cause__ else ""]
        if thing.__context__ and not thing.__suppress_context__:
            texts.append(shown(thing.__context__))
    return "\n".join(texts)


def assert_tells_nothing(thing: object, *secrets: bytes) -> None:
    text = shown(thing)
    found = [secret[:4] for secret in secrets for encoded in encodings(secret) if encoded in text]
    assert not found, f"{type(thing).__name__} shows the secret that begins with {found}"


def public_text(credential: Credential) -> str:
    """All of a credential that may be logged, stored and shown."""
    return repr(credential) + repr(dict(credential.identifiers)) + credential.summary + repr(dict(credential.state))


def assert_ascii_and_one_line(text: str) -> None:
    assert re.fullmatch(r"[!-~]+", text), ascii(text)
