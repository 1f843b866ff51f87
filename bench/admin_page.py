"""What the page for administrators costs a hub with 500 users, each with a server.

    python bench/admin_page.py [--users 500] [--held 100] [--times 20]

A real JupyterHub, whose users and servers are written into its database; each server has its credentials minted for
real, but no process. A part of the users is held back, so that each table is full. The page
is asked for as a browser does. Times are the server's: from the request's first turn of the event loop to its last,
and the longest turn in between, by the CPU of the loop's thread, since others may have the processor. The first turn is
shown by itself: in it JupyterHub finds out who asks, as for each of its pages. The first request is left out, for which
JupyterHub compiles its own templates. Always exits with 0: "met" and "missed" are for people.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests.support

from casa_hub.testing.browser import Browser  # noqa: E402
from tests.support.facility_config import credentials, make_keys  # noqa: E402
from tests.support.hub import Hub, casa_config  # noqa: E402
from tests.support.idp import IdP  # noqa: E402

PAGE = "/hub/casa/admin"
SERVER_MS, TURN_MS = 300.0, 5.0

CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.insert(0, {str(ROOT / "bench")!r})
import admin_page_hub
c.JupyterHub.spawner_class = admin_page_hub.Never
c.JupyterHub.log_level = "INFO"
c.JupyterHub.load_roles.append(
    {{"name": "operators", "groups": ["/cms/facility"], "scopes": ["custom:casa-hub:operate"]}}
)
c.Keeper.recheck_interval = 86400  # nobody is asked about meanwhile
admin_page_hub.measure()
"""


class Anything(BaseHTTPRequestHandler):
    """In place of all servers: JupyterHub asks at its start whether they are there."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def measure(users: int, held: int, times: int, directory: Path) -> tuple[list[dict[str, float]], int, int]:
    with IdP().running() as idp, HTTPServer(("127.0.0.1", 0), Anything) as anything:
        threading.Thread(target=anything.serve_forever, daemon=True).start()
        config = casa_config(issuer=idp.issuer, admin_groups=["/cms/facility"]) + CONFIG
        config += credentials("xcache", "htcondor", "dask", keys=directory) + f"admin_page_hub.HELD = {held}\n"
        hub = Hub(directory, config, proxy=False)
        make_keys(directory)
        with hub.running():
            pass  # it has made the tables
        fill = [
            sys.executable,
            str(ROOT / "bench" / "admin_page_hub.py"),
            str(users),
            idp.issuer,
            str(anything.server_port),
        ]
        subprocess.run(fill, cwd=directory, env=hub.environment, check=True)
        idp.put_user("operator", preferred_username="operator", **{"wlcg.groups": ["/cms", "/cms/facility"]})
        with hub.running():
            browser = Browser(hub)
            browser.log_in("operator").raise_for_status()
            (directory / "hold").touch()
            while (directory / "hold").exists():
                time.sleep(0.05)
            browser.page(PAGE).raise_for_status()
            time.sleep(0.5)
            (directory / "measured").write_text("")
            for number in range(times):
                page = browser.page(PAGE, params={"page": 1 + number % max(users // 100, 1)})
                page.raise_for_status()
            time.sleep(0.2)
            anything.shutdown()
            lines = (directory / "measured").read_text().splitlines()
    rows = page.text.count("<tr")
    return [json.loads(line) for line in lines], len(page.text), rows


def report(users: int, held: int, found: list[dict[str, float]], size: int, rows: int) -> str:
    seconds = [one["seconds"] * 1e3 for one in found]
    rows_of = {
        "server time, ms": seconds,
        "CPU of it, ms": [one["cpu"] * 1e3 for one in found],
        "the first turn, JupyterHub's, ms": [one["first"] * 1e3 for one in found],
        "the longest other turn, ms": (turns := [one["longest"] * 1e3 for one in found]),
    }
    what = f"{users} users with a server each, {held} held back; {len(found)} requests"
    lines = [
        f"{what}, a page of {size / 1e3:.0f} kB with {rows} rows",
        f"{'':34}{'median':>10}{'longest':>10}",
        *(f"{name:34}{statistics.median(times):>10.1f}{max(times):>10.1f}" for name, times in rows_of.items()),
        "",
    ]
    targets = [
        (f"at most {SERVER_MS:g} ms of server time: {max(seconds):.0f}", max(seconds) <= SERVER_MS),
        (f"no turn of ours over {TURN_MS:g} ms: {max(turns):.1f}", max(turns) <= TURN_MS),
    ]
    return "\n".join([*lines, *(f"{'met   ' if met else 'missed'}  {target}" for target, met in targets)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--held", type=int, default=100)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured, size, rows = measure(options.users, options.held, options.times, Path(name))
    print(report(options.users, options.held, measured, size, rows))
