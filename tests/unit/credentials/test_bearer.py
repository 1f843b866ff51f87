from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jwt
import pytest

from casa_hub.credentials.base import AccessToken
from casa_hub.credentials.bearer import Bearer
from casa_hub.errors import CredentialError
from tests.support.minting import NOW, assert_tells_nothing, public_text, request

LATER = NOW + timedelta(hours=1)


def test_the_users_token_as_it_is() -> None:
    token = jwt.encode({"sub": "alice", "jti": "j-1", "iss": "https://iam.example.org/"}, "k" * 32, "HS256")
    credential = Bearer().mint(request(token=AccessToken(token, LATER, "https://iam.example.org/")))
    assert credential.files == {"access_token": token.encode()}
    assert credential.expires_at == LATER
    assert credential.identifiers == {"iss": "https://iam.example.org/", "jti": "j-1"}
    assert credential.summary == "issued by https://iam.example.org/"


def test_a_token_that_is_no_jwt() -> None:
    credential = Bearer().mint(request(token=AccessToken("opaque-token.~+/==", None)))
    assert credential.files == {"access_token": b"opaque-token.~+/=="}
    assert credential.expires_at is None
    assert credential.identifiers == {}


def test_the_expiry_is_read_from_the_token_where_nobody_said_it() -> None:
    token = jwt.encode({"exp": int(LATER.timestamp())}, "k" * 32, "HS256")
    assert Bearer().mint(request(token=AccessToken(token, None))).expires_at == LATER.replace(microsecond=0)


@pytest.mark.parametrize("exp", ["soon", True, 1e300, -1e300, None, [1]])
def test_an_expiry_that_is_none_is_left_out(exp: object) -> None:
    token = jwt.api_jws.encode(jwt.api_jws.json.dumps({"exp": exp}).encode(), "k" * 32, "HS256")
    assert Bearer().mint(request(token=AccessToken(token, None))).expires_at is None


def test_without_a_token_the_user_is_told_what_to_do() -> None:
    with pytest.raises(CredentialError, match="Log out and in again"):
        Bearer().mint(request())


def test_an_expired_token_is_not_delivered() -> None:
    with pytest.raises(CredentialError, match=r"expired at 2026-11-21 04:00 UTC\. Log out and in again"):
        Bearer().mint(request(token=AccessToken("opaque", NOW)))


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "tokén", "a\0b", 'a"b', "a,b"])
def test_a_value_that_would_break_a_header_is_refused(value: str) -> None:
    with pytest.raises(CredentialError, match="bearer token can't have") as caught:
        Bearer().mint(request(token=AccessToken(value + "SECRETSECRETSECRET\n", LATER)))
    assert_tells_nothing(caught.value, b"SECRETSECRETSECRET")
    assert "SECRET" not in str(caught.value)


def test_nothing_shows_the_token() -> None:
    token = AccessToken("opaque-0123456789", datetime(2030, 1, 1, tzinfo=UTC))
    asked = request(token=token)
    for text in (repr(token), repr(asked), public_text(Bearer().mint(asked))):
        assert "0123456789" not in text
