"""What `casa-hub token` writes on a laptop is found there, by the real programs and without a word of where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_hub.demo.browser import Browser
from casa_hub.demo.facility import Facility
from tests.support.client_machine import ClientMachine
from tests.support.peers import http, root
from tests.support.served import NAME, short_lived
from tests.support.xrootd_client import content_of, path_of

#: Who somebody is at the pool that the environment alone names.
WHO = """
import htcondor2
schedd = htcondor2.Collector().query(htcondor2.AdType.Schedd)[0]
print(htcondor2.ping(schedd, "WRITE")["MyRemoteUserName"])
"""


@pytest.fixture(scope="module")
def facility(peers_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    scratch = tmp_path_factory.mktemp("facility")
    with short_lived(peers_directory / "client", scratch, life=600) as running:
        yield running


@pytest.fixture(scope="module")
def laptop(facility: Facility, tmp_path_factory: pytest.TempPathFactory) -> ClientMachine:
    """Of the demo's member, with a token of the hub."""
    browser = Browser(facility.url)
    assert browser.log_in(NAME).ok
    made = browser.call("POST", f"/hub/api/users/{NAME}/tokens")
    made.raise_for_status()
    directory = tmp_path_factory.mktemp("laptop")
    variables = {"CASA_HUB_URL": facility.url, "CASA_HUB_TOKEN": made.json()["token"]}
    if os.getuid():  # HTCondor looks into the home of the passwd entry, which isn't the test's to write to
        variables["_CONDOR_SEC_TOKEN_DIRECTORY"] = str(directory / "tokens.d")
    return ClientMachine(directory, **variables)


def variables(laptop: ClientMachine, *arguments: str) -> dict[str, str]:
    """What a shell knows that has evaluated the output of the command."""
    done = laptop.run(*arguments, "--shell")
    assert done.returncode == 0, done.stderr
    told = subprocess.run(["sh", "-c", f"{done.stdout}env"], env=laptop.environment, capture_output=True, text=True)
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


def test_xrootd_finds_the_macaroon_by_the_user_s_number(facility: Facility, laptop: ClientMachine) -> None:
    assert facility.xcache is not None
    discovery = {"XDG_RUNTIME_DIR": str(laptop.runtime)}
    assert root(facility.xcache, path_of(1), environment=discovery).status in {401, 403}
    found = variables(laptop, "token", "xcache")
    assert (found["XCACHE_HOST"], found["XCACHE_PORT"]) == (facility.xcache.host, str(facility.xcache.port))
    assert "BEARER_TOKEN_FILE" not in found
    read = root(facility.xcache, path_of(1), environment=discovery)
    assert (read.status, read.content) == (200, content_of(1)), read
    read = http(facility.xcache, path_of(2), laptop.bearer_file.read_text(), scheme="https")
    assert (read.status, read.content) == (200, content_of(2)), read


def test_htcondor_finds_the_idtoken_and_the_pool(facility: Facility, laptop: ClientMachine) -> None:
    assert facility.pool is not None
    found = variables(laptop, "token", "htcondor")
    client = {
        **found,
        "CONDOR_CONFIG": "/dev/null",
        "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",  # FS would let this user in without a token
        "_CONDOR_SEC_KNOWN_HOSTS": str(laptop.home / "known_hosts"),
    }

    def who() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", WHO], env=client, capture_output=True, text=True, timeout=120)

    assert who().stdout == f"{NAME}@{facility.pool.domain}\n", who().stderr
    (file,) = Path(found["_CONDOR_SEC_TOKEN_DIRECTORY"]).iterdir()
    file.unlink()
    assert who().returncode != 0
