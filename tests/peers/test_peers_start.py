"""The peers are what the other tests take them for: real, closed to strangers, and gone when their starter is."""

import base64
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pymacaroons import Macaroon

from casa_hub.demo import htcondor, xrootd
from casa_hub.demo.certificates import make_host_certificate
from casa_hub.demo.htcondor import HTCondorPool
from casa_hub.demo.names import HostNames, resolves
from casa_hub.demo.processes import Process, ProcessError, read_log
from casa_hub.demo.traefik import Traefik
from casa_hub.demo.xrootd import XCache
from tests.peers.conftest import FILES
from tests.support.peers import Answer, condor, descendants, http, require, root, still_there

EVENTS = "/store/mc/events"
Ask = Callable[[XCache, str, str | None], Answer]
WAYS: dict[str, Ask] = {
    "http": http,
    "https": lambda xcache, path, token: http(xcache, path, token, scheme="https"),
    "root, BEARER_TOKEN_FILE": root,
    "root, ?authz=": lambda xcache, path, token: root(xcache, path, token, by="authz"),
}


def macaroon(xcache: XCache, seconds: float = 600) -> str:
    """Made by a library that has nothing to do with ours."""
    made = Macaroon(location=xcache.site, identifier="test", key=base64.b64decode(xcache.key_file.read_bytes()))
    before = datetime.now(UTC) + timedelta(seconds=seconds)
    for caveat in ("activity:DOWNLOAD,LIST", "path:/store", f"before:{before:%Y-%m-%dT%H:%M:%SZ}"):
        made.add_first_party_caveat(caveat)
    return made.serialize()


def idtoken(pool: HTCondorPool, user: str = "alice") -> str:
    """Made by HTCondor itself."""
    made = pool.tool("condor_token_create", "-identity", f"{user}@{pool.domain}", "-key", "hub", "-lifetime", "600")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.mark.parametrize("way", WAYS)
def test_the_xcache_asks_everybody_for_a_macaroon(xcache: XCache, way: str) -> None:
    ask = WAYS[way]
    assert ask(xcache, EVENTS, None).status == 403
    assert ask(xcache, EVENTS, macaroon(xcache, -1)).status == 403
    good = ask(xcache, EVENTS, macaroon(xcache))
    assert (good.status, good.content) == (200, FILES[EVENTS]), good.message
    assert ask(xcache, "/other/file", macaroon(xcache)).status == 403


def test_what_was_read_once_is_served_without_the_origin(xcache: XCache) -> None:
    xcache.origin.add("/store/once", b"from the origin")
    token = macaroon(xcache)
    assert not xcache.cached("/store/once").exists()
    assert http(xcache, "/store/once", token).content == b"from the origin"
    xcache.origin.stop()
    try:
        assert http(xcache, "/store/once", token).content == b"from the origin"
        assert http(xcache, "/store/once").status == 403
    finally:
        xcache.origin.start()


def test_xrootd_serves_this_machine_only(xcache: XCache) -> None:
    outside = _address_of_this_machine()
    if outside is None:
        pytest.skip("this machine has no address but loopback")
    for server in (xcache, xcache.origin):
        with socket.create_connection((outside, server.port), timeout=60) as connection:
            connection.settimeout(60)
            try:
                connection.sendall(b"GET /store/mc/events HTTP/1.0\r\n\r\n")
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass


def _address_of_this_machine() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


def test_the_pool_asks_everybody_for_a_token(pool: HTCondorPool) -> None:
    assert condor(pool, idtoken(pool), "ping", authorization="WRITE") == {
        "Authentication": "YES",
        "AuthMethods": "IDTOKENS",
        "MyRemoteUserName": f"alice@{pool.domain}",
        "AuthorizationSucceeded": True,
    }
    header, claims, signature = idtoken(pool).split(".")
    forged = ".".join([header, claims, signature[::-1]])
    for token in (None, forged):
        for authorization in ("READ", "WRITE"):
            assert "error" in condor(pool, token, "ping", authorization=authorization)


@pytest.mark.parametrize("user", ["alice", "carol"])
def test_a_job_runs_and_is_its_owners(pool: HTCondorPool, user: str) -> None:
    ran = condor(pool, idtoken(pool, user), "run", job={"executable": "/usr/bin/id", "arguments": "-u"})
    assert (ran["JobStatus"], ran["ExitCode"], ran["Owner"]) == (4, 0, user), ran
    assert ran["AuthTokenSubject"] == f"{user}@{pool.domain}"
    expected = htcondor.FIRST_UID + 1 + pool.accounts.index(user) if pool.accounts else os.getuid()
    assert ran["out"] == f"{expected}\n"


def test_reconfiguring_the_pool_has_effect_at_once(pool: HTCondorPool) -> None:
    token = idtoken(pool)
    pool.reconfigure(f'SEC_TOKEN_REVOCATION_EXPR = sub =?= "alice@{pool.domain}"\n')
    try:
        assert "error" in condor(pool, token, "ping", authorization="WRITE")
        assert "error" not in condor(pool, idtoken(pool, "carol"), "ping", authorization="WRITE")
    finally:
        pool.reconfigure("")
    assert "error" not in condor(pool, token, "ping", authorization="WRITE")


def _output(program: str, names: HostNames) -> str:
    """What a Python program prints that sees the names; "" if it fails."""
    environment = {**os.environ, **names.environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    ).stdout


LOOK_UP = "import socket; print(socket.gethostbyname({!r}))"


def test_programs_see_the_names_of_the_facility(names: HostNames, traefik: Traefik) -> None:
    names.replace({"first.dask.localhost": traefik.address})
    names.replace({"first.dask.localhost": traefik.address, "second.dask.localhost": traefik.address})
    for name in ("first.dask.localhost", "second.dask.localhost"):
        assert _output(LOOK_UP.format(name), names) == f"{traefik.address}\n"


def test_a_name_may_come_while_many_threads_look_names_up(names: HostNames, traefik: Traefik) -> None:
    """nss_wrapper reads a changed file without a lock; with a plain `rename` this program crashes or hangs."""
    if not names.environment:
        pytest.skip("this machine resolves the names itself")
    names.replace({"busy.dask.localhost": traefik.address})
    program = """if True:
        import socket, sys, threading
        done = threading.Event()
        wrong = []
        def look_up():
            while not done.is_set():
                if socket.gethostbyname("busy.dask.localhost") != sys.argv[1]:
                    wrong.append(1)
        threads = [threading.Thread(target=look_up) for _ in range(8)]
        [thread.start() for thread in threads]
        print("ready", flush=True)
        sys.stdin.read()
        done.set()
        [thread.join() for thread in threads]
        sys.exit(len(wrong))
    """
    environment = {**os.environ, **names.environment}
    command = [sys.executable, "-c", program, traefik.address]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == b"ready\n"
        for number in range(100):
            names.replace({"busy.dask.localhost": traefik.address, f"n{number}.localhost": traefik.address})
        try:
            busy.communicate(timeout=120)
        finally:
            busy.kill()
        assert busy.returncode == 0


def test_a_job_sees_the_names_of_the_facility(names: HostNames, traefik: Traefik, peers_directory: Path) -> None:
    names.replace({"of-a-job.dask.localhost": traefik.address})
    tree = require(htcondor.programs)
    directory = peers_directory / "condor-names"
    job = {"executable": "/usr/bin/getent", "arguments": "ahostsv4 of-a-job.dask.localhost"}
    with HTCondorPool(
        tree, directory, key_ids=("hub",), accounts=["alice"], job_environment=names.environment, slots=1
    ) as pool:
        ran = condor(pool, idtoken(pool), "run", job=job)
    assert ran["out"].split()[:1] == [traefik.address], ran


def test_traefik_leads_a_name_to_its_server(names: HostNames, traefik: Traefik, tmp_path: Path) -> None:
    """By SNI and with TLS untouched: what the client gets is the server's own certificate."""
    host = "alice.dask.localhost"
    names.replace({host: traefik.address})
    tls = make_host_certificate(tmp_path / "tls", (host,))
    serve = f"""if True:
        import ssl, socket
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain({str(tls.certificate)!r}, {str(tls.key)!r})
        with socket.create_server(("127.0.0.1", 0)) as server:
            print("port", server.getsockname()[1], flush=True)
            while True:
                connection, _ = server.accept()
                with connection:
                    try:
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.sendall(b"hello")
                    except OSError:
                        pass
    """
    ask = f"""if True:
        import ssl, socket
        context = ssl.create_default_context(cafile={str(tls.ca_file)!r})
        with socket.create_connection(({host!r}, 8786), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname={host!r}) as secure:
                print(secure.recv(5).decode())
    """
    with Process("server", [sys.executable, "-c", serve], log=tmp_path / "log") as server:
        port = server.wait_until("it listens", lambda: read_log(tmp_path / "log").removeprefix("port").strip())
        (traefik.routes / "alice.yml").write_text(
            f"""
tcp:
  routers:
    alice: {{entryPoints: [dask], rule: 'HostSNI(`{host}`)', service: alice, tls: {{passthrough: true}}}}
  services:
    alice: {{loadBalancer: {{servers: [{{address: '127.0.0.1:{port}'}}]}}}}
"""
        )
        try:
            assert server.wait_until("Traefik leads to it", lambda: _output(ask, names), 90) == "hello\n"
        finally:
            (traefik.routes / "alice.yml").unlink()


FACILITY = """
import signal, sys
from pathlib import Path
from casa_hub.demo import htcondor, xrootd
from casa_hub.demo.traefik import Traefik
from casa_hub.demo.processes import free_loopback_address
base, trees = Path(sys.argv[1]), (xrootd.programs(), htcondor.programs())
try:
    with (
        xrootd.XRootDOrigin(trees[0], base / "origin") as origin,
        xrootd.XCache(trees[0], base / "xcache", origin=origin, key_file=xrootd.make_key_file(base / "key"), site="X"),
        htcondor.HTCondorPool(trees[1], base / "pool", accounts=["alice"]) as pool,
        Traefik(base / "traefik", routes=base / "routes", address=free_loopback_address(8786, 8788)),
    ):
        print(pool.address, flush=True)
        signal.pause()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_nothing_is_left_of_a_facility_whose_starter_ends(how: str, peers_directory: Path) -> None:
    for programs in (xrootd.programs, htcondor.programs):
        require(programs)
    base = peers_directory / how
    base.mkdir()
    scratch = base / "tmp"
    scratch.mkdir()
    scratch.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", FACILITY, str(base)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline()
        assert len(list(scratch.iterdir())) == 3
        running = descendants(starter.pid)
        programs_running = {one.name for one in running}
        assert {"xrootd", "condor_master", "condor_schedd", "condor_startd", "traefik"} <= programs_running
        os.killpg(starter.pid, signal.Signals[how])  # a terminal's Ctrl-C goes to the whole group
        assert still_there(running, 30) == []
        starter.wait(60)
        assert starter.returncode == (0 if how == "SIGINT" else -signal.SIGKILL)
    assert list(scratch.iterdir()) == []
    assert str(base) not in Path("/proc/mounts").read_text()


def test_nobody_escapes_by_a_session_of_its_own(tmp_path: Path) -> None:
    escape = "setsid sh -c 'trap \"\" TERM HUP; sleep 600 & echo away; wait' & exec sleep 600"
    log = tmp_path / "log"
    process = Process("escape", ["sh", "-c", escape], log=log, scratch=tmp_path / "scratch").start()
    (tmp_path / "scratch").mkdir()
    process.wait_until("it is away", lambda: "away" in read_log(log))
    # Below its supervisor: a cluster of other tests, with programs of its own, may be below ours.
    assert process._supervisor is not None
    supervisor = process._supervisor.pid
    process.wait_until("both sleep", lambda: [one.name for one in descendants(supervisor)].count("sleep") == 2)
    running = descendants(supervisor)
    process.stop()
    assert still_there([one for one in running if one.name in {"sh", "sleep"}], 0) == []
    assert not (tmp_path / "scratch").exists()


def test_what_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ProcessError, match="last words"),
        Process("hasty", ["sh", "-c", "echo last words; exit 3"], log=tmp_path / "log") as hasty,
    ):
        hasty.wait_until("it is ready", lambda: False)


def test_only_loopback_counts_as_resolved() -> None:
    assert resolves("localhost", "127.0.0.1")
    assert not resolves("localhost", "127.0.0.2")
    assert not resolves("nobody.invalid")
