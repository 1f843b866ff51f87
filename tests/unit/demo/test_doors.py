"""Doors into another network; here both sides are this one, for what passes is the same."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from casa_hub.demo.doors import Address, Doors
from casa_hub.errors import CasaError
from casa_hub.loopback import free_port

LOOPBACK = "127.0.0.1"


@pytest.fixture
def inside() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(60)
        yield listening


def leading_to(listening: socket.socket) -> tuple[Address, Doors]:
    door = (LOOPBACK, free_port(listening))
    return door, Doors({door: listening.getsockname()[:2]}, contextlib.nullcontext)


def test_both_sides_say_all_they_have_to_say(inside: socket.socket) -> None:
    door, doors = leading_to(inside)
    much = bytes(range(256)) * 10_000
    with doors, socket.create_connection(door, 60) as outer, inside.accept()[0] as inner:
        sending = threading.Thread(target=lambda: (outer.sendall(much), outer.shutdown(socket.SHUT_WR)))
        sending.start()
        assert b"".join(iter(lambda: inner.recv(1 << 16), b"")) == much
        sending.join()
        inner.sendall(b"and after its end")  # as of HTTP/1.0
        inner.close()
        assert b"".join(iter(lambda: outer.recv(1 << 16), b"")) == b"and after its end"


def test_where_nobody_answers_the_door_shuts(inside: socket.socket) -> None:
    door, doors = leading_to(inside)
    inside.close()
    with doors, socket.create_connection(door, 60) as outer:
        assert outer.recv(1) == b""


def test_at_the_end_who_is_inside_has_to_go(inside: socket.socket) -> None:
    door, doors = leading_to(inside)
    with doors:
        outer, inner = socket.create_connection(door, 60), inside.accept()[0]
    with outer, inner:
        assert outer.recv(1) == inner.recv(1) == b""
    with socket.create_server(door):
        pass


def test_the_thread_that_leads_is_inside(inside: socket.socket) -> None:
    where = []

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        where.append(threading.current_thread())
        yield
        where.append(threading.current_thread())

    with Doors({}, enter):
        pass
    assert len(set(where)) == 1
    assert where[0] is not threading.current_thread()


def test_a_taken_address_is_named_and_no_other_is_kept(inside: socket.socket) -> None:
    free, taken = (LOOPBACK, free_port(inside)), inside.getsockname()[:2]
    with pytest.raises(CasaError, match=f"{taken[1]}.*already in use.*End the program that uses it"):
        Doors({free: taken, taken: taken}, contextlib.nullcontext)
    with socket.create_server(free):
        pass
