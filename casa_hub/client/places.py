"""Where the files of a credential belong, so that programs find them, and what must be set besides.

Without --directory:

- a token for XCache or of the identity provider: where WLCG's Bearer Token Discovery looks (``BEARER_TOKEN_FILE``, else
  ``bt_u$UID`` in ``XDG_RUNTIME_DIR``, else in ``/tmp``);
- HTCondor's IDTOKEN: ``_CONDOR_SEC_TOKEN_DIRECTORY``, else ``~/.condor/tokens.d``;
- others: a directory of their own below the client's (`state_directory`).

With --directory all files go there, under the hub's names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .addresses import host_of
from .answers import Issued
from .errors import ClientError

#: Credential -> the hub's name of the token that goes into the bearer file, unless the hub names another of its files.
BEARER = {"xcache": "xcache_token", "bearer": "access_token"}
_HTCONDOR = "htcondor"
#: Names the token of a facility's issuer. HTCondor looks for it nowhere else, but for where XCache's is.
_SCITOKEN = "_CONDOR_SCITOKENS_FILE"
#: Variables of the images' configuration of HTCondor, which its programs know by other names.
_OF_HTCONDOR = ("CONDOR_HOST", "SCHEDD_HOST", "UID_DOMAIN")
_DIRECTORY = "{directory}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of this machine."""

    environment: Mapping[str, str] = field(repr=False)
    home: Path
    uid: int
    #: `sys.platform`.
    platform: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Files to write, and what programs must be told to find them."""

    files: Mapping[Path, bytes] = field(repr=False)
    #: What is shown to people: the one file, or the directory of several.
    where: Path
    variables: Mapping[str, str]


def state_directory(machine: Machine) -> Path:
    """Where this client keeps what is its own."""
    if base := machine.environment.get("XDG_STATE_HOME"):
        return Path(base) / "casa-hub"
    if machine.platform == "darwin":
        return machine.home / "Library" / "Application Support" / "casa-hub"
    return machine.home / ".local" / "state" / "casa-hub"


def bearer_file(machine: Machine) -> Path:
    """Where tools look for a bearer token (WLCG Bearer Token Discovery, 1.0)."""
    if named := machine.environment.get("BEARER_TOKEN_FILE"):
        return Path(named)
    runtime = machine.environment.get("XDG_RUNTIME_DIR")
    directory = Path(runtime) if runtime and Path(runtime).is_dir() else Path("/tmp")  # noqa: S108 - the convention
    return directory / f"bt_u{machine.uid}"


def place(issued: Issued, hub: str, directory: Path | None, machine: Machine) -> Placement:
    """Where these files go. `hub` is the hub's address, and `directory` the user's choice.
    Raises ClientError if a token for the bearer file isn't one.
    """
    own = directory or state_directory(machine) / host_of(hub) / issued.name
    if directory is None and issued.name in BEARER:
        name = _bearer_name(issued)
        placed = {name: bearer_file(machine)}
        where = placed[name]
        contents = {name: _bearer(issued, name)}
    elif directory is None and issued.name == _HTCONDOR and _SCITOKEN not in issued.environment:
        name, where, contents = _of_htcondor(issued, hub, machine)
        placed = {name: where}
    else:
        placed = {name: own / name for name in issued.files}
        where, contents = own, dict(issued.files)
    # A relative path would mean another file to a program that runs elsewhere.
    placed = {name: Path(os.path.abspath(path)) for name, path in placed.items()}  # noqa: PTH100 - keeps links
    return Placement(
        files={path: contents[name] for name, path in placed.items()},
        where=next(iter(placed.values())) if len(placed) == 1 else Path(os.path.abspath(where)),  # noqa: PTH100
        variables=_variables(issued, placed, own, machine, chosen=directory is not None),
    )


def _bearer_name(issued: Issued) -> str:
    """The file for `BEARER_TOKEN_FILE`: an XCache may take tokens of two kinds, of which the facility prefers one."""
    chosen = issued.environment.get("BEARER_TOKEN_FILE", "").removeprefix(f"{_DIRECTORY}/")
    return chosen if chosen in issued.files else BEARER[issued.name]


def _bearer(issued: Issued, name: str) -> bytes:
    token = issued.files.get(name, b"").strip()
    if not re.fullmatch(rb"[!-~]+", token):
        raise ClientError(issued.title, f"the hub's answer has no usable {name}", "Tell the hub's operator.")
    return token


def _of_htcondor(issued: Issued, hub: str, machine: Machine) -> tuple[str, Path, dict[str, bytes]]:
    """HTCondor tries all tokens of the directory: a file for each hub, and only one of each."""
    name = next((name for name in ("condor_tokens.d/condor_token", "condor_token") if name in issued.files), None)
    if name is None:
        raise ClientError(issued.title, "the hub's answer has no condor_token", "Tell the hub's operator.")
    chosen = machine.environment.get("_CONDOR_SEC_TOKEN_DIRECTORY")
    tokens = Path(chosen) if chosen else machine.home / ".condor" / "tokens.d"
    return name, tokens / f"casa-hub-{host_of(hub).replace(':', '-')}", {name: issued.files[name]}


def _variables(
    issued: Issued, placed: Mapping[str, Path], own: Path, machine: Machine, *, chosen: bool
) -> dict[str, str]:
    """The hub's variables, with this machine's paths; less those without which the file is found."""
    variables = {}
    for name, value in issued.environment.items():
        if _DIRECTORY not in value:
            variables[name] = value
        elif value == _DIRECTORY:
            variables[name] = str(own)
        elif (path := _filled(value, placed)) is not None:
            variables[name] = str(path)
    variables.pop("BEARER_TOKEN_FILE", None)
    if chosen and issued.name in BEARER and (file := placed.get(_bearer_name(issued))) is not None:
        variables["BEARER_TOKEN_FILE"] = str(file)
    if issued.name == _HTCONDOR:
        variables |= {f"_CONDOR_{name}": variables[name] for name in _OF_HTCONDOR if name in variables}
        # HTCondor never looks into root's home.
        if not chosen and (machine.uid != 0 or "_CONDOR_SEC_TOKEN_DIRECTORY" in machine.environment):
            variables.pop("_CONDOR_SEC_TOKEN_DIRECTORY", None)
    return variables


def _filled(value: str, placed: Mapping[str, Path]) -> Path | None:
    """The path on this machine of ``{directory}/name``; None if nothing was written there."""
    name = value.removeprefix(f"{_DIRECTORY}/")
    if name in placed:
        return placed[name]
    return next((path.parent for below, path in placed.items() if below.startswith(f"{name}/")), None)
