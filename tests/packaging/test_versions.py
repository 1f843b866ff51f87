"""The versions that are promised: what pip would install for them exists, and this source is valid for them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from casa_hub.demo.packages import Unavailable
from tests.support.peers import require

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


@pytest.mark.parametrize("hub", ["5.5.*", "6.*"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_dependencies_can_be_resolved(python: str, hub: str, tmp_path: Path) -> None:
    wanted = tmp_path / "hub.in"
    wanted.write_text(f"jupyterhub=={hub}\n")
    options = ["--quiet", "--no-header", "--no-annotate", "--python-version", python]
    done = uv("pip", "compile", *options, str(ROOT / "pyproject.toml"), str(wanted), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"jupyterhub=={hub.rstrip('*')}" in done.stdout


@pytest.mark.parametrize("python", PYTHONS)
def test_the_source_is_valid(python: str) -> None:
    """For the versions that no interpreter here has: the grammar at least."""
    version = tuple(map(int, python.split(".")))
    for path in (ROOT / "casa_hub").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=min(version, sys.version_info[:2]))


def test_the_wheel_has_what_is_not_python(tmp_path: Path) -> None:
    """Templates and the demo's notebook are found by their path in the package: they must be in the wheel."""
    done = uv("build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True).stdout
    for name in ("py.typed", "web/templates/casa_refused.html", "demo/quickstart.ipynb", "demo/supervise.py"):
        assert f"casa_hub/{name}" in names
