"""What `casa-hub check` makes of what stands at the issuer's address."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from traitlets.config import Config

from casa_hub.checks import facility_issuer
from casa_hub.checks.findings import Finding, Status
from casa_hub.checks.site import Site
from casa_hub.checks.web import Answer
from casa_hub.demo.certificates import make_host_certificate
from casa_hub.facility import Facility
from casa_hub.issuer.tokens import new_private_key

ISS = "https://hub.example.org/hub/casa/issuer/cms"
SOUND = {"issuer": ISS, "jwks_uri": f"{ISS}/jwks"}
FIRST, SECOND, FOREIGN = (new_private_key()[0] for _ in range(3))
OWN = {key.kid: key.kid for key in (FIRST, SECOND)}


def answer(status: int, document: Any = None, **headers: str) -> Answer:
    return Answer(status, headers, b"<html>" if document is None else json.dumps(document).encode(), 0.0)


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (answer(200, SOUND), Status.OK, "under this very name"),
        (
            answer(200, {**SOUND, "issuer": ISS + "/"}),
            Status.ERROR,
            f"calls itself '{ISS}/'. Verifiers compare the two",
        ),
        (answer(200, {**SOUND, "jwks_uri": "http://hub.example.org/jwks"}), Status.ERROR, "which is not https"),
        (answer(200, {"issuer": ISS}), Status.ERROR, "which is not https"),
        (
            answer(302, Location="https://hub.example.org/hub/login?next=%2Fsecret"),
            Status.ERROR,
            "sends verifiers on to 'hub.example.org/hub/login' (status 302). Let the proxy hand",
        ),
        (answer(401), Status.ERROR, "asks for a log-in (status 401). Let the proxy hand"),
        (answer(403), Status.ERROR, "asks for a log-in"),
        (answer(404), Status.ERROR, "started without FacilityIssuer, answers there: restart it"),
        (answer(200, **{"Content-Type": "text/html"}), Status.ERROR, "no JSON document (status 200, 'text/html')"),
        (answer(200, ["issuer"]), Status.ERROR, "no JSON document"),
        (answer(503), Status.UNSEEN, "fails with status 503"),
    ],
)
def test_what_the_description_must_say(said: Answer, status: Status, words: str) -> None:
    found = facility_issuer.read_description(ISS, said)
    assert found.status is status
    assert words in str(found)
    assert "secret" not in str(found), "the query of a redirect may hold a state"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([FIRST.jwk, SECOND.jwk], ["publishes the keys of this configuration and no others (2)"]),
        ([FIRST.jwk], [f"lacks the key {SECOND.kid!a}, so verifiers will refuse what it signs"]),
        (
            [FIRST.jwk, SECOND.jwk, FOREIGN.jwk],
            [f"publishes the key {FOREIGN.kid!a}, which is in no file of FacilityIssuer.keys nor in extra_jwks"],
        ),
        # Known by its numbers: an attacker may choose the name.
        (
            [FIRST.jwk, {**FOREIGN.jwk, "kid": SECOND.kid}],
            [f"publishes the key {SECOND.kid!a}", f"lacks the key {SECOND.kid!a}"],
        ),
        ([FIRST.jwk, {**SECOND.jwk, "kid": "2"}], [f"calls a key '2', while tokens call it {SECOND.kid!a}"]),
        ([FIRST.jwk, SECOND.jwk, {"kty": "oct", "kid": "x"}], ["has 'x', which is no key of type EC or RSA"]),
        ([FIRST.jwk, SECOND.jwk, "x"], ["has 'x', which is no key"]),
        ([], ["has no keys"]),
        (None, ["has no keys"]),
    ],
)
def test_the_published_keys_are_those_of_the_configuration(keys: Any, words: list[str]) -> None:
    found = facility_issuer.read_keys("there", {"keys": keys}, OWN)
    assert [text in one.problem for one, text in zip(found, words, strict=True)] == [True] * len(words), found
    assert {one.status for one in found} == {
        Status.OK if len(keys or ()) == 2 and not found[0].remedy else Status.ERROR
    }


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Cache-Control": "public, max-age=300", "Age": "299"}, []),
        ({}, []),
        ({"Cache-Control": "public, max-age=86400"}, ["for 86400 s and more, while the hub says 300"]),
        ({"cache-control": "max-age=300", "age": "4000"}, ["for 4000 s and more"]),
        ({"Age": "soon"}, []),
    ],
)
def test_a_proxy_that_keeps_the_keys_for_long_is_told(headers: dict[str, str], words: list[str]) -> None:
    found = facility_issuer.read_age("there", answer(200, {}, **headers))
    assert [text in one.problem for one, text in zip(found, words, strict=True)] == [True] * len(words)


# -- with a server -----------------------------------------------------------------------------------------------------


def site(directory: Path, url: str) -> Site:
    if not list(directory.glob("*.pem")):
        (directory / "1.pem").write_bytes(new_private_key()[1])
    section = {"keys": str(directory), "vo": "cms", "url": url}
    return Site(None, facility=Facility(config=Config(FacilityIssuer=section)))


async def look(one: Site) -> list[Finding]:
    return [finding async for finding in facility_issuer.look(one)]


async def test_a_facility_without_an_issuer_is_not_asked() -> None:
    assert await look(Site(None)) == []
    assert await look(Site(None, facility=Facility())) == []


async def test_nobody_there_is_no_error_before_the_first_start(tmp_path: Path) -> None:
    (found,) = await look(site(tmp_path, f"https://localhost:{unused_port()}/hub/casa/issuer"))
    assert found.status is Status.UNSEEN
    assert "can't be reached" in found.problem
    assert "network policies" in found.remedy
    assert "/cms/.well-known/openid-configuration says" in found.remedy


async def test_a_certificate_that_verifiers_do_not_trust_is_an_error(tmp_path: Path) -> None:
    made = make_host_certificate(tmp_path / "tls")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.certificate, made.key)
    server = TestServer(web.Application(), host="localhost")
    await server.start_server(ssl=context)
    try:
        (found,) = await look(site(tmp_path, str(server.make_url("/hub/casa/issuer"))))
    finally:
        await server.close()
    assert found.status is Status.ERROR, found
    assert "unable to get local issuer certificate" in found.problem
    assert "public authority" in found.remedy
