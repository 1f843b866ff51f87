"""The local spawner in a real JupyterHub, with real single-user servers and a third party's installed credential."""

import contextlib
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from casa_hub.credentials.tokens import unverified_claims
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from tests.support import forked
from tests.support.local_hub import JUPYTERLAB, SECRET, LocalHub, gone
from tests.support.scale import one_for_both_hubs, scaled
from tests.support.waiting import until

HOSTILE = "ü.. \"'`$(touch x)\n;%2e" + "x" * 150


@contextlib.contextmanager
def running(directory: Path, site_package: Path, config: str) -> Iterator[LocalHub]:
    hub = LocalHub(directory, site_package, config)
    try:
        yield hub.start()
    finally:
        hub.end_all()


@pytest.fixture(scope="module")
def hub(site_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """With the servers that users have; for several tests, each with users of its own."""
    network = 'c.LocalDelivery.network = "127.76.0.0/16"\n'
    with running(tmp_path_factory.mktemp("hub"), site_package, JUPYTERLAB + network) as hub:
        yield hub


@pytest.fixture(scope="module")
def shared_quick_hub(site_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """As `quick_hub`, for several tests, each with users of its own; it goes on from the one to the next."""
    network = 'c.LocalDelivery.network = "127.77.0.0/16"\n'
    with running(tmp_path_factory.mktemp("hub"), site_package, scaled("", JUPYTERLAB) + network) as hub:
        yield hub


@pytest.fixture
def quick_hub(make_local_hub: Callable[..., LocalHub]) -> LocalHub:
    """Its servers are small, but for a run in full: a test with it is marked ``shortened``."""
    return make_local_hub(scaled("", JUPYTERLAB)).start()


@pytest.mark.both_hubs
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
        "dask_fresh_token.py",
        "state.json",
        "process",
    }
    assert unverified_claims((directory / "site_badge").read_text())["sub"] == HOSTILE
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


@pytest.mark.both_hubs
def test_the_hub_starts_without_a_warning_of_the_database_s_library(hub: LocalHub) -> None:
    assert "SAWarning" not in hub.log


@pytest.mark.shortened
def test_two_named_servers_of_one_user_hold_separate_credentials(shared_quick_hub: LocalHub) -> None:
    hub = shared_quick_hub
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


@pytest.mark.shortened
def test_an_optional_credential_that_is_missing_is_told_and_not_pointed_to(shared_quick_hub: LocalHub) -> None:
    hub = shared_quick_hub
    told = " / ".join(str(event["message"]) for event in hub.spawn("barred"))
    assert "Starting without site: site badge: barred gets none. Ask the site." in told
    assert "Starting without bearer: access token: is missing" in told
    process = hub.remember("barred")
    assert process is not None
    assert "SITE_BADGE_FILE" not in process.environment()
    assert not (hub.path("barred") / "site_badge").exists()
    missing = hub.state("barred")["record"]["missing"]  # type: ignore[index]
    assert missing["site"] == "site badge: barred gets none. Ask the site."


@pytest.mark.shortened
def test_a_required_credential_that_is_missing_ends_the_start_and_leaves_nothing(shared_quick_hub: LocalHub) -> None:
    hub = shared_quick_hub
    key = hub.directory / "xcache.key"
    key.rename(key.with_suffix(".away"))
    events = hub.spawn("dora")
    key.with_suffix(".away").rename(key)
    assert events[-1]["failed"]
    assert "xcache.key" in str(events[-1]["message"])
    assert gone(hub, ("dora", ""))


@pytest.mark.both_hubs
@pytest.mark.shortened
def test_a_new_access_token_reaches_the_running_server_and_the_rest_stays(shared_quick_hub: LocalHub) -> None:
    hub = shared_quick_hub
    (hub.directory / "token").write_text("first")
    assert hub.spawn("erna")[-1]["ready"]
    directory, before = hub.path("erna"), hub.state("erna")
    files = {path.name: path.read_bytes() for path in (directory / "..data").iterdir()}
    assert files["access_token"] == b"first"
    (hub.directory / "token").write_text("second")
    token = hub.api("POST", "/users/erna/tokens").json()["token"]
    until(
        lambda: hub.api("GET", "/user", token=token).ok and (directory / "access_token").read_bytes() == b"second",
        "the new token is there",
    )
    after = {path.name: path.read_bytes() for path in (directory / "..data").iterdir()}
    assert after == files | {"access_token": b"second"}
    entries, earlier = hub.state("erna")["record"]["credentials"], before["record"]["credentials"]  # type: ignore[index]
    assert entries.pop("bearer")["issued_at"] > earlier.pop("bearer")["issued_at"]
    assert entries == earlier
    # None any more: what is there stays until it expires or the server stops.
    since = len(hub.log)
    (hub.directory / "token").unlink()
    until(
        lambda: hub.api("GET", "/user", token=token).ok and "No new bearer for" in hub.log[since:],
        "a renewal without a token",
    )
    assert (directory / "access_token").read_bytes() == b"second"


@pytest.mark.both_hubs
def test_when_the_hub_ends_with_its_servers_nothing_is_left(make_local_hub: Callable[..., LocalHub]) -> None:
    hub = make_local_hub("c.JupyterHub.cleanup_servers = True\n")
    hub.start()
    hub.spawn("alice")
    process = hub.remember("alice")
    assert process is not None
    assert hub.stop(signal.SIGTERM) == 0
    assert gone(hub, ("alice", ""))
    assert not process.alive


@pytest.mark.shortened
def test_another_program_of_jupyterhub_beside_the_hub_disturbs_nothing(shared_quick_hub: LocalHub) -> None:
    hub = shared_quick_hub
    hub.spawn("fred")
    done = forked.run("jupyterhub", ["token", "fred"], hub.directory, hub.environment)
    assert done.returncode == 0, done.stderr
    assert hub.api("GET", "/user", token=done.stdout.split()[-1]).json()["name"] == "fred"
    assert (hub.path("fred") / "xcache_token").read_bytes()


@pytest.mark.both_hubs
def test_a_process_that_does_not_start_leaves_nothing(make_local_hub: Callable[..., LocalHub]) -> None:
    hub = make_local_hub('c.Spawner.cmd = ["/nonexistent/singleuser"]\n')
    hub.start()
    assert hub.spawn("alice")[-1]["failed"]
    assert gone(hub, ("alice", ""))


@pytest.mark.shortened
def test_a_server_that_is_killed_loses_its_credentials(shared_quick_hub: LocalHub) -> None:
    hub = shared_quick_hub
    hub.spawn("bob")
    process = hub.remember("bob")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    hub.wait_for("bob server stopped,? with exit code")
    until(lambda: gone(hub, ("bob", "")), "nothing is left of it")


@pytest.mark.both_hubs
@pytest.mark.shortened
def test_after_a_crash_of_the_hub_the_living_are_kept_and_the_dead_swept(quick_hub: LocalHub) -> None:
    hub = quick_hub
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
    until(lambda: gone(hub, ("bob", "")), "nothing is left of bob's server")
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
    until(lambda: gone(hub, ("carol", "")), "nothing is left of carol's server")


@pytest.mark.both_hubs
def test_a_server_whose_start_the_hub_did_not_outlive_is_found_again(make_local_hub: Callable[..., LocalHub]) -> None:
    """JupyterHub saves pid and port only after `start` returned: a hub that dies before leaves a server it forgot."""
    hub = make_local_hub(
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


@pytest.mark.shortened
def test_a_server_that_the_database_forgot_is_ended(quick_hub: LocalHub) -> None:
    hub = quick_hub
    hub.spawn("alice")
    process = hub.remember("alice")
    assert process is not None
    hub.crash()
    (hub.directory / "hub.sqlite").unlink()
    hub.start()
    until(lambda: gone(hub, ("alice", "")), "nothing is left of it")
    until(lambda: not process.alive, "the server has ended")


@pytest.mark.parametrize(
    ("config", "expected"),
    one_for_both_hubs(
        [
            (
                "c.JupyterHub.bind_url = 'http://:8000'\n",
                r"JupyterHub.bind_url: http://:8000.* can be reached from other",
            ),
            ("c.JupyterHub.hub_ip = '0.0.0.0'\n", r"JupyterHub.hub_bind_url: .* can be reached from other"),
            ("c.XCache.keyfile = 'x'\n", r"XCache.keyfile: there is no such setting. Did you mean key_file\?"),
            ("c.Site.lifetme = 1\n", r"Site.lifetme: there is no such setting. Did you mean lifetime\?"),
            ("c.Facilty.required = []\n", r"Facilty: there is no such section. Did you mean Facility\?"),
            ("c.Facility.required = ['htcondor']\n", r"'htcondor' is not in Facility.credentials"),
            ("c.TraefikRoutes.directory = ''\n", r"TraefikRoutes.directory: is not set"),
            (
                "c.LocalDelivery.directory = 'traefik'\nopen('traefik/x', 'w')\n",
                r"it holds files that aren't the hub's",
            ),
        ]
    ),
)
def test_a_hub_that_cannot_be_sound_does_not_start(
    make_local_hub: Callable[..., LocalHub], config: str, expected: str
) -> None:
    hub = make_local_hub(config)
    hub.begin()
    hub.wait_for(rf"ConfigurationError: .*{expected}")
    assert hub.process is not None
    assert hub.process.wait(60) != 0
    assert not hub.servers.exists()


@pytest.mark.both_hubs
def test_without_our_authenticator_the_first_spawn_looks_at_the_configuration(
    make_local_hub: Callable[..., LocalHub],
) -> None:
    hub = make_local_hub('c.JupyterHub.authenticator_class = "dummy"\nc.XCache.keyfile = "x"\n')
    hub.start()
    hub.api("POST", "/users/alice")
    answer = hub.api("POST", "/users/alice/server")
    assert answer.status_code == 500
    assert "ConfigurationError: XCache.keyfile" in hub.log
