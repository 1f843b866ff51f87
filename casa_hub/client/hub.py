"""What the hub is asked for: a credential, what there is, a bundle, and the token of a log-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from . import answers
from .answers import Issued, Offer
from .errors import ClientError, RefusedError
from .names import is_credential
from .schedule import moment
from .wire import Wire

_API = "/hub/api/casa"
#: A scope of JupyterHub is this and a credential's name.
_SCOPE = "custom:casa-hub:credential:"


@dataclass(frozen=True, slots=True)
class LogIn:
    """A token of the hub, and what it is."""

    hub: str
    token: str = field(repr=False)
    user: str
    #: ISO 8601, as the hub told it; None if it didn't.
    expires_at: str | None
    #: Credentials that it is for.
    credentials: tuple[str, ...]


def issue(wire: Wire, name: str, *, lifetime: int | None, server: str | None) -> Issued:
    """Let the hub make a credential.

    Args:
        wire: with a token.
        name: of the credential.
        lifetime: seconds that it shall live; None: what the hub gives.
        server: name of the user's server that it belongs to, where it belongs to one; None: the default server.

    Raises:
        ClientError: as `Wire`, and if the hub's answer can't be used.
    """
    if not is_credential(name):
        raise RefusedError(name, "is not the name of a credential", "What there is: casa-hub token list.")
    body: dict[str, Any] = {"lifetime": lifetime, "server": server}
    answer = wire.post(f"{_API}/credentials/{name}", {key: value for key, value in body.items() if value is not None})
    return answers.issued(name, answer)


def offers(wire: Wire) -> tuple[str, list[Offer]]:
    """The user's name, and what the hub can make for them. Raises as `issue`."""
    return answers.offers(wire.get(f"{_API}/credentials"))


def bundle(wire: Wire, server: str) -> bytes:
    """A zip with all that connects to the Dask cluster of a server; "" is the default one. Raises as `Wire`."""
    return wire.post_for_bytes(f"{_API}/bundle/{quote(server, safe='')}")


def redeem(wire: Wire, code: str, verifier: str) -> LogIn:
    """Exchange the code of a log-in for a token (RFC 7636). Raises as `Wire`, and if the answer can't be used."""
    answer = wire.post_form("/hub/casa/laptop/token", {"code": code, "code_verifier": verifier})
    try:
        token, user, expires_at, scopes = answer["token"], answer["user"], answer.get("expires_at"), answer["scopes"]
        credentials = tuple(scope.removeprefix(_SCOPE) for scope in scopes if scope.startswith(_SCOPE))
        if expires_at is not None:
            moment(expires_at)
    except (KeyError, TypeError, AttributeError, ValueError):
        token = user = None
    if not is_token(token) or not isinstance(user, str):
        raise ClientError(wire.hub, "its answer to the log-in has no token", "Tell the hub's operator.")
    return LogIn(wire.hub, token, user, expires_at, credentials)


def is_token(value: object) -> bool:
    """Whether this can be a token: an HTTP header with it is one header."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and bool(value) and " " not in value
