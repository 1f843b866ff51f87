"""Files that change in one step. Imports nothing but Python's library, for programs that run where no JupyterHub is."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

#: Temporary name of a file of `replace_file`.
_ON_ITS_WAY = re.compile(r"\..+\.[0-9a-f]{8}\.new")


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Give a file new content in one step; readers find the old content or the new one. Raises OSError."""
    # Begins with a dot and has no suffix of its own: Traefik's and others' directory watchers leave it alone.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.new")
    try:
        write_new(temporary, content, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that doesn't exist yet, with exactly this mode. Raises OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # open() applies the umask
        file.write(content)


def is_on_its_way(name: str) -> bool:
    """Whether a plain file of that name is a temporary file of `replace_file`."""
    return _ON_ITS_WAY.fullmatch(name) is not None
