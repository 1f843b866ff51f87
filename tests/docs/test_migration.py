"""docs/migration.md: what the old Secrets hold becomes the files that this package reads; homes are found again."""

from __future__ import annotations

import base64
import inspect
import os
import re
import subprocess
from pathlib import Path

import pytest
from kubespawner import KubeSpawner
from kubespawner.slugs import escape_slug, safe_slug

from casa_hub.credentials.idtokens import master_key
from casa_hub.credentials.macaroons import parse_secret_key
from tests.docs.pages import ROOT, blocks, commands

PAGE = ROOT / "docs" / "migration.md"


def convert(secret: str, data: bytes, tmp_path: Path) -> None:
    """Run the page's command with a kubectl that prints the data as the real one does: base64 without an end."""
    (command,) = [
        command
        for block in blocks()
        if block.page == PAGE
        for command in commands(block)
        if f"secret {secret}" in command
    ]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\nprintf %s {base64.b64encode(data).decode()}\n")
    kubectl.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("size", [32, 48, 64, 100])
def test_the_old_key_of_xcache_becomes_its_file(size: int, tmp_path: Path) -> None:
    key = os.urandom(size)
    convert("xcache-token", key, tmp_path)
    content = (tmp_path / "xcache").read_bytes()
    parsed = parse_secret_key(content)
    assert parsed.value == key
    assert parsed.starts_xrootd
    assert content.endswith(b"\n")
    assert not content.endswith(b"\n\n")


def test_the_old_key_of_htcondor_becomes_its_file(tmp_path: Path) -> None:
    key = os.urandom(64)
    convert("condor-token", key, tmp_path)
    assert (tmp_path / "condor").read_bytes() == key
    assert master_key((tmp_path / "condor").read_bytes(), "POOL") == master_key(key, "POOL")


def test_homes_keep_their_names() -> None:
    """The template's field is KubeSpawner's, for the names that it gave before version 7."""
    text = PAGE.read_text()
    (field,) = re.findall(r"pvcNameTemplate: claim-\{(\w+)\}`", text)
    (old,) = re.findall(r"\(`claim-([^`]+)`\)", text)
    assert f"{field}=" in inspect.getsource(KubeSpawner._expand_user_properties)
    assert field.startswith("escaped_")
    assert escape_slug("user@example.edu") == old != safe_slug("user@example.edu")
    assert escape_slug("ada") == safe_slug("ada")
