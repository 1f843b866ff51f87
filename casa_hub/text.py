"""Text as it may be shown: safe for a terminal or a log, and with the full stop that ends a sentence."""

from __future__ import annotations


def printable(text: object) -> str:
    """Text in one line: a blank in place of each character that could move a cursor or begin another line."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def sentence(text: str) -> str:
    """The text with a full stop at its end, unless it is empty or has an end already."""
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."
