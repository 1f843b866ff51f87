"""What stands in the way, and the exit code that follows. No error ever holds a secret.

The grammar is that of `casa_hub.errors`: "thing: problem. Remedy."
"""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """The hub couldn't be asked, or its answer can't be used. Asking again later may help."""

    #: Of the command that ends with it.
    code: ClassVar[int] = 2

    def __init__(self, thing: str, problem: str, remedy: str = "") -> None:
        if remedy and not remedy.endswith((".", "?", "!")):
            remedy += "."
        super().__init__(printable(f"{thing}: {problem.rstrip('.')}. {remedy}".rstrip()))


class RefusedError(ClientError):
    """The hub was asked and said no. Asking again with the same token doesn't help."""

    code: ClassVar[int] = 1


class TokenRefusedError(RefusedError):
    """The hub doesn't know the token, or the token isn't for this: another one may help."""


def printable(text: object) -> str:
    """Text in one line: a blank in place of each character that could move a cursor or begin another line."""
    return "".join(character if character.isprintable() else " " for character in str(text))
