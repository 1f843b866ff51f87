from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dask.config import interpret_value
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

from casa_hub.credentials.base import Credential
from casa_hub.credentials.dask import Authority, Dask, Start, parse_secrets
from casa_hub.errors import CredentialError, Severity
from casa_hub.keys import BadKeyError
from casa_hub.naming import Server
from tests.support.minting import HOSTILE, assert_tells_nothing, public_text, request, write

SECRET, OTHER = bytes(range(48)), bytes(range(100, 148))
#: Handshakes compare certificates with the machine's clock.
PRESENT = datetime.now(UTC)
SCHEDULER = "alice.dask.example.org"
WORKER = "alice.dask-worker.example.org"
CERTIFICATES = ("ca.pem", "hostcert.pem", "usercert.pem")
PRELOAD = "DASK_DISTRIBUTED__SCHEDULER__PRELOAD"


def lines(*secrets: bytes) -> bytes:
    return b"".join(base64.b64encode(secret) + b"\n" for secret in secrets)


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    return write(tmp_path / "dask.secret", lines(SECRET))


@pytest.fixture(params=["ed25519", "ecdsa-p256"])
def dask(secret_file: str, request: pytest.FixtureRequest) -> Dask:
    return Dask(secret_file=secret_file, domain="example.org", key_type=request.param)


def mint(minter: Dask, username: str = "alice", name: str = "", **other: Any) -> Credential:
    return minter.mint(request(username, name, **({"now": PRESENT} | other)))


def certificate(credential: Credential, file: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credential.files[file])


# Handshakes, as OpenSSL and Python's strict verification see them


class RefusedError(Exception):
    """One side of a handshake refused the other."""


def context(
    directory: Path, side: int, files: Mapping[str, bytes], own: str | None, *, ca: bytes | None = None
) -> ssl.SSLContext:
    result = ssl.SSLContext(side)
    result.verify_flags |= ssl.VERIFY_X509_STRICT
    result.verify_mode = ssl.CERT_REQUIRED
    result.check_hostname = side == ssl.PROTOCOL_TLS_CLIENT
    result.load_verify_locations(cadata=(ca or files["ca.pem"]).decode())
    if own:
        path = directory / f"{own}-{side}"
        path.write_bytes(files[own])
        result.load_cert_chain(path, path)
    return result


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """A whole handshake in memory, a byte of data included: TLS 1.3 tells a client of its refusal only after it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = {
        "server": server.wrap_bio(to_server, to_client, server_side=True),
        "client": client.wrap_bio(to_client, to_server, server_hostname=host),
    }
    done: set[str] = set()
    for _ in range(10):
        for name, end in ends.items():
            try:
                if name not in done:
                    end.do_handshake()
                    end.write(b"x")
                    done.add(name)
                elif end.read(1) == b"x":
                    done.add(f"{name} heard")
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                raise RefusedError(f"{name}: {error.reason} {getattr(error, 'verify_message', '')}") from None
        if {"server heard", "client heard"} <= done:
            return
    raise AssertionError(f"the handshake came no further than {done}")


@pytest.mark.parametrize("role", ["hostcert.pem", "usercert.pem"])
@pytest.mark.parametrize("host", [SCHEDULER, WORKER])
def test_members_of_one_server_accept_each_other(dask: Dask, tmp_path: Path, role: str, host: str) -> None:
    files = mint(dask).files
    server = context(tmp_path, ssl.PROTOCOL_TLS_SERVER, files, "hostcert.pem")
    handshake(server, context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, files, role), host)


def test_a_client_without_certificate_is_refused(dask: Dask, tmp_path: Path) -> None:
    files = mint(dask).files
    server = context(tmp_path, ssl.PROTOCOL_TLS_SERVER, files, "hostcert.pem")
    with pytest.raises(RefusedError, match="server: PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server, context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, files, None), SCHEDULER)


@pytest.mark.parametrize(
    "other",
    [{"username": "bob"}, {"name": "gpu"}, {"start_id": "f" * 32}, {"hub_id": "af-2"}],
    ids=["another user", "another server", "another start", "another hub"],
)
def test_another_servers_members_are_refused_both_ways(dask: Dask, tmp_path: Path, other: dict[str, str]) -> None:
    ours, theirs = mint(dask).files, mint(dask, **other).files
    server = context(tmp_path, ssl.PROTOCOL_TLS_SERVER, ours, "hostcert.pem")
    (tmp_path / "theirs").mkdir()
    for role in ("hostcert.pem", "usercert.pem"):
        client = context(tmp_path / "theirs", ssl.PROTOCOL_TLS_CLIENT, theirs, role)
        with pytest.raises(RefusedError, match="client: CERTIFICATE_VERIFY_FAILED"):
            handshake(server, client, SCHEDULER)
        trusting = context(tmp_path / "theirs", ssl.PROTOCOL_TLS_CLIENT, theirs, role, ca=ours["ca.pem"])
        with pytest.raises(RefusedError, match="server: CERTIFICATE_VERIFY_FAILED"):
            handshake(server, trusting, SCHEDULER)


def test_a_users_certificate_is_no_servers(dask: Dask, tmp_path: Path) -> None:
    files = mint(dask).files
    server = context(tmp_path, ssl.PROTOCOL_TLS_SERVER, files, "usercert.pem")
    client = context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, files, "hostcert.pem")
    client.check_hostname = False
    with pytest.raises(RefusedError, match=r"client: CERTIFICATE_VERIFY_FAILED .*(purpose|unsuitable)"):
        handshake(server, client, SCHEDULER)


def test_a_host_name_that_is_another_servers_is_refused(dask: Dask, tmp_path: Path) -> None:
    files = mint(dask).files
    server = context(tmp_path, ssl.PROTOCOL_TLS_SERVER, files, "hostcert.pem")
    client = context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, files, "hostcert.pem")
    with pytest.raises(RefusedError, match="Hostname mismatch"):
        handshake(server, client, "bob.dask.example.org")


def test_after_a_restart_of_the_hub_the_running_scheduler_accepts_new_certificates(
    dask: Dask, secret_file: str, tmp_path: Path
) -> None:
    """The hub knows the secret and the state, nothing else; the key type and the domain may have been changed."""
    first = mint(dask, now=PRESENT - timedelta(days=20))
    other_type = "ed25519" if dask.key_type == "ecdsa-p256" else "ecdsa-p256"
    restarted = Dask(secret_file=secret_file, domain="example.org", key_type=other_type, lifetime=60)
    second = mint(restarted, state=dict(first.state))
    assert second.files["hostcert.pem"] != first.files["hostcert.pem"]
    assert second.state == first.state
    assert second.expires_at == first.expires_at
    for server_files, client_files in ((first.files, second.files), (second.files, first.files)):
        server = context(tmp_path, ssl.PROTOCOL_TLS_SERVER, server_files, "hostcert.pem")
        for role in ("hostcert.pem", "usercert.pem"):
            handshake(server, context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, client_files, role), SCHEDULER)


# What is in the certificates


def test_the_same_start_has_the_same_ca_to_the_byte(secret_file: str) -> None:
    minter = Dask(secret_file=secret_file, domain="example.org")
    first = mint(minter)
    again = mint(minter, now=PRESENT + timedelta(days=3), state=dict(first.state))
    assert again.files["ca.pem"] == first.files["ca.pem"]
    assert mint(minter, start_id="0" * 32).files["ca.pem"] != first.files["ca.pem"]


def test_the_ca_is_pinned_to_its_derivation() -> None:
    """With another derivation, running schedulers would refuse what is issued to them after an upgrade."""
    times = datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 12, 21, tzinfo=UTC)
    fingerprints = {
        key_type: Authority(Start(Server("hub", "alice", "gpu"), "0" * 32, "id", key_type, *times), SECRET).fingerprint
        for key_type in ("ed25519", "ecdsa-p256")
    }
    assert fingerprints == {
        "ed25519": "b8c883db7896eda08dd392119f4ecef036db2637",
        "ecdsa-p256": "dd7e67528f49e51973d097df0edba3d8508e0da8",
    }


@given(
    st.lists(
        st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5)), min_size=2, max_size=2, unique=True
    )
)
def test_different_servers_have_different_cas(servers: list[tuple[str, str, str]]) -> None:
    """Also those whose names, written one after the other, are the same text."""
    times = datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 12, 21, tzinfo=UTC)
    starts = [Start(Server(*server), "0" * 32, "id", "ed25519", *times) for server in servers]
    one, other = (Authority(start, SECRET).fingerprint for start in starts)
    assert one != other
    assert Authority(starts[0], OTHER).fingerprint != one


def test_no_key_of_the_ca_is_delivered(dask: Dask) -> None:
    credential = mint(dask)
    assert set(credential.files) == {*CERTIFICATES, "dask_fresh_token.py"}
    assert b"PRIVATE" not in credential.files["ca.pem"]
    ca_key = certificate(credential, "ca.pem").public_key()
    for file in ("hostcert.pem", "usercert.pem"):
        key = serialization.load_pem_private_key(credential.files[file], None)
        assert key.public_key() == certificate(credential, file).public_key()
        assert key.public_key() != ca_key


def test_key_types(dask: Dask) -> None:
    credential = mint(dask)
    kind = ed25519.Ed25519PublicKey if dask.key_type == "ed25519" else ec.EllipticCurvePublicKey
    assert all(isinstance(certificate(credential, file).public_key(), kind) for file in CERTIFICATES)


def test_extensions_are_those_of_rfc_5280(dask: Dask) -> None:
    credential = mint(dask)
    ca, host, user = (certificate(credential, file) for file in ("ca.pem", "hostcert.pem", "usercert.pem"))
    ca_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    for leaf in (host, user):
        assert leaf.issuer == ca.subject != leaf.subject
        authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert authority.key_identifier == ca_id
        assert leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest != ca_id
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
        leaf.verify_directly_issued_by(ca)
    names = host.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SCHEDULER, WORKER]
    usages = [list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for leaf in (host, user)]
    assert usages == [
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        [ExtendedKeyUsageOID.CLIENT_AUTH],
    ]
    serials = {cert.serial_number for cert in (ca, host, user)}
    assert len(serials) == 3
    assert all(0 < serial.bit_length() < 160 for serial in serials)


def test_no_certificate_outlives_its_ca(dask: Dask) -> None:
    first = mint(dask)
    later = mint(dask, now=PRESENT + timedelta(days=29), state=dict(first.state))
    for credential in (first, later):
        ca, *leaves = (certificate(credential, file) for file in ("ca.pem", "hostcert.pem", "usercert.pem"))
        assert ca.not_valid_after_utc == credential.expires_at
        assert all(leaf.not_valid_after_utc <= ca.not_valid_after_utc for leaf in leaves)
        assert all(leaf.not_valid_before_utc >= ca.not_valid_before_utc for leaf in leaves)


def test_certificates_are_valid_for_clocks_that_are_five_minutes_late(dask: Dask) -> None:
    for now, state in ((PRESENT, {}), (PRESENT + timedelta(days=1), dict(mint(dask).state))):
        host = certificate(mint(dask, now=now, state=state), "hostcert.pem")
        assert timedelta(minutes=5) <= now - host.not_valid_before_utc < timedelta(minutes=5, seconds=1)


def test_after_the_last_day_nothing_is_issued(dask: Dask) -> None:
    first = mint(dask)
    assert first.expires_at is not None
    assert first.expires_at - PRESENT.replace(microsecond=0) == timedelta(days=30)
    with pytest.raises(CredentialError, match=r"expired at .* Restart the server"):
        mint(dask, now=first.expires_at, state=dict(first.state))


@pytest.mark.parametrize("username", HOSTILE, ids=ascii)
def test_hostile_names_make_sound_certificates(secret_file: str, username: str) -> None:
    minter = Dask(secret_file=secret_file, domain="example.org")
    credential = mint(minter, username, username, hub_id=username)
    for file in CERTIFICATES:
        (name,) = certificate(credential, file).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert isinstance(name.value, str)
        assert re.fullmatch(r"[a-z0-9 -]{1,60}|[a-z0-9 -]{1,60} CA", name.value)
        assert len(name.value) <= 64
    for route in minter.routes(Server(username, username, username)):
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?\.dask(-worker)?\.example\.org", route.host)


def test_hostile_names_have_host_names_of_their_own(secret_file: str) -> None:
    minter = Dask(secret_file=secret_file, domain="example.org")
    hosts = [route.host for username in HOSTILE for route in minter.routes(Server("", username))]
    assert len(set(hosts)) == 2 * len(HOSTILE)


# Secrets


def test_the_first_secret_mints_and_the_others_go_on(secret_file: str) -> None:
    minter = Dask(secret_file=secret_file, domain="example.org")
    before = mint(minter)
    write(Path(secret_file), lines(OTHER, SECRET))
    assert mint(minter, state=dict(before.state)).files["ca.pem"] == before.files["ca.pem"]
    after = mint(minter)
    assert after.state["secret"] != before.state["secret"]
    assert after.files["ca.pem"] != before.files["ca.pem"]


def test_a_secret_that_is_gone_is_named(secret_file: str) -> None:
    minter = Dask(secret_file=secret_file, domain="example.org")
    before = mint(minter)
    write(Path(secret_file), lines(OTHER))
    with pytest.raises(CredentialError, match=f"lacks the secret '{before.state['secret']}'") as caught:
        mint(minter, state=dict(before.state))
    assert_tells_nothing(caught.value, SECRET, OTHER)
    assert mint(minter)


@pytest.mark.parametrize(
    "change",
    [
        {"key_type": "rsa"},
        {"not_before": "soon"},
        {"not_after": "9" * 30},
        {"not_after": "nan"},
        {"secret": None},
        {"key_type": None},
    ],
)
def test_a_state_that_is_none_is_refused(dask: Dask, change: dict[str, str | None]) -> None:
    state = {key: value for key, value in (dict(mint(dask).state) | change).items() if value is not None}
    with pytest.raises(CredentialError, match=r"state of this start is not readable\. Restart the server"):
        mint(dask, state=state)


REFUSED = {
    "31 bytes": (lines(SECRET[:31]), "has 31 bytes in line 1"),
    "31 bytes in the second": (lines(SECRET, SECRET[:31]), "has 31 bytes in line 2"),
    "text": (b"this is no secret, but it is long enough\n", "is not base64 in line 1"),
    "broken lines": (base64.encodebytes(SECRET + SECRET[:16]), "has 7 bytes in line 2"),
    "raw": (b"\xff" + os.urandom(48), "is not base64 in line"),
    "blank": (b"\n \n", "holds no secret"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_secrets_that_are_none(secret_file: str, case: str) -> None:
    content, problem = REFUSED[case]
    with pytest.raises(BadKeyError, match=problem) as caught:
        parse_secrets(content)
    assert_tells_nothing(caught.value, content, SECRET)
    write(Path(secret_file), content)
    minter = Dask(secret_file=secret_file, domain="example.org")
    with pytest.raises(CredentialError, match=problem):
        mint(minter)
    assert [found.severity for found in minter.check()] == [Severity.ERROR]


def test_secrets_in_lines_with_blanks_and_without_end() -> None:
    content = b"\n  " + lines(SECRET).strip() + b" \r\n\n" + lines(OTHER).strip()
    assert [secret.value for secret in parse_secrets(content)] == [SECRET, OTHER]


def test_nothing_shows_secret_or_key(dask: Dask) -> None:
    credential = mint(dask)
    secrets = dask._secrets.read(dask.secret_file)
    for thing in (dask, credential, dask._secrets, secrets, *dask.check()):
        assert_tells_nothing(thing, SECRET)
    assert "PRIVATE" not in public_text(credential)
    assert_tells_nothing(public_text(credential), SECRET)


# Settings


def test_servers_learn_their_names(dask: Dask) -> None:
    environment = dict(dask.environment(Server("", "alice"), PurePosixPath("/etc/cmsaf-secrets")))
    assert "/etc/cmsaf-secrets/dask_fresh_token.py" in environment.pop(PRELOAD)
    assert environment == {
        "CERT_DIR": "/etc/cmsaf-secrets",
        "HOST_IP": SCHEDULER,
        "WORKER_IP": WORKER,
        "LABEXTENTION_FACTORY_MODULE": "coffea_casa",
        "LABEXTENTION_FACTORY_CLASS": "CoffeaCasaCluster",
        "LABEXTENTION_CLUSTER": "HTCondor Cluster",
    }
    dask.cluster_factory = ""
    environment = dask.environment(Server("", "alice"), PurePosixPath("/etc/cmsaf-secrets"))
    assert not [name for name in environment if name.startswith("LABEXTENTION")]


def test_an_operator_can_keep_tokens_from_workers(dask: Dask) -> None:
    dask.send_token = False
    assert PRELOAD not in dask.environment(Server("", "alice"), PurePosixPath("/etc/cmsaf-secrets"))
    # The environment of a server that runs may name the file.
    assert "dask_fresh_token.py" in mint(dask).files


def test_clients_outside_have_no_scheduler(dask: Dask) -> None:
    inside = dask.environment(Server("", "alice"), PurePosixPath("{directory}"))
    outside = dask.environment_outside(Server("", "alice"), PurePosixPath("{directory}"))
    assert dict(outside) == {name: value for name, value in inside.items() if name != PRELOAD}


@pytest.mark.parametrize("directory", ["plain", "it's", 'quo"te', "é", "[x]", "{a}"])
def test_the_preload_runs_the_delivered_text_and_none_if_there_is_no_file(
    dask: Dask, tmp_path: Path, directory: str
) -> None:
    """As Dask does: a text with a blank is a module; a literal of Python would be something else."""
    place = tmp_path / directory
    place.mkdir()
    preload = dask.environment(Server("", "alice"), PurePosixPath(place))[PRELOAD]
    assert " " in preload
    assert "\n" not in preload
    assert interpret_value(preload) == preload
    without: dict[str, Any] = {}
    exec(preload, without)
    assert "dask_setup" not in without
    (place / "dask_fresh_token.py").write_bytes(mint(dask).files["dask_fresh_token.py"])
    module: dict[str, Any] = {"__name__": "preload"}
    exec(preload, module)
    assert module["dask_setup"].__name__ == "dask_setup"
    assert module["source"].encode() == mint(dask).files["dask_fresh_token.py"]


def test_routes_lead_to_scheduler_and_worker(dask: Dask) -> None:
    assert [(route.host, route.purpose, route.port) for route in dask.routes(Server("", "alice", "gpu"))] == [
        ("alice--gpu.dask.example.org", "scheduler", 8786),
        ("alice--gpu.dask-worker.example.org", "worker", 8788),
    ]


def test_a_domain_is_needed(secret_file: str) -> None:
    minter = Dask(secret_file=secret_file)
    for attempt in (lambda: mint(minter), lambda: minter.routes(Server("", "alice"))):
        with pytest.raises(CredentialError, match=r"Dask\.domain: is not set"):
            attempt()
    assert [problem.thing for problem in minter.check()] == ["Dask.domain"]


def test_a_domain_that_makes_host_names_too_long_is_found_at_the_start(secret_file: str) -> None:
    # 253 characters in all, 48 of a slug, 13 of ".dask-worker."
    longest = ".".join(["a" * 62, "a" * 63, "a" * 63, "a"])
    assert len(longest) == 253 - 48 - 13
    assert Dask(secret_file=secret_file, domain=longest).check() == []
    minter = Dask(secret_file=secret_file, domain=f"a{longest}")
    assert [problem.thing for problem in minter.check()] == ["Dask.domain"]
    with pytest.raises(CredentialError, match="more than 253"):
        mint(minter)


@pytest.mark.parametrize("trait", ["domain", "scheduler_label", "worker_label"])
@pytest.mark.parametrize(
    "value", ["Example.org", ".example.org", "exa mple", "-a", "a-", "a..b", "ü.org", "*", "a" * 64]
)
def test_what_is_no_dns_name_is_refused(trait: str, value: str) -> None:
    with pytest.raises(TraitError, match=f"Dask.{trait}"):
        Dask(**{trait: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"cluster_factory": "LocalCluster"},
        {"cluster_factory": "a b.C"},
        {"cluster_label": "a|b"},
        {"cluster_label": ""},
    ],
)
def test_what_an_image_could_not_write_into_its_configuration_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(TraitError, match=r"Dask\.cluster_"):
        Dask(**settings)


@pytest.mark.parametrize("lifetime", [0, -1])
def test_a_lifetime_is_positive(lifetime: int) -> None:
    with pytest.raises(TraitError, match="'lifetime' trait of a Dask instance should not be less than 1"):
        Dask(lifetime=lifetime)


def test_the_identifiers_are_what_the_certificates_say(dask: Dask) -> None:
    credential = mint(dask)
    serials = {role: f"{certificate(credential, f'{role}cert.pem').serial_number:x}" for role in ("host", "user")}
    authority = certificate(credential, "hostcert.pem").extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    key_identifier = authority.value.key_identifier
    assert key_identifier is not None
    assert credential.identifiers == {"ca": key_identifier.hex(), **serials}


# -- outside of servers


def test_a_laptop_gets_the_files_of_a_client_that_end_before_the_ca(dask: Dask) -> None:
    """Nothing by which somebody could pose as the scheduler; and the CA is that of the running server."""
    of_server = mint(dask)
    asked = replace(request(now=PRESENT, state=dict(of_server.state)), longest=3600)
    new = dask.mint_outside(asked)
    assert set(new.files) == {"ca.pem", "usercert.pem"}
    ca, mine = certificate(of_server, "ca.pem"), certificate(new, "usercert.pem")
    mine.verify_directly_issued_by(ca)
    assert mine.not_valid_after_utc == new.expires_at == PRESENT.replace(microsecond=0) + timedelta(hours=1)
    usage = mine.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert new.identifiers == {"ca": of_server.identifiers["ca"], "user": f"{mine.serial_number:x}"}


def test_outside_no_certificate_outlives_the_ca(dask: Dask) -> None:
    dask.lifetime = 60
    of_server = mint(dask)
    late = PRESENT + timedelta(seconds=30)
    new = dask.mint_outside(replace(request(now=late, state=dict(of_server.state)), longest=3600))
    assert new.expires_at == of_server.expires_at
    with pytest.raises(CredentialError, match="expired"):
        dask.mint_outside(request(now=PRESENT + timedelta(seconds=60), state=dict(of_server.state)))
