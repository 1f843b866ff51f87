"""Checks that the XCache accepts this hub's macaroons and refuses forged ones.

It is asked by HTTP for a file that doesn't exist. It answers 404 to those who may read, and 403 to others. The probe
macaroon is valid for this one file and for a minute, so it is worthless to anybody who intercepts it. So the
certificate of the XCache, usually of a grid's authority, isn't verified.
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
#: Statuses of a redirector, which sends clients on to one of its caches.
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
            yield unseen(f"XCache {where}", "speaks no HTTP, by which macaroons are tried", _WHERE_HTTP)
        else:
            remedy = "Check XCache.host and XCache.port, and that the XCache runs."
            yield error(f"XCache {where}", str(problem), remedy)
        return
    yield read(minter, where, own)
    yield read_forged(where, forged)
    version = versions.read(versions.XROOTD, f"version of XCache {where}", versions.of_server_header(own.headers))
    if version is not None:
        yield version


def read(minter: XCache, where: str, answer: Answer) -> Finding:
    """What the answer to the hub's own macaroon means."""
    thing = f"XCache {where}"
    if answer.status == HTTPStatus.NOT_FOUND:
        return ok(thing, "accepts this hub's macaroons")
    if answer.status in _ELSEWHERE:
        return _redirected(thing)
    if answer.status in _REFUSED:
        return error(
            thing,
            f"refuses this hub's macaroons (status {answer.status})",
            f"XCache.key_file must be its macaroons.secretkey, XCache.site_name ({minter.site_name}) its all.sitename, "
            f"XCache.path ({minter.path}) one that it exports; DOWNLOAD must be in XCache.activities; and the clocks "
            "must agree. With macaroons.trace all its log says why.",
        )
    return error(
        thing,
        f"answered {answer.status} to a request for a file that doesn't exist",
        "Its log says why. Check that it can reach its origin.",
    )


def read_forged(where: str, answer: Answer) -> Finding:
    """What the answer to a forged macaroon, of another key, means."""
    thing = f"XCache {where}"
    if answer.status in _REFUSED:
        return ok(thing, "refuses a forged macaroon")
    if answer.status in _ELSEWHERE:
        return _redirected(thing)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        problem = f"failed with status {answer.status} when it was asked with a forged macaroon"
        return unseen(thing, problem, "Its log says why.")
    return error(
        thing,
        f"doesn't refuse a forged macaroon (status {answer.status}): everybody can read",
        "Set ofs.authorize, ofs.authlib libXrdMacaroons.so and http.header2cgi Authorization authz there.",
    )


def _redirected(thing: str) -> Finding:
    problem = "sends clients on to another server, where this check tries no macaroons"
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
    """Address families of the XCache, in the order of its addresses.

    Clients try one after the other, because an XRootD may refuse a client by the host name of its address.
    """
    try:
        found = await resolve(minter.host, minter.port)
    except OSError:
        return [socket.AF_UNSPEC]
    return list(dict.fromkeys(socket.AF_INET6 if ":" in address else socket.AF_INET for address in found))


async def _read_all(family: socket.AddressFamily, where: str, path: str, macaroons: Iterable[str]) -> list[Answer]:
    """The XCache's answers to these macaroons, at an address of this family. Raises NoAnswerError."""
    connector = aiohttp.TCPConnector(family=family)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        return [await _read(session, where, path, macaroon) for macaroon in macaroons]


async def _read(session: aiohttp.ClientSession, where: str, path: str, macaroon: str) -> Answer:
    """One request by https; by http if the XCache has no TLS. Raises NoAnswerError."""
    headers = {"Authorization": f"Bearer {macaroon}"}
    try:
        return await ask(session, f"https://{where}{path}", headers=headers, ssl=False)
    except NoAnswerError as problem:
        if not problem.tls:
            raise
    return await ask(session, f"http://{where}{path}", headers=headers)
