"""One request for what a credential is made of: to whom it goes, with what, and what counts as no answer.

The provider and the service are servers of their own, which say what a test lets them say, byte by byte.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme

from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Why
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import ANSWER_LIMIT, Client, Reply, Transport

CLIENT_SECRET = "client-secret-value"
TOKEN = "access-token-of-ada"


def read(_: Answer) -> Fetched:
    return Fetched("x", datetime.now(UTC), datetime.now(UTC) + timedelta(hours=1))


def http(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Server:
    """An HTTP server that says what it is told to."""

    answers: dict[str, Any] = field(default_factory=dict)
    #: Path, headers and form of each request.
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    url: str = ""
    #: Set by an answer of None: it has the request, and says nothing.
    silent: asyncio.Event = field(default_factory=asyncio.Event)
    ends: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, context: ssl.SSLContext | None = None) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = (await reader.readexactly(int(headers.get("content-length", "0")))).decode()
        path = first.split(" ")[1]
        form = {name: values[0] for name, values in parse_qs(body, strict_parsing=bool(body)).items()}
        self.asked.append((path, headers, form))
        answer = self.answers.get(path, (404, {}))
        if answer is None:
            self.silent.set()
            await self.ends.wait()
        elif isinstance(answer, bytes):
            writer.write(answer)
        else:
            writer.write(http(answer[0], json.dumps(answer[1]).encode(), "Content-Type: application/json"))
        await writer.drain()
        writer.close()


@pytest.fixture
async def provider() -> AsyncIterator[Server]:
    one = Server()
    async with await one.begin():
        metadata = {
            "issuer": one.url,
            **{name: f"{one.url}/{name}" for name in ("authorization_endpoint", "token_endpoint", "userinfo_endpoint")},
            "jwks_uri": f"{one.url}/jwks",
        }
        one.answers["/.well-known/openid-configuration"] = (200, metadata)
        one.answers["/token_endpoint"] = (200, {"access_token": "exchanged"})
        yield one
        one.ends.set()


@pytest.fixture
async def service() -> AsyncIterator[Server]:
    one = Server()
    one.answers["/proxy"] = (200, {"proxy": "pem"})
    async with await one.begin():
        yield one
        one.ends.set()


async def fetches(provider: Server, **client: Any) -> AsyncIterator[Fetches]:
    issuer = Issuer(Client(provider.url, "hub", CLIENT_SECRET, **client))
    one = Fetches(issuer)
    yield one
    await one.close()
    await issuer.close()


@pytest.fixture
async def asks(provider: Server) -> AsyncIterator[Fetches]:
    async for one in fetches(provider, timeout=0.5):
        yield one


async def failure(asks: Fetches, fetch: Fetch, token: str = TOKEN) -> FetchError:
    with pytest.raises(FetchError) as caught:
        await asks.ask(fetch, token)
    told = str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
    assert token not in told
    assert CLIENT_SECRET not in told
    return caught.value


# -- to whom, and with what


async def test_an_exchange_is_asked_by_this_client_with_the_person_s_token_in_the_form(
    asks: Fetches, provider: Server
) -> None:
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "audience": "rucio", "subject_token": "no"}
    assert await asks.ask(Fetch("a token", read, form=form), TOKEN) == Reply(200, {"access_token": "exchanged"})
    path, headers, sent = provider.asked[-1]
    assert path == "/token_endpoint"
    assert headers["authorization"] == "Basic " + base64.b64encode(f"hub:{CLIENT_SECRET}".encode()).decode()
    assert sent == {**form, "subject_token": TOKEN}


async def test_a_client_that_names_itself_in_the_body_does_so_in_an_exchange(provider: Server) -> None:
    async for asks in fetches(provider, basic_auth=False):
        await asks.ask(Fetch("a token", read, form={"audience": "rucio"}), TOKEN)
    _, headers, sent = provider.asked[-1]
    assert "authorization" not in headers
    assert sent == {
        "audience": "rucio",
        "subject_token": TOKEN,
        "client_id": "hub",
        "client_secret": CLIENT_SECRET,
    }


async def test_a_path_is_below_the_issuer_and_is_asked_with_the_person_s_token_as_bearer(
    asks: Fetches, provider: Server
) -> None:
    provider.answers["/iam/proxycert"] = (200, {"certificate_chain": "pem"})
    fetch = Fetch("a proxy", read, url="/iam/proxycert", form={"lifetimeSecs": "3600"})
    assert (await asks.ask(fetch, TOKEN)).body == {"certificate_chain": "pem"}
    path, headers, sent = provider.asked[-1]
    assert (path, headers["authorization"]) == ("/iam/proxycert", f"Bearer {TOKEN}")
    assert sent == {"lifetimeSecs": "3600", "client_id": "hub", "client_secret": CLIENT_SECRET}


async def test_a_service_of_the_site_s_never_learns_the_client_s_secret(
    asks: Fetches, provider: Server, service: Server
) -> None:
    fetch = Fetch("a badge", read, url=f"{service.url}/proxy", form={"for": "ada"})
    assert (await asks.ask(fetch, TOKEN)).body == {"proxy": "pem"}
    [(_, headers, sent)] = service.asked
    assert (headers["authorization"], sent) == (f"Bearer {TOKEN}", {"for": "ada"})
    assert CLIENT_SECRET not in str(service.asked)
    assert provider.asked == []


@pytest.mark.parametrize("url", ["http://service.example.org/x", "ftp://127.0.0.1/x", "nonsense", "https://[::1/x"])
async def test_no_token_leaves_the_machine_in_the_clear(asks: Fetches, url: str) -> None:
    assert (await failure(asks, Fetch("a badge", read, url=url))).why is Why.OUTAGE


@pytest.mark.parametrize("token", ["a\r\nX: y", "a b", "é", ""])
async def test_a_token_that_would_end_the_header_is_not_sent(asks: Fetches, service: Server, token: str) -> None:
    with pytest.raises(FetchError):
        await asks.ask(Fetch("a badge", read, url=f"{service.url}/proxy"), token)
    assert service.asked == []


async def test_a_redirect_is_not_followed_with_the_token(asks: Fetches, service: Server) -> None:
    service.answers["/old"] = http(302, b"", f"Location: {service.url}/proxy")
    reply = await asks.ask(Fetch("a badge", read, url=f"{service.url}/old"), TOKEN)
    assert reply.status == 302
    assert [path for path, _, _ in service.asked] == ["/old"]


async def test_a_service_with_a_certificate_of_the_site_s_is_believed_by_its_ca_alone(
    provider: Server, tmp_path: Path
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    for name, ca in (("ca.pem", authority), ("other.pem", other)):
        ca.cert_pem.write_to_path(tmp_path / name)
    secure = Server(answers={"/proxy": (200, {"proxy": "pem"})})
    async with await secure.begin(context):
        async for asks in fetches(provider, timeout=5):
            fetch = Fetch("a badge", read, url=f"{secure.url}/proxy", ca_file=str(tmp_path / "ca.pem"))
            replies = await asyncio.gather(*(asks.ask(fetch, TOKEN) for _ in range(5)))
            assert {reply.status for reply in replies} == {200}
            for bad in ("other.pem", "", "absent.pem"):
                ca_file = str(tmp_path / bad) if bad else ""
                assert (await failure(asks, Fetch("a badge", read, url=fetch.url, ca_file=ca_file))).why is Why.OUTAGE
    assert len(secure.asked) == 5


async def test_the_first_requests_of_all_share_their_connections(tmp_path: Path) -> None:
    """Each made a session of its own while the authority was read, and nobody ever closed it."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    transport = Transport(Client("", "", "", ca_file=str(tmp_path / "ca.pem")))
    sessions = await asyncio.gather(*(transport.session() for _ in range(5)))
    assert len(set(map(id, sessions))) == 1
    await transport.close()


# -- what counts as no answer


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_not_now_is_an_outage(asks: Fetches, provider: Server, status: int) -> None:
    provider.answers["/token_endpoint"] = (status, {"error": "invalid_grant"})
    error = await failure(asks, Fetch("a token", read))
    assert error.why is Why.OUTAGE
    assert f"HTTP status {status}" in str(error)


@pytest.mark.parametrize("status", [200, 201, 302, 400, 401, 403, 404])
async def test_any_other_status_is_an_answer(asks: Fetches, provider: Server, status: int) -> None:
    provider.answers["/token_endpoint"] = (status, {"error": "access_denied"})
    assert await asks.ask(Fetch("a token", read), TOKEN) == Reply(status, {"error": "access_denied"})


HALVES: dict[str, bytes] = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b'{"access_token": "half',
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n" + b'{"access_token": "half',
    "too much": http(200, b'"' + b"x" * (ANSWER_LIMIT + 1) + b'"'),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("answer", HALVES.values(), ids=HALVES)
async def test_half_an_answer_is_an_outage(asks: Fetches, provider: Server, answer: bytes) -> None:
    provider.answers["/token_endpoint"] = answer
    assert (await failure(asks, Fetch("a token", read))).why is Why.OUTAGE


@pytest.mark.parametrize("body", [b'{"access_token": "half', b"<html>", b"", b"\xff\xfe", b"[" * 100_000])
async def test_an_answer_that_is_no_json_is_one_without_a_body(asks: Fetches, provider: Server, body: bytes) -> None:
    provider.answers["/token_endpoint"] = http(200, body)
    assert (await asks.ask(Fetch("a token", read), TOKEN)).body is None


async def test_silence_is_an_outage_when_the_time_of_one_request_is_over(asks: Fetches, provider: Server) -> None:
    provider.answers["/token_endpoint"] = None
    began = time.monotonic()
    error = await failure(asks, Fetch("a token", read))
    assert time.monotonic() - began < 5
    assert "no answer within 0.5 s" in str(error)
    assert provider.silent.is_set()


async def test_a_provider_that_is_gone_is_an_outage(provider: Server, service: Server) -> None:
    async for asks in fetches(provider, timeout=5):
        provider.answers["/.well-known/openid-configuration"] = (503, {})
        assert (await failure(asks, Fetch("a token", read))).why is Why.OUTAGE
        # Another one is asked without it.
        assert (await asks.ask(Fetch("a badge", read, url=f"{service.url}/proxy"), TOKEN)).status == 200


async def test_what_is_fetched_says_nothing_of_the_provider_s_health(provider: Server) -> None:
    """The operator's page and the membership checks go by what the provider answers to them."""
    issuer = Issuer(Client(provider.url, "hub", CLIENT_SECRET, timeout=0.5))
    await issuer.metadata()
    before = issuer.contact.silent_since
    one = Fetches(issuer)
    provider.answers["/token_endpoint"] = (503, {})
    await failure(one, Fetch("a token", read))
    assert issuer.contact.silent_since == before
    await one.close()
    await issuer.close()
