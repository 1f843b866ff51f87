"""The page "My credentials": what the user's servers hold, until when, and what the hub knows of the sign-in.

It shows nothing secret. *Renew now* and the laptop bundle are forms with JupyterHub's XSRF token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from tornado import web

from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubSpawner, HubUser
from casa_hub.membership.member import UNASKED, Member, Outcome, Standing
from casa_hub.membership.policy import Allowed
from casa_hub.record import ServerRecord
from casa_hub.servers import view
from casa_hub.servers.renewals import Missing
from casa_hub.servers.running import running_server
from casa_hub.web.bundle_download import may_download
from casa_hub.web.frame import Pages

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: Seconds after which a user may ask for a renewal of the same server again.
RENEW_PAUSE = 10.0

#: What the page says after *Renew now*, by the outcome in its address.
_SAID = {
    "renewed": "Renewed. Programs in your server find the new files; pods see them within a minute.",
    "failed": "Not all could be renewed. Below stands what failed, and why.",
    "soon": "This server's credentials were renewed a moment ago.",
    "stopped": "This server doesn't run any more, or is about to stop.",
}


@dataclass(frozen=True, slots=True)
class ServerView:
    """One running server of the user, for the page."""

    name: str
    url: str
    #: Why nothing of it is renewed, without a full stop; "" if its credentials are.
    unkept: str
    credentials: list[view.CredentialView]
    absent: list[str]
    addresses: list[view.Address]
    #: Whether a laptop can connect to its Dask scheduler.
    has_bundle: bool


@dataclass(frozen=True, slots=True)
class SignIn:
    """What the hub knows of the user's log-in. Times are epoch seconds; None where there is none."""

    provider: str
    ways_in: list[str]
    confirmed_at: float | None
    #: What ends: "Your access ends", "Your sign-in runs out", or "Lasts" where nothing does.
    label: str
    ends_at: float | None
    #: What the user can do about it, or needn't, as sentences.
    advice: str


class CredentialsHandler(Pages):
    """``/hub/casa/credentials``."""

    authenticator: CasaOAuthenticator

    @web.authenticated
    async def get(self) -> None:
        user = self.person()
        self.set_header("Cache-Control", "no-store")
        hub = self.casa
        missing = hub.mending.missing()  # of all servers
        await self.show(
            HTTPStatus.OK,
            "casa_credentials.html",
            casa_servers=[server_view(hub, user, spawner, self._origin, missing) for spawner in running(user)],
            sign_in=sign_in(self.authenticator, user),
            may_download=may_download(self.expanded_scopes),
            said=_SAID.get(self.get_argument("said", ""), ""),
        )

    @property
    def _origin(self) -> str:
        """Where the browser sees the hub, and the servers without a domain of their own."""
        return f"{self.request.protocol}://{self.request.host}"

    @web.authenticated
    async def post(self) -> None:
        """*Renew now*: the form's ``server`` is the server's name."""
        user, name = self.person(), self.get_argument("server", "")
        said = await self._renew(user, name)
        self.redirect(f"{self.hub.base_url}casa/credentials?said={said}", status=HTTPStatus.SEE_OTHER)

    async def _renew(self, user: HubUser, name: str) -> str:
        spawner = next((one for one in running(user) if one.name == name), None)
        if spawner is None:
            return "stopped"
        if not self.casa.renewals.ask(spawner, self.authenticator.members.now(), RENEW_PAUSE):
            return "soon"
        report = await self.casa.renewals.renew_now([user.name], only=lambda one: one is spawner)
        if report.failed or any(one.why for one in self.casa.renewals.held(spawner)):
            return "failed"
        return "renewed" if report.renewed else "stopped"


def running(user: HubUser) -> list[HubSpawner]:
    """The user's running servers, the default server first."""
    return sorted((one for one in list(user.spawners.values()) if one.ready), key=lambda one: one.name)


def server_view(
    hub: CasaHub, user: HubUser, spawner: HubSpawner, origin: str, missing: Iterable[Missing]
) -> ServerView:
    """What the page shows of a running server; `origin`: of the page, `missing`: of all servers. Without I/O."""
    facility, server = hub.facility, running_server(spawner)
    holding = None if server is None else server.known_holding()
    record = None if holding is None else holding.record
    known = record.credentials if isinstance(record, ServerRecord) else {}
    held = view.credentials(
        facility.minters,
        hub.renewals.held(spawner),
        known,
        facility.bearer_token_file,
    )
    identity = "" if server is None else server.server.identity
    absent = view.absent(identity, (one for one in missing if one.what not in facility.minters))
    has_dask = any(one.name == "dask" and one.state is not view.State.MISSING for one in held)
    url = urljoin(origin, user.server_url(spawner.name))
    return ServerView(
        name=spawner.name,
        url=url,
        unkept=hub.renewals.unkept(spawner),
        credentials=held,
        absent=absent,
        addresses=view.addresses(facility.routes(server.server, record), url) if server is not None and record else [],
        has_bundle=has_dask,
    )


def sign_in(authenticator: CasaOAuthenticator, user: HubUser) -> SignIn:
    """What the page shows of the log-in."""
    member = authenticator.members[user.name]
    return _sign_in(authenticator.preset.title, member, authenticator.members.outcome(member))


def _sign_in(provider: str, member: Member, outcome: Outcome) -> SignIn:
    standing = member.standing or UNASKED
    ways_in = sorted(standing.decision.ways_in) if isinstance(standing.decision, Allowed) else []
    label, ends_at, advice = _end(provider, standing, outcome)
    return SignIn(provider, ways_in, standing.last_yes or None, label, ends_at, advice)


def _end(provider: str, standing: Standing, outcome: Outcome) -> tuple[str, float | None, str]:
    """Label, end and advice of `SignIn`."""
    if outcome.ends_at < math.inf and outcome.why in {"age", "revoked"}:
        return "Your access ends", outcome.ends_at, "Log out and in again before, and it goes on."
    # Without a notice, the hub has only not waited for the answer that is under way.
    if outcome.ends_at < math.inf and outcome.notice:
        advice = f"Unless {provider} confirms your membership before. Stay signed in: a new log-in doesn't help."
        return "Your access ends", outcome.ends_at, advice
    if standing.sign_in_ends_at < math.inf:
        return "Your sign-in runs out", standing.sign_in_ends_at, "Log out and in again before, and it goes on."
    return "Lasts", None, f"As long as {provider} confirms it. The hub asks by itself; you don't have to do anything."


handlers: list[tuple[Any, ...]] = [(r"/casa/credentials", CredentialsHandler)]
