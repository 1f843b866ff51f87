"""Pure: what a running server holds, in the words of the hub's pages. No secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from casa_hub.credentials.base import Minter, Renewal, Route
from casa_hub.credentials.dask import DASHBOARD_PORT
from casa_hub.record import CredentialRecord
from casa_hub.servers.renewals import Held, Missing
from casa_hub.text import sentence

#: When a credential is renewed that time doesn't renew.
_RENEWED: Mapping[Renewal, str] = {
    "time": "",
    "token": "With each new token of your sign-in.",
    "request": "It lasts as long as the server may run.",
}
_AGAIN = "The hub tries again by itself."
_WITH_SIGN_IN = "It comes with your next token: log out and in again."
_VARIABLE = "programs that read BEARER_TOKEN_FILE"


class State(StrEnum):
    """How it stands with a credential."""

    GOOD = "good"
    #: The server has it, but its renewal fails.
    OVERDUE = "overdue"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class CredentialView:
    """One credential of a server. Times are epoch seconds."""

    name: str
    title: str
    purpose: str
    #: For whom it is: the audience of a token. Or as whom it makes known: the subject of a proxy. "" for none.
    audience: str
    subject: str
    #: Programs that find it by themselves; "" if none does.
    found_by: str
    #: Paths below the server's directory of secrets.
    files: tuple[str, ...]
    state: State
    #: None if it doesn't expire, or is missing.
    expires_at: float | None
    #: When it is renewed; None if `renewed` says it.
    renewed_at: float | None
    renewed: str
    #: What is wrong and what follows, as sentences; "" if all is well.
    problem: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where something of the server is reached."""

    title: str
    url: str


def credentials(
    minters: Mapping[str, Minter],
    held: Iterable[Held],
    entries: Mapping[str, CredentialRecord],
    in_variable: str,
) -> list[CredentialView]:
    """The credentials of one server, in the order of the facility's own.

    `entries`: of the server's record. `in_variable`: the file that ``BEARER_TOKEN_FILE`` names.
    """
    places = {name: place for place, name in enumerate(minters)}
    return [
        _credential(one, minters.get(one.name), entries.get(one.name), in_variable)
        for one in sorted(held, key=lambda one: places.get(one.name, len(places)))
    ]


def _credential(held: Held, minter: Minter | None, entry: CredentialRecord | None, in_variable: str) -> CredentialView:
    files = () if entry is None else entry.files
    known_as = {} if entry is None or held.missing else entry.identifiers
    renewal: Renewal = "request" if minter is None else minter.renewal
    found_by = "" if minter is None else minter.found_by
    readers = [reader for reader in (_VARIABLE if in_variable in files else "", found_by) if reader]
    state = State.MISSING if held.missing else State.OVERDUE if held.why else State.GOOD
    by_time = state is State.GOOD and renewal == "time"
    return CredentialView(
        name=held.name,
        title=held.name if minter is None else minter.title,
        purpose="" if minter is None else minter.purpose,
        audience=known_as.get("aud", ""),
        subject=known_as.get("subject", ""),
        found_by="; ".join(readers),
        files=() if held.missing else files,
        state=state,
        expires_at=None if held.missing else held.expires,
        renewed_at=held.next_at if by_time else None,
        renewed="" if state is not State.GOOD else _RENEWED[renewal],
        problem="" if state is State.GOOD else f"{sentence(held.why)} {_follows(held, renewal)}".rstrip(),
    )


def _follows(held: Held, renewal: Renewal) -> str:
    """What comes after a failure, as a sentence; "" if the reason says it."""
    if held.next_at is not None:
        return _AGAIN
    return _WITH_SIGN_IN if renewal == "token" else ""


def absent(server: str, missing: Iterable[Missing]) -> list[str]:
    """What else a server (identity) lacks, such as its route, as sentences."""
    return [f"{one.what} is missing: {sentence(one.why)} {_AGAIN}" for one in missing if one.server == server]


def addresses(routes: Iterable[Route], server_url: str) -> list[Address]:
    """The addresses that routes lead to, and that of the dashboard of a Dask cluster in a server with routes.

    `server_url`: of the server, with a "/" at its end. The analysis images proxy the dashboard (jupyter-server-proxy).
    """
    found = [Address(f"Dask {route.purpose}", f"tls://{route.host}:{route.port}") for route in routes]
    return [*found, Address("Dask dashboard", f"{server_url}proxy/{DASHBOARD_PORT}/status")] if found else []
