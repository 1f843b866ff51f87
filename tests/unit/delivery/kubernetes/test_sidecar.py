"""The script that keeps a private copy of a Secret volume, run by the shells that images have."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
from kubespawner.objects import make_pod

from casa_hub.delivery.file_layout import read_set
from casa_hub.delivery.kubernetes.manifests import key
from casa_hub.delivery.kubernetes.pod import Outfit, Sidecar, patch
from casa_hub.demo.packages import unpack
from tests.support.peers import require

#: All that the script asks of an image, beside a shell.
COMMANDS = ("cat", "chmod", "ln", "mkdir", "mv", "rm", "sleep")


def files(version: object) -> dict[str, bytes]:
    """One set: whoever reads two versions in it has seen a mixed one."""
    content = f"{version}\n".encode()
    return {
        "xcache_token": content,
        "hostcert.pem": content * 20_000,
        ".servicex": content,
        "condor_tokens.d/condor_token": content,
        "condor_tokens.d/.hidden": content,
        "-odd.name": content,
    }


class Volume:
    """A Secret volume, changed as kubelet does it (Kubernetes, ``pkg/volume/util/atomic_writer.go``)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def update(self, content: Mapping[str, bytes]) -> None:
        data = self.directory / "..data"
        old = self.directory / data.readlink() if data.exists() else None
        new = self.directory / f"..2026_08_01_12_00_00.{secrets.randbelow(10**9)}"
        new.mkdir(mode=0o755)
        for path, written in content.items():
            (new / key(path)).write_bytes(written)
            (new / key(path)).chmod(0o444)
        (self.directory / "..data_tmp").symlink_to(new.name)
        (self.directory / "..data_tmp").rename(data)
        for path in content:
            if not (self.directory / key(path)).is_symlink():
                (self.directory / key(path)).symlink_to(f"..data/{key(path)}")
        if old:
            for path in {file.name for file in old.iterdir()} - {key(path) for path in content}:
                (self.directory / path).unlink()
            shutil.rmtree(old)


class Copier:
    """The script with a volume and a target of its own."""

    def __init__(self, root: Path, shell: Path) -> None:
        self.volume = Volume(root / "volume")
        self.target = root / "target"
        self.target.mkdir()
        self.target.chmod(0o2777)  # as kubelet makes an emptyDir where there is an fsGroup
        self.programs = root / "bin"
        self.programs.mkdir()
        (self.programs / "sh").symlink_to(shell)
        for name in COMMANDS:
            own = shell if shell.name == "busybox" else Path(str(shutil.which(name)))
            (self.programs / name).symlink_to(own)
        self.errors = root / "stderr"
        self.processes: list[subprocess.Popen[bytes]] = []

    def replace(self, command: str, text: str) -> None:
        """Give a command another meaning: text of a shell script."""
        (self.programs / command).unlink()
        (self.programs / command).write_text(f"#!/bin/sh\n{text}\n")
        (self.programs / command).chmod(0o755)

    def hasten(self) -> None:
        """Make two seconds last 10 ms."""
        self.replace("sleep", f"exec {shutil.which('sleep')} 0.01")

    def start(self) -> subprocess.Popen[bytes]:
        pod = make_pod("jupyter-ada", None, 8888, "image")
        patch(pod, Outfit("casa-ada", [], PurePosixPath("/etc/cmsaf-secrets"), {}, {}, {}), Sidecar())
        assert pod.spec.init_containers
        command = [part.replace("$$", "$") for part in pod.spec.init_containers[0].command or []]
        assert command[-2:] == ["/casa-hub/secret", "/casa-hub/files"]
        command = [str(self.programs / "sh"), *command[1:-2], str(self.volume.directory), str(self.target)]
        # A umask and a directory of the image's choice.
        environment = {"PATH": str(self.programs)}
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(command, env=environment, umask=0, cwd="/", stderr=errors)
        self.processes.append(process)
        return process

    @property
    def ready(self) -> bool:
        return (self.target / "..ready").exists()

    @property
    def present(self) -> dict[str, bytes]:
        return read_set(self.target) if self.ready else {}

    @property
    def sets(self) -> set[str]:
        return {entry.name for entry in self.target.iterdir() if entry.name.startswith("..2")}

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def wait(condition: Callable[[], bool], seconds: float = 60) -> float:
    """The seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.005)
    return time.monotonic() - begin


def sleeps(process: subprocess.Popen[bytes]) -> bool:
    """Whether a round is over."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    try:
        return [Path(f"/proc/{child}/comm").read_text() for child in children] == ["sleep\n"]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(params=["dash", "bash", pytest.param("busybox", marks=pytest.mark.debian)])
def shell(request: pytest.FixtureRequest) -> Path:
    if request.param == "busybox":
        return require(lambda: unpack(["busybox"]).program("busybox"))
    return Path(shutil.which(request.param) or pytest.skip(f"no {request.param} on this machine"))


@pytest.fixture
def copier(tmp_path: Path, shell: Path) -> Iterator[Copier]:
    made = Copier(tmp_path, shell)
    made.volume.update(files(1))
    yield made
    made.stop()


def test_the_copy_is_the_users_alone_and_laid_out_as_a_secret_volume(copier: Copier) -> None:
    copier.start()
    wait(lambda: copier.ready)
    assert copier.present == files(1)
    (made,) = copier.sets
    tops = {path.partition("/")[0] for path in files(1)}
    assert {entry.name for entry in copier.target.iterdir()} == {*tops, "..data", "..ready", made}
    assert {top: str((copier.target / top).readlink()) for top in tops} == {top: f"..data/{top}" for top in tops}
    assert str((copier.target / "..data").readlink()) == made
    for path in [copier.target / made, *(copier.target / made).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((copier.target / "..ready").stat().st_mode) == 0o600


def test_it_follows_a_change_of_the_secret_within_seconds(copier: Copier) -> None:
    copier.start()
    wait(lambda: copier.ready)
    changed = {path: data for path, data in files(2).items() if path != "-odd.name"} | {"ca.pem": b"new"}
    copier.volume.update(changed)
    assert wait(lambda: copier.present == changed) < 15
    assert wait(lambda: not (copier.target / "-odd.name").is_symlink()) < 15
    assert (copier.target / "ca.pem").read_bytes() == b"new"


def test_a_reader_sees_one_whole_set_at_every_moment(copier: Copier) -> None:
    copier.hasten()
    copier.start()
    wait(lambda: copier.ready)
    seen: set[str] = set()
    odd: list[object] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                # By name, as programs do.
                odd.extend(f"{path} is empty" for path in files(0) if not (copier.target / path).read_bytes())
                directory = os.open(copier.target / "..data", os.O_RDONLY | os.O_DIRECTORY)
                versions = set()
                for path in files(0):
                    with os.fdopen(os.open(path, os.O_RDONLY, dir_fd=directory), "rb") as file:
                        versions |= set(file.read().decode().split())
                os.close(directory)
            except FileNotFoundError as missing:
                odd.append(missing)
                continue
            if len(versions) != 1:
                odd.append(versions)
            seen.update(versions)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(2, 22):
            copier.volume.update(files(version))
            wait(lambda version=version: str(version) in seen or bool(odd))  # type: ignore[misc]
    finally:
        over.set()
        reader.join()
    assert not odd
    assert seen == {str(version) for version in range(1, 22)}


def test_a_set_that_vanishes_while_it_is_copied_is_left_for_the_next(copier: Copier, tmp_path: Path) -> None:
    begun, go, cat = tmp_path / "begun", tmp_path / "go", tmp_path / "cat"
    cat.symlink_to((copier.programs / "cat").readlink())
    copier.replace("cat", f": >{begun}; until [ -e {go} ]; do /bin/sleep 0.01; done; exec {cat}")
    process = copier.start()
    wait(begun.exists)
    copier.volume.update(files(2))
    go.touch()
    wait(lambda: copier.ready)
    assert copier.present == files(2)
    assert len(copier.sets) == 1
    assert process.poll() is None


def test_it_ends_at_once_when_it_is_told(copier: Copier, tmp_path: Path) -> None:
    over = tmp_path / "over"
    copier.replace("sleep", f"until [ -e {over} ]; do {shutil.which('sleep')} 0.1; done")
    process = copier.start()
    wait(lambda: copier.ready)
    process.terminate()
    try:
        assert process.wait(60) == 0  # its pause is not over
    finally:
        over.touch()


def test_the_set_before_stays_for_its_readers_and_goes_later(copier: Copier, tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    copier.replace("sleep", f"echo >> {rounds}; exec {shutil.which('sleep')} 0.01")
    copier.start()
    wait(lambda: copier.ready)
    before = rounds.stat().st_size if rounds.exists() else 0
    copier.volume.update(files(2))
    wait(lambda: copier.present == files(2) and len(copier.sets) == 1)
    assert rounds.stat().st_size - before >= 15
    assert copier.present == files(2)


def test_started_again_it_goes_on_from_what_is_there(copier: Copier) -> None:
    """Kubelet restarts the container alone; the volume in memory lives as long as the pod."""
    for version in range(1, 5):
        copier.volume.update(files(version))
        process = copier.start()
        wait(lambda version=version: copier.present == files(version))  # type: ignore[misc]
        process.kill()
        process.wait()
        (copier.target / "xcache_token").unlink()  # as if it had not come to that
        inode = (copier.target / "..data").stat().st_ino
        process = copier.start()
        wait(lambda process=process: sleeps(process))  # type: ignore[misc]
        assert (copier.target / "..data").stat().st_ino == inode
        assert copier.present == files(version)
        assert str((copier.target / "xcache_token").readlink()) == "..data/xcache_token"
        assert len(copier.sets) <= 2
        process.kill()
        process.wait()


def test_what_a_killed_copy_left_is_no_obstacle(copier: Copier) -> None:
    copier.start()
    wait(lambda: copier.ready)
    copier.processes[0].kill()
    copier.volume.update(files(2))
    for name in ("..2025_01_01_00_00_00.1", (copier.volume.directory / "..data").readlink()):
        (copier.target / name).mkdir()
        (copier.target / name / "xcache_token").write_bytes(b"hal")
    (copier.target / "..new").symlink_to("nowhere")
    copier.start()
    wait(lambda: copier.present == files(2))
    assert len(copier.sets) == 2


def test_a_copy_that_fails_ends_it_and_leaves_the_set_in_use(copier: Copier) -> None:
    """No room in the volume, say. Kubelet shows a container that fails, and starts it again."""
    process = copier.start()
    wait(lambda: copier.ready)
    copier.replace("cat", "echo no room >&2; exit 1")
    copier.volume.update(files(2))
    assert process.wait(60) == 1
    assert "no room" in copier.errors.read_text()
    assert copier.present == files(1)
