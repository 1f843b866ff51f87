"""Lets a test call something in the hub's process: an authenticator that does what is written into a file."""

from __future__ import annotations

from tests.support.hub import Hub
from tests.support.waiting import until

#: Configuration, after that of `tests.support.with_token`. ``renew`` of all servers, or what a user's only server does.
CALLED = """
import asyncio
from casa_hub.hub import CasaHub

async def obey(app, name, user):
    if name == "renew":
        print("REPORT", await CasaHub.of(app).renewals.renew_now(), flush=True)
        return
    [found] = [one for one in app.users.values() if one.name == user]
    [spawner] = found.spawners.values()
    if name == "withdraw":
        await spawner.casa_server.withdraw()
    else:
        await spawner.casa_server.renew([name], force=True)

async def follow(app):
    calls = Path("calls")
    while True:
        await asyncio.sleep(0.05)
        if calls.exists():
            name, user = calls.read_text().split()
            calls.unlink()
            await obey(app, name, user)
            Path("called").touch()

class Called(WithToken):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.parent.parent is None:
            self.following = asyncio.get_running_loop().create_task(follow(self.parent))

c.JupyterHub.authenticator_class = Called
"""


def call(hub: Hub, name: str, user: str) -> None:
    """Have it done: ``renew`` (all servers, as an operator does), ``withdraw``, or a credential's name to renew it."""
    done = hub.directory / "called"
    (hub.directory / "calls.new").write_text(f"{name} {user}")
    (hub.directory / "calls.new").replace(hub.directory / "calls")
    until(done.exists, f"{name} was called")
    done.unlink()
