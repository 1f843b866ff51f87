"""A token that the facility's own issuer signs for a user, as the WLCG Common JWT Profile 1.3 has it.

One room for all credentials that are such tokens: what differs is the audience, the scope and the life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from casa_hub.credentials.base import Minter, Request, new_identifier
from casa_hub.errors import CredentialError
from casa_hub.issuer.tokens import LONGEST, wlcg_claims


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
    life = request.lifetime(min(lifetime, LONGEST))
    identifiers = {"jti": new_identifier(request.server), "sub": subject, "aud": audience}
    claims = wlcg_claims(
        issuer=issuer.iss,
        subject=subject,
        audience=audience,
        identifier=identifiers["jti"],
        scope=scope,
        issued_at=int(issued_at.timestamp()),
        lifetime=int(life.total_seconds()),
    )
    return Issued(issuer.sign(claims, request.now.timestamp()), issued_at, issued_at + life, identifiers)
