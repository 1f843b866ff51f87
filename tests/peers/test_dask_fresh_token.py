"""The token that a server holds reaches the workers of its real Dask cluster, and stays fresh there.

The hub's delivery writes the server's files. The scheduler runs with the server's environment; workers are processes
with directories of their own, as batch jobs are.
"""

from __future__ import annotations

import base64
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from distributed import Client, wait
from distributed.security import Security

from casa_hub.credentials.base import Request
from casa_hub.credentials.dask import Dask
from casa_hub.credentials.xcache import XCache as Macaroons
from casa_hub.delivery import file_layout
from casa_hub.demo.processes import Process, free_loopback_address, read_log
from casa_hub.demo.xrootd import XCache
from casa_hub.naming import Server
from tests.support.dask import START, dask_process
from tests.support.dask_tasks import held, look, read, watch
from tests.support.minting import write
from tests.support.peers import http
from tests.support.waiting import until
from tests.support.xrootd_client import FILES, content_of, path_of

ALICE = Server("", "alice")
VARIABLE = "BEARER_TOKEN_FILE"
#: What a job was submitted with.
STALE = "stale-token"
#: Seconds within which a worker has a new token. The scheduler looks every two; this machine may be busy.
SOON = 30
#: What tasks do is in `tests.support.dask_tasks`, which scheduler and workers import.
HERE = Path(__file__).parents[2]


class Cluster:
    """A server's files, its Dask scheduler, and workers."""

    def __init__(self, directory: Path, stack: ExitStack, *, tls: bool = True) -> None:
        self.directory, self._stack, self._tls = directory, stack, tls
        self.files = directory / "delivered"
        self.files.mkdir(parents=True)
        secret = write(directory / "secret", base64.b64encode(bytes(48)))
        self.minter = Dask(secret_file=secret, domain="example.org")
        self._certificates = self.minter.mint(Request(ALICE, START, datetime.now(UTC))).files
        self.address = f"{'tls' if tls else 'tcp'}://{free_loopback_address(8786)}:8786"
        self.logs: dict[str, Path] = {}

    def renew(self, token: str) -> None:
        """As the hub's delivery does."""
        file_layout.write_set(self.files, {**self._certificates, "xcache_token": token.encode()}, datetime.now(UTC))

    def scheduler(self, **more: str) -> Process:
        environment = dict(self.minter.environment(ALICE, PurePosixPath(self.files)))
        environment |= {VARIABLE: str(self.files / "xcache_token"), **more}
        process = self._run("scheduler", ["--host", self.address], self.directory, environment)
        process.wait_until("it listens", lambda: "Scheduler at:" in self.log("scheduler"), 120)
        return process

    def worker(self, name: str, **environment: str) -> Path:
        """One of its own directory, which is returned; by default with the copy that a job was submitted with."""
        own = self.directory / name
        (own / ".xcache").mkdir(parents=True)
        copy = own / ".xcache" / "access_token"
        copy.write_text(STALE)
        environment = {VARIABLE: str(copy)} | environment
        arguments = [self.address, "--name", name, "--nthreads", "2", "--local-directory", str(own / "scratch")]
        self._run("worker", arguments, own, {key: value for key, value in environment.items() if value}, log=name)
        return own

    def client(self) -> Client:
        security = None
        if self._tls:
            mine = str(self.files / "usercert.pem")
            ca = str(self.files / "ca.pem")
            security = Security(require_encryption=True, tls_ca_file=ca, tls_client_cert=mine, tls_client_key=mine)
        return self._stack.enter_context(Client(self.address, security=security, timeout="120s"))

    def all_logs(self) -> str:
        return "\n".join(map(self.log, self.logs))

    def log(self, name: str) -> str:
        return read_log(self.logs[name])

    def _run(
        self, what: str, arguments: list[str], directory: Path, environment: dict[str, str], *, log: str = ""
    ) -> Process:
        name = log or what
        environment = environment | {"PYTHONPATH": str(HERE)}
        self.logs[name] = directory / f"{name}.log"
        process = dask_process(name, [what, *arguments, "--no-dashboard"], directory, self.files, environment)
        if not self._tls:
            process.command = process.command[: process.command.index("--tls-ca-file")]
        return self._stack.enter_context(process)


def at(client: Client, worker: str, function: Callable[..., Any], *arguments: object) -> Any:
    """The future of a task at that worker, which may come later."""
    return client.submit(function, *arguments, workers=[worker], pure=False)


def soon(client: Client, worker: str, token: str, cluster: Cluster) -> None:
    until(lambda: at(client, worker, held).result(60) == token, f"{worker} has {token}", SOON, more=cluster.all_logs)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = Cluster(tmp_path / "alice", stack)
        made.renew("token-0")
        yield made


def test_the_token_reaches_all_workers_and_stays_fresh(cluster: Cluster, tmp_path: Path) -> None:
    """Three renewals; nobody ever reads anything but a whole token, and no log or dump shows one."""
    cluster.scheduler()
    client = cluster.client()
    # Before the first worker: what its first task reads.
    first = {name: at(client, name, held) for name in ("job", "bare", "lost", "inside")}
    job = cluster.worker("job")
    bare = cluster.worker("bare", BEARER_TOKEN_FILE="")
    lost = cluster.worker("lost", BEARER_TOKEN_FILE="/nowhere/xcache_token")
    cluster.worker("inside", BEARER_TOKEN_FILE=str(cluster.files / "xcache_token"))
    assert {name: future.result(120) for name, future in first.items()} == dict.fromkeys(first, "token-0")

    watched = at(client, "job", watch, "token-3")
    for number in (1, 2, 3):
        cluster.renew(f"token-{number}")
        for name in first:
            soon(client, name, f"token-{number}", cluster)
    assert watched.result(120) == ["token-0", "token-1", "token-2", "token-3"]

    # A new worker has it before its first task.
    late = at(client, "late", held)
    cluster.worker("late")
    assert late.result(120) == "token-3"

    # Where the tokens are, and that only their owner reads them.
    files = [job / ".xcache" / "access_token"]
    files += [file for own in (bare, lost) for file in own.glob("scratch/**/xcache_token")]
    assert [(file.read_text(), stat.S_IMODE(file.stat().st_mode)) for file in files] == [("token-3", 0o600)] * 3
    assert not list(cluster.directory.glob("**/.casa_hub-*"))
    # The server's own file is the delivery's still, whoever sees it.
    assert (cluster.files / "xcache_token").readlink() == Path("..data/xcache_token")

    client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
    public = [cluster.all_logs(), (tmp_path / "dump.yaml").read_text(), repr(client.scheduler_info())]
    public += [repr(client.get_scheduler_logs()), repr(client.get_worker_logs())]
    assert not [text for text in public if re.search(r"token-\d", text)]


def test_a_worker_reads_through_the_xcache_for_three_lives_of_a_macaroon(
    cluster: Cluster, xcache: XCache, tmp_path: Path
) -> None:
    life, lives = 9, 3
    minter = Macaroons(key_file=str(xcache.key_file), site_name=xcache.site, lifetime=life)

    def macaroon() -> str:
        return minter.mint(Request(ALICE, START, datetime.now(UTC))).files["xcache_token"].decode()

    for number in range(FILES):
        xcache.origin.add(path_of(number), content_of(number))
    first = macaroon()
    cluster.renew(first)
    cluster.scheduler()
    client = cluster.client()
    cluster.worker("job", XCACHE_HOST=xcache.host, XCACHE_PORT=str(xcache.port), **xcache.client_environment)
    client.wait_for_workers(1, timeout=120)
    fresh = macaroon()
    cluster.renew(fresh)
    soon(client, "job", fresh, cluster)
    reading = at(client, "job", read, str(xcache.tls.ca_file), lives * life)
    while not reading.done():
        cluster.renew(macaroon())
        with suppress(TimeoutError):
            wait(reading, timeout=life / 3)
    answer = reading.result()
    assert answer["failures"] == []
    assert answer["read"] > lives * life
    # Whoever has only the copy that the job was submitted with is refused.
    assert http(xcache, path_of(0), first).status == 403


def test_nothing_is_sent_without_tls(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "clear", stack, tls=False)
        cluster.renew("token-0")
        cluster.scheduler()
        client = cluster.client()
        cluster.worker("job")
        assert at(client, "job", held).result(120) == STALE
        cluster.renew("token-1")
        assert not client.run_on_scheduler(look)
        assert not client.run_on_scheduler(look)
        assert at(client, "job", held).result(120) == STALE
        assert cluster.log("scheduler").count("Workers get no fresh BEARER_TOKEN_FILE") == 1


def test_a_token_that_is_withdrawn_is_sent_to_nobody_any_more(cluster: Cluster) -> None:
    cluster.scheduler()
    client = cluster.client()
    assert client.run_on_scheduler(look)
    file_layout.write_set(cluster.files, {"ca.pem": (cluster.files / "ca.pem").read_bytes()}, datetime.now(UTC))
    assert not client.run_on_scheduler(look)


def test_the_preload_of_a_site_s_configuration_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    site = tmp_path / "etc"
    site.mkdir()
    (site / "site_preload.py").write_text(
        "def dask_setup(scheduler):\n    print('the site sets up', scheduler.address)\n"
        "def dask_teardown(scheduler):\n    print('the site tears down')\n"
    )
    (site / "site.yaml").write_text(f"distributed: {{scheduler: {{preload: ['{site}/site_preload.py']}}}}\n")
    scheduler = cluster.scheduler(DASK_ROOT_CONFIG=str(site), PYTHONUNBUFFERED="1")
    said = f"the site sets up {cluster.address}"
    scheduler.wait_until("the site's preload runs", lambda: said in cluster.log("scheduler"), 60)
    assert cluster.client().run_on_scheduler(look)
    scheduler.stop()
    assert "the site tears down" in cluster.log("scheduler")


def test_a_scheduler_starts_where_the_file_is_not(tmp_path: Path) -> None:
    """A job that has inherited the server's variables, on a machine without its files."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "job", stack, tls=False)
        cluster.scheduler()
        assert cluster.client().run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.periodic_callbacks))
