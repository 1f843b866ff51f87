"""What makes proxies for a person's token: IAM's end point, and a small service. Both are WSGI applications."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from casa_hub.demo.certificates import make_host_certificate
from casa_hub.demo.proxies import Holder
from casa_hub.demo.proxycert import ProxyCertificates, Reply, refused
from tests.support.idp import IdP


@dataclass
class Proxies(ProxyCertificates):
    """Who has stored what there; how the answers are made."""

    #: Seconds that a proxy really lives, whatever is asked for; for tests of renewals.
    life: float | None = None
    #: What it sends instead of a sound answer.
    change: Callable[[Reply], Reply] = lambda reply: reply
    #: Of each request: subject, and the form without secrets.
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    #: All that was handed out, to be searched for in logs.
    handed_out: list[str] = field(default_factory=list, repr=False)

    def make(self, sub: str, seconds: float) -> Holder:
        # With a key that was made before: a new one takes a quarter of a second.
        return self.stored[sub].proxy(timedelta(seconds=seconds if self.life is None else self.life))

    def of_stored(self, sub: str, form: Mapping[str, str]) -> Reply:
        self.asked.append((sub, {name: text for name, text in form.items() if not name.startswith("client_")}))
        return super().of_stored(sub, form)

    def iam(self, client_id: str, client_secret: str) -> Any:
        """IAM's end point, for `IdP.answers`, as a WSGI application."""

        def answer(token: str, form: dict[str, str]) -> Reply:
            client = form.get("client_id"), form.get("client_secret", "")
            return self.answer(token, form, knows_client=client == (client_id, client_secret))

        return self._application(answer)

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
                status, body = refused(405, "Method Not Allowed")
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
