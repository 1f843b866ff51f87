"""The hub's image, as far as it can be told without Docker and without its base: its steps, run in an environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.test_versions import ROOT, uv
from tests.support.helm import VERSION

IMAGE = ROOT / "image"


def instructions() -> list[tuple[str, str]]:
    """(FROM, ...) and so on of the Dockerfile."""
    lines = [line for line in (IMAGE / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line]  # type: ignore[misc]


def pinned() -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)", (IMAGE / "requirements.txt").read_text(), re.MULTILINE))


def test_it_is_the_charts_image_and_ends_as_nobody_special() -> None:
    steps = instructions()
    assert steps[:2] == [("ARG", "HUB"), ("FROM", "${HUB}")]  # whose name is the chart's to say
    assert steps[-1] == ("USER", "1000")
    # The chart says what is started; nothing is fetched then.
    assert not [step for step in steps if step[0] in {"CMD", "ENTRYPOINT", "ENV"}]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("make"):
        pytest.skip("needs make(1)")
    # Without what a make around these tests has given on.
    environment = {
        key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS", "HUB", "IMAGE"}
    }
    return subprocess.run(["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("missing", [[], ["HUB="]], ids=["not given", "empty, because the chart wasn't found"])
def test_without_the_base_it_is_said_how_to_get_it(missing: list[str]) -> None:
    done = make("image", *missing, "IMAGE=casa-hub:dev")
    assert done.returncode == 2
    assert "HUB is missing" in done.stdout
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(commands) == 2
    page = (ROOT / "docs" / "getting-started.md").read_text()
    assert "".join(f"    {line}\n" for line in commands) in page  # where tests/helm runs the first one
    assert VERSION in commands[0]


def test_it_is_built_on_what_is_given() -> None:
    """By its content, too. Make only says here what it would run."""
    base = f"registry.example.org/k8s-hub:{VERSION}@sha256:{'0' * 64}"
    done = make("--dry-run", "image", f"HUB={base}", "IMAGE=registry.example.org/casa-hub:1")
    assert done.returncode == 0, done.stderr
    assert (
        f"docker build --build-arg HUB={base} --tag registry.example.org/casa-hub:1 image" in done.stdout.splitlines()
    )


def test_everything_that_is_needed_is_pinned_by_version_and_hash() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = [Requirement(line) for line in tomllib.load(file)["project"]["dependencies"]]
    versions = pinned()
    assert set(versions) == {canonicalize_name(one.name) for one in wanted}
    for one in wanted:
        assert versions[canonicalize_name(one.name)] in one.specifier
    text = (IMAGE / "requirements.txt").read_text()
    for name in versions:
        assert re.search(rf"^{name}==\S+ \\\n +--hash=sha256:[0-9a-f]{{64}}", text, re.MULTILINE), name


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """What the chart's image has, but for what ours is to bring: so pip has to fetch and compare that."""
    python = shutil.which("python3.14") or sys.executable
    venv = tmp_path / "venv"
    for command in (
        ["venv", "--quiet", "--seed", "--python", python, str(venv)],
        ["pip", "install", "--quiet", "--python", str(venv), "-r", str(IMAGE / "requirements.txt")],
        ["pip", "uninstall", "--quiet", "--python", str(venv), *pinned()],
    ):
        done = uv(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    return venv


def test_its_steps_make_a_hub_that_has_it(environment: Path, wheel: Path, tmp_path: Path) -> None:
    (copy,) = [argument for step, argument in instructions() if step == "COPY"]
    assert copy == "requirements.txt dist/casa_hub-*.whl /tmp/casa_hub/"
    there = tmp_path / "casa_hub"
    there.mkdir()
    shutil.copy(IMAGE / "requirements.txt", there)
    shutil.copy(wheel, there)

    (script,) = [argument for step, argument in instructions() if step == "RUN"]
    script = script.replace("/tmp/casa_hub", str(there))
    ran = subprocess.run(
        ["sh", "-ec", script],
        env={
            "PATH": f"{environment}/bin:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PIP_NO_COMPILE": "1",  # nothing runs here long enough to be worth it
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("casa_hub 0.1.0")
    assert "No broken requirements found." in ran.stdout
    assert not there.exists()
