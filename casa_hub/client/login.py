"""A log-in at the hub in the user's browser, as native programs do it (RFC 8252): the hub sends the browser back to a
server on 127.0.0.1 that lives for this one log-in, with a code which is worth nothing without this process's verifier
(PKCE, RFC 7636).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import queue
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlencode, urlsplit

from .errors import ClientError, RefusedError, printable
from .hub import LogIn, redeem
from .wire import Wire

#: Seconds for a log-in, and between two lines that say it is waited for.
TIMEOUT, _PULSE = 300.0, 60.0

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>casa-hub</title></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""
_DONE = _PAGE.format(title="Logged in", text="You may close this page and go back to your terminal.")
_REFUSED = _PAGE.format(title="Not logged in", text="The hub has refused. Your terminal says more.")
_STRANGE = _PAGE.format(title="Nothing here", text="This address waits for a log-in that your terminal has begun.")


def log_in(
    hub: str, credentials: tuple[str, ...], *, browser: bool, say: Callable[[str], None], timeout: float = TIMEOUT
) -> LogIn:
    """Let the user log in.

    Args:
        hub: the hub's base address.
        credentials: what the token shall be for; none: all that the user may have.
        browser: whether to open a browser; the address is said in any case.
        say: shows a line to the user.
        timeout: seconds.

    Raises:
        RefusedError: the hub or the user said no.
        ClientError: nobody logged in in time, or the hub can't be reached.
    """
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with _Listener(state) as listener:
        query = {
            "redirect_uri": listener.address,
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "client": socket.gethostname()[:64],
        } | ({"credentials": ",".join(credentials)} if credentials else {})
        address = f"{hub}/hub/casa/laptop?{urlencode(query)}"
        opened = browser and webbrowser.open(address)
        say(f"{'Log in in the browser that opens, or at' if opened else 'Log in with a browser at'}:\n  {address}")
        if not opened:
            port = listener.server_port
            say(f"The browser must run on this machine; for one elsewhere: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE")
        code = _wait(listener, say, timeout)
    return redeem(Wire(hub), code, verifier)


def _wait(listener: _Listener, say: Callable[[str], None], timeout: float) -> str:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = listener.answers.get(timeout=min(_PULSE, left))
        except queue.Empty:
            if (minutes := round((deadline - time.monotonic()) / 60)) > 0:
                say(f"Waiting for the log-in, for {minutes} more minutes ...")
            continue
        if "code" in answer:
            return answer["code"]
        why = printable(answer.get("error_description") or answer["error"])[:300]
        raise RefusedError("log-in", f"the hub has refused it ({why})")
    raise ClientError("log-in", f"nobody logged in within {timeout / 60:g} minutes", "Begin again.")


class _Listener(ThreadingHTTPServer):
    """Waits on 127.0.0.1 for the browser. Threads, because browsers open connections that they don't use."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.address = f"http://127.0.0.1:{self.server_port}/"
        #: What the hub has sent: ``code``, or ``error`` and ``error_description``.
        self.answers: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = 10

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        # Any page of any site can send the browser here; only the hub's answer has the state.
        if (
            url.path != "/"
            or self.headers.get("Host") != f"127.0.0.1:{self.server.server_port}"
            or not hmac.compare_digest(query.get("state", "").encode(), self.server.state.encode())
            or not ("code" in query or "error" in query)
        ):
            self._answer(HTTPStatus.NOT_FOUND, _STRANGE)
            return
        self._answer(HTTPStatus.OK, _DONE if "code" in query else _REFUSED)
        self.server.answers.put(query)

    def _answer(self, status: HTTPStatus, page: str) -> None:
        content = page.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """The address of the request has the code in it."""
