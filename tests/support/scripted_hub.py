"""A hub whose answers a test writes: for a client that meets what no sound hub does."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Of a request that was asked for nothing else.
Answer = tuple[int, Any]


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class ScriptedHub:
    """`answers`: path -> status and body (bytes as they are, others as JSON), or a function of the request."""

    url: str
    answers: dict[str, Answer | Callable[[Asked], Answer]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)


def credential(name: str = "xcache", *, life: float = 3600, **changed: Any) -> dict[str, Any]:
    """A sound answer to the request for a credential."""
    now = datetime.now(UTC)
    files = {"xcache": {"xcache_token": b"MACAROON"}, "dask": {"ca.pem": b"CA", "usercert.pem": b"CERT"}}
    answer = {
        "name": name,
        "title": {"xcache": "XCache macaroon", "dask": "Dask certificates"}.get(name, name),
        "user": "alice",
        "issued_at": now.isoformat(),
        "expires_at": (now + timedelta(seconds=life)).isoformat(),
        "identifiers": {"identifier": "alice/1"},
        "files": files.get(name, {f"{name}_token": b"TOKEN"}),
        "environment": {},
    }
    answer |= changed
    answer["files"] = {path: base64.b64encode(content).decode() for path, content in answer["files"].items()}
    return answer


@contextlib.contextmanager
def scripted_hub(tls: ssl.SSLContext | None = None) -> Iterator[ScriptedHub]:
    """A context with such a hub on loopback, with TLS if there is a context of it.

    What it has no answer for is answered by 404, as by a JupyterHub.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            asked = Asked(self.command, self.path, dict(self.headers), body)
            hub.asked.append(asked)
            answer = hub.answers.get(self.path, (404, {"status": 404, "message": "Not Found"}))
            status, content = answer(asked) if callable(answer) else answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **hub.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer  # noqa: N815 - the names are http.server's

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """A client that went away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        hub = ScriptedHub(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
