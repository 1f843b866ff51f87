"""A real Traefik, which routes ``tls://<server>.dask.localhost:8786`` to the server's scheduler by SNI."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from casa_hub.demo.packages import venv_program
from casa_hub.demo.processes import Process, minimal_environment

#: Ports to which Dask's clients and workers connect.
DASK_PORT = 8786
DASK_WORKER_PORT = 8788


class Traefik:
    """Traefik with the entry points `dask`, `daskworker` and, if wanted, `web`; a context manager."""

    def __init__(
        self,
        directory: Path,
        *,
        address: str,
        routes: Path | None = None,
        provider: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        web_port: int | None = None,
    ) -> None:
        """Args:
        directory: for its log; made if it doesn't exist.
        address: address of this machine at which it listens.
        routes: directory of the file provider, with a YAML file for each server; made if it doesn't exist.
        provider: options of another provider.
        environment: variables for that provider.
        web_port: port of the entry point `web`; None for no such entry point.
        """
        self.address = address
        self.routes = routes
        self.log = directory / "traefik.log"
        self.entry_points = {"dask": DASK_PORT, "daskworker": DASK_WORKER_PORT}
        if web_port is not None:
            self.entry_points["web"] = web_port
        directory.mkdir(parents=True, exist_ok=True)
        options = {
            "global.checkNewVersion": "false",
            "global.sendAnonymousUsage": "false",
            "log.level": "INFO",
            "log.noColor": "true",
            **(provider or {}),
            **{f"entryPoints.{name}.address": f"{address}:{port}" for name, port in self.entry_points.items()},
        }
        if routes is not None:
            routes.mkdir(parents=True, exist_ok=True)
            options |= {"providers.file.directory": str(routes), "providers.file.watch": "true"}
        self._process = Process(
            "Traefik",
            [venv_program("traefik"), *(f"--{name}={value}" for name, value in options.items())],
            log=self.log,
            env=minimal_environment(**(environment or {})),
            cwd=directory,
            grace=1,
        )

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self) -> Self:
        """Start and wait until all entry points listen.

        Raises:
            ProcessError: they don't listen in time.
        """
        self._process.start()
        try:
            self._process.wait_until("its ports", lambda: all(map(self._listens, self.entry_points.values())))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        self._process.stop()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listens(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address, port)) == 0
