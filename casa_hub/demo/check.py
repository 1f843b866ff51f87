"""`casa-hub demo --check`: tries everything that the demo promises, from outside and from inside a server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from casa_hub.demo.accounts import ADMINISTRATOR, DOMAIN, MEMBER, MEMBERS, PEOPLE, RECHECK_INTERVAL, STRANGER, VO
from casa_hub.demo.browser import Browser, Kernel
from casa_hub.demo.dial import REFUSED
from casa_hub.demo.packages import Progress
from casa_hub.demo.proxies import Authority, new_key
from casa_hub.errors import CasaError

if TYPE_CHECKING:
    from casa_hub.demo.facility import Facility
    from casa_hub.demo.xrootd import XCache

OK, FORBIDDEN = HTTPStatus.OK, HTTPStatus.FORBIDDEN
#: Part of the facility -> the credential that comes with it.
_OPTIONAL = {"xcache": "xcache", "pool": "htcondor"}
_PAGE = "/hub/casa/credentials"
#: Pages of administrators: JupyterHub's, and the facility's.
_ADMINISTRATION = ("/hub/admin", "/hub/casa/admin")

#: Word in the name of a notebook's step -> part of the facility that the step needs; without it the step is skipped.
NEEDS = {"XCache": "xcache", "GSI": "storage", "HTCondor": "pool"}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the table."""

    name: str
    #: "ok", or what went wrong.
    result: str
    seconds: float


class Checks:
    """Runs the steps and keeps their results."""

    def __init__(self, facility: Facility, progress: Progress) -> None:
        self._facility = facility
        self._progress = progress
        self.steps: list[Step] = []
        self._browsers: dict[str, Browser] = {}
        self._kernels: dict[str, Kernel] = {}
        #: A directory during `run`, with a directory for each user's laptop.
        self._laptops = Path()

    @property
    def passed(self) -> bool:
        return bool(self.steps) and all(step.result == "ok" for step in self.steps)

    def run(self) -> None:
        """Run all steps, also after one has failed."""
        with tempfile.TemporaryDirectory(prefix="casa-hub-laptops-") as directory:
            self._laptops = Path(directory)
            self._run()

    def _run(self) -> None:
        self._log_in()
        for account in (MEMBER, ADMINISTRATOR):
            self._step(f"{account.name}: a server starts", partial(self._spawn, account.name))
        kernel = self._step("a kernel starts in the member's server", lambda: self._kernel(MEMBER.name))
        if kernel is not None:
            self._quickstart(kernel)
            self._from_outside()
        self._refusals()
        self._operator()
        self._renewal()
        self._stop()

    def table(self) -> str:
        """The results as a table, for people."""
        width = max(len(step.name) for step in self.steps)
        rows = [f"{step.name:<{width}}  {step.seconds:7.2f}  {step.result}" for step in self.steps]
        failed = sum(step.result != "ok" for step in self.steps)
        heading = f"{'step':<{width}}  {'seconds':>7}  result"
        return "\n".join(["", heading, *rows, "", f"{len(self.steps) - failed} passed, {failed} failed"])

    # -- steps ------------------------------------------------------------------------------------------------

    def _log_in(self) -> None:
        def member() -> None:
            answer = self._browser(MEMBER.name).log_in(MEMBER.name)
            _expect(answer.status_code == OK, f"log-in ended with {answer.status_code}")
            model = self._browser(MEMBER.name).user()
            _expect(model["name"] == MEMBER.name and not model["admin"], f"the hub takes him for {model}")
            _expect(MEMBERS in model["groups"], "the groups did not reach the hub")
            for page in _ADMINISTRATION:
                _expect(self._browser(MEMBER.name).page(page).status_code == FORBIDDEN, f"may see {page}")

        def administrator() -> None:
            answer = self._browser(ADMINISTRATOR.name).log_in(ADMINISTRATOR.name)
            _expect(answer.status_code == OK, f"log-in ended with {answer.status_code}")
            for page in _ADMINISTRATION:
                _expect(self._browser(ADMINISTRATOR.name).page(page).status_code == OK, f"may not see {page}")
            page = self._browser(ADMINISTRATOR.name).page("/hub/casa/admin").text
            _expect("Revoke" in page, "may not operate the facility")

        def stranger() -> None:
            answer = self._browser(STRANGER.name).log_in(STRANGER.name)
            _expect(answer.status_code == FORBIDDEN, f"log-in ended with {answer.status_code}")
            _expect(MEMBERS in answer.text and "how-to-join" in answer.text, "the page doesn't say what is missing")
            _expect(
                self._browser(STRANGER.name).page("/hub/api/user").status_code == FORBIDDEN, "is logged in all the same"
            )

        self._step(f"{MEMBER.name} (member) logs in, and is no administrator", member)
        self._step(f"{ADMINISTRATOR.name} (administrator) logs in and sees the pages Admin and Facility", administrator)
        self._step(f"{STRANGER.name} (no member) is refused and told why", stranger)
        self._step("nobody gets a server without logging in", self._anonymous)

    def _anonymous(self) -> None:
        browser = Browser(self._facility.url)
        browser.page("/hub/login")
        answer = browser.call("POST", f"/hub/api/users/{MEMBER.name}/server")
        _expect(answer.status_code == FORBIDDEN, f"the hub answered {answer.status_code}")

    def _spawn(self, name: str) -> None:
        messages = self._browser(name).spawn(name)
        _expect(any("valid until" in message for message in messages), f"progress said only {messages}")
        _expect(self._facility.server_runs(name), "the server does not run")

    def _quickstart(self, kernel: Kernel) -> None:
        """Run every cell of the notebook inside the member's server."""
        notebook = json.loads((files("casa_hub.demo") / "quickstart.ipynb").read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                name, source = cell["metadata"]["casa"]["step"], "".join(cell["source"])
                needs = [part for word, part in NEEDS.items() if word in name]
                if all(getattr(self._facility, part) is not None for part in needs):
                    self._step(f"inside: {name}", partial(kernel.run, source))

    def _from_outside(self) -> None:
        """Connect to the scheduler from a laptop with the user's bundle, with another user's, and with none."""
        own, other = self._laptops / MEMBER.name, self._laptops / ADMINISTRATOR.name
        host = f"{MEMBER.name}.dask.{DOMAIN}"
        self._step(f"{MEMBER.name} sees each credential in My credentials", self._see)
        for account in (MEMBER, ADMINISTRATOR):
            self._step(f"{account.name} downloads the laptop bundle", partial(self._download, account.name))
        self._step("outside: connect.py of the bundle opens the scheduler", partial(self._connect, own))
        self._step("outside: another server's certificate is refused", lambda: self._dial(host, own, other))
        self._step("outside: no certificate is refused", lambda: self._dial(host, own, None))

    def _see(self) -> None:
        page = self._browser(MEMBER.name).page(_PAGE).text
        parts = [name for part, name in _OPTIONAL.items() if getattr(self._facility, part)]
        wanted = ["dask", "bearer", "exchange:rucio", "x509", *parts]
        for credential in wanted:
            _expect(f'data-credential="{credential}" data-state="good"' in page, f"the page doesn't show {credential}")

    def _download(self, name: str) -> None:
        """Download a user's laptop bundle by the page's button, and unpack it on the laptop."""
        browser, laptop = self._browser(name), self._laptops / name
        laptop.mkdir(mode=0o700)
        answer = browser.submit(_PAGE, "/hub/casa/bundle", server="")
        _expect(answer.status_code == OK, f"the hub answered {answer.status_code}")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
            bundle.extractall(laptop)

    def _connect(self, laptop: Path) -> None:
        done = self._on_laptop([str(laptop / "connect.py")])
        _expect(done.returncode == 0 and "Connected to" in done.stdout, f"it said {done.stdout}{done.stderr[-300:]}")

    def _dial(self, host: str, ca: Path, certificate: Path | None) -> None:
        """Try to connect, which must be refused."""
        program = ["-m", "casa_hub.demo.dial", host, str(ca / "ca.pem")]
        if certificate is not None:
            program.append(str(certificate / "usercert.pem"))
        done = self._on_laptop(program)
        _expect(done.returncode == REFUSED, f"exit code {done.returncode}: {done.stdout}{done.stderr[-300:]}")

    def _on_laptop(self, program: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a Python program that knows nothing of the facility but its names."""
        environment = {"PATH": "/usr/bin:/bin", **self._facility.names.environment}
        command = [sys.executable, *program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def _refusals(self) -> None:
        xcache, pool = self._facility.xcache, self._facility.pool
        self._step("anybody reads the public keys of the facility's issuer", self._published)
        if xcache is not None:
            self._step("XCache refuses to read without a macaroon", lambda: self._refused(xcache, None))
            self._step("XCache refuses a forged macaroon", lambda: self._refused(xcache, self._forged("xcache_token")))
        if xcache is not None and xcache.issuer:
            self._step("XCache takes the token of the facility's issuer", lambda: self._taken(xcache))
            self._step("XCache refuses a forged token", lambda: self._refused(xcache, self._forged("xcache_jwt")))
        if self._facility.storage is not None:
            self._step("the storage with GSI refuses a proxy of another authority", self._foreign_proxy)
        if pool is not None:
            self._step("HTCondor refuses a forged IDTOKEN", self._forged_idtoken)

    def _published(self) -> None:
        """Read the keys of the facility's issuer as verifiers do, who know only the address in a token."""
        description = requests.get(f"{self._facility.tokens.iss}/.well-known/openid-configuration", timeout=30).json()
        _expect(description["issuer"] == self._facility.tokens.iss, f"the issuer calls itself {description['issuer']}")
        _expect(requests.get(description["jwks_uri"], timeout=30).json()["keys"], "it publishes no key")

    def _taken(self, xcache: XCache) -> None:
        status = self._read(xcache, self._held("xcache_jwt"))
        _expect(status == OK, f"XCache answered {status}")

    def _refused(self, xcache: XCache, token: str | None) -> None:
        status = self._read(xcache, token)
        _expect(status == FORBIDDEN, f"XCache answered {status}")

    def _read(self, xcache: XCache, token: str | None) -> int:
        """XCache's answer to somebody with this token."""
        url, headers = xcache.url("/store/user/demo/muons.csv", "https"), {"Authorization": f"Bearer {token}"}
        with self._facility.network():
            answer = requests.get(url, headers=headers if token else {}, verify=str(xcache.tls.ca_file), timeout=30)
        return answer.status_code

    def _held(self, name: str) -> str:
        """A token of the member's."""
        return str(json.loads(self._kernel(MEMBER.name).run(_SHOW))[name]).strip()

    def _forged(self, name: str) -> str:
        """A token of the member's with some bytes of its signature changed."""
        token = self._held(name)
        place = len(token) - 20
        return token[:place] + ("AAAA" if token[place : place + 4] != "AAAA" else "BBBB") + token[place + 4 :]

    def _forged_idtoken(self) -> None:
        self._kernel(MEMBER.name).run(_FORGE.format(token=self._forged("condor_token")))

    def _foreign_proxy(self) -> None:
        """Show a proxy that has the member's name and the authority's, but is of another key."""
        other = Authority(PEOPLE, domain=VO, own=new_key())
        proxy = other.certify(MEMBER.full_name).proxy(timedelta(hours=1))
        self._kernel(MEMBER.name).run(_FOREIGN_PROXY.format(proxy=proxy.pem))

    def _operator(self) -> None:
        def check() -> None:
            done = self._facility.operate("check")
            _expect(done.returncode == 0, f"casa-hub ended with {done.returncode}: {done.stdout}{done.stderr[-300:]}")

        self._step("the operator finds nothing wrong: casa-hub check", check)

    def _renewal(self) -> None:
        name = MEMBER.name
        kernel = self._kernels.get(name)
        if kernel is None:
            return

        def renew() -> None:
            before = kernel.run(_SHOW)
            done = self._facility.operate("renew", name)
            _expect(done.returncode == 0, f"casa-hub ended with {done.returncode}: {done.stdout}{done.stderr[-300:]}")
            kernel.run(_WAIT_FOR_OTHERS.format(before=before))

        self._step("the operator renews the credentials of the running server: casa-hub renew", renew)
        if self._facility.xcache is not None:
            self._step("inside: XCache takes the new macaroon", lambda: kernel.run(_READ_AGAIN))
        if self._facility.storage is not None:
            self._step("inside: the storage with GSI takes the new proxy", lambda: kernel.run(_BY_PROXY))

    def _stop(self) -> None:
        def stop(name: str) -> None:
            self._browser(name).stop(name)
            _expect(not (left := self._facility.left_of(name)), f"left behind: {left}")

        def leave(name: str) -> None:
            claims: Any = {**ADMINISTRATOR.claims, "wlcg.groups": ["/cms"]}
            requests.put(f"{self._facility.issuer}/users/{name}", json=claims, timeout=30).raise_for_status()
            end = time.monotonic() + RECHECK_INTERVAL + 30
            while left := self._facility.left_of(name):
                _expect(time.monotonic() < end, f"still there: {left}")
                time.sleep(0.2)
            answer = self._browser(name).page("/hub/api/user")
            _expect(answer.status_code == FORBIDDEN, f"the hub answers {answer.status_code}: he is still logged in")

        self._step(f"{MEMBER.name}: the server stops, its secrets and its route are gone", partial(stop, MEMBER.name))
        self._step(
            f"{ADMINISTRATOR.name} leaves {MEMBERS}: the server ends, its secrets and its route are gone",
            partial(leave, ADMINISTRATOR.name),
        )

    def after_the_end(self) -> None:
        """The step that needs the facility to have ended."""

        def ended() -> None:
            _expect(self._facility.hub is not None and not self._facility.hub.running, "the hub runs")
            _expect(not (left := self._facility.left()), f"left behind: {left}")

        self._step("everything has ended", ended)

    # -- tools --------------------------------------------------------------------------------------------------

    def _browser(self, name: str) -> Browser:
        return self._browsers.setdefault(name, Browser(self._facility.url))

    def _kernel(self, name: str) -> Kernel:
        """The kernel in this user's server, which is started at the first call."""
        if name not in self._kernels:
            self._kernels[name] = Kernel(self._browser(name), name)
        return self._kernels[name]

    def _step(self, name: str, action: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        outcome: Any = None
        try:
            outcome = action()
            result = "ok"
        except CasaError as error:
            result = f"FAILED: {error}"
        except Exception as error:  # noqa: BLE001 - any failure becomes a line of the table
            result = f"FAILED: {type(error).__name__}: {error}"
        self.steps.append(Step(name, result, time.monotonic() - begin))
        self._progress(f"{name}: {result}")
        return outcome


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise CasaError("the facility", otherwise, "")


#: Prints the credentials that a user may copy to a laptop.
_SHOW = """
import json, os, pathlib
names = "ca.pem", "usercert.pem", "xcache_token", "xcache_jwt", "condor_token", "rucio_token", "x509_proxy"
print(json.dumps({path.name: path.read_text() for path in map(pathlib.Path(os.environ["CERT_DIR"]).joinpath, names)
                  if path.exists()}))
"""

#: Waits until all files have new content, except the CA's certificate, which must stay.
_WAIT_FOR_OTHERS = """
import json, os, pathlib, time
before, end = json.loads({before!r}), time.monotonic() + 120
directory = pathlib.Path(os.environ["CERT_DIR"])
while any((directory / name).read_text() == content for name, content in before.items() if name != "ca.pem"):
    assert time.monotonic() < end, "the files are still the old ones"
    time.sleep(0.1)
assert (directory / "ca.pem").read_text() == before["ca.pem"], "the server's own certificate authority must stay"
"""

#: Runs in the kernel that has read before, over its open connection.
_READ_AGAIN = """
with client.File() as file:
    status, _ = file.open(url)
    assert status.ok, status.message
"""

#: Runs in the member's server: the same client, with a token directory that has only a forged token.
_FORGE = """
import os, subprocess, sys, tempfile
forged = tempfile.mkdtemp()
with open(os.open(forged + "/token", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
    file.write({token!r})
probe = '''
import htcondor2, os
try:
    htcondor2.Collector(os.environ["CONDOR_HOST"]).query(htcondor2.AdType.Schedd)
except htcondor2.HTCondorException:
    raise SystemExit(3)
'''
environment = os.environ | {{"_CONDOR_SEC_TOKEN_DIRECTORY": forged,
                            "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS"}}
assert subprocess.run([sys.executable, "-c", probe]).returncode == 0, "the own token should be taken"
assert subprocess.run([sys.executable, "-c", probe], env=environment).returncode == 3, "the forged token was taken"
"""

#: Runs in the member's server: opens a file by the proxy, in a process of its own, because a session of XRootD goes on.
_BY_PROXY = """
import os, subprocess, sys, tempfile
probe = '''
import os
from XRootD import client
with client.File() as file:
    status, _ = file.open(os.environ["GRID_STORAGE"] + "//store/user/" + os.environ["JUPYTERHUB_USER"] + "/file")
print(status.message)
raise SystemExit(0 if status.ok else 3 if "Auth failed" in status.message else 1)
'''
environment = dict(os.environ, XRD_CONNECTIONRETRY="1")
assert subprocess.run([sys.executable, "-c", probe], env=environment).returncode == 0, "the own proxy should be taken"
"""
_FOREIGN_PROXY = (
    _BY_PROXY
    + """
environment["X509_USER_PROXY"] = tempfile.mkdtemp() + "/proxy"
with open(os.open(environment["X509_USER_PROXY"], os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
    file.write({proxy!r})
assert subprocess.run([sys.executable, "-c", probe], env=environment).returncode == 3, "the foreign proxy was taken"
"""
)
