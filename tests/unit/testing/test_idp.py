"""The mock identity provider exchanges tokens as real ones do, asked by what a hub asks with."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests

from casa_hub.credentials.exchange import TokenExchange
from casa_hub.credentials.exchange_services import read_services
from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Why
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Client
from casa_hub.testing.idp import EXCHANGE
from tests.support.idp import IdP
from tests.support.minting import NOW

(TAPE,) = read_services({"tape": {"audience": "tape", "scope": "storage.stage:/"}})


def fetch_for(audience: str = "tape", scope: str = "storage.stage:/") -> Fetch:
    return TokenExchange._for(replace(TAPE, audience=audience, scope=scope))().fetch


@pytest.fixture
async def fetches(idp: IdP) -> AsyncIterator[Fetches]:
    issuer = Issuer(Client(idp.issuer, "hub/1", "s:cret", timeout=30))
    made = Fetches(issuer)
    yield made
    await made.close()
    await issuer.close()


@pytest.fixture
def access_token(idp: IdP) -> str:
    """Of somebody who has just logged in."""
    idp.put_user("s-1", preferred_username="oksana")
    verifier, callback = secrets.token_urlsafe(48), "http://localhost/callback"
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    query = {"client_id": "hub", "redirect_uri": callback, "response_type": "code", "scope": "openid"}
    query |= {"code_challenge": digest.rstrip(b"=").decode(), "code_challenge_method": "S256"}
    url = f"{idp.issuer}/oauth2/authorize"
    sent = requests.post(url, params=query, data={"sub": "s-1"}, allow_redirects=False, timeout=10)
    (code,) = parse_qs(urlsplit(sent.headers["Location"]).query)["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": callback, "code_verifier": verifier}
    answer = requests.post(f"{idp.issuer}/oauth2/token", data=form, auth=("hub", "secret"), timeout=10)
    return str(answer.json()["access_token"])


async def exchanged(idp: IdP, fetches: Fetches, access_token: str, fetch: Fetch | None = None) -> Fetched:
    fetch = fetch or fetch_for()
    reply = await fetches.ask(fetch, access_token)
    return fetch.read(Answer(reply.status, reply.body, NOW.fromtimestamp(time.time(), NOW.tzinfo), idp.issuer, "s-1"))


async def test_a_token_is_for_one_audience_and_signed_by_a_published_key(
    idp: IdP, fetches: Fetches, access_token: str
) -> None:
    idp.exchange_life = 120
    got = await exchanged(idp, fetches, access_token)
    key = jwt.PyJWKClient(f"{idp.issuer}/jwks").get_signing_key_from_jwt(got.value)
    claims = jwt.decode(got.value, key, ["RS256"], audience="tape", issuer=idp.issuer)
    assert (claims["sub"], claims["act"], claims["scope"]) == ("s-1", {"sub": "hub/1"}, "storage.stage:/")
    assert claims["exp"] - claims["iat"] == 120
    assert {got.value, access_token} <= idp.secrets()
    assert idp.requests[EXCHANGE] == 1
    assert idp.token_requests[-1]["audience"] == "tape"


async def test_opaque_tokens_are_exchanged_too(idp: IdP, fetches: Fetches, access_token: str) -> None:
    idp.exchange_opaque = True
    got = await exchanged(idp, fetches, access_token, fetch_for(audience=""))
    assert "." not in got.value
    assert "audience" not in idp.token_requests[-1]


async def test_one_audience_can_be_refused(idp: IdP, fetches: Fetches, access_token: str) -> None:
    idp.exchange_answers["tape"] = 400, {"error": "invalid_scope"}
    with pytest.raises(FetchError, match="may not ask for the scope") as caught:
        await exchanged(idp, fetches, access_token)
    assert caught.value.why is Why.REFUSED
    assert await exchanged(idp, fetches, access_token, fetch_for(audience="disk"))


async def test_a_token_of_an_ended_session_is_not_exchanged(idp: IdP, fetches: Fetches, access_token: str) -> None:
    idp.revoke("s-1")
    for token in (access_token, "nonsense"):
        with pytest.raises(FetchError) as caught:
            await exchanged(idp, fetches, token)
        assert caught.value.why is Why.SIGN_IN


async def test_an_answer_can_be_changed(idp: IdP, fetches: Fetches, access_token: str) -> None:
    idp.change[EXCHANGE] = lambda answer: answer | {"token_type": "N_A"}
    with pytest.raises(FetchError, match="no access token"):
        await exchanged(idp, fetches, access_token)


def test_who_is_no_client_gets_nothing(idp: IdP, access_token: str) -> None:
    form = {"grant_type": EXCHANGE, "subject_token": access_token, "client_id": "hub"}
    assert requests.post(f"{idp.issuer}/oauth2/token", data=form, timeout=10).status_code == 401


def test_discovery_tells_of_the_exchange(idp: IdP) -> None:
    document = requests.get(f"{idp.issuer}/.well-known/openid-configuration", timeout=10).json()
    assert EXCHANGE in document["grant_types_supported"]
