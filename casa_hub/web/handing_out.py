"""Hands one credential to a person for a laptop or CI: the one way of the API and of the pages.

The membership is checked as before a start of a server. The life is `Facility.laptop_lifetime` at most. The audit is
told who asked.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from casa_hub.credentials.base import Credential, Request
from casa_hub.errors import CasaError, CredentialError
from casa_hub.facility import Facility
from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubApp, HubUser
from casa_hub.record import EDITED_ENTRY, ServerRecord, Unreadable
from casa_hub.servers.running import running_server, shown
from casa_hub.text import printable


class NotRunningError(CasaError):
    """The credential is that of a running server, and this server doesn't run."""

    def __init__(self, user: HubUser, name: str) -> None:
        super().__init__(f"server {printable(shown(user.name, name))}", "it doesn't run", "Start it first.")


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A credential and what a client needs to use it."""

    credential: Credential
    title: str
    #: Variables; paths of files begin with ``{directory}``.
    environment: Mapping[str, str] = field(repr=False)


async def hand_out(
    app: HubApp, user: HubUser, name: str, *, by: str, server: str = "", longest: int | None = None
) -> HandedOver:
    """Mint a credential for one of the hub's users.

    Args:
        app: the hub, whose authenticator is ours.
        user: for whom.
        name: one of `Facility.names_outside`.
        by: who asked, for the audit: ``page of alice``, ``token a7 of alice: laptop``.
        server: name of the user's running server, for a credential that belongs to one.
        longest: seconds, for a shorter life.

    Raises:
        tornado.web.HTTPError: 403, no member (`CasaOAuthenticator.admit`).
        NotRunningError: that server doesn't run.
        CredentialError: it can't be minted.
        DeliveryError: what the server holds can't be read now.
    """
    facility = CasaHub.of(app).facility
    await app.authenticator.admit(user)
    name = facility.name_for(user, name)
    if name in facility.minters and facility.minters[name].of_start:
        request, record = await _of_running(app, facility, user, name, server)
    else:
        identity, start_id = facility.server(user.name), secrets.token_hex(16)
        now = datetime.now(UTC)
        request = await facility.request_for(user, app.authenticator, identity, start_id, now, names=(name,))
        record = None
    # Again, because the access may have ended since. No other work comes between this answer and the mint.
    await app.authenticator.admit(user)
    asked = replace(request, longest=longest)
    new = facility.mint_outside(asked, name, record, user_id=user.id, username=user.name, by=by)
    return HandedOver(new, facility.minters[name].title, facility.environment_outside(request.server, new))


async def _of_running(
    app: HubApp, facility: Facility, user: HubUser, name: str, server: str
) -> tuple[Request, ServerRecord]:
    """What is known of a running server of this user. Raises as `hand_out`."""
    spawner = user.spawners.get(server)
    running = None if spawner is None or not spawner.ready else running_server(spawner)
    holding = None if running is None else running.known_holding() or await running.holding()
    if running is None or holding is None:
        raise NotRunningError(user, server)
    title = facility.minters[name].title
    if isinstance(holding.record, Unreadable):
        raise CredentialError(title, holding.record.why, "Restart the server.")
    if name in holding.record.unreadable:
        raise CredentialError(title, EDITED_ENTRY, "Restart the server.")
    if name not in holding.record.credentials:
        problem = holding.record.missing.get(name, "the server was started without them").rstrip(".")
        raise CredentialError(title, problem, "Restart the server.")
    start_id, now = holding.start_id, datetime.now(UTC)
    request = await facility.request_for(user, app.authenticator, running.server, start_id, now, names=(name,))
    return request, holding.record
