"""XCache by tokens of the facility's own issuer, instead of macaroons or beside them."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymacaroons import Macaroon
from traitlets import TraitError
from traitlets.config import Config

from casa_hub.credentials.base import AccessToken, BearerKind, Credential
from casa_hub.credentials.macaroons import ACTIVITIES
from casa_hub.credentials.xcache import XCache
from casa_hub.errors import CredentialError, Severity
from casa_hub.facility import Facility
from casa_hub.issuer.settings import FacilityIssuer
from tests.support.issuer import CONTENT, issuer_in
from tests.support.issuer import claims_of as verified_claims
from tests.support.minting import HOSTILE, NOW, assert_tells_nothing, public_text, request, write

MACAROON_KEY = bytes(range(64))
AUDIENCE = "https://xcache.example.org:1094"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> FacilityIssuer:
    return issuer_in(tmp_path_factory.mktemp("issuer"))


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("key") / "xcache.key", base64.encodebytes(MACAROON_KEY))


def by_token(issuer: FacilityIssuer | None, **settings: Any) -> XCache:
    made = XCache(**{"credential": "token", "host": "xcache.example.org", **settings})
    made.issuer = issuer
    return made


def by_both(issuer: FacilityIssuer, key_file: str, **settings: Any) -> XCache:
    return by_token(issuer, credential="both", key_file=key_file, site_name="T2_US_Nebraska", **settings)


def claims_of(content: bytes) -> dict[str, Any]:
    return verified_claims(content, AUDIENCE)


def life_of(credential: Credential) -> timedelta:
    assert credential.expires_at is not None
    return credential.expires_at - NOW.replace(microsecond=0)


# What is delivered


def test_a_token_stands_where_programs_look_and_needs_no_shared_key(issuer: FacilityIssuer) -> None:
    minter = by_token(issuer)
    assert minter.check() == []
    assert (minter.key_files, minter.title) == ({}, "XCache token")
    credential = minter.mint(request())
    assert list(credential.files) == ["xcache_token"]
    claims = claims_of(credential.files["xcache_token"])
    assert (claims["scope"], claims["sub"]) == ("storage.read:/store", "alice")
    assert credential.identifiers == {"jti": claims["jti"], "sub": "alice", "aud": AUDIENCE}
    assert credential.expires_at is not None
    assert credential.expires_at.timestamp() == claims["exp"]
    assert credential.summary == f"storage.read:/store at {AUDIENCE}"
    assert minter.environment(request().server, PurePosixPath("/x"))["XCACHE_HOST"] == "xcache.example.org"


def test_with_both_the_macaroon_stays_where_it_is(issuer: FacilityIssuer, key_file: str) -> None:
    """Programs that read xcache_token today, and copies that jobs took, notice nothing."""
    minter = by_both(issuer, key_file)
    assert minter.check() == []
    assert list(minter.key_files) == ["XCache.key_file"]
    credential = minter.mint(request())
    macaroon = Macaroon.deserialize(credential.files["xcache_token"].decode())
    claims = claims_of(credential.files["xcache_jwt"])
    assert credential.identifiers == {
        "identifier": macaroon.identifier,
        "jti": claims["jti"],
        "sub": "alice",
        "aud": AUDIENCE,
    }
    assert credential.summary == (f"DOWNLOAD,LIST below /store at T2_US_Nebraska; storage.read:/store at {AUDIENCE}")


def test_both_end_at_the_time_that_the_audit_tells(issuer: FacilityIssuer, key_file: str) -> None:
    """A macaroon that lives longer than the audit says would be good for a thief when all think that it is over."""
    credential = by_both(issuer, key_file).mint(request())
    assert credential.expires_at is not None
    assert claims_of(credential.files["xcache_jwt"])["exp"] == credential.expires_at.timestamp()
    caveats = [one.caveat_id for one in Macaroon.deserialize(credential.files["xcache_token"].decode()).caveats]
    assert f"before:{credential.expires_at:%Y-%m-%dT%H:%M:%SZ}" in caveats


def test_no_file_ends_in_a_newline(issuer: FacilityIssuer, key_file: str) -> None:
    for content in by_both(issuer, key_file).mint(request()).files.values():
        assert content == content.strip()


@pytest.mark.parametrize("credential", ["macaroon", "token", "both"])
def test_the_files_are_those_that_are_said_to_be_tokens(issuer: FacilityIssuer, key_file: str, credential: str) -> None:
    minter = by_both(issuer, key_file)
    minter.credential = credential
    files = minter.mint(request()).files
    assert list(files) == list(minter.bearer_files)
    for path, content in files.items():
        assert (minter.bearer_files[path] is BearerKind.ISSUED) == (content.count(b".") == 2)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(TraitError, match="credential"):
        XCache(credential="jwt")


# The life


@pytest.mark.parametrize(
    ("credential", "lifetime", "expected"),
    [
        ("macaroon", None, 12 * HOUR),
        ("token", None, 6 * HOUR),
        ("both", None, 6 * HOUR),
        ("token", 3600, HOUR),
        ("token", 82800, 6 * HOUR),
        ("macaroon", 82800, 23 * HOUR),
    ],
)
def test_a_token_lives_for_six_hours_at_most(
    issuer: FacilityIssuer, key_file: str, credential: str, lifetime: int | None, expected: timedelta
) -> None:
    settings = {} if lifetime is None else {"lifetime": lifetime}
    minter = by_token(issuer, credential=credential, key_file=key_file, site_name="T2", **settings)
    assert life_of(minter.mint(request())) == expected == timedelta(seconds=minter.life)


def test_a_longer_life_that_was_asked_for_is_a_warning(issuer: FacilityIssuer) -> None:
    def problems(**settings: Any) -> list[str]:
        minter = XCache(config=Config(XCache={"credential": "token", "host": "x.example.org", **settings}))
        minter.issuer = issuer
        return [f"{one.severity} {one.thing} {one.problem}" for one in minter.check()]

    assert problems() == problems(lifetime=21600) == []
    [said] = problems(lifetime=21601)
    assert said == "warning XCache.lifetime is 21601, but with XCache.credential token it counts as 21600"


def test_on_a_laptop_it_lives_shorter(issuer: FacilityIssuer, key_file: str) -> None:
    for minter in (by_token(issuer), by_both(issuer, key_file)):
        assert life_of(minter.mint_outside(replace(request(), longest=90))) == timedelta(seconds=90)
        assert life_of(minter.mint_outside(replace(request(), longest=10**9))) == 6 * HOUR


# Scope and audience


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/store", "storage.read:/store"),
        ("/store/", "storage.read:/store"),
        ("/", "storage.read:/"),
        ("/store/user/{username}", "storage.read:/store/user/al"),
        ("/store/user/{username}/data", "storage.read:/store/user/al/data"),
    ],
)
def test_the_scope_of_a_user(issuer: FacilityIssuer, path: str, scope: str) -> None:
    """Without a slash at its end, which XRootD drops: it compares components, or else the slash would be of no use."""
    assert claims_of(by_token(issuer, path=path).mint(request("al")).files["xcache_token"])["scope"] == scope


@pytest.mark.parametrize("username", HOSTILE, ids=ascii)
def test_a_hostile_name_gets_one_path_or_nothing(issuer: FacilityIssuer, username: str) -> None:
    minter = by_token(issuer, path="/store/user/{username}", activities=["DOWNLOAD", "UPLOAD"])
    try:
        credential = minter.mint(request(username))
    except CredentialError:
        return
    assert claims_of(credential.files["xcache_token"])["scope"] == (
        f"storage.read:/store/user/{username} storage.create:/store/user/{username}"
    )
    assert len(credential.files["xcache_token"]) < 4096  # the limit of XRootD's ztn


@given(
    username=st.text(min_size=1, max_size=30),
    activities=st.lists(st.sampled_from(ACTIVITIES), min_size=1, unique=True),
    path=st.sampled_from(["/store", "/store/", "/store/{username}", "/{username}/x/", "//a//b"]),
)
def test_a_scope_opens_no_more_than_the_macaroon(username: str, activities: list[str], path: str) -> None:
    minter = XCache(credential="both", activities=activities, path=path)
    try:
        words = minter.scope_for(username).split(" ")
        opened = minter.path_for(username)
    except CredentialError:
        return
    for word in words:
        name, _, below = word.partition(":")
        assert PurePosixPath(below).is_relative_to(PurePosixPath("/" + opened.strip("/").replace("//", "/")))
        assert name != "storage.read" or "DOWNLOAD" in activities
        assert name == "storage.read" or {"UPLOAD", "MANAGE", "DELETE", "UPDATE_METADATA"} & set(activities)


def test_a_path_that_only_a_macaroon_can_open_is_refused(issuer: FacilityIssuer, key_file: str) -> None:
    assert XCache(key_file=key_file, site_name="T2", path="/a b").mint(request()).files
    minter = by_token(issuer, path="/a b")
    with pytest.raises(CredentialError, match="characters that the path of a scope can't have"):
        minter.mint(request())
    assert [(one.severity, one.thing) for one in minter.check()] == [(Severity.ERROR, "XCache.path")]


def test_activities_without_a_scope_are_refused(issuer: FacilityIssuer, key_file: str) -> None:
    assert XCache(key_file=key_file, site_name="T2", activities=["LIST"]).mint(request()).files
    minter = by_token(issuer, activities=["LIST", "READ_METADATA"])
    with pytest.raises(CredentialError, match="have no scope, so a token would allow nothing"):
        minter.mint(request())
    assert [(one.severity, one.thing) for one in minter.check()] == [(Severity.ERROR, "XCache.activities")]


def test_a_scope_that_deletes_although_no_activity_does_is_told(issuer: FacilityIssuer) -> None:
    [problem] = by_token(issuer, activities=["DOWNLOAD", "MANAGE"]).check()
    assert problem.problem.endswith("; of tokens this is storage.modify, which deletes as well")
    for activities in (["UPLOAD"], ["MANAGE", "DELETE"]):
        [problem] = by_token(issuer, activities=activities).check()
        assert "deletes as well" not in problem.problem


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, AUDIENCE),
        ({"port": 443}, "https://xcache.example.org"),
        ({"audience": "https://redirector.example.org"}, "https://redirector.example.org"),
        ({"audience": "https://redirector.example.org", "host": ""}, "https://redirector.example.org"),
    ],
)
def test_the_audience(issuer: FacilityIssuer, settings: dict[str, Any], expected: str) -> None:
    credential = by_token(issuer, **settings).mint(request())
    assert credential.identifiers["aud"] == expected
    claims = jwt.decode(credential.files["xcache_token"], options={"verify_signature": False})
    assert claims["aud"] == expected


@pytest.mark.parametrize("settings", [{"host": ""}, {"audience": "a b"}, {"audience": "ü"}])
def test_an_audience_is_needed(issuer: FacilityIssuer, settings: dict[str, str]) -> None:
    minter = by_token(issuer, **settings)
    with pytest.raises(CredentialError, match=r"XCache\.audience: .* scitokens\.cfg"):
        minter.mint(request())
    assert (Severity.ERROR, "XCache.audience") in [(one.severity, one.thing) for one in minter.check()]


def test_without_an_issuer_there_is_no_token(key_file: str) -> None:
    for minter in (by_token(None), by_token(None, credential="both", key_file=key_file, site_name="T2")):
        with pytest.raises(CredentialError, match="FacilityIssuer"):
            minter.mint(request())
        [problem] = minter.check()
        assert (problem.severity, problem.thing) == (Severity.ERROR, "XCache.credential")
        assert "no issuer of tokens" in problem.problem


def test_nothing_shows_a_token(issuer: FacilityIssuer, key_file: str) -> None:
    minter = by_both(issuer, key_file)
    credential = minter.mint(request())
    for thing in (minter, credential, *minter.check()):
        assert_tells_nothing(thing, MACAROON_KEY, CONTENT)
    for content in credential.files.values():
        assert content.decode()[-60:] not in public_text(credential)


# In a facility


def facility(issuer: FacilityIssuer, **sections: dict[str, Any]) -> Facility:
    facility = {"credentials": ["xcache"], **sections.pop("Facility", {})}
    keys = {"keys": issuer.keys, "vo": issuer.vo, "url": issuer.url, **sections.pop("FacilityIssuer", {})}
    xcache = {"credential": "both", "host": "xcache.example.org", "site_name": "T2", **sections.pop("XCache", {})}
    return Facility(config=Config(Facility=facility, FacilityIssuer=keys, XCache=xcache, **sections))


@pytest.mark.parametrize("file", ["xcache_token", "xcache_jwt"])
def test_the_operator_chooses_which_of_both_programs_find(issuer: FacilityIssuer, key_file: str, file: str) -> None:
    made = facility(issuer, Facility={"bearer_token_file": file}, XCache={"key_file": key_file})
    assert made.check() == []
    minted = made.mint(request())
    assert made.environment(minted, PurePosixPath("/x"))["BEARER_TOKEN_FILE"] == f"/x/{file}"
    assert made.files_outside("xcache") == ("xcache_jwt", "xcache_token")


def test_files_are_known_also_if_tokens_name_the_subject_of_the_provider(issuer: FacilityIssuer, key_file: str) -> None:
    made = facility(issuer, XCache={"key_file": key_file}, FacilityIssuer={"subject": "provider"})
    assert made.files_outside("xcache") == ("xcache_jwt", "xcache_token")


def test_a_file_of_both_is_missed_without_both(issuer: FacilityIssuer) -> None:
    made = facility(issuer, Facility={"bearer_token_file": "xcache_jwt"}, XCache={"credential": "token"})
    [problem] = made.check()
    assert str(problem) == (
        "Facility.bearer_token_file: xcache_jwt needs the credential xcache with XCache.credential: both. "
        "Add that, or choose xcache_token or none."
    )


def test_what_laptops_are_told_of_the_life_is_true(issuer: FacilityIssuer) -> None:
    made = facility(issuer, Facility={"laptop_lifetime": 43200}, XCache={"credential": "token"})
    assert made.lifetime_outside("xcache") == 21600


# Under another name


@pytest.mark.parametrize("file", ["access_token", "xcache/access_token"])
def test_images_that_read_another_file_find_it_by_its_name_and_by_the_variable(
    issuer: FacilityIssuer, key_file: str, file: str
) -> None:
    others = ["dask"] if file == "access_token" else ["bearer"]
    chosen = {"Facility": {"credentials": ["xcache", *others]}, "XCache": {"key_file": key_file, "token_file": file}}
    made = facility(issuer, **chosen)
    assert not [problem for problem in made.check_settings() if problem.severity is Severity.ERROR]
    minted = made.mint(request(token=AccessToken("of.the.user", None)))
    assert {file, "xcache_jwt"} <= minted.files.keys()
    assert "xcache_token" not in minted.files
    assert made.environment(minted, PurePosixPath("/x"))["BEARER_TOKEN_FILE"] == f"/x/{file}"


def test_the_client_of_laptops_gets_it_under_the_name_that_it_knows(issuer: FacilityIssuer, key_file: str) -> None:
    made = facility(issuer, XCache={"key_file": key_file, "token_file": "access_token"})
    assert made.files_outside("xcache") == ("xcache_jwt", "xcache_token")
    assert made.minters["xcache"].mint_outside(request()).files["xcache_token"].startswith(b"MDA")


def test_the_users_own_token_and_the_xcaches_cannot_have_one_file(issuer: FacilityIssuer) -> None:
    both = {"Facility": {"credentials": ["xcache", "bearer"]}}
    made = facility(issuer, **both, XCache={"credential": "token", "token_file": "access_token"})
    [problem] = [problem for problem in made.check() if problem.severity is Severity.ERROR]
    assert problem.problem == "xcache and bearer both write the file access_token"


@pytest.mark.parametrize("file", ["", "../x", "/etc/passwd", "a/b/c", "xcache_jwt"])
def test_a_name_that_cannot_be_a_file_of_its_own_is_refused(file: str) -> None:
    with pytest.raises(TraitError, match=r"XCache\.token_file is .*, must be a name, or a name in one directory, and"):
        XCache(token_file=file)
