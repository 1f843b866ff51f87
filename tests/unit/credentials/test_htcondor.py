from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.idtokens import master_key, mint_idtoken, scramble
from casa_hub.errors import CredentialError, Severity
from casa_hub.naming import Server
from tests.support.minting import HOSTILE, NOW, assert_tells_nothing, public_text, request, write

CLEAR = bytes(range(64))
DIRECTORY = PurePosixPath("/etc/cmsaf-secrets")


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    return write(tmp_path / "condor.key", scramble(CLEAR))


def htcondor(key_file: str, **settings: Any) -> HTCondor:
    pool = {
        "key_file": key_file,
        "trust_domain": "pool.example.org",
        "uid_domain": "pool.example.org",
        "collector": "condor.example.org",
        "schedd": "submit.example.org",
        "subject": "" if "subject_map" in settings else "{username}",
    }
    return HTCondor(**(pool | settings))


def claims_of(minter: HTCondor, **user: Any) -> dict[str, Any]:
    token = minter.mint(request(**user)).files["condor_token"].decode().strip()
    key = master_key(scramble(CLEAR), minter.key_id)
    return jwt.decode(token, key, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False})


# Format


def test_scrambling_is_its_own_inverse() -> None:
    assert scramble(b"\0\0\0\0\0") == b"\xde\xad\xbe\xef\xde"
    for length in range(10):
        assert scramble(scramble(CLEAR[:length])) == CLEAR[:length]


def test_only_the_pool_key_is_doubled() -> None:
    assert master_key(scramble(CLEAR), "POOL") == master_key(scramble(CLEAR + CLEAR), "other")
    assert master_key(scramble(CLEAR), "POOL") != master_key(scramble(CLEAR), "other")
    assert master_key(scramble(CLEAR), "one") == master_key(scramble(CLEAR), "other")


@given(
    key=st.binary(min_size=32, max_size=32),
    key_id=st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True),
    claims=st.dictionaries(st.text(max_size=10), st.text() | st.integers(), max_size=6),
)
def test_the_bytes_are_those_of_pyjwt(key: bytes, key_id: str, claims: dict[str, str | int]) -> None:
    claims = {name: value for name, value in claims.items() if name not in jwt.api_jwt.PyJWT().options}
    theirs = jwt.api_jws.encode(
        jwt.api_jws.json.dumps(claims, separators=(",", ":")).encode(),
        key,
        "HS256",
        headers={"kid": key_id, "typ": None},
    )
    assert mint_idtoken(key, key_id, claims) == theirs


def test_the_claims_are_those_of_condor_token_create(key_file: str) -> None:
    minter = htcondor(key_file, key_id="hub", lifetime=60)
    credential = minter.mint(request())
    token = credential.files["condor_token"].decode().strip()
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "hub"}
    issued_at = int(datetime(2026, 11, 21, 4, tzinfo=UTC).timestamp())
    assert claims_of(minter) | {"jti": ""} == {
        "sub": "alice@pool.example.org",
        "iss": "pool.example.org",
        "iat": issued_at,
        "exp": issued_at + 60,
        "jti": "",
        "scope": "condor:/READ condor:/WRITE",
    }
    # HTCondor 23 can't read a time with a point.
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (type(claims["iat"]), type(claims["exp"])) == (int, int)
    assert credential.expires_at == datetime(2026, 11, 21, 4, 1, tzinfo=UTC)
    assert credential.identifiers == {"jti": claims["jti"], "sub": "alice@pool.example.org"}


def test_the_token_lies_also_alone_in_a_directory_in_one_line(key_file: str) -> None:
    files = htcondor(key_file).mint(request()).files
    assert set(files) == {"condor_token", "condor_tokens.d/condor_token"}
    assert len(set(files.values())) == 1
    assert re.fullmatch(rb"[A-Za-z0-9_.-]+\n", files["condor_token"])


def test_the_identifier_tells_hub_user_and_server(key_file: str) -> None:
    minter = htcondor(key_file)
    identifiers = [claims_of(minter, username="bob", name="gpu", hub_id="af-1")["jti"] for _ in range(2)]
    assert all(re.fullmatch(r"af-1/bob--gpu/[0-9a-f]{32}", identifier) for identifier in identifiers)
    assert identifiers[0] != identifiers[1]


# Who somebody is at the pool


def test_there_is_no_default_subject(key_file: str) -> None:
    minter = htcondor(key_file, subject="")
    with pytest.raises(CredentialError, match=r"HTCondor\.subject: is not set"):
        minter.mint(request())
    assert [(problem.severity, problem.thing) for problem in minter.check()] == [(Severity.ERROR, "HTCondor.subject")]


def test_template_and_map_exclude_each_other(key_file: str) -> None:
    minter = htcondor(key_file, subject="{username}", subject_map={"alice": "asmith"})
    with pytest.raises(CredentialError, match="both set"):
        minter.mint(request())


@pytest.mark.parametrize(
    ("template", "username", "account"),
    [
        ("{username}", "alice", "alice"),
        ("{username}", "a.b-c_9", "a.b-c_9"),
        ("{username}", "a" * 64, "a" * 64),
        ("af-{username}", "9lives", "af-9lives"),
        ("af-{username}", "root", "af-root"),
    ],
)
def test_an_account_of_the_users_own(key_file: str, template: str, username: str, account: str) -> None:
    minter = htcondor(key_file, subject=template)
    assert claims_of(minter, username=username)["sub"] == f"{account}@pool.example.org"
    assert minter.check() == []


NO_ACCOUNT = [(name, "{username}") for name in HOSTILE if name != "alice"]
# A prefix makes accounts of names such as "-rf" and "..": no path is made of them.
NO_ACCOUNT += [(name, "af-{username}") for name in HOSTILE if not re.fullmatch(r"[a-z.-]{1,61}", name)]


@pytest.mark.parametrize(("username", "template"), NO_ACCOUNT, ids=ascii)
def test_a_name_that_is_no_account_is_refused_and_never_altered(key_file: str, template: str, username: str) -> None:
    with pytest.raises(CredentialError, match="is not an account name"):
        htcondor(key_file, subject=template).mint(request(username))


@given(
    st.text(max_size=70),
    st.text(max_size=70),
    st.sampled_from(["{username}", "af-{username}", "{username}.{username}"]),
)
def test_different_users_are_different_at_the_pool(one: str, other: str, template: str) -> None:
    minter = HTCondor(subject=template)
    try:
        accounts = [minter.local_part(username) for username in (one, other)]
    except CredentialError:
        return
    assert (accounts[0] == accounts[1]) == (one == other)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_.-]{0,63}", account) for account in accounts)
    assert accounts[0].casefold() != accounts[1].casefold() or one == other


@pytest.mark.parametrize("username", ["condor", "root", "condor_pool"])
def test_a_name_that_htcondor_takes_for_a_daemon_is_refused(key_file: str, username: str) -> None:
    with pytest.raises(CredentialError, match="daemon or an administrator"):
        htcondor(key_file).mint(request(username))
    with pytest.raises(CredentialError, match="daemon or an administrator"):
        htcondor(key_file, subject_map={"alice": username}).mint(request())
    shared = htcondor(key_file, subject=username, accounting_group="group_cms")
    assert [problem.severity for problem in shared.check()] == [Severity.ERROR]


@pytest.mark.parametrize("username", ["Root", "CONDOR", "Condor_Pool", "condor@pool.example.org", "root "])
def test_nor_is_it_possible_in_another_writing(key_file: str, username: str) -> None:
    with pytest.raises(CredentialError, match="is not an account name"):
        htcondor(key_file).mint(request(username))


@pytest.mark.parametrize(
    "template", ["{username}@pool", "{username} ", "*", "{user}", "Alice-{username}", "a/{username}"]
)
def test_a_template_that_fits_nobody_is_found_before_a_user_does(key_file: str, template: str) -> None:
    minter = htcondor(key_file, subject=template, accounting_group="group_cms")
    assert [problem.severity for problem in minter.check()] == [Severity.ERROR]
    with pytest.raises(CredentialError):
        minter.mint(request())


def test_a_map_names_the_accounts(key_file: str) -> None:
    minter = htcondor(key_file, subject_map={"álice": "cms0042", "bob": "cms0043"})
    assert claims_of(minter, username="álice")["sub"] == "cms0042@pool.example.org"
    assert minter.check() == []
    with pytest.raises(CredentialError, match=r"is not in HTCondor\.subject_map"):
        minter.mint(request("mallory"))


def test_a_map_names_the_accounts_however_its_names_are_written(key_file: str) -> None:
    """`ASmith`, as the provider shows the name, gave asmith nothing: user names of the hub are lower case."""
    minter = htcondor(key_file, subject_map={"ASmith": "cms0042"})
    assert claims_of(minter, username="asmith")["sub"] == "cms0042@pool.example.org"
    (problem,) = minter.check()
    assert "'ASmith' is read as 'asmith'" in str(problem)
    minter = htcondor(key_file, subject_map={"ASmith": "cms0042", "asmith": "cms0043"})
    assert "two different entries for the user 'asmith'" in str(minter.check())


@pytest.mark.parametrize(
    "who", [{"subject": "submituser"}, {"subject_map": {"alice": "cms", "bob": "cms", "carol": "c"}}]
)
def test_sharing_an_account_must_be_declared(key_file: str, who: dict[str, Any]) -> None:
    minter = htcondor(key_file, **who)
    with pytest.raises(CredentialError, match=r"several users the account '(submituser|cms)'"):
        minter.mint(request())
    assert [problem.severity for problem in minter.check()] == [Severity.ERROR]

    declared = htcondor(key_file, **who, accounting_group="group_cms")
    assert declared.check() == []
    subjects = {claims_of(declared, username=username)["sub"] for username in ("alice", "bob")}
    assert len(subjects) == 1


def test_a_map_may_share_one_account_and_not_another(key_file: str) -> None:
    minter = htcondor(key_file, subject_map={"alice": "cms", "bob": "cms", "carol": "c"})
    assert claims_of(minter, username="carol")["sub"] == "c@pool.example.org"


def test_jobs_of_an_accounting_group_are_counted_by_user(key_file: str) -> None:
    minter = htcondor(key_file, subject="submituser", accounting_group="group_cms")
    environment = minter.environment(Server("", "bob", "gpu"), DIRECTORY)
    assert environment["_CONDOR_SUBMIT_EXPRS"] == "AccountingGroup"
    assert environment["_CONDOR_AccountingGroup"] == '"group_cms.bob"'
    for username in HOSTILE:
        group = minter.environment(Server("", username), DIRECTORY)["_CONDOR_AccountingGroup"]
        assert re.fullmatch(r'"group_cms\.[a-z0-9-]+"', group)


def test_an_accounting_group_is_a_name(key_file: str) -> None:
    minter = htcondor(key_file, accounting_group='x" || true || "')
    assert [problem.thing for problem in minter.check()] == ["HTCondor.accounting_group"]


# Settings


@pytest.mark.parametrize("trait", ["trust_domain", "uid_domain", "key_id"])
@pytest.mark.parametrize("value", ["", "a b", "x\n", "ü"])
def test_the_pool_must_be_described(key_file: str, trait: str, value: str) -> None:
    minter = htcondor(key_file, **{trait: value})
    with pytest.raises(CredentialError, match=rf"HTCondor\.{trait}"):
        minter.mint(request())
    assert [(problem.severity, problem.thing) for problem in minter.check()] == [(Severity.ERROR, f"HTCondor.{trait}")]


@pytest.mark.parametrize("scopes", [[], ["read"], ["FOO"], ["READ WRITE"], [""], ["READ", "*"]])
def test_scopes_that_htcondor_takes_for_no_limit_are_refused(scopes: list[str]) -> None:
    with pytest.raises(TraitError, match="READ and WRITE"):
        HTCondor(scopes=scopes)


def test_rights_over_the_pool_are_warned_of(key_file: str) -> None:
    minter = htcondor(key_file, scopes=["READ", "ADMINISTRATOR"])
    assert claims_of(minter)["scope"] == "condor:/READ condor:/ADMINISTRATOR"
    (problem,) = minter.check()
    assert problem.severity is Severity.WARNING
    assert "ADMINISTRATOR" in problem.problem


@pytest.mark.parametrize("lifetime", [0, -5])
def test_a_token_that_never_lived_is_refused(lifetime: int) -> None:
    with pytest.raises(TraitError, match=r"'lifetime' trait of (a|an) HTCondor instance should not be less than 1"):
        HTCondor(lifetime=lifetime)


def test_servers_learn_the_pool(key_file: str) -> None:
    assert htcondor(key_file).environment(Server("", "alice"), DIRECTORY) == {
        "CONDOR_HOST": "condor.example.org",
        "COLLECTOR_NAME": "pool.example.org",
        "SCHEDD_HOST": "submit.example.org",
        "UID_DOMAIN": "pool.example.org",
        "_CONDOR_SEC_TOKEN_DIRECTORY": "/etc/cmsaf-secrets/condor_tokens.d",
    }


def test_what_is_not_set_is_left_to_the_image(key_file: str) -> None:
    minter = htcondor(key_file, collector="", schedd="")
    environment = minter.environment(Server("", "alice"), DIRECTORY)
    assert {"CONDOR_HOST", "SCHEDD_HOST"}.isdisjoint(environment)
    assert [(problem.severity, problem.thing) for problem in minter.check()] == [
        (Severity.WARNING, "HTCondor.collector"),
        (Severity.WARNING, "HTCondor.schedd"),
    ]


# The key file


def test_a_replaced_key_signs_the_next_token(key_file: str) -> None:
    minter = htcondor(key_file)
    assert claims_of(minter)
    write(Path(key_file), scramble(bytes(64)))
    with pytest.raises(jwt.InvalidSignatureError):
        claims_of(minter)


@pytest.mark.parametrize(("length", "usable"), [(1, False), (31, False), (32, True), (33, True), (1000, True)])
def test_a_short_key_is_refused(key_file: str, length: int, usable: bool) -> None:
    write(Path(key_file), scramble(os.urandom(length)))
    minter = htcondor(key_file)
    if usable:
        assert minter.mint(request())
    else:
        with pytest.raises(CredentialError, match=f"holds {length} bytes"):
            minter.mint(request())
    assert [problem.severity for problem in minter.check()] == [Severity.ERROR] * (not usable)


def test_a_key_that_is_not_scrambled_is_warned_of(key_file: str) -> None:
    minter = htcondor(key_file)
    assert minter.check() == []
    write(Path(key_file), b"c2NyYW1ibGVkIHR3aWNlLCBidXQgYnkgYmFzZTY0\n")
    (problem,) = minter.check()
    assert problem.severity is Severity.WARNING
    assert "text" in problem.problem


def test_nothing_shows_the_key_or_the_token(key_file: str) -> None:
    minter = htcondor(key_file)
    credential = minter.mint(request())
    secrets = CLEAR, scramble(CLEAR), master_key(scramble(CLEAR), "POOL")
    for thing in (minter, credential, minter._key, minter._key.read(key_file), *minter.check()):
        assert_tells_nothing(thing, *secrets)
    assert credential.files["condor_token"].decode().split(".")[2].strip() not in public_text(credential)
    assert credential.issued_at <= NOW


def test_a_request_can_shorten_the_life_and_not_lengthen_it(key_file: str) -> None:
    minter = htcondor(key_file, lifetime=600)
    for longest, expected in ((90, 90), (10**9, 600)):
        new = minter.mint_outside(replace(request(), longest=longest))
        assert new.expires_at == new.issued_at + timedelta(seconds=expected)
