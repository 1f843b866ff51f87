"""Errors between this hub and an identity provider, each with its verdict on the person."""

from __future__ import annotations

from casa_hub.errors import CasaError
from casa_hub.identity.verdicts import Answer, Verdict


class OIDCError(CasaError):
    """The identity provider refused, or gave no usable answer; `answer` has the verdict and the reason for people."""

    def __init__(self, thing: str, answer: Answer, remedy: str = "", *, problem: str = "") -> None:
        super().__init__(thing, problem or answer.reason.rstrip("."), remedy)
        self.answer = answer


class TokenError(OIDCError):
    """A token or userinfo that must not be believed: forged, foreign, expired or malformed."""

    def __init__(self, thing: str, problem: str) -> None:
        super().__init__(thing, _unusable(thing, problem), problem=problem)


def cant_say(thing: str, problem: str, remedy: str = "") -> OIDCError:
    """The error of a request without a usable answer, which says nothing about the person."""
    return OIDCError(thing, _unusable(thing, problem), remedy, problem=problem)


def _unusable(thing: str, problem: str) -> Answer:
    # People read the reason on a page, without the error's thing before it.
    return Answer(Verdict.CANT_SAY, f"The identity provider gave no usable answer ({thing}: {problem}).")
