"""Shows a notice to the user on the hub's pages, by this package's template ``page.html``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from jupyterhub.user import User

from casa_hub.jupyterhub import HubApp, HubUser
from casa_hub.membership.admission import NOTICE


def show_notices(app: HubApp, notice: Callable[[Any], str]) -> None:
    """Make all pages of the hub show `notice(user)`. For the hub's start.

    An operator's own ``page.html`` wins. It can show the notice with ``{% include "casa_notice.html" %}``.
    """

    def notice_for(user: HubUser) -> str:
        return notice(user) if isinstance(user, User) else NOTICE.get()

    ours = str(files("casa_hub") / "web" / "templates")
    theirs = [path for path in app.template_paths if path not in app._template_paths_default()]  # noqa: SLF001
    app.template_paths = [*theirs, ours]  # JupyterHub adds its own
    app.template_vars = {"casa_notice": notice_for, **app.template_vars}
