"""What "My credentials" says of the sign-in."""

from __future__ import annotations

import math

import pytest

from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import Member, Standing, outcome
from casa_hub.membership.policy import Allowed
from casa_hub.membership.settings import Keeper
from casa_hub.web.credentials_page import _sign_in

NOW = 1.7e9
KEEPER = Keeper(recheck_interval=300, outage_grace=14400, membership_max_age=86400, revoked_grace=3600)
ALLOWED = Allowed(frozenset({"/cms", "/cms/uscms"}), admin=False, ways_in=frozenset({"/cms/uscms"}))

LASTS = ("Lasts", None, "you don't have to do anything")
LOG_IN = "Log out and in again before, and it goes on."
STAY = "Stay signed in: a new log-in doesn't help."

#: Case -> standing, seconds since a "no" is held back or None, then: label, end (from now), words of the advice.
TABLE = {
    "a member": (Standing(Verdict.YES, NOW, "", NOW, "one", ALLOWED), None, LASTS),
    "a sign-in with an end": (
        Standing(Verdict.YES, NOW, "", NOW, "one", ALLOWED, sign_in_ends_at=NOW + 500),
        None,
        ("Your sign-in runs out", 500, LOG_IN),
    ),
    "nobody can be asked": (
        Standing(Verdict.YES, NOW, "", NOW - 400, "one", aged=True),
        None,
        ("Your access ends", 86000, LOG_IN),
    ),
    "the sign-in was taken back": (
        Standing(Verdict.LOG_IN_AGAIN, NOW, "taken back", NOW - 400, "one", revoked_at=NOW - 60),
        None,
        ("Your access ends", 3540, LOG_IN),
    ),
    "the provider is silent": (
        Standing(Verdict.CANT_SAY, NOW, "it is away", NOW - 400, "one"),
        None,
        ("Your access ends", 14000, STAY),
    ),
    "a no that is held back": (
        Standing(Verdict.NO, NOW, "no member", NOW - 400, "one"),
        100,
        ("Your access ends", 14000, STAY),
    ),
    "a page that didn't wait for the answer": (Standing(Verdict.CANT_SAY, NOW, "", NOW - 60, "one"), None, LASTS),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_page_says_when_access_ends_and_what_helps(case: str) -> None:
    standing, held, (label, end, words) = TABLE[case]
    member = Member("alice", standing=standing, held_since=None if held is None else NOW - held)
    found = _sign_in("CMS IAM", member, outcome(member, KEEPER, NOW))
    assert found.label == label
    assert found.ends_at == (None if end is None else NOW + end)
    assert words in found.advice
    assert found.confirmed_at == standing.last_yes


def test_before_the_first_answer_nothing_is_claimed() -> None:
    member = Member("alice")
    found = _sign_in("CMS IAM", member, outcome(member, KEEPER, NOW))
    assert (found.ways_in, found.confirmed_at) == ([], None)


def test_only_the_groups_that_let_in_are_named() -> None:
    member = Member("alice", standing=Standing(Verdict.YES, NOW, "", NOW, "one", ALLOWED))
    assert _sign_in("CMS IAM", member, outcome(member, KEEPER, NOW)).ways_in == ["/cms/uscms"]
    assert math.isinf(outcome(member, KEEPER, NOW).ends_at)
