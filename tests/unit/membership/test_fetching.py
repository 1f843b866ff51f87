"""What credentials are made of: for whom it is asked, how often, with whose token, and how long anybody waits.

The service that is asked, and the provider, are what a test lets them say.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Outcomes, Why
from casa_hub.errors import CredentialError
from casa_hub.identity.session import Kept
from casa_hub.identity.transport import Reply
from casa_hub.membership.fetching import _RENEWALS, _STARTS, Fetching
from casa_hub.membership.log_ins import LogIns
from casa_hub.membership.member import Members, Revocation
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.settings import Keeper
from casa_hub.membership.tables import Entry
from casa_hub.metrics import FETCHES
from tests.support.waiting import until_async as until
from tests.unit.membership.test_recheck import CANT_SAY, LOG_IN_AGAIN, NO, NOW, User, World, locked

LIFE = 3600.0
SECRET = "very-secret"
REFUSED = FetchError("a token", "you may not have it", "Ask for the group.", Why.REFUSED)


def read(answer: Answer) -> Fetched:
    """401 is a refusal of the token, 403 one of this thing."""
    if answer.status in (401, 403):
        raise FetchError("a token", "refused", "Ask.", Why.SIGN_IN if answer.status == 401 else Why.REFUSED)
    assert isinstance(answer.body, str)
    return Fetched(answer.body, answer.now, answer.now + timedelta(seconds=LIFE))


def wanted(*names: str, read: Callable[[Answer], Any] = read) -> dict[str, Fetch]:
    return {name: Fetch(f"a token for {name}", read, form={"audience": name}) for name in names}


@dataclass
class Service:
    """What is asked, in place of `Fetches`."""

    #: Audience and access token of each request.
    asked: list[tuple[str, str]] = field(default_factory=list)
    #: Audience -> what it answers, or raises; else a value with the token's name.
    says: dict[str, Any] = field(default_factory=dict)
    #: Audience -> answers only when it is set.
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    #: Requests at the same time, now and at most.
    busy: int = 0
    most: int = 0

    async def ask(self, fetch: Fetch, access_token: str) -> Reply:
        audience = fetch.form["audience"]
        self.asked.append((audience, access_token))
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            if audience in self.gates:
                await self.gates[audience].wait()
            await asyncio.sleep(0)
        finally:
            self.busy -= 1
        said = self.says.get(audience, f"{SECRET} {audience} of {access_token}")
        said = said(access_token) if callable(said) else said
        if isinstance(said, Exception):
            raise said
        return Reply(said, None) if isinstance(said, int) else Reply(200, said)

    @property
    def audiences(self) -> list[str]:
        return [audience for audience, _ in self.asked]


class Hub(World):
    """A user who has logged in, the provider, and a service that is asked."""

    def __post_init__(self) -> None:
        self.service = Service()
        self.userinfo_gate: asyncio.Event | None = None
        #: Questions about memberships at the same time, now and at most.
        self.asked_about = self.most_asked_about = 0
        super().__post_init__()

    async def userinfo(self, token: str, *, sub: str) -> dict[str, Any]:
        self.asked_about += 1
        self.most_asked_about = max(self.most_asked_about, self.asked_about)
        try:
            if self.userinfo_gate is not None:
                await self.userinfo_gate.wait()
            return await super().userinfo(token, sub=sub)
        finally:
            self.asked_about -= 1

    def restarted(self, **settings: float) -> Recheck:
        super().restarted()
        self.members = Members(Keeper(**{"fetch_patience": 5.0, **settings}), lambda: self.now)
        self.log_ins = LogIns(self.members, self)  # type: ignore[arg-type]
        self.recheck = Recheck(
            self.log_ins,
            self,  # type: ignore[arg-type]
            self._decide,
            groups_live=True,
            on_yes=lambda *_: None,
        )
        self.fetching = Fetching(self.recheck, self.service)  # type: ignore[arg-type]
        return self.recheck

    async def start(self, *names: str, user: User | None = None, **more: Any) -> Outcomes:
        return await self.fetching.of(user or self.user, more.pop("wanted", wanted(*names)), **more)

    async def idle(self) -> None:
        """Until nothing is under way, and all is stored."""
        await until(lambda: not self.fetching._under_way and not self.fetching._background.tasks, seconds=5)

    def stored(self, user: User | None = None) -> dict[str, str]:
        session = (user or self.user).session
        return {} if session is None else {name: kept.fetched.value for name, kept in session.fetched.items()}


def value(outcome: Fetched | CredentialError) -> str:
    assert isinstance(outcome, Fetched), outcome
    return outcome.value


def why(outcome: Fetched | CredentialError) -> Why:
    assert isinstance(outcome, FetchError), outcome
    return outcome.why


async def test_what_was_fetched_is_kept_with_the_log_in_and_asked_for_once() -> None:
    hub, said = Hub(), []
    outcomes = await hub.start("rucio", "panda", say=said.append)
    assert {name: value(one) for name, one in outcomes.items()} == {
        "rucio": f"{SECRET} rucio of token",
        "panda": f"{SECRET} panda of token",
    }
    assert said == ["Asking for a token for rucio and a token for panda"]
    await hub.idle()
    assert hub.stored().keys() == {"rucio", "panda"}
    hub.restarted()
    again = await hub.start("rucio", "panda", say=said.append)
    assert {name: value(one) for name, one in again.items()} == hub.stored()
    assert len(hub.service.asked) == 2
    assert len(said) == 1


async def test_it_counts_for_about_two_thirds_of_its_life() -> None:
    hub = Hub()
    await hub.start("rucio")
    await hub.idle()
    hub.now = NOW + 0.6 * LIFE
    await hub.start("rucio")
    assert hub.service.audiences == ["rucio"]
    hub.now = NOW + 0.73 * LIFE
    await hub.start("rucio")
    assert hub.service.audiences == ["rucio", "rucio"]


async def test_another_request_of_the_same_credential_is_not_answered_by_what_is_kept() -> None:
    """The operator has changed the audience."""
    hub = Hub()
    await hub.start("rucio")
    await hub.idle()
    other = {"rucio": replace(wanted("rucio")["rucio"], form={"audience": "other"})}
    assert value((await hub.start(wanted=other))["rucio"]) == f"{SECRET} other of token"
    assert await hub.fetching.kept(hub.user, wanted("rucio")) == {}


async def test_nobody_is_asked_for_somebody_who_is_refused() -> None:
    hub = Hub()
    hub.decision = NO
    hub.recheck.doubt("alice")
    outcomes = await hub.start("rucio", "panda")
    assert {why(one) for one in outcomes.values()} == {Why.SIGN_IN}
    assert "not in /cms" in str(outcomes["rucio"])
    assert hub.service.asked == []


async def test_nobody_is_asked_for_somebody_without_a_log_in() -> None:
    hub = Hub()
    hub.user.state = None
    assert isinstance((await hub.start("rucio"))["rucio"], CredentialError)
    assert hub.service.asked == []
    assert await hub.fetching.kept(hub.user, wanted("rucio")) == {}


async def test_nobody_is_asked_with_the_token_of_another_provider() -> None:
    hub = Hub()
    hub.log_in("two", issuer="https://other.example.org/")
    assert why((await hub.start("rucio"))["rucio"]) is Why.SIGN_IN
    assert hub.service.asked == []


async def test_nobody_is_asked_for_somebody_whose_access_is_being_ended() -> None:
    hub = Hub()
    hub.members["alice"].revocation = Revocation(Entry("alice", "one", "left", "", "", 0.0), hub.user, 1, set())
    assert why((await hub.start("rucio"))["rucio"]) is Why.SIGN_IN
    assert hub.service.asked == []


async def test_who_loses_the_membership_while_requests_wait_for_their_turn_is_not_asked_for() -> None:
    """Behind slow requests of others the check before may be of minutes ago."""
    hub = Hub()
    hub.service.gates["slow"] = asyncio.Event()
    others = [User(f"other-{number}", id=number + 2) for number in range(_STARTS)]
    for number, other in enumerate(others):
        hub.log_in(f"of {number}", other)
    waiting = [asyncio.create_task(hub.start("slow", user=other)) for other in others]
    await until(lambda: hub.service.busy == _STARTS, seconds=5)
    start = asyncio.create_task(hub.start("rucio"))
    [room] = hub.fetching._rooms.values()
    await until(lambda: room._waiters, seconds=5)
    await hub.recheck.refused(hub.user, NO.reason, NO)
    hub.service.gates["slow"].set()
    assert why((await start)["rucio"]) is Why.SIGN_IN
    await asyncio.gather(*waiting)
    assert "rucio" not in hub.service.audiences
    assert hub.service.most == _STARTS


async def test_a_silent_service_holds_up_nobody_who_asks_another_one() -> None:
    """All shared the same places: with a service of proxies away, nobody got an exchanged token in time."""
    hub = Hub()
    hub.service.gates["slow"] = asyncio.Event()
    others = [User(f"other-{number}", id=number + 2) for number in range(_STARTS)]
    for number, other in enumerate(others):
        hub.log_in(f"of {number}", other)
    proxy = {"slow": replace(wanted("slow")["slow"], url="https://proxies.example.org/redeem")}
    waiting = [asyncio.create_task(hub.start(wanted=proxy, user=other)) for other in others]
    await until(lambda: hub.service.busy == _STARTS, seconds=5)
    assert value((await hub.start("rucio"))["rucio"])
    hub.service.gates["slow"].set()
    await asyncio.gather(*waiting)


async def test_many_renewals_ask_about_few_memberships_at_once() -> None:
    """A restarted hub knows of no membership. All at once, they left no connection to the provider for a log-in."""
    hub = Hub()
    people = [User(f"person-{number}", id=number + 2) for number in range(5 * _RENEWALS)]
    for user in people:
        hub.log_in(f"of {user.name}", user, sub=user.name, access_token=user.name)
    hub.restarted()
    hub.userinfo_gate = asyncio.Event()
    renewals = [asyncio.create_task(hub.start("rucio", user=user, newer_than={})) for user in people]
    await until(lambda: hub.asked_about >= _RENEWALS, seconds=5)
    hub.userinfo_gate.set()
    found = await asyncio.gather(*renewals)
    assert {value(one["rucio"]) for one in found} == {f"{SECRET} rucio of {user.name}" for user in people}
    assert hub.most_asked_about == _RENEWALS


async def test_who_loses_the_membership_during_a_request_gets_nothing_of_it() -> None:
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio"))
    await until(lambda: hub.service.busy == 1, seconds=5)
    await hub.recheck.refused(hub.user, NO.reason, NO)
    hub.service.gates["rucio"].set()
    assert why((await start)["rucio"]) is Why.SIGN_IN
    await hub.idle()
    assert hub.stored() == {}


async def test_a_log_in_that_ends_during_a_request_leaves_nothing_of_it() -> None:
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio"))
    await until(lambda: hub.service.busy == 1, seconds=5)
    await hub.log_ins.forget(hub.user, "one")
    hub.service.gates["rucio"].set()
    assert why((await start)["rucio"]) is Why.SIGN_IN
    await hub.idle()
    assert hub.user.state is None


async def test_a_log_in_during_a_request_loses_neither_the_start_nor_what_was_fetched() -> None:
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio", "panda"))
    await until(lambda: hub.service.busy >= 1, seconds=5)
    hub.log_in("two", access_token="second")
    other = asyncio.create_task(hub.start("rucio"))
    await until(lambda: hub.service.audiences.count("rucio") == 2, seconds=5)
    hub.service.gates["rucio"].set()
    assert value((await start)["rucio"]) == f"{SECRET} rucio of token"
    assert value((await other)["rucio"]) == f"{SECRET} rucio of second"
    await hub.idle()
    assert hub.stored()["rucio"] == f"{SECRET} rucio of second"
    assert hub.user.session is not None
    assert hub.user.session.id == "two"


async def test_a_log_in_before_a_request_has_its_turn_is_asked_with() -> None:
    hub = Hub()
    hub.recheck.doubt("alice")
    hub.userinfo_gate = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio"))
    await until(lambda: hub.asked_about == 1, seconds=5)
    hub.log_in("two", access_token="second")
    hub.userinfo_gate.set()
    assert value((await start)["rucio"]) == f"{SECRET} rucio of second"
    await hub.idle()
    assert hub.stored() == {"rucio": f"{SECRET} rucio of second"}


async def test_a_name_that_somebody_else_gets_during_a_request_brings_nobody_the_other_s_token() -> None:
    """An administrator deletes a user; SQLite gives the number to the next one."""
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio"))
    await until(lambda: hub.service.busy == 1, seconds=5)
    next_one = User("bob", id=hub.user.id)
    hub.log_in("two", next_one, sub="other", access_token="bob's")
    theirs = asyncio.create_task(hub.start("rucio", user=next_one))
    await until(lambda: hub.service.busy == 2, seconds=5)
    hub.log_in("three", sub="other", access_token="theirs")  # and the name
    hub.service.gates["rucio"].set()
    assert why((await start)["rucio"]) is Why.SIGN_IN
    assert value((await theirs)["rucio"]) == f"{SECRET} rucio of bob's"
    await hub.idle()
    assert hub.stored() == {}
    assert hub.stored(next_one) == {"rucio": f"{SECRET} rucio of bob's"}


async def test_two_people_at_once_are_never_mixed() -> None:
    hub = Hub()
    people = [User(f"person-{number}", id=number) for number in range(2, 30)]
    for user in people:
        hub.log_in(f"of {user.name}", user, sub=user.name, access_token=user.name)
    found = await asyncio.gather(*(hub.start("rucio", "panda", user=user) for user in people))
    await hub.idle()
    for user, outcomes in zip(people, found, strict=True):
        for name in ("rucio", "panda"):
            assert value(outcomes[name]) == hub.stored(user)[name] == f"{SECRET} {name} of {user.name}"


async def test_two_starts_of_one_person_share_a_request() -> None:
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    starts = [asyncio.create_task(hub.start("rucio", "panda")) for _ in range(5)]
    await until(lambda: "rucio" in hub.service.audiences, seconds=5)
    hub.service.gates["rucio"].set()
    found = await asyncio.gather(*starts)
    assert {value(one["rucio"]) for one in found} == {f"{SECRET} rucio of token"}
    assert sorted(hub.service.audiences) == ["panda", "rucio"]


@pytest.mark.parametrize("answer", [503, REFUSED, 403], ids=["an error page", "refused", "refused by its status"])
async def test_one_failure_leaves_the_others_alone(answer: Any) -> None:
    hub = Hub()
    hub.service.says["rucio"] = FetchError("idp", "down", "Wait.") if answer == 503 else answer
    outcomes = await hub.start("rucio", "panda")
    assert why(outcomes["rucio"]) is (Why.OUTAGE if answer == 503 else Why.REFUSED)
    assert value(outcomes["panda"]) == f"{SECRET} panda of token"
    await hub.idle()
    assert hub.stored().keys() == {"panda"}


async def test_a_start_waits_only_so_long_for_all_of_it_together_and_the_next_one_finds_the_answer() -> None:
    hub = Hub()
    hub.restarted(fetch_patience=1)
    hub.service.gates |= {"rucio": asyncio.Event(), "panda": asyncio.Event()}
    outcomes = await hub.start("rucio", "panda", "dcache")  # the gates open afterwards
    assert value(outcomes["dcache"])
    assert "no answer after 1 seconds" in str(outcomes["rucio"])
    assert "the running server gets it" in str(outcomes["panda"])
    for gate in hub.service.gates.values():
        gate.set()
    await hub.idle()
    assert hub.stored().keys() == {"rucio", "panda", "dcache"}
    assert {*map(value, (await hub.start("rucio", "panda")).values())} <= {*hub.stored().values()}
    assert len(hub.service.asked) == 3


async def test_the_bound_of_a_start_counts_from_before_the_log_in_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among five hundred starts on a busy machine that took more than two seconds."""
    hub, loop = Hub(), asyncio.get_running_loop()
    hub.restarted(fetch_patience=60)
    hub.service.gates["rucio"] = asyncio.Event()
    real, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: real() + ahead)
    async with hub.members[hub.user.name].saving:
        start = asyncio.create_task(hub.start("rucio"))
        await asyncio.sleep(0)
        ahead = 61.0
    async with asyncio.timeout(20):
        assert "no answer after 60 seconds" in str((await start)["rucio"])
    hub.service.gates["rucio"].set()
    await hub.idle()


async def test_a_failure_that_nobody_waits_for_any_more_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The event loop has told it as an error that was never retrieved. Who wanted it tells of it: start or renewal."""
    hub = Hub()
    hub.restarted(fetch_patience=0.05)
    hub.service.gates["rucio"] = asyncio.Event()
    hub.service.says["rucio"] = FetchError("idp", "down", "Wait.")
    await hub.start("rucio")
    hub.service.gates["rucio"].set()
    await hub.idle()
    gc.collect()
    await asyncio.sleep(0)
    assert isinstance((await hub.start("rucio"))["rucio"], FetchError)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_where_nobody_answers_a_start_gets_what_is_kept_for_as_long_as_it_lives() -> None:
    hub = Hub()
    await hub.start("rucio")
    await hub.idle()
    hub.now = NOW + 0.9 * LIFE
    hub.service.says["rucio"] = FetchError("idp", "down", "Wait.")
    assert value((await hub.start("rucio"))["rucio"]) == f"{SECRET} rucio of token"
    hub.now = NOW + 1.1 * LIFE
    assert why((await hub.start("rucio"))["rucio"]) is Why.OUTAGE


async def test_what_is_refused_is_not_given_any_longer_than_it_counts() -> None:
    hub = Hub()
    await hub.start("rucio")
    await hub.idle()
    hub.now = NOW + 0.9 * LIFE
    hub.service.says["rucio"] = REFUSED
    assert why((await hub.start("rucio"))["rucio"]) is Why.REFUSED


async def test_a_renewal_asks_anew_for_what_the_server_has_and_takes_what_is_newer() -> None:
    hub = Hub()
    first = (await hub.start("rucio"))["rucio"]
    await hub.idle()
    assert isinstance(first, Fetched)
    # A server's record has no fractions of a second.
    has = {"rucio": first.at.replace(microsecond=0)}
    hub.now += 10.5
    renewed = (await hub.start("rucio", newer_than=has))["rucio"]
    assert isinstance(renewed, Fetched)
    assert renewed.at == first.at + timedelta(seconds=10.5)
    assert len(hub.service.asked) == 2
    await hub.idle()
    second_server = (await hub.start("rucio", newer_than=has))["rucio"]
    assert second_server == renewed
    assert len(hub.service.asked) == 2


async def test_a_renewal_is_not_content_with_the_token_that_the_server_has() -> None:
    """A record has whole seconds, so that the kept token looked newer than itself."""
    hub = Hub()
    hub.now += 0.75
    first = (await hub.start("rucio"))["rucio"]
    await hub.idle()
    assert isinstance(first, Fetched)
    await hub.start("rucio", newer_than={"rucio": first.at.replace(microsecond=0)})
    assert len(hub.service.asked) == 2


async def test_a_renewal_without_an_answer_is_told_although_an_older_one_lives() -> None:
    hub = Hub()
    first = (await hub.start("rucio"))["rucio"]
    await hub.idle()
    assert isinstance(first, Fetched)
    hub.service.says["rucio"] = FetchError("idp", "down", "Wait.")
    assert why((await hub.start("rucio", newer_than={"rucio": first.at}))["rucio"]) is Why.OUTAGE


async def test_an_access_token_that_the_provider_has_ended_is_replaced_once() -> None:
    hub = Hub()
    hub.service.says["rucio"] = lambda token: 401 if token == "token" else "good"
    hub.userinfo_says["token"] = LOG_IN_AGAIN
    assert value((await hub.start("rucio"))["rucio"]) == "good"
    assert hub.service.asked == [("rucio", "token"), ("rucio", "newer")]
    assert hub.refreshes == 1


async def test_requests_that_fail_together_replace_the_access_token_together() -> None:
    """IAM ends each access token at a refresh: one that replaces what another has just brought starts a chase."""
    hub = Hub()
    names = ["rucio", "panda", "dcache", "fts", "cric"]
    for name in names:
        hub.service.says[name] = lambda token: 401 if token == "token" else "good"
    hub.userinfo_says["token"] = LOG_IN_AGAIN
    outcomes = await hub.start(*names)
    assert {*map(value, outcomes.values())} == {"good"}
    assert hub.refreshes == 1


async def test_a_service_that_refuses_each_token_is_asked_once_with_each() -> None:
    hub = Hub()
    hub.service.says["rucio"] = 401
    assert why((await hub.start("rucio"))["rucio"]) is Why.SIGN_IN
    assert hub.service.asked == [("rucio", "token")]
    standing = hub.members["alice"].standing
    assert standing is not None
    assert standing.at == hub.now  # the provider was asked, and has said yes


async def test_a_revoked_sign_in_is_told_from_an_outage() -> None:
    hub = Hub()
    hub.service.says["rucio"] = 401
    hub.userinfo_says[""] = LOG_IN_AGAIN
    hub.says = LOG_IN_AGAIN
    outcome = (await hub.start("rucio"))["rucio"]
    assert why(outcome) is Why.SIGN_IN
    assert "Log out and in again" in str(outcome)


async def test_a_provider_in_an_outage_stops_no_request_of_a_member() -> None:
    hub = Hub()
    hub.says, hub.userinfo_says[""] = CANT_SAY, CANT_SAY
    hub.now += 400
    assert value((await hub.start("rucio"))["rucio"]) == f"{SECRET} rucio of token"


async def test_a_token_that_is_refreshed_meanwhile_is_not_lost() -> None:
    """What was fetched is stored beside the newest tokens, whoever comes last."""
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio"))
    await until(lambda: hub.service.busy == 1, seconds=5)
    hub.now += 3000
    hub.recheck.doubt("alice")
    await hub.recheck.of(hub.user, max_age=0)
    assert hub.refreshes == 1
    hub.service.gates["rucio"].set()
    await start
    await hub.idle()
    assert hub.user.session is not None
    assert (hub.user.session.refresh_token, hub.user.session.access_token) == ("first+", "newer")
    assert hub.stored() == {"rucio": f"{SECRET} rucio of token"}


async def test_a_database_that_is_down_costs_no_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    with monkeypatch.context() as patch:
        patch.setattr(hub.user, "save_auth_state", locked)
        assert value((await hub.start("rucio"))["rucio"]) == f"{SECRET} rucio of token"
        await hub.idle()
    assert "can't be stored (OperationalError)" in caplog.text
    assert SECRET not in caplog.text
    assert value((await hub.start("rucio"))["rucio"]) == f"{SECRET} rucio of token"
    await hub.idle()
    assert hub.stored().keys() == {"rucio"}


async def test_a_database_that_can_t_be_read_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(hub.user, "get_auth_state", locked)
    outcomes = await hub.start("rucio", "panda")
    assert {why(one) for one in outcomes.values()} == {Why.OUTAGE}


async def test_a_database_that_fails_before_a_request_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    hub.recheck.doubt("alice")
    hub.userinfo_gate = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio"))
    await asyncio.sleep(0.02)
    monkeypatch.setattr(hub.user, "get_auth_state", locked)
    hub.userinfo_gate.set()
    before = FETCHES.labels("rucio", "outage")._value.get()
    outcome = (await start)["rucio"]
    assert "an error of the hub" in str(outcome)
    assert FETCHES.labels("rucio", "outage")._value.get() == before + 1
    assert SECRET not in caplog.text
    await hub.idle()


def raises(_: Answer) -> Fetched:
    raise RuntimeError(SECRET)


def nothing(_: Answer) -> None:
    return None


def naive(_: Answer) -> Fetched:
    return Fetched(SECRET, datetime(2026, 1, 1), datetime(2126, 1, 1))  # noqa: DTZ001


def binary(answer: Answer) -> Fetched:
    return Fetched(SECRET.encode(), answer.now, answer.now + timedelta(seconds=60))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [raises, nothing, naive, binary])
async def test_a_package_that_can_t_read_an_answer_fails_alone_and_tells_no_secret(
    bad: Callable[[Answer], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be stored would have taken with it whatever else was fetched with the same log-in."""
    hub = Hub()
    outcomes = await hub.start(wanted=wanted("rucio", read=bad) | wanted("panda"))
    assert "the answer could not be read. This is a fault of the credential's package" in str(outcomes["rucio"])
    assert value(outcomes["panda"])
    await hub.idle()
    assert hub.stored().keys() == {"panda"}
    assert "its answer could not be read" in caplog.text
    assert SECRET not in caplog.text


async def test_what_has_expired_when_it_comes_is_not_taken() -> None:
    def old(answer: Answer) -> Fetched:
        return Fetched("old", answer.now - timedelta(hours=1), answer.now)

    hub = Hub()
    outcome = (await hub.start(wanted=wanted("rucio", read=old)))["rucio"]
    assert "expired already. Compare the clocks" in str(outcome)


async def test_nothing_is_left_in_memory_when_all_is_done() -> None:
    hub = Hub()
    hub.service.says["rucio"] = REFUSED
    for session_id in ("a", "b", "c"):
        hub.log_in(session_id)
        await hub.start("rucio", "panda")
    await hub.idle()
    assert hub.fetching._under_way == {}


async def test_nothing_of_it_stands_in_a_repr_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub = Hub()
    hub.service.gates["rucio"] = asyncio.Event()
    start = asyncio.create_task(hub.start("rucio", "panda"))
    await until(lambda: hub.service.busy == 1 and len(hub.service.asked) == 2, seconds=5)
    shown = [repr(hub.fetching._under_way), repr(asyncio.all_tasks())]
    hub.service.gates["rucio"].set()
    shown.append(repr(await start))
    await hub.idle()
    shown.append(repr(hub.user.session))
    assert SECRET not in "".join(shown) + caplog.text


async def test_each_outcome_is_counted() -> None:
    def counts() -> dict[str, float]:
        return {why: FETCHES.labels("counted", why)._value.get() for why in ("fetched", "outage", "refused", "sign-in")}

    hub = Hub()
    for answer in ("good", FetchError("idp", "down", ""), 403, 401):
        hub.log_in(f"with {answer}")
        hub.service.says["counted"] = answer
        await hub.start("counted")
        await hub.idle()
    assert counts() == {"fetched": 1, "outage": 1, "refused": 1, "sign-in": 1}


# -- what is stored


def kept(text: str, life: float = LIFE) -> Kept:
    at = datetime.fromtimestamp(NOW, UTC)
    return Kept("for", Fetched(text, at, at + timedelta(seconds=life)))


async def test_of_two_log_ins_the_later_one_keeps_what_is_its_own() -> None:
    hub = Hub()
    hub.log_in("two")
    await hub.log_ins.keep(hub.user, "two", {"rucio": kept("new")})
    await hub.log_ins.keep(hub.user, "one", {"rucio": kept("old")})
    assert hub.stored() == {"rucio": "new"}


async def test_what_has_expired_is_dropped_at_the_next_store() -> None:
    hub = Hub()
    await hub.log_ins.keep(hub.user, "one", {"rucio": kept("short", 60)})
    hub.now += 100
    await hub.log_ins.keep(hub.user, "one", {"panda": kept("long")})
    assert hub.stored() == {"panda": "long"}


async def test_neither_a_store_of_tokens_nor_one_of_what_was_fetched_undoes_the_other() -> None:
    hub = Hub()
    before = hub.user.session
    assert before is not None
    await hub.log_ins.keep(hub.user, "one", {"rucio": kept("a")})
    await hub.log_ins.save(hub.user, replace(before, access_token="rotated", refresh_token="second"))
    await hub.log_ins.keep(hub.user, "one", {"panda": kept("b")})
    assert hub.stored() == {"rucio": "a", "panda": "b"}
    assert hub.user.session is not None
    assert hub.user.session.refresh_token == "second"


async def test_a_rotated_token_that_the_database_didn_t_take_is_not_lost_by_what_was_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    before = hub.user.session
    assert before is not None
    with monkeypatch.context() as patch:
        patch.setattr(hub.user, "save_auth_state", locked)
        with pytest.raises(OperationalError):
            await hub.log_ins.save(hub.user, replace(before, refresh_token="second"))
    await hub.log_ins.keep(hub.user, "one", {"rucio": kept("a")})
    session = await hub.log_ins.session(hub.user)
    assert session is not None
    assert session.refresh_token == "second"
    assert session.fetched["rucio"].fetched.value == "a"
