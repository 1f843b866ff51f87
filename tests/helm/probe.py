"""Run in the hub's pod: JupyterHub as the chart starts it, up to where it would begin to serve; then tell what it is.

    python probe.py FILE

writes a JSON object: `settings`, what the objects that JupyterHub and this package made have for each setting of the
configuration; `pod`, a user's pod with its credentials, as the API server would be given it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from jupyterhub.app import JupyterHub
from jupyterhub.orm import User
from kubernetes_asyncio.client import ApiClient
from traitlets.config import Config

from casa_hub.delivery.traefik import TraefikRoutes

CONFIG = "/usr/local/etc/jupyterhub/jupyterhub_config.py"
USER = "ada"


async def main() -> dict[str, Any]:
    app = JupyterHub.instance()
    await app.initialize(["--config", CONFIG])
    person = User(name=USER)
    app.db.add(person)
    app.db.commit()
    spawner = app.users[person].spawners[""]
    return {"settings": settings(app, spawner), "pod": await pod(spawner)}


def settings(app: JupyterHub, spawner: Any) -> dict[str, dict[str, Any]]:
    """Of each section in the configuration, the values that a real object has."""
    facility, delivery = spawner.casa_server.facility, spawner.casa_server.delivery
    objects = [app, app.authenticator, spawner, facility, delivery, TraefikRoutes(parent=delivery)]
    objects += facility.minters.values()
    found: dict[str, dict[str, Any]] = {}
    for section, values in app.config.items():
        for one in objects:
            if section in {cls.__name__ for cls in type(one).mro()} and isinstance(values, Config):
                traits = [key for key in values if one.has_trait(key) and key != "tornado_settings"]
                found[section] = {key: plain(getattr(one, key)) for key in traits}
    return found


def plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__name__}"
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return repr(value)


async def pod(spawner: Any) -> Any:
    """As `CasaSpawner` makes it: credentials, KubeSpawner's pod, and our parts of it."""
    await spawner.casa_server.mint()
    made = await spawner.get_pod_manifest()
    if spawner.modify_pod_hook:
        made = await spawner.modify_pod_hook(spawner, made)
    spawner.casa_server.dress(made)
    async with ApiClient() as client:
        return client.sanitize_for_serialization(made)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())), encoding="utf-8")
