"""Holds a server that starts to the rules of its owner, whoever starts it and by whichever way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

from casa_hub.audit import Action, Event, tell
from casa_hub.jupyterhub import HubSpawner, RefusedStart
from casa_hub.policy.amounts import shown
from casa_hub.policy.limits import Asked, Exceeded, exceeded
from casa_hub.policy.profiles import Part, not_offered
from casa_hub.policy.settings import Policy, names_of
from casa_hub.policy.table import Entitlement, Said
from casa_hub.text import printable


def cap(spawner: Any, entitlement: Entitlement, beside: Asked) -> None:
    """Make a limit of the rules the server's own where nobody has set one: without any, it could use a whole node.

    `beside`: what containers beside it ask for, which counts towards the same limit.
    """
    for name, setting, other in (("cpu", "cpu_limit", beside.cpu), ("memory", "mem_limit", beside.memory)):
        said = entitlement.limits.get(name)
        if said is not None and not getattr(spawner, setting) and said.value > other:
            left = said.value - other
            setattr(spawner, setting, float(left) if name == "cpu" else int(left))


def check_amounts(spawner: HubSpawner, policy: Policy, asked: Callable[[], Asked]) -> None:
    """Refuse a server that asks for more than its owner may have. Raises RefusedStart."""
    entitlement = policy.of(spawner.user)
    if not entitlement.limits:
        return
    try:
        over = exceeded(asked(), entitlement)
    except ValueError as error:
        raise _refused(spawner, f"What the server asks for can't be read: {error}", "limit") from None
    if over is not None:
        raise _refused(spawner, _beyond(spawner, policy, over), "limit")


def check_number(spawner: HubSpawner, policy: Policy) -> None:
    """Refuse one server too many of its owner. Raises RefusedStart.

    Of several that start at the same time, those count that came through here before: no other work comes between this
    look and the note that the server has.
    """
    said = policy.of(spawner.user).limits.get("servers")
    others = [one for one in list(spawner.user.spawners.values()) if one is not spawner and _counts(one)]
    if said is not None and len(others) >= said.value:
        over = Exceeded("servers", Decimal(len(others) + 1), said)
        raise _refused(spawner, _beyond(spawner, policy, over), "limit")


def check_profile(spawner: Any, policy: Policy, profiles: Sequence[Part], known: Collection[str]) -> None:
    """Refuse a profile, or a choice in it, that the server's owner may not choose. Raises RefusedStart.

    `profiles`: those that the owner may choose; `known`: the slugs of all that the hub has.
    """
    options = spawner.user_options or {}
    slug = options.get("profile") or None
    if not profiles:
        text = f"No profile of this hub is for the groups of {printable(spawner.user.name)}."
        raise _refused(spawner, f"{text} Ask the operator of this hub.", "profile")
    chosen = [one for one in profiles if one["slug"] == slug or (slug is None and one.get("default"))]
    if not chosen and slug not in known:
        text = f"This hub has no profile {printable(str(slug))!r}. There are: "
        text += f"{', '.join(one['slug'] for one in profiles)}."
        raise _refused(spawner, text, "profile")
    if not chosen:
        text = f"Profile {slug!r} is not for the groups of {printable(spawner.user.name)}."
        text += _may(policy, spawner, lambda one: one.profiles is None or slug in one.profiles.value)
        raise _refused(spawner, text, "profile")
    if (option := not_offered(chosen[0], options)) is not None:
        text = f"Of {option!r} of profile {chosen[0]['slug']!r}, this choice is not for the groups of "
        raise _refused(spawner, f"{text}{printable(spawner.user.name)}. Choose another one.", "profile")


def _counts(spawner: Any) -> bool:
    """Whether a server runs, ends, or starts and was let through."""
    return bool(spawner.active and (spawner.pending != "spawn" or spawner.casa_server.admitted))


def _beyond(spawner: HubSpawner, policy: Policy, over: Exceeded) -> str:
    limit: Said[Decimal] = over.limit
    what = "This would be server" if over.name == "servers" else "This server asks for"
    amount = f"{over.asked}" if over.name == "servers" else shown(over.name, over.asked)
    text = f"{what} {amount}, and the most for the groups of {printable(spawner.user.name)} is "
    text += f"{shown(over.name, limit.value)} (limit {over.name} of rule {limit.rule})."

    def enough(entitlement: Entitlement) -> bool:
        other = entitlement.limits.get(over.name)
        return other is None or other.value >= over.asked

    return text + _may(policy, spawner, enough)


def _may(policy: Policy, spawner: HubSpawner, allows: Callable[[Entitlement], bool]) -> str:
    groups = policy.table.groups_with(list(names_of(spawner.user)), allows)
    return f" Members of {' or '.join(groups)} may." if groups else ""


def _refused(spawner: HubSpawner, text: str, reason: str) -> RefusedStart:
    user = spawner.user
    tell(user.settings, Event(Action.REFUSED, user.name, server=spawner.name, reason=text))
    return RefusedStart(text, reason)
