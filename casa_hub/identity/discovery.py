"""Pure: reads the discovery document of an issuer (OpenID Connect Discovery 1.0)."""

from __future__ import annotations

from dataclasses import dataclass

from casa_hub.identity.errors import cant_say
from casa_hub.identity.signatures import ALGORITHMS

#: Endpoints that a provider must have.
REQUIRED_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The part of the discovery document that this hub uses."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str
    jwks_uri: str
    algorithms: frozenset[str]
    #: "" for a provider that ends no tokens.
    revocation_endpoint: str = ""


def document_url(issuer: str) -> str:
    """Where an issuer's discovery document is (Discovery 4)."""
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


def read(document: object, *, url: str, issuer: str) -> Metadata:
    """Read and check the discovery document of an issuer (Discovery 3).
    Raises OIDCError if it is another issuer's, or if this hub can't work with it.
    """
    if not isinstance(document, dict):
        raise cant_say(url, "discovery didn't answer with a JSON object", "Check CasaOAuthenticator.issuer.")
    named = _text(document.get("issuer"))
    if not same_issuer(named, issuer):  # they must be equal (Discovery 4.3), but for what an operator has written
        raise cant_say(
            url,
            f"the document is that of the issuer {named[:200]!r}, not of {issuer!r}",
            "Set CasaOAuthenticator.issuer to the name that the provider gives itself.",
        )
    endpoints = {name: _text(document.get(name)) for name in (*REQUIRED_ENDPOINTS, "revocation_endpoint")}
    missing = [name for name in REQUIRED_ENDPOINTS if not endpoints[name]]
    if missing:
        raise cant_say(url, f"the document has no {', '.join(missing)}", "This provider can't be used.")
    offered = document.get("id_token_signing_alg_values_supported")
    algorithms = ALGORITHMS & {str(name) for name in offered} if isinstance(offered, list) else ALGORITHMS
    if not algorithms:
        remedy = f"Let it sign with one of {', '.join(sorted(ALGORITHMS))}."
        raise cant_say(url, "the provider signs ID tokens with no asymmetric algorithm", remedy)
    return Metadata(issuer=named, algorithms=algorithms, **endpoints)


def same_issuer(one: str, other: str) -> bool:
    """Whether two names are one issuer's: operators write it with or without its last slash."""
    return one.rstrip("/") == other.rstrip("/")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
