"""For operators: which running servers have unknown credentials, and which Dask secret each was started with."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from casa_hub.errors import DeliveryError
from casa_hub.facility import Facility
from casa_hub.jupyterhub import HubApp
from casa_hub.record import WITHOUT_US, AnyRecord, Unreadable
from casa_hub.servers.renewals import Held
from casa_hub.servers.running import RunningServer, running_servers, shown

#: Servers whose newest record is read at the same time: each may be a request to Kubernetes.
_AT_ONCE = 10

_UNSEEN = "it can't be seen now, or is about to end."


@dataclass(slots=True)
class Survey:
    """The result. Servers are named as by `shown`."""

    #: Server without any renewal -> why, without a full stop.
    unkept: dict[str, str] = field(default_factory=dict)
    #: Server -> why its credentials are not known now.
    unsure: dict[str, str] = field(default_factory=dict)
    #: Id of a secret in `Dask.secret_file` (`casa_hub.credentials.dask.Secret`) -> servers that were started with it.
    dask_secrets: Counter[str] = field(default_factory=Counter)

    def note_known(self, server: str, running: RunningServer | None, unkept: str, held: Iterable[Held]) -> None:
        """Note a running server by what this process knows of it, for those who can't wait for `survey`.

        `unkept`, `held`: of `Renewals`.
        """
        if running is None or running.running_start == "":
            self.unkept[server] = WITHOUT_US
        elif running.running_start is None:
            self.unsure[server] = _UNSEEN
        elif unkept:
            self.unkept[server] = unkept
        self.dask_secrets.update(one.secret for one in held if one.secret)


async def survey(app: HubApp, facility: Facility) -> Survey:
    """Look at all running servers of the hub."""
    result = Survey()
    room = asyncio.Semaphore(_AT_ONCE)

    async def look(server: str, running: RunningServer) -> None:
        # A server keeps the Dask secret of its start, which is known without a request, unless Dask was missing then.
        holding = running.known_holding()
        if holding is None or _may_say_more(holding.record, facility):
            try:
                async with room:
                    holding = await running.holding()
            except DeliveryError as error:
                result.unsure[server] = str(error)
                return
        if holding is None:
            result.unsure[server] = _UNSEEN
        elif isinstance(holding.record, Unreadable):
            result.unkept[server] = holding.record.why
        elif (dask := holding.record.credentials.get("dask")) is not None and "secret" in dask.state:
            result.dask_secrets[dask.state["secret"]] += 1

    looks = []
    for user, spawner, running in running_servers(app):
        server = shown(user.name, spawner.name, running.server.username if running is not None else "")
        if running is None or running.running_start == "":
            result.unkept[server] = WITHOUT_US
        elif running.running_start is None:
            result.unsure[server] = _UNSEEN
        else:
            looks.append(look(server, running))
    await asyncio.gather(*looks)
    return result


def _may_say_more(at_start: AnyRecord, facility: Facility) -> bool:
    """Whether the newest record may have what the start's record lacks."""
    return isinstance(at_start, Unreadable) or ("dask" in facility.minters and "dask" not in at_start.credentials)
