"""Requests for what a credential is made of, with a person's own access token (`casa_hub.credentials.fetching`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from casa_hub.credentials.fetching import TOKEN_ENDPOINT, Fetch, FetchError
from casa_hub.credentials.tokens import is_bearer
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Client, Reply, Transport
from casa_hub.identity.verdicts import NOT_NOW

_LATER = "If it stays so, tell the operator of this hub."


class Fetches:
    """Over connections of their own: neither their number nor their failures touch the membership checks."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float] = time.time) -> None:
        self._issuer = issuer
        self._clock = clock
        self._provider = Transport(issuer.client, clock)
        #: By CA file.
        self._services: dict[str, Transport] = {}

    async def close(self) -> None:
        for transport in (self._provider, *self._services.values()):
            await transport.close()

    async def ask(self, fetch: Fetch, access_token: str) -> Reply:
        """One request, within `Client.timeout`. Raises FetchError (an outage) if there is no complete answer."""
        try:
            reply = await self._ask(fetch, access_token)
        except OIDCError as error:
            raise FetchError(error.thing, error.problem, _LATER) from error
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or reply.status in NOT_NOW:
            raise FetchError(fetch.title, f"it was answered with HTTP status {reply.status}", _LATER)
        return reply

    async def _ask(self, fetch: Fetch, access_token: str) -> Reply:
        if fetch.url == TOKEN_ENDPOINT:
            url = (await self._issuer.metadata()).token_endpoint
            headers, form = self._issuer.as_client({**fetch.form, "subject_token": access_token})
            return await self._provider.ask("POST", url, headers=headers, data=form)
        if not is_bearer(access_token):
            raise FetchError(fetch.title, "your access token has characters that it can't have", _LATER)
        headers = {"Accept": "application/json", "Authorization": f"Bearer {access_token}"}
        if not fetch.url.startswith("/"):
            service = self._service(fetch.ca_file)
            service.check(fetch.url, fetch.title)
            return await service.ask("POST", fetch.url, headers=headers, data=fetch.form)
        client = self._issuer.client
        url = client.issuer.rstrip("/") + fetch.url
        self._provider.check(url, fetch.title)
        # In the form, as the Authorization header is taken. IAM's /iam/proxycert wants to know its client, too.
        form = {**fetch.form, "client_id": client.client_id, "client_secret": client.client_secret}
        return await self._provider.ask("POST", url, headers=headers, data=form)

    def _service(self, ca_file: str) -> Transport:
        if ca_file not in self._services:
            client = Client("", "", "", ca_file=ca_file, ca_setting="ca_file")
            self._services[ca_file] = Transport(client, self._clock)
        return self._services[ca_file]
