"""What makes proxies for a person's token: IAM's end point, and a small service. Both are WSGI applications.

A stand-in of IAM 1.12 (``iam-login-service``: `ProxyCertificatesApiController`, `DefaultProxyCertificateService` and
their tests). It asks for the client's secret in the form, besides the person's token in the header, and says so in the
same words. It makes a proxy of the one that the person has stored, from now on and with a new key, and doesn't look
whether what it makes outlives that one.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from casa_hub.demo.certificates import make_host_certificate
from tests.support.idp import IdP
from tests.support.proxies import Holder

PATH = "/iam/proxycert"
_SHORTEST, _LONGEST_ISSUER = 120, 128

Reply = tuple[int, dict[str, Any]]


@dataclass
class Proxies:
    """Who has stored what there; how the answers are made."""

    #: Access token -> subject of the person; "" for a token that nobody has.
    owner: Callable[[str], str]
    #: Access token -> its scopes.
    scopes: Callable[[str], Iterable[str]]
    #: Subject -> the proxy that the person has stored: IAM's `grid-proxy-init` for a year.
    stored: dict[str, Holder] = field(default_factory=dict)
    #: ``proxycert.max-lifetime-seconds``.
    longest: int = 43200
    #: Seconds that a proxy really lives, whatever is asked for; for tests of renewals.
    life: float | None = None
    #: What it sends instead of a sound answer.
    change: Callable[[Reply], Reply] = lambda reply: reply
    #: Of each request: subject, and the form without secrets.
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    #: All that was handed out, to be searched for in logs.
    handed_out: list[str] = field(default_factory=list, repr=False)

    def make(self, sub: str, seconds: float) -> Holder:
        return self.stored[sub].proxy(timedelta(seconds=seconds if self.life is None else self.life))

    def iam(self, client_id: str, client_secret: str) -> Any:
        """IAM's end point, for `IdP.answers`, as a WSGI application."""

        def answer(token: str, form: dict[str, str]) -> Reply:
            client = form.pop("client_id", None), form.pop("client_secret", "")
            sub = self.owner(token)
            if client[0] is None:
                return _error(401, "unauthorized", "No client credentials found in request")
            if client != (client_id, client_secret):
                return _error(401, "unauthorized", "Bad credentials")
            if not sub:
                return _error(401, "invalid_token", "Invalid access token: " + token)
            if "proxy:generate" not in self.scopes(token):
                return _error(403, "access_denied", "Access is denied")
            self.asked.append((sub, form))
            return self._of_stored(sub, form)

        return self._application(answer)

    def _of_stored(self, sub: str, form: dict[str, str]) -> Reply:
        seconds = int(form.get("lifetimeSecs", self.longest))
        if len(form.get("issuer", "")) > _LONGEST_ISSUER:
            return _error(400, "invalid issuer: max length exceeded (128 characters)")
        if seconds < _SHORTEST:
            return _error(400, "invalid lifetime: minimum is 120 seconds")
        stored = self.stored.get(sub)
        if stored is None or form.get("issuer", stored.authority) != stored.authority:
            return _error(412, f"No proxy found for account '{sub}'")
        if stored.certificate.not_valid_after_utc < datetime.now(UTC):
            return _error(412, f"No valid proxy found for account '{sub}'")
        made = self.make(sub, min(seconds, self.longest))
        return 200, {
            "subject": made.certificate.subject.rfc4514_string(),
            "issuer": made.certificate.issuer.rfc4514_string(),
            "identity": made.above[-1].subject.rfc4514_string(),
            "not_after": str(int(made.certificate.not_valid_after_utc.timestamp() * 1000)),
            "certificate_chain": made.pem,
        }

    def service(self) -> Any:
        """A service by the contract of US ATLAS' redeem."""

        def answer(token: str, form: dict[str, str]) -> Reply:
            sub = self.owner(token)
            if not sub:
                return 401, {"detail": "invalid token"}
            self.asked.append((sub, form))
            if sub not in self.stored:
                return 404, {"detail": "no proxy available for this caller"}
            made = self.make(sub, self.longest)
            end = made.certificate.not_valid_after_utc
            return 200, {
                "pem": made.pem,
                "dn": made.identity,
                "voms_attributes": ["/atlas/Role=NULL/Capability=NULL"],
                "expires_at": end.isoformat(),
                "remaining_seconds": int((end - datetime.now(UTC)).total_seconds()),
            }

        return self._application(answer)

    def _application(self, answer: Callable[[str, dict[str, str]], Reply]) -> Any:
        def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            if environ["REQUEST_METHOD"] != "POST":
                status, body = _error(405, "Method Not Allowed")
            else:
                sent = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
                form = {name: values[0] for name, values in parse_qs(sent).items()}
                token = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
                status, body = self.change(answer(token, form))
            self.handed_out += [str(body[name]) for name in ("certificate_chain", "pem") if name in body]
            text = json.dumps(body).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
            start_response(f"{status} Answered", headers)
            return [text]

        return application


def beside(idp: IdP) -> Proxies:
    """One that knows the tokens of this identity provider."""

    def scopes(token: str) -> list[str]:
        return next((str(one["scope"]).split() for one in idp.token_answers if one["access_token"] == token), [])

    return Proxies(idp.owner, scopes)


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """The tests look at what is answered."""


@dataclass(frozen=True)
class Served:
    """Where an application is."""

    url: str
    ca_file: Path


@contextlib.contextmanager
def served(application: Any, directory: Path) -> Iterator[Served]:
    """A context in which an application is served by https on loopback, with a certificate of an own authority."""
    tls = make_host_certificate(directory)
    server: WSGIServer = make_server("127.0.0.1", 0, application, handler_class=_Quiet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(f"https://localhost:{server.server_port}", tls.ca_file)
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def _error(status: int, error: str, description: str = "") -> Reply:
    return status, {"error": error} | ({"error_description": description} if description else {})
