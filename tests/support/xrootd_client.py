"""An XRootD client that lives long: one process that reads on while the file with its macaroon is replaced.

Run as a program: ``xrootd_client.py END CA WAY... < /dev/null``. Environment as a server's: ``XCACHE_HOST``,
``XCACHE_PORT``, ``BEARER_TOKEN_FILE``. Reads the files ``/store/long/0`` to ``49`` in turn, each way another one, until
END (seconds since the epoch) and until it has done so ``AT_LEAST`` times, and prints how often and what was not read,
as JSON. Nothing is tried twice.

In turn, since an XCache can hang for ever on a file that is opened while it is being closed (XRootD 5.8, its issue
2561), which is none of a credential's doing.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

FILES = 50
#: Failures that are kept: the first ones.
_KEPT = 20


def path_of(number: int) -> str:
    return f"/store/long/{number % FILES}"


def content_of(number: int) -> bytes:
    return f"content of file {number % FILES}\n".encode()


class Reader:
    """The ways to read; each returns what was read, or why it was not."""

    def __init__(self, ca_file: str) -> None:
        import requests  # noqa: PLC0415 - the tests themselves need neither
        from XRootD import client  # noqa: PLC0415

        self._file = client.File
        self._token = Path(os.environ["BEARER_TOKEN_FILE"])
        self._where = f"{os.environ['XCACHE_HOST']}:{os.environ['XCACHE_PORT']}"
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = ca_file
        self._opened = None

    def authz(self, path: str) -> bytes | str:
        """As the XRootD client plug-in of the analysis images: the macaroon of now with each file that is opened."""
        return self._root(f"root://{self._where}/{path}?authz=Bearer%20{self._token.read_text()}")

    def named(self, path: str) -> bytes | str:
        """By ztn, with a user name that is another one for each macaroon, so that the client logs in anew."""
        since = f"{self._token.stat().st_mtime_ns:x}"
        return self._root(f"root://{since}@{self._where}/{path}")

    def ztn(self, path: str) -> bytes | str:
        """By ztn, as a program that knows nothing of macaroons."""
        return self._root(f"root://{self._where}/{path}")

    def https(self, path: str) -> bytes | str:
        """The macaroon of now in the header of each request, over one connection."""
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        answer = self._session.get(f"https://{self._where}{path}", headers=headers, timeout=30)
        return answer.content if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    def open(self, path: str) -> bytes | str:
        """What is opened once, by the first macaroon, is read on."""
        if self._opened is None:
            self._opened = self._file()
            status, _ = self._opened.open(f"root://{self._where}/{path_of(0)}")
            if not status.ok:
                return str(status.message)
        status, content = self._opened.read()
        if status.ok and content != content_of(0):
            return "not the content"
        return content_of(int(path.rpartition("/")[2])) if status.ok else str(status.message)

    def _root(self, url: str) -> bytes | str:
        with self._file() as file:
            status, _ = file.open(url)
            if not status.ok:
                return str(status.message)
            status, content = file.read()
        return bytes(content) if status.ok else str(status.message)


def main(end: float, ca_file: str, ways: list[str]) -> None:
    reader, begin = Reader(ca_file), time.time()
    counts, failures = dict.fromkeys(ways, 0), []
    for number in itertools.count():
        if time.time() > end and number >= int(os.environ.get("AT_LEAST", "0")):
            break
        for offset, way in enumerate(ways):
            read: Callable[[str], bytes | str] = getattr(reader, way)
            one = number + offset * FILES // len(ways)
            answer = read(path_of(one))
            if answer == content_of(one):
                counts[way] += 1
            elif len(failures) < _KEPT:
                failures.append([round(time.time() - begin, 2), way, str(answer)])
        time.sleep(float(os.environ.get("PAUSE", "0")))
    print(json.dumps({"read": counts, "failures": failures}))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
