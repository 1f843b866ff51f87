"""The issuer's address, what it refuses, and the tokens that it signs."""

from __future__ import annotations

import json
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from casa_hub.credentials.base import AccessToken, Credential, Minter, Request
from casa_hub.credentials.issued import issue
from casa_hub.errors import CredentialError
from casa_hub.facility import Facility
from casa_hub.issuer.published import cache_file, discovery
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import LONGEST, new_private_key
from casa_hub.moments import when
from casa_hub.operator_words import issuer_keys
from tests.support.issuer import KEY, URL, issuer_in
from tests.support.issuer import claims_of as verified_claims
from tests.support.minting import NOW, request

AUDIENCE = "https://cache.example.org"


class Token(Minter):
    name, title = "token", "Token"

    def mint(self, request: Request) -> Credential:
        raise NotImplementedError


def minter(tmp_path: Path, **settings: Any) -> Token:
    made = Token()
    made.issuer = issuer_in(tmp_path, **settings)
    return made


def claims_of(token: str) -> dict[str, Any]:
    return verified_claims(token, AUDIENCE)


# -- the address


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ({"JupyterHub": {"public_url": "https://hub.example.org/jupyter/"}}, "https://hub.example.org/jupyter/hub/"),
        (
            {"CasaOAuthenticator": {"oauth_callback_url": "https://hub.example.org/hub/oauth_callback"}},
            "https://hub.example.org/hub/",
        ),
        (
            {
                "JupyterHub": {"public_url": "https://public.example.org"},
                "CasaOAuthenticator": {"oauth_callback_url": "https://hub.example.org/hub/oauth_callback"},
            },
            "https://public.example.org/hub/",
        ),
    ],
)
def test_the_hubs_public_address_is_the_default(config: dict[str, Any], url: str) -> None:
    assert FacilityIssuer(config=Config(config)).url == f"{url}casa/issuer"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": ""}, "FacilityIssuer.url: is not set"),
        ({"url": "http://hub.example.org/issuer"}, "is not https"),
        ({"url": "ftp://localhost/issuer"}, "is not https"),
        ({"url": "hub.example.org"}, "is not the address of a page"),
        ({"url": "https://hub.example.org/?a=b"}, "is not the address of a page"),
        ({"url": "https://me@hub.example.org/"}, "is not the address of a page"),
        ({"url": "https://[::1"}, "is not the address of a page"),
        ({"vo": ""}, "FacilityIssuer.vo: is not set"),
        ({"vo": "a/b"}, "is not a name"),
        ({"vo": ".well-known"}, "is not a name"),
        ({"keys": ""}, "FacilityIssuer.keys: is not set"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    assert problem in "\n".join(map(str, issuer_in(tmp_path, **settings).check()))


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:8000/issuer", "http://localhost/issuer", "http://[::1]/i"])
def test_https_and_this_machine_are_fine(tmp_path: Path, url: str) -> None:
    assert issuer_in(tmp_path, url=url).check() == []


def test_a_facility_without_the_section_has_no_issuer(tmp_path: Path) -> None:
    assert Facility(config=Config()).issuer is None
    with pytest.raises(CredentialError, match=r"FacilityIssuer\.keys: is not set"):
        issue(Token(), request(), audience=AUDIENCE, scope="", lifetime=60)


def test_the_facilitys_minters_have_its_issuer(tmp_path: Path) -> None:
    config = Config()
    config.FacilityIssuer.keys = str(tmp_path)
    config.Facility.credentials = ["bearer"]
    facility = Facility(config=config)
    assert facility.minters["bearer"].issuer is facility.issuer is not None
    assert "FacilityIssuer.vo: is not set" in "\n".join(map(str, facility.check_settings()))
    assert "has no file *.pem" in "\n".join(map(str, facility.check_minters()))


# -- the published keys


def test_others_public_keys_are_published_too(tmp_path: Path) -> None:
    other, _ = new_private_key()
    given = {name: other.jwk[name] for name in ("kty", "crv", "x", "y")}
    published = issuer_in(tmp_path, extra_jwks=[given]).jwks(0.0)["keys"]
    assert {key["kid"] for key in published} == {KEY.kid, other.kid}


@pytest.mark.parametrize(
    ("jwk", "problem"),
    [
        ({"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "d": "SECRET"}, "is a private key"),
        ({"kty": "oct", "k": "SECRET"}, "is a private key"),
        ({"kty": "EC", "crv": "P-256"}, "is no JWK"),
        ({"kty": ["EC"]}, "is no JWK"),
        (["SECRET"], "is not a list of JWKs"),
        ({**KEY.jwk, "x": "SECRET"}, "is no JWK"),
        ({**KEY.jwk, "x": KEY.jwk["y"]}, "is no JWK"),  # not a point of the curve
        ({**KEY.jwk, "crv": "secp256k1"}, "is neither of the curve P-256"),
        ({"kty": "RSA", "n": "x" * 171, "e": "AQAB"}, "at least 2048 bits"),
        ({**KEY.jwk, "kid": 5}, "has a kid"),
        ({**KEY.jwk, "kid": None}, "has a kid"),
        ({**KEY.jwk, "alg": "HS256"}, "is for something else than signing with ES256"),
        ({**KEY.jwk, "use": "enc"}, "is for something else than signing with ES256"),
    ],
)
def test_what_is_no_public_key_is_refused_and_not_shown(tmp_path: Path, jwk: dict[str, Any], problem: str) -> None:
    with pytest.raises(TraitError, match=problem) as caught:
        issuer_in(tmp_path, extra_jwks=[jwk])
    assert "SECRET" not in str(caught.value)


def test_a_private_key_that_is_no_list_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(TraitError, match="is not a list of JWKs") as caught:
        issuer_in(tmp_path, extra_jwks={**KEY.jwk, "d": "SECRET"})
    assert "SECRET" not in str(caught.value)


def test_two_keys_of_others_have_two_names(tmp_path: Path) -> None:
    given = [{**new_private_key()[0].jwk, "kid": "pool"} for _ in range(2)]
    with pytest.raises(TraitError, match=r"extra_jwks\[1\] has the kid of another one"):
        issuer_in(tmp_path, extra_jwks=given)


def test_others_keys_keep_their_names_and_nothing_else_of_their_own(tmp_path: Path) -> None:
    """Members that JSON doesn't know would leave verifiers without any key."""
    ec, (rsa, _) = new_private_key()[0].jwk, new_private_key(rsa_bits=2048)
    given = [{**ec, "kid": "pool", "x5c": b"x"}, {"kty": "RSA", "n": rsa.jwk["n"], "e": rsa.jwk["e"]}]
    assert issuer_in(tmp_path, extra_jwks=given).jwks(0.0)["keys"] == [{**ec, "kid": "pool"}, rsa.jwk, KEY.jwk]
    assert given[1].keys() == {"kty", "n", "e"}, "the operator's own configuration was changed"


def test_discovery_leads_to_the_keys(tmp_path: Path) -> None:
    document = discovery(issuer_in(tmp_path))
    assert (document["issuer"], document["jwks_uri"]) == (f"{URL}/cms", f"{URL}/cms/jwks")


def test_the_cache_file_is_that_of_the_issuer(tmp_path: Path) -> None:
    name, content = cache_file(issuer_in(tmp_path), 1000.0)
    assert name == sha256(f"{URL}/cms".encode()).hexdigest()
    assert json.loads(content) == {
        f"{URL}/cms": {"expiration": 1000 + 4 * 86400, "jwks": {"keys": [dict(KEY.jwk)]}},
    }


# -- tokens


def test_a_token_has_what_the_profile_demands(tmp_path: Path) -> None:
    new = issue(minter(tmp_path), request(), audience=AUDIENCE, scope="storage.read:/store", lifetime=3600)
    at = int(NOW.timestamp())
    assert claims_of(new.value) == {
        "iss": f"{URL}/cms",
        "wlcg.ver": "1.0",
        "sub": "alice",
        "aud": AUDIENCE,
        "iat": at,
        "nbf": at - 60,
        "exp": at + 3600,
        "jti": new.identifiers["jti"],
        "scope": "storage.read:/store",
    }
    assert new.identifiers == {"jti": new.identifiers["jti"], "sub": "alice", "aud": AUDIENCE}
    assert new.expires_at - new.issued_at == timedelta(hours=1)
    assert new.value not in repr(new)


def test_no_token_lives_longer_than_the_profile_allows(tmp_path: Path) -> None:
    new = issue(minter(tmp_path), request(), audience=AUDIENCE, scope="", lifetime=86400)
    assert (new.expires_at - new.issued_at).total_seconds() == LONGEST == 6 * 3600


def test_the_providers_subject_is_named_where_the_facility_chose_it(tmp_path: Path) -> None:
    chosen = minter(tmp_path, subject="provider")
    token = AccessToken("opaque", None, "https://iam.example.org/", "6f1c-77")
    new = issue(chosen, request(token=token), audience=AUDIENCE, scope="", lifetime=60)
    assert claims_of(new.value)["sub"] == "6f1c-77"
    with pytest.raises(CredentialError, match="has no log-in of the identity provider"):
        issue(chosen, request(), audience=AUDIENCE, scope="", lifetime=60)


@pytest.mark.parametrize("username", ["josé", "a" * 256, "a\nb", "😀"])
def test_a_name_that_fits_into_no_token_is_refused(tmp_path: Path, username: str) -> None:
    with pytest.raises(CredentialError, match="can't be the sub of a token"):
        issue(minter(tmp_path), request(username), audience=AUDIENCE, scope="", lifetime=60)


def test_the_state_of_each_key_says_what_it_is_for(tmp_path: Path) -> None:
    one = issuer_in(tmp_path, key_lead=100)
    (tmp_path / "0.pem").write_bytes(new_private_key()[1])
    at = NOW.timestamp()
    assert [state["signs"] for state in one.key_states(at)] == [True, False]
    (tmp_path / "2.pem").write_bytes(new_private_key()[1])
    assert issuer_keys({"issuer_keys": one.key_states(at)}) == [
        "FacilityIssuer.keys: 0.pem: signs.",
        "FacilityIssuer.keys: 1.pem: is published, and does not sign.",
        f"FacilityIssuer.keys: 2.pem: is published, and signs from {when(at + 100)}.",
    ]
    assert [state["signs"] for state in one.key_states(at + 100)] == [False, False, True]
    for file in tmp_path.glob("*.pem"):
        file.unlink()
    assert one.key_states(at) == []


def test_hubs_of_earlier_versions_say_nothing_of_keys() -> None:
    assert issuer_keys({}) == []
