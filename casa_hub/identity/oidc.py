"""OpenID Connect towards one issuer: discovery, keys, token requests, and what makes a token believable.

Everything that comes from the identity provider is checked here, once, and leaves as plain data. What can go wrong
has one type, `OIDCError`, which carries the verdict (`verdicts`): whether the provider said "no", wants a
new log-in, or could not tell. No token, code or claim is ever part of a message.

Sources: OpenID Connect Core 1.0 (sections 3.1.3.7, 5.3, 12.2), OpenID Connect Discovery 1.0, RFC 6749, RFC 7515,
RFC 7517, RFC 7636, RFC 8725 (algorithms), RFC 9207 is not needed with one issuer per hub.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import math
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote_plus, urlsplit

import aiohttp
import jwt

from casa_hub.errors import CasaError
from casa_hub.identity.verdicts import Answer, Verdict, of_token_answer, of_userinfo_answer
from casa_hub.loopback import is_loopback

#: Signature algorithms that are believed: asymmetric ones only. With "none" anybody could write tokens, and with
#: HMAC anybody who knows the (public) key (RFC 8725, section 3.1).
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})

#: What is asked of a provider, and what is used where it is offered.
REQUIRED_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")
OPTIONAL_ENDPOINTS = ("end_session_endpoint", "revocation_endpoint")

#: Seconds that a discovery document and a key set are believed without asking again.
METADATA_AGE = 3600.0
#: Seconds until a discovery that failed is tried again, while an older document serves.
METADATA_RETRY = 60.0
#: Seconds between two requests for keys that an unknown `kid` may cause: anybody can send unknown ones.
KEYS_RETRY = 10.0
#: Times that discovery is asked before the provider counts as away.
ATTEMPTS = 2
#: Bytes that are read of an answer of discovery, of the key set and of the token end point: real ones have up to some
#: 10 kB, and each byte that is read is parsed on the hub's event loop.
ANSWER_LIMIT = 256 * 1024
#: Bytes that are read of userinfo: with thousands of groups it has some 100 kB.
USERINFO_LIMIT = 1024 * 1024
#: Keys of a key set that are looked at; real sets have a handful, and each costs some time on the hub's event loop.
KEYS_LIMIT = 100

log = logging.getLogger(__name__)


class OIDCError(CasaError):
    """The identity provider's answer is no usable one; `answer` has the verdict and the reason."""

    def __init__(self, thing: str, answer: Answer, remedy: str = "") -> None:
        super().__init__(thing, answer.reason.rstrip("."), remedy)
        self.answer = answer


class TokenError(OIDCError):
    """A token or userinfo that must not be believed: forged, foreign, expired or malformed."""

    def __init__(self, thing: str, problem: str) -> None:
        super().__init__(thing, Answer(Verdict.CANT_SAY, problem))


def cant_say(thing: str, reason: str, remedy: str = "") -> OIDCError:
    return OIDCError(thing, Answer(Verdict.CANT_SAY, reason), remedy)


@dataclass(frozen=True, slots=True)
class Client:
    """This hub as the identity provider knows it, and the way there."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    #: Client credentials in the Authorization header (RFC 6749, 2.3.1), else in the body.
    basic_auth: bool = True
    #: PEM bundle with the CA of the issuer; "" trusts the system's.
    ca_file: str = ""
    #: HTTP proxy towards the issuer; "" for none.
    proxy: str = ""
    #: Plain http is for loopback, else only with this.
    allow_insecure: bool = False
    #: Seconds that the issuer's clock may differ from ours.
    leeway: float = 60.0
    #: Seconds that one request may take.
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Metadata:
    """What of the issuer's discovery document is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str
    jwks_uri: str
    algorithms: frozenset[str]
    end_session_endpoint: str = ""
    revocation_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One answer of the token endpoint."""

    access_token: str = field(repr=False)
    #: "" where the answer has none: the old one stays valid then (RFC 6749, section 6).
    refresh_token: str = field(repr=False)
    id_token: str = field(repr=False)
    #: Epoch seconds; None if the provider did not say.
    expires_at: float | None
    #: Epoch seconds of the answer.
    obtained_at: float
    #: Granted scopes; None if the answer doesn't say, which means those asked for (RFC 6749, 5.1).
    scope: frozenset[str] | None
    #: Verified claims of the ID token; empty where there is none (a refresh may leave it out).
    id_claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Issuer:
    """One identity provider: asks it, and believes only what is signed, fresh and meant for this hub."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = time.time) -> None:
        self.client = client
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._metadata: Metadata | None = None
        #: When the document is to be asked for again, by the clock.
        self._metadata_until = -math.inf
        self._keys: dict[str | None, list[jwt.PyJWK]] = {}
        self._keys_at = -math.inf
        self._under_way: dict[str, asyncio.Task[None]] = {}
        for name, url in (("issuer", client.issuer), ("http_proxy", client.proxy)):
            if url and not _split(url)[1]:
                raise cant_say(f"CasaOAuthenticator.{name}", f"{url!r} is no URL", "Give one with a scheme and a host")

    @property
    def known(self) -> Metadata | None:
        """What was discovered last, however old."""
        return self._metadata

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

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
        self._check_transport(url, "CasaOAuthenticator.issuer")
        for attempt in range(1, ATTEMPTS + 1):  # one lost packet is no outage
            try:
                status, document = await self._ask("GET", url)
            except OIDCError:
                if attempt == ATTEMPTS:
                    raise
                continue
            if status == HTTPStatus.OK:
                metadata = _read_discovery(document, url=url, issuer=self.client.issuer)
                for name in REQUIRED_ENDPOINTS:
                    self._check_transport(getattr(metadata, name), f"{name} of {url}")
                return metadata
            if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                break
        raise cant_say(url, f"discovery answered {status}", "Check CasaOAuthenticator.issuer")

    def _check_transport(self, url: str, thing: str) -> None:
        scheme, host = _split(url)
        # No browser can be sent to an address with a line's end or half a character (a lone surrogate).
        if not url.isprintable() or (not host and scheme in {"", "http", "https"}):
            raise cant_say(thing, f"{url[:200]!r} is no URL", "Check CasaOAuthenticator.issuer")
        if scheme == "https" or (scheme == "http" and (self.client.allow_insecure or is_loopback(host))):
            return
        raise cant_say(thing, f"{url!r} is not https", "Plain http is for loopback, else set allow_insecure_issuer")

    async def _key(self, header: Mapping[str, Any], thing: str) -> jwt.PyJWK:
        """The issuer's key for a token's header; its keys are read again when the header names an unknown one."""
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise TokenError(thing, "its header's kid is not a string")
        if self._wanted(kid, header):
            try:
                await self._once("keys", self._load_keys)
            except OIDCError:
                if not self._usable(kid, header):
                    raise
        usable = self._usable(kid, header)
        if len(usable) != 1:
            known = "no key" if not usable else "several keys"
            raise TokenError(thing, f"the issuer has {known} for kid {str(kid)[:80]!r} and {header.get('alg')!r}")
        return usable[0]

    def _wanted(self, kid: str | None, header: Mapping[str, Any]) -> bool:
        """Whether keys should be read: never read, too old, or unknown and not asked for a moment ago."""
        age = self._clock() - self._keys_at
        if not 0 <= age < METADATA_AGE:  # also after the clock was put back
            return True
        return age >= KEYS_RETRY and not self._usable(kid, header)

    def _usable(self, kid: str | None, header: Mapping[str, Any]) -> list[jwt.PyJWK]:
        candidates = self._keys.get(kid, []) if kid is not None else [k for keys in self._keys.values() for k in keys]
        return [key for key in candidates if _fits(key, header.get("alg"))]

    async def _load_keys(self) -> None:
        url = (await self.metadata()).jwks_uri
        status, document = await self._ask("GET", url)
        entries = document.get("keys") if isinstance(document, dict) else None
        if status != HTTPStatus.OK or not isinstance(entries, list):
            raise cant_say(url, f"no key set (status {status})", "Ask the provider's administrators")
        keys: dict[str | None, list[jwt.PyJWK]] = {}
        for entry in entries[:KEYS_LIMIT]:
            # One odd key must not hide the others; symmetric ones have no place in a published set.
            if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
                continue
            kid = entry.get("kid")
            if kid is not None and not isinstance(kid, str):
                continue
            try:
                key = jwt.PyJWK(entry)
            except Exception:  # noqa: BLE001, S112 - whatever the libraries make of an odd key
                continue
            keys.setdefault(kid, []).append(key)
        self._keys, self._keys_at = keys, self._clock()

    async def count_keys(self) -> int:
        """How many published keys can verify a token of this issuer; read anew.

        Raises:
            OIDCError: there is no key set.
        """
        await self._once("keys", self._load_keys)
        algorithms = (await self.metadata()).algorithms
        keys = [key for some in self._keys.values() for key in some]
        return sum(any(_fits(key, algorithm) for algorithm in algorithms) for key in keys)

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
        tokens, problem = await self._grant({"grant_type": "refresh_token", "refresh_token": refresh_token})
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

    async def _grant(self, parameters: dict[str, str]) -> tuple[Tokens, OIDCError | None]:
        """What the token endpoint gave, and why it must not be used, if so. Nothing after its "200" raises here."""
        metadata = await self.metadata()
        status, document = await self._ask_as_client(metadata.token_endpoint, parameters)
        answer = document if status == HTTPStatus.OK and isinstance(document, dict) else {}
        access_token, refresh_token = (_text(answer.get(name)) for name in ("access_token", "refresh_token"))
        if not access_token and not refresh_token:
            raise OIDCError(metadata.token_endpoint, of_token_answer(status, document))
        problem = None
        if not access_token:
            problem = "the answer has no access token"
        elif not (_sendable(access_token) and _sendable(refresh_token)):
            problem = "a token of the answer has characters that no token may have"
        elif str(answer.get("token_type", "Bearer")).lower() != "bearer":
            problem = "the token is no Bearer token"
        now = self._clock()
        scope = answer.get("scope")
        tokens = Tokens(
            access_token=access_token,
            # One that can be neither stored nor sent is none: the old one is kept.
            refresh_token=refresh_token if _sendable(refresh_token) else "",
            id_token=_text(answer.get("id_token")),
            expires_at=_expiry(answer.get("expires_in"), now),
            obtained_at=now,
            scope=frozenset(scope.split()) if isinstance(scope, str) else None,
        )
        if problem is None:
            return tokens, None
        return tokens, cant_say(metadata.token_endpoint, problem, "Ask the provider's administrators")

    async def _ask_as_client(self, url: str, parameters: dict[str, str]) -> tuple[int, object]:
        """One request with this client's credentials; status and body as those of `_ask`."""
        client = self.client
        headers = {"Accept": "application/json"}
        if client.basic_auth:
            # Form-urlencoded first (RFC 6749, 2.3.1): secrets with ":" or "%" fail otherwise.
            pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            parameters = parameters | {"client_id": client.client_id, "client_secret": client.client_secret}
        return await self._ask("POST", url, headers=headers, data=parameters)

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
        self._check_transport(url, f"revocation_endpoint of {self.client.issuer}")
        form = {"token": refresh_token, "token_type_hint": "refresh_token"}
        status, document = await self._ask_as_client(url, form)
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
        status, document = await self._ask("GET", url, headers=headers, limit=USERINFO_LIMIT)
        if status != HTTPStatus.OK:
            raise OIDCError(url, of_userinfo_answer(status, document))
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
        if nonce is not None and not hmac.compare_digest(_bytes(str(claims.get("nonce", ""))), _bytes(nonce)):
            raise TokenError("ID token", "its nonce is not the one of this log-in")
        if "at_hash" in claims:
            header = jwt.get_unverified_header(tokens.id_token)
            expected = _at_hash(tokens.access_token, str(header["alg"]))
            if expected is not None and claims["at_hash"] != expected:
                raise TokenError("ID token", "its at_hash is not that of the access token")
        if not isinstance(claims["sub"], str) or not claims["sub"] or not claims["sub"].isprintable():
            raise TokenError("ID token", "its sub is not a string that can be kept")
        if sub is not None and claims["sub"] != sub:
            raise TokenError("ID token", "it is for another subject than the one who logged in")
        return replace(tokens, id_claims=claims)

    async def verified(self, token: str, thing: str, *, require: list[str]) -> dict[str, Any]:
        """Claims of a signed token of this issuer for this client (Core 3.1.3.7), else TokenError."""
        metadata = await self.metadata()
        # Not only PyJWT's own errors: it leaves some oddities of JSON to Python, an infinite "exp" say.
        try:
            header = jwt.get_unverified_header(token)
        except Exception as error:
            raise TokenError(thing, "it is not a signed JWT") from error
        algorithm = header.get("alg")
        # Against our own list first, then the provider's: what it doesn't offer it doesn't use.
        if not isinstance(algorithm, str) or algorithm not in metadata.algorithms:
            raise TokenError(thing, f"its algorithm {str(algorithm)[:40]!r} is not one that is believed")
        key = await self._key(header, thing)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                # The bare key: a PyJWK holds PyJWT's guess of the algorithm, and an RSA key may serve for six.
                key.key,
                algorithms=[algorithm],
                audience=self.client.client_id if "aud" in require else None,
                issuer=metadata.issuer if "iss" in require else None,
                leeway=self.client.leeway,
                options={"require": require, "verify_aud": "aud" in require, "verify_sub": False},
            )
        except jwt.PyJWTError as error:
            # PyJWT's texts name the claim; the value of none of them is in there but the audience's, which is public.
            raise TokenError(thing, _jwt_problem(error)) from error
        except Exception as error:
            raise TokenError(thing, f"it can't be verified ({type(error).__name__})") from error
        # A signed userinfo may leave these two out; if they are there they must be right.
        audience = claims.get("aud", self.client.client_id)
        audiences = audience if isinstance(audience, list) else [audience]
        if self.client.client_id not in audiences or claims.get("iss", metadata.issuer) != metadata.issuer:
            raise TokenError(thing, "it is for another client or from another issuer")
        # Several audiences need the authorized party to be named, and whenever it is named it is us.
        if claims.get("azp", None if len(audiences) > 1 else self.client.client_id) != self.client.client_id:
            raise TokenError(thing, "its authorized party (azp) is another client")
        return claims

    # -- HTTP ----------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        limit: int = ANSWER_LIMIT,
    ) -> tuple[int, object]:
        """One request: status, and the body as JSON value, as text of a JWT, or None. Never follows a redirect."""
        try:
            async with asyncio.timeout(self.client.timeout):
                async with (await self.session()).request(
                    method, url, headers=headers, data=data, proxy=self.client.proxy or None, allow_redirects=False
                ) as response:
                    body = await response.content.read(limit + 1)
                    while len(body) <= limit and not response.content.at_eof():
                        body += await response.content.read(limit + 1 - len(body))
                    kind = response.content_type
                    status = response.status
        except TimeoutError as error:
            raise cant_say(_bare(url), f"no answer within {self.client.timeout:g} s") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise cant_say(_bare(url), f"can't be reached ({type(error).__name__})") from error
        if len(body) > limit:
            raise cant_say(_bare(url), f"the answer is longer than {limit} bytes")
        if kind == "application/jwt":
            return status, body.decode("ascii", "replace").strip()
        try:
            return status, json.loads(body, parse_int=_integer)
        except (ValueError, RecursionError):
            return status, None

    async def session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            if self.client.ca_file:
                try:
                    context = await asyncio.to_thread(ssl.create_default_context, cafile=self.client.ca_file)
                except (OSError, ssl.SSLError) as error:
                    raise cant_say(
                        f"CasaOAuthenticator.ca_file {self.client.ca_file}",
                        f"can't be read as PEM ({type(error).__name__})",
                        "Give the certificate authority of the issuer as PEM",
                    ) from error
                connector = aiohttp.TCPConnector(ssl=context, limit=50)
            else:
                connector = aiohttp.TCPConnector(limit=50)
            # No cookies: two users' requests share this session.
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


class RefreshedTokenError(TokenError):
    """A refresh gave tokens in an answer that must not be used; the refresh token in `tokens` must still be stored."""

    def __init__(self, tokens: Tokens, cause: OIDCError) -> None:
        super().__init__(cause.thing, cause.problem)
        self.tokens = tokens


def _read_discovery(document: object, *, url: str, issuer: str) -> Metadata:
    """The discovery document of this issuer (Discovery 3), or the error that says what is wrong with it."""
    if not isinstance(document, dict):
        raise cant_say(url, "discovery didn't answer with a JSON object", "Check CasaOAuthenticator.issuer")
    named = _text(document.get("issuer"))
    # Exactly (Discovery 4.3); only in the operator's own text is a missing or surplus slash forgiven.
    if named.rstrip("/") != issuer.rstrip("/"):
        raise cant_say(
            url,
            f"the document is that of the issuer {named[:200]!r}, not of {issuer!r}",
            "Set CasaOAuthenticator.issuer to what the provider calls itself",
        )
    endpoints = {name: _text(document.get(name)) for name in (*REQUIRED_ENDPOINTS, *OPTIONAL_ENDPOINTS)}
    missing = [name for name in REQUIRED_ENDPOINTS if not endpoints[name]]
    if missing:
        raise cant_say(url, f"the document has no {', '.join(missing)}", "This provider can't be used")
    offered = document.get("id_token_signing_alg_values_supported")
    algorithms = ALGORITHMS & {str(name) for name in offered} if isinstance(offered, list) else ALGORITHMS
    if not algorithms:
        raise cant_say(
            url, "the provider signs ID tokens with no asymmetric algorithm", f"Needed: {sorted(ALGORITHMS)}"
        )
    return Metadata(issuer=named, algorithms=algorithms, **endpoints)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _sendable(token: str) -> bool:
    """Whether a token has but the characters that it may have (RFC 6749, A.12 and A.17), which every header takes."""
    return token.isascii() and token.isprintable()


def _bytes(text: str) -> bytes:
    """UTF-8 of whatever JSON can spell, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def _integer(digits: str) -> float:
    """A number of JSON; one of thousands of digits, which Python refuses to read, must not hide its document."""
    try:
        return int(digits)
    except ValueError:
        return -math.inf if digits.startswith("-") else math.inf


def _expiry(expires_in: object, now: float) -> float | None:
    """`expires_in` is a number of seconds; some providers send it as a string."""
    try:
        seconds = float(expires_in)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return now + seconds if 0 < seconds < 10 * 365 * 86400 else None


def _split(url: str) -> tuple[str, str]:
    """Scheme and host of an URL; both "" where it is none, "https://[::1" say."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    return parts.scheme, parts.hostname or ""


def _bare(url: str) -> str:
    """An URL without query: that may hold what is secret."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


_FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


def _fits(key: jwt.PyJWK, algorithm: object) -> bool:
    """Whether a key may verify this algorithm: its own `alg` where it has one, else its family and curve."""
    if not isinstance(algorithm, str) or key.key_type != _FAMILIES.get(algorithm[:2]):
        return False
    said = key._jwk_data  # noqa: SLF001 - PyJWK fills in a guess where the key says nothing
    if algorithm in _CURVES and said.get("crv") != _CURVES[algorithm]:
        return False
    return said.get("alg") in (None, algorithm)


def _at_hash(access_token: str, algorithm: str) -> str | None:
    """Left half of the token's hash (Core 3.1.3.6); None for EdDSA, whose hash isn't settled between curves."""
    if not algorithm[2:].isdigit():
        return None
    digest = hashlib.new(f"sha{algorithm[2:]}", access_token.encode()).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


def _jwt_problem(error: jwt.PyJWTError) -> str:
    texts: dict[type[jwt.PyJWTError], str] = {
        jwt.ExpiredSignatureError: "it has expired",
        jwt.ImmatureSignatureError: "it is from the future; compare the clocks of hub and issuer",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is from another issuer",
        jwt.InvalidSignatureError: "its signature is not the issuer's",
        jwt.InvalidAlgorithmError: "its algorithm doesn't fit the issuer's key",
    }
    for kind, text in texts.items():
        if isinstance(error, kind):
            return text
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no claim {error.claim}"
    return f"it can't be verified ({type(error).__name__})"
