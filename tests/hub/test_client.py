"""`casa-hub token` and a real hub: log-ins by a browser, tokens of CI, renewals, and the end."""

from __future__ import annotations

import json
import re
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.hub.conftest import MakeHub
from tests.support.client_machine import ClientMachine, answer
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.person import Person

CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 50, "slow_stop_timeout": 50}}
{credentials("xcache", "htcondor", "dask", "bearer", required=())}
c.HTCondor.collector = "cm.example.org"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.126.0.0/16"
c.Keeper.recheck_interval = 2
"""
ROOT = Path(__file__).parents[2]
#: The least life for which a renewal isn't held up: five seconds are between two requests.
SHORT = "9s"


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG)
    (hub.directory / "traefik").mkdir()
    make_keys(hub.directory)
    yield hub.start()
    end(hub)


@pytest.fixture
def alice(hub: Hub, idp: IdP) -> Person:
    idp.rotate = False
    return Person(hub, idp)


@pytest.fixture
def laptop(hub: Hub, tmp_path: Path) -> ClientMachine:
    """On which nobody has logged in yet."""
    return ClientMachine(tmp_path, CASA_HUB_URL=hub.url)


@pytest.fixture
def ci(hub: Hub, alice: Person, tmp_path: Path) -> ClientMachine:
    """A CI job, with a token that a person has made for it."""
    return ClientMachine(tmp_path / "ci", CASA_HUB_URL=hub.url, CASA_HUB_TOKEN=alice.token, CI="true")


def log_in(laptop: ClientMachine, browser: Browser, sub: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that asks for a log-in, and gets it."""
    with laptop.begin(*arguments, "--no-browser") as command:
        page = answer(browser, command.log_in_address(), sub)
        assert "You may close this page" in page.text, page.text
        out, err = command.process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, command.process.returncode, out, err)


def test_somebody_logs_in_by_the_browser_once(hub: Hub, alice: Person, laptop: ClientMachine) -> None:
    """In a browser that is at the hub for the first time: it signs in at the provider, and comes back to the page."""
    done = log_in(laptop, Browser(hub), alice.sub, "token", "xcache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"XCache macaroon of {alice.name}, valid until ")
    assert f"in {laptop.bearer_file}\n" in done.stdout
    assert "Programs also need: export XCACHE_HOST=xcache.example.org XCACHE_PORT=" in done.stdout
    assert f"Logged in as {alice.name}." in done.stderr
    first = laptop.bearer_file.read_bytes()
    assert b"\n" not in first
    assert stat.S_IMODE(laptop.bearer_file.stat().st_mode) == 0o600

    again = laptop.run("token", "xcache")  # asks nobody
    assert (again.returncode, again.stderr) == (0, "")
    assert laptop.bearer_file.read_bytes() != first

    listed = laptop.run("token", "list").stdout.splitlines()
    assert listed[0] == f"{alice.name} at {hub.url}:"
    assert [line.endswith("; log in for it") for line in listed[1:]] == [False, True, True, True]

    # What the token isn't for needs another log-in, by which it is for both.
    refused = laptop.run("token", "htcondor")
    assert refused.returncode == 2
    assert "there is no token for it, and no browser here" in refused.stderr
    done = log_in(laptop, alice.browser, alice.sub, "token", "htcondor")
    file = laptop.home / ".condor" / "tokens.d" / "casa-hub-127.0.0.1"
    assert f"in {file}\n" in done.stdout
    assert "_CONDOR_CONDOR_HOST=cm.example.org" in done.stdout
    assert file.read_bytes().count(b".") == 2
    assert laptop.run("token", "xcache").returncode == 0

    (stored,) = laptop.home.rglob("*.json")
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    token = json.loads(stored.read_text())["token"]
    scopes = hub.api("GET", "/user", token=token).json()["scopes"]
    assert [scope for scope in scopes if not scope.startswith("read:users:")] == [
        "custom:casa-hub:credential:htcondor",
        "custom:casa-hub:credential:xcache",
    ]
    assert token not in hub.log

    assert laptop.run("token", "logout").returncode == 0
    assert not list(laptop.home.rglob("*.json"))
    assert laptop.run("token", "xcache").returncode == 2


def test_who_denies_or_is_no_member_gives_nothing(hub: Hub, alice: Person, laptop: ClientMachine, idp: IdP) -> None:
    with laptop.begin("token", "xcache", "--no-browser") as command:
        page = answer(alice.browser, command.log_in_address(), alice.sub, allow=False)
        assert "Not logged in" in page.text
        _, err = command.process.communicate(timeout=60)
        assert command.process.returncode == 1
        assert err.endswith("casa-hub: log-in: the hub has refused it (access_denied).\n")
    with laptop.begin("token", "xcache", "--no-browser") as command:
        idp.put_user("stranger", preferred_username="stranger", **{"wlcg.groups": ["/other"]})
        assert answer(Browser(hub), command.log_in_address(), "stranger").status_code == 403
        assert command.process.poll() is None  # somebody else may still log in
    assert not laptop.bearer_file.exists()


def test_ci_gets_credentials_by_a_token_of_its_own(ci: ClientMachine, alice: Person, tmp_path: Path) -> None:
    done = ci.run("token", "bearer", "--shell")
    assert done.returncode == 0, done.stderr
    assert ci.bearer_file.read_text() in alice.idp.secrets()
    assert done.stdout == ""
    assert f"Access token of {alice.name}, valid until " in done.stderr

    done = ci.run("token", "dask")
    assert done.returncode == 1
    assert "Start it first." in done.stderr
    assert alice.browser.spawn().status_code == 201
    there = tmp_path / "dask"
    done = ci.run("token", "dask", "--directory", str(there))
    assert done.returncode == 0, done.stderr
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in there.iterdir()} == {
        "ca.pem": 0o600,
        "usercert.pem": 0o600,
    }
    context = ssl.create_default_context(cafile=str(there / "ca.pem"))
    context.load_cert_chain(there / "usercert.pem")
    done = ci.run("bundle")
    assert done.returncode == 0, done.stderr
    bundle = ci.home / "casa-hub-bundle"
    assert sorted(path.name for path in bundle.iterdir()) == ["README.txt", "ca.pem", "connect.py", "usercert.pem"]
    assert (bundle / "ca.pem").read_bytes() == (there / "ca.pem").read_bytes()
    assert alice.hub.api("DELETE", f"/users/{alice.name}/server").status_code in (202, 204)

    done = ci.run("bundle")
    assert done.returncode == 1
    assert "Start it first." in done.stderr

    wrong = ClientMachine(tmp_path / "wrong", CASA_HUB_URL=alice.hub.url, CASA_HUB_TOKEN="0" * 32, CI="true")
    done = wrong.run("token", "xcache")
    assert done.returncode == 1
    assert "issing or invalid credentials" in done.stderr
    done = ci.run("token", "xcach")
    assert done.returncode == 1
    assert "Did you mean xcache?" in done.stderr


@pytest.mark.parametrize("forge", ["GitLab", "GitHub"])
def test_ci_runs_as_the_page_says(forge: str, ci: ClientMachine) -> None:
    """The user's guide's own lines, but for the installation and the analysis."""
    page = (ROOT / "docs" / "users.md").read_text()
    gitlab, github = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    step = github["jobs"]["analysis"]["steps"][-1]
    lines = gitlab["analysis"]["script"] if forge == "GitLab" else step["run"].splitlines()
    given = gitlab["analysis"]["variables"] if forge == "GitLab" else step["env"]
    assert given.keys() <= ci.environment.keys()
    script = "\n".join(lines)
    for foreign, ours in (
        ('pip install "$CASA_HUB_CLIENT"', f'casa-hub() {{ {sys.executable} -m casa_hub.client.command "$@"; }}'),
        ("python analysis.py", "echo $XCACHE_HOST"),
    ):
        assert foreign in script
        script = script.replace(foreign, ours)
    done = subprocess.run(["bash", "-ec", script], env=ci.environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "xcache.example.org\n"), done.stderr
    assert ci.bearer_file.exists()


def test_keep_renews_across_a_restart_of_the_hub(hub: Hub, ci: ClientMachine) -> None:
    with ci.begin("token", "xcache", "--keep", "--lifetime", SHORT) as command:
        assert "XCache macaroon of" in command.line()
        command.line()  # what programs also need
        seen = [ci.bearer_file.read_bytes()]
        assert "XCache macaroon of" in command.line()
        seen.append(ci.bearer_file.read_bytes())
        hub.stop()
        assert command.said().startswith("Not renewed yet; tried again until it can be. ")
        assert ci.bearer_file.read_bytes() == seen[-1]
        hub.start()
        assert "XCache macaroon of" in command.line()
        seen.append(ci.bearer_file.read_bytes())
        command.process.send_signal(signal.SIGINT)
        assert command.process.communicate(timeout=60) == ("", "")
    assert command.process.returncode == 0
    assert len(set(seen)) == 3


def test_a_leaver_s_renewals_end_with_a_sentence(alice: Person, ci: ClientMachine) -> None:
    with ci.begin("token", "xcache", "--keep", "--lifetime", SHORT) as command:
        assert "XCache macaroon of" in command.line()
        alice.is_in_groups("/cms")
        _, err = command.process.communicate(timeout=120)
    assert command.process.returncode == 1
    assert err.startswith("casa-hub: xcache: not renewed any more: ")
    assert err.count("\n") == 1
    done = ci.run("token", "xcache")
    assert (done.returncode, done.stdout) == (1, "")
