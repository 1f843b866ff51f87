"""What a "yes" gives in the hub: JupyterHub's groups, and administration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from jupyterhub.roles import assign_default_roles

from casa_hub.jupyterhub import HubUser
from casa_hub.membership.policy import Allowed, Policy

#: Characters of a name that JupyterHub's database can store.
NAME_LENGTH = 255

log = logging.getLogger(__name__)


class Rights:
    """Of the hub's users, as the provider's groups have it."""

    def __init__(self, policy: Callable[[], Policy]) -> None:
        """`policy`: who is allowed, as configured now."""
        self._policy = policy

    def admin(self, username: str, decision: Allowed) -> bool | None:
        """Follow the groups up and down; without admin_groups leave to the hub who is administrator."""
        policy = self._policy()
        if policy.admin_groups:
            return decision.admin
        return True if username in policy.admin_users else None

    def groups(self, username: str, decision: Allowed) -> list[str]:
        """Group names for JupyterHub, which can't store those that are too long for its database."""
        groups = sorted(group for group in decision.groups if len(group) <= NAME_LENGTH)
        if len(groups) < len(decision.groups):
            log.warning("Groups of %s longer than %d characters are no JupyterHub groups", username, NAME_LENGTH)
        return groups

    def apply(self, user: HubUser, decision: Allowed, added: Collection[str] = ()) -> None:
        """Groups and administration follow the provider at every "yes", also downwards.

        `added`: groups that the site added at the log-in, which stay.
        """
        admin = self.admin(user.name, decision)
        if admin is not None and admin != user.admin:
            user.admin = admin
            assign_default_roles(user.db, entity=user.orm_user)
            user.db.commit()
        groups = sorted({*self.groups(user.name, decision), *added})
        if sorted(group.name for group in user.groups) != groups:
            user.sync_groups(groups)
