from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymacaroons import Macaroon, Verifier
from traitlets import TraitError

from casa_hub.credentials.macaroons import mint_macaroon, name_caveat, parse_secret_key
from casa_hub.credentials.xcache import XCache
from casa_hub.errors import CredentialError, Severity
from casa_hub.keys import BadKeyError
from casa_hub.naming import Server
from tests.support.minting import (
    HOSTILE,
    NOW,
    assert_ascii_and_one_line,
    assert_tells_nothing,
    public_text,
    request,
    write,
)

KEY = bytes(range(64))


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    return write(tmp_path / "xcache.key", base64.encodebytes(KEY))


@pytest.fixture
def xcache(key_file: str) -> XCache:
    return XCache(key_file=key_file, site_name="T2_US_Nebraska", host="xcache.example.org")


def macaroon_of(minter: XCache, **user: Any) -> Macaroon:
    return Macaroon.deserialize(minter.mint(request(**user)).files["xcache_token"].decode())


def caveats_of(macaroon: Macaroon) -> list[str]:
    return [caveat.caveat_id for caveat in macaroon.caveats]


# Format


def test_the_golden_vector_that_xrootd_accepted() -> None:
    token = mint_macaroon(
        KEY,
        "T2_US_Nebraska",
        "test-id",
        ["name:alice", "activity:READ_METADATA,LIST,DOWNLOAD", "path:/store", "before:2026-11-21T04:00:00Z"],
    )
    assert token == (
        "MDAxY2xvY2F0aW9uIFQyX1VTX05lYnJhc2thCjAwMTdpZGVudGlmaWVyIHRlc3QtaWQKMDAxM2NpZCBuYW1lOmFsaWNlCjAwMmRjaWQgYWN0"
        "aXZpdHk6UkVBRF9NRVRBREFUQSxMSVNULERPV05MT0FECjAwMTRjaWQgcGF0aDovc3RvcmUKMDAyNGNpZCBiZWZvcmU6MjAyNi0xMS0yMVQw"
        "NDowMDowMFoKMDAyZnNpZ25hdHVyZSC4E1mGzxtJR1VlEvqCbU5gi-usqqOUCnBgTkCF4D8kqAo"
    )


@given(
    key=st.binary(min_size=32, max_size=100),
    # pymacaroons counts characters, not bytes, in these two: they can only be compared in ASCII.
    location=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60),
    identifier=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200),
    caveats=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=100), max_size=6),
)
def test_the_bytes_are_those_of_pymacaroons(key: bytes, location: str, identifier: str, caveats: list[str]) -> None:
    theirs = Macaroon(location=location, identifier=identifier, key=key)
    for caveat in caveats:
        theirs.add_first_party_caveat(caveat)
    assert mint_macaroon(key, location, identifier, caveats) == theirs.serialize()


def test_a_short_key_mints_nothing() -> None:
    assert mint_macaroon(KEY[:32], "T2", "id", [])
    with pytest.raises(ValueError, match="at least 32"):
        mint_macaroon(KEY[:31], "T2", "id", [])


def test_a_value_that_doesnt_fit_is_refused() -> None:
    longest = "x" * (0xFFFF - len("cid") - 6)
    assert mint_macaroon(KEY, "T2", "id", [longest])
    with pytest.raises(ValueError, match="too long"):
        mint_macaroon(KEY, "T2", "id", [longest + "x"])


# What is in it


def test_the_four_caveats_in_the_form_that_xrootd_reads(xcache: XCache) -> None:
    macaroon = macaroon_of(xcache)
    assert macaroon.location == "T2_US_Nebraska"
    assert caveats_of(macaroon) == [
        "name:alice",
        "activity:DOWNLOAD,LIST",
        "path:/store",
        "before:2026-11-21T16:00:00Z",
    ]
    verifier = Verifier()
    verifier.satisfy_general(lambda _: True)
    assert verifier.verify(macaroon, KEY)


def test_expiry_is_what_the_macaroon_says(xcache: XCache) -> None:
    xcache.lifetime = 1
    credential = xcache.mint(request())
    assert credential.expires_at == datetime(2026, 11, 21, 4, 0, 1, tzinfo=UTC)
    assert credential.issued_at == NOW


def test_the_file_has_one_line_without_end(xcache: XCache) -> None:
    """Whoever puts the file's content into an HTTP header gets a refusal from XRootD for a newline."""
    files = xcache.mint(request()).files
    assert list(files) == ["xcache_token"]
    assert re.fullmatch(rb"[A-Za-z0-9_-]+", files["xcache_token"])


def test_the_identifier_tells_hub_user_and_server(xcache: XCache) -> None:
    credential = xcache.mint(request("bob", "gpu", hub_id="af-1"))
    identifier = credential.identifiers["identifier"]
    assert re.fullmatch(r"af-1/bob--gpu/[0-9a-f]{32}", identifier)
    assert Macaroon.deserialize(credential.files["xcache_token"].decode()).identifier == identifier


def test_two_servers_and_two_mints_have_different_macaroons(xcache: XCache) -> None:
    tokens = [xcache.mint(request("bob", name)).files["xcache_token"] for name in ("", "", "gpu")]
    assert len(set(tokens)) == 3


@pytest.mark.parametrize("username", HOSTILE, ids=ascii)
def test_hostile_names_make_sound_macaroons(xcache: XCache, username: str) -> None:
    macaroon = macaroon_of(xcache, username=username, hub_id="hub ü\n")
    assert len(caveats_of(macaroon)) == 4
    for text in (macaroon.identifier, *caveats_of(macaroon)):
        assert_ascii_and_one_line(text)
    assert len(macaroon.serialize()) < 4096  # the limit of XRootD's ztn


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_different_names_stay_different(one: str, other: str) -> None:
    assert (name_caveat(one) == name_caveat(other)) == (one == other)
    assert_ascii_and_one_line(name_caveat(one))
    assert len(name_caveat(one)) <= len("name:") + 200


def test_a_long_name_is_not_the_name_of_somebody_else() -> None:
    names = {name_caveat("a" * length) for length in range(1, 256)}
    assert len(names) == 255
    abridged = name_caveat("a" * 255).removeprefix("name:")
    assert name_caveat(abridged) != name_caveat("a" * 255)


def test_without_a_user_name_there_is_no_macaroon(xcache: XCache) -> None:
    with pytest.raises(CredentialError, match="is empty"):
        xcache.mint(request(""))


# The path


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/store", "/store"),
        ("/store/", "/store/"),
        ("/", "/"),
        ("/store/user/{username}", "/store/user/al/"),
        ("/store/user/{username}/", "/store/user/al/"),
        ("/store/user/{username}/data", "/store/user/al/data"),
    ],
)
def test_the_path_of_a_user(xcache: XCache, template: str, path: str) -> None:
    xcache.path = template
    assert f"path:{path}" in caveats_of(macaroon_of(xcache, username="al"))
    assert not [problem for problem in xcache.check() if problem.severity is Severity.ERROR]


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_no_users_path_is_the_beginning_of_anothers(one: str, other: str) -> None:
    """XRootD 5 compares the beginning of the text: a path without a slash at its end would open more than it says."""
    minter = XCache(path="/store/user/{username}")
    try:
        paths = [minter.path_for(username) for username in (one, other)]
    except CredentialError:
        return
    for username, path in zip((one, other), paths, strict=True):
        assert PurePosixPath(path).parent == PurePosixPath("/store/user")
        assert PurePosixPath(path).name == username not in {".", ".."}
    assert one == other or not paths[1].startswith(paths[0])


@pytest.mark.parametrize("username", [name for name in HOSTILE if not re.fullmatch(r"(?i)[a-z]+(@example.org)?", name)])
def test_a_name_that_is_no_directory_gets_no_path_of_its_own(xcache: XCache, username: str) -> None:
    xcache.path = "/store/user/{username}"
    with pytest.raises(CredentialError, match=r"can't be a directory of XCache\.path"):
        xcache.mint(request(username))


def test_a_name_that_is_a_directory_does(xcache: XCache) -> None:
    xcache.path = "/store/user/{username}"
    for username in ("alice", "Alice", "alice@example.org", "a.b-c_d+e", "0x"):
        assert xcache.path_for(username) == f"/store/user/{username}/"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "store",
        "{username}",
        "/store/../x",
        "/store/.",
        "/store/u{username}",
        "/store/{user}",
        "/s\n",
        "/{username}x",
    ],
)
def test_a_path_that_xrootd_doesnt_match_is_refused(xcache: XCache, path: str) -> None:
    xcache.path = path
    with pytest.raises(CredentialError, match=r"XCache\.path"):
        xcache.mint(request())
    assert [(problem.severity, problem.thing) for problem in xcache.check()] == [(Severity.ERROR, "XCache.path")]


# Settings


@pytest.mark.parametrize(
    ("lifetime", "text"),
    [(0, "should not be less than 1"), (-1, "should not be less than 1"), (82801, "at most 82800"), (86400, "82800")],
)
def test_a_lifetime_that_xrootd_refuses_is_refused(lifetime: int, text: str) -> None:
    with pytest.raises(TraitError, match=text):
        XCache(lifetime=lifetime)


def test_the_longest_lifetime(xcache: XCache) -> None:
    xcache.lifetime = 82800
    expires_at = xcache.mint(request()).expires_at
    assert expires_at is not None
    assert expires_at - NOW <= timedelta(hours=23)


@pytest.mark.parametrize("activities", [[], ["download"], ["DOWNLOAD, LIST"], ["READ"], [""]])
def test_activities_that_xrootd_ignores_are_refused(activities: list[str]) -> None:
    with pytest.raises(TraitError, match="Choose from READ_METADATA"):
        XCache(activities=activities)


@pytest.mark.parametrize("word", ["UPLOAD", "MANAGE", "DELETE", "UPDATE_METADATA"])
def test_an_activity_that_writes_is_warned_of(xcache: XCache, word: str) -> None:
    assert xcache.check() == []
    xcache.activities = ["DOWNLOAD", word]
    (problem,) = xcache.check()
    assert problem.severity is Severity.WARNING
    assert word in problem.problem


@pytest.mark.parametrize("site_name", ["", "T2 US", "T2\n", "ü"])
def test_a_site_name_is_needed(xcache: XCache, site_name: str) -> None:
    xcache.site_name = site_name
    with pytest.raises(CredentialError, match=r"XCache\.site_name"):
        xcache.mint(request())
    assert [problem.thing for problem in xcache.check()] == ["XCache.site_name"]


def test_servers_learn_host_and_port(xcache: XCache) -> None:
    directory = PurePosixPath("/etc/cmsaf-secrets")
    assert xcache.environment(Server("", "alice"), directory) == {
        "XCACHE_HOST": "xcache.example.org",
        "XCACHE_PORT": "1094",
    }
    xcache.host = ""
    assert xcache.environment(Server("", "alice"), directory) == {}
    assert [(problem.severity, problem.thing) for problem in xcache.check()] == [(Severity.WARNING, "XCache.host")]


def test_a_host_with_a_port_is_refused(xcache: XCache) -> None:
    xcache.host = "xcache.example.org:1094"
    assert [(problem.severity, problem.thing) for problem in xcache.check()] == [(Severity.ERROR, "XCache.host")]


# The key file: each line was tried with XRootD 5.5.3 and 6.1.0

ONE_LINE = base64.b64encode(KEY)
READ = {
    "as openssl rand writes it": base64.encodebytes(KEY),
    "one line": ONE_LINE + b"\n",
    "CRLF": base64.encodebytes(KEY).replace(b"\n", b"\r\n"),
    "blank lines around": b"\n\n" + base64.encodebytes(KEY) + b"\n\n",
    "blanks before": b"   " + ONE_LINE + b"\n",
    "two lines, the last without end": base64.encodebytes(KEY).rstrip(b"\n"),
}


@pytest.mark.parametrize("case", READ)
def test_keys_that_xrootd_reads(case: str) -> None:
    key = parse_secret_key(READ[case])
    assert (key.value, key.starts_xrootd) == (KEY, True)


def test_a_single_line_without_end_is_warned_of(xcache: XCache, key_file: str) -> None:
    """Typical of a Kubernetes Secret; XRootD would not start with it, but has another copy perhaps."""
    before = macaroon_of(xcache).identifier
    write(Path(key_file), ONE_LINE)
    assert macaroon_of(xcache).identifier != before
    (problem,) = xcache.check()
    assert problem.severity is Severity.WARNING
    assert "newline" in problem.problem


REFUSED = {
    "31 bytes": (base64.encodebytes(KEY[:31]), "holds 31 bytes"),
    "raw": (os.urandom(64), "is not base64"),
    "url-safe": (base64.urlsafe_b64encode(b"\xfb\xff" * 32) + b"\n", "url-safe"),
    "blanks": (b"  \n\n", "holds no key"),
    "text": (b"this is not a key, but it is long enough for one\n", "is not base64"),
    "a blank inside": (ONE_LINE[:40] + b" " + ONE_LINE[40:] + b"\n", "is not base64"),
    "two keys": (base64.encodebytes(KEY[:40]) + base64.encodebytes(KEY[:40]), "is not base64"),
    "a long line": (base64.b64encode(KEY * 16) + b"\n", "more than 1000 characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_xrootd_doesnt_read_the_same_way(xcache: XCache, key_file: str, case: str) -> None:
    content, problem = REFUSED[case]
    with pytest.raises(BadKeyError, match=problem) as caught:
        parse_secret_key(content)
    assert_tells_nothing(caught.value, content, KEY)
    write(Path(key_file), content)
    with pytest.raises(CredentialError, match=problem):
        xcache.mint(request())
    assert [found.severity for found in xcache.check()] == [Severity.ERROR]


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, whose reader XRootD uses")
@given(
    key=st.binary(min_size=0, max_size=2000),
    width=st.integers(4, 2800),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    alphabet=st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]),
)
def test_what_is_accepted_openssl_reads_the_same_way(
    key: bytes, width: int, end: str, last: bool, alphabet: Any
) -> None:
    text = alphabet(key).decode()
    content = end.join(text[i : i + width] for i in range(0, len(text), width)) + (end if last else "")
    try:
        ours = parse_secret_key(content.encode())
    except BadKeyError:
        return
    theirs = subprocess.run(
        ["openssl", "base64", "-d"], input=content.encode(), capture_output=True, check=False
    ).stdout
    assert theirs == (ours.value if ours.starts_xrootd else b"")


# Secrets


def test_nothing_shows_key_or_macaroon(xcache: XCache) -> None:
    credential = xcache.mint(request())
    for thing in (xcache, credential, xcache._key, xcache._key.read(xcache.key_file), *xcache.check()):
        assert_tells_nothing(thing, KEY)
    assert credential.files["xcache_token"].decode()[-60:] not in public_text(credential)


def test_a_request_can_shorten_the_life_and_not_lengthen_it(xcache: XCache) -> None:
    for longest, expected in ((90, 90), (10**9, xcache.lifetime)):
        expires_at = xcache.mint_outside(replace(request(), longest=longest)).expires_at
        assert expires_at == NOW.replace(microsecond=0) + timedelta(seconds=expected)
