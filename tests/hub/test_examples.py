"""The examples for facilities, run as a facility would: installed, in an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.local_hub import build_package

#: Each runs tests with hubs of their own.
pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What a run in place leaves there.
LEFT = shutil.ignore_patterns("__pycache__", ".*_cache", "dist")


@pytest.fixture(scope="module")
def python(site_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of a virtual environment that has what this one has, and the site's package besides."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    # addsitedir: for what is installed here by a .pth file of its own, as this source is.
    ours = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "examples.pth").write_text(f"{ours}{site_package}\n")
    return environment / "bin" / "python"


def run_tests(python: Path, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *options]
    variables = {"PATH": os.environ["PATH"], "HOME": str(directory), "LANG": "C.UTF-8"}
    return subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, timeout=580)


def test_the_site_credential_passes_its_own_tests(python: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "site-credential" / "test_site_credential.py", tmp_path)  # without the source beside it
    done = run_tests(python, tmp_path, "-p", "casa_hub.testing")
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr
    assert " 9 passed" in done.stdout


def test_the_fetched_credential_passes_its_own_tests(python: Path, tmp_path: Path) -> None:
    package = build_package(EXAMPLES / "fetched-credential", tmp_path)
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    (packages / "fetched.pth").write_text(f"{package}\n")
    shutil.copy(EXAMPLES / "fetched-credential" / "test_fetched_credential.py", tmp_path)
    done = run_tests(python, tmp_path, "-p", "casa_hub.testing", "test_fetched_credential.py")
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr
    assert " 12 passed" in done.stdout


def test_a_facility_tests_its_own_configuration(python: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(EXAMPLES / "facility-tests", tmp_path / "facility", ignore=LEFT)
    done = run_tests(python, directory)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr
    assert " 3 passed" in done.stdout
