"""Runs in a hub that is measured (executed by its configuration): what its event loop and its callbacks take.

Writes `measured.json` into the hub's directory whenever the file `measure` appears there, and begins afresh; and the
numbers of servers that are active and ready to `servers.json`, when they change: whoever asks the hub's API for them
again and again has it do work that is no part of a start.
"""

import asyncio
import gc
import json
import threading
import time
from pathlib import Path

from jupyterhub.app import JupyterHub

TICK = 0.002
#: Seconds between two counts of the servers.
COUNT = 0.05
held = {"longest": 0.0, "where": ""}
#: Python's garbage collector comes when it likes; in a hub with many objects it takes 0.2 s.
collecting = {"since": 0.0, "seconds": 0.0}
main_thread = threading.get_ident()


def on_collection(phase, _info):
    if phase == "start":
        collecting["since"] = time.thread_time()
    else:
        collecting["seconds"] += time.thread_time() - collecting["since"]


gc.callbacks.append(on_collection)


def timed(cls, name):
    """How long a function of ours keeps the hub's loop: the time of its thread, since others may have the processor."""
    inner = getattr(cls, name)

    def outer(*args, **kwargs):
        before, collected = time.thread_time(), collecting["seconds"]
        try:
            return inner(*args, **kwargs)
        finally:
            took = time.thread_time() - before - (collecting["seconds"] - collected)
            if threading.get_ident() == main_thread and took > held["longest"]:
                held.update(longest=took, where=f"{cls.__name__}.{name}")

    setattr(cls, name, outer)


def watch_ours():
    from kubernetes_asyncio.client import ApiClient

    from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery
    from casa_hub.facility import Facility

    timed(Facility, "mint")
    timed(KubernetesDelivery, "dress")
    timed(ApiClient, "sanitize_for_serialization")


def rss():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def write(name, answer):
    Path(f"{name}.new").write_text(json.dumps(answer))
    Path(f"{name}.new").replace(f"{name}.json")


def servers():
    users = dict.values(JupyterHub.instance().users or {})
    spawners = [spawner for user in users for spawner in user.spawners.values()]
    return {"active": sum(one.active for one in spawners), "ready": sum(one.ready for one in spawners)}


async def watch():
    stall, last = 0.0, time.perf_counter()
    cpu = time.process_time()
    known, count = None, 0.0
    while True:
        await asyncio.sleep(TICK)
        now = time.perf_counter()
        stall, last = max(stall, now - last - TICK), now
        if now >= count:
            count = now + COUNT
            if (there := servers()) != known:
                known = there
                write("servers", there)
        if Path("measure").exists():
            Path("measure").unlink()
            answer = {"stall": stall, "cpu": time.process_time() - cpu, "rss": rss(), "held": dict(held)}
            write("measured", answer)
            stall, cpu, last = 0.0, time.process_time(), time.perf_counter()
            held.update(longest=0.0, where="")
