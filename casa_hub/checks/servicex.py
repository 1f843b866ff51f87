"""Checks that the ServiceX answers, by the page that its own clients ask first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

import aiohttp

from casa_hub.checks.findings import Finding, error, ok, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import NoAnswerError, ask


async def look(site: Site) -> AsyncIterator[Finding]:
    minter = site.minter("servicex")
    if minter is None:
        return
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            answer = await ask(session, f"{minter.endpoint.rstrip('/')}/servicex")
        except NoAnswerError as problem:
            remedy = "Check ServiceX.endpoint, and that the ServiceX runs."
            yield error(f"ServiceX {minter.endpoint}", str(problem), remedy)
            return
    yield read(minter.endpoint, answer.status, known=bool(answer.document))


def read(endpoint: str, status: int, *, known: bool) -> Finding:
    """What an answer of the page ``/servicex`` means; `known`: whether its body is one of a ServiceX."""
    thing = f"ServiceX {endpoint}"
    if status == HTTPStatus.OK and known:
        return ok(thing, "answers")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return error(thing, f"fails with status {status}", "Ask its administrators.")
    return warning(
        thing,
        f"the answer (status {status}) doesn't say that it is a ServiceX",
        "Check ServiceX.endpoint: it is the URL without /servicex.",
    )
