"""Checks that the XCache accepts this hub's macaroons and tokens and refuses forged ones.

It is asked by HTTP for a file that doesn't exist. It answers 404 to those who may read, and 403 to others. What it is
asked with lets read this one file for a minute, so it is worthless to anybody who intercepts it. So the
certificate of the XCache, usually of a grid's authority, isn't verified.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import aiohttp

from casa_hub.checks import versions
from casa_hub.checks.findings import NOBODY, Finding, error, from_problem, ok, unseen, warning
from casa_hub.checks.nobody import forged, nobodys_request
from casa_hub.checks.site import Site
from casa_hub.checks.web import Answer, NoAnswerError, ask, resolve
from casa_hub.credentials.macaroons import mint_macaroon, parse_secret_key
from casa_hub.credentials.xcache import WRITING, XCache
from casa_hub.errors import CredentialError, Problem
from casa_hub.keys import KeyFile

_LIFETIME = timedelta(seconds=60)
#: What XRootD judges each kind of credential with.
_LIBRARIES = {"macaroon": "libXrdMacaroons.so", "token": "libXrdAccSciTokens.so"}
_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
#: Statuses of a redirector, which sends clients on to one of its caches.
_ELSEWHERE = range(HTTPStatus.MULTIPLE_CHOICES, HTTPStatus.BAD_REQUEST)
_WHERE_HTTP = (
    "Give the XCache an HTTP door at this port (xrd.protocol http:PORT libXrdHttp.so, http.header2cgi Authorization "
    "authz), or try it with xrdfs from a server."
)


@dataclass(frozen=True, slots=True)
class _Try:
    """One request: a path, and the credential that is shown."""

    path: str
    credential: str = field(repr=False)


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("xcache")
    if minter is None or not minter.host:
        return
    where = f"{minter.host}:{minter.port}"
    path = f"{minter.path_for(NOBODY).rstrip('/')}/casa-hub-check-{secrets.token_hex(8)}"
    tries: list[_Try] = []
    try:
        tries += _macaroons(minter, path) if minter.takes_macaroons else []
        tries += _tokens(minter, path) if minter.takes_tokens else []
        answers = await _ask(minter, where, tries)
    except CredentialError as problem:
        yield from_problem(Problem.of(problem))
        return
    except NoAnswerError as problem:
        yield _no_answer(where, problem)
        return
    version = versions.read(
        versions.XROOTD, f"version of XCache {where}", versions.of_server_header(answers[0].headers)
    )
    if minter.takes_macaroons:
        own, forged, *answers = answers
        yield read(minter, where, own, "macaroon")
        yield read_forged(where, forged, "macaroon")
    if minter.takes_tokens:
        own, forged, beside = answers
        yield read(minter, where, own, "token")
        yield read_forged(where, forged, "token")
        if own.status == HTTPStatus.NOT_FOUND and (kept := read_beside(minter, where, beside)) is not None:
            yield kept
    if version is not None:
        yield version


def read(minter: XCache, where: str, answer: Answer, what: str) -> Finding:
    """What the answer to the hub's own macaroon or token means."""
    thing = f"XCache {where}"
    if answer.status == HTTPStatus.NOT_FOUND:
        return ok(thing, f"accepts this hub's {what}s")
    if answer.status in _ELSEWHERE:
        return _redirected(thing)
    if answer.status in _REFUSED:
        compare = _compare_token if what == "token" else _compare_macaroon
        return error(thing, f"refuses this hub's {what}s (status {answer.status})", compare(minter))
    return error(
        thing,
        f"answered {answer.status} to a request for a file that doesn't exist",
        "Its log says why. Check that it can reach its origin.",
    )


def _compare_macaroon(minter: XCache) -> str:
    return (
        f"XCache.key_file must be its macaroons.secretkey, XCache.site_name ({minter.site_name}) its all.sitename, "
        f"XCache.path ({minter.path}) one that it exports; DOWNLOAD must be in XCache.activities; and the clocks "
        "must agree. With macaroons.trace all its log says why."
    )


def _compare_token(minter: XCache) -> str:
    issuer = "" if minter.issuer is None else minter.issuer.iss
    return (
        f"In its scitokens.cfg, issuer must be {issuer}, audience {minter.token_audience()}, and base_path /; "
        f"XCache.path ({minter.path}) must be one that it exports; DOWNLOAD must be in XCache.activities. It must "
        f"reach {issuer}/.well-known/openid-configuration by https, with a certificate that it trusts, and the "
        "clocks must agree. With scitokens.trace all its log says why."
    )


def read_forged(where: str, answer: Answer, what: str) -> Finding:
    """What the answer means to what another key has signed: a macaroon, or a token that names the hub's key."""
    thing = f"XCache {where}"
    if answer.status in _REFUSED:
        return ok(thing, f"refuses a forged {what}")
    if answer.status in _ELSEWHERE:
        return _redirected(thing)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        problem = f"failed with status {answer.status} when it was asked with a forged {what}"
        return unseen(thing, problem, "Its log says why.")
    return error(
        thing,
        f"doesn't refuse a forged {what} (status {answer.status}): everybody can read",
        f"Set ofs.authorize, ofs.authlib {_LIBRARIES[what]} and http.header2cgi Authorization authz there.",
    )


def read_beside(minter: XCache, where: str, answer: Answer) -> Finding | None:
    """What the answer means to a token for a path that is the beginning of the name that was asked for.

    None: nothing. A user's token must not open the directory of another one whose name begins like the user's.
    """
    thing = f"XCache {where}"
    if answer.status in _REFUSED:
        return ok(thing, "opens nothing beside a token's path")
    if answer.status != HTTPStatus.NOT_FOUND:
        return None
    problem = "compares only the beginning of a path with that of a token"
    remedy = "Upgrade its XRootD to 5.9.6 or 6.1.0."
    if minter.path.rstrip("/").endswith("{username}"):
        return error(thing, f"{problem}: the token of al opens the directory of alice, too", remedy)
    return warning(thing, f"{problem}: one for /store opens /store2, too", f"{remedy} Or export no such path there.")


def _no_answer(where: str, problem: NoAnswerError) -> Finding:
    if problem.tls:
        return unseen(f"XCache {where}", "speaks no HTTP, by which macaroons and tokens are tried", _WHERE_HTTP)
    return error(f"XCache {where}", str(problem), "Check XCache.host and XCache.port, and that the XCache runs.")


def _redirected(thing: str) -> Finding:
    problem = "sends clients on to another server, where this check tries nothing"
    return unseen(thing, problem, "Set XCache.host to one of the caches behind it, and check again.")


def _macaroons(minter: XCache, path: str) -> list[_Try]:
    """With a macaroon of the hub's own, and a forged one."""
    own = KeyFile("XCache.key_file", parse_secret_key, "").read(minter.key_file).value
    end = datetime.now(UTC) + _LIFETIME
    caveats = (
        f"name:{NOBODY}",
        f"activity:{','.join(word for word in minter.activities if word not in WRITING)}",
        f"path:{path}",
        f"before:{end:%Y-%m-%dT%H:%M:%SZ}",
    )
    identifier = f"{NOBODY}/{secrets.token_hex(8)}"
    keys = own, secrets.token_bytes(64)
    return [_Try(path, mint_macaroon(key, minter.site_name, identifier, caveats)) for key in keys]


def _tokens(minter: XCache, path: str) -> list[_Try]:
    """With a token of the hub's own, a forged one, and the own one beside its path. Raises CredentialError."""
    own = minter.issue_token(nobodys_request(_LIFETIME.seconds), path).value
    return [_Try(path, own), _Try(path, forged(own)), _Try(f"{path}-2", own)]


async def _families(minter: XCache) -> list[socket.AddressFamily]:
    """Address families of the XCache, in the order of its addresses.

    Clients try one after the other, because an XRootD may refuse a client by the host name of its address.
    """
    try:
        found = await resolve(minter.host, minter.port)
    except OSError:
        return [socket.AF_UNSPEC]
    return list(dict.fromkeys(socket.AF_INET6 if ":" in address else socket.AF_INET for address in found))


async def _ask(minter: XCache, where: str, tries: Iterable[_Try]) -> list[Answer]:
    """The XCache's answers, at the first of its addresses that gives any. Raises NoAnswerError."""
    *families, last = await _families(minter)
    for family in families:
        with contextlib.suppress(NoAnswerError):
            return await _read_all(family, where, tries)
    return await _read_all(last, where, tries)


async def _read_all(family: socket.AddressFamily, where: str, tries: Iterable[_Try]) -> list[Answer]:
    """The XCache's answers, at an address of this family. Raises NoAnswerError."""
    connector = aiohttp.TCPConnector(family=family)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        return [await _read(session, where, one) for one in tries]


async def _read(session: aiohttp.ClientSession, where: str, one: _Try) -> Answer:
    """One request by https; by http if the XCache has no TLS. Raises NoAnswerError."""
    headers = {"Authorization": f"Bearer {one.credential}"}
    try:
        return await ask(session, f"https://{where}{one.path}", headers=headers, ssl=False)
    except NoAnswerError as problem:
        if not problem.tls:
            raise
    return await ask(session, f"http://{where}{one.path}", headers=headers)
