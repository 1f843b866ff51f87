"""Records as they are found: of this version and others, edited, or no record at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.record import (
    EDITED,
    NEWER,
    VERSION,
    CredentialRecord,
    Replaced,
    ServerRecord,
    ToBlock,
    Unreadable,
    parse,
    parse_text,
    to_block,
)

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
END = NOW + timedelta(hours=12)
OLDER = Replaced({"jti": "0"}, NOW + timedelta(hours=4))
XCACHE = CredentialRecord(NOW, END, {"jti": "1"}, {"generation": "1"}, ("xcache_token",), 1, (OLDER,))
DASK = CredentialRecord(NOW, None, {"ca": "2"}, {}, ("ca.pem", "hostcert.pem"))
RECORD = ServerRecord(
    '["", "ada", ""]', "0" * 32, 1, {"xcache": XCACHE, "dask": DASK}, {"bearer": "access token: the user has none."}
)
#: As every version of the package that writes records of version 2 has written this one.
TEXT = (
    '{"version": 2, "server": "[\\"\\", \\"ada\\", \\"\\"]", "start_id": "00000000000000000000000000000000", '
    '"order": 1, '
    '"credentials": {"xcache": {"issued_at": "2026-08-01T12:00:00+00:00", "expires_at": "2026-08-02T00:00:00+00:00", '
    '"identifiers": {"jti": "1"}, "state": {"generation": "1"}, "files": ["xcache_token"], "order": 1, '
    '"earlier": [{"identifiers": {"jti": "0"}, "expires_at": "2026-08-01T16:00:00+00:00"}]}, '
    '"dask": {"issued_at": "2026-08-01T12:00:00+00:00", "expires_at": null, "identifiers": {"ca": "2"}, "state": {}, '
    '"files": ["ca.pem", "hostcert.pem"], "order": 0, "earlier": []}}, '
    '"missing": {"bearer": "access token: the user has none."}}'
)
ALL = [
    ToBlock("xcache", {"jti": "0"}, OLDER.expires_at),
    ToBlock("xcache", {"jti": "1"}, END),
    ToBlock("dask", {"ca": "2"}, None),
]


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TEXT)
    return found


def test_a_record_on_the_wire_in_full() -> None:
    assert json.dumps(RECORD.to_document()) == TEXT
    assert parse_text(TEXT) == RECORD


def test_a_record_of_the_first_version_is_read() -> None:
    old = document()
    old["version"] = 1
    del old["order"]
    for entry in old["credentials"].values():
        del entry["order"], entry["earlier"]
    read = parse(old)
    assert isinstance(read, ServerRecord)
    assert read.order == 0
    assert read.credentials["dask"] == DASK
    assert (read.credentials["xcache"].order, read.credentials["xcache"].earlier) == (0, ())


@pytest.mark.parametrize(
    "edit",
    [
        {"issued_at": None},
        {"issued_at": "2026-11-21"},
        {"order": "1"},
        {"order": True},
        {"earlier": [{}]},
        {"state": []},
        {"state": {"generation": 1}},
        {"files": [7]},
    ],
    ids=str,
)
def test_an_edited_entry_costs_itself_only(edit: dict[str, Any]) -> None:
    found = document()
    found["credentials"]["xcache"] |= edit
    read = parse(found)
    assert isinstance(read, ServerRecord)
    assert read.credentials == {"dask": DASK}
    assert set(read.unreadable) == {"xcache"}
    assert read.to_document()["credentials"]["xcache"] == found["credentials"]["xcache"], "it isn't lost"
    blocked = to_block(read, NOW)
    assert ToBlock("dask", {"ca": "2"}, None) in blocked
    [own] = [one for one in blocked if one.credential == "xcache" and one.identifiers == {"jti": "1"}]
    assert own.expires_at == END
    assert "edited" in own.problem


@pytest.mark.parametrize(
    ("edit", "identifiers", "expires_at"),
    [
        ({"expires_at": "never"}, {"jti": "1"}, None),
        ({"expires_at": 7}, {"jti": "1"}, None),
        ({"expires_at": "2026-08-02T00:00:00"}, {"jti": "1"}, None),  # of which time zone?
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, {"jti": "1"}, None),
        ({"identifiers": "1"}, {}, END),
        ({"identifiers": {"jti": "1", "count": 1}}, {"jti": "1"}, END),
        ({"earlier": None}, {"jti": "1"}, END),
    ],
    ids=str,
)
def test_what_can_be_read_of_an_edited_entry_is_told(
    edit: dict[str, Any], identifiers: dict[str, str], expires_at: datetime | None
) -> None:
    found = document()
    found["credentials"]["xcache"] |= edit
    blocked = [one for one in to_block(parse(found), NOW) if one.credential == "xcache"]
    assert (blocked[-1].identifiers, blocked[-1].expires_at) == (identifiers, expires_at)
    assert all(one.problem for one in blocked)
    assert len(blocked) == (1 if "earlier" in edit else 2), "what it replaced is told, too"


@pytest.mark.parametrize("entry", [None, [], "SECRET", 7])
def test_an_entry_of_which_nothing_can_be_read_is_told_all_the_same(entry: object) -> None:
    found = document()
    found["credentials"]["xcache"] = entry
    [one] = [one for one in to_block(parse(found), NOW) if one.credential == "xcache"]
    assert (one.identifiers, one.expires_at) == ({}, None)
    assert "edited" in one.problem
    assert "SECRET" not in repr(parse(found)) + repr(one)


def test_a_record_of_a_newer_version_is_told_of_and_never_changed() -> None:
    found = document() | {"version": VERSION + 1, "generations": [1]}
    read = parse(found)
    assert isinstance(read, Unreadable)
    assert (read.why, read.to_document()) == (NEWER, found)
    assert [(one.credential, one.identifiers, one.expires_at) for one in to_block(read, NOW)] == [
        (one.credential, one.identifiers, one.expires_at) for one in ALL
    ]
    assert {one.problem for one in to_block(read, NOW)} == {NEWER}


@pytest.mark.parametrize("edit", [{"version": 0}, {"version": "2"}, {"version": None}, {"order": None}, {"order": "1"}])
def test_a_record_that_was_edited_as_a_whole_is_told_of(edit: dict[str, Any]) -> None:
    read = parse(document() | edit)
    assert isinstance(read, Unreadable)
    assert read.why == EDITED
    assert [one.identifiers for one in to_block(read, NOW)] == [one.identifiers for one in ALL]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "[" * 100_000, '{"version": 2, "credentials": []}'])
def test_no_record_at_all_is_told_of_once(text: str | None) -> None:
    read = parse_text(text)
    assert isinstance(read, Unreadable)
    assert to_block(read, NOW) == [ToBlock("", {}, None, EDITED)]


def test_only_what_may_still_be_valid_is_to_be_blocked() -> None:
    assert to_block(RECORD, NOW) == ALL
    assert OLDER.expires_at is not None
    assert to_block(RECORD, OLDER.expires_at) == ALL[1:]
    assert to_block(RECORD, END) == ALL[2:]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
#: An entry that is right but for some of its fields.
ENTRIES = st.builds(
    lambda edits: document()["credentials"]["xcache"] | edits,
    st.dictionaries(st.sampled_from(sorted(document()["credentials"]["xcache"])), JSON),
)
DOCUMENTS = JSON | st.fixed_dictionaries(
    {
        "version": JSON | st.sampled_from([0, 1, 2, 3]),
        "order": JSON | st.just(1),
        "credentials": JSON | st.dictionaries(st.text(max_size=5), JSON | ENTRIES, max_size=3),
    },
    optional={"missing": JSON, "server": JSON, "start_id": JSON},
)


@given(found=DOCUMENTS)
def test_each_entry_of_whatever_was_found_is_renewed_or_told_of(found: Any) -> None:
    read = parse(found)
    entries = found.get("credentials") if isinstance(found, dict) else None
    names = set(entries) if isinstance(entries, dict) else set()
    told = {one.credential for one in to_block(read, NOW)}
    if isinstance(read, Unreadable):
        expired = {name for name, entry in read.credentials.items() if entry.expires_at and entry.expires_at <= NOW}
        assert names <= told | expired
        assert told
        assert read.to_document() == found
    else:
        assert read.names == names
        assert not read.credentials.keys() & read.unreadable.keys()
        assert parse_text(json.dumps(read.to_document())) == read
