"""A facility's credentials: keys in files, and the configuration that mints with them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

#: Lines of the configuration for each credential; `{keys}` is the directory of its key.
_LINES = {
    "xcache": """\
c.XCache.key_file = "{keys}xcache.key"
c.XCache.site_name = "T3_TEST"
c.XCache.host = "xcache.example.org"
""",
    "htcondor": """\
c.HTCondor.key_file = "{keys}htcondor.key"
c.HTCondor.trust_domain = c.HTCondor.uid_domain = "pool.example.org"
c.HTCondor.subject = "{{username}}"
""",
    "dask": """\
c.Dask.secret_file = "{keys}dask.secret"
c.Dask.domain = "example.org"
""",
}
#: File with the key of each.
KEY_FILES = {"xcache": "xcache.key", "htcondor": "htcondor.key", "dask": "dask.secret"}


def credentials(*names: str, keys: str | Path = "", required: tuple[str, ...] | None = None) -> str:
    """Text of a hub's configuration whose servers get these credentials.

    Args:
        names: of the credentials, as in `Facility.credentials`.
        keys: directory of the key files. Default: the hub's own.
        required: without which no server starts. Default: the first.
    """
    directory = f"{keys}/" if str(keys) else ""
    text = f"c.Facility.credentials = {list(names)!r}\n"
    text += f"c.Facility.required = {list(names[:1] if required is None else required)!r}\n"
    return text + "".join(_LINES[name].format(keys=directory) for name in names if name in _LINES)


def make_key(directory: Path, credential: str) -> Path:
    """A new key, in the form that the credential's system has it in."""
    raw = os.urandom(48)
    file = directory / KEY_FILES[credential]
    file.touch(mode=0o600)
    # HTCondor keeps bytes, the others base64.
    file.write_bytes(raw.replace(b"\0", b"\1") if credential == "htcondor" else base64.b64encode(raw) + b"\n")
    return file


def make_keys(directory: Path, *names: str) -> None:
    """Those of these credentials; of all of them if none is named."""
    for name in names or KEY_FILES:
        make_key(directory, name)
