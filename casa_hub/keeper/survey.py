"""What an operator asks about the servers that run: is anything overdue, unknown, or made with an old secret?"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from casa_hub.errors import DeliveryError
from casa_hub.facility import Facility
from casa_hub.keeper.kept import Kept, running

#: Servers that are asked at the same time: each may be a request to Kubernetes.
_AT_ONCE = 10

#: Part of a credential's life after which its renewal, which comes at two thirds, has failed for some time.
_LATE = 0.8


@dataclass(slots=True)
class Survey:
    """What was found; servers as `shown`."""

    #: Server, credential and when that expires (ISO 8601), for each that should have been renewed by now.
    overdue: list[tuple[str, str, str]] = field(default_factory=list)
    #: Servers that were started without this package, or by another version of it: nothing of them is renewed.
    unkept: list[str] = field(default_factory=list)
    #: Server -> why nobody can say now.
    unsure: dict[str, str] = field(default_factory=dict)
    #: Id of a secret in `Dask.secret_file` (`casa_hub.credentials.dask.Secret`) -> servers that were started with it.
    dask_secrets: Counter[str] = field(default_factory=Counter)


def shown(username: str, name: str) -> str:
    """A server, for people: ``alice`` or ``alice/name``."""
    return f"{username}/{name}" if name else username


async def survey(app: Any, facility: Facility, now: datetime) -> Survey:
    """Look at all servers of the hub that run; it takes as long as the delivery takes to tell what they hold."""
    result = Survey()
    room = asyncio.Semaphore(_AT_ONCE)

    async def look(server: str, kept: Kept) -> None:
        async with room:
            try:
                holding = await kept.holding()
            except DeliveryError as error:
                result.unsure[server] = str(error)
                return
        if holding is None:
            result.unkept.append(server)
            return
        _read(result, server, holding.record, facility, now)

    looks = []
    for user, spawner, kept in running(app):
        server = shown(user.name, spawner.name)
        if kept is None or kept.running_start == "":
            result.unkept.append(server)
        elif kept.running_start is not None:  # else it is about to end
            looks.append(look(server, kept))
    await asyncio.gather(*looks)
    result.overdue.sort()
    result.unkept.sort()
    return result


def _read(result: Survey, server: str, record: Mapping[str, Any], facility: Facility, now: datetime) -> None:
    for name, entry in record["credentials"].items():
        if name == "dask" and "secret" in entry["state"]:
            result.dask_secrets[entry["state"]["secret"]] += 1
        if entry["expires_at"] is None:
            continue
        issued, expires = (datetime.fromisoformat(entry[key]) for key in ("issued_at", "expires_at"))
        minter = facility.minters.get(name)
        by_time = minter is not None and minter.renewal == "time"
        if now >= (issued + _LATE * max(expires - issued, timedelta()) if by_time else expires):
            result.overdue.append((server, name, entry["expires_at"]))
