"""HTTP requests to the identity provider: which addresses may be asked, and the limits of one request."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from casa_hub.identity.errors import OIDCError, cant_say
from casa_hub.loopback import is_loopback

#: Most bytes of a discovery document, a key set or a token answer. Real ones have some 10 kB, and all bytes are parsed
#: on the hub's event loop.
ANSWER_LIMIT = 256 * 1024
#: Most bytes of userinfo. With thousands of groups it has some 100 kB.
USERINFO_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Client:
    """This hub's registration at the identity provider, and how to reach the provider."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    #: Whether id and secret go into the Authorization header (RFC 6749, 2.3.1); else into the body.
    basic_auth: bool = True
    #: PEM bundle with the CA of the issuer; "" for the CAs of the system.
    ca_file: str = ""
    #: HTTP proxy towards the issuer; "" for none.
    proxy: str = ""
    #: Whether plain http is allowed for hosts other than loopback, too.
    allow_insecure: bool = False
    #: Seconds that the issuer's clock may differ from ours.
    leeway: float = 60.0
    #: Seconds that one request may take.
    timeout: float = 10.0
    #: Setting with `ca_file`, for messages.
    ca_setting: str = "CasaOAuthenticator.ca_file"


class Reply(NamedTuple):
    """An answer of the provider."""

    #: HTTP status.
    status: int
    #: JSON value, or text of a JWT; None if it is neither.
    body: object
    #: Values of the ``WWW-Authenticate`` headers, in which a protected resource tells its error (RFC 6750, 3).
    challenges: tuple[str, ...] = ()


@dataclass(slots=True)
class Contact:
    """When the provider was last heard of. Times are epoch seconds."""

    #: None: not since the hub's start.
    answered_at: float | None = None
    #: Of the first request without an answer since then; None if it answers. An answer that says that the provider
    #: itself has failed (status 500 and above) is none.
    silent_since: float | None = None
    #: Why the last request had no answer; "" if it had one.
    why: str = ""

    def heard(self, now: float) -> None:
        self.answered_at, self.silent_since, self.why = now, None, ""

    def missed(self, now: float, why: str) -> None:
        self.silent_since, self.why = self.silent_since or now, why


class Transport:
    """Requests of this hub to its identity provider, over connections that stay open."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.time) -> None:
        self.contact = Contact()
        self._clock = clock
        self._client = client
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def check(self, url: str, thing: str) -> None:
        """Raise OIDCError for an address that may not be asked. Allowed are https, and plain http on this machine."""
        scheme, host = split_url(url)
        # No browser can be sent to an address with a line's end or half a character (a lone surrogate).
        if not url.isprintable() or (not host and scheme in {"", "http", "https"}):
            raise cant_say(thing, f"{url[:200]!r} is not a URL", "Check CasaOAuthenticator.issuer.")
        if scheme == "https" or (scheme == "http" and (self._client.allow_insecure or is_loopback(host))):
            return
        remedy = "Use https. Plain http is for loopback only, or with allow_insecure_issuer."
        raise cant_say(thing, f"{url!r} is not https", remedy)

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        limit: int = ANSWER_LIMIT,
        patience: float | None = None,
    ) -> Reply:
        """One request, perhaps with a form (`data`). Never follows a redirect.

        `limit`: most bytes of the answer. `patience`: seconds for the whole answer; default: `Client.timeout`.
        Raises OIDCError if there is no answer in time, or if it is longer than `limit`.
        """
        try:
            reply = await self._ask(method, url, headers=headers, data=data, limit=limit, patience=patience)
        except OIDCError as error:
            self.contact.missed(self._clock(), str(error))
            raise
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.contact.missed(self._clock(), f"{_bare(url)}: it answers with status {reply.status}")
        else:
            self.contact.heard(self._clock())
        return reply

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None,
        data: Mapping[str, str] | None,
        limit: int,
        patience: float | None,
    ) -> Reply:
        seconds = self._client.timeout if patience is None else patience
        try:
            async with asyncio.timeout(seconds):
                async with (await self.session()).request(
                    method, url, headers=headers, data=data, proxy=self._client.proxy or None, allow_redirects=False
                ) as response:
                    body = await response.content.read(limit + 1)
                    while len(body) <= limit and not response.content.at_eof():
                        body += await response.content.read(limit + 1 - len(body))
                    kind = response.content_type
                    status = response.status
                    challenges = tuple(response.headers.getall("WWW-Authenticate", ()))
        except TimeoutError as error:
            raise cant_say(_bare(url), f"no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise cant_say(_bare(url), f"can't be reached ({type(error).__name__})") from error
        if len(body) > limit:
            raise cant_say(_bare(url), f"the answer is longer than {limit} bytes")
        if kind == "application/jwt":
            return Reply(status, body.decode("ascii", "replace").strip(), challenges)
        try:
            return Reply(status, json.loads(body, parse_int=_integer), challenges)
        except (ValueError, RecursionError):
            return Reply(status, None, challenges)

    async def session(self) -> aiohttp.ClientSession:
        """The HTTP session of the requests; `close` ends it."""
        if self._session is None or self._session.closed:
            context = await self._context() if self._client.ca_file else None
            if self._session is not None and not self._session.closed:  # of another request, meanwhile
                return self._session
            connector = (
                aiohttp.TCPConnector(limit=50) if context is None else aiohttp.TCPConnector(ssl=context, limit=50)
            )
            # No cookies: the requests of all users share this session.
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def _context(self) -> ssl.SSLContext:
        """For the certificate authority of `Client.ca_file`. Raises OIDCError."""
        try:
            return await asyncio.to_thread(ssl.create_default_context, cafile=self._client.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise cant_say(
                f"{self._client.ca_setting} ({self._client.ca_file})",
                f"can't be read as PEM ({type(error).__name__})",
                "Name a file with the certificate authority of the issuer in PEM.",
            ) from error


def _integer(digits: str) -> float:
    """An integer of JSON; infinite if it has so many digits that Python refuses to convert them.

    Otherwise one such number would make the whole document unreadable.
    """
    try:
        return int(digits)
    except ValueError:
        return -math.inf if digits.startswith("-") else math.inf


def split_url(url: str) -> tuple[str, str]:
    """Scheme and host of a URL; both "" for a text that is not one, such as "https://[::1"."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    return parts.scheme, parts.hostname or ""


def _bare(url: str) -> str:
    """A URL without its query, which may hold secrets."""
    return urlsplit(url)._replace(query="", fragment="").geturl()
