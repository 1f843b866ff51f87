"""What a request or a start may do now, by where somebody stands: pages, API tokens, technical users, who is back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.admission import NOTICE, PATIENCE, Admission, MembershipError
from casa_hub.membership.member import Member, Members, Revocation, Standing
from casa_hub.membership.settings import Keeper
from casa_hub.membership.tables import Entry

NOW = 1.7e9
YES, NO, AGAIN, CANT_SAY = Verdict.YES, Verdict.NO, Verdict.LOG_IN_AGAIN, Verdict.CANT_SAY
ALICE: Any = SimpleNamespace(name="alice")
OUT = Entry("alice", "one", "Out of /cms.", "no", "", NOW - 60)


class Recheck:
    """Everybody stands where a test says."""

    def __init__(self, verdict: Verdict, last_yes: float = NOW - 60, **more: Any) -> None:
        self.now = NOW
        self.members = Members(Keeper(), lambda: self.now)
        self.standing = Standing(verdict, NOW, "it says so.", last_yes, "one", **more)
        self.asked: list[dict[str, Any]] = []

    async def of(self, user: Any, **how: Any) -> Standing:
        self.asked.append(how)
        self.members[user.name].standing = self.standing
        return self.standing

    @property
    def alice(self) -> Member:
        return self.members["alice"]


def admission(recheck: Recheck, *technical: str) -> Admission:
    return Admission(recheck, technical)  # type: ignore[arg-type]


def request(by: str) -> Any:
    """Of alice's browser, with a token of hers, or of another user's browser (an administrator looks at her)."""
    other = SimpleNamespace(name="operator")
    return SimpleNamespace(_token_authenticated=by == "token", _jupyterhub_user=other if by == "other" else ALICE)


@pytest.mark.parametrize(
    ("verdict", "last_yes", "cookie", "token"),
    [
        (YES, NOW - 60, True, True),
        (AGAIN, NOW - 60, False, True),
        (AGAIN, NOW - 86400, False, False),
        (CANT_SAY, NOW - 60, True, True),
        (CANT_SAY, NOW - 14400, False, False),
        (NO, NOW - 60, False, False),
    ],
    ids=["yes", "log in again", "for too long", "no answer", "for too long", "no"],
)
async def test_a_cookie_is_sent_to_a_new_log_in_and_a_token_goes_on_while_the_membership_counts(
    verdict: Verdict, last_yes: float, cookie: bool, token: bool
) -> None:
    recheck = Recheck(verdict, last_yes)
    follows = [await admission(recheck).of_request(ALICE, request(by)) for by in ("cookie", "token", "other")]
    assert follows == [cookie, token, token]
    assert recheck.asked[0] == {"max_age": Keeper().recheck_interval, "patience": PATIENCE}


async def test_a_technical_user_never_has_a_browser_session() -> None:
    one = admission(Recheck(YES), "alice")
    assert [await one.of_request(ALICE, request(by)) for by in ("cookie", "token")] == [False, True]


async def test_the_page_that_asks_for_the_log_in_says_why() -> None:
    await admission(Recheck(AGAIN)).of_request(ALICE, request("cookie"))
    assert NOTICE.get().startswith("Please log in again: it says so.")


@pytest.mark.parametrize(
    ("verdict", "remedy"),
    [(NO, "Ask the administrators of this hub"), (AGAIN, "Log in again"), (CANT_SAY, "Try again in a few minutes")],
)
async def test_a_start_is_refused_with_what_to_do(verdict: Verdict, remedy: str) -> None:
    with pytest.raises(MembershipError) as caught:
        await admission(Recheck(verdict, NOW - 1e6)).of_start(ALICE)
    assert caught.value.jupyterhub_message == f"it says so. {remedy}."


async def test_nothing_starts_while_the_access_of_the_same_log_in_ends() -> None:
    recheck = Recheck(YES)
    recheck.alice.revocation = Revocation(OUT, ALICE, 1, set())
    with pytest.raises(MembershipError, match="Out of /cms"):
        await admission(recheck).of_start(ALICE)
    recheck.standing = Standing(YES, NOW, "", NOW, "two")
    assert (await admission(recheck).of_start(ALICE)).session_id == "two"


@pytest.mark.parametrize(("verdict", "told"), [(YES, True), (NO, False)])
async def test_only_who_is_let_in_again_is_told_so_and_for_one_day(verdict: Verdict, told: bool) -> None:
    """Another "no" later that day said so as well, on the page that asks for the log-in."""
    recheck = Recheck(verdict)
    await recheck.of(ALICE)
    recheck.alice.last_revocation = OUT
    one = admission(recheck)
    assert ("You are let in again" in one.notice(ALICE)) is told
    recheck.now += 86400
    assert ("You are let in again" in one.notice(ALICE)) is told
    recheck.now += 1
    assert "You are let in again" not in one.notice(ALICE)


def test_who_is_not_known_is_told_nothing_and_gets_no_record() -> None:
    recheck = Recheck(YES)
    assert admission(recheck).notice(SimpleNamespace(name="stranger")) == ""
    assert list(recheck.members) == []
