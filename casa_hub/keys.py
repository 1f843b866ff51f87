"""Key files: read when a key is needed, read again when the file has changed, never shown.

Operators replace keys while the hub runs; Kubernetes switches a symbolic link then. If the new file is unusable, each
mint fails until it is mended. The old key is not used any more: the servers that verify credentials have the new key
already, and a credential of the old one would fail later and elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.metrics import KEY_MODIFIED

T = TypeVar("T")

#: Device, inode, size and time of modification in nanoseconds: two versions of a file differ in one of them.
_Version = tuple[int, int, int, int]

#: Seconds. The time stamps of file systems are coarse: a file that changes twice within one tick looks unchanged. So a
#: file that was modified less than this before it was read is read again next time (git calls it "racily clean").
_SETTLED = 2.0


class BadKeyError(Exception):
    """The content of a key file is unusable. Raised by a parse function; problem and remedy never quote the content."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class KeyFile(Generic[T]):
    """A key file that a setting names, and the key parsed from its present version.

    Args:
        setting: the trait that holds the path (``XCache.key_file``), for messages.
        parse: content -> key; raises `BadKeyError`. Called once for each version of the file.
        make: how to make such a file, in sentences; the remedy if the file is missing.
        label: what the metric of its age calls it; the setting, unless that names several files.
    """

    def __init__(self, setting: str, parse: Callable[[bytes], T], make: str, *, label: str = "") -> None:
        self.setting = setting
        self._label = label or setting
        self._parse = parse
        self._make = make
        self._cached: tuple[str, _Version, T] | None = None

    def __repr__(self) -> str:
        return f"KeyFile({self.setting})"

    def read(self, path: str) -> T:
        """The key in the file's present version.
        Raises CredentialError if the setting is empty, or if the file is missing, unreadable, empty or malformed.
        """
        if not path:
            raise CredentialError(self.setting, "is not set", self._make)
        thing = f"{self.setting} ({path})"
        try:
            status = os.stat(path)  # noqa: PTH116 - each mint does this: Path() costs more than the call
            if self._cached is not None and self._cached[:2] == (path, _version(status)):
                return self._cached[2]
            self._cached = None
            if not stat.S_ISREG(status.st_mode):  # checked before open(), which would block the hub on a pipe
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise CredentialError(thing, f"is {kind}", "Name the file itself.")
            with open(path, "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                content = file.read()
        except (OSError, ValueError) as error:  # ValueError: no file can have this path
            self._cached = None
            raise self._unreadable(thing, error) from None
        if not content:
            raise CredentialError(thing, "is empty", self._make)
        try:
            key = self._parse(content)
        except BadKeyError as bad:
            raise CredentialError(thing, bad.problem, bad.remedy) from None
        KEY_MODIFIED.labels(self._label).set(status.st_mtime)
        if time.time() - status.st_mtime > _SETTLED:
            self._cached = (path, _version(status), key)
        return key

    def check(self, path: str) -> list[Problem]:
        """Problems of the file: it is unusable, or everybody on the machine can read it. Does not raise."""
        try:
            self.read(path)
            mode = os.stat(path).st_mode  # noqa: PTH116
        except CredentialError as error:
            return [Problem.of(error)]
        except OSError as error:  # removed since it was read
            return [Problem.of(self._unreadable(f"{self.setting} ({path})", error))]
        if mode & stat.S_IROTH:
            return [
                Problem(
                    Severity.WARNING,
                    f"{self.setting} ({path})",
                    f"can be read by everybody (mode {stat.S_IMODE(mode):04o})",
                    "Make the hub's user its owner, with mode 0400. For a mounted Secret, set defaultMode: 0400.",
                )
            ]
        return []

    def forget(self) -> None:
        """The file is gone on purpose: its age is of no interest any more."""
        self._cached = None
        with contextlib.suppress(KeyError):  # it was never read
            KEY_MODIFIED.remove(self._label)

    def _unreadable(self, thing: str, error: OSError | ValueError) -> CredentialError:
        if isinstance(error, FileNotFoundError):
            return CredentialError(thing, "does not exist", self._make)
        if isinstance(error, PermissionError):
            return CredentialError(
                thing,
                "can't be read by the hub",
                "Make the hub's user its owner, with mode 0400, in a directory that this user may enter.",
            )
        return CredentialError(
            thing, f"can't be read: {getattr(error, 'strerror', None) or error}", "Name a file that the hub can read."
        )


def changed_at(path: str) -> float | None:
    """When a key file was changed last, epoch seconds, and so how old its key is; None if it can't be seen."""
    try:
        return Path(path).stat().st_mtime
    except (OSError, ValueError):  # ValueError: no file can have this path
        return None


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
