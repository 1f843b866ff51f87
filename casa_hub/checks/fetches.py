"""Asks for what credentials are made of (`Minter.fetch`), as the hub does, but with a token that nobody has.

It gives nothing to anybody: who refuses this very token has accepted all else of the request that comes before it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

from casa_hub import operator_words
from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.checks.findings import NOBODY
from casa_hub.checks.web import TIMEOUT
from casa_hub.credentials.fetching import Answer, Fetch, FetchError
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Reply

_SEE = "Compare its settings with the registration of this hub's client."


class Asking:
    """Requests of this hub's client."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.fetches = Fetches(issuer)

    async def ask(self, fetch: Fetch) -> Reply:
        """The answer. Raises FetchError if there is none."""
        return await self.fetches.ask(fetch, f"{NOBODY}.{secrets.token_hex(8)}")

    def meaning(self, fetch: Fetch, reply: Reply) -> FetchError | None:
        """What the credential makes of an answer; None if it takes it for what was asked for."""
        try:
            fetch.read(Answer(reply.status, reply.body, datetime.now(UTC), self.issuer.client.issuer, NOBODY))
        except FetchError as refusal:
            return refusal
        return None


@contextlib.asynccontextmanager
async def asking(authenticator: CasaOAuthenticator) -> AsyncIterator[Asking]:
    """A context with connections of its own."""
    made = Asking(Issuer(replace(authenticator.provider_side.client, timeout=TIMEOUT)))
    try:
        yield made
    finally:
        await made.fetches.close()
        await made.issuer.close()


def for_operator(remedy: str) -> str:
    """As `operator_words.for_operator`; never empty."""
    return operator_words.for_operator(remedy) or _SEE
