"""No name of a file that the hub may say leaves the directory or is a start-up file of a program."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from casa_hub.client.names import HARMLESS, is_credential, is_file, is_variable
from casa_hub.credentials.base import bad_path

#: Texts out of the characters that make trouble.
NASTY = st.text(alphabet="ab./\\~-_:\0\n é.", max_size=12)


@given(st.one_of(st.text(max_size=40), NASTY))
@example("../x")
@example("a/../../x")
@example("/etc/passwd")
@example("a//b")
@example(".ssh/authorized_keys")
@example("a/.bashrc")
def test_what_is_allowed_stays_below_the_directory(path: str) -> None:
    if not is_file(path):
        return
    directory = Path("/some/directory")
    (first, *rest) = PurePosixPath(path).parts
    assert directory in (directory / path).parents
    assert "/".join([first, *rest]) == path  # written as it is understood
    assert len(rest) <= 1
    assert ".." not in path
    assert path == ".servicex" or not any(part.startswith(".") for part in (first, *rest))
    assert path.isascii()
    assert path.isprintable()
    assert not bad_path(path)  # a hub could have made it


@pytest.mark.parametrize(
    "path",
    [
        "xcache_token",
        "condor_tokens.d/condor_token",
        "ca.pem",
        "usercert.pem",
        "access_token",
        ".servicex",
        "README.md",
    ],
)
def test_what_hubs_send_is_allowed(path: str) -> None:
    assert is_file(path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../x", "/x", "x/", "a/b/c", ".bashrc", ".config/x", "x" * 300, "a\0b"]
)
def test_others_are_refused(path: str) -> None:
    assert not is_file(path)


@pytest.mark.parametrize("name", ["", "X", "../x", "x/y", "x y", "x" * 65, "-x", "x?y", "%2e%2e"])
def test_what_is_no_credential_s_name_never_gets_into_an_address(name: str) -> None:
    assert not is_credential(name)
    assert is_credential("xcache")
    assert is_credential("my-site_2")


def test_a_shell_gets_no_variable_that_changes_other_programs() -> None:
    for name in ("PATH", "LD_PRELOAD", "PYTHONPATH", "BASH_ENV", "HOME", "_CONDOR_LOCAL_CONFIG_FILE", "SSL_CERT_FILE"):
        assert name not in HARMLESS
    assert all(is_variable(name) for name in HARMLESS)
    assert not is_variable("A;B")
    assert not is_variable("1A")
    assert not is_variable("A\n")
