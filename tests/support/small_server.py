"""A server for JupyterHub to start: it is there at once, because it imports almost nothing.

As ``jupyterhub.tests.mocksu`` it answers ``.../env`` with its environment, and any other path with the path.
"""

import contextlib
import json
import os
import socketserver
from urllib.parse import urlsplit


class Answer(socketserver.StreamRequestHandler):
    timeout = 60

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := self.rfile.readline()):
                return
            head += line
        body = self.answer(head.split(b" ", 2)[1].decode()).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def answer(self, target: str) -> str:
        """What it says to a request for this path and query."""
        path = target.partition("?")[0]
        return json.dumps(dict(os.environ)) if path.endswith("/env") else path


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is none of the hub's log."""


def serve(answer: type[Answer]) -> None:
    """Serve where the hub expects it, until the hub ends this process."""
    url = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    with contextlib.suppress(KeyboardInterrupt), Server((url.hostname or "", url.port or 0), answer) as server:
        server.serve_forever()


if __name__ == "__main__":
    serve(Answer)
