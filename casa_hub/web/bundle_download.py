"""The download of the laptop bundle: a form of the page "My credentials", and the API for ``casa-hub bundle``."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tornado import web

from casa_hub.errors import CasaError
from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubApp, HubUser
from casa_hub.servers.running import running_server, shown
from casa_hub.web.bundle import Bundle
from casa_hub.web.credentials_api import CredentialsAPI, scope_of
from casa_hub.web.frame import Pages
from casa_hub.web.handing_out import hand_out

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: The credential that a bundle is made of, and its scope.
_DASK = "dask"
_SCOPE = scope_of(_DASK)


def may_download(scopes: Collection[str]) -> bool:
    """Whether somebody with these scopes gets a bundle, in a browser or by a token."""
    return _SCOPE in scopes


async def _archive(app: HubApp, user: HubUser, name: str, by: str) -> bytes:
    """The bundle of a running server. Raises as `hand_out`."""
    now = datetime.now(UTC)
    handed = await hand_out(app, user, _DASK, by=by, server=name)
    running = running_server(user.spawners[name])
    assert running is not None  # noqa: S101 - `hand_out` has minted for it
    routes = CasaHub.of(app).facility.minters[_DASK].routes(running.server)
    [scheduler] = [route for route in routes if route.purpose == "scheduler"]
    new = handed.credential
    address = f"tls://{scheduler.host}:{scheduler.port}"
    return Bundle(shown(user.name, name), address, new.files, now, new.expires_at).archive()


class _Download:
    """Answers with a bundle."""

    def send(self: Any, archive: bytes) -> None:
        self.set_header("Content-Type", "application/zip")
        self.set_header("Content-Disposition", 'attachment; filename="dask-laptop.zip"')
        self.set_header("Cache-Control", "no-store")
        self.finish(archive)


class BundleHandler(_Download, Pages):
    """``POST /hub/casa/bundle``: the form's ``server`` is the server's name."""

    authenticator: CasaOAuthenticator

    @web.authenticated
    async def post(self) -> None:
        user = self.person()
        if not may_download(self.expanded_scopes):
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "The operator of this hub gives no laptop bundles to its users")
        try:
            archive = await _archive(
                self.settings["app"], user, self.get_argument("server", ""), by=f"page of {user.name}"
            )
        except CasaError as error:
            self.log.warning("No laptop bundle for %s: %s", user.name, error)
            raise web.HTTPError(HTTPStatus.CONFLICT, "%s", error) from error
        self.send(archive)


class BundleAPIHandler(_Download, CredentialsAPI):
    """``POST /hub/api/casa/bundle/NAME``: the same, for a token with the scope of the credential `dask`."""

    async def post(self, name: str | None) -> None:
        user = self.person()
        if not may_download(self.expanded_scopes):
            raise web.HTTPError(HTTPStatus.FORBIDDEN, f"This needs the scope {_SCOPE}")
        if _DASK not in self.casa.facility.minters:
            raise web.HTTPError(HTTPStatus.NOT_FOUND, "Servers of this hub have no Dask certificates")
        self.send(await _archive(self.settings["app"], user, name or "", by=self.by))


handlers: list[tuple[Any, ...]] = [
    (r"/casa/bundle", BundleHandler),
    (r"/api/casa/bundle(?:/([^/]*))?", BundleAPIHandler),
]
