"""What the local spawner says, and what it refuses, before there is any server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.utils import iterate_until

from casa_hub.credentials.base import Credential
from casa_hub.facility import Minted
from casa_hub.local_spawner import listens_here_only
from casa_hub.naming import Server
from casa_hub.progress import Steps, sentences_of

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1:8000/hub/", True),
        ("https://[::1]:443", True),
        ("http://localhost", True),
        ("http+unix://%2Frun%2Fhub.sock", True),
        ("http://:8000", False),  # JupyterHub's default: all addresses
        ("http://0.0.0.0:8000", False),
        ("http://[::]:8000", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://127.0.0.1@10.0.0.1", False),
        ("http://*:8000", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(url: str, expected: bool) -> None:
    assert listens_here_only(url) is expected


def test_each_credential_has_a_sentence() -> None:
    def credential(name: str, life: timedelta | None, summary: str = "") -> Credential:
        expires_at = None if life is None else NOW + life
        return Credential(name, {}, issued_at=NOW, expires_at=expires_at, summary=summary)

    credentials = {
        "htcondor": credential("htcondor", timedelta(hours=2, minutes=5), "READ as alice"),
        "dask": credential("dask", timedelta(days=30)),
        "other": credential("other", None),
    }
    titles = {"htcondor": "HTCondor token", "dask": "Dask certificates", "other": "Other"}
    minters = {name: SimpleNamespace(title=title) for name, title in titles.items()}
    minters |= {"bearer": SimpleNamespace(renewal="token"), "xcache": SimpleNamespace(renewal="time")}
    facility = SimpleNamespace(minters=minters)
    missing = {"bearer": "no token. Log in again.", "xcache": "no key. Make one.", "site": "broken. Tell the operator."}
    minted = Minted(Server("", "alice"), "0", credentials, missing, {}, (), {})
    assert sentences_of(facility, minted, NOW) == [  # type: ignore[arg-type]
        "HTCondor token (READ as alice), valid until 14:05 UTC",
        "Dask certificates, valid until 2026-08-31 12:00 UTC",
        "Other, without expiry",
        "Starting without bearer: no token. Log in again. The running server gets it with your next token.",
        "Starting without xcache: no key. Make one. It is tried again while the server runs.",
        "Starting without site: broken. Tell the operator. It can't come before the next start.",
    ]


async def test_every_spawn_page_hears_all_steps_from_the_beginning() -> None:
    steps = Steps()

    async def listen() -> list[str]:
        heard = []
        async for event in steps.follow():
            heard.append(event["message"])
            if event["progress"] == 100:
                return heard
        raise AssertionError("the steps ended")

    early = asyncio.create_task(listen())
    steps.say(10, "one")
    await asyncio.sleep(0)
    late = asyncio.create_task(listen())
    steps.say(20, "two")
    await asyncio.sleep(0)
    steps.say(100, "three")
    assert await asyncio.wait_for(early, 5) == await asyncio.wait_for(late, 5) == ["one", "two", "three"]


async def test_who_looks_when_a_start_is_just_over_still_hears_all_of_it() -> None:
    """A page that was asked for late lost the reason why there was no route: JupyterHub takes what is there at once."""
    steps = Steps()
    for number in range(3):
        steps.say(number, str(number))
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    over.set_result(None)

    async def events() -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(3600)
        yield {}

    heard = [event["message"] async for event in iterate_until(over, steps.follow(beside=events()))]
    assert heard == ["0", "1", "2"]


async def test_other_events_come_between_the_steps() -> None:
    steps, others = Steps(), asyncio.Queue[dict[str, Any]]()

    async def events() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await others.get()

    following = steps.follow(beside=events())
    steps.say(1, "a step")
    assert (await anext(following))["message"] == "a step"
    others.put_nowait({"progress": 2, "message": "an event"})
    assert (await anext(following))["message"] == "an event"
    steps.say(3, "another step")
    assert (await anext(following))["message"] == "another step"
    await following.aclose()  # type: ignore[attr-defined]
