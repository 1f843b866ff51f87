"""Answers of the hub that are none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.client.answers import Offer, issued, offers
from casa_hub.client.errors import ClientError
from tests.support.scripted_hub import credential

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_a_credential_is_read() -> None:
    answer = credential(expires_at="2026-03-01T13:00:00+01:00", environment={"XCACHE_HOST": "x", "a b": "dropped"})
    found = issued("xcache", answer)
    assert found.files == {"xcache_token": b"MACAROON"}
    assert found.expires_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert (found.title, found.user, found.environment) == ("XCache macaroon", "alice", {"XCACHE_HOST": "x"})
    assert "MACAROON" not in repr(found)
    assert issued("xcache", credential(expires_at=None)).expires_at is None


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "htcondor"},
        {"files": {}},
        {"files": {"../xcache_token": b""}},
        {"files": {".bashrc": b""}},
        {"expires_at": "soon"},
        {"expires_at": 5},
        {"issued_at": None},
        {"title": "\x1b[2J"},
        {"user": 5},
        {"environment": {"XCACHE_HOST": "x\nexport LD_PRELOAD=y"}},
        {"environment": ["XCACHE_HOST"]},
    ],
)
def test_an_answer_that_is_no_credential_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="xcache: the hub's answer is"):
        issued("xcache", credential(**changed))


def test_a_file_that_is_not_base64_is_refused() -> None:
    with pytest.raises(ClientError):
        issued("xcache", credential() | {"files": {"xcache_token": "not base64!"}})


@given(answer=JSON, key=st.sampled_from(["name", "title", "issued_at", "expires_at", "files", "environment", "user"]))
def test_no_json_breaks_it(answer: Any, key: str) -> None:
    for whole in (answer, credential() | {key: answer}):
        try:
            found = issued("xcache", whole)
        except ClientError:
            continue
        assert found.name == "xcache"
        assert found.files


def test_a_list_is_read() -> None:
    xcache = {"name": "xcache", "title": "XCache macaroon", "lifetime": 3600, "allowed": True, "files": [], "scope": ""}
    user, found = offers({"user": "alice", "credentials": [xcache, xcache | {"lifetime": None, "allowed": "yes"}]})
    assert user == "alice"
    assert found == [Offer("xcache", "XCache macaroon", 3600, True), Offer("xcache", "XCache macaroon", None, False)]


@given(answer=JSON, key=st.sampled_from(["user", "credentials"]))
def test_no_json_breaks_a_list(answer: Any, key: str) -> None:
    for whole in (answer, {"user": "alice", "credentials": []} | {key: answer}, {"user": "a", "credentials": [answer]}):
        try:
            user, found = offers(whole)
        except ClientError:
            continue
        assert isinstance(user, str)
        assert isinstance(found, list)
