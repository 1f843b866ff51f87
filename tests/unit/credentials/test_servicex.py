from __future__ import annotations

from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import jwt
import pytest
import yaml

from casa_hub.credentials.servicex import ServiceX, parse_tokens
from casa_hub.errors import CredentialError, Severity
from casa_hub.keys import BadKeyError
from casa_hub.naming import Server
from tests.support.minting import NOW, assert_tells_nothing, public_text, request, write

ENDPOINT = "https://servicex.example.org"
EXPIRY = NOW.replace(microsecond=0) + timedelta(days=365)
TOKEN = jwt.encode({"sub": "alice", "type": "refresh", "exp": int(EXPIRY.timestamp())}, "k" * 32, "HS256")


def servicex(**settings: Any) -> ServiceX:
    return ServiceX(**({"endpoint": ENDPOINT, "type": "uproot"} | settings))


@pytest.fixture
def tokens_file(tmp_path: Path) -> str:
    return write(tmp_path / "tokens.yaml", yaml.safe_dump({"alice": TOKEN, "ümit@x": "opaque"}).encode())


def written(minter: ServiceX, username: str = "alice") -> Any:
    return yaml.safe_load(minter.mint(request(username)).files[".servicex"])


def test_without_authentication_there_is_no_token() -> None:
    assert written(servicex()) == {"api_endpoints": [{"name": "uproot", "endpoint": ENDPOINT, "type": "uproot"}]}
    assert servicex().mint(request()).expires_at is None
    assert servicex().check() == []


def test_a_name_in_the_file_may_be_written_as_the_provider_shows_it() -> None:
    """`ASmith` gave asmith nothing: user names of the hub are lower case."""
    assert parse_tokens(b"ASmith: one") == {"asmith": "one"}
    with pytest.raises(BadKeyError, match="second token in entry 2 for the same user") as caught:
        parse_tokens(b"ASmith: one\nasmith: two")
    assert "smith" not in str(caught.value).lower()  # a token may stand on the left by mistake


def test_a_registered_user_gets_the_token_that_servicex_knows(tokens_file: str) -> None:
    minter = servicex(mode="registered", tokens_file=tokens_file)
    assert written(minter)["api_endpoints"][0]["token"] == TOKEN
    assert minter.mint(request()).expires_at == EXPIRY
    assert written(minter, "ümit@x")["api_endpoints"][0]["token"] == "opaque"
    assert minter.mint(request("ümit@x")).expires_at is None
    assert minter.check() == []


def test_somebody_who_is_not_registered_is_told_so(tokens_file: str) -> None:
    minter = servicex(mode="registered", tokens_file=tokens_file)
    with pytest.raises(CredentialError, match=r"has no token for 'bob'\. The user has to sign up"):
        minter.mint(request("bob"))


def test_the_tokens_are_read_again(tokens_file: str) -> None:
    minter = servicex(mode="registered", tokens_file=tokens_file)
    assert written(minter)["api_endpoints"][0]["token"] == TOKEN
    write(Path(tokens_file), b"alice: renewed\n")
    assert written(minter)["api_endpoints"][0]["token"] == "renewed"


def test_an_expired_token_is_not_delivered(tokens_file: str) -> None:
    minter = servicex(mode="registered", tokens_file=tokens_file)
    with pytest.raises(CredentialError, match="token of 'alice' that expired"):
        minter.mint(request(now=EXPIRY))


REFUSED = {
    "no mapping": (b"- alice: SECRETSECRET\n", "not a mapping"),
    "no YAML": (b"alice: SECRETSECRET\nbob: [SECRETSECRET\ncarol: @\n", "not YAML in line 3"),
    "not UTF-8": (b"alice: SECRETSECRET\xff\xfe\n", "not YAML"),
    "a name that is a number": (b"alice: x\n1234: SECRETSECRET\n", "entry 2"),
    "a token that is none": (b"alice: x\nSECRETSECRET: [alice]\n", "no token in entry 2"),
    "an empty token": (b"alice: ''\n", "no token in entry 1"),
    "a token in two lines": (b'alice: "SECRET\\nSECRET"\n', "no token in entry 1"),
    "an object of Python's": (b"alice: !!python/object/apply:os.getcwd []\n", "not YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_understood_is_named_and_not_quoted(tokens_file: str, case: str) -> None:
    content, problem = REFUSED[case]
    with pytest.raises(BadKeyError, match=problem):
        parse_tokens(content)
    write(Path(tokens_file), content)
    minter = servicex(mode="registered", tokens_file=tokens_file)
    with pytest.raises(CredentialError, match=problem) as caught:
        minter.mint(request())
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__  # PyYAML's own error quotes the file
    assert [found.severity for found in minter.check()] == [Severity.ERROR]


def test_an_empty_mapping_is_one(tokens_file: str) -> None:
    assert parse_tokens(b"# nobody yet\n") == {}


@pytest.mark.parametrize(
    ("settings", "thing"),
    [
        ({"type": ""}, "ServiceX.type"),
        ({"endpoint": ""}, "ServiceX.endpoint"),
        ({"endpoint": "servicex.example.org"}, "ServiceX.endpoint"),
        ({"endpoint": "file:///etc"}, "ServiceX.endpoint"),
        ({"mode": "registered"}, "ServiceX.mode"),
        ({"tokens_file": "/etc/tokens"}, "ServiceX.mode"),
    ],
)
def test_half_set_pairs_are_refused(settings: dict[str, str], thing: str) -> None:
    minter = servicex(**settings)
    assert [(problem.severity, problem.thing) for problem in minter.check()] == [(Severity.ERROR, thing)]
    with pytest.raises(CredentialError) as caught:
        minter.mint(request())
    assert caught.value.thing == thing


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        (ENDPOINT, False),
        ("http://servicex.example.org", True),
        ("http://127.0.0.1:5000", False),
        ("http://[::1]", False),
    ],
)
def test_tokens_in_clear_are_warned_of(tokens_file: str, endpoint: str, warned: bool) -> None:
    problems = servicex(endpoint=endpoint, mode="registered", tokens_file=tokens_file).check()
    assert [problem.severity for problem in problems] == [Severity.WARNING] * warned


def test_servers_learn_where_it_is() -> None:
    assert servicex().environment(Server("", "alice"), PurePosixPath("/x")) == {
        "SERVICEX_HOST": ENDPOINT,
        "SERVICEX_TYPE": "uproot",
    }


def test_nothing_shows_the_token(tokens_file: str) -> None:
    minter = servicex(mode="registered", tokens_file=tokens_file)
    credential = minter.mint(request())
    for thing in (minter, minter._tokens, credential, *minter.check()):
        assert_tells_nothing(thing, TOKEN.encode())
    assert TOKEN.rpartition(".")[2] not in public_text(credential)
