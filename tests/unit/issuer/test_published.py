"""The pages of the issuer without a hub around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from casa_hub.issuer.published import handlers
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import new_private_key


@pytest.fixture
async def jwks_uri(tmp_path: Path) -> AsyncIterator[str]:
    (tmp_path / "1.pem").write_bytes(new_private_key()[1])
    issuer = FacilityIssuer(keys=str(tmp_path), vo="cms", url="https://hub.example.org")
    server = HTTPServer(Application(handlers(issuer), xsrf_cookies=True))
    socket, port = bind_unused_port()
    server.add_socket(socket)
    yield f"http://127.0.0.1:{port}/casa/issuer/cms/jwks"
    server.stop()
    await server.close_all_connections()


async def test_a_proxy_may_keep_keys_and_no_error(jwks_uri: str) -> None:
    """Else a stranger could keep verifiers from the keys by asking wrongly."""
    kept = {}
    async with aiohttp.ClientSession() as session:
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            async with session.request(method, jwks_uri) as answer:
                kept[method] = (answer.status, answer.headers["Cache-Control"])
    assert kept == {
        "GET": (200, "public, max-age=300"),
        "HEAD": (200, "public, max-age=300"),
        "POST": (403, "no-store"),
        "OPTIONS": (405, "no-store"),
    }


async def test_an_answer_that_is_known_already_is_not_sent_again(jwks_uri: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(jwks_uri) as answer:
            tag = answer.headers["ETag"]
        async with session.get(jwks_uri, headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
