"""What a program on a laptop asks for in the browser, and the codes that it redeems for a token. No I/O.

OAuth 2.0 for native apps (RFC 8252) with PKCE (RFC 7636): the program listens at a port of the loopback address, and
opens the hub's page with that address and a hash of its secret, the verifier. The page sends the browser back with a
code, which is worth nothing without the verifier.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from casa_hub.text import printable

#: Seconds within which a program redeems its code, and codes at most of one user at the same time.
CODE_AGE, MOST_CODES = 60.0, 5
#: Characters of a computer's name that are shown.
_CLIENT_LENGTH = 64
_LAST_PORT = 65535

#: The whole address, so that no parser can see another host in it. Only addresses: the name ``localhost`` may resolve
#: elsewhere (RFC 8252, 8.3).
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]):([1-9][0-9]{0,4})(/[A-Za-z0-9._~/-]{0,100})?")
_STATE = re.compile(r"[!-~]{1,512}")
#: SHA-256 in Base64 for URLs without padding (RFC 7636, 4.2), and a verifier (4.1).
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class AskedWronglyError(ValueError):
    """The address of the page isn't what a program of ours makes: a sentence for people."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a program asks for."""

    #: Where the browser is sent back to.
    redirect_uri: str
    #: The program's own, returned as it is.
    state: str
    challenge: str
    #: Names of credentials; none means all that the user may have.
    credentials: tuple[str, ...]
    #: How the program calls its computer. Not to be trusted.
    client: str

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> Asked:
        """From the arguments of the page. Raises AskedWronglyError."""

        def given(name: str, pattern: re.Pattern[str], problem: str) -> re.Match[str]:
            match = pattern.fullmatch(arguments.get(name, ""))
            if match is None:
                raise AskedWronglyError(f"{name} {problem}.")
            return match

        address = given("redirect_uri", _LOOPBACK, "must be http://127.0.0.1:PORT/... of your own computer")
        if int(address[2]) > _LAST_PORT:
            raise AskedWronglyError("redirect_uri has a port that no computer has.")
        if arguments.get("code_challenge_method") != "S256":
            raise AskedWronglyError("code_challenge_method must be S256.")
        names = [name.strip() for name in arguments.get("credentials", "").split(",")]
        return cls(
            redirect_uri=address[0],
            state=given("state", _STATE, "must have 1 to 512 ASCII characters")[0],
            challenge=given("code_challenge", _CHALLENGE, "must be a SHA-256 in Base64 for URLs, without padding")[0],
            credentials=tuple(dict.fromkeys(filter(None, names))),
            client=" ".join(printable(arguments.get("client", "")).split())[:_CLIENT_LENGTH].strip() or "a computer",
        )

    def arguments(self) -> dict[str, str]:
        """For the form of the page: what `parse` reads again."""
        return {
            "redirect_uri": self.redirect_uri,
            "state": self.state,
            "code_challenge": self.challenge,
            "code_challenge_method": "S256",
            "credentials": ",".join(self.credentials),
            "client": self.client,
        }

    def answer(self, **answer: str) -> str:
        """The address to which the browser is sent back."""
        return f"{self.redirect_uri}?{urlencode({**answer, 'state': self.state})}"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a person has allowed a program."""

    user_id: int
    username: str
    #: Of the person's log-in at the identity provider.
    session_id: str
    scopes: tuple[str, ...]
    client: str


@dataclass(slots=True)
class _Code:
    grant: Grant
    challenge: str
    ends: float = field(default=0.0)


class Codes:
    """Codes that were given out and not yet redeemed; in memory. Each can be tried once, within `CODE_AGE`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds, never put back."""
        self._clock = clock
        self._codes: dict[str, _Code] = {}

    def new(self, grant: Grant, challenge: str) -> str:
        """A code for what was allowed to the program whose verifier has this challenge."""
        now = self._clock()
        self._codes = {code: one for code, one in self._codes.items() if now < one.ends}
        theirs = [code for code, one in self._codes.items() if one.grant.user_id == grant.user_id]
        for oldest in theirs[: max(0, len(theirs) + 1 - MOST_CODES)]:
            del self._codes[oldest]
        code = secrets.token_urlsafe(32)
        self._codes[code] = _Code(grant, challenge, now + CODE_AGE)
        return code

    def redeem(self, code: str, verifier: str) -> Grant | None:
        """What the code stands for; None if it is unknown, used, too old or another program's. It is gone then."""
        found = self._codes.pop(code, None)
        if found is None or self._clock() >= found.ends or not _VERIFIER.fullmatch(verifier):
            return None
        return found.grant if hmac.compare_digest(challenge_of(verifier), found.challenge) else None


def challenge_of(verifier: str) -> str:
    """The challenge S256 of a verifier (RFC 7636, 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
