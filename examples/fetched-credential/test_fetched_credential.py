"""The voucher by itself, and in a real hub with a real log-in. Run: pytest -p casa_hub.testing"""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fetched_credential import read

from casa_hub.credentials.fetching import Answer, FetchError, Why
from casa_hub.testing import IdP, MakeHub

NOW = datetime.now(UTC)


class Service(ThreadingHTTPServer):
    """Gives vouchers that name the person."""

    def __init__(self, idp: IdP) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.idp = idp
        self.status = 200
        #: The subject of each request.
        self.asked: list[str] = []
        self.given: list[str] = []

    def answer(self, token: str) -> dict[str, Any]:
        subject = self.idp.owner(token)
        self.asked.append(subject)
        if self.status != 200:
            return {"error": "no"}
        self.given.append(f"voucher-{len(self.asked)}-of-{subject}")
        return {"voucher": self.given[-1], "expires_in": 6}


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        content = json.dumps(self.server.answer(self.headers["Authorization"].removeprefix("Bearer "))).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def service(casa_idp: IdP) -> Iterator[Service]:
    with Service(casa_idp) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def answer(status: int, body: object) -> Answer:
    return Answer(status, body, NOW, "https://idp.example.org", "sub-of-ada")


def test_a_voucher_lives_as_long_as_the_service_says() -> None:
    fetched = read(answer(200, {"voucher": "v", "expires_in": 60}))
    assert (fetched.value, fetched.expires_at - fetched.at) == ("v", timedelta(seconds=60))
    assert "'v'" not in repr(fetched)


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, {}, Why.SIGN_IN),
        (403, {}, Why.REFUSED),
        (404, {}, Why.OUTAGE),
        (200, None, Why.OUTAGE),
        (200, [], Why.OUTAGE),
        (200, {"voucher": "v"}, Why.OUTAGE),
        (200, {"voucher": "v\n", "expires_in": 60}, Why.OUTAGE),
        (200, {"voucher": "v", "expires_in": -1}, Why.OUTAGE),
        (200, {"voucher": "v", "expires_in": True}, Why.OUTAGE),
        (200, {"voucher": "v", "expires_in": 1e9}, Why.OUTAGE),
    ],
)
def test_any_other_answer_says_who_has_to_act(status: int, body: object, why: Why) -> None:
    with pytest.raises(FetchError) as caught:
        read(answer(status, body))
    assert caught.value.why is why
    assert "v\n" not in str(caught.value)


def test_a_server_gets_a_voucher_and_a_new_one_in_time_and_starts_without_it(
    casa_idp: IdP, casa_hub_factory: MakeHub, service: Service
) -> None:
    """Through log-in, spawn and the hub's Keeper."""
    hub = casa_hub_factory(
        f"""
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.allow_all = True
c.Facility.credentials = ["voucher"]
c.Voucher.url = "http://127.0.0.1:{service.server_port}/new"
"""
    ).start()
    for name in ("ada", "bob"):
        casa_idp.put_user(f"sub-of-{name}", preferred_username=name)
    ada, bob = hub.browser(), hub.browser()
    assert ada.log_in("sub-of-ada").ok
    assert ada.spawn().ok
    first = hub.given("ada")
    assert first.files["site_voucher"].endswith(b"-of-sub-of-ada")
    assert first.environment["SITE_VOUCHER_FILE"] == str(first.directory / "site_voucher")
    second = hub.renewed(first, "voucher")
    assert second.files["site_voucher"] != first.files["site_voucher"]
    assert set(service.asked) == {"sub-of-ada"}

    service.status = 403
    assert bob.log_in("sub-of-bob").ok
    assert bob.spawn().ok
    assert hub.given("bob").missing == {"voucher": "voucher of the site: you may have none. Ask the site's help desk."}
    assert not [voucher for voucher in service.given if voucher in hub.log]
