"""The site is built without a warning: every link and anchor on the pages, README's too, leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT
from tests.support.peers import REQUIRED

#: As `make docs` has it.
STRICT = ["-c", "docs", "-b", "html", "-q", "-W", "--keep-going"]


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    missing = [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{', '.join(missing)} isn't installed: pip install --group docs"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    command = [sys.executable, "-m", "sphinx", *STRICT, "-d", str(target / "doctrees"), ".", str(target / "html")]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)


def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        assert (tmp_path / "html" / page.relative_to(ROOT)).with_suffix(".html").exists(), page
    front = (tmp_path / "html" / "index.html").read_text()
    (first,) = re.findall(r"url=([\w/.]+)", front)
    assert (tmp_path / "html" / first).exists()


def test_make_builds_it_just_so() -> None:
    assert " ".join(STRICT) in (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound site of two pages; the first one may be written anew."""
    source = tmp_path_factory.mktemp("small")
    docs = source / "docs"
    docs.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    shutil.copytree(ROOT / "docs" / "site", docs / "site")
    (docs / "other.md").write_text("# Other\n\n## There\n")
    (docs / "index.md").write_text(INDEX.replace("LINK", "[b](other.md#there) [c](../docs)"))
    sound = build(source, tmp_path_factory.mktemp("sound"))
    assert sound.returncode == 0, sound.stderr
    return source


INDEX = "# Index\n\nLINK\n\n```{toctree}\nother\n```\n"


@pytest.mark.parametrize(
    "link",
    ["[a](nowhere.md)", "[a](other.md#nowhere)", "[a](../casa_hub/nowhere.py)", "[a](../nowhere)", "[a](#nowhere)"],
)
def test_a_link_to_nowhere_is_an_error(link: str, small: Path, tmp_path: Path) -> None:
    (small / "docs" / "index.md").write_text(INDEX.replace("LINK", link))
    done = build(small, tmp_path)
    assert done.returncode != 0
    assert "nowhere" in done.stderr
