"""A log-in by a browser, of which a test plays the part; the hub's part is in tests/hub/test_laptop.py."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from casa_hub.client import login
from casa_hub.client.errors import ClientError, RefusedError
from casa_hub.client.hub import LogIn
from tests.support.scripted_hub import Asked, ScriptedHub, scripted_hub

Query = dict[str, str]


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with scripted_hub() as running:
        yield running


def visit(url: str, **headers: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Person:
    """Does something as soon as the address is said, in another thread as a browser would."""

    def __init__(self, does: Callable[[Query], None]) -> None:
        self.does = does
        self.said: list[str] = []
        self.thread: threading.Thread | None = None
        self.query: Query = {}

    def hears(self, line: str) -> None:
        self.said.append(line)
        if "casa/laptop?" in line:
            query = parse_qs(urlsplit(line.rsplit(maxsplit=1)[-1]).query, strict_parsing=True)
            self.query = {name: value for name, (value,) in query.items()}
            self.thread = threading.Thread(target=self.does, args=(self.query,))
            self.thread.start()

    def logs_in(self, hub: ScriptedHub, timeout: float = 20, credentials: tuple[str, ...] = ("xcache",)) -> LogIn:
        try:
            return login.log_in(hub.url, credentials, browser=False, say=self.hears, timeout=timeout)
        finally:
            if self.thread is not None:
                self.thread.join()


def accepts(query: Query) -> None:
    status, page = visit(f"{query['redirect_uri']}?{urlencode({'code': 'CODE', 'state': query['state']})}")
    assert status == 200
    assert "go back to your terminal" in page


def granted(challenge: Callable[[], str]) -> Callable[[Asked], tuple[int, object]]:
    """A hub's answer that holds only if the verifier is that of the challenge."""

    def answer(asked: Asked) -> tuple[int, object]:
        form = {name: value for name, (value,) in parse_qs(asked.body.decode()).items()}
        digest = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode()
        if form["code"] != "CODE" or digest.rstrip("=") != challenge():
            return 400, {"status": 400, "message": "invalid_grant"}
        scopes = ["custom:casa-hub:credential:xcache", "self"]
        return 200, {"token": "TOKEN", "user": "alice", "expires_at": "2026-03-01T12:00:00Z", "scopes": scopes}

    return answer


def test_a_log_in_brings_a_token_for_a_code_that_only_this_process_can_use(hub: ScriptedHub) -> None:
    person = Person(accepts)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    assert person.logs_in(hub) == LogIn(hub.url, "TOKEN", "alice", "2026-03-01T12:00:00Z", ("xcache",))
    assert person.query["credentials"] == "xcache"
    assert person.query["code_challenge_method"] == "S256"
    assert person.query["client"] == socket.gethostname()[:64]
    port = urlsplit(person.query["redirect_uri"]).port
    assert person.query["redirect_uri"] == f"http://127.0.0.1:{port}/"
    assert any(f"ssh -L {port}:127.0.0.1:{port}" in line for line in person.said)
    with pytest.raises(urllib.error.URLError):  # nobody listens any more
        visit(person.query["redirect_uri"])


def test_each_log_in_has_secrets_of_its_own(hub: ScriptedHub) -> None:
    person = Person(accepts)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    seen = set()
    for _ in range(2):
        person.logs_in(hub)
        seen |= {person.query["state"], person.query["code_challenge"]}
    assert len(seen) == 4


def test_without_wishes_the_hub_decides(hub: ScriptedHub) -> None:
    person = Person(accepts)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    person.logs_in(hub, credentials=())
    assert "credentials" not in person.query


def test_only_the_hub_s_own_answer_counts(hub: ScriptedHub) -> None:
    """What a page of another site, or another user of this machine, can have sent to the port changes nothing."""
    strange = []

    def others_first(query: Query) -> None:
        address, state = query["redirect_uri"], query["state"]
        paths = (
            "",
            "?code=CODE",
            "?code=STOLEN&state=",
            f"?code=STOLEN&state={state}x",
            f"?code=STOLEN&state=x&state={state}",
            "?error=access_denied&state=x",
            f"?state={state}",
            f"favicon.ico?code=STOLEN&state={state}",
            "?state=%ff&code=%ff",
        )
        strange.extend(visit(address + path)[0] for path in paths)
        # By a name that another site's owner leads here (DNS rebinding).
        strange.append(visit(f"{address}?code=STOLEN&state={state}", Host="evil.example.org")[0])
        accepts(query)

    person = Person(others_first)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    assert person.logs_in(hub).user == "alice"
    assert strange == [404] * 10
    assert len(hub.asked) == 1


def test_connections_that_ask_nothing_hold_nobody_up(hub: ScriptedHub) -> None:
    """As browsers open them in advance."""

    def idle_first(query: Query) -> None:
        port = urlsplit(query["redirect_uri"]).port
        with socket.create_connection(("127.0.0.1", port or 0)):
            accepts(query)

    person = Person(idle_first)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    assert person.logs_in(hub).user == "alice"


def test_a_no_is_told(hub: ScriptedHub) -> None:
    def refuses(query: Query) -> None:
        answer = {"error": "access_denied", "error_description": "not a\nmember", "state": query["state"]}
        status, page = visit(f"{query['redirect_uri']}?{urlencode(answer)}")
        assert (status, "Not logged in" in page, "member" in page) == (200, True, False)

    with pytest.raises(RefusedError, match=r"log-in: the hub has refused it \(not a member\)"):
        Person(refuses).logs_in(hub)
    assert hub.asked == []


def test_a_code_that_the_hub_doesn_t_take_is_told(hub: ScriptedHub) -> None:
    hub.answers["/hub/casa/laptop/token"] = 400, {"status": 400, "message": "The code was used before."}
    with pytest.raises(RefusedError, match="The code was used before"):
        Person(accepts).logs_in(hub)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"token": "", "user": "alice", "scopes": []},
        {"token": "A B", "user": "alice", "scopes": []},
        {"token": "A\r\nB", "user": "alice", "scopes": []},
        {"token": "A", "user": None, "scopes": []},
        {"token": "A", "user": "alice"},
        {"token": "A", "user": "alice", "scopes": [5]},
        {"token": "A", "user": "alice", "scopes": [], "expires_at": "soon"},
    ],
)
def test_an_answer_without_a_token_is_told(hub: ScriptedHub, answer: object) -> None:
    hub.answers["/hub/casa/laptop/token"] = 200, answer
    with pytest.raises(ClientError, match="its answer to the log-in has no token"):
        Person(accepts).logs_in(hub)


def test_nobody_logs_in(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_PULSE", 0.01)
    person = Person(lambda _: None)
    with pytest.raises(ClientError, match=r"log-in: nobody logged in within 0.002 minutes. Begin again."):
        person.logs_in(hub, timeout=0.12)


def test_while_it_waits_it_says_so(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_PULSE", 0.01)
    waiting = threading.Event()

    def later(query: Query) -> None:
        assert waiting.wait(20)
        accepts(query)

    person = Person(later)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    hears = person.hears

    def hears_more(line: str) -> None:
        hears(line)
        if line.startswith("Waiting for the log-in, for 5 more minutes"):
            waiting.set()

    monkeypatch.setattr(person, "hears", hears_more)
    assert person.logs_in(hub, timeout=300).user == "alice"


def test_the_browser_is_opened_where_there_is_one(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(login.webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    person = Person(accepts)
    hub.answers["/hub/casa/laptop/token"] = granted(lambda: person.query["code_challenge"])
    login.log_in(hub.url, ("xcache",), browser=True, say=person.hears, timeout=20)
    assert person.said == [f"Log in in the browser that opens, or at:\n  {opened[0]}"]
    assert len(opened[0]) < 1000  # a longer one is forgotten by hubs during the sign-in
    assert "verifier" not in opened[0]
