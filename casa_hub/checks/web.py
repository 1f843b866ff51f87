"""One HTTP request with limits, name look-ups, and the comparison of a server's clock with ours."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from casa_hub.checks.findings import Finding, error, ok, warning

#: Seconds that one request may take.
TIMEOUT = 5.0
#: Most bytes that are read of an answer.
_LIMIT = 1024 * 1024

#: Seconds between two clocks from which on it is a warning, and an error. HTTP's Date has whole seconds.
_WARNING, _ERROR = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    #: When it arrived, Unix time of our clock.
    at: float

    @property
    def document(self) -> dict[str, Any]:
        """The body if it is a JSON object, else an empty one."""
        try:
            read = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return read if isinstance(read, dict) else {}


class NoAnswerError(Exception):
    """There is no answer. The text is a predicate ("can't be reached") without the address."""

    def __init__(self, why: str, *, tls: bool = False) -> None:
        super().__init__(why)
        #: Whether something listens there but speaks another protocol, perhaps without TLS.
        self.tls = tls


class BadCertificateError(NoAnswerError):
    """The server's certificate isn't one that this machine takes."""


async def ask(session: aiohttp.ClientSession, url: str, *, method: str = "GET", **options: Any) -> Answer:
    """One request, no redirect followed. Raises NoAnswerError."""
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            session.request(method, url, allow_redirects=False, **options) as response,
        ):
            body = b""
            while len(body) < _LIMIT and not response.content.at_eof():
                body += await response.content.read(_LIMIT - len(body))
            return Answer(response.status, dict(response.headers), body, time.time())
    except TimeoutError:
        raise NoAnswerError(f"no answer within {TIMEOUT:g} s") from None
    except aiohttp.ClientConnectorCertificateError as problem:
        why = getattr(problem.certificate_error, "verify_message", "") or type(problem.certificate_error).__name__
        raise BadCertificateError(f"has a certificate that this machine doesn't take ({why.rstrip('.')})") from None
    except (aiohttp.ClientSSLError, aiohttp.ServerDisconnectedError) as problem:
        raise NoAnswerError(f"speaks another protocol ({type(problem).__name__})", tls=True) from None
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        if getattr(problem, "errno", None) == errno.ECONNRESET:
            raise NoAnswerError("resets the connection", tls=True) from None
        raise NoAnswerError(f"can't be reached ({type(problem).__name__})") from None


async def resolve(name: str, port: int) -> list[str]:
    """Addresses of a name, the preferred first.

    The look-up runs in a daemon thread, for which the program doesn't wait at its end: without an answer of the name
    server it takes half a minute.
    Raises OSError if the name has no address, and TimeoutError if there is no answer in time.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def look_up() -> None:
        result: list[str] | Exception
        try:
            entries = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            result = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except (OSError, UnicodeError) as problem:
            result = OSError(f"no address ({type(problem).__name__})")
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
            loop.call_soon_threadsafe(finish, result)

    def finish(result: list[str] | Exception) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    threading.Thread(target=look_up, name="casa-hub-resolve", daemon=True).start()
    async with asyncio.timeout(TIMEOUT):
        return await found


async def listens(addresses: list[str], port: int) -> bool:
    """Whether a TCP connection can be made to one of them."""
    for address in addresses:
        try:
            async with asyncio.timeout(TIMEOUT / min(len(addresses), 5)):
                _, writer = await asyncio.open_connection(address, port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return True
    return False


def clock(whose: str, answer: Answer, now: float, *, fails: str) -> list[Finding]:
    """What the difference between a server's clock and ours means; empty if the server doesn't tell its time.

    `now`: our time when the answer arrived. `fails`: what goes wrong if the clocks differ too much, as a clause.
    """
    headers = {name.lower(): value for name, value in answer.headers.items()}
    try:
        ahead = parsedate_to_datetime(headers["date"]).timestamp() - now
    except (KeyError, ValueError):
        return []
    if abs(ahead) <= _WARNING:
        return [ok(f"clock of {whose}", "agrees with this machine's")]
    problem = f"is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    remedy = "Let both machines take their time from NTP."
    if abs(ahead) > _ERROR:
        return [error(f"clock of {whose}", f"{problem}: {fails}", remedy)]
    return [warning(f"clock of {whose}", problem, remedy)]
