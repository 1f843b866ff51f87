from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from traitlets import TraitError
from traitlets.config import Config, LoggingConfigurable

from casa_hub.credentials.base import BearerKind, Credential, bad_path
from casa_hub.credentials.exchange import TokenExchange
from casa_hub.credentials.exchange_answers import read
from casa_hub.credentials.exchange_services import PRESETS, read_services
from casa_hub.credentials.fetching import TOKEN_ENDPOINT, Answer, Fetched, FetchError, Why
from casa_hub.errors import CredentialError
from casa_hub.naming import Server
from casa_hub.record import next_record
from tests.support.minting import NOW, assert_tells_nothing, public_text, request

ISSUER, SUB = "https://iam.example.org/", "7a9c-alice"
SECRET = "SECRETSECRETSECRETSECRETSECRETSECRET"
LATER = NOW + timedelta(hours=1)
TAPE = {"audience": "https://tape.example.org", "scope": "storage.stage:/"}


def minters(services: object) -> dict[str, TokenExchange]:
    """As `Facility` makes them."""
    parent = LoggingConfigurable(config=Config(TokenExchange={"services": services}))
    made = [cls(parent=parent) for cls in TokenExchange.parts(parent)]
    assert all(isinstance(minter, TokenExchange) for minter in made)
    return {minter.name: minter for minter in made}  # type: ignore[misc]


def minter(**entry: Any) -> TokenExchange:
    (made,) = minters({"tape": TAPE | entry}).values()
    return made


def token(**claims: Any) -> str:
    own = {"iss": ISSUER, "sub": SUB, "aud": TAPE["audience"], "exp": int(LATER.timestamp()), "jti": "j-1"}
    named = {name: value for name, value in (own | claims).items() if value is not None}
    return jwt.encode(named, "k" * 32, "HS256")


def answer(body: object, status: int = 200) -> Answer:
    return Answer(status, body, NOW, ISSUER, SUB)


def read_one(body: object, status: int = 200, service: TokenExchange | None = None) -> Fetched:
    return (service or minter()).fetch.read(answer(body, status))


def given_token(value: str, **more: Any) -> dict[str, Any]:
    return {"access_token": value, "token_type": "Bearer", "expires_in": 3600} | more


# -- settings


def test_each_service_is_a_credential_with_a_file_of_its_own() -> None:
    made = minters({"rucio": {"preset": "rucio"}, "my-tape": TAPE})
    assert {name: (one.title, one.paths) for name, one in made.items()} == {
        "exchange:rucio": ("Rucio token", ("rucio_token",)),
        "exchange:my-tape": ("My tape token", ("my-tape_token",)),
    }
    assert all(one.renewal == "time" and not one.outside and not one.shortens for one in made.values())
    assert made["exchange:my-tape"].bearer_files == {"my-tape_token": BearerKind.EXCHANGED}
    assert not [problem for one in made.values() for problem in one.check()]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_a_sound_service(name: str) -> None:
    (made,) = minters({name: {"preset": name}}).values()
    assert not made.check()
    assert made.title == f"{PRESETS[name].title} token"


def test_what_is_given_goes_before_the_preset() -> None:
    entry = {"preset": "rucio", "audience": "other", "scope": " a  b ", "file": "tokens/r", "environment": {"R": "x"}}
    (made,) = minters({"rucio-two": entry}).values()
    assert (made.service.audience, made.service.scope, made.service.file) == ("other", "a b", "tokens/r")
    assert made.title == "Rucio two token"
    assert made.environment(Server("", "alice"), PurePosixPath("/etc/s")) == {"R": "x"}


def test_variables_hold_the_path_of_the_file() -> None:
    made = minter(environment={"TAPE_TOKEN": "FILE:{file}", "TAPE": "on"})
    expected = {"TAPE_TOKEN": "FILE:/etc/s/tape_token", "TAPE": "on"}
    assert made.environment(Server("", "alice"), PurePosixPath("/etc/s")) == expected


def test_a_file_that_no_setting_names_is_named_by_a_variable_of_the_service() -> None:
    made = list(minters({"tape-two": TAPE, "silent": TAPE | {"environment": {}}}).values())
    found = [one.environment(Server("", "alice"), PurePosixPath("/etc/s")) for one in made]
    assert found == [{"TAPE_TWO_TOKEN_FILE": "/etc/s/tape-two_token"}, {}]
    assert [one.found_by for one in made] == ["programs that read TAPE_TWO_TOKEN_FILE", ""]


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ({}, "is empty"),
        ("rucio", "services"),
        ({"Rucio": TAPE}, "'Rucio' is no name"),
        ({"-a": TAPE}, "'-a' is no name"),
        ({"a" * 41: TAPE}, "is no name"),
        ({"a:b": TAPE}, "'a:b' is no name"),
        ({"tape\n": TAPE}, "is no name"),
        ({1: TAPE}, "1 is no name"),
        (
            {"tape": TAPE | {"scope": ["a", "b"]}},
            "tape has a value of scope that is no text; separate several by blanks",
        ),
        ({"tape": "https://tape"}, "tape is no mapping of preset, audience, scope, file, environment"),
        ({"tape": None}, "tape is no mapping"),
        ({"tape": TAPE | {"audiance": "x"}}, r"tape has an unknown key 'audiance' \(Did you mean audience\?\)"),
        ({"tape": {"audience": ["a", "b"]}}, "tape has a value of audience that is no text"),
        ({"tape": TAPE | {"scope": None}}, "tape has a value of scope that is no text"),
        ({"tape": {}}, "tape has neither audience nor scope"),
        ({"tape": {"audience": "", "scope": " "}}, "tape has neither audience nor scope"),
        ({"tape": {"preset": "rucoi"}}, r"tape has an unknown preset 'rucoi' \(Did you mean rucio\?\)"),
        ({"tape": TAPE | {"file": "../access_token"}}, r"tape has the file '\.\./access_token'"),
        ({"tape": TAPE | {"file": "/tmp/token"}}, "tape has the file '/tmp/token'"),
        ({"tape": TAPE | {"environment": "TOKEN={file}"}}, "tape has an environment that is no mapping"),
        ({"tape": TAPE | {"environment": {"A B": "x"}}}, "tape has 'A B' in its environment"),
        ({"tape": TAPE | {"environment": {"A": 1}}}, "tape has a value of A that is no text of one line"),
        ({"tape": TAPE | {"environment": {"A": "a\nb"}}}, "tape has a value of A that is no text of one line"),
        ({"tape": TAPE | {"environment": {"A": "{token}"}}}, r"tape has a wrong placeholder in A: \{file\} is the"),
        ({"tape": TAPE | {"environment": {"A": "{file}}"}}}, "tape has a wrong placeholder in A"),
    ],
)
def test_a_setting_of_a_wrong_form_is_refused_by_name(services: object, words: str) -> None:
    with pytest.raises(TraitError, match=words):
        minters(services)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"audience": "two words"}, "'two words' is not an audience"),
        ({"audience": "é"}, r"'\xe9' is not an audience"),
        ({"scope": 'a"b'}, "is not a scope"),
        ({"scope": "storage.read:/ offline_access"}, "offline_access asks for a refresh token"),
        ({"environment": {"BEARER_TOKEN_FILE": "{file}"}}, "Set Facility.bearer_token_file to tape_token"),
    ],
)
def test_a_value_that_can_not_work_is_a_problem_of_its_service(entry: dict[str, Any], words: str) -> None:
    (problem,) = minter(**entry).check()
    assert str(problem).startswith("TokenExchange.services[tape]: ")
    assert words in str(problem)


def test_two_services_with_the_same_variable_are_a_problem_of_the_second() -> None:
    entry = TAPE | {"environment": {"TOKEN": "{file}"}}
    first, second = minters({"one": entry, "two": entry}).values()
    assert not first.check()
    (problem,) = second.check()
    assert "TOKEN is a variable of one, too" in str(problem)


_VALUES = (
    st.text(max_size=8) | st.sampled_from(["rucio", "eos", "a/b", "{file}", None, 1]) | st.lists(st.none(), max_size=1)
)
_ENTRIES = st.dictionaries(
    st.sampled_from(["audience", "scope", "file", "environment", "preset", "x"]),
    _VALUES | st.dictionaries(st.sampled_from(["TOKEN", "A B"]), _VALUES, max_size=2),
    max_size=4,
)


@given(st.dictionaries(st.sampled_from(["tape", "a-b", "A", ""]), _ENTRIES | st.none(), max_size=2))
@example({"tape": {"audience": "x", "environment": {"TOKEN": "{file}"}}})
def test_whatever_the_setting_is_it_is_read_or_refused(services: dict[str, Any]) -> None:
    try:
        found = read_services(services)
    except ValueError:
        return
    assert len(found) == len(services)
    assert all(one.audience or one.scope for one in found)
    assert not any(bad_path(one.file) for one in found)


# -- the request


def test_the_form_is_that_of_rfc_8693() -> None:
    fetch = minter().fetch
    assert fetch.url == TOKEN_ENDPOINT
    assert fetch.form == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": "https://tape.example.org",
        "scope": "storage.stage:/",
    }
    assert fetch.title == "a token for Tape"


@pytest.mark.parametrize("missing", ["audience", "scope"])
def test_what_is_not_set_is_not_asked_for(missing: str) -> None:
    assert missing not in minter(**{missing: ""}).fetch.form


def test_another_audience_is_another_request() -> None:
    assert minter().fetch.fingerprint != minter(audience="https://other.example.org").fetch.fingerprint


# -- the answer


def test_a_token_for_this_person_and_audience_is_taken() -> None:
    value = token()
    got = read_one(given_token(value, issued_token_type="urn:ietf:params:oauth:token-type:jwt"))
    assert (got.value, got.at, got.expires_at) == (value, NOW, LATER.replace(microsecond=0))


@pytest.mark.parametrize(
    ("expires_in", "exp", "life"),
    [
        (600, 3600, 600),
        ("600", 3600, 600),
        (7200, 3600, 3600),
        (None, 3600, 3600),
        (600, None, 600),
        (float("nan"), 3600, 3600),
        (1e300, 3600, 3600),
        ([1], 3600, 3600),
    ],
)
def test_the_earlier_end_counts(expires_in: Any, exp: int | None, life: int) -> None:
    now = NOW.replace(microsecond=0)
    value = token(exp=None if exp is None else int(now.timestamp()) + exp)
    body = given_token(value) | {"expires_in": expires_in}
    got = minter().fetch.read(Answer(200, body, now, ISSUER, SUB))
    assert got.expires_at == now + timedelta(seconds=life)


def test_an_opaque_token_passes_with_the_answer_s_life() -> None:
    got = read_one(given_token("opaque-~+/.=="))
    assert (got.value, got.expires_at) == ("opaque-~+/.==", LATER)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (given_token(token(sub="bob")), "doesn't name this person"),
        (given_token(token(sub=None)), "doesn't name this person"),
        (given_token(token(iss="https://iam.example.org")), "not of this hub's identity provider"),
        (given_token(token(iss=None)), "not of this hub's identity provider"),
        (given_token(token(aud=None)), "not for the audience https://tape.example.org"),
        (given_token(token(aud=["https://tape.example.org.evil", "x"])), "not for the audience"),
        (given_token(token(aud="https://tape")), "not for the audience"),
        (given_token("x" * 65537), "has more than 65536 characters"),
        (given_token("a b"), "characters that a bearer token can't have"),
        (given_token("a\n"), "characters that a bearer token can't have"),
        (given_token("opaque", token_type="N_A"), "no access token"),
        (given_token("opaque", token_type=None), "no access token"),
        (given_token("opaque", issued_token_type="urn:ietf:params:oauth:token-type:refresh_token"), "no access token"),
        (given_token("opaque", issued_token_type=["x"]), "no access token"),
        (given_token("opaque", expires_in=None), "doesn't say when it expires"),
        (given_token("opaque", expires_in=-1), "expired at"),
        (given_token(token(exp=int(NOW.timestamp()) - 1)), "expired at"),
        ({}, "has none"),
        (None, "has none"),
        ([], "has none"),
        (given_token("") | {"access_token": 1}, "has none"),
    ],
)
def test_what_must_not_be_delivered_is_refused(body: object, words: str) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        read_one(body)
    assert caught.value.thing == "Tape token"


def test_without_an_audience_of_ours_any_will_do() -> None:
    assert read_one(given_token(token(aud=None)), service=minter(audience="")).value


def test_one_of_several_audiences_is_enough() -> None:
    assert read_one(given_token(token(aud=["x", TAPE["audience"]]))).value


IAM_SCOPE = {
    "error": "invalid_request",
    "error_description": "The scope parameter is required for a token exchange request!",
}
IAM_OFFLINE = {
    "error": "access_denied",
    "error_description": "Token exchange not allowed: the actor and the subject are the same client and offline_access "
    "is in the requested scopes",
}


@pytest.mark.parametrize(
    ("status", "error", "description", "why", "words"),
    [
        (400, "invalid_request", IAM_SCOPE["error_description"], Why.REFUSED, "the service needs scope in"),
        (400, "invalid_scope", "Invalid scope: x", Why.REFUSED, "may not ask for the scope storage.stage:/"),
        (401, "invalid_client", "Unauthorized grant type", Why.REFUSED, "an administrator of INDIGO IAM adds"),
        (403, "access_denied", IAM_OFFLINE["error_description"], Why.REFUSED, "offline_access has to go from"),
        (
            400,
            "invalid_grant",
            "User alice needs to sign AUP for this organization in order to proceed.",
            Why.REFUSED,
            "Sign it at the identity provider, then log out and in again.",
        ),
        (401, "invalid_token", "Access token not found", Why.SIGN_IN, "Log out and in again."),
        (400, "invalid_grant", "Stale token", Why.SIGN_IN, "Log out and in again."),
        # Keycloak 26.4, measured
        (
            400,
            "invalid_request",
            "Standard token exchange is not enabled for the requested client",
            Why.REFUSED,
            "standard.token.exchange.enabled",
        ),
        (
            400,
            "invalid_request",
            "Requested audience not available: x",
            Why.REFUSED,
            "https://tape.example.org has to be",
        ),
        (400, "invalid_client", "Audience not found", Why.REFUSED, "an audience mapper"),
        (400, "invalid_client", "Client disabled", Why.REFUSED, "the client https://tape.example.org is disabled"),
        (400, "invalid_request", "Invalid token", Why.SIGN_IN, "Log out and in again."),
        (403, "access_denied", "Client not allowed to exchange", Why.REFUSED, "may not exchange tokens"),
        (403, "access_denied", "Client is not within the token audience", Why.REFUSED, "rules for token exchange"),
        (401, "unauthorized_client", "Invalid client or Invalid client credentials", Why.REFUSED, "client_id and"),
        # RFC 6749 and RFC 8693
        (400, "unsupported_grant_type", "", Why.REFUSED, "can't exchange tokens"),
        (400, "invalid_target", "", Why.REFUSED, "RFC 8693, 2.2.2"),
        (400, "invalid_request", "something new", Why.REFUSED, r"refuses it (invalid_request: something new)"),
    ],
)
def test_a_refusal_says_who_does_what(status: int, error: str, description: str, why: Why, words: str) -> None:
    with pytest.raises(FetchError) as caught:
        read_one({"error": error, "error_description": description}, status)
    assert (caught.value.why, words in str(caught.value)) == (why, True), str(caught.value)


@pytest.mark.parametrize(
    ("status", "body"), [(404, None), (400, {}), (403, "<html>"), (302, {"error": "x"}), (201, given_token("t"))]
)
def test_what_no_token_endpoint_would_say_is_an_outage(status: int, body: object) -> None:
    with pytest.raises(FetchError, match=f"no usable answer .HTTP {status}.") as caught:
        read_one(body, status)
    assert caught.value.why is Why.OUTAGE


def test_a_token_that_the_provider_quotes_is_not_repeated() -> None:
    quoted = {"error": "invalid_token", "error_description": f"Access token not found: {token()} {SECRET} 0123abcdef"}
    with pytest.raises(FetchError) as caught:
        read_one(quoted, 401)
    assert_tells_nothing(caught.value, SECRET.encode(), token().encode(), b"0123abcdef")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = ("access_token", "token_type", "expires_in", "issued_token_type", "error", "error_description")


@given(
    st.integers(min_value=200, max_value=499),
    JSON | st.dictionaries(st.sampled_from(_NAMES), JSON | st.sampled_from([token(), "Bearer"]), max_size=6),
)
def test_any_answer_is_a_token_or_a_fetch_error(status: int, body: object) -> None:
    try:
        got = read_one(body, status)
    except FetchError:
        return
    assert status == 200
    assert isinstance(body, Mapping)
    assert got.value == body["access_token"]
    assert got.expires_at > NOW


@given(st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "jti"]), JSON, max_size=5))
@example({"iss": ISSUER, "sub": SUB, "aud": [TAPE["audience"]]})
def test_a_token_is_only_taken_with_the_right_claims(claims: dict[str, Any]) -> None:
    payload = json.dumps(claims).encode()
    value = jwt.api_jws.encode(payload, "k" * 32, "HS256")
    try:
        read_one(given_token(value))
    except FetchError:
        return
    if claims:
        aud = claims["aud"]
        assert (claims["iss"], claims["sub"]) == (ISSUER, SUB)
        assert TAPE["audience"] in (aud if isinstance(aud, list) else [aud])


def test_a_token_of_a_thousand_brackets_is_taken_for_opaque() -> None:
    value = jwt.api_jws.encode(b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "k" * 32, "HS256")
    assert read_one(given_token(value)).value == value


# -- the credential


def minted(made: TokenExchange, what: Fetched | FetchError) -> Credential:
    return made.mint(replace(request(), fetched={made.name: what}))


def fetched(value: str, expires_at: datetime = LATER) -> Fetched:
    return Fetched(value, NOW - timedelta(minutes=10), expires_at)


def test_the_credential_is_the_token_and_says_what_it_is() -> None:
    made, value = minter(), token()
    credential = minted(made, fetched(value))
    assert credential.files == {"tape_token": value.encode()}
    assert credential.expires_at == LATER
    assert credential.issued_at == NOW - timedelta(minutes=10)
    assert credential.identifiers == {"iss": ISSUER, "jti": "j-1", "aud": "https://tape.example.org"}
    assert credential.summary == "storage.stage:/ at https://tape.example.org"
    assert value not in public_text(credential)


def test_an_opaque_token_is_told_by_the_audience_that_was_asked_for() -> None:
    made = minter()
    credential = minted(made, fetched("opaque"))
    assert credential.identifiers == {"aud": "https://tape.example.org"}


@pytest.mark.parametrize("odd", ["x" * 257, "two\nlines", "\x1b[2J", "\ud800"], ids=["long", "lines", "screen", "half"])
def test_what_no_administrator_could_look_for_is_no_identifier(odd: str) -> None:
    """The audiences of a token alone could make a pod's annotation too long, and half a character broke the page."""
    credential = minted(minter(), fetched(token(jti=odd, aud=[TAPE["audience"], odd])))
    assert credential.identifiers == {"iss": ISSUER, "aud": "https://tape.example.org"}


def test_the_longest_record_of_ten_services_fits_into_an_annotation() -> None:
    made = minters({f"service-number-{number}": TAPE for number in range(10)})
    record = None
    for number in range(30):
        claims = {"jti": f"{number:0256}", "aud": [TAPE["audience"], "x" * 200]}
        minted_now = {name: minted(one, fetched(token(**claims))) for name, one in made.items()}
        record = next_record(request(), minted_now, {}, record)
    assert record is not None
    assert {len(entry.earlier) for entry in record.credentials.values()} == {16}
    # Kubernetes' limit for all annotations of an object is 256 KiB. What the others have is far shorter.
    assert len(json.dumps(record.to_document())) < 160 * 1024


def test_eos_gets_the_form_that_its_clients_read() -> None:
    (made,) = minters({"eos": {"preset": "eos"}}).values()
    value = token(iss="https://auth.cern.ch/auth/realms/cern", aud="eos-service")
    credential = minted(made, fetched(value))
    userinfo = "auth.cern.ch/auth/realms/cern/protocol/openid-connect/userinfo"
    assert credential.files == {"eos_token": f"oauth2:{value}:{userinfo}".encode()}
    assert made.bearer_files == {}
    assert made.environment(Server("", "alice"), PurePosixPath("/s")) == {
        "OAUTH2_FILE": "/s/eos_token",
        "OAUTH2_TOKEN": "FILE:/s/eos_token",
    }


@pytest.mark.parametrize("value", ["opaque" + SECRET, token(iss="http://auth.example.org", jti=SECRET)])
def test_eos_gets_no_token_of_an_issuer_that_it_can_not_ask(value: str) -> None:
    (made,) = minters({"eos": {"preset": "eos"}}).values()
    with pytest.raises(CredentialError, match="names no issuer with https") as caught:
        minted(made, fetched(value))
    assert_tells_nothing(caught.value, value.encode())


def test_an_expired_token_is_not_delivered() -> None:
    made = minter()
    with pytest.raises(CredentialError, match="Tape token: expired at"):
        minted(made, fetched(token(), NOW))


def test_a_mint_without_a_token_says_why_there_is_none() -> None:
    made = minter()
    why = FetchError("Tape token", "the provider is away", "Wait.")
    with pytest.raises(FetchError, match="the provider is away"):
        minted(made, why)
    with pytest.raises(CredentialError, match="Log out and in again"):
        made.mint(request())


def test_reading_names_the_service_of_the_answer() -> None:
    rucio = minters({"rucio": {"preset": "rucio"}})["exchange:rucio"]
    with pytest.raises(FetchError, match="Rucio token: what was given is not for the audience rucio"):
        read(answer(given_token(token())), rucio.service)
