"""What a copy of a macaroon is worth at a real XCache when its owner has lost the group: nothing, from its expiry on.

XCache asks nobody: a macaroon that was copied out of the server is good for the rest of its life, which is therefore
short. The file itself is gone at once.
"""

from __future__ import annotations

import os
import re
import signal
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from casa_hub.demo.xrootd import XCache
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from tests.support.hub import Hub, casa_config
from tests.support.idp import IdP
from tests.support.peers import Answer, http, root
from tests.support.person import Person
from tests.support.waiting import until

FILE = "/store/departure"
#: Seconds.
RECHECK, LIFE = 2.0, 18

CONFIG = """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 40, "slow_stop_timeout": 40}}
c.Facility.credentials = ["xcache"]
c.Facility.required = ["xcache"]
c.XCache.key_file = {key!r}
c.XCache.site_name = {site!r}
c.XCache.lifetime = {life}
c.LocalDelivery.network = "127.85.0.0/16"
c.Keeper.recheck_interval = {recheck}
"""


@pytest.fixture
def hub(tmp_path: Path, idp: IdP, xcache: XCache) -> Iterator[Hub]:
    (tmp_path / "key").write_bytes(Path(xcache.key_file).read_bytes())
    (tmp_path / "key").chmod(0o600)
    ours = CONFIG.format(key=str(tmp_path / "key"), site=xcache.site, life=LIFE, recheck=RECHECK)
    made = Hub(tmp_path, casa_config(idp.issuer) + ours, proxy=False)
    with made.running():
        yield made
    for path in tmp_path.glob("casa-hub-servers/*/process"):
        process = signed_in(path)
        if process is not None and process.alive:
            os.killpg(process.pid, signal.SIGKILL)


def expiry(macaroon: str) -> float:
    """Epoch seconds."""
    raw = urlsafe_b64decode(macaroon + "=" * (-len(macaroon) % 4))
    [before] = re.findall(rb"before:(\S+)", raw)
    return datetime.fromisoformat(before.decode()).timestamp()


def test_a_copied_macaroon_is_good_until_it_expires_and_no_longer(
    hub: Hub, idp: IdP, xcache: XCache, capsys: pytest.CaptureFixture[str]
) -> None:
    xcache.origin.add(FILE, b"of the experiment\n")
    ways: dict[str, Callable[[str], Answer]] = {
        "https": lambda token: http(xcache, FILE, token, scheme="https"),
        "root": lambda token: root(xcache, FILE, token),
    }
    user = Person(hub, idp)
    assert user.browser.spawn().status_code in (201, 202)
    until(lambda: hub.api("GET", f"/users/{user.name}").json()["servers"][""]["ready"], "it is ready")
    file = hub.directory / "casa-hub-servers" / Server("", user.name).slug / "xcache_token"
    process = signed_in(file.with_name("process"))
    assert process is not None
    copy = file.read_text()
    until(lambda: file.read_text() != copy, "it is renewed")

    user.is_in_groups("/cms")
    begin = time.time()

    def gone() -> bool:
        """Until then, copy each new one."""
        nonlocal copy
        try:
            copy = file.read_text()
        except FileNotFoundError:
            return True
        return False

    until(gone, "the file is gone")
    after = time.time() - begin
    # At this moment, the copy is as good as ever: say so, rather than promise more.
    assert expiry(copy) - time.time() > 1
    assert http(xcache, FILE, copy, scheme="https").content == b"of the experiment\n"
    until(lambda: not process.alive, "the server has ended")

    seen: dict[str, float] = {}
    good: dict[str, float] = {}
    while len(seen) < len(ways):
        for way, ask in ways.items():
            asked = time.time()
            answer = ask(copy)
            assert answer.status in {200, 401, 403}, answer
            if answer.status == 200:
                assert way not in seen, "refused once, and accepted again"
                good[way] = asked
            else:
                seen.setdefault(way, time.time())
        assert time.time() < expiry(copy) + 40, f"still accepted: {ways.keys() - seen.keys()}"
    for way in ways:
        # XCache's clock is this machine's. It was taken until the last second, and not from the first after it on.
        assert good[way] <= expiry(copy) + 1
        assert seen[way] >= expiry(copy) - 1
    others = {way: round(moment - expiry(copy), 1) for way, moment in seen.items()}
    with capsys.disabled():
        print(
            f"\nfile gone {after:.1f} s after the change at the provider; a copy minted for {LIFE} s was accepted then"
            f" and refused {expiry(copy) - begin:.1f} s after the change, at its expiry (seen so much later: {others})"
        )
    assert after <= RECHECK + 30
    assert hub.api("GET", "/user", token=user.token).status_code == 403
