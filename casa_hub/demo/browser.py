"""A person's browser: it follows redirects, keeps cookies, presses buttons and runs the cells of a notebook."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from casa_hub.errors import CasaError

#: Seconds for one page or one cell.
TIMEOUT = 180


class Browser(requests.Session):
    """A browser of one person at one hub."""

    def __init__(self, hub: str) -> None:
        """Args:
        hub: public URL of the hub, without path.
        """
        super().__init__()
        self.hub = hub
        self.trust_env = False

    def page(self, path: str) -> requests.Response:
        return self.get(self.hub + path, timeout=TIMEOUT)

    def log_in(self, sub: str) -> requests.Response:
        """Log in through the consent page of oidc-provider-mock; returns the last page."""
        consent = self.page("/hub/oauth_login?next=%2Fhub%2Fhome")
        if "/oauth2/authorize" not in consent.url:
            return consent
        return self.post(consent.url, data={"sub": sub}, timeout=TIMEOUT)

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """An API request as a page makes it: with the cookie, and with the token against forged requests."""
        base = "/hub/" if path.startswith("/hub/") else "/".join(path.split("/")[:3]) + "/"
        # The cookie with the longest path: named servers have their own path below the user's.
        cookies = [c for c in self.cookies if c.name == "_xsrf" and path.startswith(c.path)]
        cookies.sort(key=lambda cookie: len(cookie.path))
        headers = {"X-XSRFToken": str(cookies[-1].value)} if cookies else {}
        headers["Referer"] = self.hub + base
        return self.request(method, self.hub + path, headers=headers, timeout=TIMEOUT, **options)

    def submit(self, page: str, action: str, **fields: str) -> requests.Response:
        """Submit a form of a page, with the token against forged requests that is in it."""
        found = re.search(r'name="_xsrf" value="([^"]+)"', self.page(page).text)
        if found is None:
            raise CasaError(page, "has no form", "")
        return self.post(self.hub + action, data={"_xsrf": found[1], **fields}, timeout=TIMEOUT)

    def user(self) -> dict[str, Any]:
        """The hub's model of the user who is logged in."""
        answer = self.call("GET", "/hub/api/user")
        answer.raise_for_status()
        model: dict[str, Any] = answer.json()
        return model

    def spawn(self, user: str) -> list[str]:
        """Start the default server and wait until it is ready; returns the sentences of its progress page.

        Raises:
            CasaError: it didn't start, with the reason that a person would read.
        """
        with ThreadPoolExecutor(1) as other:
            # In another thread, because the hub answers only when the server is ready or slow.
            started = other.submit(self.call, "POST", f"/hub/api/users/{quote(user)}/server")
            messages: list[str] = []
            while not messages:
                messages = self._progress(user)
                if not messages and started.done() and started.result().status_code not in (201, 202):
                    answer = started.result()
                    raise CasaError(f"server of {user}", f"the hub answered {answer.status_code}", answer.text[:500])
        return messages

    def _progress(self, user: str) -> list[str]:
        """Sentences of the progress page until the server is ready; empty if no server is starting."""
        messages: list[str] = []
        url = f"{self.hub}/hub/api/users/{quote(user)}/server/progress"
        with self.get(url, stream=True, timeout=TIMEOUT) as events:
            if events.status_code != requests.codes.ok:
                return []
            for line in events.iter_lines():
                if line.startswith(b"data:"):
                    event = json.loads(line.removeprefix(b"data:"))
                    messages.append(event.get("message", ""))
                    if event.get("failed"):
                        raise CasaError(f"server of {user}", "did not start", "; ".join(messages))
                    if event.get("ready"):
                        return messages
        raise CasaError(f"server of {user}", "its progress ended without an outcome", "; ".join(messages))

    def stop(self, user: str) -> None:
        """Stop the default server; returns when the hub says that it is stopped."""
        answer = self.call("DELETE", f"/hub/api/users/{quote(user)}/server")
        answer.raise_for_status()
        while self.user()["servers"]:
            pass


class Kernel:
    """A Python kernel inside a user's server, used as JupyterLab uses it."""

    def __init__(self, browser: Browser, user: str) -> None:
        self._browser = browser
        self._base = f"/user/{quote(user)}"
        browser.page(self._base + "/lab")  # logs in at the server, by the hub
        answer = browser.call("POST", self._base + "/api/kernels", json={"name": "python3"})
        answer.raise_for_status()
        self._path = f"{self._base}/api/kernels/{answer.json()['id']}"

    def run(self, source: str) -> str:
        """Run one cell and return what it printed.

        Raises:
            CasaError: the cell raised an exception.
        """
        return asyncio.run(asyncio.wait_for(self._run(source), TIMEOUT))

    async def _run(self, source: str) -> str:
        url = self._browser.hub.replace("http", "ws", 1) + self._path + "/channels"
        host = urlsplit(self._browser.hub).hostname or ""
        cookies = "; ".join(
            f"{cookie.name}={cookie.value}"
            for cookie in self._browser.cookies
            if cookie.domain == host and self._path.startswith(cookie.path)
        )
        # The server answers when the kernel has started.
        connection = await websocket_connect(HTTPRequest(url, headers={"Cookie": cookies}, request_timeout=TIMEOUT))
        try:
            identity = uuid.uuid4().hex
            content = {"code": source, "allow_stdin": False, "stop_on_error": False}
            header = {
                "msg_id": identity,
                "msg_type": "execute_request",
                "session": identity,
                "username": "",
                "version": "5.3",
            }
            await connection.write_message(
                json.dumps(
                    {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
                )
            )
            return await _outcome(connection, identity)
        finally:
            connection.close()


async def _outcome(connection: Any, identity: str) -> str:
    """The output of a cell, after both its reply and the idle state have arrived."""
    printed: list[str] = []
    waiting = {"execute_reply", "idle"}
    while waiting:
        text = await connection.read_message()
        if text is None:
            raise CasaError("the server", "closed the connection to the kernel", "Its log says why.")
        message = json.loads(text)
        if message["parent_header"].get("msg_id") != identity:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream" and content["name"] == "stdout":
            printed.append(content["text"])
        elif kind == "error":
            where = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(content["traceback"]))[-800:]
            raise CasaError("the cell", f"{content['ename']}: {content['evalue'][:500]}", where)
        elif kind == "status" and content["execution_state"] == "idle":
            waiting.discard("idle")
        elif kind == "execute_reply" and content["status"] != "ok":
            raise CasaError("the cell", f"ended with status {content['status']}", "")
        waiting.discard(kind)
    return "".join(printed)
