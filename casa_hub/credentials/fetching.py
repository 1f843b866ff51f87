"""Pure: what a credential needs of somebody else, who gives it for the person's own token.

Such a minter names the request in `Minter.fetch`. `casa_hub.membership.fetching` asks, keeps what was fetched with the
log-in, and hands it to `Minter.mint` in `Request.fetched`. So a minter does no I/O, and knows all about its request:
what it is, and what an answer means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import blake2s
from typing import Any, TypeAlias

from casa_hub.errors import CredentialError

#: `Fetch.url` of a request to the token endpoint of the identity provider.
TOKEN_ENDPOINT = ""

#: Part of its life for which something fetched is given to new servers; the part of a life by which that is spread.
_COUNTS, _JITTER = 2 / 3, 0.05


class Why(StrEnum):
    """Why nothing was fetched; by that somebody acts, or waits."""

    #: No usable answer. It is tried again.
    OUTAGE = "outage"
    #: An explicit refusal of this one thing: the person or the operator has to do something.
    REFUSED = "refused"
    #: The person's token is refused, for instance because the sign-in was taken back.
    SIGN_IN = "sign-in"


class FetchError(CredentialError):
    """Nothing was fetched: the thing, the problem, what the person or the operator does about it. Not secret."""

    def __init__(self, thing: str, problem: str, remedy: str, why: Why = Why.OUTAGE) -> None:
        super().__init__(thing, problem, remedy)
        self.why = why


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched."""

    #: A token, or PEM. Never printed or logged; kept in the encrypted auth state.
    value: str = field(repr=False)
    #: Aware UTC.
    at: datetime
    #: Aware UTC.
    expires_at: datetime

    def counts_until(self, key: str) -> datetime:
        """Until when new servers get it: two thirds of its life, a little more or less for each `key`."""
        part = int.from_bytes(blake2s(key.encode(), digest_size=4).digest()) / 0xFFFFFFFF * 2 - 1
        return self.at + (_COUNTS + _JITTER * part) * (self.expires_at - self.at)

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        return {"value": self.value, "at": self.at.timestamp(), "expires_at": self.expires_at.timestamp()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Fetched:
        """Raises KeyError, TypeError, ValueError or OverflowError for what `to_document` didn't write."""
        value = document["value"]
        if not isinstance(value, str):
            raise TypeError
        at, expires_at = (datetime.fromtimestamp(document[name], UTC) for name in ("at", "expires_at"))
        return cls(value, at, expires_at)


#: Name of a credential -> what was fetched for it, or why nothing was.
Outcomes: TypeAlias = Mapping[str, Fetched | CredentialError]


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer to a `Fetch`."""

    #: HTTP status; never 408, 429 or 500 and above, which count as no answer.
    status: int
    #: JSON value; None if the answer is no JSON.
    body: object = field(repr=False)
    #: The clock, aware UTC.
    now: datetime
    #: ``iss`` and ``sub`` of the person at the identity provider.
    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """One request: a POST with a form, for the person's own access token."""

    #: For people, after "asking for": "a token for Rucio".
    title: str
    #: What an answer means. Pure; must not trust it. Raises FetchError.
    read: Callable[[Answer], Fetched] = field(repr=False)
    #: Where to. `TOKEN_ENDPOINT`: this hub's client asks, and the person's token is the form's ``subject_token``
    #: (RFC 8693). ``/path``: below the issuer of the identity provider, with the token as ``Authorization: Bearer`` and
    #: this hub's client in the form. Else a URL of the operator's, https or loopback, with the token likewise.
    url: str = TOKEN_ENDPOINT
    form: Mapping[str, str] = field(default_factory=dict)
    #: PEM file with the certificate authority of a URL of the operator's; "" for the system's.
    ca_file: str = ""
    #: Scope that the person's token must have, so that the hub has to ask for it at the log-in; "" if none is known.
    scope: str = ""

    @property
    def fingerprint(self) -> str:
        """Another request has another one: what was fetched by other settings is not used any more."""
        told = repr((self.url, sorted(self.form.items())))
        return blake2s(told.encode(), digest_size=8).hexdigest()
