"""The laptop bundle: what is in the zip."""

from __future__ import annotations

import ast
import io
import zipfile
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.web.bundle import Bundle

FILES = {"ca.pem": b"the authority", "usercert.pem": b"the certificate and its key"}
MADE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def contents(server: str = "alice", scheduler: str = "tls://alice.dask.example.org:8786") -> dict[str, bytes]:
    bundle = Bundle(server, scheduler, FILES, MADE, datetime(2030, 1, 2, 4, 4, tzinfo=UTC))
    with zipfile.ZipFile(io.BytesIO(bundle.archive())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_bundle_has_the_certificates_a_program_and_a_page_to_read() -> None:
    found = contents()
    assert set(found) == {"ca.pem", "usercert.pem", "connect.py", "README.txt"}
    assert {name: found[name] for name in FILES} == FILES
    readme = found["README.txt"].decode()
    for text in ("alice", "tls://alice.dask.example.org:8786", "2030-01-02 03:04 UTC", "2030-01-02 04:04 UTC"):
        assert text in readme


def test_the_files_of_a_bundle_can_be_read_by_their_owner_only() -> None:
    bundle = Bundle("alice", "tls://alice.dask.example.org:8786", FILES, MADE, None)
    with zipfile.ZipFile(io.BytesIO(bundle.archive())) as archive:
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o600}


@given(st.text(), st.text())
def test_no_name_of_a_server_adds_a_line_to_the_program(server: str, scheduler: str) -> None:
    """Who may choose a server's name must not choose what a laptop runs."""
    program = ast.parse(contents(server, scheduler)["connect.py"].decode("utf-8", "surrogatepass"))
    kinds = [type(node).__name__ for node in program.body]
    assert kinds == [type(node).__name__ for node in ast.parse(contents()["connect.py"]).body]
    [assigned] = [node for node in program.body if isinstance(node, ast.Assign) and node.targets[0].id == "SCHEDULER"]  # type: ignore[attr-defined]
    assert ast.literal_eval(assigned.value) == scheduler


@pytest.mark.parametrize("server", ["a\nb", "a\r\nb"])
def test_a_name_stays_in_its_line(server: str) -> None:
    assert contents(server)["README.txt"].decode().startswith("Laptop bundle of a")
    assert "b" in contents(server)["README.txt"].decode().splitlines()[0]
