"""Audience and scope of a token for a storage, as verifiers compare them."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.credentials.macaroons import ACTIVITIES
from casa_hub.credentials.scopes import audience, storage_path, storage_words


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("xcache.example.org", 1094, "https://xcache.example.org:1094"),
        ("xcache.example.org", 443, "https://xcache.example.org"),
        ("XCache.Example.ORG", 443, "https://xcache.example.org"),
    ],
)
def test_an_audience_is_an_address_in_its_normal_form(host: str, port: int, expected: str) -> None:
    assert audience(host, port) == expected
    assert urlsplit(expected).port in {port, None}


@pytest.mark.parametrize(
    ("activities", "words"),
    [
        (["DOWNLOAD", "LIST"], ["storage.read"]),
        (["DOWNLOAD", "READ_METADATA"], ["storage.read"]),
        (["UPLOAD"], ["storage.create"]),
        (["MANAGE"], ["storage.modify"]),
        (["DELETE", "MANAGE", "UPDATE_METADATA"], ["storage.modify"]),
        (["DOWNLOAD", "UPLOAD", "DELETE"], ["storage.read", "storage.create", "storage.modify"]),
        (["LIST", "READ_METADATA"], []),
    ],
)
def test_activities_become_scopes(activities: list[str], words: list[str]) -> None:
    assert storage_words(activities) == words


@given(st.lists(st.sampled_from(ACTIVITIES), unique=True))
def test_no_scope_says_more_than_the_activities(activities: list[str]) -> None:
    words = storage_words(activities)
    assert len(words) == len(set(words))
    assert ("storage.read" in words) == ("DOWNLOAD" in activities)
    assert ("storage.create" in words) == ("UPLOAD" in activities)
    assert ("storage.modify" in words) == bool({"MANAGE", "DELETE", "UPDATE_METADATA"} & set(activities))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", "/"), ("/store", "/store"), ("/store/", "/store"), ("//store//user/al/", "/store/user/al")],
)
def test_a_path_in_its_normal_form(path: str, expected: str) -> None:
    assert storage_path(path) == expected


@given(st.text(max_size=40).map(lambda text: f"/{text}"))
def test_a_path_is_one_word_of_a_scope_or_is_refused(path: str) -> None:
    """A blank in it would begin another scope."""
    try:
        found = storage_path(path)
    except ValueError:
        return
    assert found.startswith("/")
    assert found.isascii()
    assert f"storage.read:{found}".split() == [f"storage.read:{found}"]
    assert "//" not in found
    assert found == "/" or not found.endswith("/")
    assert [part for part in found.split("/") if part] == [part for part in path.split("/") if part]


@pytest.mark.parametrize("path", ["/a b", "/a storage.modify:/", "/ü", "/a\tb", '/a"b', "/a%20b", "/a?b", "/a#b"])
def test_a_path_that_would_need_an_escape_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no such characters"):
        storage_path(path)
