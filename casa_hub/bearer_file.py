"""Pure: the file that the variable ``BEARER_TOKEN_FILE`` of servers names, and the programs that this choice breaks.

Several programs take what is in this file for their token, and each wants another kind of token. So there is no choice
that suits all of them; the hub tells the operator at its start whom the choice breaks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from casa_hub.credentials.base import BearerKind
from casa_hub.errors import Problem, Severity

SETTING = "Facility.bearer_token_file"
#: The value of the setting with which the variable isn't set.
NONE = "none"
DEFAULT = "xcache_token"

#: File that this package can deliver -> the credential that does.
_SOURCES = {
    "xcache_token": "xcache",
    "xcache_jwt": "xcache with XCache.credential: both",
    "access_token": "bearer",
}
_XCACHE, _SERVICEX, _BEARER = "xcache", "servicex", "bearer"


@dataclass(frozen=True, slots=True)
class ServerFile:
    """A file that servers get."""

    credential: str
    #: None if it is no bearer token, or if its credential doesn't say so (`Minter.bearer_files`).
    kind: BearerKind | None = None


def check(
    choice: str, files: Mapping[str, ServerFile], credentials: Collection[str], *, chosen: bool, all_known: bool
) -> list[Problem]:
    """Problems of the choice.

    Args:
        choice: the setting's value.
        files: path -> each file that servers are known to get.
        credentials: names of the facility's credentials.
        chosen: whether the operator set it. A default that no credential delivers is no fault.
        all_known: whether there may be no other files.
    """
    if choice != NONE and choice not in files:
        return [_not_delivered(choice, files, certain=all_known)] if chosen else []
    remedy = "Choose by what your users need most; programs that name their file explicitly aren't affected."
    return [
        Problem(Severity.WARNING, SETTING, f"with {choice}, {trouble}", remedy)
        for trouble in _troubles(choice, files, credentials)
    ]


def _not_delivered(choice: str, files: Mapping[str, ServerFile], *, certain: bool) -> Problem:
    choices = " or ".join([*sorted(path for path, file in files.items() if file.kind is not None), NONE])
    if choice in _SOURCES:
        problem = f"{choice} needs the credential {_SOURCES[choice]}"
        return Problem(Severity.ERROR, SETTING, problem, f"Add that, or choose {choices}.")
    if certain:
        problem = f"{choice!a} is not a file of any of Facility.credentials"
        return Problem(Severity.ERROR, SETTING, problem, f"Choose {choices}.")
    problem = f"{choice!a} is not known to be a file of any of Facility.credentials"
    remedy = f"Choose {choices}. Some credentials can't be tried here; if it is one of theirs, all is well."
    return Problem(Severity.WARNING, SETTING, problem, remedy)


def _troubles(choice: str, files: Mapping[str, ServerFile], credentials: Collection[str]) -> list[str]:
    """What goes wrong with each reader that the facility has, as clauses."""
    if choice == NONE:
        kinds = _kinds(files, _XCACHE)
        what = "token" if kinds == {BearerKind.ISSUED} else "macaroon"
        return [f"the XRootD client finds no {what} for XCache by itself"] if _XCACHE in credentials else []
    file = files[choice]
    if file.kind is None:
        return [f"programs take what {file.credential} writes there for a token, and it isn't known to be one"]
    reader = {
        _XCACHE: _of_xrootd(file, _kinds(files, _XCACHE)),
        _SERVICEX: _of_servicex(file),
        _BEARER: _of_wlcg_tools(file),
    }
    return [trouble for name, trouble in reader.items() if trouble and name in credentials]


def _kinds(files: Mapping[str, ServerFile], credential: str) -> set[BearerKind]:
    return {file.kind for file in files.values() if file.credential == credential and file.kind is not None}


def _of_xrootd(file: ServerFile, taken: Collection[BearerKind]) -> str:
    """The XRootD client with the plug-in of the analysis images. `taken`: what the XCache takes."""
    if file.credential == _XCACHE:
        return ""
    only = "knows no other issuer than the facility's" if BearerKind.ISSUED in taken else "takes macaroons only"
    if file.kind is BearerKind.OWN:
        what = "the user's token"
    else:
        what = f"the {'macaroon' if file.kind is BearerKind.MACAROON else 'token'} of {file.credential}"
    return (
        f"an XCache that {only} refuses {what}, and the XRootD client shows that token to every root:// server it asks"
    )


def _of_servicex(file: ServerFile) -> str:
    match file.kind:
        case BearerKind.MACAROON:
            return "the ServiceX client takes a macaroon for its access token and fails with MalformedError"
        case BearerKind.ISSUED:
            return f"the ServiceX client sends the token of {file.credential} as its access token, and is refused"
        case BearerKind.EXCHANGED:
            sends = f"the ServiceX client sends the token of {file.credential} as its access token"
            return f"{sends}, which is refused unless it is for that ServiceX"
    return ""


def _of_wlcg_tools(file: ServerFile) -> str:
    """Tools that the user's own token is delivered for."""
    match file.kind:
        case BearerKind.MACAROON:
            what = "a macaroon"
        case BearerKind.ISSUED | BearerKind.EXCHANGED:
            what = f"the token of {file.credential}, which is for one service alone,"
        case _:
            return ""
    return f"WLCG tools (gfal, scitokens) that read it send {what} where the user's token is expected"
