"""The token that BEARER_TOKEN_FILE names reaches a server's Dask workers, and stays fresh there.

The hub delivers this text to servers as `dask_fresh_token.py`. Each Dask scheduler that starts there runs it, because
the environment names it as a preload (`casa_hub.credentials.dask`). The scheduler sends the token when it changes;
a new worker gets it before its first task. Images need nothing but distributed.

- The token travels by mutual TLS alone. To a cluster without it nothing is sent.
- Whoever may be a worker holds a certificate of this server, so could run programs in it and read the same file there.
- Only that one file is sent, of which jobs get a copy anyway when they start; and only if the hub has delivered it.
- Import nothing here that distributed hasn't imported already: Dask runs this text with `/tmp` in the import path.
"""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
from distributed import WorkerPlugin
from distributed.preloading import process_preloads
from tornado.ioloop import PeriodicCallback

NAME = "casa_hub-fresh-token"
VARIABLE = "BEARER_TOKEN_FILE"
#: Seconds between two looks at the file, and until a worker that could not be reached is tried again.
INTERVAL = 2
RETRY = 30

#: This text, for workers. The line in the environment that runs it sets the variable before.
source: str = globals().get("source", "")
logger = logging.getLogger("distributed.casa_hub")
_SITE_KEYS = ("preload", "preload-argv")
_site_preloads: list[Any] = []


async def dask_setup(scheduler: Any) -> None:
    sender = Sender(scheduler)
    await sender.look()
    watch = PeriodicCallback(sender.look, INTERVAL * 1000)
    scheduler.periodic_callbacks[NAME] = watch  # the scheduler stops it when it closes
    watch.start()
    # The variable that named this preload has hidden those of the site's configuration files.
    files = dask.config.collect(env={})
    names, argv = (dask.config.get(f"distributed.scheduler.{key}", [], config=files) for key in _SITE_KEYS)
    _site_preloads.extend(process_preloads(scheduler, names, argv))
    for preload in _site_preloads:
        await preload.start()


async def dask_teardown(scheduler: Any) -> None:  # noqa: ARG001
    for preload in reversed(_site_preloads):
        await preload.teardown()


class Sender:
    """At the scheduler: each worker gets the present token."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._content: bytes | None = None
        #: Worker -> when the present token is to be sent to it. A new one gets it when it registers, and again a look
        #: after the first that sees it, because the token may have changed in between.
        self._due: dict[Any, float] = {}
        self._silent = False

    async def look(self) -> None:
        path = os.environ.get(VARIABLE, "")
        content = _read(path) if _is_delivered(path) else None
        if content and not self._by_tls():
            content = None
        if content != self._content:
            self._content = content
            self._due = dict.fromkeys(self._due, 0)
            # What a worker is told when it registers.
            self._scheduler.worker_plugins.pop(NAME, None)
            if content:
                self._scheduler.worker_plugins[NAME] = self._plugin(path, content)
        if not content:
            return
        now = time.monotonic()
        workers = {address: state for address, state in self._scheduler.workers.items() if address.startswith("tls://")}
        self._due = {state: self._due.get(state, now + INTERVAL) for state in workers.values()}
        addresses = [address for address, state in workers.items() if self._due[state] <= now]
        if addresses:
            message = {"op": "plugin-add", "name": NAME, "plugin": self._scheduler.worker_plugins[NAME]}
            answers = await self._scheduler.broadcast(msg=message, workers=addresses, on_error="ignore")
            for address in addresses:
                self._due[workers[address]] = float("inf") if address in answers else now + RETRY

    def _by_tls(self) -> bool:
        listeners = self._scheduler.listeners
        if listeners and all(listener.contact_address.startswith("tls://") for listener in listeners):
            return True
        if not self._silent:
            self._silent = True
            logger.info(
                "Workers get no fresh %s: this scheduler takes connections without TLS. Start it with the certificates"
                " in $CERT_DIR, and with tls:// alone.",
                VARIABLE,
            )
        return False

    @staticmethod
    def _plugin(path: str, content: bytes) -> bytes:
        return pickle.dumps(FreshToken(Path(path).name, content))


class FreshToken(WorkerPlugin):
    """At a worker: writes the token where programs look for it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = NAME
        self._file = name
        self._content = content

    def __repr__(self) -> str:
        return f"<{NAME}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker has no such module, and perhaps another Python. So it gets the text and not the bytecode.
        names = {"__name__": "dask_fresh_token", "source": source, "file": self._file, "content": self._content}
        return eval, ("exec(source, globals()) or FreshToken(file, content)", names)

    def setup(self, worker: Any) -> None:
        content, self._content = self._content, b""
        try:
            put(content, self._file, worker.local_directory)
        except Exception as error:  # noqa: BLE001 - a worker ends if a plugin fails
            logger.warning("The fresh %s could not be written: %s", VARIABLE, type(error).__name__)


def put(content: bytes, name: str, local_directory: str) -> None:
    """Write the token to the file that this process's programs read, else to one in `local_directory`.

    Raises OSError.
    """
    path = os.environ.get(VARIABLE, "")
    if _is_delivered(path) or _is_condors(path) or _read(path) == content:
        return
    try:
        _replace(Path(path), content)
    except OSError:
        own = Path(local_directory, name)
        _replace(own, content)
        os.environ[VARIABLE] = str(own)


def _is_delivered(path: str) -> bool:
    """Whether a hub's delivery (or kubelet) keeps the file fresh: it is a link into a directory like ..2026_08_01."""
    return any(part.startswith("..") for part in Path(os.path.realpath(path)).parts)


def _is_condors(path: str) -> bool:
    """Whether HTCondor keeps it fresh: it is in the directory of a job's credentials."""
    directory = os.environ.get("_CONDOR_CREDS", "")
    return bool(directory) and Path(os.path.realpath(directory)) in Path(os.path.realpath(path)).parents


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _replace(path: Path, content: bytes) -> None:
    """In one step: readers find the old content or the new one. Mode 0600: XRootD ignores what others may read."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".casa_hub-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
