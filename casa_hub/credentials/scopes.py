"""Pure: audiences and scopes of tokens, and what a WLCG token says of a storage by them.

Sources: RFC 6749, 3.3; WLCG Common JWT Profile 1.3, 2.1.1 and 2.2.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Activity of a macaroon -> the scope that stands for it. Looking at metadata is in each scope. Listing has none yet;
#: XRootD lets those list who may read.
_SCOPES = {
    "DOWNLOAD": "storage.read",
    "UPLOAD": "storage.create",
    "MANAGE": "storage.modify",
    "DELETE": "storage.modify",
    "UPDATE_METADATA": "storage.modify",
}
#: What a component of a path may have without an escape (RFC 3986, 3.3). A blank would begin another scope.
_COMPONENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
_HTTPS = 443
_AUDIENCE = re.compile(r"[!-~]+")
#: Words with one blank between them (RFC 6749, 3.3).
_SCOPE = re.compile(r"[!#-\[\]-~]+( [!#-\[\]-~]+)*")


def is_audience(text: str) -> bool:
    """Whether a text may be an audience in a setting: one word of ASCII."""
    return _AUDIENCE.fullmatch(text) is not None


def is_scope(text: str) -> bool:
    """Whether a text is a scope, of one word or several."""
    return _SCOPE.fullmatch(text) is not None


def audience(host: str, port: int) -> str:
    """The audience of a service: its address, normalised as verifiers compare it, which is as text."""
    return f"https://{host.lower()}" if port == _HTTPS else f"https://{host.lower()}:{port}"


def storage_words(activities: Iterable[str]) -> list[str]:
    """The scopes for these activities, without a path; none for READ_METADATA and LIST alone."""
    return list(dict.fromkeys(_SCOPES[activity] for activity in activities if activity in _SCOPES))


def storage_path(path: str) -> str:
    """An absolute path without ``.`` and ``..``, as a scope has it: no empty component, no slash at its end.

    Verifiers compare components, and XRootD drops such a slash. Raises ValueError if it would need an escape.
    """
    components = [component for component in path.split("/") if component]
    if not all(map(_COMPONENT.fullmatch, components)):
        raise ValueError("a scope's path has no such characters")
    return f"/{'/'.join(components)}"
