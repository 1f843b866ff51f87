"""A directory of files that change all at once, laid out as kubelet lays out a Secret volume.

::

    xcache_token    -> ..data/xcache_token
    condor_tokens.d -> ..data/condor_tokens.d
    ..data          -> ..2026_08_01_12_00_00.k3j2h1g0
    ..2026_08_01_12_00_00.k3j2h1g0/
        xcache_token
        condor_tokens.d/condor_token

Renaming the link ``..data`` replaces every file in one step (Kubernetes, ``pkg/volume/util/atomic_writer.go``; images
made for it read ``..data/hostcert.pem`` too). Directories are 0700 and files 0600: HTCondor and XRootD's ztn
ignore a token that others may read.

Nothing is synced to disk: what a power failure can damage here belongs to servers which it ended too.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

DATA = "..data"


#: What the key of a Kubernetes Secret may be, so that a credential's files can be delivered to a pod as well; there
#: ".." stands for the "/" of a path, and after a name that ends in "." nobody could tell where it is.
_NAME = re.compile(r"(?!.*\.\.)[-._a-zA-Z0-9]*[-_a-zA-Z0-9]")
_LONGEST = 252
#: Names of what is on its way to its place: a link of the layout's, and a file of `replace_file`.
_LINK_ON_ITS_WAY = re.compile(r"\.\.[0-9a-f]{8}\.new")
_FILE_ON_ITS_WAY = re.compile(r"\..+\.[0-9a-f]{8}\.new")


def bad_path(path: str) -> bool:
    """Whether a credential's file may not be called so: a name, or a name in one directory, is all there is.

    Names with ".." are the layout's own.
    """
    if len(path) > _LONGEST:
        return True
    first, slash, second = path.partition("/")
    names = (first, second) if slash else (first,)
    return not all(map(_NAME.fullmatch, names))


def read_set(directory: Path) -> dict[str, bytes]:
    """The present files, of one and the same set."""
    current = (directory / DATA).resolve(strict=True)
    return {str(file.relative_to(current)): file.read_bytes() for file in current.rglob("*") if file.is_file()}


def write_set(directory: Path, files: Mapping[str, bytes], now: datetime) -> None:
    """Make `files` (path -> content) the present set; at every moment a reader finds the old one or the new one.

    The old set is left where it is: a reader who has just followed the link is still about to open files there.
    `remove_old_sets` removes it, some time later.

    Raises:
        OSError: the old set is still the present one then.
        ValueError: a path is none, or one is a file here and a directory there.
    """
    wrong = [path for path in files if bad_path(path) or path.partition("/")[0] in files.keys() - {path}]
    if wrong:
        raise ValueError(f"not a name, or a name in a directory: {wrong}")
    tops = {path.partition("/")[0] for path in files}
    new = f"{now:..%Y_%m_%d_%H_%M_%S}.{secrets.token_hex(4)}"
    try:
        _fill(directory / new, files)
        _link(directory, DATA, new)
    except BaseException:
        shutil.rmtree(directory / new, ignore_errors=True)
        raise
    # As kubelet does: names that are new appear after there is something behind them, names that are gone
    # disappear after the switch, or else a reader would miss a file of the old set.
    present = {entry.name for entry in os.scandir(directory) if entry.is_symlink() and entry.name != DATA}
    for top in sorted(tops - present):
        _link(directory, top, f"{DATA}/{top}")
    for top in present - tops:
        (directory / top).unlink()


def remove_old_sets(directory: Path) -> None:
    """Remove every set but the present one, and what a hub that was killed left on its way; nobody may write now."""
    current = (directory / DATA).readlink().name
    for entry in os.scandir(directory):
        if entry.is_symlink():
            left = _LINK_ON_ITS_WAY.fullmatch(entry.name) is not None
        elif entry.is_dir():
            left = entry.name.startswith("..") and entry.name != current
        else:
            left = is_on_its_way(entry.name)
        if left:
            remove(Path(entry.path))


def is_on_its_way(name: str) -> bool:
    """Whether a plain file of that name is one of `replace_file`, for the milliseconds until it has its own."""
    return _FILE_ON_ITS_WAY.fullmatch(name) is not None


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Give a file new content in one step; readers find the old content or the new one."""
    # Begins with a dot and has no suffix of its own: Traefik's and others' directory watchers leave it alone.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.new")
    try:
        _write(temporary, content, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_directory(path: Path) -> None:
    """Make a directory for its owner only, where it isn't there yet; others may pass through parents made with it.

    Modes are as said here whatever the umask, which `Path.mkdir` alone leaves to decide on the parents.

    Raises:
        OSError: it can't be made, or something else is there.
    """
    for parent in reversed(path.parents):
        _make(parent, 0o711)
    _make(path, 0o700)


def remove(path: Path) -> None:
    """Remove a directory with all that is in it, or a file or link itself; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _make(directory: Path, mode: int) -> None:
    if directory.is_dir():
        return
    try:
        directory.mkdir(mode=mode)
    except FileExistsError:
        if not directory.is_dir():
            raise
        return  # made by another server's start in the meantime
    directory.chmod(mode)


def _fill(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(mode=0o700)
    for sub in {path.partition("/")[0] for path in files if "/" in path}:
        (directory / sub).mkdir(mode=0o700)
    for path, content in files.items():
        _write(directory / path, content, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask says
        file.write(content)


def _link(directory: Path, name: str, target: str) -> None:
    """Make or replace a symbolic link in one step."""
    temporary = directory / f"..{secrets.token_hex(4)}.new"
    temporary.symlink_to(target)
    try:
        temporary.replace(directory / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
