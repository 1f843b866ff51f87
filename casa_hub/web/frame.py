"""The frame of this package's pages: JupyterHub's own page around them, and the files that they share."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.handlers.static import CacheControlStaticFilesHandler

from casa_hub import __version__
from casa_hub.jupyterhub import HubUser
from casa_hub.moments import iso, when


class Pages(BaseHandler):  # type: ignore[misc]
    """Base of the handlers that show a page. An operator's template of the same name wins."""

    async def show(self, status: int, template: str, **namespace: Any) -> None:
        """Answer with a page of ``web/templates``."""
        names = {**self.template_namespace, "xsrf_token": self.xsrf_token.decode("ascii")}
        names |= {"casa_static": f"{self.hub.base_url}casa/static/", "casa_version": __version__, **namespace}
        self.set_status(status)
        self.finish(await _with_ours(self.settings["jinja2_env"]).get_template(template).render_async(**names))

    def person(self) -> HubUser:
        """The user whose browser asks, for `web.authenticated` methods. JupyterHub takes no token for pages.

        Raises HTTPError if a program of another page asks: without domains of their own (`JupyterHub.subdomain_host`),
        servers have the hub's origin, and a visitor of a shared server would let it read this page.
        """
        self.check_xsrf_cookie()  # JupyterHub itself only does so for API requests and for what changes something
        user: HubUser = self.current_user
        return user


@cache
def _with_ours(environment: Environment) -> Environment:
    """JupyterHub's templates, then this package's. One for each hub, because it keeps the compiled templates."""
    assert environment.loader is not None  # noqa: S101 - JupyterHub gives it one
    loader = ChoiceLoader([environment.loader, PackageLoader("casa_hub", "web/templates")])
    pages = environment.overlay(loader=loader)
    pages.filters = {**environment.filters, "casa_when": when, "casa_iso": iso}
    return pages


class StaticHandler(CacheControlStaticFilesHandler):  # type: ignore[misc]
    """Style and program of the pages."""


#: For the hub's application, below its prefix.
handlers: list[tuple[Any, ...]] = [
    (r"/casa/static/(.*)", StaticHandler, {"path": str(PurePosixPath(str(files("casa_hub"))) / "web" / "static")}),
]
