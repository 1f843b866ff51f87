"""The frame of this package's pages: JupyterHub's own page around them, and the files that they share."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, Template
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.handlers.static import CacheControlStaticFilesHandler
from markupsafe import Markup

from casa_hub import __version__
from casa_hub.jupyterhub import HubUser
from casa_hub.moments import iso, when
from casa_hub.tasks import Turns

#: Characters of a page that are compressed in one turn of the event loop.
_PIECE = 32_768


class Pages(BaseHandler):  # type: ignore[misc]
    """Base of the handlers that show a page. An operator's template of the same name wins."""

    async def show(self, status: int, template: str, **namespace: Any) -> None:
        """Answer with a page of ``web/templates``."""
        names = {**self.template_namespace, "xsrf_token": self.xsrf_token.decode("ascii")}
        names |= {"casa_static": f"{self.hub.base_url}casa/static/", "casa_version": __version__, **namespace}
        page = await _rendered(_with_ours(self.settings["jinja2_env"]).get_template(template), names)
        self.set_status(status)
        turns = Turns()
        for start in range(0, len(page) - _PIECE, _PIECE):
            self.write(page[start : start + _PIECE])
            self.flush()  # which compresses it
            await turns.give()
        self.finish(page[(len(page) - 1) // _PIECE * _PIECE :])

    def person(self) -> HubUser:
        """The user whose browser asks, for `web.authenticated` methods. JupyterHub takes no token for pages.

        Raises HTTPError if a program of another page asks: without domains of their own (`JupyterHub.subdomain_host`),
        servers have the hub's origin, and a visitor of a shared server would let it read this page.
        """
        self.check_xsrf_cookie()  # JupyterHub itself only does so for API requests and for what changes something
        user: HubUser = self.current_user
        return user


async def _rendered(template: Template, names: dict[str, Any]) -> str:
    """The page as text, made in turns, since a page may have many rows."""
    pieces = []
    turns = Turns()
    async for piece in template.generate_async(**names):
        pieces.append(piece)
        await turns.give()
    return "".join(pieces)


def compile_templates(environment: Environment) -> None:
    """Compile our templates, for the hub's start: the largest takes a tenth of a second, which a page must not take."""
    for name in PackageLoader("casa_hub", "web/templates").list_templates():
        _with_ours(environment).get_template(name)


@cache
def _with_ours(environment: Environment) -> Environment:
    """JupyterHub's templates, then this package's. One for each hub, because it keeps the compiled templates."""
    assert environment.loader is not None  # noqa: S101 - JupyterHub gives it one
    loader = ChoiceLoader([environment.loader, PackageLoader("casa_hub", "web/templates")])
    pages = environment.overlay(loader=loader)
    pages.filters = {**environment.filters, "casa_moment": _moment, "casa_until": _until}
    return pages


#: By filters and not by macros of a template: a page may have hundreds of times, and a filter is a plain call.
_MOMENT = Markup('<time datetime="{iso}">{when}</time>')
_UNTIL = Markup('{moment} <span class="casa-left text-body-secondary" data-until="{seconds}"></span>')


def _moment(seconds: float) -> Markup:
    """A time for people, in UTC, and for programs; in epoch seconds."""
    return _MOMENT.format(iso=iso(seconds), when=when(seconds))


def _until(seconds: float) -> Markup:
    """The same, and how long it is until then, which casa.js keeps up to date."""
    return _UNTIL.format(moment=_moment(seconds), seconds=round(seconds))


class StaticHandler(CacheControlStaticFilesHandler):  # type: ignore[misc]
    """Style and program of the pages."""


#: For the hub's application, below its prefix.
handlers: list[tuple[Any, ...]] = [
    (r"/casa/static/(.*)", StaticHandler, {"path": str(PurePosixPath(str(files("casa_hub"))) / "web" / "static")}),
]
