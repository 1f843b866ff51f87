"""Checks that the identity provider exchanges tokens for this hub's client (RFC 8693), without a log-in.

For each service it is asked to exchange a token that nobody has. INDIGO IAM and Keycloak look at the client and its
right to exchange first, IAM at the scopes, too. So if they refuse the token, all that is in order. Whether they give
the audience shows only with a real token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from casa_hub.checks.fetches import Asking, asking, for_operator
from casa_hub.checks.findings import Finding, Status, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import NoAnswerError, ask
from casa_hub.credentials.fetching import TOKEN_ENDPOINT, Fetch, FetchError, Why
from casa_hub.identity.discovery import document_url

#: In the description of an `invalid_request` that isn't about the token. RFC 8693, 2.2.2 has that code for a token that
#: is refused, too, and leaves the description to the provider.
_NOT_THE_TOKEN = re.compile(r"scope|audience|not enabled|not allowed|grant|client", re.IGNORECASE)


async def look(site: Site) -> AsyncIterator[Finding]:
    fetches = {} if site.facility is None else site.facility.fetches
    wanted = {name: fetch for name, fetch in fetches.items() if name in site.sound and fetch.url == TOKEN_ENDPOINT}
    if not wanted or site.authenticator is None:
        return
    async with asking(site.authenticator) as asks:
        client = asks.issuer.client
        try:
            session = await asks.issuer.session()
            answer = await ask(session, document_url(client.issuer), proxy=client.proxy or None)
        except NoAnswerError as problem:
            yield unseen(f"issuer {client.issuer}", str(problem), "The check of the issuer says what to do.")
            return
        for finding in offered(answer.document, wanted):
            yield finding
        for finding in together(await asyncio.gather(*(_try(asks, *one) for one in wanted.items()))):
            yield finding


def offered(document: Mapping[str, Any], wanted: Mapping[str, Fetch]) -> list[Finding]:
    """Whether the discovery document has the grant; empty if it has no list (RFC 8414, 2)."""
    grants = document.get("grant_types_supported")
    if not isinstance(grants, list):
        return []
    missing = sorted({fetch.form.get("grant_type", "") for fetch in wanted.values()}.difference(map(str, grants)))
    thing = f"issuer {document.get('issuer')}"
    if not missing:
        return [ok(thing, "offers token exchange")]
    problem = f"doesn't offer token exchange: grant_types_supported lacks {', '.join(missing)}"
    return [warning(thing, problem, "Ask the provider's administrators whether it is switched on there.")]


async def _try(asks: Asking, name: str, fetch: Fetch) -> Finding:
    try:
        reply = await asks.ask(fetch)
    except FetchError as problem:
        return unseen(name, f"{problem.thing}: {problem.problem}", "If it stays so, ask the provider's administrators.")
    return read(name, reply.body, asks.meaning(fetch, reply))


def read(name: str, body: object, refusal: FetchError | None) -> Finding:
    """What the answer to a token that nobody has means.

    Args:
        name: of the credential.
        body: of the answer; JSON value.
        refusal: what the credential makes of it, None if it takes it.
    """
    if refusal is None:
        problem = "the provider has exchanged a token that nobody has"
        return error(name, problem, "Tell its administrators: anybody may get tokens there.")
    sound = "the provider lets this hub's client exchange tokens; only a log-in shows whether for this audience"
    if refusal.why is Why.SIGN_IN:
        return ok(name, sound)
    said = body if isinstance(body, Mapping) else {}
    description = str(said.get("error_description", ""))
    if said.get("error") == "invalid_request" and not _NOT_THE_TOKEN.search(description):
        return ok(name, sound)
    if refusal.why is Why.OUTAGE:
        return unseen(name, refusal.problem, for_operator(refusal.remedy))
    return error(name, refusal.problem, for_operator(refusal.remedy))


def together(findings: Iterable[Finding]) -> list[Finding]:
    """With one finding for all services of which the same is said."""
    names: dict[tuple[Status, str, str], list[str]] = {}
    for one in findings:
        names.setdefault((one.status, one.problem, one.remedy), []).append(one.thing)
    return [Finding(status, ", ".join(them), *said) for (status, *said), them in names.items()]
