"""A network of the test's own, in which any address may be one of a pod's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from casa_hub.demo.packages import Unavailable
from tests.support.kubernetes.build import system

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_network(pods: str) -> Iterator[None]:
    """The calling thread, and what it starts, is in an empty network where each address in `pods` is this machine's.

    The API server takes no loopback address for an endpoint of a Service, and no other one is a test's to use: so none
    of the machine's networks can be seen from in here, and nothing in here from them.

    Raises:
        Unavailable: it takes root, and iproute2 (fetched once).
    """
    ip = system() / "usr/sbin/ip"
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            why = os.strerror(ctypes.get_errno())
            raise Unavailable(
                "a network of the test's own", why, "Run as root, or below: unshare --map-root-user --net."
            )
        try:
            for command in ("link set lo up", f"route add local {pods} dev lo"):
                subprocess.run([ip, *command.split()], check=True)
            yield
        finally:
            if _libc.setns(before.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "can't get back into the machine's network")
