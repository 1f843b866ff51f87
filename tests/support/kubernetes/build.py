"""Builds the Kubernetes of the tests from source, once, into the cache: `make test` and `make kubernetes` run this.

    python -m tests.support.kubernetes.build

Programs come from the Go module proxy, the image of the pods from a Debian mirror and PyPI: no registry of images, no
Docker. What the control plane needs comes first and is all that an ordinary user needs; a node needs root to run, so
only root has the rest built. What is there already stays; each piece is made anew when what it is made of has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from casa_hub.demo.packages import Progress, Unavailable, cache_root, file_system, silent, unpack
from casa_hub.demo.processes import Process, read_log
from casa_hub.errors import CasaError
from tests.support.kubernetes.cluster import PAUSE_IMAGE, Cluster, demand_a_place_for_a_node
from tests.support.kubernetes.image import make_image

HERE = Path(__file__).parent
GO = HERE / "go"
LOCK = HERE.parents[1] / "lock" / "hub6.txt"
#: JupyterHub 5.5, as the chart's own hub has it.
HUB_LOCK = LOCK.with_name("hub5.txt")
PROJECT = HERE.parents[2] / "pyproject.toml"
#: What a node runs beside Kubernetes.
SYSTEM = ("runc", "containernetworking-plugins", "nftables", "iproute2")
#: What the image of the pods is made of; libstdc++ for pyzmq.
IMAGE = "casa-hub.test/singleuser:1"
IMAGE_PACKAGES = ("bash", "coreutils", "dash", "findutils", "grep", "procps", "sed", "libstdc++6", "python3")
IMAGE_REQUIREMENTS = ("jupyterhub", "jupyterlab", "ipykernel", "distributed", "htcondor", "xrootd")
#: What a hub's pods run, but for casa_hub: JupyterHub, its proxy, and an identity provider. A test adds the wheel.
HUB_IMAGE = "casa-hub.test/hub-without-casa:1"
HUB_PACKAGES = ("bash", "coreutils", "dash", "libstdc++6", "python3", "node-configurable-http-proxy")
#: pycurl is what the chart's own configuration has the hub speak HTTP with.
HUB_REQUIREMENTS = (
    *tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"],
    "oidc-provider-mock",
    "pycurl",
)


def version_of(module: str, source: str) -> str:
    """The version of a Go module in the go.mod of one of our programs."""
    found = re.search(rf"\s{re.escape(module)} (v\S+)", (GO / source / "go.mod").read_text())
    assert found, f"{module} is not in go/{source}/go.mod"
    return found[1]


VERSION = version_of("k8s.io/kubernetes", "kubernetes")


@dataclass(frozen=True)
class Piece:
    """Something that is built."""

    #: Path below the directory.
    name: str
    #: Identifies what it is made of and how.
    recipe: str
    #: About how long that takes on two cores, seconds.
    seconds: int
    #: Makes it at the path given.
    make: Callable[[Path], None]


def recipe(*parts: str | bytes | Path) -> str:
    """A short hash of texts and of files' contents."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part if isinstance(part, bytes) else part.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]


def directory() -> Path:
    """Where it all is: ``bin`` and, for a node, ``images`` and ``store`` (the same, unpacked)."""
    return cache_root() / f"kubernetes-{VERSION.removeprefix('v')}"


def control_plane() -> list[Piece]:
    """What `ControlPlane` needs."""
    return [
        _kubernetes("kube-apiserver", 215),
        _kubernetes("kube-controller-manager", 30),
        _kubernetes("kubectl", 15),
        _program("etcd", "runtime", "go.etcd.io/etcd/server/v3", 25),
    ]


def node() -> list[Piece]:
    """What `Cluster` needs beside that; images are built and imported by root."""
    version = version_of("github.com/containerd/containerd/v2", "runtime").removeprefix("v")
    flags = f"-X github.com/containerd/containerd/v2/version.Version={version}"
    runtime = [
        _program(name, "runtime", f"github.com/containerd/containerd/v2/cmd/{name}", seconds, flags)
        for name, seconds in (("containerd", 20), ("containerd-shim-runc-v2", 3), ("ctr", 3))
    ]
    images = [
        Piece("images/pause.tar", recipe(GO / "pause" / "main.go", HERE / "image.py"), 2, _make_pause),
        Piece("images/singleuser.tar", recipe(HERE / "image.py", LOCK, *_SINGLEUSER), 60, _make_singleuser),
        Piece("images/hub.tar", recipe(HERE / "image.py", HUB_LOCK, *_HUB), 45, _make_hub),
    ]
    return [
        *(
            _kubernetes(name, seconds)
            for name, seconds in (("kubelet", 25), ("kube-scheduler", 10), ("kube-proxy", 10))
        ),
        *runtime,
        _program("coredns", "dns", ".", 50),
        *images,
        Piece("store", recipe(version, *(image.recipe for image in images)), 8, _make_store),
    ]


def system(progress: Progress = silent) -> Path:
    """The tree of what a node needs of Debian, unpacked without touching this machine.

    Raises:
        Unavailable: no apt here, or no network.
    """
    return unpack(SYSTEM, progress=progress).root


def programs() -> Path:
    """The directory of the control plane's programs.

    Raises:
        Unavailable: they have not been built here.
    """
    _demand(control_plane())
    return directory() / "bin"


def node_parts() -> dict[str, Any]:
    """Arguments for a `Cluster`.

    Raises:
        Unavailable: this process may not run one, or it has not been built here.
    """
    demand_a_place_for_a_node()
    _demand([*control_plane(), *node()])
    images = sorted((directory() / "images").glob("*.tar"))
    return {"programs": directory() / "bin", "system": system(), "images": images, "store": directory() / "store"}


def _demand(pieces: Sequence[Piece]) -> None:
    if missing := _missing(pieces):
        raise Unavailable(
            f"Kubernetes {VERSION}",
            f"{', '.join(piece.name for piece in missing)} not built in {directory()}",
            "Run: python -m tests.support.kubernetes.build (make test does), which says what stands in the way.",
        )


def _kubernetes(name: str, seconds: int) -> Piece:
    # Without a version the API server calls itself v0.0.0, which clients and admission don't take for a release.
    stamps = {"gitVersion": VERSION, "gitMajor": "1", "gitMinor": VERSION.split(".")[1], "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in stamps.items())
    return _program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", seconds, flags)


def _program(name: str, source: str, package: str, seconds: int, flags: str = "") -> Piece:
    flags = f"-s -w {flags}".strip()

    def make(output: Path) -> None:
        _go_build(GO / source, package, flags, output)

    files = sorted(path for path in (GO / source).iterdir() if path.is_file())
    return Piece(f"bin/{name}", recipe(package, flags, *files), seconds, make)


def _go_build(module: Path, package: str, flags: str, output: Path) -> None:
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if go is None:
        remedy = "Install Go (https://go.dev/dl), of the version that go.mod asks for or newer."
        raise Unavailable(f"Kubernetes {VERSION}", "there is no Go to build it with", remedy)
    command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(output), package]
    run(["nice", *command], f"building {output.name}", cwd=module, env={**os.environ, "CGO_ENABLED": "0"})


def _make_pause(output: Path) -> None:
    with tempfile.TemporaryDirectory(dir=output.parent) as root:
        Path(root).chmod(0o755)
        _go_build(GO / "pause", "main.go", "-s -w", Path(root, "pause"))
        make_image(PAUSE_IMAGE, Path(root), output, user="65535:65535", command=["/pause"])


def _make_singleuser(output: Path) -> None:
    """JupyterLab of the versions that the hub's tests run with, as user 1000 of a small Debian."""
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        file_system(root, IMAGE_PACKAGES)
        _install(root, "opt/jupyter", IMAGE_REQUIREMENTS, LOCK)
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\njovyan:x:1000:1000::/home/jovyan:/bin/bash\n")
        (root / "etc/group").write_text("root:x:0:\njovyan:x:1000:\n")
        (root / "home/jovyan").mkdir(parents=True)
        os.chown(root / "home/jovyan", 1000, 1000)
        path = "/opt/jupyter/bin:/usr/bin:/usr/sbin"
        env = {"HOME": "/home/jovyan", "PYTHONPATH": "/opt/jupyter", "PATH": path, "LANG": "C.UTF-8"}
        # Beside the packages, not where Debian's Python looks.
        env |= {"JUPYTER_CONFIG_PATH": "/opt/jupyter/etc/jupyter", "JUPYTER_PATH": "/opt/jupyter/share/jupyter"}
        env |= {"JUPYTERLAB_DIR": "/opt/jupyter/share/jupyter/lab"}
        command = ["jupyterhub-singleuser"]
        make_image(IMAGE, root, output, user="1000:1000", workdir="/home/jovyan", env=env, command=command)


def _make_hub(output: Path) -> None:
    """As the chart's own images are: any user's, with a directory for the hub to be in."""
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        file_system(root, HUB_PACKAGES)
        _install(root, "opt/hub", HUB_REQUIREMENTS, HUB_LOCK)
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\njovyan:x:1000:1000::/home/jovyan:/bin/bash\n")
        (root / "etc/group").write_text("root:x:0:\njovyan:x:1000:\n")
        for directory in (root / "srv/jupyterhub", root / "home/jovyan"):
            directory.mkdir(parents=True)
            os.chown(directory, 1000, 1000)
        env = {"HOME": "/home/jovyan", "PYTHONPATH": "/opt/hub", "PATH": "/opt/hub/bin:/usr/bin", "LANG": "C.UTF-8"}
        command = ["jupyterhub", "--config", "/usr/local/etc/jupyterhub/jupyterhub_config.py"]
        make_image(HUB_IMAGE, root, output, user="1000:1000", workdir="/srv/jupyterhub", env=env, command=command)


def _install(root: Path, target: str, requirements: Sequence[str], lock: Path) -> None:
    """Packages in the versions of a lock, for the Python of a file system."""
    python = next(path.name for path in sorted((root / "usr/bin").glob("python3.*")))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    # Wheels for the interpreter in the image, whichever runs pip here.
    pip += ["--only-binary=:all:", f"--python-version={python.removeprefix('python')}", f"--constraint={lock}"]
    run([*pip, f"--target={root / target}", *requirements], f"fetching {', '.join(requirements)}")
    for script in (root / target / "bin").iterdir():
        _, newline, rest = script.read_bytes().partition(b"\n")
        script.write_bytes(b"#!/usr/bin/python3" + newline + rest)
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)  # for the locks of several processes
    # Unpacked packages bring no compiled files, and the archive keeps no times to tell old ones by.
    compiler = ["/usr/bin/python3", "-m", "compileall", "-q", "-j0", "--invalidation-mode=unchecked-hash"]
    compiler += [f"/{target}", f"/usr/lib/{python}", "/usr/lib/python3"]
    run(["chroot", str(root), *compiler], f"compiling {target}")


def _make_store(output: Path) -> None:
    images = sorted((directory() / "images").glob("*.tar"))
    Cluster(directory() / "bin", output.with_name("cluster"), system=system(), images=images).save_store(output)


#: What the images are made of and how: these functions are their recipes.
_SINGLEUSER = (*IMAGE_PACKAGES, *IMAGE_REQUIREMENTS, inspect.getsource(_make_singleuser), inspect.getsource(_install))
_HUB = (*HUB_PACKAGES, *HUB_REQUIREMENTS, inspect.getsource(_make_hub), inspect.getsource(_install))


def run(command: Sequence[str], what: str, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, or to this one's.

    Raises:
        Unavailable: it isn't there, or it failed.
    """
    with tempfile.TemporaryDirectory(dir=directory(), prefix="making-") as scratch:
        with Process(what, command, log=Path(scratch, "log"), cwd=cwd, env=env) as process:
            code = process.wait()
        if code:
            reason = " ".join(read_log(process.log).split())[-600:] or f"exit code {code}"
            raise Unavailable(what, f"failed: {reason}", "Try again when that is put right.")


def _missing(pieces: Sequence[Piece]) -> list[Piece]:
    def made(piece: Piece) -> bool:
        stamp = _stamp(piece)
        return stamp.exists() and stamp.read_text() == piece.recipe

    return [piece for piece in pieces if not made(piece)]


def _stamp(piece: Piece) -> Path:
    return directory() / "made" / piece.name.replace("/", "-")


def build(pieces: Sequence[Piece], tell: Progress) -> None:
    """Make what is missing; two processes may ask at once.

    Raises:
        Unavailable: something that this needs is not to be had here.
    """
    if not _missing(pieces):
        return
    try:
        with _locked(tell):
            missing = _missing(pieces)
            for at, piece in enumerate(missing):
                left = sum(each.seconds for each in missing[at:])
                tell(f"building {piece.name}, about {_time(piece.seconds)} (all that is missing: {_time(left)})")
                begin = time.monotonic()
                _make(piece)
                tell(f"built {piece.name} in {_time(time.monotonic() - begin)}")
    except (OSError, subprocess.SubprocessError) as error:
        remedy = "Point CASA_HUB_CACHE at a directory that you can write, with 4 GB to spare."
        raise Unavailable(str(directory()), f"can't be filled: {error}", remedy) from error


def _make(piece: Piece) -> None:
    """Beside its place first: what lies in its place is whole, and of the recipe that its stamp names."""
    place, stamp = directory() / piece.name, _stamp(piece)
    for parent in (place.parent, stamp.parent):
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory(), prefix="making-") as scratch:
        new = Path(scratch, place.name)
        piece.make(new)
        stamp.unlink(missing_ok=True)
        if place.is_dir():
            place.rename(Path(scratch, "old"))
        new.rename(place)
    stamp.write_text(piece.recipe)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def _locked(tell: Progress) -> Iterator[None]:
    directory().mkdir(parents=True, exist_ok=True)
    with directory().with_name(directory().name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that builds the same")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in directory().glob("making-*"):  # of one that was killed
            shutil.rmtree(left_over)
        yield


def prepare(*, with_node: bool, write: Callable[[str], object] = print) -> None:
    """Build what is missing. Never a failure: the tests that want it are skipped, or fail, and say why."""

    def tell(line: str) -> None:
        write(f"Kubernetes {VERSION} for the tests: {line}")

    wanted = control_plane()
    if with_node:
        try:
            demand_a_place_for_a_node()
            wanted += node()
        except Unavailable as error:
            tell(str(error))
    try:
        build(wanted, tell)
    except CasaError as error:
        tell(str(error))


def main() -> int:
    prepare(with_node=True, write=partial(print, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
