"""Whether the XCache takes this hub's macaroons, and refuses another's.

It is asked by HTTP for a file that doesn't exist: who may read is told so (404), who may not is refused (403). The
probe macaroon is for that one name and for a minute, so it is worth nothing to whoever may see it: the certificate of
the XCache, which is of a grid's authority as a rule, need not be believed.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import aiohttp

from casa_hub.checks import versions
from casa_hub.checks.findings import NOBODY, Finding, error, ok, unseen
from casa_hub.checks.site import Site
from casa_hub.checks.web import Answer, NoAnswerError, ask, resolve
from casa_hub.credentials.xcache import XCache, mint_macaroon, parse_secret_key
from casa_hub.keys import KeyFile

_LIFETIME = timedelta(seconds=60)
_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
#: A redirector's, which sends clients to one of its caches.
_ELSEWHERE = range(HTTPStatus.MULTIPLE_CHOICES, HTTPStatus.BAD_REQUEST)
_WHERE_HTTP = (
    "Give the XCache an HTTP door at this port (xrd.protocol http:PORT libXrdHttp.so, http.header2cgi Authorization "
    "authz), or try it with xrdfs from a server."
)


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("xcache")
    if minter is None or not minter.host:
        return
    where = f"{minter.host}:{minter.port}"
    path = f"{minter.path_for(NOBODY).rstrip('/')}/casa-hub-check-{secrets.token_hex(8)}"
    key = KeyFile("XCache.key_file", parse_secret_key, "").read(minter.key_file).value
    macaroons = _probe(minter, key, path), _probe(minter, secrets.token_bytes(64), path)
    *families, last = await _families(minter)
    try:
        for family in families:
            with contextlib.suppress(NoAnswerError):
                own, forged = await _read_all(family, where, path, macaroons)
                break
        else:
            own, forged = await _read_all(last, where, path, macaroons)
    except NoAnswerError as problem:
        if problem.tls:
            yield unseen(f"XCache {where}", "it speaks no HTTP, by which macaroons are tried", _WHERE_HTTP)
        else:
            yield error(f"XCache {where}", str(problem), "Check XCache.host and XCache.port; does it run?")
        return
    yield read(minter, where, own)
    yield read_forged(where, forged)
    version = versions.read(versions.XROOTD, f"version of XCache {where}", versions.of_server_header(own.headers))
    if version is not None:
        yield version


def read(minter: XCache, where: str, answer: Answer) -> Finding:
    """What it means that the hub's own macaroon was answered like this."""
    thing = f"XCache {where}"
    if answer.status == HTTPStatus.NOT_FOUND:
        return ok(thing, "it takes this hub's macaroons")
    if answer.status in _ELSEWHERE:
        return _redirected(thing)
    if answer.status in _REFUSED:
        return error(
            thing,
            f"it refuses this hub's macaroons (status {answer.status})",
            f"XCache.key_file must be its macaroons.secretkey, XCache.site_name ({minter.site_name}) its all.sitename, "
            f"XCache.path ({minter.path}) one that it exports; DOWNLOAD must be in XCache.activities; and the clocks "
            "must agree. Its log says why with: macaroons.trace all.",
        )
    return error(
        thing,
        f"it answered {answer.status} to who asked for a file that doesn't exist",
        "Its log says why. Can it reach its origin?",
    )


def read_forged(where: str, answer: Answer) -> Finding:
    """What it means that a macaroon of another key was answered like this."""
    thing = f"XCache {where}"
    if answer.status in _REFUSED:
        return ok(thing, "it refuses a forged macaroon")
    if answer.status in _ELSEWHERE:
        return _redirected(thing)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unseen(thing, f"whether it refuses a forged macaroon (status {answer.status})", "Its log says why.")
    return error(
        thing,
        f"it doesn't refuse a forged macaroon (status {answer.status}): everybody can read",
        "Set ofs.authorize, ofs.authlib libXrdMacaroons.so and http.header2cgi Authorization authz there.",
    )


def _redirected(thing: str) -> Finding:
    problem = "it sends clients on to another server, where macaroons aren't tried"
    return unseen(thing, problem, "Set XCache.host to one of the caches behind it, and check again.")


def _probe(minter: XCache, key: bytes, path: str) -> str:
    end = datetime.now(UTC) + _LIFETIME
    caveats = (
        f"name:{NOBODY}",
        f"activity:{','.join(minter.activities)}",
        f"path:{path}",
        f"before:{end:%Y-%m-%dT%H:%M:%SZ}",
    )
    return mint_macaroon(key, minter.site_name, f"{NOBODY}/{secrets.token_hex(8)}", caveats)


async def _families(minter: XCache) -> list[socket.AddressFamily]:
    """Of its addresses, in their order. An XRootD may turn one away, by the name of who comes; clients try the next."""
    try:
        found = await resolve(minter.host, minter.port)
    except OSError:
        return [socket.AF_UNSPEC]
    return list(dict.fromkeys(socket.AF_INET6 if ":" in address else socket.AF_INET for address in found))


async def _read_all(family: socket.AddressFamily, where: str, path: str, macaroons: Iterable[str]) -> list[Answer]:
    """Its answers at such an address. Raises NoAnswerError."""
    connector = aiohttp.TCPConnector(family=family)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        return [await _read(session, where, path, macaroon) for macaroon in macaroons]


async def _read(session: aiohttp.ClientSession, where: str, path: str, macaroon: str) -> Answer:
    """By https, else by http. Raises NoAnswerError."""
    headers = {"Authorization": f"Bearer {macaroon}"}
    try:
        return await ask(session, f"https://{where}{path}", headers=headers, ssl=False)
    except NoAnswerError as problem:
        if not problem.tls:
            raise
    return await ask(session, f"http://{where}{path}", headers=headers)
