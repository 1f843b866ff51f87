"""What `casa-hub check` makes of answers about token exchange, S3 and X.509 proxies."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.checks import exchange, s3, x509
from casa_hub.checks.fetches import for_operator
from casa_hub.checks.findings import Status, error, ok
from casa_hub.checks.s3 import Said
from casa_hub.checks.web import Answer
from casa_hub.credentials.fetching import Fetch, FetchError, Why

RUCIO, TAPE = "exchange:rucio", "exchange:tape"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
TELL = "Tell the operator of this hub"


def fetch(**form: str) -> Fetch:
    return Fetch("a token", lambda _: pytest.fail("nothing is read"), form={"grant_type": GRANT, **form})


def refused(problem: str, remedy: str, why: Why = Why.REFUSED) -> FetchError:
    return FetchError("Rucio token", problem, remedy, why)


# -- token exchange


@pytest.mark.parametrize(
    ("body", "refusal", "status", "words"),
    [
        ({"error": "invalid_token"}, refused("is old", "Log in.", Why.SIGN_IN), Status.OK, "only a log-in shows"),
        # RFC 8693, 2.2.2, of a provider that isn't known.
        (
            {"error": "invalid_request", "error_description": "The subject token is invalid"},
            refused("the provider refuses it", f"{TELL}."),
            Status.OK,
            "lets this hub's client exchange",
        ),
        ({"error": "invalid_request"}, refused("the provider refuses it", f"{TELL}."), Status.OK, "only a log-in"),
        (
            {"error": "invalid_request", "error_description": "Standard token exchange is not enabled for the client"},
            refused("this hub's client may not exchange tokens", f"{TELL}: in Keycloak, switch it on."),
            Status.ERROR,
            "may not exchange tokens. In Keycloak, switch it on.",
        ),
        (
            {"error": "invalid_request", "error_description": "The scope parameter is required for an exchange"},
            refused("IAM gives none without a scope", f"{TELL}: the service needs scope."),
            Status.ERROR,
            "without a scope. The service needs scope.",
        ),
        (
            {"error": "invalid_client", "error_description": "Unauthorized grant type"},
            refused("this hub's client may not exchange tokens", f"{TELL}."),
            Status.ERROR,
            "may not exchange tokens. Compare its settings with the registration",
        ),
        (None, refused("gave no usable answer (HTTP 404)", "Ask them.", Why.OUTAGE), Status.UNSEEN, "Ask them."),
        ({"access_token": "x"}, None, Status.ERROR, "has exchanged a token that nobody has"),
        # Not JSON objects, and other people's types.
        (["invalid_request"], refused("is odd", "Ask them."), Status.ERROR, "is odd"),
        ({"error": "invalid_request", "error_description": 7}, refused("is odd", ""), Status.OK, "only a log-in"),
    ],
)
def test_what_the_provider_says_to_a_token_that_nobody_has(
    body: object, refusal: FetchError | None, status: Status, words: str
) -> None:
    found = exchange.read(RUCIO, body, refusal)
    assert (found.status, found.thing) == (status, RUCIO)
    assert words in str(found)


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"grant_types_supported": ["authorization_code", GRANT]}, [Status.OK]),
        ({"grant_types_supported": ["authorization_code"]}, [Status.WARNING]),
        ({"grant_types_supported": [None, 7]}, [Status.WARNING]),
        ({"grant_types_supported": GRANT}, []),
        ({}, []),
    ],
)
def test_only_a_list_of_grants_without_exchange_is_told(document: dict[str, Any], status: list[Status]) -> None:
    found = exchange.offered({"issuer": "https://idp.test", **document}, {RUCIO: fetch()})
    assert [one.status for one in found] == status
    assert all("https://idp.test" in one.thing for one in found)


def test_the_same_finding_of_several_services_is_one() -> None:
    findings = [error(RUCIO, "is refused", "Do it."), ok("exchange:eos", "sound"), error(TAPE, "is refused", "Do it.")]
    assert exchange.together(findings) == [
        error(f"{RUCIO}, {TAPE}", "is refused", "Do it."),
        ok("exchange:eos", "sound"),
    ]


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        (f"{TELL}: the client needs it.", "The client needs it."),
        (f"{TELL}. CasaOAuthenticator.scope must have it.", "CasaOAuthenticator.scope must have it."),
        (f"{TELL}: client_id must be that of the registration.", "client_id must be that of the registration."),
        ("Log out and in again.", "Log out and in again."),
    ],
)
def test_nobody_is_sent_to_themselves(remedy: str, told: str) -> None:
    assert for_operator(remedy) == told


@given(st.text())
def test_there_is_always_a_remedy(remedy: str) -> None:
    assert for_operator(remedy)


# -- S3


class Minter:
    """What the check asks an S3's minter."""

    endpoint, sts_endpoint = "https://s3.test", ""
    issuer = None

    def __init__(self, role: str = "physicist") -> None:
        self.role_arn = f"arn:aws:iam:::role/{role}"

    def role_for(self, username: str) -> str:
        return self.role_arn.replace("{username}", username)

    def token_audience(self) -> str:
        return self.endpoint


REFUSED = Said(400, "InvalidIdentityToken")
DENIED = Said(403, "AccessDenied")
GAVE = Said(200, "")


@pytest.mark.parametrize(
    ("without", "own", "status", "words"),
    [
        (REFUSED, GAVE, [Status.OK, Status.OK], "takes this hub's tokens for the role arn:aws:iam:::role/physicist"),
        (REFUSED, DENIED, [Status.OK, Status.OK], "has no role for the user casa-hub-check"),
        (DENIED, GAVE, [Status.OK, Status.OK], "takes this hub's tokens"),
        (REFUSED, REFUSED, [Status.OK, Status.ERROR], "refuses this hub's tokens (status 400, InvalidIdentityToken)"),
        (DENIED, DENIED, [Status.OK, Status.WARNING], "in the same words as a forged one"),
        (DENIED, Said(400, "IDPRejectedClaim"), [Status.OK, Status.ERROR], "the client ID (audience) https://s3.test"),
        (REFUSED, Said(500, "InternalError"), [Status.OK, Status.UNSEEN], "fails (status 500, InternalError)"),
        (GAVE, GAVE, [Status.ERROR], "gives keys for a forged token: everybody can take the role"),
        (Said(405, "MethodNotAllowed"), GAVE, [Status.ERROR], "is no STS that takes tokens"),
        (Said(400, "InvalidAction"), GAVE, [Status.ERROR], "Check S3.sts_endpoint"),
        (Said(404, ""), GAVE, [Status.ERROR], "answers status 404"),
        (Said(503, "ServiceUnavailable"), GAVE, [Status.UNSEEN], "Without a configuration of its STS"),
    ],
)
def test_what_an_sts_says_to_a_forged_token_and_to_nobodys(
    without: Said, own: Said, status: list[Status], words: str
) -> None:
    found = s3.read_sts(Minter(), without, own)
    assert [one.status for one in found] == status
    assert words in str(found[-1])
    assert {one.thing for one in found} == {"STS https://s3.test"}


def test_where_each_user_has_a_role_nobody_has_none() -> None:
    none = Said(404, "NoSuchEntity")
    assert [one.status for one in s3.read_sts(Minter("{username}"), REFUSED, none)] == [Status.OK, Status.OK]
    assert [one.status for one in s3.read_sts(Minter(), REFUSED, none)] == [Status.OK, Status.ERROR]


def test_without_a_token_of_the_hub_s_own_only_the_forged_one_is_told() -> None:
    found = s3.read_sts(Minter(), REFUSED, None)
    assert [one.status for one in found] == [Status.OK, Status.OK]
    assert "only a user's token shows" in found[1].problem


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, b"<Error><Code>AccessDenied</Code></Error>", Status.OK),
        (200, b"<ListAllMyBucketsResult></ListAllMyBucketsResult>", Status.OK),
        (200, b"<html>welcome", Status.WARNING),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", Status.WARNING),
        (502, b"", Status.ERROR),
    ],
)
def test_what_shows_an_s3(status: int, body: bytes, expected: Status) -> None:
    assert s3.read_s3("https://s3.test", Answer(status, {}, body, 0.0)).status is expected


@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_nothing_of_an_answer_gets_into_a_finding_but_a_word(body: bytes) -> None:
    code = s3.read_answer(Answer(400, {}, b"<Code>" + body + b"</Code>", 0.0)).code
    assert len(code) <= 60
    assert re.fullmatch(r"[A-Za-z.]*", code)


# -- X.509


@pytest.mark.parametrize(
    ("status", "refusal", "expected", "words"),
    [
        (401, refused("your token is refused", "", Why.SIGN_IN), Status.OK, "(proxycert.enabled)"),
        (403, refused("lacks the scope", f"{TELL}."), Status.OK, "refuses a token"),
        (401, refused("the identity provider refuses this hub's client", f"{TELL}."), Status.ERROR, "client_secret"),
        (404, refused("makes none", f"{TELL}."), Status.ERROR, "needs proxycert.enabled=true"),
        (400, refused("refuses the value of X509.lifetime", f"{TELL}."), Status.ERROR, "X509.lifetime"),
        (405, refused("it is refused", f"{TELL}."), Status.ERROR, "unlike INDIGO IAM's"),
        (200, None, Status.ERROR, "as if it were somebody's"),
    ],
)
def test_what_iam_says_of_proxies(status: int, refusal: FetchError | None, expected: Status, words: str) -> None:
    found = x509.read_iam("https://iam.test/iam/proxycert", status, refusal)
    assert found.status is expected
    assert words in str(found)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, Status.OK), (403, Status.OK), (404, Status.WARNING), (412, Status.WARNING), (200, Status.ERROR)],
)
def test_what_a_service_says_of_proxies(status: int, expected: Status) -> None:
    assert x509.read_service("https://proxies.test", status).status is expected


@pytest.mark.parametrize(("by_iam", "expected"), [(True, Status.UNSEEN), (False, Status.ERROR)])
def test_a_silent_one_is_named_once(by_iam: bool, expected: Status) -> None:
    problem = FetchError("https://proxies.test", "can't be reached", "Later.")
    assert x509.no_answer("https://proxies.test", problem, by_iam=by_iam).status is expected
