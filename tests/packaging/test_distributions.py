"""What `python -m build` makes: a wheel and a source archive that work where there is nothing of this checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_versions import ROOT, uv
from tests.support.scale import scaled

PACKAGE = ROOT / "casa_hub"


def of_the_package() -> set[str]:
    """Every file below casa_hub that is under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "casa_hub"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:  # an unpacked source archive
        files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(ROOT)) for path in files}
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == of_the_package()
    others = {name for name in names if not name.endswith(".py")}
    assert {"casa_hub/py.typed", "casa_hub/delivery/kubernetes/sidecar.sh"} <= others
    assert any(name.startswith("casa_hub/web/templates/") for name in others)


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert "License-Expression: BSD-3-Clause" in text
    assert "Provides-Extra: kubernetes" in text
    assert "Description-Content-Type: text/markdown" in text
    assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())


def test_the_source_archive_has_what_an_operator_needs(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in (
        "helm-values/cms.yaml",
        "helm-values/role.yaml",
        "helm-values/monitoring/casa-hub-rules.yaml",
        "jupyterhub_config.d/casa_hub.py",
        "image/Dockerfile",
    ):
        assert path in names
    assert of_the_package() <= names
    assert not [name for name in names if name.startswith((".venv", "image/dist", "dist/")) or "__pycache__" in name]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel in."""
    directory = tmp_path_factory.mktemp("installed")
    done = uv("venv", "--quiet", "--python", sys.executable, str(directory / "venv"), cwd=directory)
    assert done.returncode == 0, done.stderr
    python = directory / "venv" / "bin" / "python"
    wanted = f"casa_hub[kubernetes] @ {wheel.as_uri()}"
    done = uv("pip", "install", "--quiet", "--python", str(python), wanted, cwd=directory)
    assert done.returncode == 0, done.stderr
    assert "does not have an extra" not in done.stderr
    return python.parent


def run(*command: str | Path, cwd: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd)}  # no PYTHONPATH of whoever runs the tests
    line = [str(part) for part in command]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "casa-hub", "--version", cwd=tmp_path).startswith("casa_hub 0.1.0")
    assert "--XCache.key_file" in run(installed / "casa-hub", "settings", "XCache", cwd=tmp_path)


def test_every_entry_point_can_be_loaded(installed: Path, tmp_path: Path) -> None:
    program = (
        "from importlib.metadata import entry_points, distribution\n"
        "points = distribution('casa_hub').entry_points\n"
        "print(*(f'{point.group}:{point.name}={point.load().__name__}' for point in points), sep='\\n')\n"
    )
    loaded = run(installed / "python", "-c", program, cwd=tmp_path).splitlines()
    assert {
        "console_scripts:casa-hub=main",
        "jupyterhub.authenticators:casa=CasaOAuthenticator",
        "jupyterhub.spawners:casa=CasaSpawner",
        "jupyterhub.spawners:casa-local=CasaLocalSpawner",
        "casa_hub.credentials:xcache=XCache",
    } <= set(loaded)


def test_nothing_is_imported_from_this_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import casa_hub; print(casa_hub.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))


@pytest.mark.shortened
def test_the_extra_for_tests_is_enough_for_the_examples(installed: Path, wheel: Path, tmp_path: Path) -> None:
    """The commands of the examples' pages: nothing else has to be installed.

    The last test here: it installs more into the environment of the others, which has no other extra's packages. In
    short it leaves the tests of the examples' credentials that start a hub to `tests/hub/test_examples.py`.
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["optional-dependencies"]["kubernetes"] == []
    python = installed / "python"
    # Name of the example -> how many tests it has, and how many of them start a hub.
    credentials = {"site-credential": (9, 1), "fetched-credential": (12, 1)}
    for example in ("facility-tests", *credentials):
        shutil.copytree(ROOT / "examples" / example, tmp_path / "examples" / example)
    wanted = [f"casa_hub[testing] @ {wheel.as_uri()}", *(f"./examples/{example}[test]" for example in credentials)]
    done = uv("pip", "install", "--quiet", "--python", str(python), *wanted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pytest_of_it = python.with_name("pytest")
    assert " 3 passed" in run(pytest_of_it, "examples/facility-tests", cwd=tmp_path)
    for example, (count, with_hub) in credentials.items():
        left_out = scaled(["-k", "not server_gets"], [])
        ran = run(pytest_of_it, "-p", "casa_hub.testing", f"examples/{example}", *left_out, cwd=tmp_path)
        assert f" {scaled(count - with_hub, count)} passed" in ran
