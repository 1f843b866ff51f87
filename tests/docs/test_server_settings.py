"""docs/operators.md shows the settings with which the tests' XCache and pool run: each line is one of theirs."""

from __future__ import annotations

import re

import pytest

from casa_hub.demo import htcondor, htcondor_tokens, xrootd
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "operators.md"
_XROOTD = xrootd._COMMON + xrootd._MACAROONS.replace("{tokens}", "") + xrootd._TOKENS + xrootd._SCITOKENS
THEIRS = (
    (_XROOTD + htcondor._CONFIG + htcondor_tokens._CONFIG + htcondor_tokens._MAP)
    .replace("{ztn_asks}", xrootd._ONLY_MACAROONS)
    .replace("$(LOCAL_DIR)", "{directory}")
    .splitlines()
)


def lines() -> list[str]:
    """Of the page's blocks of settings, but the credmon's (test_job_tokens.py)."""
    shown = [block for block in blocks() if block.page == PAGE and block.language == "text"]
    shown = [block for block in shown if "CREDMON_OAUTH" not in block.content]
    return [line for block in shown for line in block.content.splitlines() if line]


def fits(line: str, template: str) -> bool:
    """Whether a line is what a template makes; a site has other names, ports and paths."""
    parts = (re.escape(part) for part in re.split(r"\{\w+\}", template.strip()))
    return re.fullmatch(r"\S+".join(parts), line) is not None


@pytest.mark.parametrize("line", lines())
def test_the_tests_servers_have_it(line: str) -> None:
    assert any(fits(line, template) for template in THEIRS)


def test_there_are_both() -> None:
    assert len(lines()) >= 20
    assert not fits("ofs.authlib libXrdOther.so", "ofs.authlib libXrdMacaroons.so")
