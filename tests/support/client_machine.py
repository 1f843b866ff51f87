"""Somebody's laptop, or a machine of CI: the client's command in a home of its own, and a browser for its log-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Self

import requests

from tests.support.hub import Browser


class ClientMachine:
    """Directories of its own, none of this machine's variables, and no token but that of `environment`."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.home, self.runtime = directory / "home", directory / "runtime"
        for made in (self.home, self.runtime):
            made.mkdir(mode=0o700, parents=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            **environment,
        }
        self.bearer_file = self.runtime / f"bt_u{os.getuid()}"

    def begin(self, *arguments: str) -> Command:
        return Command(self, arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        with self.begin(*arguments) as command:
            out, err = command.process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, command.process.returncode, out, err)


class Command:
    """`casa-hub`, as it is installed without a hub; killed at the end of the context."""

    def __init__(self, laptop: ClientMachine, arguments: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "casa_hub.client.command", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=laptop.environment,
            cwd=laptop.home,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def line(self) -> str:
        """The next line of its output, as soon as it is there; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def said(self) -> str:
        """The next line on stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip("\n")

    def log_in_address(self) -> str:
        """The address that it asks its user to open."""
        first, address = self.said(), self.said().strip()
        assert first == "Log in with a browser at:", (first, self.process.poll())
        return address


def answer(browser: Browser, address: str, sub: str, *, allow: bool = True) -> requests.Response:
    """Open the address of a log-in, sign in at the provider if the hub asks for it, and press a button.

    Returns the last page: the client's own, unless the hub refuses.
    """
    page = browser.get(address, timeout=60)
    if button := re.search(r"""href=['"]([^'"]*/oauth_login[^'"]*)""", page.text):
        consent = browser.page(unescape(button[1]))
        page = browser.post(consent.url, data={"sub": sub}, timeout=60)
    if page.status_code != requests.codes.ok or 'name="answer"' not in page.text:
        return page
    hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page.text)
    fields = {name: unescape(value) for name, value in hidden}
    where = re.search(r'<form method="post" action="([^"]*)"', page.text)
    assert where is not None
    url = browser.hub.url + unescape(where[1])
    return browser.post(url, data=fields | {"answer": "allow" if allow else "deny"}, timeout=60)
