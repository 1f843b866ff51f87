"""The client is also a distribution of its own: it imports the standard library, itself, and nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import casa_hub
from casa_hub import client

FILES = sorted(Path(client.__file__).parent.glob("*.py"))


def test_it_imports_nothing_else() -> None:
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, file  # its own directory, under whichever name that is installed
                found |= {(node.module or "").partition(".")[0]} if not node.level else set()
    assert "urllib" in found
    assert found <= sys.stdlib_module_names


def test_both_distributions_are_of_one_version() -> None:
    assert client.__version__ == casa_hub.__version__
