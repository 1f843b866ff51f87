"""What the page for administrators says: words for each case, and sums and pages that add up."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.identity.transport import Contact
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import UNASKED, Member, Revocation, Standing, outcome
from casa_hub.membership.settings import Keeper
from casa_hub.membership.tables import Entry
from casa_hub.servers.renewals import Held
from casa_hub.web import admin_view
from casa_hub.web.admin_view import ROWS, Credentials, Page, PersonView, ServerView, Stands

NOW = 1.7e9
KEEPER = Keeper()
GRACE = KEEPER.outage_grace


def standing(verdict: Verdict, reason: str = "", **more: float) -> Standing:
    return replace(Standing(verdict, NOW, reason, NOW - 400, "one"), **more)  # type: ignore[arg-type]


def shown(**of_member: Any) -> PersonView:
    member = Member("ada", **of_member)
    return admin_view.person("ada", member, outcome(member, KEEPER, NOW))


LEAVING: Any = SimpleNamespace(entry=Entry("ada", "one", "The laptop was lost.", "operator", "user eve", NOW))
NO = standing(Verdict.NO, "not in /cms")

#: Case -> what the hub knows, and then: how it stands, why, until when (from now).
TABLE: dict[str, tuple[dict[str, Any], Stands, str, float | None]] = {
    "a member": ({"standing": standing(Verdict.YES)}, Stands.IN, "", None),
    "a silent provider": (
        {"standing": standing(Verdict.CANT_SAY, "no answer")},
        Stands.UNSURE,
        "no answer",
        GRACE - 400,
    ),
    "a log-in that is over": (
        {"standing": standing(Verdict.LOG_IN_AGAIN, "it is old")},
        Stands.LOG_IN,
        "it is old",
        KEEPER.membership_max_age - 400,
    ),
    "a no": ({"standing": NO}, Stands.OUT, "not in /cms", 0),
    "a no that takes its turn": ({"standing": NO, "leaves": True}, Stands.ENDING, "not in /cms", 0),
    "a no that is held back": ({"standing": NO, "held_since": NOW}, Stands.HELD_BACK, "not in /cms", GRACE - 400),
    "one that is ignored": (
        {"standing": NO, "held_since": NOW, "ignored_at": NOW},
        Stands.HELD_BACK,
        "not in /cms",
        GRACE,
    ),
    "held back for too long": (
        {"standing": replace(NO, last_yes=NOW - GRACE), "held_since": NOW},
        Stands.OUT,
        "not in /cms",
        0,
    ),
    "an end that is under way": (
        {"standing": standing(Verdict.YES), "revocation": LEAVING},
        Stands.ENDING,
        "The laptop was lost.",
        None,
    ),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_how_it_stands_with_a_person(row: tuple[dict[str, Any], Stands, str, float | None]) -> None:
    of_member, stands, reason, ends = row
    view = shown(**of_member)
    assert (view.stands, view.reason) == (stands, reason)
    assert view.ends_at == (None if ends is None else NOW + ends)
    assert view.confirmed_at == of_member["standing"].last_yes


def test_who_was_not_asked_about_yet_is_neither_in_nor_out() -> None:
    assert admin_view.person("ada", None, None) == PersonView("ada", Stands.UNASKED, "", None, None)
    assert shown(standing=UNASKED).stands is Stands.UNASKED
    assert shown(standing=replace(UNASKED, last_yes=NOW - 5)).confirmed_at == NOW - 5


def test_a_real_revocation_is_shown_with_its_reason() -> None:
    """As `LEAVING`, whose class has more."""
    user: Any = None
    entry = Entry("ada", "one", "The laptop was lost.", "operator", "user eve", NOW)
    assert shown(standing=NO, revocation=Revocation(entry, user, 1, set())).reason == "The laptop was lost."


held = st.builds(
    Held,
    name=st.sampled_from(["xcache", "dask", "unknown"]),
    issued=st.just(NOW),
    expires=st.none() | st.floats(NOW, NOW + 1e6),
    next_at=st.none(),
    missing=st.booleans(),
    why=st.sampled_from(["", "no key"]),
)
servers = st.lists(st.dictionaries(st.sampled_from(["xcache", "dask", "unknown"]), held, max_size=3), max_size=20)


@given(servers)
def test_each_credential_of_each_server_is_counted_once(all_servers: list[dict[str, Held]]) -> None:
    minters: Any = {name: SimpleNamespace(title=name.upper()) for name in ("xcache", "dask")}
    found = Credentials(minters)
    for number, server in enumerate(all_servers):
        found.add(f"user-{number}", ServerView(f"user-{number}", "", server), keep=number % 2 == 0)
    assert found.servers == len(all_servers)
    assert set(found.of) == {f"user-{number}" for number in range(0, len(all_servers), 2)}
    assert list(found.counts)[:2] == ["xcache", "dask"]  # also if no server has them
    for name, count in found.counts.items():
        those = [server[name] for server in all_servers if name in server]
        assert count.servers + count.missing == len(those)
        assert count.missing == sum(one.missing for one in those)
        assert count.overdue == sum(bool(one.why) for one in those if not one.missing)
        ends = [one.expires for one in those if not one.missing and one.expires is not None]
        assert count.first_end == min(ends, default=None)


@given(st.text(max_size=12) | st.integers(-5, 50).map(str), st.integers(0, 5 * ROWS))
def test_each_row_is_on_exactly_one_page_whatever_the_address_says(number: str, total: int) -> None:
    page = Page.asked(number, total)
    assert 0 <= page.first <= page.last <= total
    assert page.last - page.first <= ROWS
    assert total == 0 or page.first < page.last
    pages = [Page.asked(str(one), total) for one in range(1, max(math.ceil(total / ROWS), 1) + 1)]
    rows = [row for one in pages for row in range(one.first, one.last)]
    assert rows == list(range(total))


def test_what_the_provider_says_of_people_is_counted() -> None:
    members = [
        Member("ada", standing=standing(Verdict.YES)),
        Member("bob", standing=standing(Verdict.YES)),
        Member("eve", standing=NO),
        Member("kim", standing=standing(Verdict.CANT_SAY), client_refused=True),
        Member("new"),
        Member("old", standing=UNASKED),
    ]
    view = admin_view.ProviderView("CMS IAM", "https://iam.example.org", Contact())
    for member in members:
        view.add(member)
    assert view.verdicts == {"members": 2, "no members": 1, "not known now": 1}
    assert view.refused == 1


def test_an_event_says_who_what_and_by_whom() -> None:
    view = admin_view.event(
        {
            "time": "2026-03-01T12:00:00.000+00:00",
            "action": "revoked",
            "username": "ada1",
            "servername": "lab",
            "started_as": "ada",
            "credential": "htcondor",
            "identifiers": {"jti": "ada/1f", "sub": "ada@pool"},
            "reason": "She left.",
            "by": "user eve",
        }
    )
    assert view.at == 1772366400
    assert (view.who, view.by, view.reason) == ("ada1/lab (started as ada)", "user eve", "She left.")
    assert view.identifiers == "jti ada/1f, sub ada@pool"
    plain = admin_view.event(
        {"time": "2026-03-01T12:00:00.000+00:00", "action": "minted", "username": "ada", "servername": ""}
    )
    assert (plain.who, plain.credential, plain.identifiers) == ("ada", "", "")


@pytest.mark.parametrize(("age", "days"), [(0, 0), (86399, 0), (86400, 1), (200 * 86400.0, 200), (-3600, 0)])
def test_a_key_is_as_old_as_its_file(age: float, days: int) -> None:
    assert admin_view.key("XCache.key_file", NOW - age, NOW).days == days


def test_a_key_file_that_can_t_be_seen_has_no_age() -> None:
    assert admin_view.key("XCache.key_file", None, NOW).changed_at is None


@pytest.mark.parametrize("action", admin_view.ACTIONS)
def test_each_action_asks_by_name_before_it_does_anything(action: str) -> None:
    one = admin_view.question(action, ["ada"], KEEPER)
    many = admin_view.question(action, ["ada", "bob"], KEEPER)
    assert "ada" in one.title
    assert "2 users" in many.title
    assert one.follows
    assert all(sentence.endswith((".", "blocked_users.")) for sentence in one.follows)
    assert "{" not in " ".join(one.follows)


def test_to_ignore_says_for_how_long() -> None:
    follows = " ".join(admin_view.question("ignore", ["ada"], KEEPER).follows)
    assert "another 4 hours from now, but not beyond 24 hours since the last confirmation" in follows


def test_there_is_no_other_action() -> None:
    with pytest.raises(ValueError, match="explode"):
        admin_view.question("explode", ["ada"], KEEPER)
