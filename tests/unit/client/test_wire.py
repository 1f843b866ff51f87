"""Requests to hubs that fail in each way."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from casa_hub.client import wire
from casa_hub.client.errors import ClientError, RefusedError, TokenRefusedError
from casa_hub.client.wire import Wire
from tests.support.scripted_hub import ScriptedHub, scripted_hub

TOKEN = "SECRET-TOKEN"


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with scripted_hub() as running:
        yield running


def refusal(hub: ScriptedHub, status: int, content: object) -> ClientError:
    hub.answers["/x"] = status, content
    with pytest.raises(ClientError) as refused:
        Wire(hub.url, TOKEN).get("/x")
    assert TOKEN not in str(refused.value)
    return refused.value


def test_the_token_goes_with_the_request_and_is_in_no_repr(hub: ScriptedHub) -> None:
    hub.answers["/x"] = 200, {"a": 1}
    asking = Wire(hub.url, TOKEN)
    assert asking.get("/x") == {"a": 1}
    assert asking.post("/x", {"b": 2}) == {"a": 1}
    assert asking.post_form("/x", {"c": "d&e"}) == {"a": 1}
    assert Wire(hub.url).get("/x") == {"a": 1}
    assert [asked.headers.get("Authorization") for asked in hub.asked] == [f"token {TOKEN}"] * 3 + [None]
    assert [asked.body for asked in hub.asked] == [b"", b'{"b": 2}', b"c=d%26e", b""]
    assert TOKEN not in repr(asking)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(hub: ScriptedHub, status: int) -> None:
    with scripted_hub() as other:
        hub.headers["Location"] = f"{other.url}/stolen"
        error = refusal(hub, status, b"")
        assert "leads to another address (127.0.0.1); not followed" in str(error)
        hub.answers["/x"] = status, b""
        with pytest.raises(ClientError, match="not followed"):
            Wire(hub.url, TOKEN).post("/x", {})
        assert other.asked == []
    assert error.code == 2


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (403, "Missing or invalid credentials.", TokenRefusedError),
        (403, "Action is not authorized with current scopes; requires any of [custom:x]", TokenRefusedError),
        (403, "This needs the scope custom:casa-hub:credential:xcache", TokenRefusedError),
        (401, "no", TokenRefusedError),
        (403, "You are no member of /cms/uscms any more.", RefusedError),
        (404, "No server of yours runs.", RefusedError),
        (409, "Start the server first.", RefusedError),
        (400, "The lifetime is too long.", RefusedError),
        (503, "The credential can't be made now.", ClientError),
        (500, "Internal Server Error", ClientError),
        (429, "Too many requests", ClientError),
    ],
)
def test_a_no_is_told_apart_from_not_now(hub: ScriptedHub, status: int, message: str, kind: type[ClientError]) -> None:
    error = refusal(hub, status, {"status": status, "message": message})
    assert type(error) is kind
    assert message.rstrip(".") in str(error)
    assert error.code == (1 if issubclass(kind, RefusedError) else 2)


@pytest.mark.parametrize("status", [403, 404, 502, 503, 599])
@pytest.mark.parametrize("content", [b"<html>Not here</html>", b"", [1], {"message": 5}, b"\xff"])
def test_what_no_hub_says_is_no_refusal(hub: ScriptedHub, status: int, content: object) -> None:
    """A proxy whose hub is being restarted answers with a page: later the hub is there again."""
    error = refusal(hub, status, content)
    assert type(error) is ClientError
    assert f"its answer is not that of a hub (status {status})" in str(error)


def test_a_message_moves_no_cursor(hub: ScriptedHub) -> None:
    assert str(refusal(hub, 400, {"message": "a\x1b[2J\nb"})).endswith("a [2J b.")


def test_an_answer_that_is_no_json_is_told(hub: ScriptedHub) -> None:
    assert "its answer is not that of a hub" in str(refusal(hub, 200, b"<html>"))


def test_an_answer_that_doesn_t_end_is_not_read_to_its_end(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_LARGEST", 1000)
    assert "its answer doesn't end" in str(refusal(hub, 200, b"x" * 2000))
    assert "is not that of a hub" in str(refusal(hub, 404, b"x" * 2000))


@pytest.fixture
def raw() -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends these bytes, and keeps the connection open; the address, and the bytes."""
    listening, content, connections = socket.create_server(("127.0.0.1", 0)), list[bytes](), list[socket.socket]()

    def serve() -> None:
        try:
            while True:
                connection, _ = listening.accept()
                connections.append(connection)
                connection.recv(1 << 16)
                connection.sendall(b"".join(content))
        except OSError:
            return

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", content
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.1 200 OK\r\n"],
    ids=["nothing", "a part", "a head"],
)
def test_a_hub_that_stalls_is_given_up(
    raw: tuple[str, list[bytes]], sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_QUIET", 0.2)
    raw[1].append(sent)
    with pytest.raises(ClientError, match=r"can't be reached .TimeoutError"):
        Wire(raw[0], TOKEN).get("/x")


def test_what_is_no_http_is_told_without_repeating_it(raw: tuple[str, list[bytes]]) -> None:
    raw[1].append(b"SSH-2.0-secret\r\n")
    with pytest.raises(ClientError, match=r"can't be reached .BadStatusLine") as told:
        Wire(raw[0], TOKEN).get("/x")
    assert "secret" not in str(told.value)


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ClientError, match=r"can't be reached .Connection refused") as told:
            Wire(url, TOKEN).get("/x")
    assert told.value.code == 2


def test_no_proxy_reads_what_is_sent_without_encryption(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a proxy are set on many machines; without TLS it would read the token."""
    hub.answers["/x"] = 200, {}
    with scripted_hub() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        Wire(hub.url, TOKEN).get("/x")
        assert proxy.asked == []
    assert len(hub.asked) == 1


def test_a_hub_of_an_unknown_authority_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with scripted_hub(context) as hub:
        hub.answers["/x"] = 200, {}
        with pytest.raises(ClientError, match=r"its certificate is not accepted .*export SSL_CERT_FILE=ca.pem"):
            Wire(hub.url, TOKEN).get("/x")
        assert hub.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert Wire(hub.url, TOKEN).get("/x") == {}
