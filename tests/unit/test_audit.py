"""The audit: what is noted is complete, harmless to read, and never in the way of what it tells of."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_events.logger import EventLogger

from casa_hub import audit
from casa_hub.audit import PREFIX, Action, Event

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FULL = Event(
    Action.REVOKED,
    "alice",
    server="lab",
    start_id="0" * 32,
    credential="xcache",
    identifiers={"identifier": "hub/alice--lab/1f2e"},
    expires_at="2026-03-02T00:00:00+00:00",
    reason="She is not in /cms/uscms any more.",
    by="operator",
)


class Hub:
    """What `tell` needs of JupyterHub: its log, and its event log with the operator's handler."""

    def __init__(self, *handlers: logging.Handler) -> None:
        self.lines = io.StringIO()
        self.log = logging.Logger("JupyterHub", logging.INFO)  # noqa: LOG001 - each test's own
        self.log.addHandler(logging.StreamHandler(self.lines))
        self.eventlog = EventLogger(handlers=list(handlers))
        self.tornado_settings: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {"app": self, "eventlog": self.eventlog}

    def noted(self) -> list[dict[str, Any]]:
        lines = self.lines.getvalue().splitlines()
        assert all(line.startswith(PREFIX) for line in lines)
        return [json.loads(line.removeprefix(PREFIX)) for line in lines]


@pytest.fixture(autouse=True)
def _logger_is_given_back() -> Iterator[None]:
    """A logger is the process's, and its parent the last hub's."""
    logger = logging.getLogger(audit.LOGGER)
    parent = logger.parent
    yield
    logger.parent = parent


@pytest.fixture
def events() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def hub(events: io.StringIO) -> Hub:
    return Hub(logging.StreamHandler(events))


def test_an_event_is_in_the_log_and_in_the_operators_handler(hub: Hub, events: io.StringIO) -> None:
    audit.tell(hub.settings, FULL)
    [noted], event = hub.noted(), json.loads(events.getvalue())
    assert event.pop("__schema__") == "urn:casa-hub:audit"
    assert noted == {name: value for name, value in event.items() if not name.startswith("__")}
    assert datetime.fromisoformat(noted.pop("time")).tzinfo == UTC
    assert noted == {
        "action": "revoked",
        "username": "alice",
        "servername": "lab",
        "start_id": "0" * 32,
        "credential": "xcache",
        "identifiers": {"identifier": "hub/alice--lab/1f2e"},
        "expires_at": "2026-03-02T00:00:00+00:00",
        "reason": "She is not in /cms/uscms any more.",
        "by": "operator",
    }


@pytest.mark.parametrize("action", Action)
def test_every_action_fits_the_schema(action: Action, hub: Hub, events: io.StringIO) -> None:
    audit.tell(hub.settings, Event(action, "alice"))
    assert json.loads(events.getvalue())["action"] == str(action)
    assert [noted["action"] for noted in hub.noted()] == [str(action)]


def test_the_schema_knows_no_other_action() -> None:
    assert audit.schema()["properties"]["action"]["enum"] == [str(action) for action in Action]


def test_the_default_server_is_not_the_same_as_no_server() -> None:
    assert audit.fields(Event(Action.MINTED, "alice", server=""), NOW)["servername"] == ""
    assert "servername" not in audit.fields(Event(Action.ACCESS_ENDED, "alice"), NOW)


@pytest.mark.parametrize(
    ("action", "level"),
    [(Action.MINTED, "INFO"), (Action.RENEWED, "INFO"), (Action.REVOKED, "WARNING"), (Action.HELD_BACK, "WARNING")],
)
def test_what_to_act_upon_is_a_warning(action: Action, level: str, hub: Hub) -> None:
    hub.log.handlers[0].setFormatter(logging.Formatter("%(levelname)s %(name)s"))
    audit.tell(hub.settings, Event(action, "alice"))
    assert hub.lines.getvalue() == f"{level} casa_hub.audit\n"


ANY = st.text() | st.text(alphabet='\n\r\x1b\x00\u2028\u2029\x85\u202e\ud800ab {}":%s')


@given(text=ANY, key=ANY)
def test_no_text_can_forge_a_line(text: str, key: str) -> None:
    event = Event(
        Action.REFUSED, text, server=text, start_id=text, credential=text, identifiers={key: text}, reason=text, by=text
    )
    events = io.StringIO()
    hub = Hub(logging.StreamHandler(events))
    audit.tell(hub.settings, event)
    for written in (hub.lines.getvalue(), events.getvalue()):
        assert written.isascii()
        assert written.count("\n") == 1
        assert written.rstrip("\n").isprintable()
    [noted] = hub.noted()
    shown = [noted["username"], noted["servername"], noted.get("reason", ""), *noted["identifiers"].values()]
    assert not any(set(one) & set("\n\r\x1b\x00\u2028\u2029\x85\u202e\ud800") for one in shown)


def test_what_comes_from_outside_doesnt_fill_a_disk(hub: Hub) -> None:
    many = {f"{number}": "x" * 10_000 for number in range(1000)}
    audit.tell(hub.settings, Event(Action.MINTED, "x" * 100_000, identifiers=many, reason="x" * 100_000))
    assert len(hub.lines.getvalue()) < 25_000


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("SECRET of the handler")


def test_a_broken_handler_is_said_and_stops_nothing() -> None:
    hub = Hub(Broken())
    audit.tell(hub.settings, FULL)
    line, error = hub.lines.getvalue().splitlines()
    assert json.loads(line.removeprefix(PREFIX))["action"] == "revoked"
    assert error == "An audit event (revoked) could not be recorded: OSError"


def test_before_the_hub_has_its_settings_the_event_log_is_the_applications(hub: Hub, events: io.StringIO) -> None:
    audit.tell({"app": hub}, FULL)
    audit.tell(hub.settings, FULL)
    assert len(events.getvalue().splitlines()) == 2


def test_without_a_hub_nothing_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    audit.tell({}, FULL)


def test_a_hub_remembers_its_own_last_events_and_no_start_drives_out_what_matters(hub: Hub) -> None:
    other = Hub()
    audit.tell(hub.settings, FULL)
    for number in range(2 * audit.REMEMBERED):
        audit.tell(hub.settings, Event(Action.MINTED, f"user-{number}", server=""))
    assert [event["username"] for event in audit.last_events(hub)] == ["alice"]  # type: ignore[arg-type]
    routine = audit.last_events(hub, routine=True)  # type: ignore[arg-type]
    assert [event["username"] for event in routine[:2]] == ["user-199", "user-198"]
    assert len(routine) == audit.REMEMBERED
    assert audit.last_events(other) == []  # type: ignore[arg-type]
