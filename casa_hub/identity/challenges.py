"""Pure: reads the error in a ``WWW-Authenticate`` header of a protected resource (RFC 6750, 3; RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: A parameter ``name=value`` or ``name="value"``; or the name of a scheme, perhaps with a token68 behind it.
_PART = re.compile(
    rf"""[\s,]*(?:
        (?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_WORD}))(?=[\s,]|$)
      | (?P<scheme>{_WORD})(?:\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?(?=[\s,]|$)
    )""",
    re.VERBOSE,
)


def bearer_error(challenges: Sequence[str]) -> tuple[str, str]:
    """``error`` and ``error_description`` of the Bearer challenge; each "" if it is missing.

    `challenges`: the values of all ``WWW-Authenticate`` headers; one value may hold several challenges.
    A header is read up to its first unreadable part.
    """
    for challenge in challenges:
        parameters = {name: value for scheme, name, value in _parameters(challenge) if scheme == "bearer"}
        if "error" in parameters:
            return parameters["error"], parameters.get("error_description", "")
    return "", ""


def _parameters(challenge: str) -> Iterator[tuple[str, str, str]]:
    """Scheme, name and value of each parameter; schemes and names in lower case."""
    scheme, position = "", 0
    while (part := _PART.match(challenge, position)) is not None and part.end() > position:
        position = part.end()
        if part["scheme"] is not None:
            scheme = part["scheme"].lower()
        else:
            quoted = part["quoted"]
            value = part["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            yield scheme, part["name"].lower(), value
