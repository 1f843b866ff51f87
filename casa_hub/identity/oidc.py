"""OpenID Connect towards one issuer: discovery, keys, token requests, userinfo.

Everything that comes from the identity provider is checked here and in the pure modules beside it (`discovery`,
`signatures`, `tokens`), once, and leaves as plain data. What can go wrong has one type, `OIDCError`, which carries the
verdict: whether the provider said "no", wants a new log-in, or could not tell. No token, code or claim is ever part of
a message.

Sources: OpenID Connect Core 1.0 (sections 3.1.3.7, 5.3, 12.2), OpenID Connect Discovery 1.0, RFC 6749, RFC 7009,
RFC 7636; RFC 9207 is not needed with one issuer per hub.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote_plus

import aiohttp
import jwt

from casa_hub.identity import discovery
from casa_hub.identity.discovery import Metadata
from casa_hub.identity.errors import OIDCError, TokenError, cant_say
from casa_hub.identity.signatures import KeySet, read_claims, read_header
from casa_hub.identity.tokens import RefreshedTokenError, Tokens, read_answer, with_claims
from casa_hub.identity.transport import USERINFO_LIMIT, Client, Reply, Transport, split_url
from casa_hub.identity.verdicts import of_token_answer, of_userinfo_answer

#: Seconds that a discovery document and a key set are believed without asking again.
METADATA_AGE = 3600.0
#: Seconds until a discovery that failed is tried again, while an older document serves.
METADATA_RETRY = 60.0
#: Seconds between two requests for keys that an unknown `kid` may cause: anybody can send unknown ones.
KEYS_RETRY = 10.0
#: Times that discovery is asked before the provider counts as away.
ATTEMPTS = 2
#: Seconds that a refresh may take. A provider finishes a refresh whose client has hung up (INDIGO IAM does, measured):
#: the old refresh token is dead then, and nobody has the new one. So this waits longer than any other request.
REFRESH_PATIENCE = 30.0

log = logging.getLogger(__name__)


class Issuer:
    """One identity provider: asks it, and believes only what is signed, fresh and meant for this hub."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = time.time) -> None:
        self.client = client
        self._clock = clock
        self._transport = Transport(client)
        self._metadata: Metadata | None = None
        #: When the document is to be asked for again, by the clock.
        self._metadata_until = -math.inf
        self._keys = KeySet()
        self._keys_at = -math.inf
        self._under_way: dict[str, asyncio.Task[None]] = {}
        for name, url in (("issuer", client.issuer), ("http_proxy", client.proxy)):
            if url and not split_url(url)[1]:
                raise cant_say(f"CasaOAuthenticator.{name}", f"{url!r} is no URL", "Give one with a scheme and a host")

    @property
    def known(self) -> Metadata | None:
        """What was discovered last, however old."""
        return self._metadata

    async def close(self) -> None:
        await self._transport.close()

    async def session(self) -> aiohttp.ClientSession:
        """What carries the requests to the issuer."""
        return await self._transport.session()

    # -- discovery and keys --------------------------------------------------------------------------------------

    async def metadata(self) -> Metadata:
        """The issuer's discovery document, asked for once an hour; an old one serves while the issuer is away.

        Raises:
            OIDCError: nothing is known and the issuer can't be asked, or its document can't be used.
        """
        if self._metadata is None or not 0 < self._metadata_until - self._clock() <= METADATA_AGE:
            try:
                await self._once("discovery", self._load_metadata)
            except OIDCError as error:
                if self._metadata is None:
                    raise
                log.warning("Going on with what was discovered earlier: %s", error)
                self._metadata_until = self._clock() + METADATA_RETRY
        assert self._metadata is not None  # noqa: S101 - for the type checker
        return self._metadata

    async def _once(self, what: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let all who want the same wait for one request, and share its failure too: queued up behind each other,
        the tenth would wait for ten time-outs.
        """
        task = self._under_way.get(what)
        if task is None:
            task = self._under_way[what] = asyncio.create_task(ask())
            task.add_done_callback(lambda _: self._under_way.pop(what, None))
        await asyncio.shield(task)

    async def _load_metadata(self) -> None:
        self._metadata = await self._discover()
        self._metadata_until = self._clock() + METADATA_AGE

    async def _discover(self) -> Metadata:
        url = self.client.issuer.rstrip("/") + "/.well-known/openid-configuration"
        self._transport.check(url, "CasaOAuthenticator.issuer")
        for attempt in range(1, ATTEMPTS + 1):  # one lost packet is no outage
            try:
                status, document, _ = await self._transport.ask("GET", url)
            except OIDCError:
                if attempt == ATTEMPTS:
                    raise
                continue
            if status == HTTPStatus.OK:
                metadata = discovery.read(document, url=url, issuer=self.client.issuer)
                for name in discovery.REQUIRED_ENDPOINTS:
                    self._transport.check(getattr(metadata, name), f"{name} of {url}")
                return metadata
            if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                break
        raise cant_say(url, f"discovery answered {status}", "Check CasaOAuthenticator.issuer")

    async def _key(self, header: Mapping[str, Any], thing: str) -> jwt.PyJWK:
        """The issuer's key for a token's header; its keys are read again when the header names an unknown one."""
        kid, algorithm = header.get("kid"), header["alg"]
        age = self._clock() - self._keys_at
        known = 0 <= age < METADATA_AGE  # not after the clock was put back
        if not known or (age >= KEYS_RETRY and not self._keys.usable(kid, algorithm)):
            try:
                await self._once("keys", self._load_keys)
            except OIDCError:
                if not self._keys.usable(kid, algorithm):
                    raise
        usable = self._keys.usable(kid, algorithm)
        if len(usable) != 1:
            number = "no key" if not usable else "several keys"
            raise TokenError(thing, f"the issuer has {number} for kid {str(kid)[:80]!r} and {algorithm!r}")
        return usable[0]

    async def _load_keys(self) -> None:
        url = (await self.metadata()).jwks_uri
        status, document, _ = await self._transport.ask("GET", url)
        entries = document.get("keys") if isinstance(document, dict) else None
        if status != HTTPStatus.OK or not isinstance(entries, list):
            raise cant_say(url, f"no key set (status {status})", "Ask the provider's administrators")
        self._keys, self._keys_at = KeySet(entries), self._clock()

    async def count_keys(self) -> int:
        """How many published keys can verify a token of this issuer; read anew.

        Raises:
            OIDCError: there is no key set.
        """
        await self._once("keys", self._load_keys)
        return self._keys.count((await self.metadata()).algorithms)

    # -- token requests ------------------------------------------------------------------------------------------

    async def exchange(self, code: str, *, verifier: str, redirect_uri: str, nonce: str) -> Tokens:
        """Trade the code of a log-in for tokens (RFC 6749, 4.1.3; RFC 7636) and verify the ID token.

        Raises:
            TokenError: the ID token must not be believed.
            OIDCError: anything else.
        """
        tokens, problem = await self._grant(
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": redirect_uri,
                "code_verifier": verifier,
            },
        )
        if problem is not None:
            raise problem
        if not tokens.id_token:
            raise TokenError("ID token", "the provider sent none; the client needs the scope openid")
        return await self._with_claims(tokens, nonce=nonce)

    async def refresh(self, refresh_token: str, *, sub: str) -> Tokens:
        """New tokens for an old refresh token (RFC 6749, 6). An ID token may be absent and has no nonce (Core 12.2).

        A refresh token of the answer may be the only one that is alive, whatever else is wrong with the answer: whoever
        loses it has lost the session.

        Raises:
            RefreshedTokenError: the answer must not be used, but what it holds must be stored.
            OIDCError: there is no answer, or none with a token.
        """
        tokens, problem = await self._grant(
            {"grant_type": "refresh_token", "refresh_token": refresh_token}, patience=REFRESH_PATIENCE
        )
        if problem is not None:
            raise RefreshedTokenError(tokens, problem)
        if not tokens.id_token:
            return tokens
        try:
            return await self._with_claims(tokens, nonce=None, sub=sub)
        except OIDCError as error:
            raise RefreshedTokenError(tokens, error) from error
        except Exception as error:
            cause = TokenError("ID token", f"it can't be verified ({type(error).__name__})")
            raise RefreshedTokenError(tokens, cause) from error

    async def _grant(
        self, parameters: dict[str, str], *, patience: float | None = None
    ) -> tuple[Tokens, OIDCError | None]:
        """What the token endpoint gave, and why it must not be used, if so. Nothing after its "200" raises here."""
        metadata = await self.metadata()
        status, document, _ = await self._ask_as_client(metadata.token_endpoint, parameters, patience=patience)
        answer = document if status == HTTPStatus.OK and isinstance(document, dict) else {}
        tokens, problem = read_answer(answer, metadata.token_endpoint, self._clock())
        if tokens is None:
            raise OIDCError(metadata.token_endpoint, of_token_answer(status, document))
        return tokens, problem

    async def _ask_as_client(self, url: str, parameters: dict[str, str], *, patience: float | None = None) -> Reply:
        """One request with this client's credentials; `patience` as in `Transport.ask`."""
        client = self.client
        headers = {"Accept": "application/json"}
        if client.basic_auth:
            # Form-urlencoded first (RFC 6749, 2.3.1): secrets with ":" or "%" fail otherwise.
            pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            parameters = parameters | {"client_id": client.client_id, "client_secret": client.client_secret}
        return await self._transport.ask("POST", url, headers=headers, data=parameters, patience=patience)

    async def revoke(self, refresh_token: str) -> bool:
        """Let the provider end a refresh token, and with it what was made of it (RFC 7009).

        Returns:
            False if the provider has no way to do that, now or ever: the token lives until it expires.

        Raises:
            OIDCError: nobody knows whether it is ended; worth another try.
        """
        url = (await self.metadata()).revocation_endpoint
        if not url:
            return False
        self._transport.check(url, f"revocation_endpoint of {self.client.issuer}")
        form = {"token": refresh_token, "token_type_hint": "refresh_token"}
        status, document, _ = await self._ask_as_client(url, form)
        error = document.get("error") if isinstance(document, dict) else None
        if status == HTTPStatus.BAD_REQUEST and error == "unsupported_token_type":
            return False
        # An unknown token is a success (2.2); where it is called an error, it is no less dead.
        if status == HTTPStatus.OK or (
            status == HTTPStatus.BAD_REQUEST and error in ("invalid_token", "invalid_grant")
        ):
            return True
        # Why, in the provider's words without what may be a token; but of the person it says nothing here.
        reason = of_token_answer(status, document).reason
        raise cant_say(url, f"a refresh token could not be revoked (HTTP {status}). {reason}".rstrip("."))

    async def userinfo(self, access_token: str, *, sub: str) -> dict[str, Any]:
        """The user's claims, plain or signed (Core 5.3); `sub` must be the one of the ID token (5.3.2).

        Raises:
            TokenError: another subject, or a bad signature.
            OIDCError: anything else.
        """
        metadata = await self.metadata()
        url = metadata.userinfo_endpoint
        headers = {"Accept": "application/json", "Authorization": f"Bearer {access_token}"}
        status, document, challenges = await self._transport.ask("GET", url, headers=headers, limit=USERINFO_LIMIT)
        if status != HTTPStatus.OK:
            raise OIDCError(url, of_userinfo_answer(status, document, challenges))
        if isinstance(document, str):
            document = await self.verified(document, "signed userinfo", require=["sub"])
        if not isinstance(document, dict) or not document:
            raise cant_say(url, "userinfo is not a JSON object", "Ask the provider's administrators")
        if document.get("sub") != sub:
            raise TokenError("userinfo", "it is for another subject than the ID token")
        return document

    # -- believing -----------------------------------------------------------------------------------------------

    async def _with_claims(self, tokens: Tokens, *, nonce: str | None, sub: str | None = None) -> Tokens:
        """The tokens with the verified claims of their ID token; where given, nonce and subject must be these."""
        claims = await self.verified(tokens.id_token, "ID token", require=["iss", "sub", "aud", "exp", "iat"])
        return with_claims(tokens, claims, nonce=nonce, sub=sub)

    async def verified(self, token: str, thing: str, *, require: list[str]) -> dict[str, Any]:
        """Claims of a signed token of this issuer for this client, else TokenError."""
        metadata = await self.metadata()
        header = read_header(token, thing, metadata.algorithms)
        return read_claims(
            token,
            thing,
            await self._key(header, thing),
            algorithm=header["alg"],
            issuer=metadata.issuer,
            client_id=self.client.client_id,
            leeway=self.client.leeway,
            require=require,
        )
