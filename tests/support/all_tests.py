"""All tests, in three processes at the same time: most of them wait for a server to start.

    python -m tests.support.all_tests PYTHON_WITH_JUPYTERHUB_5

What the first one prints is shown as it comes; that of each other when it has ended, and a line a minute until then.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

#: Tests against servers in pods, and against the facility's servers; the rest is found by leaving them out.
PEERS = ["tests/kubernetes", "tests/peers", "tests/helm"]
#: What depends on JupyterHub or on Python alone; servers of the facility don't know the difference.
WITH_HUB5 = ["-m", "not any_hub", "tests/unit", "tests/hub", "tests/helm", "tests/kubernetes/hub"]
LOGS = Path("build")


def main(hub5: str) -> int:
    LOGS.mkdir(exist_ok=True)
    begun = time.monotonic()
    suites = {
        "JupyterHub 6, pods and peers": [sys.executable, "-m", "pytest", *PEERS],
        "JupyterHub 5.5": [hub5, "-m", "pytest", *WITH_HUB5],
    }
    beside: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    here = subprocess.Popen([sys.executable, "-m", "pytest", *(f"--ignore={path}" for path in PEERS)])
    for number, (name, command) in enumerate(suites.items()):
        log = LOGS / f"tests-{number}.log"
        with log.open("wb") as output:
            beside[name] = subprocess.Popen(command, stdout=output, stderr=output), log
        print(f"Beside this: tests with {name}, which print to {log}", flush=True)
    try:
        codes = [here.wait()]
        while beside:
            for name, (process, log) in list(beside.items()):
                try:
                    codes.append(process.wait(60 / len(beside)))
                except subprocess.TimeoutExpired:
                    print(f"{time.monotonic() - begun:.0f} s: waiting for {name} ({log})", flush=True)
                else:
                    print(f"\nTests with {name}:\n{log.read_text(errors='replace')}", flush=True)
                    del beside[name]
    except KeyboardInterrupt:  # the terminal has told them, too; they clean up
        return 130
    finally:
        for process, _ in beside.values():
            process.send_signal(signal.SIGINT)
            process.wait()
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
