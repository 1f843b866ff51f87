"""Coffea-Casa's own package and the entry points of its two images, with the files and variables of a server.

The package comes from PyPI; its source distribution has its tests, and what its images run and configure: the
entry points of the server's image (``prepare-env-cc.sh``) and of the worker's (``prepare-env-cc-analysis.sh``), and the
files below ``/opt/dask`` and ``/etc/condor``. All of it stays as it is.

What an image has and this machine hasn't: conda, which gives way to a virtual environment, and the paths below /etc and
/opt, which are mounted in a namespace of the program's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from casa_hub.demo.htcondor import programs as htcondor_programs
from casa_hub.demo.packages import Progress, Unavailable, cache_root, locked, silent, unpack
from tests.support.hub_pod import KEPT

VERSION = "2026.10.14"
#: Of the source distribution, of which scripts are run here.
DIGEST = "5d13a959f32edd913881ca3dd1cfcd9b537b1787a231b47ac291d33a59474838"
_REQUIREMENTS = (
    f"coffea-casa=={VERSION}",
    "dask-jobqueue==0.9.0",
    "distributed==2026.8.0",
    "jupyter-core==5.9.1",  # the command `jupyter`, which the server's entry point asks for a directory
    "pytest==9.2.0",
)
_KEPT_DIRECTORIES = ("docker", "tests")


@dataclass(frozen=True)
class CoffeaCasa:
    """The package in an environment, and its source."""

    #: As ``CONDA_DIR`` of the images: with ``bin/python``.
    environment: Path
    source: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin/python"

    @property
    def worker_entry_point(self) -> Path:
        return self.source / "docker/prepare-env/prepare-env-cc-analysis.sh"


def coffea_casa(progress: Progress = silent) -> CoffeaCasa:
    """The package, fetched once, with an interpreter that a pool's accounts can execute, too.

    That is bookworm's Python 3.11: with 3.13 and 3.14 (and distributed 2026.8), a scheduler that loses one TLS
    connection often loses another one with it, to EPIPE.

    Raises:
        Unavailable: no network, or no Debian packages here.
    """
    python = unpack(["python3", "python3-venv"], suite="bookworm", progress=progress)
    key = sha256("\n".join((str(python.root), *_REQUIREMENTS)).encode()).hexdigest()[:8]
    home = cache_root() / f"coffea-casa-{VERSION}-{key}"
    found, whole = CoffeaCasa(home / "environment", home / "source"), home / "ok"
    try:
        with locked(home.with_name(f"{home.name}.lock"), progress, "fetches the same"):
            if not whole.exists():
                shutil.rmtree(home, ignore_errors=True)
                home.mkdir()
                progress(f"fetching coffea-casa {VERSION} and what it needs, 70 MB")
                _install(found, python.root, home)
                whole.touch()  # last: it says that all before is there
    except (OSError, tarfile.TarError) as error:
        remedy = "Point CASA_HUB_CACHE at a directory that you can write."
        raise Unavailable(str(home), f"can't be filled: {error}", remedy) from error
    return found


def _install(found: CoffeaCasa, root: Path, home: Path) -> None:
    _run([root / "usr/bin/python3", "-m", "venv", "--without-pip", found.environment])
    (pip,) = (root / "usr/share/python-wheels").glob("pip-*.whl")  # Debian has none for `ensurepip` of an unpacked one
    variables = os.environ | {"PYTHONPATH": str(pip)}
    _run([found.python, "-m", "pip", "install", "--quiet", *_REQUIREMENTS], variables)
    get = ["download", "--quiet", "--no-deps", "--no-binary", "coffea-casa", "--dest", home, _REQUIREMENTS[0]]
    _run([found.python, "-m", "pip", *get], variables)
    (archive,) = home.glob("*.tar.gz")
    if sha256(archive.read_bytes()).hexdigest() != DIGEST:
        raise Unavailable(f"coffea-casa {VERSION}", "is another one than was read for these tests", "Read it first.")
    with tarfile.open(archive) as content:
        wanted = [one for one in content if one.name.split("/")[1:2] and one.name.split("/")[1] in _KEPT_DIRECTORIES]
        content.extractall(home, wanted, filter="data")
    (home / archive.name.removesuffix(".tar.gz")).rename(found.source)
    archive.unlink()


def _run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    ran = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
    if ran.returncode:
        problem = f"can't be fetched: {(ran.stderr or ran.stdout).strip()[-600:]}"
        raise Unavailable(f"coffea-casa {VERSION}", problem, "Check the network, and pip's settings.")


class Image:
    """A server's container of today's image, as far as it concerns credentials: a mount namespace.

    Args:
        package: see `coffea_casa`.
        delivered: the directory with a server's files, as a delivery has laid it out.
        directory: is made; for what the image has in /etc, /opt and the user's home.
    """

    def __init__(self, package: CoffeaCasa, delivered: Path, directory: Path) -> None:
        self._package = package
        self._condor = htcondor_programs().root / "usr"
        self._root = directory
        self._delivered = delivered
        docker = package.source / "docker"
        etc, opt, home = (directory / name for name in ("etc", "opt", "home"))
        for path in (etc / "cmsaf-secrets", etc / "cmsaf-secrets-chown", opt / "condor/config.d", home / ".jupyter"):
            path.mkdir(parents=True)
        for name in KEPT:
            part = Path("/etc", name)
            if part.is_dir():
                shutil.copytree(part, etc / name, symlinks=True, ignore=shutil.ignore_patterns("private"))
            elif part.exists():
                shutil.copy(part, etc / name)
        # As the image's Dockerfile makes and copies them.
        for name in ("passwd", "group"):
            with (etc / name).open("a") as file:
                file.write(
                    "condor:x:989:989::/var/lib/condor:/sbin/nologin\n" if name == "passwd" else "condor:x:989:\n"
                )
        shutil.copytree(docker / "condor", etc / "condor")
        shutil.copytree(docker / "dask", opt / "dask")

    def run(
        self, program: Sequence[str | Path], environment: Mapping[str, str], *, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """What a program says that the image's entry point starts, as a notebook is; `environment` is the server's.

        Raises:
            Unavailable: this machine lets nobody have a mount namespace.
        """
        secrets, etc = ((self._root / "etc" / name) for name in ("cmsaf-secrets", ""))
        mounts = [(self._delivered, secrets), (self._delivered, f"{secrets}-chown"), (etc, "/etc")]
        binds = " && ".join(f"mount --rbind '{source}' '{target}'" for source, target in mounts)
        binds += f" && mount --rbind '{self._root}/opt' /opt"
        own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        inside = ["unshare", *own, "--mount", "sh", "-c"]
        if not shutil.which("unshare") or subprocess.run([*inside, binds], capture_output=True).returncode:
            remedy = "Be root, or allow namespaces of users."
            raise Unavailable("a mount namespace", "unshare(1) and mount(8) are refused here", remedy)
        bin_directory = self._package.environment / "bin"
        image = {
            "PATH": f"{bin_directory}:{self._condor}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._root / "home"),
            "LANG": "C.UTF-8",
            "HOSTNAME": "jupyter-alice",
            "CONDA_DIR": str(self._package.environment),
            "DASK_ROOT_CONFIG": "/opt/dask",
            "CERT_DIR": "/etc/cmsaf-secrets",
            "BEARER_TOKEN_FILE": "/etc/cmsaf-secrets-chown/access_token",
            "CONDOR_HOST": "red-condor.unl.edu",
            "COLLECTOR_NAME": "Nebraska T2",
            "UID_DOMAIN": "unl.edu",
            "SCHEDD_HOST": "t3.unl.edu",
            "WORKER_IMAGE": "hub.opensciencegrid.org/coffea-casa/cc-analysis-alma9",
            "TAG": "development",
            # Debian's programs are not installed where they say, but unpacked.
            "_CONDOR_RELEASE_DIR": str(self._condor),
            "_CONDOR_LIB": str(self._condor / "lib/condor"),
            "_CONDOR_SEC_KNOWN_HOSTS": str(self._root / "home/known_hosts"),
        }
        entry_point = self._package.source / "docker/prepare-env/prepare-env-cc.sh"
        return subprocess.run(
            [*inside, f'{binds} && cd "$HOME" && exec "$@"', "image", "bash", entry_point, *program],
            env=image | dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
