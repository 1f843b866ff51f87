"""Whether verifiers that ask for the issuer's keys a thousand times a second make the hub's pages slower.

    python bench/issuer_pages.py [--rate 1000] [--seconds 10] [--rounds 3]

A real JupyterHub, without a proxy in front. Somebody opens "My credentials" again and again, in turns without a load,
with a load that another program answers, and with the same load at the hub: it asks for the keys, over connections that
stay open, as a proxy's do. Browser, hub and load share the processor, so the second way is what the third is compared
with. Shown are the times of the page as a browser sees them, and the CPU of the hub's thread. Always exits with 0:
"met" and "missed" are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests.support

from casa_hub.issuer.tokens import new_private_key  # noqa: E402
from casa_hub.testing.browser import Browser  # noqa: E402
from tests.support.hub import Hub, casa_config  # noqa: E402
from tests.support.idp import IdP  # noqa: E402

PAGE, KEYS = "/hub/casa/credentials", "/hub/casa/issuer/cms/jwks"
#: Milliseconds that a page may take longer, and of how many requests a second.
SLOWER_MS = 5.0
CONNECTIONS = 20

CONFIG = """
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.url = "https://hub.example.org/hub/casa/issuer"
c.JupyterHub.log_level = "INFO"
"""


@dataclass
class Measured:
    """Of one way, over all rounds."""

    #: Milliseconds of each page.
    pages: list[float] = field(default_factory=list)
    #: Seconds of the hub's CPU for each second that passed.
    cpu: list[float] = field(default_factory=list)
    #: Answers with keys in each second.
    answers: list[float] = field(default_factory=list)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What the hub would answer, by as little as can be."""
    body = json.dumps({"keys": [new_private_key()[0].jwk] * 2}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(reply)


async def load(port: int, rate: float, seconds: float) -> int:
    """Ask for the keys so often, at port 0 this program itself; returns how many answers had them."""
    if not port:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    request = f"GET {KEYS} HTTP/1.1\r\nHost: hub.example.org\r\n\r\n".encode()
    begin = time.monotonic()

    async def one(number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers, pause = 0, CONNECTIONS / rate
        due = begin + pause * number / CONNECTIONS
        while due < begin + seconds:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            answers += head.startswith(b"HTTP/1.1 200") and b'"kid"' in await reader.readexactly(length)
            due += pause
        writer.close()
        return answers

    return sum(await asyncio.gather(*map(one, range(CONNECTIONS))))


def cpu(pid: int) -> float:
    """Seconds that the thread of the hub's event loop has had; ticks would miss turns that are this short."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(rate: float, seconds: float, rounds: int, directory: Path) -> list[Measured]:
    ways = [Measured(), Measured(), Measured()]
    with IdP().running() as idp:
        hub = Hub(directory, casa_config(issuer=idp.issuer) + CONFIG, proxy=False)
        (directory / "issuer").mkdir()
        for name in ("1.pem", "2.pem"):
            (directory / "issuer" / name).write_bytes(new_private_key()[1])
        past = time.time() - 60  # as a key file usually is: older than the moment it is read
        for file in (directory / "issuer").iterdir():
            os.utime(file, (past, past))
        with hub.running():
            port = int(hub.url.rpartition(":")[2])
            idp.put_user("someone", preferred_username="someone", **{"wlcg.groups": ["/cms", "/cms/uscms"]})
            browser = Browser(hub)
            browser.log_in("someone").raise_for_status()
            for _ in range(20):
                browser.page(PAGE).raise_for_status()
            for _ in range(rounds):
                for way, asked_port in zip(ways, (None, 0, port), strict=True):
                    program = None
                    if asked_port is not None:
                        arguments = ["--port", str(asked_port), "--rate", str(rate), "--seconds", str(seconds + 1)]
                        command = [sys.executable, __file__, *arguments]
                        program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                        assert program.stdout is not None
                        assert program.stdout.readline() == "begun\n"
                    begin, before = time.monotonic(), cpu(hub.process.pid)
                    while time.monotonic() < begin + seconds - 0.5:
                        asked = time.perf_counter()
                        browser.page(PAGE).raise_for_status()
                        way.pages.append((time.perf_counter() - asked) * 1e3)
                        time.sleep(0.02)
                    way.cpu.append((cpu(hub.process.pid) - before) / (time.monotonic() - begin))
                    if program is not None:
                        out, _ = program.communicate()
                        way.answers.append(int(out) / (seconds + 1))
    return ways


def report(rate: float, calm: Measured, other: Measured, loaded: Measured) -> str:
    def row(what: str, one: Measured) -> str:
        times = sorted(one.pages)
        figures = (statistics.median(times), times[int(len(times) * 0.95)], times[-1])
        asked = statistics.mean(one.answers) if one.answers else 0.0
        return (
            f"{what:28}{len(times):>8}"
            + "".join(f"{figure:>10.1f}" for figure in figures)
            + f"{100 * statistics.mean(one.cpu):>10.0f} %{asked:>12.0f}"
        )

    slower = statistics.median(loaded.pages) - statistics.median(other.pages)
    answers = statistics.mean(loaded.answers)
    targets = [
        (f"{rate:g} key sets a second are answered: {answers:.0f}", answers >= 0.99 * rate),
        (f"a page takes at most {SLOWER_MS:g} ms longer: {slower:.1f}", slower <= SLOWER_MS),
    ]
    lines = [
        f"{'ms of a page':28}{'pages':>8}{'median':>10}{'95 %':>10}{'longest':>10}{'hub CPU':>12}{'key sets/s':>12}",
        row("nobody asks for keys", calm),
        row("another program is asked", other),
        row("the hub is asked", loaded),
        "",
    ]
    return "\n".join([*lines, *(f"{'met   ' if met else 'missed'}  {target}" for target, met in targets)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, help="only ask for keys, at this port of 127.0.0.1; 0: oneself")
    options = parser.parse_args()
    if options.port is not None:
        print("begun", flush=True)
        print(asyncio.run(load(options.port, options.rate, options.seconds)))
    else:
        with tempfile.TemporaryDirectory() as name:
            print(report(options.rate, *measure(options.rate, options.seconds, options.rounds, Path(name))))
