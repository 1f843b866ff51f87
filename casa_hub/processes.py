"""Identity of a process (Linux). Process ids are reused; together with start time and boot id they are unique."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine."""

    pid: int
    #: Clock ticks after boot: field ``starttime`` of proc(5) stat.
    started: int
    boot_id: str

    @property
    def alive(self) -> bool:
        """Whether the process still exists and is not a zombie."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        state, process = _parse(stat, Path(_BOOT_ID).read_text(encoding="ascii"))
        return process == self and state not in "ZX"

    def environment(self) -> dict[str, str]:
        """The variables that the process was started with; empty if it has ended."""
        try:
            block = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return {}
        entries = (os.fsdecode(entry).partition("=") for entry in block.split(b"\0") if entry)
        return {name: value for name, _, value in entries}


def sign_in(path: bytes) -> None:
    """Write this process's identity into a file. For a child between fork and exec, so by system calls only.

    The child writes it itself, so that it can be found even if the parent dies now. Raises OSError; the child must end.
    """
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    for source in (_BOOT_ID, "/proc/self/stat"):
        file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        os.write(out, os.read(file, 4096))
        os.close(file)
    os.close(out)


def signature(pid: int) -> bytes:
    """The content of `sign_in`'s file for a running process, to write the file again if it was removed.
    Raises OSError if the process doesn't run.
    """
    return Path(_BOOT_ID).read_bytes() + Path(f"/proc/{pid}/stat").read_bytes()


def signed_in(path: Path) -> Process | None:
    """The process that wrote the file; None if the file is missing or malformed."""
    try:
        boot_id, _, stat = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        return _parse(stat, boot_id)[1]
    except (FileNotFoundError, ValueError, IndexError):
        return None


def _parse(stat: str, boot_id: str) -> tuple[str, Process]:
    """State and identity by proc(5) ``stat``."""
    pid = int(stat.partition(" ")[0])
    # From field 3 on. Field 2, the command's name in parentheses, may hold any character.
    fields = stat.rpartition(")")[2].split()
    return fields[0], Process(pid, int(fields[19]), boot_id.strip())
