"""The versions that are promised: what pip would install for them exists, and this source is valid for them."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from casa_hub.demo.packages import Unavailable
from tests.support.peers import require
from tests.support.scale import pairs

ROOT = Path(__file__).parents[2]


def uv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run uv; the package index is a peer, too."""

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uv", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=cwd)
        for sign in ("error sending request", "dns error", "Failed to fetch"):
            if sign in done.stderr:
                cause = done.stderr.strip().splitlines()[-1].strip()
                raise Unavailable("the package index", f"{sign} ({cause})", "Try again when it can be reached.")
        return done

    return require(run)


PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def at_most_this_one(python: str) -> bool:
    return tuple(map(int, python.split("."))) <= sys.version_info[:2]


@pytest.mark.shortened
@pytest.mark.parametrize(("python", "hub"), pairs(PYTHONS, ["6.*", "5.5.*"]))
def test_the_dependencies_can_be_resolved(python: str, hub: str, tmp_path: Path) -> None:
    wanted = tmp_path / "hub.in"
    wanted.write_text(f"jupyterhub=={hub}\n")
    options = ["--quiet", "--no-header", "--no-annotate", "--python-version", python]
    done = uv("pip", "compile", *options, str(ROOT / "pyproject.toml"), str(wanted), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"jupyterhub=={hub.rstrip('*')}" in done.stdout


@pytest.mark.parametrize("python", filter(at_most_this_one, PYTHONS))
def test_the_source_is_valid(python: str) -> None:
    """For older versions that no interpreter here has: the grammar at least. This one doesn't know newer grammars."""
    version = tuple(map(int, python.split(".")))
    for path in (ROOT / "casa_hub").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=version)


def test_the_wheel_has_what_is_not_python(wheel: Path) -> None:
    """Templates and the demo's notebook are found by their path in the package: they must be in the wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "web/templates/casa_refused.html", "demo/quickstart.ipynb", "demo/supervise.py"):
        assert f"casa_hub/{name}" in names
