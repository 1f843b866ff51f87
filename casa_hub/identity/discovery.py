"""Pure: the discovery document of an issuer (OpenID Connect Discovery 1.0), checked once and then plain data."""

from __future__ import annotations

from dataclasses import dataclass

from casa_hub.identity.errors import cant_say
from casa_hub.identity.signatures import ALGORITHMS

#: What is asked of a provider, and what is used where it is offered.
REQUIRED_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")
OPTIONAL_ENDPOINTS = ("end_session_endpoint", "revocation_endpoint")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What of the issuer's discovery document is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str
    jwks_uri: str
    algorithms: frozenset[str]
    end_session_endpoint: str = ""
    revocation_endpoint: str = ""


def read(document: object, *, url: str, issuer: str) -> Metadata:
    """The discovery document of this issuer (Discovery 3), or the error that says what is wrong with it."""
    if not isinstance(document, dict):
        raise cant_say(url, "discovery didn't answer with a JSON object", "Check CasaOAuthenticator.issuer")
    named = _text(document.get("issuer"))
    # Exactly (Discovery 4.3); only in the operator's own text is a missing or surplus slash forgiven.
    if named.rstrip("/") != issuer.rstrip("/"):
        raise cant_say(
            url,
            f"the document is that of the issuer {named[:200]!r}, not of {issuer!r}",
            "Set CasaOAuthenticator.issuer to what the provider calls itself",
        )
    endpoints = {name: _text(document.get(name)) for name in (*REQUIRED_ENDPOINTS, *OPTIONAL_ENDPOINTS)}
    missing = [name for name in REQUIRED_ENDPOINTS if not endpoints[name]]
    if missing:
        raise cant_say(url, f"the document has no {', '.join(missing)}", "This provider can't be used")
    offered = document.get("id_token_signing_alg_values_supported")
    algorithms = ALGORITHMS & {str(name) for name in offered} if isinstance(offered, list) else ALGORITHMS
    if not algorithms:
        raise cant_say(
            url, "the provider signs ID tokens with no asymmetric algorithm", f"Needed: {sorted(ALGORITHMS)}"
        )
    return Metadata(issuer=named, algorithms=algorithms, **endpoints)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
