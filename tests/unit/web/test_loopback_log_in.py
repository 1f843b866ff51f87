"""What the page of a laptop's log-in takes for an address, and when a code is worth a token."""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.web import loopback_log_in as module
from casa_hub.web.loopback_log_in import CODE_AGE, Asked, AskedWronglyError, Codes, Grant, challenge_of
from tests.support.clock import Clock

#: RFC 7636, appendix B.
VERIFIER, CHALLENGE = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
ARGUMENTS = {
    "redirect_uri": "http://127.0.0.1:8765/back",
    "state": "s",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
    "credentials": "xcache,htcondor",
    "client": "laptop",
}
GRANT = Grant(7, "alice", "session", ("custom:casa-hub:credential:xcache",), "laptop")


def asked(**changes: str) -> Asked:
    return Asked.parse({**ARGUMENTS, **changes})


def test_the_challenge_is_that_of_the_rfc() -> None:
    assert challenge_of(VERIFIER) == CHALLENGE


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1",
        "http://127.0.0.1:65535/",
        "http://[::1]:8080/back/here",
    ],
)
def test_an_address_of_this_computer_is_gone_back_to(address: str) -> None:
    assert asked(redirect_uri=address).answer(code="c") == f"{address}?code=c&state=s"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://evil.example.org/",
        "http://evil.example.org:8080/",
        "http://localhost:8080/",
        "http://127.0.0.1.evil.example.org:8080/",
        "http://127.0.0.1:8080@evil.example.org/",
        "http://127.0.0.1@evil.example.org:8080/",
        "http://127.0.0.1:8080\\@evil.example.org/",
        "http://127.0.0.1:8080#@evil.example.org/",
        "http://127.0.0.1:8080/?next=https://evil.example.org",
        "http://127.0.0.1:8080/a b",
        "http://127.0.0.1:8080/\r\nSet-Cookie: a=b",
        "http://127.0.0.1:8080/back\n",
        " http://127.0.0.1:8080/",
        "http://127.0.0.1/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:०८/",
        "http://0x7f000001:8080/",
        "http://127.1:8080/",
        "http://0.0.0.0:8080/",
        "http://[::]:8080/",
        "http://[::ffff:8.8.8.8]:8080/",
        "http://[::1%25eth0]:8080/",
        "HTTP://127.0.0.1:8080/",
        "https://127.0.0.1:8080/",
        "//127.0.0.1:8080/",
        "javascript:alert(1)",
    ],
)
def test_no_other_address_is(address: str) -> None:
    with pytest.raises(AskedWronglyError, match="redirect_uri"):
        asked(redirect_uri=address)


@given(st.text(alphabet=string.printable, max_size=40), st.text(alphabet=string.printable, max_size=10))
def test_whatever_is_in_the_address_the_browser_stays_on_this_computer(middle: str, end: str) -> None:
    try:
        back = asked(redirect_uri=f"http://127.0.0.1:8080{middle}{end}").answer(code="c")
    except AskedWronglyError:
        return
    assert urlsplit(back).netloc.split(":")[0] == "127.0.0.1"
    assert parse_qs(urlsplit(back).query) == {"code": ["c"], "state": ["s"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": ""}, "state must have"),
        ({"state": "x" * 513}, "state must have"),
        ({"state": "a b"}, "state must have"),
        ({"code_challenge": ""}, "code_challenge must be"),
        ({"code_challenge": CHALLENGE + "="}, "code_challenge must be"),
        ({"code_challenge_method": ""}, "code_challenge_method must be S256"),
        ({"code_challenge_method": "plain"}, "code_challenge_method must be S256"),
    ],
)
def test_what_is_asked_wrongly_is_told(changes: dict[str, str], words: str) -> None:
    with pytest.raises(AskedWronglyError, match=words):
        asked(**changes)


def test_an_address_without_anything_is_told_too() -> None:
    with pytest.raises(AskedWronglyError):
        Asked.parse({})


@given(st.text())
def test_the_name_of_a_computer_is_one_short_line(client: str) -> None:
    shown = asked(client=client).client
    assert shown
    assert shown.isprintable()
    assert len(shown) <= 64


@given(st.text(), st.text())
def test_the_form_says_the_same_as_the_address(credentials: str, client: str) -> None:
    first = asked(credentials=credentials, client=client)
    assert Asked.parse(first.arguments()) == first


@given(st.text())
def test_the_state_comes_back_as_it_was(state: str) -> None:
    try:
        back = asked(state=state).answer(error="access_denied")
    except AskedWronglyError:
        return
    assert parse_qs(urlsplit(back).query) == {"error": ["access_denied"], "state": [state]}


# -- codes


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def codes(clock: Any) -> Codes:
    return Codes(clock)


def test_a_code_is_worth_what_was_allowed_once(codes: Codes) -> None:
    code = codes.new(GRANT, CHALLENGE)
    assert codes.redeem(code, VERIFIER) == GRANT
    assert codes.redeem(code, VERIFIER) is None


@pytest.mark.parametrize(
    "verifier", ["", "x" * 43, VERIFIER[:-1], VERIFIER + "x", CHALLENGE, VERIFIER + "\n", "é" * 43]
)
def test_a_code_is_worth_nothing_to_another_program_and_nothing_afterwards(codes: Codes, verifier: str) -> None:
    code = codes.new(GRANT, CHALLENGE)
    assert codes.redeem(code, verifier) is None
    assert codes.redeem(code, VERIFIER) is None


def test_a_code_is_worth_nothing_after_a_minute(codes: Codes, clock: Clock) -> None:
    early, late = codes.new(GRANT, CHALLENGE), codes.new(GRANT, CHALLENGE)
    clock.now += CODE_AGE - 1
    assert codes.redeem(early, VERIFIER) == GRANT
    clock.now += 1
    assert codes.redeem(late, VERIFIER) is None


def test_an_unknown_code_is_worth_nothing(codes: Codes) -> None:
    codes.new(GRANT, CHALLENGE)
    assert codes.redeem("", VERIFIER) is None
    assert codes.redeem("made-up", VERIFIER) is None


def test_codes_that_nobody_redeems_don_t_fill_the_hub_s_memory(
    codes: Codes, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CODES", 3)
    somebody_s = replace(GRANT, user_id=GRANT.user_id + 1)
    code_of_somebody = codes.new(somebody_s, CHALLENGE)
    oldest, *others = (codes.new(GRANT, CHALLENGE) for _ in range(4))
    assert codes.redeem(code_of_somebody, VERIFIER) == somebody_s  # nobody drives out another person's
    assert codes.redeem(oldest, VERIFIER) is None
    assert all(codes.redeem(code, VERIFIER) == GRANT for code in others)
    codes.new(GRANT, CHALLENGE)
    clock.now += CODE_AGE
    codes.new(GRANT, CHALLENGE)
    assert len(codes._codes) == 1


def test_no_secret_of_a_log_in_is_printed(codes: Codes) -> None:
    assert codes.new(GRANT, CHALLENGE) not in repr(codes) + repr(codes._codes.values())
