"""Text as it may be shown: safe for a terminal or a log, without tokens, with the full stop that ends a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping

_CODE = re.compile(r"[a-z_]{1,40}")
#: Printable ASCII without the quoting characters of HTML and of logs.
_UNSAFE = re.compile(r"[^ !#$%()*+,\-./0-9:;=?@A-Z\[\]^_a-z{|}~]+")
_DESCRIPTION_LENGTH = 120
_WORD_LENGTH = 24
_HANDLE_LENGTH = 8


def printable(text: object) -> str:
    """Text in one line: a blank in place of each character that could move a cursor or begin another line."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def sentence(text: str) -> str:
    """The text with a full stop at its end, unless it is empty or has an end already."""
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def oauth_error(body: object) -> tuple[str, str]:
    """``error`` and ``error_description`` of a JSON body (RFC 6749, 5.2); each "" if it is missing or not text."""
    if not isinstance(body, Mapping):
        return "", ""
    code, description = body.get("error"), body.get("error_description")
    return code if isinstance(code, str) else "", description if isinstance(description, str) else ""


def provider_words(code: str, description: str) -> str:
    """Error code and description without words that may be tokens: some providers quote the refused token."""
    shown = code if _CODE.fullmatch(code) else "unknown error code"
    words = (word for word in _UNSAFE.sub(" ", description).split() if not _may_be_secret(word))
    text = " ".join(words)[:_DESCRIPTION_LENGTH].rstrip()
    return f"{shown}: {text}" if text else shown


def _may_be_secret(word: str) -> bool:
    """Whether a word is longer than those of known descriptions ("user_session_not_found"), or like hexadecimal."""
    return len(word) > _WORD_LENGTH or (len(word) >= _HANDLE_LENGTH and any(c.isdigit() for c in word))
