"""Where programs look, on Linux and macOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casa_hub.client.answers import Issued, issued
from casa_hub.client.errors import ClientError
from casa_hub.client.names import HARMLESS
from casa_hub.client.places import Machine, bearer_file, place, state_directory
from tests.support.scripted_hub import credential

HUB = "https://hub.example.org"
HOME = Path("/home/alice")
OF_HTCONDOR = {
    "files": {"condor_token": b"JWT\n", "condor_tokens.d/condor_token": b"JWT\n"},
    "environment": {
        "CONDOR_HOST": "cm.example.org",
        "SCHEDD_HOST": "schedd.example.org",
        "_CONDOR_SEC_TOKEN_DIRECTORY": "{directory}/condor_tokens.d",
    },
}


def machine(platform: str = "linux", uid: int = 1000, home: Path = HOME, **environment: str) -> Machine:
    return Machine(environment, home, uid, platform)


def made(name: str, **changed: Any) -> Issued:
    return issued(name, credential(name, **changed))


def test_a_bearer_token_is_where_wlcg_s_programs_look(tmp_path: Path) -> None:
    runtime = str(tmp_path)
    assert bearer_file(machine()) == Path("/tmp/bt_u1000")
    assert bearer_file(machine("darwin", 501)) == Path("/tmp/bt_u501")
    assert bearer_file(machine(XDG_RUNTIME_DIR=runtime)) == tmp_path / "bt_u1000"
    assert bearer_file(machine(XDG_RUNTIME_DIR=f"{runtime}/gone")) == Path("/tmp/bt_u1000")
    assert bearer_file(machine(XDG_RUNTIME_DIR=runtime, BEARER_TOKEN_FILE="/x/token")) == Path("/x/token")
    assert bearer_file(machine(XDG_RUNTIME_DIR="", BEARER_TOKEN_FILE="")) == Path("/tmp/bt_u1000")


@pytest.mark.parametrize(("name", "file"), [("xcache", "xcache_token"), ("bearer", "access_token")])
def test_the_token_alone_goes_there_without_a_newline(name: str, file: str, tmp_path: Path) -> None:
    found = place(
        made(name, files={file: b"TOKEN\n", "other": b"x"}), HUB, None, machine(XDG_RUNTIME_DIR=str(tmp_path))
    )
    assert found.files == {tmp_path / "bt_u1000": b"TOKEN"}
    assert found.where == tmp_path / "bt_u1000"
    assert found.variables == {}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, b"MACAROON"),
        ({"BEARER_TOKEN_FILE": "{directory}/xcache_token"}, b"MACAROON"),
        ({"BEARER_TOKEN_FILE": "{directory}/xcache_jwt"}, b"JWT"),
        ({"BEARER_TOKEN_FILE": "{directory}/access_token"}, b"MACAROON"),  # another credential's
        ({"BEARER_TOKEN_FILE": "/etc/passwd"}, b"MACAROON"),
    ],
)
def test_of_two_tokens_the_one_that_the_facility_prefers_goes_there(
    named: dict[str, str], expected: bytes, tmp_path: Path
) -> None:
    both = made("xcache", files={"xcache_token": b"MACAROON", "xcache_jwt": b"JWT"}, environment=named)
    assert place(both, HUB, None, machine(XDG_RUNTIME_DIR=str(tmp_path))).files == {tmp_path / "bt_u1000": expected}
    found = place(both, HUB, tmp_path, machine())
    name = "xcache_jwt" if expected == b"JWT" else "xcache_token"
    assert found.variables["BEARER_TOKEN_FILE"] == str(tmp_path / name)
    assert len(found.files) == 2


@pytest.mark.parametrize(
    "files", [{"other": b"TOKEN"}, {"xcache_token": b""}, {"xcache_token": b"A B"}, {"xcache_token": b"\xff"}]
)
def test_what_is_no_token_goes_nowhere(files: dict[str, bytes]) -> None:
    with pytest.raises(ClientError, match="XCache macaroon: the hub's answer has no usable xcache_token"):
        place(made("xcache", files=files), HUB, None, machine())


def test_an_idtoken_has_a_file_for_each_hub_where_htcondor_looks() -> None:
    found = place(made("htcondor", **OF_HTCONDOR), HUB, None, machine())
    file = HOME / ".condor" / "tokens.d" / "casa-hub-hub.example.org"
    assert (found.files, found.where) == ({file: b"JWT\n"}, file)
    # HTCondor's programs know what the images call CONDOR_HOST by a longer name.
    assert found.variables == {
        "CONDOR_HOST": "cm.example.org",
        "SCHEDD_HOST": "schedd.example.org",
        "_CONDOR_CONDOR_HOST": "cm.example.org",
        "_CONDOR_SCHEDD_HOST": "schedd.example.org",
    }
    found = place(made("htcondor", **OF_HTCONDOR), HUB, None, machine(_CONDOR_SEC_TOKEN_DIRECTORY="/x/tokens"))
    assert found.where == Path("/x/tokens/casa-hub-hub.example.org")
    assert "_CONDOR_SEC_TOKEN_DIRECTORY" not in found.variables


def test_a_token_of_the_facilitys_issuer_lies_where_a_variable_names_it() -> None:
    """Among IDTOKENs HTCondor wouldn't find it; nor is it XCache's, which BEARER_TOKEN_FILE names."""
    issued = {
        "files": {"condor_token": b"JWT\n", "condor_ca.pem": b"CA"},
        "environment": {
            "CONDOR_HOST": "cm.example.org",
            "_CONDOR_SCITOKENS_FILE": "{directory}/condor_token",
            "_CONDOR_AUTH_SSL_CLIENT_CAFILE": "{directory}/condor_ca.pem",
        },
    }
    found = place(made("htcondor", **issued), HUB, None, machine())
    own = state_directory(machine()) / "hub.example.org" / "htcondor"
    assert found.files == {own / "condor_token": b"JWT\n", own / "condor_ca.pem": b"CA"}
    assert found.variables == {
        "CONDOR_HOST": "cm.example.org",
        "_CONDOR_CONDOR_HOST": "cm.example.org",
        "_CONDOR_SCITOKENS_FILE": str(own / "condor_token"),
        "_CONDOR_AUTH_SSL_CLIENT_CAFILE": str(own / "condor_ca.pem"),
    }
    assert set(found.variables) <= HARMLESS


def test_root_is_told_where_the_idtoken_is_because_htcondor_does_not_look_in_root_s_home() -> None:
    found = place(made("htcondor", **OF_HTCONDOR), HUB, None, machine(uid=0, home=Path("/root")))
    assert found.variables["_CONDOR_SEC_TOKEN_DIRECTORY"] == "/root/.condor/tokens.d"


def test_an_answer_without_an_idtoken_is_refused() -> None:
    with pytest.raises(ClientError, match="has no condor_token"):
        place(made("htcondor", files={"x": b""}), HUB, None, machine())


@pytest.mark.parametrize(
    ("given", "base"),
    [
        (machine(), HOME / ".local" / "state" / "casa-hub"),
        (machine("darwin"), HOME / "Library" / "Application Support" / "casa-hub"),
        (machine("darwin", XDG_STATE_HOME="/state"), Path("/state/casa-hub")),
    ],
)
def test_other_files_have_a_directory_of_their_own(given: Machine, base: Path) -> None:
    assert state_directory(given) == base
    environment = {"CERT_DIR": "{directory}", "HOST_IP": "alice.dask.example.org"}
    found = place(made("dask", environment=environment), HUB, None, given)
    directory = base / "hub.example.org" / "dask"
    assert found.files == {directory / "ca.pem": b"CA", directory / "usercert.pem": b"CERT"}
    assert found.where == directory
    assert found.variables == {"CERT_DIR": str(directory), "HOST_IP": "alice.dask.example.org"}


def test_all_goes_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = Path("here")
    found = place(made("xcache"), HUB, there, machine(BEARER_TOKEN_FILE="/x/token"))
    assert found.files == {tmp_path / "here" / "xcache_token": b"MACAROON"}
    assert found.variables == {"BEARER_TOKEN_FILE": str(tmp_path / "here" / "xcache_token")}
    found = place(made("htcondor", **OF_HTCONDOR), HUB, there, machine())
    assert found.where == tmp_path / "here"
    assert found.files.keys() == {tmp_path / "here" / name for name in OF_HTCONDOR["files"]}
    assert found.variables["_CONDOR_SEC_TOKEN_DIRECTORY"] == str(tmp_path / "here" / "condor_tokens.d")


def test_a_variable_for_a_file_that_was_not_written_is_left_out(tmp_path: Path) -> None:
    environment = {"A_FILE": "{directory}/hostcert.pem", "B_FILE": "x{directory}", "C_FILE": "{directory}/../x"}
    assert place(made("dask", environment=environment), HUB, tmp_path, machine()).variables == {}
