"""What an operator is told of the servers that run."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from traitlets.config import Config

from casa_hub.credentials.dask import parse_secrets
from casa_hub.errors import DeliveryError
from casa_hub.facility import Facility
from casa_hub.naming import Server
from casa_hub.servers.renewals import Renewals
from casa_hub.servers.status import Survey, survey
from tests.support.running_server import App, RunningServer, User


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "dask.secret"
    write(file, os.urandom(48))
    return file


def write(file: Path, *secrets: bytes) -> list[str]:
    content = b"".join(base64.b64encode(secret) + b"\n" for secret in secrets)
    file.write_bytes(content)
    file.chmod(0o600)
    return [secret.id for secret in parse_secrets(content)] if secrets else []


@pytest.fixture
def facility(secret_file: Path) -> Facility:
    config = Config()
    config.Facility.credentials = ["dask"]
    config.Dask.secret_file = str(secret_file)
    config.Dask.domain = "example.org"
    return Facility(config=config)


def started(app: App, facility: Facility, username: str, name: str = "") -> RunningServer:
    running = RunningServer(facility, Server("", username, name), f"{len(app.users):032x}")
    app.add(running)
    return running


async def test_the_secrets_that_servers_were_started_with_are_counted(facility: Facility, secret_file: Path) -> None:
    app, first, second = App(), os.urandom(48), os.urandom(48)
    (old,) = write(secret_file, first)
    running = [started(app, facility, "ada"), started(app, facility, "bea", "second")]
    new, _ = write(secret_file, second, first)
    running.append(started(app, facility, "cyd"))
    await running[0].renew(["dask"], force=True)
    found = await survey(app, facility)
    assert found.dask_secrets == {old: 2, new: 1}
    assert (found.unkept, found.unsure) == ({}, {})
    assert [one.looked for one in running] == [0, 0, 0]  # nobody had to be asked


async def test_a_secret_that_came_after_the_start_is_counted(facility: Facility, secret_file: Path) -> None:
    app = App()
    write(secret_file)
    running = started(app, facility, "ada")
    (secret,) = write(secret_file, os.urandom(48))
    await running.renew(["dask"], force=True)
    assert "dask" not in json.loads(running.at_start)["credentials"]
    assert (await survey(app, facility)).dask_secrets == {secret: 1}


async def test_servers_of_which_nothing_is_known_are_named(facility: Facility) -> None:
    app = App()
    started(app, facility, "later").at_start = json.dumps({"version": 99})
    app.users[1] = User("old", {"second": SimpleNamespace(name="second", ready=True)})  # type: ignore[dict-item]
    app.users[2] = User("off", {"": SimpleNamespace(name="", ready=False)})  # type: ignore[dict-item]
    started(app, facility, "bare").running_start = ""
    going = started(app, facility, "going")
    going.running_start = None
    app.users[0].spawners[""].casa_server.text = json.dumps({"version": 99})
    edited = started(app, facility, "edited")
    edited.at_start = edited.text = "{}"

    def away() -> None:
        raise DeliveryError("Secret x/y", "no answer", "Try again.")

    unseen = started(app, facility, "unseen", "second")
    unseen.at_start, unseen.fault = json.dumps({"version": 99}), away
    found = await survey(app, facility)
    assert found.unkept == {
        "bare": "it was started without casa_hub",
        "edited": "its record was edited or removed",
        "later": "its record was written by a newer version of casa_hub",
        "old/second": "it was started without casa_hub",
    }
    assert found.unsure == {
        "going": "it can't be seen now, or is about to end.",
        "unseen/second": "Secret x/y: no answer. Try again.",
    }


async def test_what_renewals_know_is_told_without_asking(facility: Facility, secret_file: Path) -> None:
    """For a page, which can't wait for Kubernetes."""
    app = App()
    (secret,) = write(secret_file, os.urandom(48))
    known, later, going = (started(app, facility, name) for name in ("known", "later", "going"))
    later.at_start = later.text = json.dumps({"version": 99})
    going.running_start = None
    renewals = Renewals(app, facility)  # type: ignore[arg-type]
    found, looked = Survey(), [one.looked for one in (known, later, going)]
    for user in app.users.values():
        (spawner,) = user.spawners.values()
        running: Any = spawner.casa_server
        renewals.started(spawner)  # type: ignore[arg-type]
        unkept, held = renewals.unkept(spawner), renewals.held(spawner)  # type: ignore[arg-type]
        found.note_known(user.name, running, unkept, held)
    found.note_known("old", None, "", [])
    assert [one.looked for one in (known, later, going)] == looked
    assert found.dask_secrets == {secret: 1}
    assert found.unkept == {"old": "it was started without casa_hub"}
    assert found.unsure == {"going": "it can't be seen now, or is about to end."}
