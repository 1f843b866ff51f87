"""Pure: which of KubeSpawner's profiles somebody may choose.

By the rules, and by the key ``allowed_groups`` of 2i2c's hubs, on a profile, on a choice of an option and on its
``unlisted_choice``: a list of groups, one of which is enough. Who may choose has to be let in by both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from casa_hub.policy.table import Entitlement

#: A profile, an option or a choice, as KubeSpawner's setting has it.
Part = dict[str, Any]


def choosable(profiles: list[Part], entitlement: Entitlement, groups: Collection[str]) -> list[Part]:
    """The profiles that somebody may choose, with the choices that they may make; the given ones are changed.

    `profiles`: as `KubeSpawner._get_initialized_profile_list` makes them, a copy with slugs and defaults.
    """
    listed = None if entitlement.profiles is None else entitlement.profiles.value
    found = [
        profile
        for profile in profiles
        if (listed is None or profile["slug"] in listed) and _lets_in(profile, groups) and _narrow(profile, groups)
    ]
    if found and not any(profile.get("default") for profile in found):
        found[0]["default"] = True
    return found


def not_offered(profile: Part, options: Mapping[str, Any]) -> str | None:
    """The option of which somebody has chosen what isn't there to choose; None: there is none.

    `profile`: of `choosable`; `options`: `Spawner.user_options`.
    """
    for name, option in profile.get("profile_options", {}).items():
        other = options.get(f"{name}--unlisted-choice")
        if other:
            if not option.get("unlisted_choice", {}).get("enabled"):
                return str(name)
        elif (choice := options.get(name)) and choice not in list(option.get("choices", {})):
            return str(name)
    return None


def _narrow(profile: Part, groups: Collection[str]) -> bool:
    """Take away what somebody may not choose. Whether each option still has something to choose."""
    for option in profile.get("profile_options", {}).values():
        other = option.get("unlisted_choice", {})
        if not _lets_in(other, groups):
            other["enabled"] = False
        if "choices" not in option:
            continue
        choices = {name: choice for name, choice in option["choices"].items() if _lets_in(choice, groups)}
        option["choices"] = choices
        if choices and not any(choice.get("default") for choice in choices.values()):
            next(iter(choices.values()))["default"] = True
        if not choices and not other.get("enabled"):
            return False
    return True


def _lets_in(part: Mapping[str, Any], groups: Collection[str]) -> bool:
    allowed = part.get("allowed_groups")
    return allowed is None or not set(groups).isdisjoint(allowed)
