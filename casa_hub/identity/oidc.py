"""OpenID Connect towards one issuer: discovery, keys, token requests, userinfo.

All data from the identity provider is checked once, here and in the pure modules `discovery`, `signatures` and
`tokens`; callers get plain data. Each failure is an `OIDCError`, which carries the verdict: "no", "log in again" or
"can't say"; what must not be believed is its subclass `TokenError`. No message ever holds a token, code or claim.

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
from casa_hub.identity.transport import USERINFO_LIMIT, Client, Contact, Reply, Transport, split_url
from casa_hub.identity.verdicts import of_token_answer, of_userinfo_answer

#: Seconds for which a discovery document and a key set are used without asking again.
METADATA_AGE = 3600.0
#: Seconds between two tries of a failing discovery, while the older document is used.
METADATA_RETRY = 60.0
#: Least seconds between two requests for keys because of an unknown `kid`: anybody can send tokens with unknown ones.
KEYS_RETRY = 10.0
#: Requests for the discovery document before the provider counts as unreachable.
ATTEMPTS = 2
#: Seconds that a refresh may take, more than any other request: INDIGO IAM finishes a refresh even if its client has
#: hung up (measured). Then the old refresh token is dead, and nobody has the new one.
REFRESH_PATIENCE = 30.0
#: Refreshes at the same time, fewer than there are connections. Of hundreds at once, the others wait for their turn
#: before their patience begins: a refresh that is cut off at its end may have ended the old token (as above).
REFRESHES = 32

log = logging.getLogger(__name__)


class Issuer:
    """One identity provider. Asks it, and believes only tokens that are signed, fresh and meant for this hub."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = time.time) -> None:
        self.client = client
        self._clock = clock
        self._transport = Transport(client, clock)
        self._metadata: Metadata | None = None
        #: When the document has to be asked for again, by the clock.
        self._metadata_until = -math.inf
        self._keys = KeySet()
        self._keys_at = -math.inf
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._refreshes = asyncio.Semaphore(REFRESHES)
        for name, url in (("issuer", client.issuer), ("http_proxy", client.proxy)):
            if url and not split_url(url)[1]:
                raise cant_say(f"CasaOAuthenticator.{name}", f"{url!r} is not a URL", "Give it with scheme and host.")

    @property
    def known(self) -> Metadata | None:
        """The last discovery document, however old; None before the first."""
        return self._metadata

    @property
    def contact(self) -> Contact:
        """When the issuer was last heard of."""
        return self._transport.contact

    async def close(self) -> None:
        await self._transport.close()

    async def session(self) -> aiohttp.ClientSession:
        """The HTTP session of the requests to the issuer."""
        return await self._transport.session()

    # -- discovery and keys --------------------------------------------------------------------------------------

    async def metadata(self) -> Metadata:
        """The issuer's discovery document, at most an hour old; older if the issuer gave no usable one since."""
        if self._metadata is None or not 0 < self._metadata_until - self._clock() <= METADATA_AGE:
            try:
                await self._once("discovery", self._load_metadata)
            except OIDCError as error:
                if self._metadata is None:
                    raise
                log.warning("Discovery failed; the earlier discovery document is used: %s", error)
                self._metadata_until = self._clock() + METADATA_RETRY
        assert self._metadata is not None  # noqa: S101 - for the type checker
        return self._metadata

    async def _once(self, what: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Share one request between all callers that want the same, also its failure: if they asked one after the
        other, the tenth would wait for ten time-outs.
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
        url = discovery.document_url(self.client.issuer)
        self._transport.check(url, "CasaOAuthenticator.issuer")
        for attempt in range(1, ATTEMPTS + 1):  # a lost packet is not an outage
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
        raise cant_say(url, f"discovery answered {status}", "Check CasaOAuthenticator.issuer.")

    async def _key(self, header: Mapping[str, Any], thing: str) -> jwt.PyJWK:
        """The issuer's key for a token's header. If the header names an unknown key, the key set is read again."""
        kid, algorithm = header.get("kid"), header["alg"]
        age = self._clock() - self._keys_at
        fresh = 0 <= age < METADATA_AGE  # negative after the clock was put back
        if not fresh or (age >= KEYS_RETRY and not self._keys.usable(kid, algorithm)):
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
            raise cant_say(url, f"has no key set (status {status})", "Ask the provider's administrators.")
        self._keys, self._keys_at = KeySet(entries), self._clock()

    async def count_keys(self) -> int:
        """Read the key set and count the keys that can verify a token of this issuer."""
        await self._once("keys", self._load_keys)
        return self._keys.count((await self.metadata()).algorithms)

    # -- token requests ------------------------------------------------------------------------------------------

    async def exchange(self, code: str, *, verifier: str, redirect_uri: str, nonce: str) -> Tokens:
        """Trade the code of a log-in for tokens (RFC 6749, 4.1.3; RFC 7636) and verify the ID token."""
        form = {"grant_type": "authorization_code", "redirect_uri": redirect_uri}
        tokens, problem = await self._grant({**form, "code": code, "code_verifier": verifier})
        if problem is not None:
            raise problem
        if not tokens.id_token:
            raise TokenError("ID token", "is missing in the provider's answer; the client needs the scope openid")
        return await self._with_claims(tokens, nonce=nonce)

    async def refresh(self, refresh_token: str, *, sub: str) -> Tokens:
        """New tokens for a refresh token (RFC 6749, 6). The ID token may be absent and has no nonce (Core 12.2).

        The answer's refresh token may be the only one that is still valid, even if the rest of the answer is wrong. So
        the caller must store it in any case, or the session is lost.

        Raises:
            RefreshedTokenError: the answer must not be used, but its refresh token must be stored.
            OIDCError: there is no answer, or it has no token.
        """
        try:
            async with asyncio.timeout(REFRESH_PATIENCE):
                await self._refreshes.acquire()
        except TimeoutError as error:
            raise cant_say(self.client.issuer, "others are asked about, and it is slow to answer") from error
        try:
            tokens, problem = await self._grant(
                {"grant_type": "refresh_token", "refresh_token": refresh_token}, patience=REFRESH_PATIENCE
            )
        finally:
            self._refreshes.release()
        if problem is not None:
            raise RefreshedTokenError(tokens, problem)
        if not tokens.id_token:
            return tokens
        try:
            return await self._with_claims(tokens, nonce=None, sub=sub)
        except OIDCError as error:
            raise RefreshedTokenError(tokens, error) from error
        except Exception as error:
            cause = TokenError("ID token", f"can't be verified ({type(error).__name__})")
            raise RefreshedTokenError(tokens, cause) from error

    async def _grant(
        self, parameters: dict[str, str], *, patience: float | None = None
    ) -> tuple[Tokens, OIDCError | None]:
        """The tokens of the token endpoint, and the error if they must not be used. Never raises after a "200"."""
        metadata = await self.metadata()
        status, document, _ = await self._ask_as_client(metadata.token_endpoint, parameters, patience=patience)
        answer = document if status == HTTPStatus.OK and isinstance(document, dict) else {}
        tokens, problem = read_answer(answer, metadata.token_endpoint, self._clock())
        if tokens is None:
            raise OIDCError(metadata.token_endpoint, of_token_answer(status, document))
        return tokens, problem

    async def _ask_as_client(self, url: str, parameters: dict[str, str], *, patience: float | None = None) -> Reply:
        """One request with this client's credentials; `patience` as in `Transport.ask`."""
        headers, form = self.as_client(parameters)
        return await self._transport.ask("POST", url, headers=headers, data=form, patience=patience)

    def as_client(self, parameters: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and form of a request to the token endpoint with this client's credentials."""
        client = self.client
        headers, form = {"Accept": "application/json"}, dict(parameters)
        if client.basic_auth:
            # Form-urlencoded first (RFC 6749, 2.3.1): secrets with ":" or "%" fail otherwise.
            pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form |= {"client_id": client.client_id, "client_secret": client.client_secret}
        return headers, form

    async def revoke(self, refresh_token: str) -> bool:
        """Let the provider revoke a refresh token, and with it the tokens that were made of it (RFC 7009).

        False if the provider offers no revocation: then the token is valid until it expires.
        Raises OIDCError if the token may still be valid; try again.
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
        # An unknown token counts as revoked (2.2). Some providers answer it with an error, but it is dead as well.
        if status == HTTPStatus.OK or (
            status == HTTPStatus.BAD_REQUEST and error in ("invalid_token", "invalid_grant")
        ):
            return True
        # Only the reason is used, in the provider's words: a verdict on the person would be meaningless here.
        reason = of_token_answer(status, document).reason
        raise cant_say(url, f"a refresh token could not be revoked (HTTP {status}). {reason}".rstrip("."))

    async def userinfo(self, access_token: str, *, sub: str) -> dict[str, Any]:
        """The user's claims, plain or signed (Core 5.3); `sub` must be the one of the ID token (5.3.2)."""
        metadata = await self.metadata()
        url = metadata.userinfo_endpoint
        headers = {"Accept": "application/json", "Authorization": f"Bearer {access_token}"}
        status, document, challenges = await self._transport.ask("GET", url, headers=headers, limit=USERINFO_LIMIT)
        if status != HTTPStatus.OK:
            raise OIDCError(url, of_userinfo_answer(status, document, challenges))
        if isinstance(document, str):
            document = await self.verified(document, "signed userinfo", require=["sub"])
        if not isinstance(document, dict) or not document:
            raise cant_say(url, "userinfo is not a JSON object", "Ask the provider's administrators.")
        if document.get("sub") != sub:
            raise TokenError("userinfo", "is for another subject than the ID token")
        return document

    # -- verification --------------------------------------------------------------------------------------------

    async def _with_claims(self, tokens: Tokens, *, nonce: str | None, sub: str | None = None) -> Tokens:
        """The tokens with the verified claims of their ID token, which must have this nonce and subject, if given."""
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
