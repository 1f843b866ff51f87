"""The local spawner in a real JupyterHub, with real single-user servers and a third party's installed credential."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
import yaml

from casa_hub.naming import Server
from casa_hub.processes import Process, signed_in
from tests.support.hub import Hub

HOSTILE = "ü.. \"'`$(touch x)\n;%2e" + "x" * 150
SECRET = "SECRET-OF-THE-HUB"
SITE = Path(__file__).parents[1] / "support" / "site_credential"

CONFIG = """
from pathlib import Path
from jupyterhub.auth import DummyAuthenticator
from casa_hub.credentials.base import AccessToken
from casa_hub.startup import on_hub_start

class Early(DummyAuthenticator):
    # Offers the local spawner what CasaOAuthenticator does; files stand for the identity provider.
    auth_refresh_age = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        on_hub_start(self.parent)

    async def access_token(self, user):
        return AccessToken(Path("token").read_text(), None) if Path("token").exists() else None

    async def refresh_user(self, user, handler=None):
        for spawner in user.spawners.values():
            if spawner.ready:
                await spawner.renew_credentials(["bearer"])
        return True

c.JupyterHub.authenticator_class = Early
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.Authenticator.allow_all = True
c.Spawner.poll_interval = 1
c.Spawner.args = ["--allow-root"]
c.Spawner.start_timeout = 60
c.Spawner.http_timeout = 60
c.Spawner.environment = {"SITE_HOST": "the operator's", "FROM_OPERATOR": "yes"}
c.Facility.credentials = ["site", "xcache", "dask", "bearer"]
c.Facility.required = ["xcache"]
c.XCache.key_file = "xcache.key"
c.XCache.site_name = "T3_TEST"
c.XCache.host = "xcache.example.org"
c.Dask.secret_file = "dask.secret"
c.Dask.domain = "example.org"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.network = "127.78.0.0/16"
c.Site.lifetime = 600
c.Site.barred = "barred"
"""


@pytest.fixture(scope="module")
def site_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built as its author would, and unpacked as an installer does with pure Python."""
    source, target = tmp_path_factory.mktemp("source") / "site", tmp_path_factory.mktemp("site-packages")
    shutil.copytree(SITE, source)
    build = "import sys, hatchling.build as backend; print(backend.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(source)], cwd=source, check=True, capture_output=True)
    [wheel] = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


class LocalHub(Hub):
    """A hub of which the tests know all servers, to end them whatever happens."""

    def __init__(self, directory: Path, site_package: Path, config: str = "") -> None:
        environment = {
            "OAUTH_CLIENT_SECRET": SECRET,
            "LD_LIBRARY_PATH": f"/opt/{SECRET}",
            "PYTHONPATH": str(site_package),
        }
        # Asked directly: after each crash of these tests JupyterHub would have to be given a new proxy.
        super().__init__(directory, CONFIG + config, environment=environment, proxy=False)
        self.servers = directory / "casa-hub-servers"
        self.processes: list[Process] = []
        (directory / "traefik").mkdir()
        for name in ("xcache.key", "dask.secret"):
            encoded = subprocess.run(["openssl", "rand", "-base64", "64"], check=True, capture_output=True).stdout
            (directory / name).write_bytes(encoded.replace(b"\n", b"") + b"\n")
            (directory / name).chmod(0o600)

    def crash(self) -> None:
        self.stop(signal.SIGKILL)

    def end_all(self) -> None:
        self.stop(signal.SIGKILL)
        for path in self.servers.glob("*/process"):
            self.processes.append(signed_in(path))  # type: ignore[arg-type]
        for process in self.processes:
            if process is not None and process.alive:
                os.killpg(process.pid, signal.SIGKILL)

    def spawn(self, user: str, name: str = "") -> list[dict[str, object]]:
        """Start a server and listen until it is ready, or failed; what its spawn page was told."""
        path = self.begin_spawn(user, name)
        events = []
        with requests.get(
            f"{self.url}/hub/api{path}/progress",
            headers={"Authorization": f"token {self.api_token}"},
            stream=True,
            timeout=90,
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    events.append(json.loads(line.removeprefix(b"data:")))
                    if events[-1].get("ready") or events[-1].get("failed"):
                        break
        self.remember(user, name)
        return events

    def begin_spawn(self, user: str, name: str = "") -> str:
        self.api("POST", f"/users/{quote(user, safe='')}")
        path = f"/users/{quote(user, safe='')}/" + (f"servers/{name}" if name else "server")
        answer = self.api("POST", path)
        assert answer.status_code in (201, 202), answer.text
        return path

    def remember(self, user: str, name: str = "") -> Process | None:
        process = signed_in(self.path(user, name) / "process")
        if process is not None:
            self.processes.append(process)
        return process

    def path(self, user: str, name: str = "") -> Path:
        return self.servers / Server("", user, name).slug

    def ready(self, user: str) -> set[str]:
        model = self.api("GET", f"/users/{quote(user, safe='')}").json()
        return {name for name, server in model["servers"].items() if server["ready"]}

    def stop_server(self, user: str, name: str = "") -> None:
        path = f"/users/{quote(user, safe='')}/" + (f"servers/{name}" if name else "server")
        answer = self.api("DELETE", path)
        assert answer.status_code in (202, 204), answer.text

    def state(self, user: str, name: str = "") -> dict[str, object]:
        content: dict[str, object] = json.loads((self.path(user, name) / "state.json").read_text())
        return content


@pytest.fixture
def make_hub(tmp_path: Path, site_package: Path) -> Iterator[Callable[..., LocalHub]]:
    hubs = []

    def make(config: str = "") -> LocalHub:
        hubs.append(LocalHub(tmp_path, site_package, config))
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.end_all()


@pytest.fixture
def hub(make_hub: Callable[..., LocalHub]) -> LocalHub:
    made: LocalHub = make_hub().start()  # type: ignore[assignment]
    return made


def until(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    """For what happens in the hub without a word: look again, up to a deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def gone(hub: LocalHub, *servers: tuple[str, str]) -> bool:
    """Whether nothing is left of these servers, anywhere."""
    slugs = {Server("", user, name).slug for user, name in servers}
    left = {path.name for path in hub.servers.iterdir()} | {path.stem for path in (hub.directory / "traefik").iterdir()}
    hidden = any(name.startswith((".new", ".old")) for name in left)
    return not (slugs & left or hidden)


def test_a_server_has_its_credentials_and_nothing_of_the_hub(hub: LocalHub) -> None:
    events = hub.spawn(HOSTILE)
    assert events[-1]["ready"], hub.log[-5000:]
    directory = hub.path(HOSTILE)

    assert {path.name for path in directory.iterdir() if not path.name.startswith("..")} == {
        "site_badge",
        "xcache_token",
        "ca.pem",
        "hostcert.pem",
        "usercert.pem",
        "state.json",
        "process",
    }
    assert (directory / "site_badge").read_text().startswith("BADGE-")
    assert stat.S_IMODE(hub.servers.stat().st_mode) == 0o700
    for path in (directory, (directory / "..data").resolve()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for file in path.iterdir():
            if file.is_file():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file

    process = signed_in(directory / "process")
    assert process is not None
    environment = process.environment()
    assert environment["BEARER_TOKEN_FILE"] == f"{directory}/xcache_token"
    assert environment["SITE_BADGE_FILE"] == f"{directory}/site_badge"
    assert environment["CERT_DIR"] == str(directory)
    assert environment["XCACHE_HOST"] == "xcache.example.org"
    assert environment["HOST_IP"] == f"{Server('', HOSTILE).slug}.dask.example.org"
    assert environment["SITE_HOST"] == "the operator's"
    assert environment["FROM_OPERATOR"] == "yes"
    everything = " ".join(f"{name}={value}" for name, value in environment.items())
    assert SECRET not in everything
    assert "PYTHONPATH" not in environment
    assert not [name for name in environment if name.startswith("JUPYTERHUB_CRYPT")]
    for path in (directory / "..data").resolve().iterdir():
        assert path.read_text() not in everything

    state = hub.state(HOSTILE)
    assert environment["JUPYTERHUB_SERVICE_URL"].startswith(f"http://{state['address']}:")
    assert Path(environment["HOME"]).parent == hub.directory / "casa-hub-homes"
    assert re.fullmatch(r"[a-z0-9-]+", Path(environment["HOME"]).name)
    assert stat.S_IMODE(Path(environment["HOME"]).stat().st_mode) == 0o700
    assert Path(f"/proc/{process.pid}/cwd").resolve() == Path(environment["HOME"])

    route = yaml.safe_load((hub.directory / "traefik" / f"{directory.name}.yml").read_text())["tcp"]
    assert set(route["routers"]) == {f"{directory.name}.{label}.example.org" for label in ("dask", "dask-worker")}

    told = " / ".join(str(event["message"]) for event in events)
    assert re.search(r"Site badge \(for [a-z0-9-]+\), valid until \d\d:\d\d UTC", told), told
    assert "Credentials delivered" in told
    for path in (directory / "..data").resolve().iterdir():
        assert path.read_text() not in hub.log + told

    hub.stop_server(HOSTILE)
    assert gone(hub, (HOSTILE, ""))
    assert not process.alive


def test_two_named_servers_of_one_user_hold_separate_credentials(hub: LocalHub) -> None:
    for name in ("one", "two"):
        assert hub.spawn("alice", name)[-1]["ready"], hub.log[-5000:]
    for file in ("site_badge", "xcache_token", "ca.pem", "hostcert.pem"):
        assert (hub.path("alice", "one") / file).read_bytes() != (hub.path("alice", "two") / file).read_bytes()
    assert hub.state("alice", "one")["address"] != hub.state("alice", "two")["address"]
    homes = {hub.remember("alice", name).environment()["HOME"] for name in ("one", "two")}  # type: ignore[union-attr]
    assert len(homes) == 1
    hub.stop_server("alice", "one")
    assert gone(hub, ("alice", "one"))
    assert hub.ready("alice") == {"two"}
    assert (hub.path("alice", "two") / "xcache_token").read_bytes()


def test_an_optional_credential_that_is_missing_is_told_and_not_pointed_to(hub: LocalHub) -> None:
    told = " / ".join(str(event["message"]) for event in hub.spawn("barred"))
    assert "Starting without site: site badge: barred gets none. Ask the site." in told
    assert "Starting without bearer: access token: is not there" in told
    process = hub.remember("barred")
    assert process is not None
    assert "SITE_BADGE_FILE" not in process.environment()
    assert not (hub.path("barred") / "site_badge").exists()
    missing = hub.state("barred")["record"]["missing"]  # type: ignore[index]
    assert missing["site"] == "site badge: barred gets none. Ask the site."


def test_a_required_credential_that_is_missing_ends_the_start_and_leaves_nothing(hub: LocalHub) -> None:
    (hub.directory / "xcache.key").unlink()
    events = hub.spawn("alice")
    assert events[-1]["failed"]
    assert "xcache.key" in str(events[-1]["message"])
    assert gone(hub, ("alice", ""))


def test_a_new_access_token_reaches_the_running_server_and_the_rest_stays(hub: LocalHub) -> None:
    (hub.directory / "token").write_text("first")
    assert hub.spawn("alice")[-1]["ready"]
    directory, before = hub.path("alice"), hub.state("alice")
    files = {path.name: path.read_bytes() for path in (directory / "..data").iterdir()}
    assert files["access_token"] == b"first"
    (hub.directory / "token").write_text("second")
    token = hub.api("POST", "/users/alice/tokens").json()["token"]
    until(
        lambda: hub.api("GET", "/user", token=token).ok and (directory / "access_token").read_bytes() == b"second",
        "the new token is there",
    )
    after = {path.name: path.read_bytes() for path in (directory / "..data").iterdir()}
    assert after == files | {"access_token": b"second"}
    entries, earlier = hub.state("alice")["record"]["credentials"], before["record"]["credentials"]  # type: ignore[index]
    assert entries.pop("bearer")["issued_at"] > earlier.pop("bearer")["issued_at"]
    assert entries == earlier
    # None any more: what is there stays until it expires or the server stops.
    (hub.directory / "token").unlink()
    until(lambda: hub.api("GET", "/user", token=token).ok and "No new bearer for" in hub.log, "a renewal without a token")
    assert (directory / "access_token").read_bytes() == b"second"


def test_when_the_hub_ends_with_its_servers_nothing_is_left(make_hub: Callable[..., LocalHub]) -> None:
    hub = make_hub("c.JupyterHub.cleanup_servers = True\n")
    hub.start()
    hub.spawn("alice")
    process = hub.remember("alice")
    assert process is not None
    assert hub.stop(signal.SIGTERM) == 0
    assert gone(hub, ("alice", ""))
    assert not process.alive


def test_another_program_of_jupyterhub_beside_the_hub_disturbs_nothing(hub: LocalHub) -> None:
    hub.spawn("alice")
    command = [sys.executable, "-m", "jupyterhub", "token", "alice"]
    done = subprocess.run(command, cwd=hub.directory, env=hub.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.api("GET", "/user", token=done.stdout.split()[-1]).json()["name"] == "alice"
    assert (hub.path("alice") / "xcache_token").read_bytes()


def test_a_process_that_does_not_start_leaves_nothing(make_hub: Callable[..., LocalHub]) -> None:
    hub = make_hub('c.Spawner.cmd = ["/nonexistent/singleuser"]\n')
    hub.start()
    assert hub.spawn("alice")[-1]["failed"]
    assert gone(hub, ("alice", ""))


def test_a_server_that_is_killed_loses_its_credentials(hub: LocalHub) -> None:
    hub.spawn("alice")
    process = hub.remember("alice")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    hub.wait_for("alice server stopped,? with exit code")
    assert gone(hub, ("alice", ""))


def test_after_a_crash_of_the_hub_the_living_are_kept_and_the_dead_swept(hub: LocalHub) -> None:
    for user in ("alice", "bob", "carol"):
        assert hub.spawn(user)[-1]["ready"]
    alice, bob, carol = (hub.remember(user) for user in ("alice", "bob", "carol"))
    assert alice is not None
    assert bob is not None
    assert carol is not None
    before = {path.name: path.read_bytes() for path in (hub.path("alice") / "..data").iterdir()}
    hub.crash()
    os.kill(bob.pid, signal.SIGKILL)
    until(lambda: not bob.alive, "bob's server has ended")
    hub.start()
    assert gone(hub, ("bob", ""))
    assert not gone(hub, ("alice", ""))
    until(lambda: hub.ready("alice") == {""}, "alice's server is known to the hub")
    assert {path.name: path.read_bytes() for path in (hub.path("alice") / "..data").iterdir()} == before
    assert alice.alive
    # The hub has the servers in hand again: one is stopped, one is found dead.
    hub.stop_server("alice")
    assert gone(hub, ("alice", ""))
    assert not alice.alive
    until(lambda: hub.ready("carol") == {""}, "carol's server is known to the hub")
    os.kill(carol.pid, signal.SIGKILL)
    hub.wait_for("carol server stopped,? with exit code")
    assert gone(hub, ("carol", ""))


def test_a_server_whose_start_the_hub_did_not_outlive_is_found_again(make_hub: Callable[..., LocalHub]) -> None:
    """JupyterHub saves pid and port only after `start` returned: a hub that dies before leaves a server it forgot."""
    hub = make_hub(
        "import asyncio\nfrom casa_hub.local_spawner import CasaLocalSpawner\n"
        "class Slow(CasaLocalSpawner):\n"
        "    async def start(self):\n"
        "        where = await super().start()\n"
        "        self.log.info('Process is there')\n"
        "        await asyncio.sleep(3600 if 'once' in __import__('os').environ else 0)\n"
        "        return where\n"
        "c.JupyterHub.spawner_class = Slow\n"
    )
    hub.environment["once"] = "1"
    hub.start()
    hub.begin_spawn("alice")
    hub.wait_for("Process is there")
    process = hub.remember("alice")
    assert process is not None
    hub.crash()
    del hub.environment["once"]
    hub.start()
    until(lambda: hub.ready("alice") == {""}, "alice's server is known to the hub")
    assert process.alive
    hub.stop_server("alice")
    assert gone(hub, ("alice", ""))
    assert not process.alive


def test_a_server_that_the_database_forgot_is_ended(hub: LocalHub) -> None:
    hub.spawn("alice")
    process = hub.remember("alice")
    assert process is not None
    hub.crash()
    (hub.directory / "hub.sqlite").unlink()
    hub.start()
    assert gone(hub, ("alice", ""))
    until(lambda: not process.alive, "the server has ended")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("c.JupyterHub.bind_url = 'http://:8000'\n", r"JupyterHub.bind_url: http://:8000.* can be reached from other"),
        ("c.JupyterHub.hub_ip = '0.0.0.0'\n", r"JupyterHub.hub_bind_url: .* can be reached from other"),
        ("c.XCache.keyfile = 'x'\n", r"XCache.keyfile: there is no such setting. Did you mean key_file\?"),
        ("c.Site.lifetme = 1\n", r"Site.lifetme: there is no such setting. Did you mean lifetime\?"),
        ("c.Facilty.required = []\n", r"Facilty: there is no such section. Did you mean Facility\?"),
        ("c.Facility.required = ['htcondor']\n", r"'htcondor' is not in Facility.credentials"),
        ("c.TraefikRoutes.directory = ''\n", r"TraefikRoutes.directory: it is not set"),
        ("c.LocalDelivery.directory = 'traefik'\nopen('traefik/x', 'w')\n", r"it holds files that aren't the hub's"),
    ],
)
def test_a_hub_that_cannot_be_sound_does_not_start(
    make_hub: Callable[..., LocalHub], config: str, expected: str
) -> None:
    hub = make_hub(config)
    hub.begin()
    hub.wait_for(rf"ConfigurationError: .*{expected}")
    assert hub.process is not None
    assert hub.process.wait(30) != 0
    assert not hub.servers.exists()


def test_without_our_authenticator_the_first_spawn_looks_at_the_configuration(
    make_hub: Callable[..., LocalHub],
) -> None:
    hub = make_hub('c.JupyterHub.authenticator_class = "dummy"\nc.XCache.keyfile = "x"\n')
    hub.start()
    hub.api("POST", "/users/alice")
    answer = hub.api("POST", "/users/alice/server")
    assert answer.status_code == 500
    assert "ConfigurationError: XCache.keyfile" in hub.log
