"""What the guides say that this hub says, it says: each text of their tables of incidents is in the source.

Those are the spans of code in the first column of tables whose head has "the hub's log". `...` stands for what differs.
"""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import ROOT

PAGES = [ROOT / "docs" / name for name in ("operators.md", "issuer.md", "services.md", "x509.md")]
#: They are names or values that people see beside the texts, no texts of ours.
NAMES = {"eppn", "held-back", "Init", "XCache.key_file"}


@cache
def source() -> str:
    """All texts of the package, an expression in one being NUL, and its pages."""
    texts = []
    for path in (ROOT / "casa_hub").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(map(str, parts)))
    texts += [path.read_text() for path in (ROOT / "casa_hub" / "web" / "templates").iterdir()]
    return re.sub(r"\s+", " ", "\n\n".join(texts))


def quoted() -> list[str]:
    found, ours = set(), False
    for line in (line for page in PAGES for line in page.read_text().splitlines()):
        if not line.startswith("|"):
            ours = False
        elif "the hub's log" in line:
            ours = True
        elif ours and not set(line) <= set("| -"):
            found |= set(re.findall("`([^`]+)`", line.split(" | ")[0]))
    return sorted(found - NAMES)


@pytest.mark.parametrize("text", quoted())
def test_the_hub_says_so(text: str) -> None:
    for part in re.split(r"\(?\.\.\.\)?", text):
        if len(part.strip(" :")) > 2:
            assert part.strip(" :") in source(), part


def test_there_are_many() -> None:
    assert len(quoted()) > 25


def test_what_nobody_says_would_be_seen() -> None:
    with pytest.raises(AssertionError):
        test_the_hub_says_so("is not set ... by anybody whom we know")
