"""Runs one command, and ensures that none of its processes outlives the program that started it.

Started by `casa_hub.demo.processes` as a script (standard library only, so that it starts fast):

    python -I -S supervise.py SIGNAL GRACE SCRATCH COMMAND...

Standard input is a pipe whose other end only the starter holds. It closes when the starter closes it, or is killed in
any way. Then the command gets SIGNAL, and GRACE seconds later all its processes that still run are killed. At the end
the directory SCRATCH is removed ("" for none).

The kernel's "parent death signal" would not be enough: it is cleared when a program changes its user (condor_master
does), is tied to a thread, and doesn't reach grandchildren. Instead this process is the reaper of all orphans below it
(PR_SET_CHILD_SUBREAPER), so no process can escape, not even by setsid and a double fork.
"""

import ctypes
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
#: Seconds for which to go on killing processes that don't die (uninterruptible sleep, set-user-id programs).
PATIENCE = 10.0


def descendants() -> Iterator[int]:
    """All processes below this one. By /proc/PID/stat: not every kernel has /proc/PID/task/TID/children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would double the time to start
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - likewise
                    # State and parent follow the program's name, which is in parentheses and may hold any character.
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(name))
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        yield from below
        todo += below


def start(command: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # in case this supervisor itself is killed
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606 - a shell is not wanted
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def kill_all() -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for pid in descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                print(f"process {pid} belongs to another user and can't be ended", file=sys.stderr, flush=True)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return  # no child is left, so no descendant: orphans become our children
        time.sleep(0.005)


def main() -> int:
    stop_signal, grace, scratch, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake, wake_writer = os.pipe()
    for end in (wake, wake_writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = start(command)
    status: int | None = None
    deadline: float | None = None  # set when the command is asked to end
    while status is None and (deadline is None or time.monotonic() < deadline):
        inputs = [wake] if deadline else [wake, 0]
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = select.select(inputs, [], [], timeout)[0]
        signals = os.read(wake, 4096) if wake in ready else b""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    status = ended[1]
        except ChildProcessError:
            pass
        asked = 0 in ready or set(signals) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        if asked and deadline is None and status is None:
            deadline = time.monotonic() + grace
            os.kill(child, stop_signal)
    kill_all()
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
