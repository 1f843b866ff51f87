"""A stand-in of IAM's end point that makes a proxy for a person's token.

It follows IAM 1.12 (``iam-login-service``: `ProxyCertificatesApiController`, `DefaultProxyCertificateService` and
their tests). It asks for the client's secret in the form, besides the person's token in the header, and says so in the
same words. It makes a proxy of the one that the person has stored, from now on and with a new key, and doesn't look
whether what it makes outlives that one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from casa_hub.credentials.x509 import SCOPE
from casa_hub.demo.proxies import Holder, new_key

PATH = "/iam/proxycert"
_SHORTEST, _LONGEST_ISSUER = 120, 128

Reply = tuple[int, dict[str, Any]]


@dataclass
class ProxyCertificates:
    """Who has stored what there, and the answers."""

    #: Access token -> subject of the person; "" for a token that nobody has.
    owner: Callable[[str], str]
    #: Access token -> its scopes.
    scopes: Callable[[str], Collection[str]]
    #: Subject -> the proxy that the person has stored: IAM's `grid-proxy-init` for a year.
    stored: dict[str, Holder] = field(default_factory=dict)
    #: ``proxycert.max-lifetime-seconds``.
    longest: int = 43200

    def make(self, sub: str, seconds: float) -> Holder:
        """A proxy of what this person has stored."""
        return self.stored[sub].proxy(timedelta(seconds=seconds), own=new_key())

    def answer(self, token: str, form: Mapping[str, str], *, knows_client: bool) -> Reply:
        """The answer to a request.

        Args:
            token: of ``Authorization: Bearer``.
            form: of the request.
            knows_client: whether ``client_id`` and ``client_secret`` of the form are those of a client.

        Returns:
            Status and JSON object.
        """
        if "client_id" not in form:
            return refused(401, "unauthorized", "No client credentials found in request")
        if not knows_client:
            return refused(401, "unauthorized", "Bad credentials")
        sub = self.owner(token)
        if not sub:
            return refused(401, "invalid_token", "Invalid access token: " + token)
        if SCOPE not in self.scopes(token):
            return refused(403, "access_denied", "Access is denied")
        return self.of_stored(sub, form)

    def of_stored(self, sub: str, form: Mapping[str, str]) -> Reply:
        """The answer to this person."""
        seconds = int(form.get("lifetimeSecs", self.longest))
        if len(form.get("issuer", "")) > _LONGEST_ISSUER:
            return refused(400, "invalid issuer: max length exceeded (128 characters)")
        if seconds < _SHORTEST:
            return refused(400, "invalid lifetime: minimum is 120 seconds")
        stored = self.stored.get(sub)
        if stored is None or form.get("issuer", stored.authority) != stored.authority:
            return refused(412, f"No proxy found for account '{sub}'")
        if stored.certificate.not_valid_after_utc < datetime.now(UTC):
            return refused(412, f"No valid proxy found for account '{sub}'")
        made = self.make(sub, min(seconds, self.longest))
        return HTTPStatus.OK, {
            "subject": made.certificate.subject.rfc4514_string(),
            "issuer": made.certificate.issuer.rfc4514_string(),
            "identity": made.above[-1].subject.rfc4514_string(),
            "not_after": str(int(made.certificate.not_valid_after_utc.timestamp() * 1000)),
            "certificate_chain": made.pem,
        }


def refused(status: int, error: str, description: str = "") -> Reply:
    """The answer of a refusal."""
    return status, {"error": error} | ({"error_description": description} if description else {})
