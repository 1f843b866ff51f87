"""What this package uses of JupyterHub and of KubeSpawner, private members included.

JupyterHub and KubeSpawner ship no types. Each protocol here has just the members that are used, so mypy finds a use of
any other, and `tests/unit/test_jupyterhub.py` finds a member that an installed version no longer has. Members whose
name begins with an underscore are no public interface: they were read in JupyterHub 5.5 and 6.1, and in KubeSpawner
7.0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.orm import Session
from tornado.web import HTTPError
from traitlets.config import Config

if TYPE_CHECKING:
    from jupyterhub.orm import APIToken

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # before JupyterHub 6
    SpawnException = None

#: Whether JupyterHub counts a refused start towards `Spawner.consecutive_failure_limit`.
COUNTS_REFUSALS = SpawnException is None


class RefusedStart(HTTPError if SpawnException is None else SpawnException):  # type: ignore[misc]
    """A start that the operator's rules refuse: JupyterHub shows the text to whoever asked, with the status 403.

    JupyterHub 6 logs it without a traceback, and its metrics have `reason`.
    """

    def __init__(self, message: str, reason: str) -> None:
        if SpawnException is None:
            super().__init__(HTTPStatus.FORBIDDEN, message)
        else:
            super().__init__(message, reason=reason, status_code=HTTPStatus.FORBIDDEN)
        self.jupyterhub_message = message  # what the start's page says, in all versions


class OrmUser(Protocol):
    """A user's row in the database (`jupyterhub.orm.User`)."""

    #: JupyterHub signs log-in cookies with it: another value makes all earlier cookies worthless.
    cookie_id: str


class OrmSpawner(Protocol):
    """A server's row in the database (`jupyterhub.orm.Spawner`)."""

    #: UTC without a time zone; None: it doesn't run.
    started: datetime | None
    state: Mapping[str, Any] | None
    #: None: it doesn't run.
    server: object | None


class HubUser(Protocol):
    """A user (`jupyterhub.user.User`, which has the attributes of its row, too)."""

    id: int
    name: str
    admin: bool
    #: Each group has a `name`.
    groups: Collection[Any]
    orm_user: OrmUser
    api_tokens: Collection[APIToken]
    #: None: no auth state is stored.
    encrypted_auth_state: bytes | None
    #: The tornado settings of the hub, shared by all users.
    settings: dict[str, Any]
    #: Those that exist in memory, by the server's name; all that run are among them.
    spawners: Mapping[str, HubSpawner]

    @property
    def db(self) -> Session: ...

    @property
    def active(self) -> bool:
        """Whether a server runs, starts or stops."""

    async def get_auth_state(self) -> dict[str, Any] | None:
        """Decrypted; None if nothing is stored, or `JupyterHub.crypt_key` has no key for it."""

    async def save_auth_state(self, auth_state: dict[str, Any] | None) -> None: ...

    async def stop(self, server_name: str = "") -> None: ...

    def new_api_token(self, *, note: str, expires_in: int, scopes: list[str]) -> str:
        """Raises ValueError for a scope that the user doesn't have."""

    def server_url(self, server_name: str = "") -> str:
        """Path of a server, with the hub's base URL."""

    def sync_groups(self, group_names: Collection[str]) -> None: ...


class HubSpawner(Protocol):
    """A server (`jupyterhub.spawner.Spawner`)."""

    name: str
    user: HubUser
    authenticator: Any
    orm_spawner: OrmSpawner
    db: Session
    log: logging.Logger
    #: How JupyterHub's own log lines call it: ``alice:name``.
    _log_name: str
    #: While both are set, JupyterHub takes the server for one that is being stopped.
    _stop_pending: bool
    _stop_future: asyncio.Future[None] | None

    @property
    def pending(self) -> str | None:
        """``spawn``, ``stop`` or ``check``; None if nothing is under way."""

    @property
    def ready(self) -> bool:
        """Whether it runs, and neither starts nor stops."""

    @property
    def active(self) -> bool:
        """Whether it runs, starts or stops."""


class PodSpawner(HubSpawner, Protocol):
    """A server in a pod (`kubespawner.KubeSpawner`)."""

    namespace: str
    pod_name: str
    k8s_api_request_retry_timeout: int
    #: Pods that the watch has shown; None until it is started.
    pod_reflector: Any

    def _build_common_labels(self, extra_labels: Mapping[str, str]) -> dict[str, str]: ...

    async def _start_watching_pods(self) -> None: ...


class HubProxy(Protocol):
    """The configurable proxy (`jupyterhub.proxy.Proxy`)."""

    async def delete_user(self, user: HubUser, server_name: str = "") -> None: ...


class HubApp(Protocol):
    """The hub (`jupyterhub.app.JupyterHub`)."""

    config: Config
    log: logging.Logger
    db: Session
    #: `jupyterhub.user.UserDict`: by name, or by the row's id; `get` makes the user from its row. None before the hub
    #: has read its database.
    users: dict[str | int, HubUser]
    proxy: HubProxy
    authenticator: Any
    authenticator_class: type
    load_roles: list[dict[str, Any]]
    spawner_class: type
    base_url: str
    bind_url: str
    #: Where the hub itself listens (`jupyterhub.objects.Hub`).
    hub: Any
    cookie_secret: bytes
    #: None for the hub itself; else the program of JupyterHub that made this application to read its configuration.
    parent: object | None
    tornado_settings: dict[str, Any]
    template_paths: list[str]
    #: Handlers below the hub's prefix, which JupyterHub reads after it has set `tornado_settings`.
    extra_handlers: list[tuple[Any, ...]]
    #: All handlers; empty as long as JupyterHub hasn't made them.
    handlers: list[tuple[Any, ...]]
    template_vars: dict[str, Any]
    #: Its `settings` are a copy of `tornado_settings`, and are those of request handlers.
    tornado_application: Any
    #: Done when all users and servers of the database are known.
    _start_future: asyncio.Future[None]

    def _template_paths_default(self) -> list[str]: ...
