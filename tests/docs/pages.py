"""The pages that people read, taken apart as a forge would (CommonMark)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "client" / "README.md",
    ROOT / "helm-values" / "README.md",
    *sorted((ROOT / "examples").glob("*/README.md")),
]

#: What a block of commands may be called; one without a name is taken for commands, too.
SHELL = {"", "sh", "bash", "console"}


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    #: "" for an indented one.
    language: str
    content: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for token in _parse(page.read_text(encoding="utf-8")):
            if token.type in {"fence", "code_block"}:
                yield Block(page, token.map[0] + 1, token.info.strip(), token.content)


def inline_code() -> Iterator[tuple[Path, str]]:
    """Spans of code in sentences and tables, in one line."""
    for page in PAGES:
        for token in _parse(page.read_text(encoding="utf-8")):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield page, re.sub(r"\s+", " ", child.content)


def commands(block: Block) -> list[str]:
    """Each command of a block in one line, with what it reads from the block (``<<END``)."""
    found = []
    lines = iter(block.content.splitlines())
    for line in lines:
        text = line.strip()
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines).strip()}"
        if here := re.search(r"<<'?(\w+)'?", text):
            for more in lines:
                text += f" ; {more.strip()}"
                if more.strip() == here[1]:
                    break
        if text and not text.startswith("#"):
            found.append(re.sub(r"\s+", " ", text))
    return found


def _parse(text: str) -> list[object]:
    markdown_it = pytest.importorskip("markdown_it", reason="needs the dependency group docs")
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(text)  # type: ignore[no-any-return]
