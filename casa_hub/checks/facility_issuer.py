"""Checks that verifiers find the facility's own issuer at its ``iss``, with the keys that the hub has.

It is asked as verifiers ask it: from ``iss`` alone, by https, with the system's certificate authorities, without a
cookie. It reads the key files itself, so a cache, an old process or another hub that answers in place of this one shows
by keys that no file explains.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from casa_hub.checks.findings import Finding, Status, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import Answer, BadCertificateError, NoAnswerError, ask, clock
from casa_hub.errors import CredentialError
from casa_hub.issuer.published import DISCOVERY, FRESH
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import thumbprint
from casa_hub.loopback import is_loopback

_REDIRECTS = range(HTTPStatus.MULTIPLE_CHOICES, HTTPStatus.BAD_REQUEST)
_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_OPEN = "Let the proxy hand the paths below it to the hub as they are, without a log-in: verifiers have none"
_OTHERS = (
    "Another hub, an old process of this one or a cache answers in its place: see where the address leads, and let"
    " nothing keep its answers for longer than their Cache-Control says."
)


async def look(site: Site) -> AsyncIterator[Finding]:
    issuer = None if site.facility is None else site.facility.issuer
    if issuer is None or issuer.check():  # the configuration's check has told
        return
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            for finding in await _read_all(session, issuer):
                yield finding
        except BadCertificateError as problem:
            remedy = "Verifiers trust what their systems trust: give the hub a certificate of a public authority."
            yield error(_thing(issuer.iss), str(problem), remedy)
        except NoAnswerError as problem:
            yield unseen(
                _thing(issuer.iss),
                f"{problem} from here",
                "Before the hub's first start that is as it should be. Else check the DNS name, the Ingress and its"
                " certificate; network policies must let the proxy reach the hub, and the pod from which you check"
                f" reach the public address. See what curl {issuer.iss}/{DISCOVERY} says on a verifier's machine.",
            )


async def _read_all(session: aiohttp.ClientSession, issuer: FacilityIssuer) -> list[Finding]:
    """Raises NoAnswerError."""
    url = f"{issuer.iss}/{DISCOVERY}"
    answer = await ask(session, url)
    fails = "verifiers refuse its tokens as expired, or as not yet valid"
    found = [*clock(_thing(issuer.iss), answer, answer.at, fails=fails), read_description(issuer.iss, answer)]
    if found[-1].status is not Status.OK:
        return found
    jwks_uri = answer.document["jwks_uri"]
    keys = await ask(session, jwks_uri)
    if (bad := _no_document(jwks_uri, keys)) is not None:
        return [*found, bad]
    try:
        expected = {thumbprint(jwk): str(jwk["kid"]) for jwk in issuer.jwks(time.time())["keys"]}
    except CredentialError:  # the configuration's check has told
        return found
    return [*found, *read_keys(jwks_uri, keys.document, expected), *read_age(jwks_uri, keys)]


def read_description(iss: str, answer: Answer) -> Finding:
    """What the answer of the first page that verifiers ask for means."""
    if (bad := _no_document(_thing(iss), answer)) is not None:
        return bad
    named, jwks_uri = answer.document.get("issuer"), answer.document.get("jwks_uri")
    if named != iss:
        remedy = (
            "Verifiers compare the two as text. FacilityIssuer.url and vo must be those of the hub that answers there"
            " (restart it if you have changed them)."
        )
        return error(_thing(iss), f"calls itself {str(named)[:200]!a}", remedy)
    if not isinstance(jwks_uri, str) or not _is_safe(jwks_uri):
        return error(_thing(iss), f"has its keys at {str(jwks_uri)[:200]!a}, which is not https", _OTHERS)
    return ok(_thing(iss), "describes itself under this very name")


def read_keys(where: str, document: Mapping[str, Any], expected: Mapping[str, str]) -> list[Finding]:
    """Whether the published keys are those that this configuration has.

    Args:
        where: ``jwks_uri``.
        document: the key set that was found there.
        expected: thumbprint -> ``kid`` of each key in the files and in `FacilityIssuer.extra_jwks`.
    """
    keys = document.get("keys")
    if not isinstance(keys, list) or not keys:
        return [error(where, "has no keys", _OTHERS)]
    published: dict[str, str] = {}
    found = []
    for jwk in keys:
        try:
            published[thumbprint(jwk)] = str(jwk.get("kid"))
        except (KeyError, TypeError, AttributeError):
            name = jwk.get("kid") if isinstance(jwk, dict) else jwk
            found.append(error(where, f"has {str(name)[:60]!a}, which is no key of type EC or RSA", _OTHERS))
    for mark, kid in published.items():
        if mark not in expected:
            problem = f"publishes the key {kid[:60]!a}, which is in no file of FacilityIssuer.keys nor in extra_jwks"
            remedy = f"Whoever has that key can mint whatever verifiers take from this issuer. {_OTHERS}"
            found.append(error(where, problem, remedy))
        elif kid != expected[mark]:
            problem = f"calls a key {kid[:60]!a}, while tokens call it {expected[mark]!a}"
            found.append(error(where, problem, _OTHERS))
    for mark, kid in expected.items():
        if mark not in published:
            problem = f"lacks the key {kid!a}, so verifiers will refuse what it signs"
            found.append(error(where, problem, _OTHERS))
    return found or [ok(where, f"publishes the keys of this configuration and no others ({len(published)})")]


def read_age(where: str, answer: Answer) -> list[Finding]:
    """For how long something between the hub and verifiers keeps the keys; empty if not for too long."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    told = re.search(r"max-age=(\d+)", headers.get("cache-control", ""))
    age, fresh = headers.get("age", ""), int(told[1]) if told else 0
    longest = max(int(age) if age.isdecimal() else 0, fresh)
    if longest <= FRESH:
        return []
    problem = f"a proxy keeps the keys for {longest} s and more, while the hub says {FRESH}"
    return [warning(where, problem, "Let it go by the hub's Cache-Control: a key that was stolen must go at once.")]


def _no_document(thing: str, answer: Answer) -> Finding | None:
    """What is wrong with an answer that should be a JSON document; None if it is one."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if answer.status in _REDIRECTS:
        parts = urlsplit(headers.get("location", ""))
        to = f"{parts.netloc}{parts.path}"[:200]  # without the query, which may hold a state
        return error(thing, f"sends verifiers on to {to!a} (status {answer.status})", f"{_OPEN}.")
    if answer.status in _REFUSED:
        return error(thing, f"asks for a log-in (status {answer.status})", f"{_OPEN}.")
    if answer.status == HTTPStatus.NOT_FOUND:
        remedy = "Another server, or a hub that was started without FacilityIssuer, answers there: restart it, and"
        return error(thing, "isn't there (status 404)", f"{remedy} see that FacilityIssuer.url leads to this hub.")
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        remedy = "Before the hub's first start that is as it should be. Else the hub's log or its proxy's says why."
        return unseen(thing, f"fails with status {answer.status}", remedy)
    if answer.status != HTTPStatus.OK or not answer.document:
        kind = headers.get("content-type", "no type")[:60]
        return error(thing, f"answers with no JSON document (status {answer.status}, {kind!a})", f"{_OPEN}.")
    return None


def _is_safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    except ValueError:
        return False


def _thing(iss: str) -> str:
    return f"the facility's issuer {iss}"
