"""Host names below ``*.localhost`` for a facility at a loopback address, as wildcard DNS gives them to a real one.

Where the machine resolves such names itself (systemd-resolved, nss-myhostname) nothing is needed. Plain Debian does
not: there programs get `nss_wrapper` preloaded, which answers from a hosts file and leaves all else to the system.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping
from pathlib import Path

from casa_hub.delivery.layout import replace_file
from casa_hub.demo.packages import Progress, nss_wrapper, silent
from casa_hub.demo.processes import free_loopback_address

_EXAMPLE = "casa-hub-example.dask.localhost"


def resolves(name: str, address: str | None = None) -> bool:
    """Whether this machine resolves `name` to `address` or, where None, to any loopback address."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)}
    except OSError:
        return False
    return address in found if address else all(one.startswith("127.") for one in found)


def facility_address(*ports: int) -> str:
    """Where a facility should listen: at the address that ``*.localhost`` has here if its ports are free there.

    Else at an address of its own.

    Raises:
        OSError: the ports are free nowhere.
    """
    if resolves(_EXAMPLE, "127.0.0.1"):
        try:
            return free_loopback_address(*ports, address="127.0.0.1")
        except OSError:
            pass
    return free_loopback_address(*ports)


class HostNames:
    """Makes programs that are started with `environment` resolve the names of a hosts file.

    A program sees the file as it was at its first look-up; see `replace`.
    """

    def __init__(self, hosts_file: Path, address: str | None = None) -> None:
        """Args:
        hosts_file: where the names will be, in the format of hosts(5).
        address: what names will stand for there, if known: spares the wrapper where the machine agrees anyway.
        """
        self.hosts_file = hosts_file
        self._address = address
        self._environment: dict[str, str] = {}

    def prepare(self, progress: Progress = silent) -> None:
        """Get what is needed.

        Raises:
            Unavailable: the machine does not resolve the names and nss_wrapper can't be had.
        """
        if self._address is None or not resolves(_EXAMPLE, self._address):
            library = nss_wrapper(progress)
            self._environment = {"LD_PRELOAD": str(library), "NSS_WRAPPER_HOSTS": str(self.hosts_file)}

    @property
    def environment(self) -> Mapping[str, str]:
        """For each program that is to see the names; empty where none is needed, and before `prepare`."""
        return self._environment

    def replace(self, hosts: Mapping[str, str]) -> None:
        """Write the file anew, at once: host name -> address. To programs that run the old one stays as it was.

        nss_wrapper (up to 1.1.16 at least) reads the file again, without a lock, when the one it has open was changed
        or has no name any more, and programs that look up names in several threads crash or hang on that. So old
        versions keep a name: ``hosts.1``, ``hosts.2`` ...
        """
        if self.hosts_file.exists():
            versions = (self.hosts_file.with_name(f"{self.hosts_file.name}.{n}") for n in itertools.count(1))
            next(version for version in versions if not version.exists()).hardlink_to(self.hosts_file)
        lines = "".join(f"{address} {name}\n" for name, address in hosts.items())
        replace_file(self.hosts_file, lines.encode(), 0o644)
