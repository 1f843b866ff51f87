"""The user's own access token, in the file where WLCG tools and the ServiceX client look for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from casa_hub.credentials.base import BearerKind, Credential, Minter, Renewal, Request
from casa_hub.credentials.tokens import expiry, identifying, is_bearer, unverified_claims
from casa_hub.errors import CredentialError
from casa_hub.moments import when

_LOG_IN = "Log out and in again."


class Bearer(Minter):
    """Delivers the user's access token, which log-in and refresh keep fresh."""

    name: ClassVar[str] = "bearer"
    title: ClassVar[str] = "Access token"
    purpose: ClassVar[str] = "act as you at services that know your identity provider"
    outside: ClassVar[bool] = True
    renewal: ClassVar[Renewal] = "token"
    shortens: ClassVar[bool] = False

    @property
    def bearer_files(self) -> Mapping[str, BearerKind]:
        return {"access_token": BearerKind.OWN}

    def mint(self, request: Request) -> Credential:
        token = request.token
        if token is None:
            raise CredentialError("access token", "is missing: the hub holds none for this user", _LOG_IN)
        if not is_bearer(token.value):
            raise CredentialError(
                "access token",
                "has characters that a bearer token can't have",
                "Tell the identity provider's operator.",
            )
        claims = unverified_claims(token.value)
        expires_at = token.expires_at or expiry(claims)
        if expires_at is not None and expires_at <= request.now:
            raise CredentialError("access token", f"expired at {when(expires_at)}", _LOG_IN)
        issuer = token.issuer or claims.get("iss", "")
        public = {"iss": issuer, "jti": claims.get("jti", "")}
        return Credential(
            name=self.name,
            # No newline: not every reader strips it, and HTTP headers must not have one.
            files={"access_token": token.value.encode()},
            issued_at=request.now,
            expires_at=expires_at,
            identifiers=identifying(public),
            summary=f"issued by {issuer}" if issuer else "issued by the identity provider",
        )
