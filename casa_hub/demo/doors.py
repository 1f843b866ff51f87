"""TCP ports of this machine ("doors") that lead to addresses in a network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Self

from casa_hub.errors import CasaError

#: A host's address (not a name) and a port.
Address = tuple[str, int]


class Doors:
    """Open ports in the network of the calling thread. A context manager; at its end ports and connections close."""

    def __init__(self, doors: Mapping[Address, Address], inside: Callable[[], AbstractContextManager[None]]) -> None:
        """Args:
        doors: address here -> address in the namespace.
        inside: a context that moves the calling thread into the namespace.

        Raises:
            CasaError: an address can't be used.
        """
        self._inside = inside
        self._listening: dict[socket.socket, Address] = {}
        self._loop, self._end = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="doors", daemon=True)
        for (host, port), there in doors.items():
            try:
                self._listening[socket.create_server((host, port))] = there
            except OSError as error:
                for listening in self._listening:
                    listening.close()
                remedy = "End the program that uses it."
                raise CasaError(f"{host}:{port}", f"can't be used ({error.strerror})", remedy) from error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        # A socket belongs to the network in which it was made: the listening sockets outside, all new ones inside.
        with self._inside():
            self._loop.run_until_complete(self._serve())
            self._loop.close()

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for listening, there in self._listening.items():
                server = await asyncio.start_server(partial(_lead, there), sock=listening)
                stack.callback(server.close)
            await self._end.wait()
        inside = asyncio.all_tasks() - {asyncio.current_task()}
        for task in inside:
            task.cancel()
        await asyncio.gather(*inside, return_exceptions=True)


async def _lead(there: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # CancelledError is suppressed, because Python 3.11 logs an error for a connection whose task was cancelled.
    with contextlib.closing(writer.transport), contextlib.suppress(OSError, asyncio.CancelledError):
        there_reader, there_writer = await asyncio.open_connection(*there)
        with contextlib.closing(there_writer.transport):
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
