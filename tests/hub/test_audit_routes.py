"""The audit of a real hub reaches each place that the operator's guide names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from casa_hub.audit import PREFIX
from tests.support.hub import Browser, Hub, wait_for_port
from tests.support.idp import IdP

#: As in docs/operations.md, with files of the test.
ROUTES = """
import logging
c.EventLogger.handlers = [logging.FileHandler("events")]
c.JupyterHub.logging_config = {
    "handlers": {"audit": {"class": "logging.FileHandler", "filename": "audit", "level": "INFO"}},
    "loggers": {"casa_hub.audit": {"level": "INFO", "handlers": ["audit"]}},
}
"""


def test_a_refusal_is_in_the_log_in_the_event_log_and_in_a_file_of_its_own(
    make_hub: Callable[..., Hub], idp: IdP
) -> None:
    name = '[w 2026-03-01 12:00:00.000 x] casa-hub audit: {"action": "minted"}'
    idp.put_user("guest", preferred_username=name, **{"wlcg.groups": ["/atlas"]})
    hub = make_hub(ROUTES)
    with hub.running():
        assert Browser(hub).log_in("guest").status_code == 403
    [line] = re.findall(rf"^\[W [^]]* casa_hub\.audit [^]]*\] {PREFIX}(.*)$", hub.log, re.MULTILINE)
    told = json.loads(line)
    [event] = [json.loads(one) for one in (hub.directory / "events").read_text().splitlines()]
    assert event.pop("__schema__") == "urn:casa-hub:audit"
    assert {key: value for key, value in event.items() if not key.startswith("__")} == told
    assert (hub.directory / "audit").read_text() == f"{PREFIX}{line}\n"
    assert (told["action"], told["username"]) == ("refused", name)


def test_a_quiet_log_does_not_silence_the_routes_of_its_own(make_hub: Callable[..., Hub], idp: IdP) -> None:
    """Other levels than WARN make JupyterHub's own log longer or shorter, not the audit."""
    idp.put_user("guest", preferred_username="guest", **{"wlcg.groups": ["/atlas"]})
    hub = make_hub(ROUTES + 'c.JupyterHub.log_level = "ERROR"\n')
    hub.begin()
    try:
        wait_for_port(int(hub.url.rpartition(":")[2]))  # it doesn't say that it runs
        assert Browser(hub).log_in("guest").status_code == 403
    finally:
        hub.stop()
    assert PREFIX not in hub.log
    assert (hub.directory / "audit").read_text().count("refused") == 1
    assert len((hub.directory / "events").read_text().splitlines()) == 1
