"""``casa-hub policy``: what somebody gets, and which rule says so."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from traitlets import TraitError

from casa_hub.errors import CasaError, Severity
from casa_hub.policy.amounts import shown
from casa_hub.policy.table import Entitlement

COMMAND = "policy"


def add_command(commands: Any) -> None:
    policy = commands.add_parser(
        COMMAND,
        help="what somebody gets by the table of groups",
        description="Print what the rules of section Policy give to a user, and which rule says so. The running hub is "
        "asked for the user's groups; with --groups nobody is asked.",
    )
    who = policy.add_mutually_exclusive_group(required=True)
    who.add_argument("user", nargs="?", metavar="USER", help="a user of the running hub")
    who.add_argument(
        "--groups",
        type=_groups,
        metavar="GROUP,...",
        help="somebody in these groups, as JupyterHub knows them: /atlas,/atlas/users; empty: in none",
    )
    policy.add_argument("-f", dest="config_file", type=Path, metavar="FILE", required=True, help="jupyterhub_config.py")
    policy.add_argument("--json", action="store_true", help="print it as JSON")


def _groups(text: str) -> list[str]:
    return [group for group in map(str.strip, text.split(",")) if group]


def run(options: argparse.Namespace, groups_of: Callable[[Any, str], Collection[str]]) -> int:
    """Exit code 0. `groups_of`: asks the running hub of an application for a user's groups. Raises CasaError."""
    from casa_hub.hub_config import configured_hub  # noqa: PLC0415 - JupyterHub takes a while to load
    from casa_hub.policy.settings import Policy  # noqa: PLC0415

    app = configured_hub(options.config_file)
    try:
        policy = Policy(config=app.config)
    except TraitError as error:
        raise CasaError(str(options.config_file), str(error).rstrip("."), "Correct it.") from None
    for problem in policy.problems:
        if problem.severity is Severity.ERROR:
            raise CasaError(problem.thing, problem.problem, problem.remedy)
    groups = options.groups if options.user is None else groups_of(app, options.user)
    found = said(policy.table.of(groups))
    if options.json:
        print(json.dumps([{"thing": thing, "value": value, "rule": rule} for thing, value, rule in found], indent=1))
        return 0
    for thing, value, rule in found:
        print(f"{thing}: {value} (rule {rule})")
    if not found:
        print("No rule says anything: everything is as the hub's other settings have it.")
    return 0


def said(entitlement: Entitlement) -> list[tuple[str, str, str]]:
    """Thing, what the rules say of it, and the rule that says it."""
    lists = {"profiles": entitlement.profiles, "credentials": entitlement.credentials}
    found = [(thing, ", ".join(word.value) or "none", word.rule) for thing, word in lists.items() if word is not None]
    found += [
        (f"limits.{name}", f"at most {shown(name, word.value)}", word.rule) for name, word in entitlement.limits.items()
    ]
    found += [(f"pod.{part}", json.dumps(word.value), word.rule) for part, word in entitlement.pod.items()]
    found += [(section, "settings of their own", rule) for section, rule in entitlement.sections.items()]
    return found
