"""HTCondor's token of the facility's own issuer. What a pool says of it: tests/peers/test_htcondor_token.py."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from casa_hub.credentials.htcondor import HTCondor
from casa_hub.demo.certificates import HostCertificate, make_host_certificate
from casa_hub.errors import CredentialError, Severity
from casa_hub.issuer.settings import FacilityIssuer
from tests.support.issuer import claims_of as verified_claims
from tests.support.issuer import issuer_in
from tests.support.minting import NOW, request

ALL = "compute.read compute.create compute.modify compute.cancel"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> FacilityIssuer:
    return issuer_in(tmp_path_factory.mktemp("issuer"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> HostCertificate:
    return make_host_certificate(tmp_path_factory.mktemp("tls"))


def by_token(issuer: FacilityIssuer | None, **settings: Any) -> HTCondor:
    pool = {"credential": "token", "collector": "condor.example.org", "schedd": "submit.example.org"}
    minter = HTCondor(**(pool | settings))
    minter.issuer = issuer
    return minter


def claims_of(content: bytes, audience: str = "condor://condor.example.org") -> dict[str, Any]:
    return verified_claims(content.strip(), audience)


def test_the_token_says_whose_it_is_and_what_a_user_may_do(issuer: FacilityIssuer) -> None:
    minter = by_token(issuer)
    assert minter.check() == []
    credential = minter.mint(request())
    assert list(credential.files) == ["condor_token"]
    claims = claims_of(credential.files["condor_token"])
    assert (claims["sub"], claims["scope"]) == ("alice", ALL)
    assert credential.identifiers == {"jti": claims["jti"], "sub": "alice", "aud": "condor://condor.example.org"}
    assert credential.summary == "READ, WRITE as alice"
    assert minter.key_files == {}


def test_who_may_only_look_can_not_submit(issuer: FacilityIssuer) -> None:
    content = by_token(issuer, scopes=["READ"]).mint(request()).files["condor_token"]
    assert claims_of(content)["scope"] == "compute.read"


def test_write_includes_read(issuer: FacilityIssuer) -> None:
    assert claims_of(by_token(issuer, scopes=["WRITE"]).mint(request()).files["condor_token"])["scope"] == ALL


def test_it_lives_for_six_hours_at_most(issuer: FacilityIssuer) -> None:
    for lifetime, expected in ((43200, 21600), (600, 600)):
        minter = by_token(issuer, lifetime=lifetime)
        expires_at = minter.mint(request()).expires_at
        assert expires_at == NOW.replace(microsecond=0) + timedelta(seconds=expected)
        assert minter.life == expected
    assert by_token(issuer, credential="idtoken").life == 43200


def test_programs_find_it_by_a_variable_of_their_own(issuer: FacilityIssuer, certificates: HostCertificate) -> None:
    """BEARER_TOKEN_FILE stays that of XCache, and is not what HTCondor shows to its daemons."""
    server, directory = request().server, PurePosixPath("/etc/cmsaf-secrets")
    found = by_token(issuer, uid_domain="pool.example.org").environment(server, directory)
    assert found == {
        "CONDOR_HOST": "condor.example.org",
        "SCHEDD_HOST": "submit.example.org",
        "UID_DOMAIN": "pool.example.org",
        "_CONDOR_SCITOKENS_FILE": "/etc/cmsaf-secrets/condor_token",
    }
    minter = by_token(issuer, ca_file=str(certificates.ca_file), accounting_group="group_cms")
    assert minter.check() == []
    assert minter.mint(request()).files["condor_ca.pem"] == certificates.ca_file.read_bytes()
    found = minter.environment(server, directory)
    assert found["_CONDOR_AUTH_SSL_CLIENT_CAFILE"] == "/etc/cmsaf-secrets/condor_ca.pem"
    assert found["_CONDOR_AccountingGroup"] == '"group_cms.alice"'


def test_a_private_key_among_the_authorities_is_not_given_away(
    issuer: FacilityIssuer, certificates: HostCertificate, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.ca_file.read_bytes() + certificates.key.read_bytes())
    with pytest.raises(CredentialError, match="has a private key"):
        by_token(issuer, ca_file=str(both)).mint(request())
    both.write_bytes(b"no certificate")
    with pytest.raises(CredentialError, match="has no certificate in PEM"):
        by_token(issuer, ca_file=str(both)).mint(request())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "condor://condor.example.org"),
        ({"collector": "cm:9619"}, "condor://cm:9619"),
        ({"audience": "https://pool.example.org"}, "https://pool.example.org"),
        ({"audience": "condor://all", "collector": ""}, "condor://all"),
    ],
)
def test_the_audience_is_the_pools(issuer: FacilityIssuer, settings: dict[str, str], expected: str) -> None:
    content = by_token(issuer, **settings).mint(request()).files["condor_token"]
    assert claims_of(content, expected)["aud"] == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subject": "{username}"}, r"HTCondor\.subject: decides nothing"),
        ({"subject_map": {"alice": "cms1"}}, r"HTCondor\.subject_map: decides nothing"),
        ({"scopes": ["READ", "ADMINISTRATOR"]}, "has ADMINISTRATOR, for which a token has no word"),
        ({"collector": "192.0.2.7:9618"}, r"192\.0\.2\.7:9618 is an address"),
        ({"collector": "[2001:db8::7]:9618"}, "is an address"),
        ({"collector": ""}, "is not set, and HTCondor.collector is not the name of a host"),
        ({"collector": "one.example.org, two.example.org"}, "is not the name of a host"),
        ({"audience": "two words"}, "is not one word"),
        ({"ca_file": "/does/not/exist"}, "does not exist"),
    ],
)
def test_settings_that_can_not_work_are_errors(issuer: FacilityIssuer, settings: dict[str, Any], words: str) -> None:
    minter = by_token(issuer, **settings)
    with pytest.raises(CredentialError, match=words):
        minter.mint(request())
    errors = [problem for problem in minter.check() if problem.severity is Severity.ERROR]
    assert len(errors) == 1


def test_without_an_issuer_there_is_no_token() -> None:
    with pytest.raises(CredentialError, match="the facility has no issuer"):
        by_token(None).mint(request())


@pytest.mark.parametrize("username", ["condor", "Root", "condor_pool", "root@other.example"])
def test_nobody_is_named_as_htcondors_own(issuer: FacilityIssuer, username: str) -> None:
    """A map file that takes any name would make a daemon of them."""
    with pytest.raises(CredentialError, match="which HTCondor takes for a daemon or an administrator"):
        by_token(issuer).mint(request(username))
    by_token(issuer).mint(request(f"{username}er".replace("@", "-")))
