"""What an operator asks about the servers that run: is anything of them unknown, or made with an old secret?"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from casa_hub.errors import DeliveryError
from casa_hub.facility import Facility
from casa_hub.keeper.kept import Kept, running

#: Servers that are asked at the same time, if they must be: each may be a request to Kubernetes.
_AT_ONCE = 10


@dataclass(slots=True)
class Survey:
    """What was found; servers as `shown`."""

    #: Servers that were started without this package, or by a later version of it: nothing of them is renewed.
    unkept: list[str] = field(default_factory=list)
    #: Server -> why nobody can say now.
    unsure: dict[str, str] = field(default_factory=dict)
    #: Id of a secret in `Dask.secret_file` (`casa_hub.credentials.dask.Secret`) -> servers that were started with it.
    dask_secrets: Counter[str] = field(default_factory=Counter)


def shown(username: str, name: str) -> str:
    """A server, for people: ``alice`` or ``alice/name``."""
    return f"{username}/{name}" if name else username


async def survey(app: Any, facility: Facility) -> Survey:
    """Look at all servers of the hub that run."""
    result = Survey()
    room = asyncio.Semaphore(_AT_ONCE)

    async def look(server: str, kept: Kept) -> None:
        # The secret is that of the start, so nobody has to be asked; but for a credential that came later than that.
        holding = kept.first_holding()
        if holding is None or ("dask" in facility.minters and "dask" not in holding.record["credentials"]):
            try:
                async with room:
                    holding = await kept.holding()
            except DeliveryError as error:
                result.unsure[server] = str(error)
                return
        if holding is None:
            result.unkept.append(server)
            return
        secret = holding.record["credentials"].get("dask", {}).get("state", {}).get("secret")
        if secret is not None:
            result.dask_secrets[secret] += 1

    looks = []
    for user, spawner, kept in running(app):
        server = shown(user.name, spawner.name)
        if kept is None or kept.running_start == "":
            result.unkept.append(server)
        elif kept.running_start is None:
            result.unsure[server] = "it can't be seen now, or is about to end."
        else:
            looks.append(look(server, kept))
    await asyncio.gather(*looks)
    result.unkept.sort()
    return result
