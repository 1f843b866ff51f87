"""Writes docs/reference.md from the traits: `python docs/make_reference.py`. A test fails when it isn't current."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

import yaml
from traitlets import Bool, Enum, Float, Int, List, TraitType
from traitlets.config import Configurable

from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.identity.settings import ALWAYS_ON, SUPERSEDED
from casa_hub.local_spawner import CasaLocalSpawner
from casa_hub.spawner import CasaSpawner
from casa_hub.startup import sections

PAGE = Path(__file__).with_name("reference.md")
WRITE = "python docs/make_reference.py"

_HEAD = f"""\
# Configuration reference

<!-- Made by `{WRITE}` from the settings' own help: change it there. -->

Each section is one of `hub.config` in the values of Zero to JupyterHub, or `c.SECTION` in `jupyterhub_config.py`. All
times are in seconds. `casa-hub settings SECTION` prints the same on a terminal, also for credentials of other packages.
A setting or a section that there isn't is refused at the hub's start, with the nearest name that there is.
"""

_INHERITED = """\
From JupyterHub and oauthenticator it has `client_id`, `client_secret`, `oauth_callback_url`, `scope`, `username_claim`,
`allow_all`, `allowed_users`, `admin_users`, `blocked_users`, `login_service` and others, described there.
"""

_NOTHING_OF_ITS_OWN = {
    "Bearer": "It delivers the token that log-in and refresh keep fresh; there is nothing to set.",
    "CasaSpawner": "KubeSpawner with all its settings, in the section `KubeSpawner`, and with the next two.",
}


def page() -> str:
    parts = [_HEAD]
    for cls in sections(CasaOAuthenticator, CasaSpawner, CasaLocalSpawner):
        if not cls.__module__.startswith("casa_hub."):
            continue  # another package's credential that is installed here
        parts.append(f"## {cls.__name__}\n")
        traits = cls.class_own_traits(config=True)
        parts.append(_NOTHING_OF_ITS_OWN[cls.__name__] + "\n" if not traits else "")
        if cls is CasaOAuthenticator:
            parts.append(_INHERITED)
        parts += [_setting(cls, trait) for _, trait in sorted(traits.items())]
        if cls is CasaOAuthenticator:
            parts.append(_refused())
    return "\n".join(part for part in parts if part)


def _setting(cls: type[Configurable], trait: TraitType[Any, Any]) -> str:
    value = trait.default()
    default = "no default" if value is None or value in ("", [], {}, set()) else f"default `{_yaml(value)}`"
    return f"### {cls.__name__}.{trait.name}\n\n*{_kind(trait)}; {default}*\n\n{_text(trait.help)}\n"


def _kind(trait: TraitType[Any, Any]) -> str:
    if isinstance(trait, Enum):
        return f"one of {', '.join(f'`{value}`' for value in trait.values)}"
    low, high = getattr(trait, "min", None), getattr(trait, "max", None)
    within = " to ".join(f"{end:g}" for end in (low, high) if isinstance(end, (int, float)) and abs(end) != inf)
    names = {Bool: "`true` or `false`", Int: "whole number", Float: "number", List: "list"}
    plain = next((text for kind, text in names.items() if isinstance(trait, kind)), type(trait).__name__.lower())
    text = {"unicode": "text", "set": "list", "dict": "mapping"}.get(plain, plain)
    if not within:
        return text
    return f"{text}, {within}" if " to " in within else f"{text}, at least {within}"


def _yaml(value: Any) -> str:
    plain = sorted(value) if isinstance(value, (set, frozenset)) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("\n...\n").strip()


def _text(help_: str) -> str:
    """Paragraphs as they are; traits quote with one or two backticks."""
    return re.sub("``(.+?)``", r"`\1`", inspect.cleandoc(help_))


def _refused() -> str:
    def rows(settings: Iterable[tuple[str, str]]) -> str:
        return "\n".join(f"| `{name}` | {text} |" for name, text in sorted(settings))

    return f"""\
### What oauthenticator has and this doesn't take

Set to anything, these end the hub's start:

| setting | instead |
| --- | --- |
{rows(SUPERSEDED.items())}

These are always on; setting them to `false` ends the hub's start:

| setting | why |
| --- | --- |
{rows(ALWAYS_ON.items())}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
