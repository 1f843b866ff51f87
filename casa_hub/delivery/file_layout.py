"""A directory of files that change all at once, laid out as kubelet lays out a Secret volume.

::

    xcache_token    -> ..data/xcache_token
    condor_tokens.d -> ..data/condor_tokens.d
    ..data          -> ..2026_08_01_12_00_00.k3j2h1g0
    ..2026_08_01_12_00_00.k3j2h1g0/
        xcache_token
        condor_tokens.d/condor_token

Renaming the link ``..data`` replaces all files in one step (Kubernetes, ``pkg/volume/util/atomic_writer.go``; images
made for it also read ``..data/hostcert.pem``). Directories are 0700 and files 0600: HTCondor and XRootD's ztn ignore
tokens that others may read.

Nothing is synced to disk: a power failure that damages these files also ends the servers that they belong to.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from casa_hub.credentials.base import bad_path
from casa_hub.files import is_on_its_way, write_new

DATA = "..data"
#: Temporary name of a link before it is renamed.
_LINK_ON_ITS_WAY = re.compile(r"\.\.[0-9a-f]{8}\.new")


def read_set(directory: Path) -> dict[str, bytes]:
    """The present files, all of the same set."""
    current = (directory / DATA).resolve(strict=True)
    return {str(file.relative_to(current)): file.read_bytes() for file in current.rglob("*") if file.is_file()}


def write_set(directory: Path, files: Mapping[str, bytes], now: datetime) -> None:
    """Make `files` (path -> content) the present set. At every moment a reader finds the whole old or whole new set.

    The old set stays, because a reader who has just followed the link may still open its files. `remove_old_sets`
    removes it some time later.

    Raises:
        OSError: the set can't be written; the old one is still present.
        ValueError: a path is bad, or is both a file and a directory.
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
    # As kubelet does: a new name appears after the switch, when its file exists; an old name disappears after the
    # switch, too, because readers of the old set need it until then.
    present = {entry.name for entry in os.scandir(directory) if entry.is_symlink() and entry.name != DATA}
    for top in sorted(tops - present):
        _link(directory, top, f"{DATA}/{top}")
    for top in present - tops:
        (directory / top).unlink()


def remove_old_sets(directory: Path) -> None:
    """Remove all sets but the present one, and temporary files of a hub that was killed. Nobody may write meanwhile."""
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


def make_directory(path: Path) -> None:
    """Make a directory with mode 0700, and missing parents with mode 0711, unless it exists already.

    The umask has no influence on the modes, as it has with `Path.mkdir`.
    Raises OSError, also if the path is something else than a directory.
    """
    for parent in reversed(path.parents):
        _make(parent, 0o711)
    _make(path, 0o700)


def remove(path: Path) -> None:
    """Remove a directory with its content, a file, or a link; the target of a link stays."""
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
        return  # another server's start has made it meanwhile
    directory.chmod(mode)


def _fill(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(mode=0o700)
    for sub in {path.partition("/")[0] for path in files if "/" in path}:
        (directory / sub).mkdir(mode=0o700)
    for path, content in files.items():
        write_new(directory / path, content, 0o600)


def _link(directory: Path, name: str, target: str) -> None:
    """Make or replace a symbolic link in one step."""
    temporary = directory / f"..{secrets.token_hex(4)}.new"
    temporary.symlink_to(target)
    try:
        temporary.replace(directory / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
