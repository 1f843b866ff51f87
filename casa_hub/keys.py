"""Key files: read when needed, kept while unchanged, never shown.

Keys are mounted into the hub or lie beside it, and are replaced while it runs (Kubernetes switches a symbolic link).
A file that was replaced by something unusable is an error from then on. The key read before is not used further:
whoever verifies credentials has the new one, and a credential that nobody accepts fails later and elsewhere.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from casa_hub.errors import CredentialError, Problem, Severity

T = TypeVar("T")

#: What tells two versions of a file apart: device, inode, size, time of modification in nanoseconds.
_Version = tuple[int, int, int, int]

#: Seconds. File systems stamp times coarsely: a file changed twice within one tick looks unchanged. What was
#: modified less than this before it was read is therefore read again next time (git calls it "racily clean").
_SETTLED = 2.0


class BadKeyError(Exception):
    """Raised by a parse function: what is wrong with the content and the remedy. Never quotes the content."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class KeyFile(Generic[T]):
    """A key file named by a setting, and what was parsed from its present version.

    Args:
        setting: the trait that holds the path (``XCache.key_file``), for messages.
        parse: content -> key; raises `BadKeyError`. Called once for each version of the file.
        make: how to make such a file, as a sentence; the remedy where there is none.
    """

    def __init__(self, setting: str, parse: Callable[[bytes], T], make: str) -> None:
        self.setting = setting
        self._parse = parse
        self._make = make
        self._cached: tuple[str, _Version, T] | None = None

    def __repr__(self) -> str:
        return f"KeyFile({self.setting})"

    def read(self, path: str) -> T:
        """The key in the file's present version.

        Raises:
            CredentialError: the setting is empty, or the file is missing, unreadable, empty or malformed.
        """
        if not path:
            raise CredentialError(self.setting, "is not set", self._make)
        thing = f"{self.setting} ({path})"
        try:
            status = os.stat(path)  # noqa: PTH116 - each mint does this: Path() costs more than the call
            if self._cached is not None and self._cached[:2] == (path, _version(status)):
                return self._cached[2]
            self._cached = None
            if not stat.S_ISREG(status.st_mode):  # not opened before: a pipe would block the hub
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise CredentialError(thing, f"is {kind}", "Name the file itself.")
            with open(path, "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                content = file.read()
        except (OSError, ValueError) as error:  # ValueError: a path that can't be one
            self._cached = None
            raise self._unreadable(thing, error) from None
        if not content:
            raise CredentialError(thing, "is empty", self._make)
        try:
            key = self._parse(content)
        except BadKeyError as bad:
            raise CredentialError(thing, bad.problem, bad.remedy) from None
        if time.time() - status.st_mtime > _SETTLED:
            self._cached = (path, _version(status), key)
        return key

    def check(self, path: str) -> list[Problem]:
        """What is wrong with the file: unusable, or readable by everybody on the machine. Does not raise."""
        try:
            self.read(path)
            mode = os.stat(path).st_mode  # noqa: PTH116
        except CredentialError as error:
            return [Problem.of(error)]
        except OSError as error:  # gone since it was read
            return [Problem.of(self._unreadable(f"{self.setting} ({path})", error))]
        if mode & stat.S_IROTH:
            return [
                Problem(
                    Severity.WARNING,
                    f"{self.setting} ({path})",
                    f"can be read by everybody (mode {stat.S_IMODE(mode):04o})",
                    "Make it 0400 and the hub's user its owner; of a mounted Secret, set defaultMode: 0400.",
                )
            ]
        return []

    def _unreadable(self, thing: str, error: OSError | ValueError) -> CredentialError:
        if isinstance(error, FileNotFoundError):
            return CredentialError(thing, "does not exist", self._make)
        if isinstance(error, PermissionError):
            return CredentialError(
                thing,
                "can't be read by the hub",
                "Make the hub's user its owner, mode 0400, in a directory it may enter.",
            )
        return CredentialError(
            thing, f"can't be read: {getattr(error, 'strerror', None) or error}", "Name a file that the hub can read."
        )


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
