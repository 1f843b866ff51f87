"""Clients of the real servers, and what the fixtures of tests/peers are made with.

Each call of a client is a process of its own with a clean environment: XRootD and HTCondor keep sessions (and whom they
belong to) for as long as a process lives.
"""

from __future__ import annotations

import json
import os
import select
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from casa_hub.demo.htcondor import HTCondorPool
from casa_hub.demo.packages import Unavailable
from casa_hub.demo.xrootd import XCache

T = TypeVar("T")

#: ``iss`` of the tokens that the XCache of tests takes. Like the demo's, it is an address that XRootD can't ask.
ISSUER = "http://127.0.0.1:8000/hub/casa/issuer/cms"

REQUIRED = os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1"


def require(peer: Callable[[], T]) -> T:
    """What `peer` returns; where it is not to be had on this machine: skip, or fail if peers are required."""
    try:
        return peer()
    except Unavailable as missing:
        if REQUIRED:
            pytest.fail(f"CASA_HUB_REQUIRE_PEERS=1, but: {missing}")
        pytest.skip(str(missing))


def suites(*known: str) -> list[str]:
    """Debian suites to run a peer from: those of $CASA_HUB_PEER_SUITES (comma-separated) that have it."""
    wanted = os.environ.get("CASA_HUB_PEER_SUITES", "trixie").split(",")
    return [suite for suite in known if suite in wanted]


@dataclass(frozen=True)
class Answer:
    """What a client said about one file."""

    #: HTTP status, or XRootD's: 200 for success, 403 for "permission denied", 401 for a log in that failed.
    status: int
    content: bytes
    #: What went wrong, for the message of a failed assertion.
    message: str = ""


def http(
    xcache: XCache, path: str, token: str | None = None, *, scheme: str = "http", method: str = "GET", data: bytes = b""
) -> Answer:
    """Ask by HTTP(S), the token in the Authorization header."""
    asked = urllib.request.Request(xcache.url(path, scheme), method=method, data=data or None)
    if token is not None:
        asked.add_header("Authorization", f"Bearer {token}")
    trust = ssl.create_default_context(cafile=str(xcache.tls.ca_file))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(asked, timeout=60) as answer:
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), str(error))


_ROOT_CLIENT = """
import json, os, sys
from XRootD import client
answers, anyway = [], os.environ.pop("BEARER_TOKEN_FILE", "")
for url, token_file in json.load(sys.stdin):
    os.environ.pop("BEARER_TOKEN_FILE", None)
    if token_file or anyway:
        os.environ["BEARER_TOKEN_FILE"] = token_file or anyway
    with client.File() as file:
        status, _ = file.open(url)
        content = b""
        if status.ok:
            status, content = file.read()
    denied, login = status.errno == 3010, "Auth failed" in status.message
    code = 200 if status.ok else 403 if denied else 401 if login else 500
    answers.append([code, (content or b"").decode("latin-1"), status.message])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Asked:
    """One file, and the tokens by which it is asked for."""

    path: str
    #: In a file that ``BEARER_TOKEN_FILE`` names: the client logs in with it.
    ztn: str | None = field(default=None, repr=False)
    #: In the address (``?authz=Bearer%20...``).
    authz: str | None = field(default=None, repr=False)


def roots(xcache: XCache, asked: Sequence[Asked], *, environment: Mapping[str, str] | None = None) -> list[Answer]:
    """Ask by root:// with the real client, as analysis images do: all in one process, each with a log-in of its own.

    Args:
        xcache: the server.
        asked: what is asked for.
        environment: more variables for the client.
    """
    with tempfile.TemporaryDirectory(prefix="casa-client-") as home:
        client = {"PATH": os.environ["PATH"], "HOME": home, "XRD_CONNECTIONRETRY": "1", "XRD_REQUESTTIMEOUT": "60"}
        client |= {**xcache.client_environment, **(environment or {})}
        urls = []
        for number, one in enumerate(asked):
            # The client has one connection for each user name that an address names.
            url = xcache.url(one.path).replace("://", f"://c{number}@", 1)
            file = Path(home, f"token-{number}")
            if one.ztn is not None:
                file.touch(mode=0o600)
                file.write_text(one.ztn + "\n")
            authz = "" if one.authz is None else f"?authz=Bearer%20{one.authz}"
            urls.append((url + authz, "" if one.ztn is None else str(file)))
        ran = _run([sys.executable, "-c", _ROOT_CLIENT], client, given=json.dumps(urls))
    return [Answer(status, content.encode("latin-1"), message) for status, content, message in json.loads(ran)]


def root(
    xcache: XCache,
    path: str,
    token: str | None = None,
    *,
    by: str = "ztn",
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Ask by root:// once, in a process of its own; `by`: ``ztn`` or ``authz``, as in `Asked`."""
    [answer] = roots(xcache, [Asked(path, **{by: token})], environment=environment)
    return answer


_CONDOR_CLIENT = """
import json, sys, time
import htcondor2 as htcondor

PROPERTIES = ["JobStatus", "Owner", "User", "AuthTokenSubject", "AuthTokenIssuer", "AuthTokenScopes", "AuthTokenId",
              "HoldReason", "ExitCode", "AcctGroup"]
SPOOLING = 16
collector, operation, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    where = htcondor.Collector(collector).query(htcondor.AdType.Schedd)[0]
    schedd = htcondor.Schedd(where)
    if operation == "ping":
        ad = htcondor.ping(where, arguments["authorization"])
        answer = {k: ad.get(k) for k in ("Authentication", "AuthMethods", "MyRemoteUserName", "AuthorizationSucceeded")}
    elif operation == "submit":
        job = schedd.submit(htcondor.Submit(arguments["job"]))
        answer = dict(schedd.query(f"ClusterId == {job.cluster()}", PROPERTIES)[0]) | {"ClusterId": job.cluster()}
    elif operation == "run":
        job = schedd.submit(htcondor.Submit(arguments["job"] | {"output": "out", "error": "err"}), spool=True)
        schedd.spool(job)
        mine, end = f"ClusterId == {job.cluster()}", time.monotonic() + 150
        while True:
            ad = schedd.query(mine, PROPERTIES + ["HoldReasonCode"])[0]
            held = ad["JobStatus"] == 5 and ad.get("HoldReasonCode") != SPOOLING
            if ad["JobStatus"] == 4 or held or time.monotonic() > end:
                break
            time.sleep(0.1)
        schedd.retrieve(mine)
        schedd.act(htcondor.JobAction.Remove, mine)
        answer = {k: ad.get(k) for k in PROPERTIES if k in ad}
        answer |= {"ClusterId": job.cluster(), "out": open("out").read(), "err": open("err").read()}
    elif operation == "remove":
        answer = dict(schedd.act(htcondor.JobAction.Remove, arguments["constraint"]))
    elif operation == "credential":
        credd = htcondor.Credd(htcondor.Collector(collector).query(htcondor.AdType.Credd)[0])
        credd.add_user_service_cred(htcondor.CredType.OAuth, arguments["name"].encode(), arguments["name"])
        answer = {"stored": True}
    elif operation == "query":
        answer = {"jobs": [dict(ad) for ad in schedd.query(arguments["constraint"], PROPERTIES)]}
except htcondor.HTCondorException as error:
    answer = {"error": str(error)}
print(json.dumps(answer, default=str))
"""

#: What every job of a test asks for, since a pool of tests has little.
SMALL_JOB = {"transfer_executable": "false", "request_cpus": "1", "request_memory": "16M", "request_disk": "1M"}
#: A job that stays in the queue.
HELD = {"executable": "/bin/true", "hold": "true", "initialdir": "/tmp"}


def condor(
    pool: HTCondorPool,
    token: str | None,
    operation: str,
    *,
    environment: Mapping[str, str] | None = None,
    collector: str = "",
    **arguments: Any,
) -> dict[str, Any]:
    """Do something at the pool's schedd with the real client; the answer has a key ``error`` if that was refused.

    Args:
        pool: the pool.
        token: an IDTOKEN; None for nobody's.
        operation: ``ping`` (authorization="WRITE": who am I there), ``submit`` (job={...}: properties of the job),
            ``run`` (job={...}: the same once it is done, with ``out`` and ``err``), ``remove`` (constraint="..."),
            ``query`` (constraint="...": jobs), ``credential`` (name="casa": ask the credd for a token for jobs).
        environment: more variables for the client.
        collector: its address, if the client should have another one than ``pool.address``.
        arguments: of the operation; `job` is completed by `SMALL_JOB`.
    """
    if "job" in arguments:
        arguments["job"] = SMALL_JOB | arguments["job"]
    with tempfile.TemporaryDirectory(prefix="casa-client-") as home:
        tokens = Path(home, "tokens.d")
        tokens.mkdir()
        if token is not None:
            (tokens / "token").touch(mode=0o600)
            (tokens / "token").write_text(token + "\n")
        client = {
            "PATH": os.environ["PATH"],
            "CONDOR_CONFIG": "/dev/null",
            "_CONDOR_SEC_TOKEN_DIRECTORY": str(tokens),
            "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",  # FS would let this user in without a token
            "_CONDOR_SEC_KNOWN_HOSTS": str(Path(home, "known_hosts")),
        } | dict(environment or {})
        address = collector or pool.address
        command = [sys.executable, "-c", _CONDOR_CLIENT, address, operation, json.dumps(arguments)]
        answer: dict[str, Any] = json.loads(_run(command, client, cwd=home))
    return answer


def only_its_owner_removes_a_job(ask: Callable[..., dict[str, Any]], owner: str, other: str) -> None:
    """`ask`: as `condor`, of one pool. `owner`, `other`: tokens of two users."""
    job = ask(owner, "submit", job=HELD)
    which = f"ClusterId == {job['ClusterId']}"
    refused = ask(other, "remove", constraint=which)
    assert (refused["TotalPermissionDenied"], refused["TotalSuccess"]) == (1, 0), refused
    removed = ask(owner, "remove", constraint=which)
    assert (removed["TotalPermissionDenied"], removed["TotalSuccess"]) == (0, 1), removed


def _run(command: list[str], environment: dict[str, str], cwd: str | None = None, given: str = "") -> str:
    ran = subprocess.run(
        command, env=environment, cwd=cwd, input=given, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@dataclass(frozen=True)
class Started:
    """A process, held so that its number can't be taken for another's."""

    pid: int
    name: str
    handle: int


def descendants(pid: int) -> list[Started]:
    """Every process below `pid`."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                head, _, rest = (entry / "stat").read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(rest.split()[1]), []).append((int(entry.name), head.partition("(")[2]))
    found, todo = [], [pid]
    while todo:
        for child, name in parents.get(todo.pop(), []):
            try:
                found.append(Started(child, name, os.pidfd_open(child)))
            except ProcessLookupError:
                continue
            todo.append(child)
    return found


def still_there(processes: list[Started], timeout: float) -> list[str]:
    """Names of those that have not ended `timeout` seconds from now; returns as soon as all have."""
    left = {one.handle: one for one in processes}
    while left:
        ended = select.select(list(left), [], [], timeout)[0]
        if not ended:
            break
        for handle in ended:
            del left[handle]
            os.close(handle)
    return [one.name for one in left.values()]
