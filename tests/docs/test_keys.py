"""Every `openssl rand` in a sentence or a table makes what the setting beside it takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from casa_hub.credentials.dask import parse_secrets
from casa_hub.credentials.idtokens import MIN_KEY_BYTES
from casa_hub.credentials.macaroons import parse_secret_key
from tests.docs.pages import inline_code

COMMANDS = sorted({text for _, text in inline_code() if text.startswith("openssl rand ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_it_makes_a_key_that_is_taken(command: str, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("the commands need openssl(1)")
    script = command.replace("/etc/casa-hub/", "")
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, check=True)
    content = done.stdout or next(tmp_path.iterdir()).read_bytes()
    if "-hex" in command:
        assert re.fullmatch(rb"[0-9a-f]{64}\n", content)
    elif command.startswith("openssl rand -base64 -out "):  # XCache's file may have several lines
        assert parse_secret_key(content).starts_xrootd
    elif "-base64" in command:  # Dask's are one line each
        assert len(parse_secrets(content)) == 1
    else:
        assert len(content) >= MIN_KEY_BYTES


def test_there_are_all_kinds() -> None:
    assert len(COMMANDS) >= 6
