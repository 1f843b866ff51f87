"""What verifiers read: the issuer's description and its keys.

Sources: OpenID Connect Discovery 1.0 (3), RFC 8414; the JWKS cache file is that of scitokens-cpp and Pelican.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from tornado.web import RequestHandler

from casa_hub.errors import CredentialError
from casa_hub.issuer.settings import PATH, FacilityIssuer

#: Below `FacilityIssuer.iss`. The first is where verifiers look.
DISCOVERY, JWKS = ".well-known/openid-configuration", "jwks"
#: Seconds for which a proxy may keep an answer. Short beside `FacilityIssuer.key_lead`.
FRESH = 300
#: Seconds that a verifier may use a JWKS cache file: what the WLCG profile allows at most.
CACHE_LIFETIME = 4 * 86400


def discovery(issuer: FacilityIssuer) -> dict[str, Any]:
    """The issuer's description, for verifiers only: nobody logs in here."""
    return {
        "issuer": issuer.iss,
        "jwks_uri": f"{issuer.iss}/{JWKS}",
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256", "RS256"],
    }


def cache_file(issuer: FacilityIssuer, now: float) -> tuple[str, str]:
    """Name and content of the JWKS cache file, for verifiers that can't reach the issuer. Raises CredentialError."""
    content = {issuer.iss: {"expiration": int(now) + CACHE_LIFETIME, "jwks": issuer.jwks(now)}}
    return sha256(issuer.iss.encode()).hexdigest(), json.dumps(content, indent=1) + "\n"


class _Document(RequestHandler):
    """A public document. It isn't one of JupyterHub's handlers, which look at cookies and the database first."""

    def initialize(self, issuer: FacilityIssuer) -> None:
        self._issuer = issuer

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", f"public, max-age={FRESH}")

    def head(self) -> None:
        self.get()

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002
        """No proxy may keep an error: who wants to keep verifiers from the keys would only have to ask wrongly."""
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"error": HTTPStatus(status_code).phrase}))

    def _log(self) -> None:
        """No line and no metric for an answer that went well: verifiers ask often, and each line costs more than it."""
        if self.get_status() >= HTTPStatus.INTERNAL_SERVER_ERROR:
            super()._log()


class DiscoveryHandler(_Document):
    def get(self) -> None:
        self.finish(json.dumps(discovery(self._issuer)))


class JWKSHandler(_Document):
    def get(self) -> None:
        try:
            document = json.dumps(self._issuer.jwks(time.time()))
        except CredentialError:  # the log has it (`KeyDirectory`), and it names files of the hub
            self.set_status(HTTPStatus.SERVICE_UNAVAILABLE)
            self.set_header("Cache-Control", "no-store")
            document = json.dumps({"error": "the issuer has no usable key; its operator's log says why"})
        self.finish(document)


def handlers(issuer: FacilityIssuer) -> list[tuple[Any, ...]]:
    """For the hub's application, below its prefix."""
    below = f"/{PATH}/{issuer.vo.replace('.', '[.]')}"
    return [
        (f"{below}/{DISCOVERY.replace('.', '[.]')}", DiscoveryHandler, {"issuer": issuer}),
        (f"{below}/{JWKS}", JWKSHandler, {"issuer": issuer}),
    ]
