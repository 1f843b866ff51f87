"""Runs in the hub of `admin_page.py` (imported by its configuration), and as a program fills the hub's database.

Its servers are objects: `Never` is a spawner whose server is always up, and holds credentials that were minted for it.
"""

import asyncio
import gc
import json
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path

from jupyterhub import orm, roles
from jupyterhub.app import JupyterHub
from jupyterhub.crypto import encrypt
from jupyterhub.spawner import Spawner
from jupyterhub.utils import utcnow

from casa_hub.hub import CasaHub, Home
from casa_hub.identity.session import Session
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import Standing
from casa_hub.naming import Server

HELD = 0
#: Set where a request for the page is worked on.
OURS = ContextVar("ours")
collecting = {"since": 0.0, "seconds": 0.0}


class Never(Home, Spawner):
    """The spawner of a server that is nowhere, and always up."""

    casa_classes = ()
    _running = None

    @classmethod
    def make_delivery(cls, _hub):
        return None

    @classmethod
    def check_hub(cls, _hub):
        return []

    @classmethod
    def begin_hub(cls, _hub):
        pass

    @property
    def casa_server(self):
        from tests.support.running_server import RunningServer

        if self._running is None and self.ready:
            facility = CasaHub.of(JupyterHub.instance()).facility
            self._running = RunningServer(facility, Server("", self.user.name, self.name), f"{self.user.id:032x}")
        return self._running

    async def start(self):
        raise NotImplementedError

    async def poll(self):
        return None

    async def stop(self, now=False):
        pass


def on_collection(phase, _info):
    if phase == "start":
        collecting["since"] = time.thread_time()
    else:
        collecting["seconds"] += time.thread_time() - collecting["since"]


def measure():
    """Note what each request for the page takes."""
    from casa_hub.web.admin import AdminHandler

    gc.callbacks.append(on_collection)
    loop_thread = threading.get_ident()
    #: CPU of each turn of the loop in which the request was worked on; the first one is JupyterHub's own.
    seen = {"turns": []}
    inner = asyncio.events.Handle._run  # noqa: SLF001 - there is no other way

    def run(handle):
        if threading.get_ident() != loop_thread:
            return inner(handle)
        before, collected = time.thread_time(), collecting["seconds"]
        try:
            return inner(handle)
        finally:
            if OURS in (handle._context or ()):  # noqa: SLF001
                took = time.thread_time() - before - (collecting["seconds"] - collected)
                seen["turns"].append(took)

    asyncio.events.Handle._run = run  # noqa: SLF001
    prepare, on_finish = AdminHandler.prepare, AdminHandler.on_finish

    async def begin(self):
        OURS.set(True)
        seen.update(turns=[], began=time.perf_counter())
        await prepare(self)

    def end(self):
        on_finish(self)
        seconds = time.perf_counter() - seen["began"]

        def note():  # when the last turn is over
            first, *others = seen["turns"]
            line = {"seconds": seconds, "cpu": first + sum(others), "first": first, "longest": max(others)}
            with Path("measured").open("a") as file:
                file.write(json.dumps(line) + "\n")

        asyncio.get_running_loop().call_soon(note)

    AdminHandler.prepare, AdminHandler.on_finish = begin, end
    asyncio.get_event_loop().create_task(hold())


async def hold():
    """When it is asked for, everybody has been asked about, and the first are held back."""
    while not Path("hold").exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.1)
    hub = CasaHub.of(JupyterHub.instance())
    members = JupyterHub.instance().authenticator.members
    now = members.now()
    for number, user in enumerate(dict.values(JupyterHub.instance().users)):
        if user.name == "operator":
            continue
        member = members[user.name]
        out = number < HELD
        verdict, reason = (Verdict.NO, "This hub is for members of /cms/uscms.") if out else (Verdict.YES, "")
        member.standing = Standing(verdict, now, reason, now - 60, f"{number:016x}")
        member.held_since = now if out else None
    await hub.renewals._look_around()  # noqa: SLF001
    Path("hold").unlink()


async def fill(count, issuer, port):
    db = orm.new_session_factory("sqlite:///hub.sqlite")()
    now = time.time()
    for number in range(count):
        user = orm.User(name=f"user-{number:04}")
        db.add(user)
        session = Session(
            id=f"{number:016x}",
            issuer=issuer,
            sub=f"sub-{number}",
            access_token=f"access!{number}",
            refresh_token=f"refresh!{number}!",
            expires_at=now + 86400,
            obtained_at=now,
            scope=None,
            last_yes=now,
            claims={},
        )
        user.encrypted_auth_state = await encrypt(session.to_auth_state())
        db.flush()
        roles.assign_default_roles(db, entity=user)
        server = orm.Server(proto="http", ip="127.0.0.1", port=port, base_url=f"/user/{user.name}/")
        spawner = orm.Spawner(user=user, name="", server=server, started=utcnow(with_tz=False))
        db.add_all([server, spawner])
    db.commit()


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
