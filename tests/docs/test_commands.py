"""Every command on the pages is run by a test, or it is said what it needs; commands of ours exist as they are written.

A command is a line of a block without a language (or of `sh`, `bash`, `console`); the table is commands.yaml.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from casa_hub import cli
from tests.docs.pages import ROOT, SHELL, blocks, commands, inline_code

TABLE: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "commands.yaml").read_text())
KNOWN = {entry.get("command") or entry["text"]: entry for entry in TABLE}


def on_pages() -> dict[str, str]:
    """Command -> where it stands first."""
    found: dict[str, str] = {}
    for block in blocks():
        if block.language in SHELL:
            for command in commands(block):
                found.setdefault(command, block.where)
    return found


def test_every_command_is_in_the_table() -> None:
    unknown = {command: where for command, where in on_pages().items() if command not in KNOWN}
    assert not unknown, "add them to tests/docs/commands.yaml, or give the block a language"


def test_the_table_has_no_others() -> None:
    assert not set(KNOWN) - set(on_pages()), "these are on no page any more"
    assert len(KNOWN) == len(TABLE)


def test_each_entry_says_one_thing() -> None:
    for entry in TABLE:
        assert set(entry) in ({"command", "run_by"}, {"command", "needs"}, {"text"}), entry
        assert all(isinstance(value, str) and value.strip() for value in entry.values()), entry


@pytest.mark.parametrize("test", sorted({entry["run_by"] for entry in TABLE if "run_by" in entry}))
def test_the_test_that_runs_it_exists(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def ours() -> set[str]:
    """What is said of `casa-hub` anywhere, in blocks and sentences."""
    spans = {text for _, text in inline_code()} | set(on_pages())
    found = set()
    for text in spans:
        if match := re.search(r"(?:^|-- )casa-hub (?!audit:)(.+)$", text):
            found.add(match[1])
    return found


@pytest.mark.parametrize("text", sorted(ours()))
def test_casa_hub_takes_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the command's own parser, not run; a sentence may leave out the last words."""
    taken = []
    monkeypatch.setattr(cli, "_run", lambda options: taken.append(options) or 0)
    words = re.sub(r"[\[\]]|\.\.\.", "", text).split()
    left_out = {"-f": ["FILE"], "revoke": ["USER"], "rebind": ["USER"], "token": ["xcache"], "new-key": ["FILE"]}
    left_out |= {word: ["-f", "FILE"] for word in ("check", "cache", "jwks")}
    words += left_out.get(words[-1], [])
    assert cli.main(words) == 0
    assert taken


def test_make_has_the_targets() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = {text for _, text in inline_code() if re.match(r"make [a-z]", text)} | {
        command for command in on_pages() if command.startswith("make ")
    }
    assert {text.split()[1] for text in said} <= targets
    assert len(said) >= 8


def test_the_trial_s_commands_are_those_of_its_values() -> None:
    """The page repeats what stands on top of dev.yaml, where tests/helm runs it from."""
    there = re.findall(r"^#   (.*)$", (ROOT / "helm-values" / "dev.yaml").read_text(), re.MULTILINE)
    page = (ROOT / "docs" / "getting-started.md").read_text()
    assert "\n".join(f"    {line}" for line in there) in page
