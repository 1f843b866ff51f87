"""The token for an S3. What a real STS and a real S3 say of it: tests/peers/test_s3.py."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

import jwt
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from traitlets import TraitError
from traitlets.config import Config

from casa_hub.credentials.base import BearerKind, Request
from casa_hub.credentials.fetching import TOKEN_ENDPOINT, Answer, Fetched, FetchError
from casa_hub.credentials.s3 import S3, session_name
from casa_hub.errors import CredentialError, Severity
from casa_hub.facility import Facility
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.naming import Server
from tests.support.issuer import CONTENT, claims_of, issuer_in
from tests.support.minting import HOSTILE, NOW, assert_tells_nothing, public_text, request

ENDPOINT, ROLE = "https://s3.example.org", "arn:aws:iam::123456789012:role/physicist"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> FacilityIssuer:
    return issuer_in(tmp_path_factory.mktemp("issuer"))


def s3(issuer: FacilityIssuer | None, **settings: Any) -> S3:
    minter = S3(**{"endpoint": ENDPOINT, "role_arn": ROLE, **settings})
    minter.issuer = issuer
    return minter


def test_the_token_is_for_the_sts_alone_and_says_whose_it_is(issuer: FacilityIssuer) -> None:
    minter = s3(issuer)
    assert minter.check() == []
    credential = minter.mint(request())
    assert list(credential.files) == list(minter.paths or ()) == ["s3_token"]
    claims = claims_of(credential.files["s3_token"], ENDPOINT)
    assert (claims["sub"], claims["aud"], claims["scope"]) == ("alice", ENDPOINT, "")
    assert credential.identifiers == {"jti": claims["jti"], "sub": "alice", "aud": ENDPOINT}
    assert credential.summary == f"{ROLE} at {ENDPOINT}"
    assert minter.bearer_files == {"s3_token": BearerKind.ISSUED}
    assert not credential.files["s3_token"].endswith(b"\n")


def test_it_lives_for_an_hour_and_for_six_at_most(issuer: FacilityIssuer) -> None:
    for settings, expected in (({}, 3600), ({"lifetime": 900}, 900), ({"lifetime": 21600}, 21600)):
        credential = s3(issuer, **settings).mint(request())
        assert credential.expires_at == NOW.replace(microsecond=0) + timedelta(seconds=expected)
        claims = claims_of(credential.files["s3_token"], ENDPOINT)
        assert claims["exp"] == credential.expires_at.timestamp()
    with pytest.raises(TraitError, match="at most 21600"):
        s3(issuer, lifetime=21601)


def test_no_two_tokens_have_the_same_identifier(issuer: FacilityIssuer) -> None:
    minter = s3(issuer)
    assert len({minter.mint(request()).identifiers["jti"] for _ in range(50)}) == 50


def test_an_sdk_finds_all_it_needs_and_no_secret(issuer: FacilityIssuer) -> None:
    found = s3(issuer).environment(request().server, PurePosixPath("/etc/cmsaf-secrets"))
    assert found == {
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/etc/cmsaf-secrets/s3_token",
        "AWS_ROLE_ARN": ROLE,
        "AWS_ROLE_SESSION_NAME": "alice",
        "AWS_ENDPOINT_URL_S3": ENDPOINT,
        "AWS_ENDPOINT_URL_STS": ENDPOINT,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    elsewhere = s3(issuer, sts_endpoint="https://sts.example.org", region="uscms")
    found = elsewhere.environment(request().server, PurePosixPath("/x"))
    assert (found["AWS_ENDPOINT_URL_S3"], found["AWS_ENDPOINT_URL_STS"]) == (ENDPOINT, "https://sts.example.org")
    assert (found["AWS_REGION"], found["AWS_DEFAULT_REGION"]) == ("uscms", "uscms")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ENDPOINT),
        ({"endpoint": "https://S3.Example.org:443/"}, ENDPOINT),
        ({"endpoint": "https://s3.example.org:8333"}, "https://s3.example.org:8333"),
        ({"endpoint": "http://[::1]:80"}, "http://[::1]"),
        ({"sts_endpoint": "https://sts.example.org/sts/"}, "https://sts.example.org/sts"),
        ({"audience": "sts.amazonaws.com"}, "sts.amazonaws.com"),
    ],
)
def test_the_audience_is_the_sts(issuer: FacilityIssuer, settings: dict[str, str], expected: str) -> None:
    minter = s3(issuer, **settings)
    assert minter.check() == []
    assert claims_of(minter.mint(request()).files["s3_token"], expected)["aud"] == expected


def test_a_trust_policy_may_ask_for_a_scope(issuer: FacilityIssuer) -> None:
    credential = s3(issuer, scope="storage.read:/ s3").mint(request())
    assert claims_of(credential.files["s3_token"], ENDPOINT)["scope"] == "storage.read:/ s3"


@pytest.mark.parametrize(
    "role", ["arn:aws:iam:::role/physicist", "arn:aws:iam::role/physicist", "arn:aws:iam::RGW0012345:role/a/b"]
)
def test_a_role_has_an_account_a_tenant_or_neither(issuer: FacilityIssuer, role: str) -> None:
    assert s3(issuer, role_arn=role).check() == []


def test_each_user_may_have_a_role(issuer: FacilityIssuer) -> None:
    minter = s3(issuer, role_arn="arn:aws:iam:::role/user/{username}")
    assert minter.check() == []
    assert minter.mint(request()).summary == f"arn:aws:iam:::role/user/alice at {ENDPOINT}"
    found = minter.environment(request().server, PurePosixPath("/x"))
    assert found["AWS_ROLE_ARN"] == "arn:aws:iam:::role/user/alice"
    for name in ("al/ice", "al ice", "a" * 65, ""):
        with pytest.raises(CredentialError, match="can't be that of a role"):
            minter.mint(request(name))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": ""}, r"S3\.endpoint: is not set"),
    ({"endpoint": "s3.example.org"}, r"S3\.endpoint: 's3\.example\.org' is not the URL of a service"),
    ({"endpoint": "ftp://s3.example.org"}, r"S3\.endpoint: .* is not the URL"),
    ({"endpoint": "https://user@s3.example.org"}, r"S3\.endpoint: .* is not the URL"),
    ({"endpoint": "https://s3.example.org:99999"}, r"S3\.endpoint: .* is not the URL"),
    ({"endpoint": "https://s3.example.org\n"}, r"S3\.endpoint: .* is not the URL"),
    ({"endpoint": "https://s3.example.org?x"}, r"S3\.endpoint: .* is not the URL"),
    ({"sts_endpoint": "sts"}, r"S3\.sts_endpoint: 'sts' is not the URL of a service"),
    ({"role_arn": ""}, r"S3\.role_arn: is not set"),
    ({"role_arn": "physicist"}, r"S3\.role_arn: 'physicist' is not the ARN of a role"),
    ({"role_arn": "arn:aws:iam::1:user/alice"}, r"S3\.role_arn: .* is not the ARN of a role"),
    ({"role_arn": "{username}"}, r"S3\.role_arn: .* is not the ARN of a role"),
    ({"role_arn": f"{ROLE}\n"}, r"S3\.role_arn: .* is not the ARN of a role"),
    ({"audience": "two words"}, r"S3\.audience: 'two words' is not an audience"),
    ({"scope": "two  blanks"}, r"S3\.scope: 'two  blanks' is not a scope"),
    ({"scope": 'a"quote'}, r"S3\.scope: .* is not a scope"),
    ({"region": ""}, r"S3\.region: '' is not a region"),
]


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_a_bad_setting_is_found_at_the_start_and_no_token_is_minted(
    issuer: FacilityIssuer, settings: dict[str, Any], words: str
) -> None:
    minter = s3(issuer, **settings)
    found = [str(problem) for problem in minter.check() if problem.severity is Severity.ERROR]
    assert any(re.match(words, line) for line in found), found
    with pytest.raises(CredentialError, match=words):
        minter.mint(request())


def test_without_an_issuer_the_operator_is_told_what_to_set() -> None:
    [problem] = s3(None).check()
    assert str(problem).startswith("S3.source: is issuer, but this hub has no issuer of tokens. Set FacilityIssuer")
    with pytest.raises(CredentialError, match=r"FacilityIssuer\.keys"):
        s3(None).mint(request())


@pytest.mark.parametrize("setting", ["endpoint", "sts_endpoint"])
def test_plain_http_is_a_warning_where_others_can_listen(issuer: FacilityIssuer, setting: str) -> None:
    [problem] = s3(issuer, **{setting: "http://s3.example.org"}).check()
    assert (problem.severity, problem.thing) == (Severity.WARNING, f"S3.{setting}")
    assert s3(issuer, **{setting: "http://127.0.0.1:8333"}).check() == []


def test_a_typing_error_in_a_role_is_not_said_twice(issuer: FacilityIssuer) -> None:
    assert len(s3(issuer, endpoint="nonsense").check()) == 1


@for_all(st.one_of(st.text(), st.sampled_from(HOSTILE)))
def test_a_session_has_a_name_that_aws_allows(username: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_+=,.@-]{2,64}", session_name(username))


def test_a_name_that_aws_allows_stays_as_it_is() -> None:
    for name in ("alice", "alice@example.org", "a.b-c_d+e=f,g"):
        assert session_name(name) == name
    assert session_name("josé müller") == "jos--m-ller"


@pytest.mark.parametrize("username", HOSTILE)
def test_hostile_names_make_no_odd_variable_and_no_odd_file(issuer: FacilityIssuer, username: str) -> None:
    minter = s3(issuer)
    server = Server("", username)
    assert all(re.fullmatch(r"[!-~]+", value) for value in minter.environment(server, PurePosixPath("/x")).values())
    if re.fullmatch(r"[ -~]{1,255}", username) and not set("*?${}") & set(username):
        credential = minter.mint(request(username))
        assert claims_of(credential.files["s3_token"], ENDPOINT)["sub"] == username
    else:
        with pytest.raises(CredentialError, match=r"can't be the sub of a token|are a pattern in policies"):
            minter.mint(request(username))


@pytest.mark.parametrize("username", ["*", "al?ce", "${jwt:sub}", "{username}"])
def test_who_is_called_like_a_pattern_of_a_policy_gets_none(issuer: FacilityIssuer, username: str) -> None:
    """With ``*`` in the place of the user's name, the policy of SeaweedFS opens everybody's bucket."""
    with pytest.raises(CredentialError, match="are a pattern in policies"):
        s3(issuer).mint(request(username))


def test_nothing_public_shows_the_token(issuer: FacilityIssuer) -> None:
    credential = s3(issuer).mint(request())
    [token] = credential.files.values()
    assert_tells_nothing(credential, token, CONTENT)
    assert token.rpartition(b".")[2].decode() not in public_text(credential)


def test_a_facility_delivers_it_by_its_name(issuer: FacilityIssuer) -> None:
    config = Config(
        {
            "Facility": {"credentials": ["s3"]},
            "FacilityIssuer": {"keys": issuer.keys, "vo": "cms", "url": issuer.url},
            "S3": {"endpoint": ENDPOINT, "role_arn": ROLE},
        }
    )
    minted = Facility(config=config).mint(request())
    assert set(minted.files) == {"s3_token"}


# -- by an exchange

AUDIENCE = "https://s3.example.org/of-the-provider"
PROVIDER = "https://iam.example.org"


def exchanging(**settings: Any) -> S3:
    return s3(None, **{"source": "exchange", "audience": AUDIENCE, "scope": "openid", **settings})


def given(**changes: Any) -> Answer:
    claims = {"iss": PROVIDER, "sub": "0f1e", "aud": AUDIENCE, "jti": "of-the-provider", **changes}
    body = {"access_token": jwt.encode(claims, "k" * 32, "HS256"), "token_type": "Bearer", "expires_in": 1800}
    return Answer(200, body, NOW, PROVIDER, "0f1e")


def with_fetched(fetched: Fetched | CredentialError) -> Request:
    return replace(request(), fetched={"s3": fetched})


def test_the_provider_is_asked_for_a_token_for_the_s3_alone() -> None:
    minter = exchanging()
    assert minter.check() == []
    assert minter.fetch is not None
    assert (minter.fetch.title, minter.fetch.url) == ("a token for S3", TOKEN_ENDPOINT)
    form = dict(minter.fetch.form)
    assert (form["audience"], form["scope"]) == (AUDIENCE, "openid")
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"
    assert s3(None).fetch is None


def test_what_the_provider_gave_is_delivered_as_the_issuers_token_would_be() -> None:
    minter = exchanging()
    assert minter.fetch is not None
    fetched = minter.fetch.read(given())
    credential = minter.mint(with_fetched(fetched))
    assert credential.files == {"s3_token": fetched.value.encode()}
    assert (credential.issued_at, credential.expires_at) == (NOW, NOW + timedelta(seconds=1800))
    assert credential.identifiers == {"iss": PROVIDER, "jti": "of-the-provider", "aud": AUDIENCE}
    assert minter.bearer_files == {"s3_token": BearerKind.EXCHANGED}
    assert (minter.shortens, minter.life) == (False, None)
    environment = minter.environment(request().server, PurePosixPath("/x"))
    assert environment["AWS_WEB_IDENTITY_TOKEN_FILE"] == "/x/s3_token"
    assert fetched.value not in public_text(credential)


def test_a_token_for_another_service_is_not_taken() -> None:
    minter = exchanging()
    assert minter.fetch is not None
    with pytest.raises(FetchError, match="is not for the audience"):
        minter.fetch.read(given(aud="https://rucio.example.org"))


def test_a_refusal_names_the_setting_of_the_s3() -> None:
    minter = exchanging()
    assert minter.fetch is not None
    refused = Answer(400, {"error": "invalid_scope", "error_description": "Invalid scope"}, NOW, PROVIDER, "0f1e")
    with pytest.raises(FetchError, match=r"S3 token: this hub's client may not ask .* or changed in S3\.scope"):
        minter.fetch.read(refused)


def test_an_expired_one_and_none_at_all_are_not_delivered() -> None:
    old = Fetched("a.b.c", NOW - timedelta(hours=1), NOW)
    with pytest.raises(CredentialError, match="expired at"):
        exchanging().mint(with_fetched(old))
    with pytest.raises(CredentialError, match="has not asked for it"):
        exchanging().mint(request())


def test_without_an_audience_the_token_would_be_for_everybody() -> None:
    [problem] = exchanging(audience="").check()
    assert str(problem).startswith("S3.audience: is not set, so a token would be for any service")
    with pytest.raises(CredentialError, match=r"S3\.audience"):
        exchanging(audience="").mint(with_fetched(Fetched("a.b.c", NOW, NOW + timedelta(hours=1))))


def test_a_lifetime_that_decides_nothing_is_told() -> None:
    config = Config(
        {"S3": {"endpoint": ENDPOINT, "role_arn": ROLE, "audience": "s3", "source": "exchange", "lifetime": 60}}
    )
    [problem] = S3(config=config).check()
    assert (problem.severity, problem.thing) == (Severity.WARNING, "S3.lifetime")
