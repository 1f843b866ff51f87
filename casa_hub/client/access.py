"""Which hub is asked, and with which token: of the environment, of an earlier log-in, or of a log-in now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from .addresses import base_address, check_secrecy
from .errors import ClientError, TokenRefusedError
from .hub import LogIn, is_token
from .places import Machine
from .store import Store
from .wire import Wire

T = TypeVar("T")

#: Variables with the hub's address and a token for it: for CI, and those that a server of JupyterHub has.
URL, TOKEN = "CASA_HUB_URL", "CASA_HUB_TOKEN"
_SERVER_URL, _SERVER_TOKEN = "JUPYTERHUB_API_URL", "JUPYTERHUB_API_TOKEN"


def find_hub(given: str | None, machine: Machine, store: Store, *, insecure: bool) -> str:
    """The hub's base address: the given one, that of the environment, or the only one with a log-in.
    Raises ClientError if there is none, or if others could read a token on the way to it.
    """
    environment = machine.environment
    address = given or environment.get(URL) or environment.get(_SERVER_URL)
    if not address:
        hubs = store.hubs()
        if len(hubs) != 1:
            problem = "is not known" if not hubs else f"could be one of {', '.join(hubs)}"
            raise ClientError("the hub's address", problem, f"Name it: --hub https://hub.example.org, or set {URL}.")
        address = hubs[0]
    hub = base_address(address)
    # A server of JupyterHub talks to its own hub so anyway.
    if not insecure and hub != _own_hub(machine):
        check_secrecy(hub)
    return hub


def environment_token(hub: str, machine: Machine) -> tuple[str, bool] | None:
    """The token of the environment for this hub, and whether it is a server's own, which is for its own hub only.
    Raises ClientError if it can't be a token.
    """
    own = _own_hub(machine)
    names = [TOKEN] + ([_SERVER_TOKEN] if own in {None, hub} else [])
    for name in names:
        if token := machine.environment.get(name, "").strip():
            if not is_token(token):
                raise ClientError(name, "has characters that no token has", "Copy it again.")
            return token, name == _SERVER_TOKEN
    return None


def _own_hub(machine: Machine) -> str | None:
    address = machine.environment.get(_SERVER_URL)
    return base_address(address) if address else None


@dataclass(frozen=True, slots=True)
class Access:
    """One hub, and the ways to a token for it."""

    hub: str
    machine: Machine
    store: Store
    say: Callable[[str], None] = field(repr=False)
    #: Lets the user log in for these credentials; None where nobody can.
    log_in: Callable[[tuple[str, ...]], LogIn] | None = field(repr=False)

    def ask(self, credential: str, question: Callable[[Wire], T]) -> tuple[Wire, T]:
        """Ask with the first token that the hub takes for this credential; returns the way to the hub, and the answer.
        Raises ClientError, as `question` does, and if there is no token.
        """
        if (found := environment_token(self.hub, self.machine)) is not None:
            token, of_server = found
            wire = Wire(self.hub, token)
            try:
                return wire, question(wire)
            except TokenRefusedError:
                if not of_server:
                    raise
                self.say("This server's own token isn't enough for it.")  # the usual case: it has no such scope
        stored = self.store.read(self.hub, datetime.now(UTC))
        if stored is not None and credential in {*stored.credentials, ""}:
            wire = Wire(self.hub, stored.token)
            try:
                return wire, question(wire)
            except TokenRefusedError:
                self.say(f"{self.hub} doesn't take the earlier log-in any more.")
        if self.log_in is None:
            remedy = f"Make a token on {self.hub}/hub/token and set {TOKEN}; on a machine of your own: --no-browser."
            raise ClientError(self.hub, "there is no token for it, and no browser here", remedy)
        before = stored.credentials if stored is not None else ()
        log_in = self.log_in(tuple(sorted({*before, credential} - {""})))
        self.store.write(log_in)
        self.say(f"Logged in as {log_in.user}.")
        wire = Wire(self.hub, log_in.token)
        return wire, question(wire)
