"""`casa-hub-client`, the client alone: its wheel in an environment that has nothing else."""

from __future__ import annotations

import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.test_versions import ROOT, uv
from tests.support.scripted_hub import ScriptedHub, credential, scripted_hub


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("client-wheel")
    done = uv("build", "--quiet", "--wheel", "--out-dir", str(directory), str(ROOT / "client"), cwd=directory)
    assert done.returncode == 0, done.stderr
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an empty environment with the wheel in; nothing is fetched."""
    directory = tmp_path_factory.mktemp("client")
    done = uv("venv", "--quiet", "--python", sys.executable, str(directory / "venv"), cwd=directory)
    assert done.returncode == 0, done.stderr
    python = directory / "venv" / "bin" / "python"
    done = uv("pip", "install", "--quiet", "--offline", "--python", str(python), str(wheel), cwd=directory)
    assert done.returncode == 0, done.stderr
    return python.parent


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with scripted_hub() as running:
        yield running


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), **environment}
    line = [str(part) for part in command]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=clean, timeout=60)


def test_the_wheel_is_the_client_and_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {f"casa_hub_client/{path.name}" for path in (ROOT / "casa_hub" / "client").glob("*.py")}
    assert names == modules | {"casa_hub_client/py.typed", "casa_hub_client/LICENSE"}
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    assert "Requires-Dist" not in archive.read(metadata).decode()


def test_nothing_else_is_installed_with_it(installed: Path, tmp_path: Path) -> None:
    program = "from importlib.metadata import distributions; print(*(each.name for each in distributions()))"
    assert run(installed / "python", "-c", program, cwd=tmp_path).stdout.split() == ["casa-hub-client"]
    assert run(installed / "casa-hub", "--version", cwd=tmp_path).stdout.startswith("casa-hub-client 0.1.0")
    assert run(installed / "casa-hub", "demo", cwd=tmp_path).returncode == 2


def test_it_gets_a_credential(installed: Path, hub: ScriptedHub, tmp_path: Path) -> None:
    hub.answers["/hub/api/casa/credentials/xcache"] = 200, credential()
    file = tmp_path / "token"
    environment = {"CASA_HUB_TOKEN": "SECRET", "BEARER_TOKEN_FILE": str(file)}
    done = run(installed / "casa-hub", "token", "xcache", "--hub", hub.url, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("XCache macaroon of alice, valid until ")
    assert file.read_bytes() == b"MACAROON"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "SECRET" not in done.stdout + done.stderr
    assert hub.asked[0].headers["User-Agent"].startswith("casa-hub-client/0.1.0")


def test_without_a_way_to_log_in_it_says_what_to_do(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "casa-hub", "token", "xcache", "--hub", "https://hub.example.org", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "set CASA_HUB_TOKEN" in done.stderr
