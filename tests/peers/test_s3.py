"""A real S3 with a real STS (SeaweedFS), and boto3 in a server of a real hub, whose issuer's tokens the STS takes."""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import boto3
import pytest
import requests
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casa_hub.checks import s3 as checks
from casa_hub.credentials.s3 import S3
from casa_hub.credentials.tokens import unverified_claims
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import SigningKey, new_private_key, wlcg_claims
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from tests.support import seaweedfs
from tests.support.hub import Hub
from tests.support.peers import require
from tests.support.seaweedfs import SeaweedFS
from tests.support.tokens import by_hand
from tests.support.waiting import until
from tests.support.with_token import WITH_TOKEN

SERVER = Path(seaweedfs.__file__).with_name("server_with_s3.py")
#: Seconds that a token lives; the hub renews it when a third is left.
LIFE = 18

CONFIG = (
    WITH_TOKEN
    + """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.cleanup_servers = False
c.Authenticator.allow_all = True
c.Spawner.cmd = [sys.executable, {server!r}]
c.Spawner.environment = {{"PYTHONPATH": {root!r}}}
c.LocalDelivery.network = "127.87.0.0/16"
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.url = f"http://127.0.0.1:{{c.JupyterHub.hub_port}}/hub/casa/issuer"
c.FacilityIssuer.key_lead = 0
c.Facility.credentials = c.Facility.required = ["s3"]
c.S3.endpoint = {endpoint!r}
c.S3.role_arn = {role!r}
c.S3.lifetime = {life}
"""
)


def of_the_page() -> dict[str, Any]:
    """What docs/s3.md tells an operator of SeaweedFS."""
    page = Path(__file__).parents[2].joinpath("docs/s3.md").read_text(encoding="utf-8")
    [text] = re.findall(r'^```json\n(\{\n  "sts".+?)^```', page, re.DOTALL | re.MULTILINE)
    settings: dict[str, Any] = json.loads(text)
    return settings


class Site:
    """A hub with an issuer, an S3 that trusts it, and alice's server."""

    def __init__(self, weed: Path, directory: Path) -> None:
        hub_directory, s3_directory = directory / "hub", directory / "s3"
        for made in (hub_directory / "issuer", s3_directory):
            made.mkdir(parents=True, mode=0o700)
        self.s3 = SeaweedFS(weed, s3_directory)
        self.audience = self.s3.url
        self.keys = hub_directory / "issuer"
        self.key = self.add_key("1.pem")
        values = {"server": str(SERVER), "root": str(SERVER.parents[2]), "endpoint": self.s3.url, "life": LIFE}
        # The hub's address is part of the issuer's name, and the hub chooses it.
        self.hub = Hub(hub_directory, "", proxy=False)
        self.iss = f"{self.hub.url}/hub/casa/issuer/cms"
        self.settings = of_the_page()
        [provider], [role] = self.settings["providers"], self.settings["roles"]
        provider["config"].update(issuer=self.iss, clientIds=[self.audience])
        # Keys of a minute: an SDK asks for new ones long before the end, so that each request needs a sound token.
        self.settings["sts"].update(signingKey=base64.b64encode(os.urandom(32)).decode(), tokenDuration="1m")
        self.role: str = role["roleArn"]
        with (hub_directory / "jupyterhub_config.py").open("a") as config:
            config.write(CONFIG.format(**values, role=self.role))
        self.delivered = hub_directory / "casa-hub-servers" / Server("", "alice").slug
        options: dict[str, Any] = {"endpoint_url": self.s3.url, "region_name": "us-east-1"}
        self._options = options
        self._sts = boto3.client("sts", **options, config=Config(signature_version=UNSIGNED))

    def add_key(self, name: str) -> SigningKey:
        key, pem = new_private_key()
        (self.keys / f"{name}.new").write_bytes(pem)
        (self.keys / f"{name}.new").rename(self.keys / name)
        return key

    def start(self) -> None:
        self.s3.start(self.settings)
        administrator = self.client(self.s3.access_key, self.s3.secret_key)
        for name in ("alice", "bob"):
            administrator.create_bucket(Bucket=name)
        administrator.put_object(Bucket="bob", Key="secret", Body=b"of bob")
        self.hub.start()
        self.hub.api("POST", "/users/alice")
        assert self.hub.api("POST", "/users/alice/server").status_code in (201, 202)
        until(self.ready, "alice's server is ready", more=lambda: self.hub.log[-3000:])

    def ready(self) -> bool:
        servers = self.hub.api("GET", "/users/alice").json()["servers"]
        return bool(servers and servers[""]["ready"])

    def end(self) -> None:
        self.hub.stop(signal.SIGKILL)
        process = signed_in(self.delivered / "process")
        if process is not None and process.alive:
            os.killpg(process.pid, signal.SIGKILL)
        self.s3.stop()

    @property
    def delivered_token(self) -> str:
        return (self.delivered / "s3_token").read_text()

    def in_server(self, call: str, **arguments: str) -> dict[str, Any]:
        """What a call of boto3's returns in alice's server."""
        process = signed_in(self.delivered / "process")
        assert process is not None
        url = process.environment()["JUPYTERHUB_SERVICE_URL"]
        answer: dict[str, Any] = requests.get(f"{url}s3?{urlencode({'call': call, **arguments})}", timeout=120).json()
        return answer

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of a sound token, but for these; None leaves one out."""
        sound = wlcg_claims(
            issuer=self.iss,
            subject="alice",
            audience=self.audience,
            identifier=os.urandom(8).hex(),
            scope="",
            issued_at=int(time.time()),
            lifetime=600,
        )
        return {name: value for name, value in (sound | changes).items() if value is not None}

    def token(self, key: SigningKey | None = None, **changes: Any) -> str:
        return (key or self.key).sign(self.claims(**changes))

    def refused(self, token: str) -> str:
        """How the STS refuses a token; "" if it takes it."""
        answer = requests.post(self.s3.url, data=self.asking(token), timeout=60)
        if answer.ok:
            return ""
        assert answer.status_code in (400, 403), answer.text
        [code] = re.findall("<Code>(.+?)</Code>", answer.text)
        return str(code)

    def asking(self, token: str) -> dict[str, str]:
        """The request to the STS as AWS' API has it."""
        return {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": self.role,
            "RoleSessionName": "alice",
            "WebIdentityToken": token,
        }

    def session(self, token: str, name: str = "alice", **more: Any) -> dict[str, Any]:
        """The keys that the STS gives for a token. Raises ClientError."""
        keys: dict[str, Any] = self._sts.assume_role_with_web_identity(
            RoleArn=self.role, RoleSessionName=name, WebIdentityToken=token, **more
        )["Credentials"]
        return keys

    def client(self, key: str, secret: str, session: str | None = None) -> Any:
        """boto3's client for the S3."""
        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": session}
        return boto3.client("s3", **self._options, **keys)

    def client_of(self, token: str, name: str = "alice", **more: Any) -> Any:
        keys = self.session(token, name, **more)
        return self.client(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])


@pytest.fixture(scope="module")
def weed() -> Path:
    return require(seaweedfs.program)


@pytest.fixture(scope="module")
def site(weed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(weed, tmp_path_factory.mktemp("s3"))
    try:
        made.start()
        yield made
    finally:
        made.end()


def code_of(call: Callable[[], object]) -> str:
    """How a call is refused; "" if it isn't."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def test_a_notebook_writes_and_reads_without_a_setting(site: Site) -> None:
    assert "error" not in site.in_server("put_object", Bucket="alice", Key="a/histogram", Body="of alice")
    assert site.in_server("get_object", Bucket="alice", Key="a/histogram")["Body"] == "of alice"
    listed = site.in_server("list_objects_v2", Bucket="alice")
    assert [one["Key"] for one in listed["Contents"]] == ["a/histogram"]


def test_the_bucket_of_another_is_closed(site: Site) -> None:
    """By the token's ``sub``: bob's own token opens it."""
    refusals = [
        site.in_server("get_object", Bucket="bob", Key="secret"),
        site.in_server("put_object", Bucket="bob", Key="secret", Body="of alice"),
        site.in_server("delete_object", Bucket="bob", Key="secret"),
        site.in_server("list_objects_v2", Bucket="bob"),
        site.in_server("create_bucket", Bucket="bob2"),
    ]
    assert {answer.get("error") for answer in refusals} == {"AccessDenied"}, refusals
    bob = site.client_of(site.token(sub="bob"), "bob")
    assert bob.get_object(Bucket="bob", Key="secret")["Body"].read() == b"of bob"


def test_a_session_of_anothers_name_opens_no_more(site: Site) -> None:
    """The client chooses the name, so a policy must not go by it."""
    alice = site.client_of(site.token(), "bob")
    assert code_of(lambda: alice.get_object(Bucket="bob", Key="secret")) == "AccessDenied"
    assert code_of(lambda: alice.list_objects_v2(Bucket="alice")) == ""


def test_who_is_called_like_a_pattern_would_open_all_buckets(site: Site) -> None:
    """SeaweedFS puts the ``sub`` into the policy as it is. So the hub mints no such token (`S3.mint`)."""
    anybody = site.client_of(site.token(sub="*"))
    assert code_of(lambda: anybody.get_object(Bucket="bob", Key="secret")) == ""


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, claims and signature."""
    header, claims, signature = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
    return json.loads(header), json.loads(claims), signature


def tampered(site: Site) -> str:
    header, claims, signature = parts(site.token())
    return by_hand(header, claims | {"sub": "bob"}, signature)


def unsigned(site: Site) -> str:
    header, claims, _ = parts(site.token())
    return by_hand(header | {"alg": "none"}, claims)


def signed_with_the_public_key(site: Site) -> str:
    """What fools a verifier that lets the token say how it is to be verified: the public key is no secret."""
    header, claims, _ = parts(site.token())
    pem = site.key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = by_hand(header | {"alg": "HS256"}, claims).rpartition(".")[0]
    return by_hand(header | {"alg": "HS256"}, claims, hmac.digest(pem, signed.encode(), "sha256"))


def of_a_foreign_key_with_our_name(site: Site) -> str:
    foreign = new_private_key()[0]
    foreign.__dict__["kid"] = site.key.kid
    assert parts(foreign.sign({}))[0]["kid"] == site.key.kid
    return foreign.sign(site.claims())


def now(seconds: int) -> int:
    return int(time.time()) + seconds


REFUSED: dict[str, Callable[[Site], str]] = {
    "for another audience": lambda site: site.token(aud="https://xcache.example.org:1094"),
    "for no audience": lambda site: site.token(aud=None),
    "for everybody": lambda site: site.token(aud="https://wlcg.cern.ch/jwt/v1/any"),
    "of another issuer": lambda site: site.token(iss="https://evil.example.org/hub/casa/issuer/cms"),
    "of another VO": lambda site: site.token(iss=site.iss.replace("/cms", "/atlas")),
    "of no issuer": lambda site: site.token(iss=None),
    "expired": lambda site: site.token(exp=now(-2)),
    "without an end": lambda site: site.token(exp=None),
    "not yet valid": lambda site: site.token(nbf=now(600)),
    "of nobody": lambda site: site.token(sub=None),
    "of a key that isn't published": lambda site: site.token(new_private_key()[0]),
    "of a foreign key with the name of ours": of_a_foreign_key_with_our_name,
    "tampered with": tampered,
    "unsigned": unsigned,
    "signed with the public key": signed_with_the_public_key,
    "garbage": lambda _: "a.b.c",
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_sts_refuses_a_token_that_is(site: Site, case: str) -> None:
    assert site.refused(site.token()) == "", "it takes none at all"
    assert site.refused(REFUSED[case](site))


CHECKED: dict[str, tuple[Callable[[Site], dict[str, Any]], list[tuple[str, str]]]] = {
    "sound": (lambda _: {}, [("ok", "answers"), ("ok", "refuses a forged token"), ("ok", "takes this hub's tokens")]),
    "with another client ID": (
        lambda _: {"audience": "https://other.example.org"},
        [("ok", "answers"), ("ok", "refuses a forged token"), ("error", "refuses this hub's tokens")],
    ),
    "with another role": (
        lambda _: {"role_arn": "arn:aws:iam::role/other"},
        [("ok", "answers"), ("ok", "refuses a forged token"), ("warning", "its role is for some users only")],
    ),
    "sound, with the identity provider's tokens": (
        lambda site: {"source": "exchange", "audience": site.audience},
        [("ok", "answers"), ("ok", "refuses a forged token"), ("ok", "only a user's token shows")],
    ),
    "with the hub's address": (
        lambda site: {"endpoint": site.hub.url, "audience": site.audience},
        [("warning", "doesn't say that it is an S3"), ("error", "is no STS that takes tokens")],
    ),
}


@pytest.mark.parametrize("case", CHECKED)
async def test_casa_hub_check_finds_what_differs(site: Site, case: str) -> None:
    settings, expected = CHECKED[case]
    minter = S3(**({"endpoint": site.s3.url, "role_arn": site.role} | settings(site)))
    url = site.iss.rpartition("/")[0]
    minter.issuer = FacilityIssuer(keys=str(site.keys), vo="cms", url=url, key_lead=0)
    asked: Any = SimpleNamespace(minter=lambda name: {"s3": minter}[name])
    found = [one async for one in checks.look(asked) if not one.thing.startswith("clock")]
    assert [str(one.status) for one in found] == [status for status, _ in expected], found
    for one, (_, words) in zip(found, expected, strict=True):
        assert words in str(one)


def test_keys_outlive_their_token(site: Site) -> None:
    """AWS' shortest life of keys is a quarter of an hour, whatever the token's. The role limits the longest."""
    token = site.token(exp=now(3))
    alice = site.client_of(token, DurationSeconds=900)
    until(lambda: site.refused(token) == "ExpiredTokenException", "the token is refused", 30)
    alice.put_object(Bucket="alice", Key="late", Body=b"after the end of the token")
    long = site.session(site.token(), DurationSeconds=12 * 3600)
    assert long["Expiration"] - datetime.now(UTC) <= timedelta(hours=1)


def test_an_sdk_goes_on_with_renewed_tokens_and_not_with_an_expired_one(site: Site) -> None:
    first = site.delivered_token
    ends = unverified_claims(first)["exp"]
    until(lambda: site.delivered_token != first, "the hub renews the token")
    until(lambda: time.time() > ends, "the first one has ended")
    assert site.refused(first) == "ExpiredTokenException"
    assert "error" not in site.in_server("put_object", Bucket="alice", Key="long", Body="run")

    site.hub.stop()
    last = site.delivered_token
    until(lambda: time.time() > unverified_claims(last)["exp"], "the last one has ended")
    refused = site.in_server("get_object", Bucket="alice", Key="long")
    assert refused == {"error": "ExpiredTokenException", "by": "AssumeRoleWithWebIdentity"}

    site.hub.start()
    until(lambda: site.delivered_token != last, "the hub renews the token after its restart")
    assert site.in_server("get_object", Bucket="alice", Key="long")["Body"] == "run"


def test_a_withdrawn_key_is_refused_once_the_sts_looks_again(site: Site) -> None:
    """It keeps the keys for an hour. A token of a key that it doesn't know makes it look at once."""
    withdrawn = site.key
    assert site.refused(site.token(withdrawn)) == ""
    site.key = site.add_key("2.pem")
    (site.keys / "1.pem").unlink()
    published = f"{site.iss}/jwks"
    until(
        lambda: [key["kid"] for key in requests.get(published, timeout=10).json()["keys"]] == [site.key.kid],
        "only the new key is published",
    )
    assert site.refused(site.token(withdrawn)) == "", "it forgets sooner than docs/s3.md says"
    assert site.refused(site.token()) == ""
    assert site.refused(site.token(withdrawn))
    # The server goes on, with tokens of the new key.
    until(lambda: parts(site.delivered_token)[0]["kid"] == site.key.kid, "the hub renews with the new key")
    assert "error" not in site.in_server("list_objects_v2", Bucket="alice")
