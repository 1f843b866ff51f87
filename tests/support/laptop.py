"""A program on a laptop that logs in at a hub, as `casa-hub token` does, but for the port at which it listens."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

import requests

from casa_hub.testing.browser import Browser
from casa_hub.testing.hub import Hub
from casa_hub.web.loopback_log_in import challenge_of

REDIRECT = "http://127.0.0.1:43210/back"


@dataclass
class Laptop:
    """One log-in; `changes` are arguments of the page that are to be other ones."""

    hub: Hub
    changes: dict[str, str] = field(default_factory=dict)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    state: str = field(default_factory=lambda: secrets.token_urlsafe(8))

    @property
    def arguments(self) -> dict[str, str]:
        return {
            "redirect_uri": REDIRECT,
            "state": self.state,
            "code_challenge": challenge_of(self.verifier),
            "code_challenge_method": "S256",
            "credentials": "xcache",
            "client": "laptop.example.org",
            **self.changes,
        }

    @property
    def path(self) -> str:
        return f"/hub/casa/laptop?{urlencode(self.arguments)}"

    def page(self, browser: Browser) -> requests.Response:
        return browser.page(self.path, allow_redirects=False)

    def answer(self, browser: Browser, answer: str = "allow") -> dict[str, str]:
        """Press a button of the page; what the browser is sent back with."""
        page = self.page(browser)
        assert page.status_code == 200, page.text
        form = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', page.text))
        sent = browser.post(
            f"{self.hub.url}/hub/casa/laptop", data={**form, "answer": answer}, allow_redirects=False, timeout=60
        )
        assert sent.status_code == 302, sent.text
        return sent_back(sent)

    def redeem(self, code: str, verifier: str | None = None) -> requests.Response:
        data = {"code": code, "code_verifier": self.verifier if verifier is None else verifier}
        return requests.post(f"{self.hub.url}/hub/casa/laptop/token", data=data, timeout=60)

    def log_in(self, browser: Browser) -> str:
        """The token of this laptop."""
        answer = self.redeem(self.answer(browser)["code"])
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])


def sent_back(answer: requests.Response) -> dict[str, str]:
    """The arguments with which a browser is sent to the program."""
    address, query = answer.headers["Location"].split("?")
    assert address == REDIRECT
    return {name: value for name, (value,) in parse_qs(urlsplit(f"?{query}").query).items()}
