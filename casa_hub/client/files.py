"""Files with secrets: written in one step, for their owner only, also in directories that others can write to."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ClientError

_OTHERS = 0o077


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in one step: a reader finds the old content or the new one. Missing directories are
    made, with mode 0700.

    Raises:
        ClientError: the file can't be written, or it is a link or somebody else's, which a trap in ``/tmp`` would be.
    """
    try:
        make_private_directory(path.parent)
        with _opened(path.parent) as directory:
            _refuse_traps(path, directory)
            # Hidden, because HTCondor reads all other files of its directory of tokens.
            temporary = f".{path.name}.{secrets.token_hex(4)}.new"
            try:
                _write(temporary, content, directory)
                os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
                raise
    except OSError as error:
        raise ClientError(str(path), f"can't be written ({_why(error)})") from None


def read_private(path: Path) -> bytes | None:
    """The content of a file of `write_private`; None if there is none.

    Raises:
        ClientError: it can't be read, or others could have read or written it.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & _OTHERS:
                raise ClientError(str(path), "is not a file that only you can read", "Remove it, and log in again.")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClientError(str(path), f"can't be read ({_why(error)})") from None


def make_private_directory(path: Path) -> None:
    """Make a directory of mode 0700, and its missing parents, unless it is there. Raises OSError."""
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """The directory as a descriptor: what is looked at is what is written to, whatever is renamed meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_traps(path: Path, directory: int) -> None:
    status = os.fstat(directory)
    if status.st_uid not in {0, os.getuid()}:
        raise ClientError(str(path.parent), "belongs to another user", "Choose another place: --directory.")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise ClientError(str(path.parent), "everybody can replace files there", "Choose another place: --directory.")
    try:
        present = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(present.st_mode):
        raise ClientError(str(path), "is a link, and is not followed", "Remove it, or choose a place: --directory.")
    if not stat.S_ISREG(present.st_mode):
        raise ClientError(str(path), "is there, and is not a file", "Choose another place: --directory.")
    if present.st_uid != os.getuid():
        remedy = "Choose another place with --directory, and tell the machine's administrator."
        raise ClientError(str(path), "belongs to another user", remedy)


def _write(name: str, content: bytes, directory: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # the umask may have taken bits
        file.write(content)


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
