"""What goes wrong between this hub and an identity provider, with what it means for the person."""

from __future__ import annotations

from casa_hub.errors import CasaError
from casa_hub.identity.verdicts import Answer, Verdict


class OIDCError(CasaError):
    """The identity provider's answer is no usable one; `answer` has the verdict and the reason."""

    def __init__(self, thing: str, answer: Answer, remedy: str = "") -> None:
        super().__init__(thing, answer.reason.rstrip("."), remedy)
        self.answer = answer


class TokenError(OIDCError):
    """A token or userinfo that must not be believed: forged, foreign, expired or malformed."""

    def __init__(self, thing: str, problem: str) -> None:
        super().__init__(thing, Answer(Verdict.CANT_SAY, problem))


def cant_say(thing: str, reason: str, remedy: str = "") -> OIDCError:
    return OIDCError(thing, Answer(Verdict.CANT_SAY, reason), remedy)
