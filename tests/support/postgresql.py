"""A real PostgreSQL server of Debian's package, with a database for whoever asks."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

from casa_hub.demo.packages import Progress, Unavailable, silent, unpack
from casa_hub.demo.processes import Process, minimal_environment
from casa_hub.loopback import free_port

#: The release of PostgreSQL that Debian trixie has.
PACKAGE = "postgresql-17"


class PostgreSQL:
    """One server on loopback; a context manager. It may be stopped and started again, at the same port.

    PostgreSQL refuses to run as root. Root starts it as another user.
    """

    def __init__(self, directory: Path, *, progress: Progress = silent) -> None:
        """Args:
        directory: for its data, its log and its socket; made if need be. Whoever runs the server must get there.
        progress: is told what takes long.

        Raises:
            Unavailable: the programs, or another user, can't be had on this machine.
        """
        programs = unpack([PACKAGE], progress=progress)
        self._bin = next((programs.root / "usr/lib/postgresql").glob("*/bin"), None)
        if self._bin is None:
            raise Unavailable(PACKAGE, "has no programs", f"Remove {programs.root} and try again.")
        self.port = free_port(self)
        self._directory = directory
        self._data = directory / "data"
        self._scratch = Path(tempfile.mkdtemp(prefix="casa-pg-"))  # a socket's path is at most 107 bytes long
        self._owner = _other_user() if os.geteuid() == 0 else None
        directory.mkdir(parents=True, exist_ok=True)
        for path in (directory, self._scratch):
            if self._owner is not None:
                os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        self._process: Process | None = None

    def _command(self, program: str, *options: str | Path) -> list[str | Path]:
        assert self._bin is not None
        command: list[str | Path] = [self._bin / program, *options]
        if self._owner is None:
            return command
        ids = ["--reuid", str(self._owner.pw_uid), "--regid", str(self._owner.pw_gid), "--clear-groups"]
        return ["setpriv", *ids, *command]

    def start(self) -> Self:
        """Start and wait until it takes connections."""
        environment = minimal_environment(LC_ALL="C.UTF-8", HOME=str(self._directory))
        if not self._data.exists():
            options = ["--pgdata", self._data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8"]
            options += ["--locale", "C.UTF-8", "--no-sync"]
            made = subprocess.run(
                self._command("initdb", *options), env=environment, capture_output=True, text=True, cwd=self._directory
            )
            if made.returncode:
                raise Unavailable("PostgreSQL", f"initdb failed: {made.stderr[-500:]}", "Remove the cache, try again.")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._scratch),
            "fsync": "off",
        }
        options = ["-D", self._data, *(f"--{name}={value}" for name, value in settings.items())]
        self._process = Process(
            "PostgreSQL",
            self._command("postgres", *options),
            log=self._directory / "log",
            env=environment,
            cwd=self._directory,
            stop_signal=signal.SIGINT,  # "fast": sessions are ended, transactions rolled back
            grace=30,
        )
        self._process.start()
        self._process.wait_until("connections", self._answers)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def restart(self) -> None:
        """As an operator or a fail-over does: every connection is lost."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        try:
            with self.connection(timeout=1):
                return True
        except psycopg.OperationalError:
            return False

    def connection(self, database: str = "postgres", *, timeout: int = 30) -> psycopg.Connection:
        """For the test's own look into a database; each statement is committed."""
        address = f"host=127.0.0.1 port={self.port} user=postgres dbname={database} connect_timeout={timeout}"
        return psycopg.connect(address, autocommit=True)

    def make_database(self) -> Database:
        """An empty one."""
        name = f"hub_{secrets.token_hex(6)}"
        with self.connection() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return Database(self, name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)


class Database:
    """One database of a server."""

    def __init__(self, server: PostgreSQL, name: str) -> None:
        self.server = server
        self.name = name

    def url(self, driver: str = "") -> str:
        """As `JupyterHub.db_url` has it; `driver` as SQLAlchemy names it, or "" for SQLAlchemy's choice."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://postgres@127.0.0.1:{self.server.port}/{self.name}"

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.server.connection(self.name) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]

    def end_sessions(self) -> int:
        """End every other session of this database, as a time-out for idle transactions does. Returns how many."""
        ended = self.rows(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return len(ended)


def _other_user() -> pwd.struct_passwd:
    """Somebody without rights."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("PostgreSQL", "it refuses to run as root, and there is no user nobody", "Add one.")
