"""Which logout tokens of an identity provider are believed (OpenID Connect Back-Channel Logout 1.0, 2.4 to 2.6)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from casa_hub.identity.errors import OIDCError, TokenError
from casa_hub.identity.logout import EVENT, MAX_AGE, LoggedOut, LogoutTokens
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Client
from casa_hub.identity.verdicts import Verdict
from tests.support.idp import IdP
from tests.support.tokens import Signer, by_hand, id_claims

GENUINE = Signer("genuine")
FOREIGN = Signer("foreign")


@pytest.fixture
def idp(idp: IdP) -> IdP:
    """Signs with a key that the tests know."""
    idp.change["/jwks"] = lambda _: {"keys": [GENUINE.jwk()]}
    return idp


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tokens(idp: IdP, clock: Clock) -> AsyncIterator[LogoutTokens]:
    issuer = Issuer(Client(idp.issuer, "hub", "s", timeout=30))
    yield LogoutTokens(issuer, clock=clock)
    await issuer.close()


def claims(idp: IdP, **changes: Any) -> dict[str, Any]:
    """Those of a good token; None takes one away."""
    now = int(time.time())
    good = {
        "iss": idp.issuer,
        "aud": "hub",
        "iat": now,
        "exp": now + 120,
        "jti": f"jti-{time.monotonic_ns()}",
        "events": {EVENT: {}},
        "sub": "s-1",
        "sid": "session-1",
        **changes,
    }
    return {name: value for name, value in good.items() if value is not None}


def signed(idp: IdP, *, typ: str | None = "logout+jwt", **changes: Any) -> str:
    header = {"typ": typ} if typ is not None else {}
    return GENUINE.sign(claims(idp, **changes), **header)


async def test_subject_and_session_are_told(tokens: LogoutTokens, idp: IdP) -> None:
    assert await tokens.believe(signed(idp)) == LoggedOut(idp.issuer, "s-1", "session-1")
    assert await tokens.believe(signed(idp, sid=None)) == LoggedOut(idp.issuer, "s-1", "")
    assert await tokens.believe(signed(idp, sub=None)) == LoggedOut(idp.issuer, "", "session-1")


@pytest.mark.parametrize("typ", ["logout+jwt", "JWT", "jwt", "application/logout+jwt", "Logout+JWT", None])
async def test_what_providers_call_such_a_token(tokens: LogoutTokens, idp: IdP, typ: str | None) -> None:
    assert (await tokens.believe(signed(idp, typ=typ))).sub == "s-1"


async def test_its_expiry_may_be_left_out_and_other_things_be_said(tokens: LogoutTokens, idp: IdP) -> None:
    token = signed(idp, exp=None, aud=["hub"], events={EVENT: {"more": 1}, "other": {}}, extra=[1])
    assert (await tokens.believe(token)).sub == "s-1"


ATTACKS: dict[str, tuple[Callable[[IdP], str], str]] = {
    "no JWT": (lambda _: "nonsense", "not a signed JWT"),
    "empty": (lambda _: "", "not a signed JWT"),
    "no signature": (lambda i: by_hand({"alg": "none", "kid": "genuine"}, claims(i)), "its algorithm 'none'"),
    "HMAC": (lambda i: by_hand({"alg": "HS256", "kid": "genuine"}, claims(i), b"x"), "its algorithm 'HS256'"),
    "foreign key": (lambda i: FOREIGN.sign(claims(i), kid="genuine"), "its signature is not the issuer's"),
    "foreign key of its own name": (lambda i: FOREIGN.sign(claims(i)), "no key for kid 'foreign'"),
    "other issuer": (lambda i: signed(i, iss="https://evil.example.org"), "from another issuer"),
    "no issuer": (lambda i: signed(i, iss=None), "no claim iss"),
    "other audience": (lambda i: signed(i, aud="other"), "for another audience"),
    "several audiences, no azp": (lambda i: signed(i, aud=["hub", "other"]), "authorized party"),
    "no audience": (lambda i: signed(i, aud=None), "no claim aud"),
    "no iat": (lambda i: signed(i, iat=None), "no claim iat"),
    "from the future": (lambda i: signed(i, iat=int(time.time()) + 120), "from the future"),
    "expired": (lambda i: signed(i, exp=int(time.time()) - 120), "has expired"),
    "old, without expiry": (lambda i: signed(i, iat=int(time.time() - MAX_AGE) - 61, exp=None), "older than 300 s"),
    "old, with an expiry in years": (lambda i: signed(i, iat=1, exp=2**40), "older than 300 s"),
    "no jti": (lambda i: signed(i, jti=None), "no claim jti"),
    "empty jti": (lambda i: signed(i, jti=""), "its jti is empty"),
    "endless jti": (lambda i: signed(i, jti="x" * 257), "its jti is not"),
    "no events": (lambda i: signed(i, events=None), "no claim events"),
    "events is a list": (lambda i: signed(i, events=[EVENT]), "don't say that it is about a log-out"),
    "other event": (lambda i: signed(i, events={"https://example.org/other": {}}), "don't say that"),
    "event is no object": (lambda i: signed(i, events={EVENT: True}), "don't say that it is about a log-out"),
    "nonce": (lambda i: signed(i, nonce="n"), "it is an ID token"),
    "an ID token": (lambda i: GENUINE.sign(id_claims(i.issuer, nonce="n")), "no claim (jti|events)"),
    "other type": (lambda i: signed(i, typ="at+jwt"), "its header's typ"),
    "type is no string": (
        lambda i: by_hand({"alg": "RS256", "kid": "genuine", "typ": 7}, claims(i), b"x"),
        "typ|signature|can't be",
    ),
    "nobody": (lambda i: signed(i, sub=None, sid=None), "neither sub nor sid"),
    "empty ids": (lambda i: signed(i, sub="", sid=""), "neither sub nor sid"),
    "sub is no string": (lambda i: signed(i, sid=7), "its sid is not"),
    "sub with a line's end": (lambda i: signed(i, sub="a\nb"), "its sub is not"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_token_is_refused_with_its_own_words(tokens: LogoutTokens, idp: IdP, attack: str) -> None:
    make, words = ATTACKS[attack]
    token = make(idp)
    with pytest.raises(TokenError, match=words) as caught:
        await tokens.believe(token)
    assert not token or token == "nonsense" or token not in str(caught.value) + repr(caught.value)


async def test_a_token_counts_once(tokens: LogoutTokens, idp: IdP) -> None:
    token = signed(idp)
    await tokens.believe(token)
    with pytest.raises(TokenError, match="used before"):
        await tokens.believe(token)
    await tokens.believe(signed(idp))


async def test_a_refused_token_doesn_t_use_up_its_id(tokens: LogoutTokens, idp: IdP) -> None:
    """Otherwise somebody who guesses ids could keep log-outs out."""
    with pytest.raises(TokenError, match="signature"):
        await tokens.believe(FOREIGN.sign(claims(idp, jti="one"), kid="genuine"))
    assert (await tokens.believe(signed(idp, jti="one"))).sub == "s-1"


async def test_ids_are_forgotten_when_a_copy_would_be_too_old(tokens: LogoutTokens, idp: IdP, clock: Clock) -> None:
    token = signed(idp, exp=None)
    await tokens.believe(token)
    clock.ahead = MAX_AGE + 61
    with pytest.raises(TokenError, match="older than"):
        await tokens.believe(token)
    await tokens.believe(signed(idp, iat=int(time.time()) + 30))
    assert len(tokens._used) == 1


async def test_a_provider_whose_keys_can_t_be_had_is_no_forgery(tokens: LogoutTokens, idp: IdP) -> None:
    idp.answers["/jwks"] = (503, {})
    with pytest.raises(OIDCError) as caught:
        await tokens.believe(signed(idp))
    assert not isinstance(caught.value, TokenError)
    assert caught.value.answer.verdict is Verdict.CANT_SAY
