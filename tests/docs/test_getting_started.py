"""docs/getting-started.md, "A hub of your own on one machine", followed by somebody who has not this machine's /etc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, commands

PAGE = ROOT / "docs" / "getting-started.md"


def one(language: str, holds: str) -> Block:
    (found,) = [
        block for block in blocks() if block.page == PAGE and block.language == language and holds in block.content
    ]
    return found


@pytest.fixture
def follow(tmp_path: Path) -> str:
    """Steps 2 to 5 as a script, in a directory in the place of /etc."""
    if not shutil.which("openssl"):
        pytest.skip("the commands need openssl(1)")
    keys = [*commands(one("", "openssl rand -out")), *commands(one("", "/etc/traefik"))]
    hub = [command for command in commands(one("", "jupyterhub -f")) if not command.startswith("jupyterhub")]
    config = one("python", "casa-local").content.replace("/etc/", f"{tmp_path}/")
    (tmp_path / "jupyterhub_config.py").write_text(config)
    secret = "echo of-the-client > /etc/casa-hub/client-secret; chmod 400 /etc/casa-hub/client-secret"
    return "\n".join([*keys, secret, *hub]).replace("/etc/", f"{tmp_path}/")


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(directory)}
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120)


def test_a_hub_of_your_own_is_sound(follow: str, tmp_path: Path) -> None:
    done = run(follow, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout
    assert {path.name for path in (tmp_path / "casa-hub").iterdir()} == {
        "xcache",
        "condor",
        "dask",
        "crypt-key",
        "client-secret",
    }


def test_a_step_left_out_is_told(follow: str, tmp_path: Path) -> None:
    without = "\n".join(line for line in follow.splitlines() if "/condor" not in line)
    done = run(without, tmp_path)
    assert done.returncode == 1
    assert "HTCondor.key_file" in done.stdout
    assert "does not exist" in done.stdout
