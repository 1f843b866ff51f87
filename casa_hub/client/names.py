"""Which names and values of the hub's answer may be used on this machine. Pure.

The answer comes from another machine: it decides what a file holds, but never that a file lands outside the directory
or becomes a program's start-up file, nor what a shell executes.
"""

from __future__ import annotations

import re

#: As a hub names files (`casa_hub.credentials.base`): a name, or a name in one directory; no "..", no "." at the end.
_NAME = re.compile(r"(?!.*\.\.)[-._a-zA-Z0-9]*[-_a-zA-Z0-9]")
_LONGEST = 252
#: The one hidden file that a credential has.
_HIDDEN = {".servicex"}
_CREDENTIAL = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

#: Variables that may be handed to a shell unseen. Others can change what programs do, such as LD_PRELOAD.
HARMLESS = frozenset(
    {
        "BEARER_TOKEN_FILE",
        "CERT_DIR",
        "COLLECTOR_NAME",
        "CONDOR_HOST",
        "HOST_IP",
        "SCHEDD_HOST",
        "SERVICEX_HOST",
        "SERVICEX_TYPE",
        "UID_DOMAIN",
        "WORKER_IP",
        "XCACHE_HOST",
        "XCACHE_PORT",
        "_CONDOR_AUTH_SSL_CLIENT_CAFILE",
        "_CONDOR_AccountingGroup",
        "_CONDOR_CONDOR_HOST",
        "_CONDOR_SCHEDD_HOST",
        "_CONDOR_SCITOKENS_FILE",
        "_CONDOR_SEC_TOKEN_DIRECTORY",
        "_CONDOR_SUBMIT_EXPRS",
        "_CONDOR_UID_DOMAIN",
    }
)


def is_file(path: str) -> bool:
    """Whether a credential's file may have this path below its directory.

    Hidden files and directories are refused: ``.bashrc`` and ``.ssh/authorized_keys`` are names, too.
    """
    first, slash, second = path.partition("/")
    names = (first, second) if slash else (first,)
    return (
        len(path) <= _LONGEST
        and all(_NAME.fullmatch(name) for name in names)
        and (path in _HIDDEN or not any(name.startswith(".") for name in names))
    )


def is_credential(name: str) -> bool:
    """Whether a credential may have this name, which becomes a part of addresses and of directories."""
    return _CREDENTIAL.fullmatch(name) is not None


def is_variable(name: str) -> bool:
    """Whether this is the name of an environment variable."""
    return _VARIABLE.fullmatch(name) is not None
