"""The demo with servers on Kubernetes, as its user meets it: the command, what it prints, and that nothing is left."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from casa_hub.demo.browser import Browser
from casa_hub.loopback import free_port
from tests.support.kubernetes import build
from tests.support.kubernetes.cluster import cgroup_roots
from tests.support.peers import descendants, require, still_there

pytestmark = pytest.mark.timeout(400)

COMMAND = [sys.executable, "-m", "tests.support.kubernetes.demo"]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def in_its_network() -> None:
    """Not so here: the demo has a node of its own, and lets in who is outside."""
    require(build.node_parts)


def test_the_check_passes_every_step() -> None:
    """`make demo-kubernetes-check`: the same steps and the same notebook as `make demo-check`, in pods."""
    done = subprocess.run([*COMMAND, "--check"], cwd=ROOT, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 failed" in done.stdout
    for step in ("refused and told why", "inside: a Dask scheduler", "inside: HTCondor", "everything has ended"):
        assert step in done.stdout


def test_a_person_is_let_in_from_outside_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    # Not the usual port: the demo of another suite may take it while this one starts its cluster.
    port = free_port(test_a_person_is_let_in_from_outside_and_ctrl_c_ends_all_of_it)
    arguments = ["--directory", str(tmp_path / "demo"), "--port", str(port)]
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        lines = list(takewhile(lambda line: line != "  Ctrl-C ends everything.\n", demo.stdout))
        (url,) = [line.split()[1] for line in lines if line.startswith("  Open http")]
        browser = Browser(url)
        assert browser.log_in("oksana").status_code == 200
        browser.spawn("oksana")
        command = lines[next(n for n, line in enumerate(lines) if "To operate it" in line) + 1]
        checked = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=120)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        started = descendants(demo.pid)
        assert {"kubelet", "kube-apiserver", "containerd", "traefik"} <= {process.name for process in started}
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        assert demo.wait(60) == 0
    assert still_there(started, 20) == []
    assert not [root for root in cgroup_roots() if (root / f"casa-hub-test-{demo.pid}").exists()]
