"""Checks that somebody makes X.509 proxies, by a request with a token that nobody has.

INDIGO IAM looks at the client and at the token before it looks what is asked for (read in its source; none was asked).
So it refuses such a token in the same way if ``proxycert.enabled`` isn't set there, and only a real token shows that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

from casa_hub.checks.fetches import asking, for_operator
from casa_hub.checks.findings import Finding, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.credentials.fetching import FetchError, Why

_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("x509")
    if minter is None or minter.fetch is None or site.authenticator is None:
        return
    by_iam = minter.source == "iam"
    async with asking(site.authenticator) as asks:
        where = asks.issuer.client.issuer.rstrip("/") + minter.fetch.url if by_iam else minter.fetch.url
        try:
            reply = await asks.ask(minter.fetch)
        except FetchError as problem:
            yield no_answer(where, problem, by_iam=by_iam)
            return
        refusal = asks.meaning(minter.fetch, reply)
        yield read_iam(where, reply.status, refusal) if by_iam else read_service(where, reply.status)


def no_answer(where: str, problem: FetchError, *, by_iam: bool) -> Finding:
    if by_iam:
        return unseen(where, problem.problem, "The check of the issuer says what to do.")
    return error(where, problem.problem, "Check X509.url and X509.ca_file, and that the service runs.")


def read_iam(where: str, status: int, refusal: FetchError | None) -> Finding:
    """What INDIGO IAM's answer to a token that nobody has means.

    `refusal`: what the credential makes of it, None if it takes it.
    """
    if refusal is None:
        return _anybody(where)
    if status == HTTPStatus.NOT_FOUND:
        return error(where, "isn't there (status 404)", "In INDIGO IAM it needs proxycert.enabled=true.")
    if status in _REFUSED and (refusal.why is Why.SIGN_IN or status == HTTPStatus.FORBIDDEN):
        seen = "refuses a token that nobody has; only a log-in shows whether it makes proxies (proxycert.enabled)"
        return ok(where, seen)
    if status == HTTPStatus.UNAUTHORIZED:
        remedy = "CasaOAuthenticator.client_id and client_secret must be those of the registration."
        return error(where, refusal.problem, remedy)
    if status == HTTPStatus.BAD_REQUEST:
        return error(where, refusal.problem, for_operator(refusal.remedy))
    remedy = "Check X509.url: it is a path of INDIGO IAM, /iam/proxycert by default."
    return error(where, f"answers with status {status}, unlike INDIGO IAM's", remedy)


def read_service(where: str, status: int) -> Finding:
    """What the answer of a service to a token that nobody has means."""
    if status in _REFUSED:
        return ok(where, f"refuses a token that nobody has (status {status})")
    if status == HTTPStatus.OK:
        return _anybody(where)
    if status == HTTPStatus.NOT_FOUND:
        # By its contract it also says that somebody has no certificate; but to nobody it should say nothing of that.
        problem = "isn't there, or doesn't look at the token (status 404)"
        return warning(where, problem, "Check X509.url. The service should answer 401 to a token that it doesn't know.")
    problem = f"answers with status {status} to a token that nobody has"
    return warning(where, problem, "Check X509.url. The service should answer 401 to a token that it doesn't know.")


def _anybody(where: str) -> Finding:
    problem = "answers a token that nobody has as if it were somebody's"
    return error(where, problem, "Tell its administrators: anybody may get proxies there.")
