"""The section `Policy`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from traitlets import Dict, List, TraitError
from traitlets.config import LoggingConfigurable

from casa_hub.jupyterhub import HubUser
from casa_hub.policy.reading import read
from casa_hub.policy.table import Entitlement, Table


class _Rules(List[dict[str, Any]]):
    """A list of rules whose errors don't show them: one of them may hold a secret by mistake."""

    def error(self, obj: Any, value: Any, error: Any = None, info: Any = None) -> NoReturn:  # noqa: ARG002
        raise TraitError("Policy.rules is not a list of rules, each of them a mapping.") from None


class Policy(LoggingConfigurable):
    """What the members of which groups may choose, how much of it, and which credentials they get."""

    rules = _Rules(
        Dict(),
        help="""
        The table. All rules count that match one of the groups that JupyterHub knows of a user at that moment, in their
        order; on each thing the first word wins, and a thing without a word is as the other settings have it. The rules
        hold for pages, the REST API and services alike, and whoever starts a server, its owner's rules count. The keys
        of a rule, all of them optional:

        - ``groups``: patterns of groups, with ``*``, which means ``/``, too. Without it, the rule is for everybody.
        - ``name``: of the rule, in messages and in names of credentials. Default: by the first group, ``atlas``.
        - ``profiles``: of `KubeSpawner.profile_list`, by their slugs; no others can be chosen.
        - ``limits``: ``cpu``, ``memory``, ``gpu`` and resources of Kubernetes by their names, for each server;
          ``servers``, which may run at a time. What asks for more is refused.
        - ``pod``: ``node_selector``, ``tolerations``, ``volumes``, ``volume_mounts`` and ``extra_labels``, which are
          added to those of KubeSpawner and of the profile.
        - ``credentials``: instead of `Facility.credentials`. ``xcache`` is that of the first rule with such a section,
          ``xcache:atlas`` that of the rule ``atlas``, in files of its own: ``xcache_token_atlas``.
        - Sections of credentials, such as ``XCache``: settings that hold for these people instead of the hub's.
          ``FacilityIssuer`` may have ``vo`` and ``subject``.

        Default: none. Example:
        ``[{"groups": ["/atlas/*"], "limits": {"cpu": 8, "memory": "32G"}, "profiles": ["small", "large"]}]``.
        """,
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        rules, self.problems = read(self.rules)
        self.table = Table(rules)

    def of(self, user: HubUser) -> Entitlement:
        """What the user gets by the groups that JupyterHub knows now."""
        return self.table.of(names_of(user))


def names_of(user: HubUser) -> Iterable[str]:
    """Names of the groups that JupyterHub knows of a user."""
    return [group.name for group in user.groups]
