"""The real SeaweedFS, on a loopback address: an S3 with an STS, for the tests that depend on what these really answer.

    python -m tests.support.seaweedfs       builds it, once; `make test` does it

It comes from the Go module proxy, and is built into the cache of the other servers of the tests, without the other
databases, clouds and queues that it could use: that is a fifth of the work. A start takes seconds.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import requests

from casa_hub.demo.packages import Progress, Unavailable, cache_root, locked
from casa_hub.demo.processes import Process, minimal_environment
from casa_hub.loopback import free_ports

MODULE = "github.com/seaweedfs/seaweedfs"
VERSION = "v0.0.0-20261109003541-7506e5f91cd6"
#: Of the module's content, as go.sum has it. Its own go.sum holds those of all others.
SUM = "h1:LOYZFToHq9F7pSR6lkPGfkM8RmHlVFrzndKdhmNZjrU="
#: What is built of the module's content, and how.
_PARTS = frozenset({"go.mod", "go.sum", "telemetry", "weed"})
#: Packages that do nothing but make one more choice known: other stores of metadata, clouds, queues, key servers.
_CHOICES = re.compile(
    rf'^\s*_ "{re.escape(MODULE)}/weed/'
    r"(filer/(?!leveldb)|notification/|remote_storage/|replication/sink/|kms/(aws|gcp|openbao)|credential/postgres)"
    r".*\n",
    re.MULTILINE,
)
_REMEDY = "Check the network and Go's settings (GOPROXY), and try again."

#: Options for what it listens at, the S3 first.
_PORTS = tuple(f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("", ".grpc"))
#: Seconds until it serves, on a machine that is busy with other tests.
_START = 120.0

# -- where it comes from -----------------------------------------------------------------------------------------------


def program(progress: Progress | None = None) -> Path:
    """The program ``weed``; with `progress`, it is built if it isn't there. Two processes may ask at once.

    Raises:
        Unavailable: it isn't built, or there is no Go here, or no network.
    """
    built = cache_root() / f"seaweedfs-{VERSION.rpartition('-')[2]}" / "weed"
    if built.exists():
        return built
    if progress is None:
        remedy = "Run: python -m tests.support.seaweedfs (make test does), which says what stands in the way."
        raise Unavailable("SeaweedFS", f"not built in {built.parent}", remedy)
    try:
        with locked(built.parent.with_name(built.parent.name + ".lock"), progress, "builds the same"):
            if not built.exists():
                built.parent.mkdir(exist_ok=True)
                begin = time.monotonic()
                progress("building it, about 4 minutes on two cores")
                with tempfile.TemporaryDirectory(dir=built.parent, prefix="making-") as scratch:
                    _build(Path(scratch)).rename(built)
                progress(f"built it in {(time.monotonic() - begin) / 60:.1f} minutes")
    except OSError as error:
        remedy = "Point CASA_HUB_CACHE at a directory that you can write, with 3 GB to spare."
        raise Unavailable(str(built.parent), f"can't be filled: {error}", remedy) from error
    return built


def _build(scratch: Path) -> Path:
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if go is None:
        raise Unavailable(
            "SeaweedFS", "there is no Go to build it with", "Install Go 1.26 or newer (https://go.dev/dl)."
        )
    module = json.loads(_run([go, "mod", "download", "-json", f"{MODULE}@{VERSION}"], scratch))
    if module["Sum"] != SUM:
        raise Unavailable("SeaweedFS", f"{MODULE} is not what it was: {module['Sum']}", "Look at what has changed.")
    tree = scratch / "tree"
    for source in Path(module["Dir"]).rglob("*"):
        path = source.relative_to(module["Dir"])
        wanted = path.parts[0] in _PARTS and not source.name.endswith("_test.go")
        if wanted and source.is_file():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            content = source.read_bytes()
            (tree / path).write_bytes(_CHOICES.sub("", content.decode()).encode() if path.suffix == ".go" else content)
    weed = scratch / "weed"
    _run(["nice", go, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(weed), "./weed"], tree)
    return weed


def _run(command: Sequence[str], directory: Path) -> str:
    ran = subprocess.run(
        command,
        check=False,
        cwd=directory,
        env=os.environ | {"CGO_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        said = " ".join((ran.stderr or ran.stdout).split())[-500:] or f"exit code {ran.returncode}"
        raise Unavailable("SeaweedFS", f"{command[0]} failed: {said}", _REMEDY)
    return ran.stdout


# -- a running one -----------------------------------------------------------------------------------------------------


class SeaweedFS:
    """An S3 with an STS at the same address. `stop` it; it ends with this process, however that ends."""

    def __init__(self, weed: Path, directory: Path) -> None:
        """Args:
        weed: what `program` returns.
        directory: for its data, its log and its settings.
        """
        ports = free_ports(len(_PORTS), self)
        self.url = f"http://127.0.0.1:{ports[0]}"
        #: It makes them, there and nowhere else, and leaves some behind.
        self._sockets = [
            Path(f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock")
            for name, port in zip(_PORTS, ports, strict=True)
        ]
        #: An administrator, who makes buckets.
        self.access_key, self.secret_key = "administrator", base64.b32encode(os.urandom(20)).decode()
        self._iam, self._identities = directory / "iam.json", directory / "identities.json"
        self._data = directory / "data"
        self._process = Process(
            "SeaweedFS",
            [
                *(weed, "-logtostderr", "server", f"-dir={self._data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-{name}={number}" for name, number in zip(_PORTS, ports, strict=True)),
                *("-master.telemetry=false", "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=64"),
                *("-volume.max=20", "-volume.preStopSeconds=0", f"-filer.localSocket={directory / 'filer.sock'}"),
                *("-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                *(f"-s3.config={self._identities}", f"-s3.iam.config={self._iam}"),
            ],
            log=directory / "seaweedfs.log",
            env=minimal_environment(HOME=str(directory)),
            cwd=directory,
            grace=1.0,
        )

    def start(self, iam: Mapping[str, Any]) -> None:
        """Start it, with this file of ``-s3.iam.config``: whose tokens it takes. Returns when it serves."""
        self._data.mkdir(exist_ok=True)
        self._iam.write_text(json.dumps(iam))
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "administrator", "credentials": [keys], "actions": ["Admin", "Read", "List", "Write"]}
        self._identities.write_text(json.dumps({"identities": [identity]}))
        self._process.start()
        try:
            self._process.wait_until("it serves", self._serves, _START)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.stop()
        for socket in self._sockets:
            socket.unlink(missing_ok=True)

    def _serves(self) -> bool:
        try:
            # A stranger's request, refused: the S3 knows its filer, and the filer its volumes' master.
            return requests.get(self.url, timeout=5).status_code == requests.codes.forbidden
        except requests.RequestException:
            return False


def prepare(write: Callable[[str], object] = print) -> None:
    """Build it if it isn't there. Never a failure: the tests that want it are skipped, or fail, and say why."""

    def tell(line: str) -> None:
        write(f"SeaweedFS for the tests: {line}")

    try:
        program(tell)
    except Unavailable as missing:
        tell(str(missing))


if __name__ == "__main__":
    prepare(partial(print, flush=True))
