"""A token that a real Keycloak gives in exchange, at a real STS (SeaweedFS) that trusts Keycloak and not the hub."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
import pytest

from casa_hub.credentials.base import Request
from casa_hub.credentials.fetching import Answer
from casa_hub.credentials.s3 import S3
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Client
from casa_hub.naming import Server
from tests.peers.test_keycloak import LogIn, Member, log_in, realm  # noqa: F401 - fixtures
from tests.peers.test_s3 import of_the_page, weed  # noqa: F401 - a fixture
from tests.support.keycloak import OFFLINE, Realm
from tests.support.seaweedfs import SeaweedFS

ALICE = Server("", "alice")
#: What a notebook does: the bucket is its argument, and all else is found.
NOTEBOOK = """
import boto3, json, sys
from botocore.exceptions import ClientError
s3 = boto3.client("s3")
try:
    s3.put_object(Bucket=sys.argv[1], Key="x", Body=b"of alice")
    print(json.dumps(s3.get_object(Bucket=sys.argv[1], Key="x")["Body"].read().decode()))
except ClientError as error:
    print(json.dumps([error.operation_name, error.response["Error"]["Code"]]))
"""


@pytest.fixture
def s3(weed: Path, realm: Realm, tmp_path: Path) -> Iterator[SeaweedFS]:  # noqa: F811
    made = SeaweedFS(weed, tmp_path)
    settings = of_the_page()
    [provider] = settings["providers"]
    provider["config"].update(issuer=realm.issuer, clientIds=["s3"])
    settings["sts"]["signingKey"] = secrets.token_hex(16)
    made.start(settings)
    yield made
    made.stop()


async def exchanged(minter: S3, member: Member) -> Request:
    """What the hub asks for, and hands to the minter."""
    assert minter.fetch is not None
    issuer = Issuer(Client(member.realm.issuer, member.client_id, member.secret))
    fetches = Fetches(issuer)
    try:
        reply = await fetches.ask(minter.fetch, member.tokens.access_token)
    finally:
        await fetches.close()
        await issuer.close()
    now = datetime.now(UTC)
    got = minter.fetch.read(Answer(reply.status, reply.body, now, member.realm.issuer, member.account.id))
    return replace(Request(ALICE, "0" * 32, now), fetched={"s3": got})


def in_notebook(minter: S3, directory: Path, bucket: str) -> Any:
    environment = minter.environment(ALICE, PurePosixPath(directory))
    command = [sys.executable, "-c", NOTEBOOK, bucket]
    clean = {"PATH": os.environ["PATH"], "HOME": str(directory), **environment}
    ran = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


async def test_the_sts_takes_what_keycloak_gives_for_it_and_not_the_users_own_token(
    s3: SeaweedFS,
    log_in: LogIn,  # noqa: F811
    tmp_path: Path,
) -> None:
    member = await log_in(OFFLINE)
    member.realm.add_client("s3", secrets.token_urlsafe(24), "http://127.0.0.1:9")
    member.realm.let_exchange(member.client_id)
    member.realm.add_audience(member.client_id, "s3", "s3-access")
    role = of_the_page()["roles"][0]["roleArn"]
    minter = S3(endpoint=s3.url, role_arn=role, source="exchange", audience="s3", scope="s3-access")
    assert minter.check() == []
    administrator = boto3.client(
        "s3",
        endpoint_url=s3.url,
        region_name="us-east-1",
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    for bucket in (member.account.id, "of-another"):
        administrator.create_bucket(Bucket=bucket)

    credential = minter.mint(await exchanged(minter, member))
    file = tmp_path / "s3_token"
    file.write_bytes(credential.files["s3_token"])
    assert in_notebook(minter, tmp_path, member.account.id) == "of alice"
    assert in_notebook(minter, tmp_path, "of-another") == ["PutObject", "AccessDenied"]

    file.write_text(member.tokens.access_token)
    operation, _ = in_notebook(minter, tmp_path, member.account.id)
    assert operation == "AssumeRoleWithWebIdentity"
