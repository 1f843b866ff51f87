"""A token that the facility's own issuer signs for a user, as the WLCG Common JWT Profile 1.3 has it.

One room for all credentials that are such tokens: what differs is the audience, the scope and the life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from casa_hub.credentials.base import Minter, Request, new_identifier
from casa_hub.errors import CredentialError

#: Seconds. The profile wants access tokens to live for 15 minutes to 6 hours.
LONGEST = 6 * 3600
#: Seconds before a token is issued from which on it is valid, so that a verifier whose clock is late takes it at once;
#: the profile allows so many.
_SLACK = 60


@dataclass(frozen=True, slots=True)
class Issued:
    """One token."""

    value: str = field(repr=False)
    #: Aware UTC, whole seconds, as in the token.
    issued_at: datetime
    expires_at: datetime
    #: ``jti``, ``sub`` and ``aud``, for `Credential.identifiers`.
    identifiers: Mapping[str, str]


def issue(minter: Minter, request: Request, *, audience: str, scope: str, lifetime: int) -> Issued:
    """Sign a token for the user of a request.

    Args:
        minter: whose token it is; `Minter.issuer` signs it.
        request: for whom and when.
        audience: ``aud``. Verifiers compare it as text.
        scope: ``scope``, words with a blank between them: ``storage.read:/store``.
        lifetime: seconds, at most `LONGEST`; `Request.longest` shortens it.

    Raises:
        CredentialError: the facility has no issuer, no key may sign, or the user has no usable name.
    """
    issuer = minter.issuer
    if issuer is None:
        raise CredentialError("FacilityIssuer.keys", "is not set, so no token can be signed", "Set up the issuer.")
    token = request.token
    subject = issuer.subject_of(request.server.username, "" if token is None else token.subject)
    issued_at = request.now.replace(microsecond=0)
    expires_at = issued_at + request.lifetime(min(lifetime, LONGEST))
    identifiers = {"jti": new_identifier(request.server), "sub": subject, "aud": audience}
    at = int(issued_at.timestamp())
    value = issuer.sign(
        {
            "wlcg.ver": "1.0",
            **identifiers,
            "iat": at,
            "nbf": at - _SLACK,
            "exp": int(expires_at.timestamp()),
            "scope": scope,
        },
        request.now.timestamp(),
    )
    return Issued(value, issued_at, expires_at, identifiers)
