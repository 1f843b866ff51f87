"""What the guide tells a pool to say is what the tests' pool says."""

from __future__ import annotations

import re
from pathlib import Path

from casa_hub.demo.credd import JobTokens
from tests.docs.pages import blocks

#: For a credmon with a user of its own, which the tests' pool has not: root's Python is often root's alone.
ONLY_IN_THE_GUIDE = {"CREDMON_OAUTH_USERID": "condor", "TRUST_CREDENTIAL_DIRECTORY": "True"}
#: For several pools on one machine.
ONLY_IN_THE_TESTS = {"CREDD_ARGS"}
#: Of each pool its own.
PLACES = {"CREDD_HOST", "SEC_CREDENTIAL_DIRECTORY_OAUTH"}


def settings(text: str) -> dict[str, str]:
    """Setting -> value; that of a block is its lines."""
    found: dict[str, str] = {}
    for name, block, line in re.findall(r"^(\w+) (?:@=end\n(.*?)^@end$|= *([^\n]*)$)", text, re.MULTILINE | re.DOTALL):
        found[name] = " ".join((block or line).split())
    return found


def options(arguments: str) -> list[str]:
    return re.findall(r"casa_hub[.]credmon|--\w+", arguments)


def test_the_pool_of_the_guide_is_that_of_the_tests() -> None:
    (guide,) = (settings(block.content) for block in blocks() if "CREDMON_OAUTH =" in block.content)
    tokens = JobTokens(
        "https://hub.example.org/hub/casa/issuer/cms",
        Path("/etc/condor/credmon/2026-11.pem"),
        ["https://xcache.example.org:1094"],
        ["storage.read:/store"],
    )
    pool = settings(tokens.configuration())
    assert guide.keys() - ONLY_IN_THE_GUIDE.keys() == pool.keys() - ONLY_IN_THE_TESTS
    assert ONLY_IN_THE_GUIDE.items() <= guide.items()
    same = pool.keys() - PLACES - ONLY_IN_THE_TESTS - {"CREDMON_OAUTH_ARGS"}
    assert {name: guide[name] for name in same} == {name: pool[name] for name in same}
    assert options(guide["CREDMON_OAUTH_ARGS"]) == options(pool["CREDMON_OAUTH_ARGS"])
