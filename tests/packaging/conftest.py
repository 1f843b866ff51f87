"""What `python -m build` makes, once for all tests of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.test_versions import ROOT, uv

#: The front end that the documentation names; it isn't needed for anything else.
BUILD = "build==1.5.0"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both. The wheel is made from the source archive."""
    directory = tmp_path_factory.mktemp("dist")
    command = ["tool", "run", "--from", BUILD, "pyproject-build", "--installer", "uv"]
    done = uv(*command, "--outdir", str(directory), str(ROOT), cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def source(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found
