"""Which programs a choice of `Facility.bearer_token_file` breaks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.bearer_file import NONE, ServerFile, check
from casa_hub.credentials.base import BearerKind
from casa_hub.errors import Severity

MACAROON, ISSUED, OWN, EXCHANGED = BearerKind.MACAROON, BearerKind.ISSUED, BearerKind.OWN, BearerKind.EXCHANGED
#: What a facility's XCache takes -> the files of its credential.
XCACHE = {
    "macaroon": {"xcache_token": ServerFile("xcache", MACAROON)},
    "token": {"xcache_token": ServerFile("xcache", ISSUED)},
    "both": {"xcache_token": ServerFile("xcache", MACAROON), "xcache_jwt": ServerFile("xcache", ISSUED)},
}
OTHERS = {
    "bearer": {"access_token": ServerFile("bearer", OWN)},
    "servicex": {".servicex": ServerFile("servicex")},
    "pool": {"pool_token": ServerFile("pool", ISSUED)},
    "site": {"site_macaroon": ServerFile("site", MACAROON)},
    "exchange:tape": {"tape_token": ServerFile("exchange:tape", EXCHANGED)},
    "dask": {"ca.pem": ServerFile("dask")},
}


def troubles(choice: str, xcache: str, *others: str) -> list[str]:
    files = {**XCACHE.get(xcache, {}), **{path: one for name in others for path, one in OTHERS[name].items()}}
    credentials = ["xcache"] * bool(xcache) + list(others)
    problems = check(choice, files, credentials, chosen=True, all_known=True)
    assert all(problem.severity is Severity.WARNING for problem in problems)
    return [problem.problem.removeprefix(f"with {choice}, ") for problem in problems]


@pytest.mark.parametrize(
    ("choice", "xcache", "others", "expected"),
    [
        # The XRootD client reads what its XCache takes, whatever the file is called.
        ("xcache_token", "macaroon", [], []),
        ("xcache_token", "token", [], []),
        ("xcache_token", "both", [], []),
        ("xcache_jwt", "both", [], []),
        ("access_token", "macaroon", ["bearer"], ["an XCache that takes macaroons only refuses the user's token"]),
        ("access_token", "token", ["bearer"], ["knows no other issuer than the facility's refuses the user's token"]),
        ("access_token", "both", ["bearer"], ["knows no other issuer than the facility's refuses the user's token"]),
        ("pool_token", "token", ["pool"], ["refuses the token of pool, and the XRootD client shows"]),
        ("site_macaroon", "macaroon", ["site"], ["takes macaroons only refuses the macaroon of site"]),
        ("tape_token", "both", ["exchange:tape"], ["refuses the token of exchange:tape, and the XRootD client shows"]),
        ("none", "macaroon", [], ["finds no macaroon for XCache by itself"]),
        ("none", "token", [], ["finds no token for XCache by itself"]),
        ("none", "both", [], ["finds no macaroon for XCache by itself"]),
        # The ServiceX client wants a JWT, and its service must know the issuer.
        ("xcache_token", "macaroon", ["servicex"], ["takes a macaroon for its access token and fails with"]),
        ("xcache_token", "token", ["servicex"], ["sends the token of xcache as its access token, and is refused"]),
        ("xcache_jwt", "both", ["servicex"], ["sends the token of xcache as its access token, and is refused"]),
        ("access_token", "", ["servicex", "bearer"], []),
        (
            "tape_token",
            "",
            ["servicex", "exchange:tape"],
            ["the token of exchange:tape as its access token, which is refused unless it is for that ServiceX"],
        ),
        # The WLCG tools want the user's own.
        ("xcache_token", "macaroon", ["bearer"], ["send a macaroon where the user's token is expected"]),
        ("xcache_token", "token", ["bearer"], ["the token of xcache, which is for one service alone, where"]),
        ("tape_token", "", ["bearer", "exchange:tape"], ["the token of exchange:tape, which is for one service alone"]),
        ("none", "", ["bearer", "servicex"], []),
        # Two readers.
        ("xcache_token", "both", ["servicex", "bearer"], ["MalformedError", "send a macaroon"]),
        # Not a token, or not known to be one.
        ("ca.pem", "macaroon", ["dask"], ["what dask writes there"]),
    ],
)
def test_readers_are_broken_by_what_the_file_holds(
    choice: str, xcache: str, others: list[str], expected: list[str]
) -> None:
    said = troubles(choice, xcache, *others)
    assert len(said) == len(expected)
    for text, words in zip(said, expected, strict=True):
        assert words in text


@pytest.mark.parametrize(
    ("choice", "needs"),
    [
        ("xcache_token", "the credential xcache"),
        ("access_token", "the credential bearer"),
        ("xcache_jwt", "XCache.credential: both"),
    ],
)
def test_a_file_that_nothing_delivers_is_an_error_with_what_would_deliver_it(choice: str, needs: str) -> None:
    [problem] = check(choice, OTHERS["dask"], ["dask"], chosen=True, all_known=False)
    assert problem.severity is Severity.ERROR
    assert needs in problem.problem
    assert problem.remedy == "Add that, or choose none."


def test_a_default_that_nothing_delivers_is_no_fault() -> None:
    assert check("xcache_token", OTHERS["dask"], ["dask"], chosen=False, all_known=True) == []


KINDS = st.none() | st.sampled_from(BearerKind)
FILES = st.dictionaries(
    st.sampled_from(["xcache_token", "xcache_jwt", "access_token", "a", "b"]),
    st.builds(ServerFile, st.sampled_from(["xcache", "bearer", "servicex", "dask"]), KINDS),
)


@given(FILES, st.sampled_from(["xcache_token", "access_token", "a", NONE]), st.booleans(), st.booleans())
def test_a_choice_is_an_error_only_if_nothing_is_there_and_each_reader_is_told_once(
    files: dict[str, ServerFile], choice: str, chosen: bool, all_known: bool
) -> None:
    credentials = sorted({file.credential for file in files.values()})
    problems = check(choice, files, credentials, chosen=chosen, all_known=all_known)
    delivered = choice == NONE or choice in files
    assert any(problem.severity is Severity.ERROR for problem in problems) <= (not delivered and chosen)
    assert len(problems) <= 3
    assert len({str(problem) for problem in problems}) == len(problems)
    if delivered and choice != NONE and files[choice] == ServerFile("xcache", BearerKind.ISSUED):
        assert not any("XRootD" in problem.problem for problem in problems)
