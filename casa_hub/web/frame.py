"""The frame of this package's pages: JupyterHub's own page around them, and the files that they share."""

from __future__ import annotations

import hashlib
import shlex
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, Template
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.handlers.static import CacheControlStaticFilesHandler
from markupsafe import Markup
from tornado import web

from casa_hub.hub import CasaHub
from casa_hub.jupyterhub import HubUser
from casa_hub.moments import iso, when
from casa_hub.startup import begun_hub
from casa_hub.tasks import Turns

#: Characters of a page that are compressed in one turn of the event loop.
_PIECE = 32_768


_STATIC = Path(str(files("casa_hub"))) / "web" / "static"
#: Of the static files, which browsers keep for years.
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_STATIC.iterdir()))).hexdigest()[:16]


class Pages(BaseHandler):  # type: ignore[misc]
    """Base of the handlers that show a page. An operator's template of the same name wins."""

    @property
    def casa(self) -> CasaHub:
        return begun_hub(self.settings["app"])

    async def show(self, status: int, template: str, **namespace: Any) -> None:
        """Answer with a page of ``web/templates``."""
        names = {**self.template_namespace, "xsrf_token": self.xsrf_token.decode("ascii")}
        names |= {"casa_static": f"{self.hub.base_url}casa/static/", "casa_version": _VERSION, **namespace}
        page = await _rendered(_with_ours(self.settings["jinja2_env"]).get_template(template), names)
        self.set_status(status)
        turns = Turns()
        for start in range(0, len(page) - _PIECE, _PIECE):
            self.write(page[start : start + _PIECE])
            self.flush()  # which compresses it
            await turns.give()
        self.finish(page[(len(page) - 1) // _PIECE * _PIECE :])

    def set_default_headers(self) -> None:
        super().set_default_headers()
        # A page that opens this one gets no hold of it: see `person`. Older browsers ignore it.
        self.set_header("Cross-Origin-Opener-Policy", "noopener-allow-popups")

    def person(self) -> HubUser:
        """The user whose browser asks, for `web.authenticated` methods. JupyterHub takes no token for pages.

        Raises HTTPError if a program of another page reads this one, instead of a person who opens it. Without domains
        of their own (`JupyterHub.subdomain_host`) servers have the hub's origin, so a server that is shared has the
        cookies of whoever visits it.
        """
        how = self.request.headers.get("Sec-Fetch-Mode", "navigate")
        if self.request.method == "GET" and how != "navigate":
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "This page can be opened only in a tab of its own")
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
    pages.filters = {**environment.filters, "casa_moment": _moment, "casa_until": _until, "casa_shell": shlex.quote}
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
    (r"/casa/static/(.*)", StaticHandler, {"path": str(_STATIC)}),
]
