"""Checks that the S3 answers, and that its STS refuses forged tokens and knows this hub's.

The STS is asked for keys (``AssumeRoleWithWebIdentity`` of the AWS STS API, version 2011-06-15) with a token of a user
that doesn't exist, and with a forged one. Keys that it gives are dropped unread; they would open what the role opens to
a user of that name, for a quarter of an hour. Where users' tokens are the identity provider's, there is none of such a
user, and only a forged one is tried.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

from casa_hub.checks.findings import NOBODY, Finding, error, from_problem, ok, unseen, warning
from casa_hub.checks.nobody import forged, nobodys_request
from casa_hub.checks.site import Site
from casa_hub.checks.web import Answer, BadCertificateError, NoAnswerError, ask, clock
from casa_hub.errors import CredentialError, Problem
from casa_hub.issuer.tokens import new_private_key

#: Seconds that the tokens live, and that keys for them would live: AWS' shortest.
_LIFETIME, _KEYS = 60, 900
_VERSION = "2011-06-15"
_DENIED = "AccessDenied"
_NO_ROLE = "NoSuchEntity"
#: How an STS refuses a token (AWS, Ceph, SeaweedFS).
_REFUSALS = frozenset(
    {_DENIED, _NO_ROLE, "InvalidIdentityToken", "IDPRejectedClaim", "ExpiredTokenException", "ExpiredToken"}
    | {"InvalidParameterValue", "InvalidClientTokenId"}
)
#: Statuses of S3s to a stranger's request for the list of buckets: an empty list (Ceph), or a refusal.
_S3 = {HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


@dataclass(frozen=True, slots=True)
class Said:
    """What an STS answered."""

    status: int
    #: ``Code`` of its error (AWS' query protocol); "" without one.
    code: str

    @property
    def gave(self) -> bool:
        """Whether it gave keys."""
        return self.status == HTTPStatus.OK

    def __str__(self) -> str:
        return f"status {self.status}{f', {self.code}' if self.code else ''}"


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("s3")
    if minter is None:
        return
    try:
        tried = _Tokens.of(minter)
    except CredentialError as problem:
        yield from_problem(Problem.of(problem))
        return
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            answer = await ask(session, f"{minter.endpoint.rstrip('/')}/")
            for finding in clock(f"S3 {minter.endpoint}", answer, answer.at, fails="the S3 refuses all requests"):
                yield finding
            yield read_s3(minter.endpoint, answer)
        except NoAnswerError as problem:
            yield _no_answer(f"S3 {minter.endpoint}", "S3.endpoint", problem)
            if minter.sts_endpoint in {"", minter.endpoint}:
                return
        try:
            without = await _ask(session, minter, tried.forged)
            own = await _ask(session, minter, tried.own) if tried.own else None
        except NoAnswerError as problem:
            yield _no_answer(f"STS {minter.sts_endpoint or minter.endpoint}", "S3.sts_endpoint", problem)
            return
    for finding in read_sts(minter, without, own):
        yield finding


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens of nobody."""

    forged: str = field(repr=False)
    #: "" where there is none.
    own: str = field(repr=False)

    @classmethod
    def of(cls, minter: Any) -> _Tokens:
        """Raises CredentialError."""
        if minter.fetch is None:
            [token] = minter.mint(nobodys_request(_LIFETIME)).files.values()
            return cls(forged(token.decode()), token.decode())
        claims = {"iss": "https://casa-hub-check.invalid", "sub": NOBODY, "aud": minter.token_audience()}
        claims |= {"exp": int(time.time()) + _LIFETIME}
        return cls(new_private_key()[0].sign(claims), "")


async def _ask(session: aiohttp.ClientSession, minter: Any, token: str) -> Said:
    """Ask for keys. Raises NoAnswerError."""
    sts = minter.sts_endpoint or minter.endpoint
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": _VERSION,
        "RoleArn": minter.role_for(NOBODY),
        "RoleSessionName": NOBODY,
        "DurationSeconds": str(_KEYS),
        "WebIdentityToken": token,
    }
    return read_answer(await ask(session, f"{sts.rstrip('/')}/", method="POST", data=form))


def read_answer(answer: Answer) -> Said:
    """The error code of an answer. Its XML is not parsed: it may be anybody's."""
    found = re.search(rb"<Code>\s*([A-Za-z.]{1,60})\s*</Code>", answer.body)
    return Said(answer.status, found[1].decode() if found else "")


def read_s3(endpoint: str, answer: Answer) -> Finding:
    """What the answer to a stranger's request for the list of buckets means."""
    thing = f"S3 {endpoint}"
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return error(thing, f"fails with status {answer.status}", "Ask its administrators.")
    if answer.status in _S3 and (read_answer(answer).code or b"ListAllMyBucketsResult" in answer.body):
        return ok(thing, "answers")
    problem = f"the answer (status {answer.status}) doesn't say that it is an S3"
    return warning(thing, problem, "Check S3.endpoint: it is the URL without a bucket.")


def read_sts(minter: Any, without: Said, own: Said | None) -> list[Finding]:
    """What an STS says to a forged token (`without` the issuer's key), and to the hub's own one of nobody, if any."""
    where = minter.sts_endpoint or minter.endpoint
    thing = f"STS {where}"
    if without.gave:
        problem = "gives keys for a forged token: everybody can take the role"
        return [error(thing, problem, "Let its OIDC provider verify signatures by the keys that the issuer publishes.")]
    if without.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        remedy = "Its log says why. Without a configuration of its STS, a SeaweedFS answers so, too."
        return [unseen(thing, f"fails ({without}) for a forged token", remedy)]
    if without.code not in _REFUSALS:
        problem = f"is no STS that takes tokens (AssumeRoleWithWebIdentity): it answers {without}"
        remedy = "Check S3.sts_endpoint. In a Ceph, rgw_s3_auth_use_sts must be true and rgw_sts_key be set."
        return [error(thing, problem, remedy)]
    sound = ok(thing, f"refuses a forged token ({without.code})")
    if own is None:
        seen = "only a user's token shows whether it takes those of the identity provider"
        return [sound, ok(thing, seen)]
    return [sound, _own(minter, thing, without, own)]


def _own(minter: Any, thing: str, without: Said, own: Said) -> Finding:
    if own.gave:
        return ok(thing, f"takes this hub's tokens for the role {minter.role_arn}")
    if own.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unseen(thing, f"fails ({own}) for this hub's token", "Its log says why.")
    issuer = "" if minter.issuer is None else minter.issuer.iss
    compare = (
        f"Its OIDC provider must have the issuer {issuer} and the client ID (audience) {minter.token_audience()}; the "
        f"role {minter.role_arn} must be there, and its trust policy must name that provider. The STS must reach "
        f"{issuer}/.well-known/openid-configuration by https, with a certificate that it trusts. Its log says why."
    )
    of_each = minter.role_for(NOBODY) != minter.role_arn
    if own.code != _DENIED and not (own.code == _NO_ROLE and of_each):
        return error(thing, f"refuses this hub's tokens ({own})", compare)
    if without.code != own.code:
        return ok(thing, f"knows this hub's tokens, and has no role for the user {NOBODY}, who doesn't exist")
    problem = (
        f"refuses this hub's token of the user {NOBODY}, who doesn't exist, in the same words as a forged one "
        f"({own.code}): it doesn't trust this hub, or its role is for some users only"
    )
    return warning(thing, problem, compare)


def _no_answer(thing: str, setting: str, problem: NoAnswerError) -> Finding:
    if isinstance(problem, BadCertificateError):
        remedy = "AWS SDKs refuse it as well, unless AWS_CA_BUNDLE of the server names its authority."
        return error(thing, str(problem), remedy)
    return error(thing, str(problem), f"Check {setting}, and that the S3 runs.")
