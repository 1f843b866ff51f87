"""What operators read, in commands and on the page: a sentence for each thing, and nothing where all is well."""

from __future__ import annotations

from typing import Any

from casa_hub import operator_words
from casa_hub.credentials.fetching import Why

WELL: dict[str, Any] = {
    "held_back": [],
    "client_refused": [],
    "overdue": [],
    "missing": [],
    "unkept": {},
    "unsure": {},
    "dask_secrets": {"1f2e": 3},
}


def fetch(why: str, users: int, problem: str, remedy: str) -> dict[str, Any]:
    return {"credential": "exchange:rucio", "why": why, "users": users, "problem": problem, "remedy": remedy}


def test_where_all_is_well_there_is_nothing_to_look_at() -> None:
    assert operator_words.to_look_at(WELL) == []
    assert operator_words.dask_secrets(WELL) == ["Dask secret 1f2e: in use by 3 servers."]


def test_each_thing_is_a_sentence_of_its_own() -> None:
    moment = "2026-03-01T12:00:00+00:00"
    found = operator_words.to_look_at(
        {
            "held_back": [
                {"user": "ada", "reason": "not in /cms", "since": moment, "ignored_until": ""},
                {"user": "bob", "reason": "not in /cms", "since": moment, "ignored_until": "2026-03-01T16:00:00+00:00"},
            ],
            "client_refused": [
                {"user": "kim", "reason": "invalid_client"},
                {"user": "lee", "reason": "invalid_client"},
            ],
            "overdue": [
                {"server": "ada", "credential": "xcache", "until": moment, "why": "no key"},
                {"server": "ada", "credential": "bearer", "until": "", "why": "no token"},
            ],
            "missing": [{"server": "ada", "what": "Service", "why": "it does not exist"}],
            "fetches": [
                fetch("refused", 3, "Rucio token: the client may not", "Tell the operator of this hub: let it."),
                fetch("outage", 1, "https://idp.test: no answer within 5 s", "It is tried again."),
                fetch("sign-in", 2, "Rucio token: the sign-in is over", ""),
            ],
            "unkept": {"eve": "it was started without casa_hub"},
            "unsure": {"zoe": "no answer"},
            "dask_secrets": {},
        }
    )
    assert found == [
        "Held back since 2026-03-01 12:00 UTC: ada: not in /cms",
        "Held back since 2026-03-01 12:00 UTC, ignored until 2026-03-01 16:00 UTC: bob: not in /cms",
        "If these are true, end their access: casa-hub confirm",
        "The membership of 2 users can't be checked: invalid_client",
        "Refused: exchange:rucio for 3 users. Rucio token: the client may not. Let it.",
        "No usable answer: exchange:rucio for 1 user. https://idp.test: no answer within 5 s. It is tried again.",
        "Refused, because of the sign-in: exchange:rucio for 2 users. Rucio token: the sign-in is over.",
        "Not renewed: xcache of ada, which is valid until 2026-03-01 12:00 UTC: no key",
        "Not renewed: bearer of ada: no token",
        "Missing, and tried again: Service of ada: it does not exist",
        "Not renewed: all credentials of eve: it was started without casa_hub. Restart the server to mend it.",
        "Unknown: the credentials of zoe can't be read now: no answer",
    ]


def test_each_reason_why_nothing_is_fetched_has_words() -> None:
    for why in Why:
        assert len(operator_words.to_look_at({**WELL, "fetches": [fetch(why, 1, "", "")]})) == 1


def test_a_hub_of_an_earlier_version_says_less() -> None:
    answer = {name: value for name, value in WELL.items() if name != "missing"}
    answer["held_back"] = [{"user": "ada", "reason": "out", "since": "2026-03-01T12:00:00+00:00"}]
    assert operator_words.to_look_at(answer)[0] == "Held back since 2026-03-01 12:00 UTC: ada: out"


def test_what_was_done_is_told_with_what_is_still_to_be_done() -> None:
    answer = {
        "user": "ada",
        "servers": ["", "lab"],
        "tokens": 2,
        "still": ["server 'lab': no answer"],
        "also": ["ada2"],
    }
    assert operator_words.departed(answer) == [
        "ada: access ended; stopped: the default server, server lab; tokens deleted: 2.",
        "Not yet: server 'lab': no answer",
    ]
    assert operator_words.namesakes(answer) == [
        "The same person has other user names here, which keep their access: ada2"
    ]
    assert operator_words.namesakes({"also": []}) == []
    assert operator_words.renewed({"renewed": ["ada"], "failed": {"eve": "no key"}}) == [
        "Renewed: 1 servers.",
        "eve: no key",
    ]
    assert operator_words.confirmed({"confirmed": ["ada", "eve"]}) == "Access ends: ada, eve."
    assert operator_words.confirmed({"confirmed": []}) == "Nothing is held back."


def test_an_issuer_of_which_no_key_signs_is_something_to_look_at() -> None:
    """A rotation that was too quick: without this, all is well until the first token can't be made, hours later."""
    young = [
        {"key": "2.pem", "kid": "b", "signs": False, "signs_from": "2026-12-04T12:00:00+00:00"},
        {"key": "3.pem", "kid": "c", "signs": False, "signs_from": "2026-12-03T12:00:00+00:00"},
    ]
    (said,) = operator_words.to_look_at({**WELL, "issuer_keys": young})
    assert said.startswith("No key of the facility's issuer signs now, so no token can be made: the first one")
    assert "2026-12-03 12:00 UTC. Put the file of the key before it back" in said
    signing = {"key": "1.pem", "kid": "a", "signs": True, "signs_from": ""}
    assert operator_words.to_look_at({**WELL, "issuer_keys": [signing, *young]}) == []
