"""The real Chromium at a hub's pages: what people see, judged by machine, and kept as pictures.

Chromium is Debian's, unpacked like the other servers of the tests. Playwright drives it. axe-core judges a page as far
as a program can: labels, contrast, order of headings. It comes from npm by npm's own client.

A conftest.py imports the fixtures `chromium` and `open_tab`. A test of a page is then:

    def test_the_page_says_so(hub: Hub, open_tab: OpenTab) -> None:
        tab = open_tab(hub)
        tab.sign_in("sub-of-ada")
        tab.page.goto("/hub/home")
        expect(tab.page.get_by_role("alert")).to_contain_text("runs out")
        tab.judge("notice")
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jupyterhub
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

from casa_hub.demo.packages import Programs, Progress, Unavailable, cache_root, locked, silent, unpack
from casa_hub.demo.processes import minimal_environment
from casa_hub.testing.hub import Hub
from tests.support.peers import require
from tests.support.scale import pairs

PACKAGES = ("chromium", "fonts-dejavu-core", "fonts-dejavu-mono")
AXE = "4.14.1"
#: Chromium's fonts are those of its packages: a page looks the same on every machine.
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""
#: Pictures, as `NAME-SCHEME-DEVICE.png`.
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots" / f"jupyterhub-{jupyterhub.version_info[0]}"
SCHEMES = ("light", "dark")
DEVICES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
#: Faults that pages have from JupyterHub: axe's rule and a CSS selector of the elements, with the reason.
JUPYTERHUBS = {
    ("color-contrast", ".btn-jupyter"): "the orange of its buttons under white text: 2.8 to 1, in 5.5 and 6.1",
    ("aria-progressbar-name", "#progress-bar"): "the bar of its page of a start has no name, in 5.5 and 6.1",
}
#: Milliseconds for what a page shall show, on a machine that is busy with other tests.
PATIENCE = 30_000
expect.set_options(timeout=PATIENCE)

# -- where it comes from -----------------------------------------------------------------------------------------------


def programs(progress: Progress = silent) -> Programs:
    """Chromium and its fonts, unpacked once.

    Raises:
        Unavailable: see `unpack`.
    """
    return unpack(PACKAGES, progress=progress)


@cache
def axe(progress: Progress = silent) -> str:
    """The source of axe-core, fetched once.

    Raises:
        Unavailable: there is no npm, or it fails.
    """
    file = cache_root() / f"axe-core-{AXE}.min.js"
    if not file.exists():
        with locked(file.with_suffix(".lock"), progress, "fetches the same"):
            if not file.exists():
                _fetch_axe(file)
    return file.read_text()


def _fetch_axe(file: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable(f"axe-core {AXE}", "there is no npm to fetch it with", "On Debian: apt-get install npm")
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        command = [npm, "pack", f"axe-core@{AXE}", "--silent"]
        ran = subprocess.run(
            command, check=False, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if ran.returncode:
            said = " ".join(ran.stderr.split())[-500:]
            raise Unavailable(f"axe-core {AXE}", f"npm failed: {said}", "Check the network and npm's settings.")
        with tarfile.open(Path(scratch, f"axe-core-{AXE}.tgz")) as archive:
            content = archive.extractfile("package/axe.min.js")
            assert content is not None
            part = Path(scratch, "axe.min.js")
            part.write_bytes(content.read())
        part.replace(file)  # last: who sees it sees all of it


# -- a tab -------------------------------------------------------------------------------------------------------------


class Tab:
    """A tab of a browser that nobody has used before, at one hub.

    `page` is Playwright's; paths such as ``/hub/home`` are the hub's.

    `faults` is what went wrong on the hub's pages: JavaScript errors, errors on the console, and requests that a page
    made and that failed. What is left in it at the test's end fails the test; a test that wants a fault takes it out.
    The status of a page itself is no fault: `page.goto` returns it.
    """

    def __init__(self, chromium: Browser, hub: Hub, **options: Any) -> None:
        """Args:
        chromium: the browser.
        hub: whose pages it opens.
        options: of Playwright's `Browser.new_context`.
        """
        self.hub = hub
        self.faults: list[str] = []
        # Reduced motion: what fades in would have another contrast at each moment.
        defaults = {"base_url": hub.url, "viewport": DEVICES["desktop"], "reduced_motion": "reduce"}
        context = chromium.new_context(**(defaults | options))
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self._note(self.page.url, f"JavaScript: {error}"))
        self.page.on("console", self._heard)
        self.page.on("response", self._answered)
        self.page.on("requestfailed", self._failed)

    def _note(self, url: str, fault: str) -> None:
        """A fault on a page of an identity provider is none of ours."""
        if url.startswith(self.hub.url + "/"):
            self.faults.append(f"{url}: {fault}")

    def _heard(self, message: ConsoleMessage) -> None:
        # Of a request that failed the console says less than the request itself.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self._note(self.page.url, f"console: {message.text}")

    def _answered(self, response: Response) -> None:
        request = response.request
        if response.status >= 400 and not request.is_navigation_request():
            self._note(request.frame.url, f"{request.method} {request.url}: {response.status}")

    def _failed(self, request: Request) -> None:
        # Chromium aborts what a page waits for when the person leaves the page.
        if request.failure != "net::ERR_ABORTED":
            self._note(request.frame.url, f"{request.method} {request.url}: {request.failure}")

    def sign_in(self, sub: str, *, path: str = "/hub/home") -> None:
        """Press the hub's button, and log in as this subject at the mock provider; it ends wherever that leads to."""
        self.page.goto(f"/hub/login?next={path}")
        self.page.get_by_role("button", name="Sign in with").click()
        self.consent(sub)

    def consent(self, sub: str) -> None:
        """Log in as this subject at the mock provider, whose page is shown."""
        self.page.get_by_placeholder("sub").fill(sub)
        self.page.get_by_role("button", name="Authorize", exact=True).click()
        self.page.wait_for_url(f"{self.hub.url}/**")

    def judge(self, name: str) -> None:
        """Take pictures of the page in light and dark, on a desktop and on a phone; fail if it isn't good in one.

        `make test` looks at it in light on a desktop and in dark on a phone, `make soak` at all four: a test that
        judges a page is marked ``shortened``. Good is what axe finds no serious fault in, and what is no wider than the
        window.
        """
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[str]] = {}
        for scheme, device in pairs(SCHEMES, DEVICES):
            self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            self.page.wait_for_function("scheme => document.documentElement.dataset.bsTheme === scheme", arg=scheme)
            self.page.set_viewport_size(DEVICES[device])  # type: ignore[arg-type]
            self.page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{device}.png", full_page=True)
            for fault in (*serious_faults(self.page), *self.too_wide()):
                found.setdefault(fault, []).append(f"{scheme} {device}")
        self.page.set_viewport_size(DEVICES["desktop"])  # type: ignore[arg-type]
        assert not found, "\n".join(f"{fault}\n    in {', '.join(where)}" for fault, where in found.items())

    def too_wide(self) -> list[str]:
        """A text if one must scroll to the side."""
        wide, there = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        return [f"the page is {wide} wide, the window {there}"] if wide > there else []


_AXE_RUN = """
async theirs => (await axe.run({resultTypes: ["violations"]})).violations
    .filter(rule => ["serious", "critical"].includes(rule.impact))
    .map(rule => {
        const known = theirs.filter(([id]) => id === rule.id).map(([_, selector]) => selector)
        const ours = rule.nodes.filter(node => !known.some(each => document.querySelector(node.target)?.matches(each)))
        return {...rule, nodes: ours}
    })
"""


def serious_faults(page: Page) -> list[str]:
    """What axe calls serious or critical, and isn't JupyterHub's: a text for each rule, with the elements."""
    page.evaluate(axe())
    return [
        f"axe, {rule['id']}: {rule['help']}"
        + "".join(f"\n    {node['html']}\n      {' '.join(node['failureSummary'].split())}" for node in rule["nodes"])
        for rule in page.evaluate(_AXE_RUN, list(JUPYTERHUBS))
        if rule["nodes"]
    ]


# -- fixtures ----------------------------------------------------------------------------------------------------------


class OpenTab(Protocol):
    """The type of the fixture `open_tab`."""

    def __call__(self, hub: Hub, **options: Any) -> Tab: ...


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium for the tests of a module.

    Not for a session: as long as Playwright runs, its event loop is the one that runs in this thread, and asynchronous
    tests of other modules would find it there.
    """
    tree = require(programs).root
    require(axe)
    home = tmp_path_factory.mktemp("chromium")
    (home / "fonts.conf").write_text(FONTS.format(fonts=tree / "usr/share/fonts", cache=home / "fonts"))
    [libraries] = tree.glob("usr/lib/*/pulseaudio")  # which libpulse would look for in /usr/lib
    environment = minimal_environment(
        HOME=str(home), LD_LIBRARY_PATH=str(libraries), FONTCONFIG_FILE=str(home / "fonts.conf")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=tree / "usr/lib/chromium/chromium",
            env=environment,
            # Nothing is asked of the world outside, whatever a page or Chromium itself wants.
            args=["--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"],
            timeout=PATIENCE,
        )
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Browser) -> Iterator[OpenTab]:
    """Opens tabs, each in a browser of its own without cookies. The test fails with the faults of their pages."""
    tabs: list[Tab] = []

    def opened(hub: Hub, **options: Any) -> Tab:
        tabs.append(Tab(chromium, hub, **options))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.page.context.close()
    faults = [fault for tab in tabs for fault in tab.faults]
    assert not faults, "\n".join(faults)
