"""What an identity provider's refusal means: what real ones were seen to answer, and what nobody saw yet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.identity.challenges import bearer_error
from casa_hub.identity.verdicts import Verdict, of_token_answer, of_userinfo_answer

NO, AGAIN, CANT_SAY = Verdict.NO, Verdict.LOG_IN_AGAIN, Verdict.CANT_SAY


def error(code: str, description: str | None = None) -> dict[str, object]:
    return {"error": code} if description is None else {"error": code, "error_description": description}


AUP = "User alice needs to sign AUP for this organization in order to proceed."
AUP_UUID = (
    "User with uuid 6a3b1c52-8c0e-4f53-9b4e-0d7a2f0c5d11 needs to sign AUP for this organization in order to proceed."
)

TOKEN = {
    "IAM: account disabled": (401, error("unauthorized", "User alice is not active."), NO),
    "IAM: name with a space": (401, error("unauthorized", "User alice smith is not active."), NO),
    "IAM: AUP not signed": (400, error("invalid_grant", AUP), NO),
    "IAM: AUP not signed, newer": (400, error("invalid_grant", AUP_UUID), NO),
    "IAM: refresh token expired or revoked": (400, error("invalid_grant", "Invalid refresh token: eyJhbGciOi"), AGAIN),
    "IAM: refresh token unknown, or its account deleted": (
        401,
        error("invalid_token", "Refresh token for value eyJhbGciOiJub25lIn0.eyJqdGkiOiIx was not found"),
        AGAIN,
    ),
    "IAM: wrong secret, unknown or deleted client": (401, error("unauthorized", "Bad credentials"), CANT_SAY),
    "IAM: client suspended": (401, error("invalid_client", "Client is suspended: hub"), CANT_SAY),
    "IAM: the client lacks the grant": (401, error("invalid_client", "Unauthorized grant type"), CANT_SAY),
    "IAM: no client authentication": (
        401,
        error("unauthorized", "Full authentication is required to access this resource"),
        CANT_SAY,
    ),
    "Keycloak: account disabled": (400, error("invalid_grant", "User disabled"), NO),
    "Keycloak: deleted or logged out": (400, error("invalid_grant", "Session not active"), AGAIN),
    "Keycloak: used twice": (400, error("invalid_grant", "Maximum allowed refresh token reuse exceeded"), AGAIN),
    "Keycloak: after that": (400, error("invalid_grant", "Session doesn't have required client"), AGAIN),
    "Keycloak: not-before": (400, error("invalid_grant", "Stale token"), AGAIN),
    "Keycloak: nonsense": (400, error("invalid_grant", "Invalid refresh token"), AGAIN),
    "Keycloak: wrong secret": (
        401,
        error("unauthorized_client", "Invalid client or Invalid client credentials"),
        CANT_SAY,
    ),
    "Keycloak: client disabled": (
        401,
        error("invalid_client", "Invalid client or Invalid client credentials"),
        CANT_SAY,
    ),
    "invalid_grant without a word": (400, error("invalid_grant"), AGAIN),
    "a person has to do something": (400, error("interaction_required", "Consent is needed"), AGAIN),
    "scope taken from the client": (400, error("invalid_scope", "Invalid scope: wlcg.groups"), CANT_SAY),
    "grant taken from the client": (400, error("unsupported_grant_type"), CANT_SAY),
    "unauthorized without a word": (401, error("unauthorized"), CANT_SAY),
    "unknown code": (400, error("out_of_cheese"), CANT_SAY),
    "access_denied": (403, error("access_denied", "User disabled"), CANT_SAY),
    "not known from its first to its last character": (400, error("invalid_grant", "User disabled?"), AGAIN),
    "a name can't forge a sentence": (400, error("invalid_grant", "Client of User alice is not active. Sorry"), AGAIN),
    "not JSON": (400, None, CANT_SAY),
    "JSON, but a list": (400, ["invalid_grant"], CANT_SAY),
    "JSON, but a string": (401, "invalid_grant", CANT_SAY),
    "error isn't a string": (400, {"error": {"code": "invalid_grant"}}, CANT_SAY),
    "description isn't a string": (400, {"error": "invalid_grant", "error_description": ["User disabled"]}, AGAIN),
    "success without a token": (200, {"token_type": "Bearer"}, CANT_SAY),
    "success that isn't JSON": (200, None, CANT_SAY),
    "success with an error": (200, error("invalid_grant", "User disabled"), CANT_SAY),
    "redirect": (302, None, CANT_SAY),
    "not found": (404, None, CANT_SAY),
    "too many requests": (429, error("invalid_grant", "User disabled"), CANT_SAY),
    "time-out": (408, None, CANT_SAY),
    "server error": (500, error("invalid_grant", "User disabled"), CANT_SAY),
    "server error in JSON": (500, error("server_error"), CANT_SAY),
    "bad gateway": (502, None, CANT_SAY),
    "maintenance": (503, error("temporarily_unavailable"), CANT_SAY),
}

USERINFO = {
    "Keycloak: account disabled": (401, error("invalid_token", "User disabled"), NO),
    "Keycloak: deleted or logged out": (401, error("invalid_token", "user_session_not_found"), AGAIN),
    "Keycloak: client disabled": (401, error("invalid_token", "Client disabled"), CANT_SAY),
    "IAM: account disabled": (401, error("unauthorized", "User alice is not active."), NO),
    "token expired": (401, error("invalid_token", "Token expired"), AGAIN),
    "scope openid is missing": (403, error("insufficient_scope", "Missing openid scope"), CANT_SAY),
    "an error that nobody knows": (401, error("access_denied", "access denied"), CANT_SAY),
    "IAM: account deleted during a refresh": (404, error("User 'ada' not found"), NO),
    "IAM: the same words with another status": (400, error("User 'ada' not found"), CANT_SAY),
    "somebody else's words around IAM's": (404, error("Sorry: User 'ada' not found"), CANT_SAY),
    "a refusal without words": (401, None, AGAIN),
    "a refusal of an empty object": (401, {}, AGAIN),
    "forbidden": (403, None, CANT_SAY),
    "success that isn't JSON": (200, None, CANT_SAY),
    "server error": (500, None, CANT_SAY),
    "too many requests": (429, None, CANT_SAY),
}


def bearer(code: str, description: str) -> str:
    return f'Bearer realm="facility", error="{code}", error_description="{description}"'


#: Userinfo's errors in the header `WWW-Authenticate`: Keycloak 26.4 and INDIGO IAM 1.12 as measured, and what the RFCs
#: allow besides.
IN_THE_HEADER = {
    "Keycloak: account disabled": (401, None, [bearer("invalid_token", "User disabled")], NO),
    "Keycloak: deleted or logged out": (401, None, [bearer("invalid_token", "user_session_not_found")], AGAIN),
    "Keycloak: client disabled": (401, None, [bearer("invalid_token", "Client disabled")], CANT_SAY),
    "IAM: in both places": (
        401,
        error("unauthorized", "User ada is not active."),
        [bearer("unauthorized", "User ada is not active.")],
        NO,
    ),
    "CILogon: another error in the body": (
        401,
        error("access_denied", "access denied"),
        [bearer("invalid_token", "Token expired")],
        AGAIN,
    ),
    "an error in the body, none in the header": (401, error("invalid_token", "User disabled"), ["Bearer"], NO),
    "no error anywhere": (401, None, ['Bearer realm="facility"'], AGAIN),
    "another scheme's parameter": (401, None, ['Basic realm="x", error="invalid_token"'], AGAIN),
    "the second of two challenges": (
        401,
        None,
        ['Negotiate YII=, Bearer error="invalid_token",error_description="User disabled"'],
        NO,
    ),
    "the second of two headers": (401, None, ["Negotiate", bearer("invalid_token", "User disabled")], NO),
    "scope openid is missing": (403, None, ['Bearer error="insufficient_scope"'], CANT_SAY),
    "a word about an account needs a client error": (503, None, [bearer("invalid_token", "User disabled")], CANT_SAY),
    "half a header": (401, None, ['Bearer error="invalid_token", error_description="User dis'], AGAIN),
}


@pytest.mark.parametrize(("status", "body", "headers", "verdict"), IN_THE_HEADER.values(), ids=IN_THE_HEADER)
def test_userinfo_says_its_error_in_the_header(status: int, body: object, headers: list[str], verdict: Verdict) -> None:
    """A disabled account kept its server: Keycloak's userinfo answers with an empty body, and only that was read."""
    assert of_userinfo_answer(status, body, headers).verdict is verdict


@given(headers=st.lists(st.text()))
def test_any_header_can_be_read(headers: list[str]) -> None:
    assert of_userinfo_answer(401, None, headers).verdict is not Verdict.YES


@given(description=st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_quoted_description_is_read_to_its_end(description: str) -> None:
    quoted = description.replace("\\", "\\\\").replace('"', '\\"')
    header = f'Bearer realm="a, b=c", error="invalid_token", error_description="{quoted}"'
    assert bearer_error([header]) == ("invalid_token", description)


@pytest.mark.parametrize(("status", "body", "verdict"), TOKEN.values(), ids=TOKEN)
def test_refresh_grant(status: int, body: object, verdict: Verdict) -> None:
    assert of_token_answer(status, body).verdict is verdict


@pytest.mark.parametrize(("status", "body", "verdict"), USERINFO.values(), ids=USERINFO)
def test_userinfo(status: int, body: object, verdict: Verdict) -> None:
    assert of_userinfo_answer(status, body).verdict is verdict


def test_who_has_to_sign_the_aup_is_told_so() -> None:
    assert "acceptable use policy (AUP) has to be signed" in of_token_answer(400, error("invalid_grant", AUP)).reason


def test_a_fault_of_the_client_calls_for_the_operator() -> None:
    answer = of_token_answer(401, error("unauthorized_client", "Invalid client or Invalid client credentials"))
    assert answer.reason == (
        "The identity provider refuses this hub's client, its operator must act"
        " (unauthorized_client: Invalid client or Invalid client credentials)."
    )


def test_an_answer_that_can_not_be_used_is_told_by_its_status() -> None:
    assert of_token_answer(503, None).reason == (
        "The token end point of the identity provider gave no usable answer (HTTP 503)."
    )


SECRETS = [
    "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "8xLOxBtZp8",
    "NB2HI4DTHIXS6Y3JNRXWO33OFZXXEZZPN5QXK5DIGIXXEZLGOJSXG2C",
    "https://cilogon.org/oauth2/refreshToken/4b1a/1700000000",
    "0123456789abcdef",
    "abcdefghijklmnopqrstuvwxyzABCDEF",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("words", ["Invalid refresh token: {}", "token={}", '"{}"', "{}"])
@pytest.mark.parametrize("code", ["invalid_grant", "invalid_client", "out_of_cheese"])
def test_a_token_that_the_provider_quotes_is_not_repeated(code: str, words: str, secret: str) -> None:
    assert secret not in of_token_answer(400, error(code, words.format(secret))).reason


@pytest.mark.parametrize("secret", SECRETS)
def test_a_token_in_place_of_an_error_code_is_not_repeated(secret: str) -> None:
    assert secret not in of_token_answer(400, error(secret)).reason


@given(status=st.integers(100, 599), code=st.text(), description=st.text())
def test_a_reason_is_one_short_line_without_markup(status: int, code: str, description: str) -> None:
    for of_answer in (of_token_answer, of_userinfo_answer):
        reason = of_answer(status, error(code, description)).reason
        assert reason.isprintable()
        assert len(reason) < 300
        assert not set(reason.replace("hub's", "")) & set("<>&\"'`\\")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "error_description"]) | st.text(), inner),
    max_leaves=8,
)


@given(status=st.integers(100, 599), body=json_values)
def test_any_answer_has_a_verdict_and_none_is_yes(status: int, body: object) -> None:
    for of_answer in (of_token_answer, of_userinfo_answer):
        assert of_answer(status, body).verdict is not Verdict.YES


@given(
    status=st.integers(100, 599),
    code=st.text() | st.sampled_from(["invalid_client", "unauthorized_client", "unauthorized"]),
)
def test_no_code_alone_ends_anybodys_access(status: int, code: str) -> None:
    """Only a known sentence about the account does: our own fault would end everybody's."""
    assert of_token_answer(status, error(code)).verdict is not NO
    assert of_userinfo_answer(status, error(code)).verdict is not NO
