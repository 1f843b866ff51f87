"""All tests, as several pytest processes side by side: most tests wait for a server more than they compute.

    python -m tests.support.all_tests [--soak] PYTHON_WITH_JUPYTERHUB_5

The suites are taken from a queue, the longest first. The output of each suite goes to ``build/tests/NAME.log`` and is
printed when the suite ends; a line a minute says what still runs. At the end a table tells the wall and CPU time of
each suite, and ``build/tests/durations.txt`` lists all tests by their time.

``--soak`` runs what ``make test`` leaves out: the long tests in full (``tests.support.scale``), and everything with
JupyterHub 5.5 that `make test` runs with JupyterHub 6 only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

BUILD = Path("build/tests")
#: Suites at the same time. A test waits for more than half of its time, and there are two cores at least.
AT_ONCE = int(os.environ.get("CASA_HUB_SUITES_AT_ONCE") or max(4, min(os.cpu_count() or 2, 6)))
#: Seconds between two lines that say what still runs.
PULSE = 60.0
#: A file system in memory, and the bytes that must be free there: all suites together use a tenth of it.
MEMORY, ROOM = Path("/dev/shm"), 6 * 1024**3


@dataclass(frozen=True)
class Suite:
    """Arguments of one pytest process."""

    name: str
    arguments: Sequence[str]
    #: Whether it runs with the second environment: JupyterHub 5.5, and the newest Python.
    hub5: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def without(directory: str, names: Iterable[str]) -> list[str]:
    """Arguments for all of a directory but these."""
    return [directory, *(f"--ignore={directory}/{name}" for name in names)]


def only(directory: str, names: Iterable[str]) -> list[str]:
    return [f"{directory}/{name}" for name in names]


def of_both_hubs(*directories: str) -> list[str]:
    """Arguments for the tests that are marked so, by their files: to read all others takes as long as a hub's start."""
    files = [file for directory in directories for file in sorted(Path(directory).rglob("test_*.py"))]
    return ["-m", "both_hubs", *(str(file) for file in files if "both_hubs" in file.read_text())]


#: The first part, by time, of the directories that take longest.
HUB_1 = ("test_deleted_by_hand.py", "test_local_spawner.py", "test_membership_lost.py", "test_refresh.py")
KUBERNETES_HUB_1 = ("test_faults.py", "test_kill.py", "test_kill_while_renewing.py")
KUBERNETES_HUB_2 = ("test_deleted_by_hand.py", "test_membership_lost.py", "test_renewal.py", "test_storm.py")

#: In the order in which they begin: the longest first, so that none runs alone at the end.
EVERYTHING = [
    Suite("peers", ["tests/peers"]),
    Suite("hub-2", without("tests/hub", HUB_1)),
    Suite("rest", without("tests", ("browser", "checks", "demo", "helm", "hub", "kubernetes", "peers"))),
    Suite("kubernetes-hub-2", only("tests/kubernetes/hub", KUBERNETES_HUB_2)),
    Suite("hub-1", only("tests/hub", HUB_1)),
    Suite("node", ["tests/kubernetes/node"]),
    Suite("kubernetes-hub-1", only("tests/kubernetes/hub", KUBERNETES_HUB_1)),
    Suite("kubernetes-hub-3", without("tests/kubernetes/hub", KUBERNETES_HUB_1 + KUBERNETES_HUB_2)),
    Suite("demo", ["tests/demo"]),
    Suite("browser", ["tests/browser"]),
    Suite("checks", ["tests/checks"]),
    # What depends on JupyterHub, KubeSpawner or Python; servers of the facility don't know the difference.
    Suite("jupyterhub-5-kubernetes", of_both_hubs("tests/kubernetes/hub", "tests/helm"), hub5=True),
    Suite("jupyterhub-5-hub", of_both_hubs("tests/unit", "tests/hub", "tests/browser", "tests/monitoring"), hub5=True),
    Suite("kubernetes", [*without("tests/kubernetes", ("hub", "node")), "tests/helm"]),
]
IN_FULL = {"CASA_HUB_SOAK": "1"}
SOAK = [
    Suite("soak-kubernetes", ["-m", "soak or shortened", "tests/kubernetes"], environment=IN_FULL),
    Suite("soak", ["-m", "soak or shortened", "tests", "--ignore=tests/kubernetes"], environment=IN_FULL),
    Suite(
        "jupyterhub-5",
        [
            *("-m", "not soak and not both_hubs"),
            *("tests/kubernetes/hub", "tests/helm", "tests/hub", "tests/browser", "tests/unit"),
            "tests/monitoring/test_hub.py",
        ],
        hub5=True,
        environment=IN_FULL,
    ),
]


@dataclass
class Running:
    suite: Suite
    process: subprocess.Popen[bytes]
    begun: float


@dataclass(frozen=True)
class Ended:
    suite: Suite
    code: int
    wall: float
    #: Of the tests and all programs that they started and waited for.
    cpu: float


def log_of(suite: Suite) -> Path:
    return BUILD / f"{suite.name}.log"


def begin(suite: Suite, hub5: str) -> Running:
    command = [hub5 if suite.hub5 else sys.executable, "-m", "pytest", *suite.arguments]
    command += ["--durations=40", f"--junitxml={BUILD / suite.name}.xml"]
    with log_of(suite).open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | suite.environment)
    print(f"Started: {suite.name}, which prints to {log_of(suite)}", flush=True)
    return Running(suite, process, time.monotonic())


def next_end(running: list[Running], timeout: float) -> Ended | None:
    """Wait for any of them, and take it from the list; None if none ends so soon."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for each in running:
            # Like Popen.wait(), which doesn't tell the time that was used.
            pid, status, usage = os.wait4(each.process.pid, os.WNOHANG)
            if pid:
                code = each.process.returncode = os.waitstatus_to_exitcode(status)
                running.remove(each)
                return Ended(each.suite, code, time.monotonic() - each.begun, usage.ru_utime + usage.ru_stime)
        time.sleep(0.5)
    return None


def run(suites: Sequence[Suite], hub5: str) -> list[Ended]:
    waiting, running, ended = list(suites), list[Running](), list[Ended]()
    begun = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running.append(begin(waiting.pop(0), hub5))
            end = next_end(running, PULSE)
            if end is None:
                names = ", ".join(each.suite.name for each in running)
                print(f"{time.monotonic() - begun:.0f} s: running {names}", flush=True)
                continue
            ended.append(end)
            log = log_of(end.suite).read_text(errors="replace")
            print(f"\n{'=' * 20} {end.suite.name}, exit code {end.code}, {end.wall:.0f} s\n{log}", flush=True)
    finally:
        for each in running:
            each.process.send_signal(signal.SIGINT)  # after Ctrl-C it has had one already, and cleans up
        for each in running:
            each.process.wait()
    return ended


def durations(suites: Sequence[Suite]) -> Iterator[tuple[float, str]]:
    """Seconds and name of each test, fixtures included."""
    for suite in suites:
        report = BUILD / f"{suite.name}.xml"
        if report.exists():
            for case in ET.parse(report).iter("testcase"):
                yield float(case.get("time", 0)), f"{suite.name}: {case.get('classname')}::{case.get('name')}"


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """A context in which temporary files are in memory, where there is room for them.

    A hub's database, etcd and PostgreSQL write each commit through to the disk. On a slow disk that is most of what a
    test waits for, and one stall of it is longer than what a test may take.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM or available() < ROOM:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="casa-tests-", dir=MEMORY, ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o1777)  # as /tmp: some servers run as users of their own
        os.environ["TMPDIR"] = directory
        yield


def available() -> int:
    """Bytes of memory that can be had without swapping."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all tests.")
    parser.add_argument("--soak", action="store_true", help="what make test leaves out or shortens")
    parser.add_argument("hub5", help="the Python of the second environment")
    arguments = parser.parse_args()
    suites = SOAK if arguments.soak else EVERYTHING
    BUILD.mkdir(parents=True, exist_ok=True)
    for old in BUILD.iterdir():
        old.unlink()
    begun = time.monotonic()
    try:
        with scratch():
            ended = run(suites, arguments.hub5)
    except KeyboardInterrupt:
        return 130
    lines = [f"{seconds:8.2f} s  {name}\n" for seconds, name in sorted(durations(suites), reverse=True)]
    (BUILD / "durations.txt").write_text("".join(lines))
    print(f"\n{'suite':28}{'result':>8}{'wall':>9}{'CPU':>9}")
    for end in ended:
        result = "passed" if end.code == 0 else f"code {end.code}"
        print(f"{end.suite.name:28}{result:>8}{end.wall:7.0f} s{end.cpu:7.0f} s")
    print(f"{'all':36}{time.monotonic() - begun:7.0f} s{sum(end.cpu for end in ended):7.0f} s")
    print(f"All tests by their time: {BUILD / 'durations.txt'}")
    for end in ended:
        if end.code:
            print(f"Failed: {end.suite.name} (see {log_of(end.suite)})")
    return max(abs(end.code) for end in ended)


if __name__ == "__main__":
    sys.exit(main())
