"""Talking to an identity provider over real HTTP: what is believed, what is refused, and what the refusal says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import math
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests
import trustme
import werkzeug.serving

from casa_hub.identity import oidc, signatures, tokens
from casa_hub.identity.errors import OIDCError, TokenError
from casa_hub.identity.oidc import REFRESHES, Issuer
from casa_hub.identity.tokens import RefreshedTokenError, Tokens
from casa_hub.identity.transport import ANSWER_LIMIT, USERINFO_LIMIT, Client, Reply
from casa_hub.identity.verdicts import Verdict
from casa_hub.loopback import free_port
from tests.support.clock import Clock
from tests.support.hub import wait_for_port
from tests.support.idp import IdP
from tests.support.tokens import Signer, by_hand, id_claims
from tests.support.waiting import until_async as until

SECRET = "client-secret-value"
VERIFIER = "v" * 43
NONCE = "nonce-of-this-log-in"
REDIRECT = "http://localhost/callback"

GENUINE = Signer("genuine")
FOREIGN = Signer("foreign")


@pytest.fixture
def idp(idp: IdP) -> IdP:
    """Signs with a key that the tests know."""
    idp.put_user("s-1", preferred_username="oksana", **{"wlcg.groups": ["/cms"]})
    idp.change["/jwks"] = lambda _: {"keys": [GENUINE.jwk()]}
    return idp


@pytest.fixture
async def issuer(idp: IdP) -> AsyncIterator[Issuer]:
    one = Issuer(Client(idp.issuer, "hub", SECRET, timeout=30))
    yield one
    await one.close()


def code_for(idp: IdP, *, nonce: str = NONCE) -> str:
    """What the browser brings back after a log-in of s-1."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    query = {
        "client_id": "hub",
        "redirect_uri": REDIRECT,
        "response_type": "code",
        "scope": "openid profile",
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    url = f"{idp.issuer}/oauth2/authorize"
    answer = requests.post(url, params=query, data={"sub": "s-1"}, allow_redirects=False, timeout=10)
    return parse_qs(urlsplit(answer.headers["Location"]).query)["code"][0]


async def log_in(issuer: Issuer, idp: IdP, *, nonce: str = NONCE) -> Tokens:
    code = await asyncio.to_thread(code_for, idp)
    return await issuer.exchange(code, verifier=VERIFIER, redirect_uri=REDIRECT, nonce=nonce)


def sends(idp: IdP, make: Callable[[dict[str, Any]], str | None]) -> list[str]:
    """Let the token endpoint answer with ID tokens made from good claims; returns the secrets it has sent."""
    sent: list[str] = []

    def change(document: dict[str, Any]) -> dict[str, Any]:
        claims = id_claims(idp.issuer, nonce=NONCE)
        token = make(claims)
        document = {**document, "id_token": token} if token is not None else without(document, "id_token")
        sent.extend(value for name, value in document.items() if name.endswith("_token"))
        return document

    idp.change["/oauth2/token"] = change
    return sent


def without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in claims.items() if key != name}


def unspoken(secrets: list[str], *texts: str) -> None:
    for secret in [*secrets, SECRET, VERIFIER]:
        for text in texts:
            assert secret not in text
            # The signature alone, or the payload alone, is one as well.
            assert not any(len(part) > 20 and part in text for part in secret.split("."))


# -- a good log-in --------------------------------------------------------------------------------------------------


async def test_a_genuine_log_in_is_believed(issuer: Issuer, provider: IdP) -> None:
    provider.reset()  # with the provider's own key and token
    tokens = await log_in(issuer, provider)
    assert tokens.id_claims["sub"] == "s-1"
    assert tokens.refresh_token
    assert tokens.expires_at is not None
    assert 3500 < tokens.expires_at - time.time() <= 3600
    claims = await issuer.userinfo(tokens.access_token, sub="s-1")
    assert claims["wlcg.groups"] == ["/cms"]


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("declared", [True, False])
async def test_asymmetric_algorithms_are_believed(issuer: Issuer, idp: IdP, algorithm: str, declared: bool) -> None:
    signer = Signer("k", algorithm)
    key = signer.jwk() if declared else without(signer.jwk(), "alg")
    idp.change["/jwks"] = lambda _: {"keys": [FOREIGN.jwk(), key]}
    idp.change["/.well-known/openid-configuration"] = lambda document: {
        **document,
        "id_token_signing_alg_values_supported": ["none", "HS256", algorithm],
    }
    sends(idp, signer.sign)
    assert (await log_in(issuer, idp)).id_claims["sub"] == "s-1"


async def test_secrets_are_no_part_of_a_repr(issuer: Issuer, idp: IdP) -> None:
    secrets = sends(idp, GENUINE.sign)
    tokens = await log_in(issuer, idp)
    unspoken(secrets, repr(tokens), str(tokens), repr(issuer.client), str(issuer.client))


async def test_a_wrong_pkce_verifier_is_the_provider_s_to_refuse(issuer: Issuer, idp: IdP) -> None:
    code = await asyncio.to_thread(code_for, idp)
    with pytest.raises(OIDCError) as caught:
        await issuer.exchange(code, verifier="w" * 43, redirect_uri=REDIRECT, nonce=NONCE)
    assert caught.value.answer.verdict is Verdict.LOG_IN_AGAIN
    assert idp.pkce_failures == 1


# -- ID tokens that must not be believed ------------------------------------------------------------------------------


def _hmac(claims: dict[str, Any], key: bytes) -> str:
    """HS256 with the public key as the secret, as a library that doesn't tell keys apart would verify it."""
    token = by_hand({"alg": "HS256", "typ": "JWT", "kid": GENUINE.kid}, claims).rpartition(".")[0]
    signature = hmac.new(key, token.encode(), hashlib.sha256).digest()
    return f"{token}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _flipped(token: str) -> str:
    head, _, signature = token.rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], str | None], str]] = {
    "none": (lambda c: by_hand({"alg": "none", "kid": "genuine"}, c), "its algorithm 'none' is not one"),
    "None": (lambda c: by_hand({"alg": "None", "kid": "genuine"}, c), "its algorithm 'None' is not one"),
    "no algorithm": (lambda c: by_hand({"kid": "genuine"}, c, b"x"), "its algorithm 'None' is not one"),
    "HMAC with the public key as PEM": (lambda c: _hmac(c, GENUINE.pem()), "its algorithm 'HS256' is not one"),
    "HMAC with the public key as JWK": (
        lambda c: _hmac(c, json.dumps(GENUINE.jwk()).encode()),
        "its algorithm 'HS256' is not one",
    ),
    "algorithm that isn't offered": (lambda c: GENUINE.sign(c, algorithm="RS512"), "its algorithm 'RS512' is not one"),
    "foreign key, our kid": (lambda c: FOREIGN.sign(c, kid="genuine"), "its signature is not the issuer's"),
    "foreign key, its own kid": (FOREIGN.sign, "no key for kid 'foreign'"),
    "key in its own header": (lambda c: FOREIGN.sign(c, jwk=FOREIGN.jwk()), "no key for kid 'foreign'"),
    "kid is no string": (lambda c: by_hand({"alg": "RS256", "kid": 7}, c, b"x"), "can't be read|not a string|signed"),
    "flipped bit": (lambda c: _flipped(GENUINE.sign(c)), "its signature is not the issuer's"),
    "no JWT": (lambda _: "nonsense", "not a signed JWT"),
    "absent": (lambda _: None, "is missing in the provider's answer"),
    "other issuer": (lambda c: GENUINE.sign(c | {"iss": "https://evil.example.org"}), "from another issuer"),
    "no issuer": (lambda c: GENUINE.sign(without(c, "iss")), "no claim iss"),
    "other audience": (lambda c: GENUINE.sign(c | {"aud": "other"}), "for another audience"),
    "no audience": (lambda c: GENUINE.sign(without(c, "aud")), "no claim aud"),
    "several audiences, no azp": (lambda c: GENUINE.sign(c | {"aud": ["hub", "other"]}), "authorized party"),
    "foreign azp": (lambda c: GENUINE.sign(c | {"azp": "other"}), "authorized party"),
    "several audiences, foreign azp": (
        lambda c: GENUINE.sign(c | {"aud": ["hub", "other"], "azp": "other"}),
        "authorized party",
    ),
    "other nonce": (lambda c: GENUINE.sign(c | {"nonce": "of another log-in"}), "its nonce is not"),
    "no nonce": (lambda c: GENUINE.sign(without(c, "nonce")), "its nonce is not"),
    "nonce is no string": (lambda c: GENUINE.sign(c | {"nonce": [NONCE]}), "its nonce is not"),
    "expired": (lambda c: GENUINE.sign(c | {"exp": int(time.time()) - 120}), "has expired"),
    "no expiry": (lambda c: GENUINE.sign(without(c, "exp")), "no claim exp"),
    "from the future": (lambda c: GENUINE.sign(c | {"iat": int(time.time()) + 120}), "is from the future"),
    "not yet": (lambda c: GENUINE.sign(c | {"nbf": int(time.time()) + 120}), "is from the future"),
    "no iat": (lambda c: GENUINE.sign(without(c, "iat")), "no claim iat"),
    "no sub": (lambda c: GENUINE.sign(without(c, "sub")), "no claim sub"),
    "empty sub": (lambda c: GENUINE.sign(c | {"sub": ""}), "sub is not a string"),
    "sub is no string": (lambda c: by_hand_signed(c | {"sub": 7}), "sub is not a string"),
    "sub with half a character": (lambda c: GENUINE.sign(c | {"sub": "\ud800"}), "sub is not a string"),
    "nonce with half a character": (lambda c: GENUINE.sign(c | {"nonce": "\ud800"}), "its nonce is not"),
    "expiry without end": (lambda c: by_hand_signed(c | {"exp": math.inf}), "can't be verified"),
    "algorithm is a list": (lambda c: by_hand({"alg": ["RS256"], "kid": "genuine"}, c, b"x"), "its algorithm"),
    "algorithm is an object": (lambda c: by_hand({"alg": {"a": 1}, "kid": "genuine"}, c, b"x"), "its algorithm"),
    "half a character": (lambda c: GENUINE.sign(c) + "\ud800", "not a signed JWT"),
    "beyond ASCII": (lambda c: GENUINE.sign(c) + "\u00e9", "not a signed JWT"),
    "other access token": (lambda c: GENUINE.sign(c | {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}), "its at_hash"),
}


def by_hand_signed(claims: dict[str, Any]) -> str:
    """Signed properly, with claims that the library would refuse to sign."""
    text = by_hand({"alg": "RS256", "kid": "genuine"}, claims).rpartition(".")[0]
    signature = jwt.get_algorithm_by_name("RS256").sign(text.encode(), GENUINE.private_key)
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_id_token_is_refused_with_its_own_words_and_no_secret(
    issuer: Issuer, idp: IdP, caplog: pytest.LogCaptureFixture, attack: str
) -> None:
    caplog.set_level(logging.DEBUG)
    make, words = ATTACKS[attack]
    secrets = sends(idp, make)
    with pytest.raises(TokenError, match=words) as caught:
        await log_in(issuer, idp)
    # The provider runs in this process too, and says what it likes.
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("casa_hub", "aiohttp", "asyncio", "jwt"))]
    unspoken([s for s in secrets if s != "nonsense"], str(caught.value), repr(caught.value), *ours)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"access_token": "\ud800-access-token-value"}, "characters that no token may have"),
        ({"access_token": "\u00e9-access-token-value"}, "characters that no token may have"),
        ({"access_token": "line\r\nX-Other: access-token-value"}, "characters that no token may have"),
        ({"access_token": None}, "no access token"),
        ({"refresh_token": "\ud800-refresh-token-value"}, "characters that no token may have"),
        ({"token_type": "mac"}, "not a Bearer token"),
    ],
    ids=["half a character", "beyond ASCII", "line's end", "no access token", "odd refresh token", "no Bearer"],
)
async def test_a_log_in_with_odd_tokens_is_refused(issuer: Issuer, idp: IdP, odd: dict[str, Any], words: str) -> None:
    idp.change["/oauth2/token"] = lambda document: {**document, "refresh_token": "r", **odd}
    with pytest.raises(OIDCError, match=words) as caught:
        await log_in(issuer, idp)
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    assert "-token-value" not in str(caught.value) + repr(caught.value)


async def test_the_leeway_forgives_clocks_that_differ(idp: IdP) -> None:
    late, early = int(time.time()) - 20, int(time.time()) + 20
    sends(idp, lambda claims: GENUINE.sign(claims | {"exp": late, "iat": early}))
    forgiving, strict = (Issuer(Client(idp.issuer, "hub", SECRET, leeway=leeway)) for leeway in (60, 5))
    try:
        assert (await log_in(forgiving, idp)).id_claims["sub"] == "s-1"
        with pytest.raises(TokenError):
            await log_in(strict, idp)
    finally:
        await forgiving.close()
        await strict.close()


@pytest.mark.parametrize("claims", [{"azp": "hub"}, {"aud": ["hub"]}, {"aud": ["other", "hub"], "azp": "hub"}])
async def test_an_authorized_party_that_is_us_is_believed(issuer: Issuer, idp: IdP, claims: dict[str, Any]) -> None:
    sends(idp, lambda good: GENUINE.sign(good | claims))
    assert (await log_in(issuer, idp)).id_claims["sub"] == "s-1"


async def test_the_hash_of_the_access_token_is_compared(issuer: Issuer, idp: IdP) -> None:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(document["access_token"].encode()).digest()
        at_hash = base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()
        return {**document, "id_token": GENUINE.sign(id_claims(idp.issuer, nonce=NONCE) | {"at_hash": at_hash})}

    idp.change["/oauth2/token"] = change
    assert (await log_in(issuer, idp)).id_claims["sub"] == "s-1"


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        [FOREIGN.jwk()],
        [GENUINE.jwk(use="enc")],
        [GENUINE.jwk(alg="RS512")],
        [Signer("genuine", "ES256").jwk(alg=None)],
        [{"kty": "oct", "kid": "genuine", "k": "c2VjcmV0", "alg": "RS256"}],
        [{"kty": "RSA", "kid": "genuine"}, "no key", None],
        [],
    ],
    ids=[
        "of another kid",
        "for encryption",
        "for another algorithm",
        "of another family",
        "symmetric",
        "malformed",
        "none",
    ],
)
async def test_a_key_that_isn_t_for_this_token_is_not_used(issuer: Issuer, idp: IdP, keys: list[Any]) -> None:
    idp.change["/jwks"] = lambda _: {"keys": keys}
    sends(idp, GENUINE.sign)
    with pytest.raises(TokenError, match="no key for kid 'genuine'"):
        await log_in(issuer, idp)


async def test_an_odd_key_doesn_t_hide_the_others(issuer: Issuer, idp: IdP) -> None:
    odd: list[Any] = [{"kty": "RSA", "kid": "odd"}, {"kty": "EC", "crv": "P-nothing", "kid": "odd"}, None, 7]
    odd += [FOREIGN.jwk(kid=kid) for kid in (["genuine"], {"a": 1}, 7)]
    odd += [FOREIGN.jwk(kid="odd", n=n) for n in ("\ud800", 7, "", ["AQAB"])]
    odd += [FOREIGN.jwk(kty=["RSA"]), FOREIGN.jwk(alg=["RS256"])]
    idp.change["/jwks"] = lambda _: {"keys": [*odd, GENUINE.jwk()]}
    sends(idp, GENUINE.sign)
    assert (await log_in(issuer, idp)).id_claims


@pytest.mark.parametrize(("before", "found"), [(signatures.KEYS_LIMIT - 1, True), (signatures.KEYS_LIMIT, False)])
async def test_so_many_keys_are_looked_at(issuer: Issuer, idp: IdP, before: int, found: bool) -> None:
    idp.change["/jwks"] = lambda _: {"keys": [{"kty": "RSA"}] * before + [GENUINE.jwk()]}
    sends(idp, GENUINE.sign)
    with contextlib.nullcontext() if found else pytest.raises(TokenError, match="no key for kid 'genuine'"):
        assert (await log_in(issuer, idp)).id_claims["sub"] == "s-1"


async def test_without_a_kid_the_key_must_be_the_only_one(issuer: Issuer, idp: IdP) -> None:
    sends(idp, lambda claims: jwt.encode(claims, GENUINE.private_key, "RS256"))
    assert (await log_in(issuer, idp)).id_claims
    idp.change["/jwks"] = lambda _: {"keys": [GENUINE.jwk(), FOREIGN.jwk()]}
    other = Issuer(issuer.client)
    with pytest.raises(TokenError, match="several keys"):
        await log_in(other, idp)
    await other.close()


async def test_keys_are_read_again_once_when_the_provider_has_a_new_one(idp: IdP) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET), clock=clock)
    sends(idp, GENUINE.sign)
    await log_in(issuer, idp)
    assert idp.requests["/jwks"] == 1
    idp.change["/jwks"] = lambda _: {"keys": [FOREIGN.jwk()]}
    sends(idp, FOREIGN.sign)
    clock.now += oidc.KEYS_RETRY + 1
    await log_in(issuer, idp)
    assert idp.requests["/jwks"] == 2
    # The old key is not believed any more: it may have been stolen.
    sends(idp, GENUINE.sign)
    with pytest.raises(TokenError, match="no key"):
        await log_in(issuer, idp)
    await issuer.close()


async def test_unknown_kids_cause_one_request_for_keys_in_ten_seconds(idp: IdP) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET), clock=clock)
    numbers = iter(range(1000))
    sends(idp, lambda claims: GENUINE.sign(claims, kid=f"unknown-{next(numbers)}"))
    codes = [await asyncio.to_thread(code_for, idp) for _ in range(12)]

    async def attempt(code: str) -> None:
        with pytest.raises(TokenError, match="no key for kid 'unknown-"):
            await issuer.exchange(code, verifier=VERIFIER, redirect_uri=REDIRECT, nonce=NONCE)

    await asyncio.gather(*map(attempt, codes[:10]))
    assert idp.requests["/jwks"] == 1
    clock.now += oidc.KEYS_RETRY + 1
    await attempt(codes[10])
    await attempt(codes[11])
    assert idp.requests["/jwks"] == 2
    await issuer.close()


async def test_keys_that_never_arrive_are_no_verdict_on_the_person(idp: IdP) -> None:
    issuer = Issuer(Client(idp.issuer, "hub", SECRET, timeout=2))
    sends(idp, GENUINE.sign)
    with idp.holding("/jwks"), pytest.raises(OIDCError, match=r"/jwks: no answer within 2 s") as caught:
        await log_in(issuer, idp)
    assert not isinstance(caught.value, TokenError)
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    assert (await log_in(issuer, idp)).id_claims  # and nothing of it is remembered
    await issuer.close()


@pytest.mark.parametrize("answer", [(500, {"error": "x"}), (200, {"keys": 7}), (200, []), (200, "<html>")])
async def test_a_key_set_that_is_none_is_no_verdict_on_the_person(issuer: Issuer, idp: IdP, answer: Any) -> None:
    idp.answers["/jwks"] = answer
    sends(idp, GENUINE.sign)
    with pytest.raises(OIDCError, match="no key set") as caught:
        await log_in(issuer, idp)
    assert caught.value.answer.verdict is Verdict.CANT_SAY


async def test_it_is_known_when_the_provider_was_last_heard_of_and_since_when_it_is_silent(idp: IdP) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET, timeout=30), clock=clock)
    contact = issuer.contact
    assert (contact.answered_at, contact.silent_since, contact.why) == (None, None, "")
    began = clock.now
    await issuer.metadata()
    assert (contact.answered_at, contact.silent_since) == (began, None)
    idp.answers["/userinfo"] = (503, "<html>Maintenance</html>")
    for _ in range(2):
        clock.now += 60
        with pytest.raises(OIDCError):
            await issuer.userinfo("token", sub="s-1")
    assert (contact.answered_at, contact.silent_since) == (began, began + 60)
    assert "/userinfo: it answers with status 503" in contact.why
    idp.answers["/userinfo"] = (401, {"error": "invalid_token"})  # a refusal is an answer
    with pytest.raises(OIDCError):
        await issuer.userinfo("token", sub="s-1")
    assert (contact.answered_at, contact.silent_since, contact.why) == (clock.now, None, "")
    await issuer.close()


async def test_a_provider_that_can_t_be_reached_is_silent_and_no_secret_tells_why() -> None:
    port = free_port(test_a_provider_that_can_t_be_reached_is_silent_and_no_secret_tells_why)
    clock = Clock(time.time())
    issuer = Issuer(Client(f"http://127.0.0.1:{port}", "hub", SECRET, timeout=30), clock=clock)
    with pytest.raises(OIDCError):
        await issuer.metadata()
    assert (issuer.contact.answered_at, issuer.contact.silent_since) == (None, clock.now)
    assert "can't be reached" in issuer.contact.why
    assert SECRET not in issuer.contact.why
    await issuer.close()


async def test_known_keys_serve_while_the_provider_is_away(idp: IdP) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET), clock=clock)
    sends(idp, GENUINE.sign)
    await log_in(issuer, idp)
    idp.answers["/jwks"] = (503, {})
    clock.now += oidc.METADATA_AGE + 1
    assert (await log_in(issuer, idp)).id_claims
    await issuer.close()


# -- userinfo ---------------------------------------------------------------------------------------------------------


async def test_userinfo_of_somebody_else_is_refused(issuer: Issuer, idp: IdP) -> None:
    sends(idp, GENUINE.sign)
    tokens = await log_in(issuer, idp)
    for swapped in ({"sub": "s-2"}, {"preferred_username": "x"}, {"sub": ["s-1"]}):
        idp.answers["/userinfo"] = (200, swapped)
        with pytest.raises(TokenError, match="another subject than the ID token"):
            await issuer.userinfo(tokens.access_token, sub="s-1")


@pytest.mark.parametrize("body", ["<html>", [], {}, 7, "null"])
async def test_userinfo_that_is_no_object_is_no_verdict(issuer: Issuer, idp: IdP, body: Any) -> None:
    idp.answers["/userinfo"] = (200, body)
    with pytest.raises(OIDCError) as caught:
        await issuer.userinfo("token-value", sub="s-1")
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    assert "token-value" not in str(caught.value)


@pytest.mark.parametrize("claims", [{}, {"iss": None, "aud": "hub"}], ids=["without iss and aud", "with both"])
async def test_signed_userinfo_is_believed(issuer: Issuer, idp: IdP, claims: dict[str, Any]) -> None:
    more = {name: value or idp.issuer for name, value in claims.items()}
    idp.answers["/userinfo"] = (200, GENUINE.sign({"sub": "s-1", "wlcg.groups": ["/cms"], **more}))
    assert (await issuer.userinfo("token", sub="s-1"))["wlcg.groups"] == ["/cms"]


SIGNED: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "none": (lambda c: by_hand({"alg": "none"}, c), "its algorithm"),
    "HMAC": (lambda c: _hmac(c, GENUINE.pem()), "its algorithm"),
    "foreign key": (lambda c: FOREIGN.sign(c, kid="genuine"), "its signature"),
    "other issuer": (lambda c: GENUINE.sign(c | {"iss": "https://evil.example.org"}), "another issuer"),
    "other audience": (lambda c: GENUINE.sign(c | {"aud": "other"}), "another client"),
    "expired": (lambda c: GENUINE.sign(c | {"exp": int(time.time()) - 120}), "expired"),
    "other sub": (lambda c: GENUINE.sign(c | {"sub": "s-2"}), "another subject"),
    "no sub": (lambda c: GENUINE.sign(without(c, "sub")), "no claim sub"),
}


@pytest.mark.parametrize("attack", SIGNED)
async def test_signed_userinfo_is_refused_like_an_id_token(issuer: Issuer, idp: IdP, attack: str) -> None:
    make, words = SIGNED[attack]
    token = make({"sub": "s-1", "iss": idp.issuer, "aud": "hub"})
    idp.answers["/userinfo"] = (200, token)
    with pytest.raises(TokenError, match=words) as caught:
        await issuer.userinfo("token", sub="s-1")
    unspoken([token], str(caught.value), repr(caught.value))


# -- discovery --------------------------------------------------------------------------------------------------------

WELL_KNOWN = "/.well-known/openid-configuration"


async def test_the_slash_at_the_end_of_an_issuer_is_forgiven_to_the_operator(idp: IdP) -> None:
    issuer = Issuer(Client(idp.issuer + "/", "hub", SECRET))
    assert (await issuer.metadata()).issuer == idp.issuer
    sends(idp, GENUINE.sign)
    assert (await log_in(issuer, idp)).id_claims["iss"] == idp.issuer
    # But not to a token.
    sends(idp, lambda claims: GENUINE.sign(claims | {"iss": idp.issuer + "/"}))
    with pytest.raises(TokenError, match="another issuer"):
        await log_in(issuer, idp)
    await issuer.close()


DOCUMENTS: dict[str, tuple[Any, str]] = {
    "other issuer": ({"issuer": "https://evil.example.org"}, "is that of the issuer 'https://evil.example.org'"),
    "no issuer": ({"issuer": None}, "is that of the issuer ''"),
    "no token endpoint": ({"token_endpoint": None}, "has no token_endpoint"),
    "no keys": ({"jwks_uri": 7}, "has no jwks_uri"),
    "http token endpoint": ({"token_endpoint": "http://idp.example.org/t"}, "token_endpoint of .* is not https"),
    "http keys": ({"jwks_uri": "http://idp.example.org/jwks"}, "jwks_uri of .* is not https"),
    "half an IPv6 address": ({"token_endpoint": "https://[::1"}, "token_endpoint of .* is not a URL"),
    "no host": ({"jwks_uri": "https:///jwks"}, "jwks_uri of .* is not a URL"),
    "line's end": ({"authorization_endpoint": "https://a/\r\nb"}, "authorization_endpoint of .* is not a URL"),
    "half a character": ({"authorization_endpoint": "https://a/\ud800"}, "authorization_endpoint of .* is not a URL"),
    "odd scheme": ({"userinfo_endpoint": "file:///etc/passwd"}, "userinfo_endpoint of .* is not https"),
    "only HMAC": ({"id_token_signing_alg_values_supported": ["none", "HS256"]}, "no asymmetric algorithm"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
async def test_a_discovery_document_that_can_t_be_used_is_named(issuer: Issuer, idp: IdP, case: str) -> None:
    change, words = DOCUMENTS[case]
    idp.change[WELL_KNOWN] = lambda document: {**document, **change}
    with pytest.raises(OIDCError, match=words):
        await issuer.metadata()


def _of_size(size: int, document: dict[str, Any]) -> Callable[[Any, Any], Iterator[bytes]]:
    """An answer of so many bytes, most of which say nothing, in parts."""

    def answer(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        said = json.dumps(document).encode()
        yield said
        rest = size - len(said)
        while rest > 0:
            yield b" " * min(rest, 50_000)
            rest -= 50_000

    return answer


def _redirect(environ: Any, start_response: Any) -> list[bytes]:
    start_response("302 Found", [("Location", "/elsewhere")])
    return [b""]


ANSWERS: dict[str, tuple[Any, str]] = {
    "server error": ((500, {"error": "x"}), "discovery answered 500"),
    "not found": ((404, {}), "discovery answered 404"),
    "HTML": ((200, "<html>"), "didn't answer with a JSON object"),
    "list": ((200, [1]), "didn't answer with a JSON object"),
    "huge": (_of_size(ANSWER_LIMIT + 1, {}), f"longer than {ANSWER_LIMIT} bytes"),
    "redirect": (_redirect, "discovery answered 302"),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_a_discovery_that_fails_says_how(issuer: Issuer, idp: IdP, case: str) -> None:
    idp.answers[WELL_KNOWN], words = ANSWERS[case]
    with pytest.raises(OIDCError, match=words) as caught:
        await issuer.metadata()
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    assert idp.requests["/elsewhere"] == 0
    idp.answers.clear()
    assert (await issuer.metadata()).issuer == idp.issuer


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (WELL_KNOWN, ANSWER_LIMIT),
        ("/jwks", ANSWER_LIMIT),
        ("/oauth2/token", ANSWER_LIMIT),
        ("/userinfo", USERINFO_LIMIT),
    ],
)
async def test_an_answer_is_read_up_to_its_limit(issuer: Issuer, idp: IdP, path: str, limit: int) -> None:
    sends(idp, GENUINE.sign)
    tokens = await log_in(issuer, idp)
    documents = {
        WELL_KNOWN: await asyncio.to_thread(lambda: requests.get(idp.issuer + WELL_KNOWN, timeout=10).json()),
        "/jwks": {"keys": [GENUINE.jwk()]},
        "/oauth2/token": {"access_token": "a", "id_token": tokens.id_token},
        "/userinfo": {"sub": "s-1"},
    }

    async def ask() -> None:
        one = Issuer(issuer.client)
        try:
            await one.refresh("r", sub="s-1")
            await one.userinfo(tokens.access_token, sub="s-1")
        finally:
            await one.close()

    idp.answers["/oauth2/token"] = (200, documents["/oauth2/token"])
    idp.answers[path] = _of_size(limit, documents[path])
    await ask()
    idp.answers[path] = _of_size(limit + 1, documents[path])
    with pytest.raises(OIDCError, match=f"longer than {limit} bytes"):
        await ask()


async def test_a_body_that_drips_ends_with_the_time_out(idp: IdP) -> None:
    done = threading.Event()

    def drip(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        yield b"["
        while not done.wait(0.05):
            yield b" "

    idp.answers[WELL_KNOWN] = drip
    issuer = Issuer(Client(idp.issuer, "hub", SECRET, timeout=0.4))
    begin = time.monotonic()
    with pytest.raises(OIDCError, match=r"no answer within 0.4 s"):
        await issuer.metadata()
    assert time.monotonic() - begin < 10
    done.set()
    await issuer.close()


async def test_discovery_is_asked_once_for_all_who_wait_and_kept(idp: IdP) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET), clock=clock)
    await asyncio.gather(*(issuer.metadata() for _ in range(10)))
    assert idp.requests[WELL_KNOWN] == 1
    clock.now += oidc.METADATA_AGE - 1
    await issuer.metadata()
    assert idp.requests[WELL_KNOWN] == 1
    clock.now += 2
    await issuer.metadata()
    assert idp.requests[WELL_KNOWN] == 2
    clock.now -= 86400  # the hub's clock was put right: nothing is known until tomorrow
    await issuer.metadata()
    assert idp.requests[WELL_KNOWN] == 3
    await issuer.close()


async def test_all_who_wait_for_a_dead_provider_wait_at_the_same_time(idp: IdP) -> None:
    issuer = Issuer(Client(idp.issuer, "hub", SECRET, timeout=0.5))
    with idp.holding(WELL_KNOWN):
        begin = time.monotonic()
        results = await asyncio.gather(*(issuer.metadata() for _ in range(10)), return_exceptions=True)
        took = time.monotonic() - begin
    assert all(isinstance(result, OIDCError) for result in results)
    assert took < 0.5 * oidc.ATTEMPTS * 5  # behind each other they take twice that
    await issuer.close()


async def test_an_old_document_serves_while_the_provider_is_away(idp: IdP, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET), clock=clock)
    before = await issuer.metadata()
    idp.answers[WELL_KNOWN] = (503, {})
    clock.now += 10 * oidc.METADATA_AGE
    assert await issuer.metadata() == before
    assert "the earlier discovery document is used" in caplog.text
    asked = idp.requests[WELL_KNOWN]
    await issuer.metadata()
    assert idp.requests[WELL_KNOWN] == asked  # not at every request
    idp.answers.clear()
    clock.now += oidc.METADATA_RETRY + 1
    await issuer.metadata()
    assert idp.requests[WELL_KNOWN] == asked + 1
    await issuer.close()


@pytest.mark.parametrize("url", ["http://idp.example.org", "ftp://idp.example.org", "http://127.0.0.1.example.org"])
async def test_plain_http_is_for_loopback(url: str) -> None:
    with pytest.raises(OIDCError, match=r"CasaOAuthenticator\.issuer: .* is not https.*allow_insecure_issuer"):
        await Issuer(Client(url, "hub", SECRET)).metadata()


async def test_plain_http_is_possible_where_the_operator_says_so() -> None:
    issuer = Issuer(Client("http://idp.invalid", "hub", SECRET, allow_insecure=True, timeout=2))
    with pytest.raises(OIDCError, match=r"can't be reached|no answer"):
        await issuer.metadata()
    await issuer.close()


@pytest.mark.parametrize(
    "setting",
    [{"issuer": "iam.example.org"}, {"issuer": "https://[::1"}, {"proxy": "proxy:3128"}, {"proxy": "http://["}],
)
def test_an_address_that_is_no_url_is_refused_at_once(setting: dict[str, str]) -> None:
    with pytest.raises(OIDCError, match="is not a URL"):
        Issuer(Client(**{"issuer": "https://iam.example.org", "client_id": "hub", "client_secret": SECRET, **setting}))


# -- a private CA, and a proxy ----------------------------------------------------------------------------------------


@pytest.fixture
def tls_idp(idp: IdP, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The provider behind TLS with a certificate of a private CA: its URL and the CA's file."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = werkzeug.serving.make_server("localhost", 0, idp._wsgi, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}", tmp_path / "ca.pem"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


async def test_a_private_ca_is_trusted_where_the_operator_names_it(tls_idp: tuple[str, Path]) -> None:
    url, ca_file = tls_idp
    trusting = Issuer(Client(url, "hub", SECRET, ca_file=str(ca_file)))
    assert (await trusting.metadata()).token_endpoint.startswith(url)
    await trusting.close()
    careful = Issuer(Client(url, "hub", SECRET))
    with pytest.raises(OIDCError, match="Certificate"):
        await careful.metadata()
    await careful.close()


@pytest.mark.parametrize("content", [None, "", "no PEM"])
async def test_a_ca_file_that_can_t_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    issuer = Issuer(Client("https://localhost:9", "hub", SECRET, ca_file=str(file)))
    with pytest.raises(OIDCError, match=r"CasaOAuthenticator\.ca_file \(.*ca\.pem\): can't be read as PEM"):
        await issuer.metadata()
    await issuer.close()


@pytest.fixture(scope="module")
def proxy_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port(tmp_path_factory)
    arguments = ["--hostname", "127.0.0.1", "--port", str(port), "--num-workers", "1", "--num-acceptors", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its workers end with it
    )
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


async def test_requests_go_through_the_proxy(idp: IdP, tls_idp: tuple[str, Path], proxy_url: str) -> None:
    url, ca_file = tls_idp
    for client in (
        Client(idp.issuer, "hub", SECRET, proxy=proxy_url),  # forwarded
        Client(url, "hub", SECRET, proxy=proxy_url, ca_file=str(ca_file)),  # tunnelled
    ):
        issuer = Issuer(client)
        assert (await issuer.metadata()).issuer == client.issuer
        await issuer.close()


async def test_a_dead_proxy_is_not_gone_around(idp: IdP) -> None:
    issuer = Issuer(Client(idp.issuer, "hub", SECRET, proxy="http://127.0.0.1:9"))
    with pytest.raises(OIDCError, match="can't be reached"):
        await issuer.metadata()
    assert idp.requests[WELL_KNOWN] == 0
    await issuer.close()


# -- token requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basic", [True, False])
async def test_client_credentials_go_in_the_header_or_in_the_body(idp: IdP, basic: bool) -> None:
    seen: list[str] = []

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ.get("HTTP_AUTHORIZATION", ""))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b'{"access_token": "a"}']

    idp.answers["/oauth2/token"] = answer
    idp.token_requests.clear()
    issuer = Issuer(Client(idp.issuer, "hub:1", "per%cent+plus", basic_auth=basic))
    await issuer.refresh("r", sub="s-1")
    form = idp.token_requests[0]
    if basic:
        # Form-urlencoded first: RFC 6749, 2.3.1.
        assert base64.b64decode(seen[0].removeprefix("Basic ")) == b"hub%3A1:per%25cent%2Bplus"
        assert "client_secret" not in form
    else:
        assert seen == [""]
        assert (form["client_id"], form["client_secret"]) == ("hub:1", "per%cent+plus")
    await issuer.close()


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        ({"expires_in": 3600}, 3600),
        ({"expires_in": "3600"}, 3600),
        ({}, None),
        ({"expires_in": None}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": 0}, None),
        ({"expires_in": -5}, None),
        ({"expires_in": 1e300}, None),
        ({"expires_in": "nan"}, None),
        ({"expires_in": [3600]}, None),
        ({"expires_in": 10**400}, None),
        ({"expires_in": math.inf}, None),
    ],
)
async def test_the_life_of_a_token_is_taken_where_it_is_said(idp: IdP, expires_in: dict[str, Any], life: Any) -> None:
    clock = Clock(time.time())
    issuer = Issuer(Client(idp.issuer, "hub", SECRET), clock=clock)
    idp.answers["/oauth2/token"] = (200, {"access_token": "a", **expires_in})
    tokens = await issuer.refresh("r", sub="s-1")
    assert tokens.expires_at == (None if life is None else clock.now + life)
    await issuer.close()


class Stuck:
    """In place of the transport: answers nobody before the end of its event."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.asked = 0

    async def ask(self, *_: object, **__: object) -> Reply:
        self.asked += 1
        await self.end.wait()
        return Reply(200, {"access_token": "a", "refresh_token": "new"})

    async def close(self) -> None: ...


@pytest.fixture
async def stuck(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Stuck:
    await issuer.metadata()
    await issuer.close()
    stuck = Stuck()
    monkeypatch.setattr(issuer, "_transport", stuck)
    return stuck


async def test_of_many_refreshes_some_wait_for_their_turn_before_they_are_sent(issuer: Issuer, stuck: Stuck) -> None:
    """Cut off by its own time-out, a refresh that was sent would have lost the session."""
    refreshes = [asyncio.create_task(issuer.refresh(f"r-{n}", sub="s-1")) for n in range(REFRESHES + 8)]
    await until(lambda: stuck.asked == REFRESHES)
    await asyncio.sleep(0)
    assert stuck.asked == REFRESHES
    stuck.end.set()
    assert {one.refresh_token for one in await asyncio.gather(*refreshes)} == {"new"}
    assert stuck.asked == REFRESHES + 8


async def test_a_refresh_that_had_no_turn_in_time_was_never_sent_and_is_no_verdict(
    issuer: Issuer, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [asyncio.create_task(issuer.refresh(f"r-{n}", sub="s-1")) for n in range(REFRESHES)]
    await until(lambda: stuck.asked == REFRESHES)
    monkeypatch.setattr(oidc, "REFRESH_PATIENCE", 0.02)
    with pytest.raises(OIDCError) as caught:
        await issuer.refresh("late", sub="s-1")
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    assert stuck.asked == REFRESHES
    stuck.end.set()
    await asyncio.gather(*first)
    assert (await issuer.refresh("late", sub="s-1")).refresh_token == "new"


async def test_a_refresh_may_come_without_id_token_refresh_token_and_scope(issuer: Issuer, idp: IdP) -> None:
    idp.answers["/oauth2/token"] = (200, {"access_token": "a", "token_type": "bearer"})
    tokens = await issuer.refresh("r", sub="s-1")
    assert (tokens.access_token, tokens.refresh_token, tokens.id_token, tokens.scope) == ("a", "", "", None)


async def test_an_id_token_of_a_refresh_has_no_nonce(issuer: Issuer, idp: IdP) -> None:
    idp.answers["/oauth2/token"] = (200, {"access_token": "a", "id_token": GENUINE.sign(id_claims(idp.issuer))})
    assert (await issuer.refresh("r", sub="s-1")).id_claims["sub"] == "s-1"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda url: GENUINE.sign(id_claims(url, sub="s-2")), "another subject"),
        (lambda url: FOREIGN.sign(id_claims(url), kid="genuine"), "signature"),
        (lambda url: GENUINE.sign(id_claims("https://evil.example.org")), "another issuer"),
        (lambda _: "nonsense", "not a signed JWT"),
        (lambda url: by_hand({"alg": ["RS256"]}, id_claims(url), b"x"), "its algorithm"),
        (lambda url: by_hand({"alg": {"RS256": 1}}, id_claims(url), b"x"), "its algorithm"),
        (lambda url: GENUINE.sign(id_claims(url)) + "\ud800", "not a signed JWT"),
        (lambda url: GENUINE.sign(id_claims(url)) + "\u00e9", "not a signed JWT"),
        (lambda url: by_hand_signed(id_claims(url) | {"exp": math.inf}), "can't be verified"),
    ],
    ids=[
        "other sub",
        "foreign key",
        "other issuer",
        "nonsense",
        "algorithm is a list",
        "algorithm is an object",
        "half a character",
        "beyond ASCII",
        "expiry without end",
    ],
)
async def test_a_refresh_with_a_bad_id_token_keeps_the_tokens_for_the_caller(
    issuer: Issuer, idp: IdP, make: Callable[[str], str], words: str
) -> None:
    idp.answers["/oauth2/token"] = (
        200,
        {"access_token": "new-access", "refresh_token": "new-refresh", "id_token": make(idp.issuer)},
    )
    with pytest.raises(RefreshedTokenError, match=words) as caught:
        await issuer.refresh("r", sub="s-1")
    assert caught.value.tokens.refresh_token == "new-refresh"
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    unspoken(["new-access", "new-refresh"], str(caught.value), repr(caught.value))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"token_type": "mac"}, "not a Bearer token"),
        ({"token_type": ["Bearer"]}, "not a Bearer token"),
        ({"access_token": "\ud800new-access"}, "characters that no token may have"),
        ({"access_token": "\u00e9new-access"}, "characters that no token may have"),
        ({"access_token": "\r\nnew-access"}, "characters that no token may have"),
        ({"access_token": 7}, "no access token"),
        ({"access_token": ""}, "no access token"),
    ],
)
async def test_a_refresh_token_is_kept_whatever_is_odd_beside_it(
    issuer: Issuer, idp: IdP, odd: dict[str, Any], words: str
) -> None:
    idp.answers["/oauth2/token"] = (200, {"access_token": "new-access", "refresh_token": "new-refresh", **odd})
    with pytest.raises(RefreshedTokenError, match=words) as caught:
        await issuer.refresh("r", sub="s-1")
    assert caught.value.tokens.refresh_token == "new-refresh"
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    unspoken(["new-access", "new-refresh"], str(caught.value), repr(caught.value))


@pytest.mark.parametrize("expires_in", ["1" + "0" * 400, "1" + "0" * 5000, "-1" + "0" * 5000, "1e999", "NaN"])
async def test_a_number_without_sense_hides_no_token(issuer: Issuer, idp: IdP, expires_in: str) -> None:
    body = f'{{"access_token": "a", "refresh_token": "new-refresh", "expires_in": {expires_in}}}'
    idp.answers["/oauth2/token"] = _of_text(body)
    tokens = await issuer.refresh("r", sub="s-1")
    assert (tokens.refresh_token, tokens.expires_at) == ("new-refresh", None)


def _of_text(text: str) -> Callable[[Any, Any], list[bytes]]:
    def answer(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        return [text.encode()]

    return answer


async def test_a_refresh_token_that_can_t_be_kept_doesn_t_take_the_place_of_the_old_one(
    issuer: Issuer, idp: IdP
) -> None:
    idp.answers["/oauth2/token"] = (200, {"access_token": "a", "refresh_token": "\ud800"})
    with pytest.raises(RefreshedTokenError, match="characters that no token may have") as caught:
        await issuer.refresh("r", sub="s-1")
    assert caught.value.tokens.refresh_token == ""


async def test_an_error_of_our_own_loses_no_refresh_token(
    issuer: Issuer, idp: IdP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "at_hash", lambda *_: 1 // 0)
    claims = id_claims(idp.issuer) | {"at_hash": "x"}
    idp.answers["/oauth2/token"] = (
        200,
        {"access_token": "a", "refresh_token": "new-refresh", "id_token": GENUINE.sign(claims)},
    )
    with pytest.raises(RefreshedTokenError, match="ZeroDivisionError") as caught:
        await issuer.refresh("r", sub="s-1")
    assert caught.value.tokens.refresh_token == "new-refresh"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ((200, "<html>"), Verdict.CANT_SAY),
        ((200, {}), Verdict.CANT_SAY),
        ((200, {"access_token": 7}), Verdict.CANT_SAY),
        ((200, {"access_token": ""}), Verdict.CANT_SAY),
        ((200, {"access_token": "a", "token_type": "mac"}), Verdict.CANT_SAY),
        ((502, "<html>"), Verdict.CANT_SAY),
        ((400, {"error": "invalid_grant"}), Verdict.LOG_IN_AGAIN),
        ((401, {"error": "invalid_client"}), Verdict.CANT_SAY),
    ],
)
async def test_a_token_answer_has_its_verdict(issuer: Issuer, idp: IdP, answer: Any, verdict: Verdict) -> None:
    idp.answers["/oauth2/token"] = answer
    with pytest.raises(OIDCError) as caught:
        await issuer.refresh("refresh-token-value", sub="s-1")
    assert caught.value.answer.verdict is verdict
    assert "refresh-token-value" not in str(caught.value)


async def test_nobody_s_cookies_reach_the_next_request(issuer: Issuer, idp: IdP) -> None:
    seen: list[str] = []

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ.get("HTTP_COOKIE", ""))
        start_response("200 OK", [("Content-Type", "application/json"), ("Set-Cookie", "session=oksana; Path=/")])
        return [b'{"sub": "s-1"}']

    idp.answers["/userinfo"] = answer
    for _ in range(2):
        await issuer.userinfo("token", sub="s-1")
    assert seen == ["", ""]


# -- the end of a refresh token ----------------------------------------------------------------------------------------


def _offers_revocation(idp: IdP, *, at: str = "") -> None:
    idp.change[WELL_KNOWN] = lambda document: {**document, "revocation_endpoint": at or f"{idp.issuer}/revoke"}


@pytest.mark.parametrize("basic", [True, False])
async def test_a_refresh_token_is_revoked_with_the_credentials_of_the_client(idp: IdP, basic: bool) -> None:
    _offers_revocation(idp)
    seen: list[tuple[str, dict[str, list[str]]]] = []

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        seen.append((environ.get("HTTP_AUTHORIZATION", ""), parse_qs(body)))
        start_response("200 OK", [])  # RFC 7009, 2.2: the body says nothing
        return [b""]

    idp.answers["/revoke"] = answer
    issuer = Issuer(Client(idp.issuer, "hub:1", "per%cent+plus", basic_auth=basic))
    assert await issuer.revoke("refresh-token-value") is True
    await issuer.close()
    ((header, form),) = seen
    assert (form["token"], form["token_type_hint"]) == (["refresh-token-value"], ["refresh_token"])
    if basic:
        assert base64.b64decode(header.removeprefix("Basic ")) == b"hub%3A1:per%25cent%2Bplus"
        assert "client_secret" not in form
    else:
        assert (header, form["client_id"], form["client_secret"]) == ("", ["hub:1"], ["per%cent+plus"])


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ((200, {}), True),
        ((200, "<html>"), True),
        ((400, {"error": "invalid_token"}), True),  # of who knows no such token, and calls it an error
        ((400, {"error": "invalid_grant"}), True),
        ((400, {"error": "unsupported_token_type"}), False),
    ],
)
async def test_what_is_ended_for_good_is_not_asked_again(issuer: Issuer, idp: IdP, answer: Any, ended: bool) -> None:
    _offers_revocation(idp)
    idp.answers["/revoke"] = answer
    assert await issuer.revoke("r") is ended


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": "invalid_client", "error_description": "refresh-token-value-of-the-user-1"}),
        (400, {"error": "invalid_request"}),
        (400, "<html>"),
        (503, {}),
        (302, {}),
        (400, {"error": ["invalid_token"]}),
        (400, {"error": {}}),
    ],
)
async def test_a_revocation_that_may_have_failed_is_no_verdict_on_the_person(
    issuer: Issuer, idp: IdP, answer: Any
) -> None:
    _offers_revocation(idp)
    idp.answers["/revoke"] = answer
    with pytest.raises(
        OIDCError, match=rf"/revoke: a refresh token could not be revoked \(HTTP {answer[0]}\)"
    ) as caught:
        await issuer.revoke("refresh-token-value-of-the-user-1")
    assert caught.value.answer.verdict is Verdict.CANT_SAY
    unspoken(["refresh-token-value-of-the-user-1"], str(caught.value), repr(caught.value))


async def test_a_provider_without_revocation_is_not_asked(issuer: Issuer, idp: IdP) -> None:
    idp.change[WELL_KNOWN] = lambda document: {**document, "revocation_endpoint": None}
    assert await issuer.revoke("r") is False


async def test_a_token_isn_t_sent_in_the_clear_to_be_revoked(issuer: Issuer, idp: IdP) -> None:
    _offers_revocation(idp, at="http://idp.example.org/revoke")
    with pytest.raises(OIDCError, match=r"revocation_endpoint of .* is not https"):
        await issuer.revoke("r")


async def test_a_revocation_that_isn_t_answered_ends_with_the_time_out(idp: IdP) -> None:
    _offers_revocation(idp)
    issuer = Issuer(Client(idp.issuer, "hub", SECRET, timeout=2))
    with idp.holding("/revoke"), pytest.raises(OIDCError, match=r"no answer within 2 s"):
        await issuer.revoke("r")
    await issuer.close()
