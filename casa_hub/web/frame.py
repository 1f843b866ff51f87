"""The frame of this package's pages: JupyterHub's own page around them, and the files that they share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, Template
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.handlers.static import CacheControlStaticFilesHandler
from jupyterhub.user import User
from markupsafe import Markup
from tornado import web

from casa_hub import __version__
from casa_hub.jupyterhub import HubUser
from casa_hub.moments import iso, when
from casa_hub.tasks import Turns


class Pages(BaseHandler):  # type: ignore[misc]
    """Base of the handlers that show a page. An operator's template of the same name wins."""

    async def show(self, status: int, template: str, **namespace: Any) -> None:
        """Answer with a page of ``web/templates``."""
        names = {**self.template_namespace, "xsrf_token": self.xsrf_token.decode("ascii")}
        names |= {"casa_static": f"{self.hub.base_url}casa/static/", "casa_version": __version__, **namespace}
        self.set_status(status)
        self.finish(await _rendered(_with_ours(self.settings["jinja2_env"]).get_template(template), names))

    def person(self) -> HubUser:
        """The user whose browser asks. Raises HTTPError for API tokens: these pages are for people."""
        user: HubUser | None = self.current_user
        if user is None or not isinstance(user, User) or getattr(self, "_token_authenticated", False):
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "This page is for browsers. With a token, use the API.")
        return user


async def _rendered(template: Template, names: dict[str, Any]) -> str:
    """The page as text, made in turns, since a page may have many rows."""
    pieces = []
    turns = Turns()
    async for piece in template.generate_async(**names):
        pieces.append(piece)
        await turns.give()
    return "".join(pieces)


def compile_templates(settings: Mapping[str, Any]) -> None:
    """Compile our templates, for the hub's start: the largest takes a tenth of a second, which a page must not take."""
    environment = settings.get("jinja2_env")
    if environment is None:  # JupyterHub only reads its configuration
        return
    pages = _with_ours(environment)
    for name in PackageLoader("casa_hub", "web/templates").list_templates():
        pages.get_template(name)


@cache
def _with_ours(environment: Environment) -> Environment:
    """JupyterHub's templates, then this package's. One for each hub, because it keeps the compiled templates."""
    assert environment.loader is not None  # noqa: S101 - JupyterHub gives it one
    loader = ChoiceLoader([environment.loader, PackageLoader("casa_hub", "web/templates")])
    pages = environment.overlay(loader=loader)
    ours = {"casa_when": when, "casa_iso": iso, "casa_moment": _moment, "casa_until": _until}
    pages.filters = {**environment.filters, **ours}
    return pages


_MOMENT = Markup('<time datetime="{iso}">{when}</time>')
_UNTIL = Markup('{moment} <span class="casa-left text-body-secondary" data-until="{seconds}"></span>')


def _moment(seconds: float) -> Markup:
    """As the macro `moment`, for tables with hundreds of times."""
    return _MOMENT.format(iso=iso(seconds), when=when(seconds))


def _until(seconds: float) -> Markup:
    """As the macro `until`."""
    return _UNTIL.format(moment=_moment(seconds), seconds=round(seconds))


class StaticHandler(CacheControlStaticFilesHandler):  # type: ignore[misc]
    """Style and program of the pages."""


#: For the hub's application, below its prefix.
handlers: list[tuple[Any, ...]] = [
    (r"/casa/static/(.*)", StaticHandler, {"path": str(PurePosixPath(str(files("casa_hub"))) / "web" / "static")}),
]
