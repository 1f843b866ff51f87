"""The certificates by which a server's Dask scheduler, workers and clients recognise each other.

Each start of a server has its own CA. The CA's key is derived (HKDF-SHA256, RFC 5869) from a secret of the hub, the
server's identity and the id of the start. So a restarted hub can issue certificates under the same CA again, although
the CA's key is never stored and never leaves the hub. The next start has another CA.

Dask does not tell roles apart: whoever holds any certificate of this CA can run code in this server until it stops.
Dask also reads certificates only once per process: so they are valid as long as a server may run.

The certificates follow RFC 5280 and pass Python 3.13's strict verification (``VERIFY_X509_STRICT``).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from traitlets import Bool, Enum, Int, TraitError, Unicode, validate

from casa_hub.credentials.base import Credential, Minter, Renewal, Request, Route
from casa_hub.errors import CredentialError, Problem
from casa_hub.keys import BadKeyError, KeyFile
from casa_hub.moments import when
from casa_hub.naming import DNS_NAME, SLUG_LENGTH, Server

#: Least length of each secret in `Dask.secret_file`: that of a SHA-256 digest.
MIN_SECRET_BYTES = 32
#: Ports of a server; the analysis images use these.
SCHEDULER_PORT = 8786
WORKER_PORT = 8788
DASHBOARD_PORT = 8785
#: Certificates are valid from this much before now: the clocks of worker nodes may be behind the hub's.
CLOCK_SKEW = timedelta(minutes=5)

#: Part of the input from which a CA's key is derived. Another value makes another CA for the same server. So change it
#: only together with the derivation or the meaning of its input.
_DERIVATION = "casa_hub dask ca 1"
#: Order of the group of P-256 (SEC 2, 2.4.2); private keys are 1 to n-1.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_LONGEST_HOST = 253
_MAKE_SECRET = "Make one, and keep it while servers run: openssl rand -base64 48 > FILE."  # noqa: S105
_RESTART = "Restart the server: each start has a CA of its own."

#: What keeps the token fresh at a cluster's workers: delivered under this name, run by schedulers.
_FRESH_TOKEN = "dask_fresh_token.py"  # noqa: S105
_FRESH_TOKEN_TEXT = Path(__file__).with_name(_FRESH_TOKEN).read_bytes()

_Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Secret:
    """One line of the secret file."""

    value: bytes = field(repr=False)
    #: Public name of the secret: a digest, from which the secret can't be computed.
    id: str


def parse_secrets(content: bytes) -> tuple[Secret, ...]:
    """The secrets of a file: base64, one in each line; blank lines don't count.
    Raises BadKeyError, which names the line.
    """
    secrets = []
    for number, line in enumerate(content.split(b"\n"), 1):
        text = line.strip()
        if not text:
            continue
        try:
            value = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise BadKeyError(f"is not base64 in line {number}", _MAKE_SECRET) from None
        if len(value) < MIN_SECRET_BYTES:
            raise BadKeyError(
                f"has {len(value)} bytes in line {number}; a secret has at least {MIN_SECRET_BYTES}",
                f"{_MAKE_SECRET} Each secret stands in one line.",
            )
        secrets.append(Secret(value, sha256(b"casa_hub dask secret" + value).hexdigest()[:16]))
    if not secrets:
        raise BadKeyError("holds no secret", _MAKE_SECRET)
    return tuple(secrets)


@dataclass(frozen=True, slots=True)
class Start:
    """All that defines the CA of one start. `Credential.state` keeps it, without server and start id."""

    server: Server
    start_id: str
    secret_id: str
    key_type: str
    not_before: datetime
    not_after: datetime

    def state(self) -> dict[str, str]:
        return {
            "secret": self.secret_id,
            "key_type": self.key_type,
            "not_before": str(int(self.not_before.timestamp())),
            "not_after": str(int(self.not_after.timestamp())),
        }

    @classmethod
    def from_state(cls, request: Request) -> Start:
        """Read back what `state` wrote. Raises KeyError, ValueError, OverflowError or OSError if it is malformed."""
        state = request.state
        key_type = state["key_type"]
        if key_type not in _KEY_TYPES:
            raise ValueError(key_type)
        not_before, not_after = (
            datetime.fromtimestamp(int(state[limit]), UTC) for limit in ("not_before", "not_after")
        )
        return cls(request.server, request.start_id, state["secret"], key_type, not_before, not_after)


class Authority:
    """The CA of one start. The same `Start` and secret make the same CA. Pure, except that `issue` makes keys."""

    def __init__(self, start: Start, secret: bytes) -> None:
        self._start = start
        self._key = _derive_key(start, secret)
        self._hash = None if start.key_type == "ed25519" else hashes.SHA256()
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier)
        # At most 64 characters (RFC 5280, ub-common-name): 48 + 1 + 8 + 3.
        self._name = _name(f"{start.server.slug} {start.start_id[:8]} CA")

    @property
    def fingerprint(self) -> str:
        """Subject key identifier, hexadecimal. All certificates of this CA name it."""
        return self._identifier.digest.hex()

    def certificate(self) -> bytes:
        """The CA's own certificate, PEM. With Ed25519 each call returns the same bytes."""
        builder = (
            self._builder(self._name, self._identifier, self._start.not_before, self._start.not_after)
            .public_key(self._key.public_key())
            .serial_number(int.from_bytes(self._identifier.digest[:16]) | 1)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
        )
        return builder.sign(self._key, self._hash).public_bytes(serialization.Encoding.PEM)

    def issue(
        self, common_name: str, now: datetime, serial: int, *, hosts: Sequence[str] = (), until: datetime | None = None
    ) -> bytes:
        """A new key and its certificate, in one PEM. For clients, and for servers with the names in `hosts`, if any.

        `until`: an end before that of the CA.
        """
        key = _KEY_TYPES[self._start.key_type]()
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._builder(
                _name(common_name),
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                max(now - CLOCK_SKEW, self._start.not_before),
                self._start.not_after if until is None else until,
            )
            .public_key(key.public_key())
            .serial_number(serial)
            .add_extension(self._authority, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
        )
        if hosts:
            usage.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        certificate = builder.sign(self._key, self._hash).public_bytes(serialization.Encoding.PEM)
        return certificate + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _builder(
        self, subject: x509.Name, identifier: x509.SubjectKeyIdentifier, not_before: datetime, not_after: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .subject_name(subject)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(identifier, critical=False)
        )


def _derive_key(start: Start, secret: bytes) -> _Key:
    server = start.server
    # JSON, because different inputs must have different texts, whatever characters the names have.
    info = json.dumps([_DERIVATION, start.key_type, server.hub_id, server.username, server.name, start.start_id])
    if start.key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(_hkdf(secret, 32, info))
    # 48 bytes: 128 more bits than the order has make the remainder as good as uniform (FIPS 186-5, A.2.1).
    scalar = int.from_bytes(_hkdf(secret, 48, info)) % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def _hkdf(secret: bytes, length: int, info: str) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info.encode()).derive(secret)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _preload(path: PurePosixPath) -> str:
    """A Dask preload that runs the text of a file, if there is such a file.

    Dask takes a preload with a blank in it for the text of a module. The path alone would not do: jobs may inherit the
    variable, and there, without the file, no scheduler would start.
    """
    file = repr(str(path))
    return f"exec(source := open({file}).read() if __import__('os').access({file}, 4) else '')"


def _new_p256() -> _Key:
    return ec.generate_private_key(ec.SECP256R1())


_KEY_TYPES: Mapping[str, Callable[[], _Key]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa-p256": _new_p256,
}


class Dask(Minter):
    """Mints the certificates of a server's Dask cluster."""

    name: ClassVar[str] = "dask"
    title: ClassVar[str] = "Dask certificates"
    purpose: ClassVar[str] = "connect scheduler, workers and clients of this server's Dask cluster"
    outside: ClassVar[bool] = True
    found_by: ClassVar[str] = "the image's Dask cluster and its workers"
    #: All certificates of a start end with its CA; new ones would only be read by new processes.
    renewal: ClassVar[Renewal] = "request"
    of_start: ClassVar[bool] = True

    secret_file = Unicode(
        "",
        help="""
        File with the secret that the CA of each server is derived from: base64, at least 32 bytes, a secret a line.
        Read again when it changes.

        The first line is used for servers that start; the others for servers that started with them. To change the
        secret put the new one in front, and take the old one away when no server from before runs any more. Who has
        it can make certificates for each running server. There is no default.
        Example: ``/etc/casa/dask.secret``, made by ``openssl rand -base64 48 > dask.secret``.
        """,
    ).tag(config=True)
    domain = Unicode(
        "",
        help="""
        DNS domain below which servers have their host names. ``*.LABEL.DOMAIN`` must lead to Traefik for both labels.
        There is no default. Example: ``example.org`` gives ``tls://alice.dask.example.org:8786``.
        """,
    ).tag(config=True)
    scheduler_label = Unicode(
        "dask",
        help="What stands between server and domain in a scheduler's host name: ``alice.dask.example.org``.",
    ).tag(config=True)
    worker_label = Unicode(
        "dask-worker",
        help="""
        What stands between server and domain in the host name of the worker inside a server:
        ``alice.dask-worker.example.org``.
        """,
    ).tag(config=True)
    lifetime = Int(
        2592000,
        min=1,
        help="""
        Seconds from the start of a server until its certificates expire. Dask reads certificates once per process:
        after this time no new worker or client can join, until the server is restarted. So: the longest life of a
        server; 30 days by default.
        """,
    ).tag(config=True)
    key_type = Enum(
        ["ed25519", "ecdsa-p256"],
        default_value="ed25519",
        help="""
        Kind of keys. ``ecdsa-p256`` is for TLS libraries that don't know Ed25519 (RFC 8410), such as those in FIPS
        mode. Servers that run keep theirs.
        """,
    ).tag(config=True)
    send_token = Bool(
        True,
        help="""
        Whether the Dask schedulers of a server send its token file (the one that ``BEARER_TOKEN_FILE`` names) to their
        workers: when a worker starts, and each time that the hub has renewed the token. It travels by the cluster's
        mutual TLS only. Without it, workers in batch jobs have the copy that the job was submitted with, until that
        expires.

        The server's variable ``DASK_DISTRIBUTED__SCHEDULER__PRELOAD`` makes the schedulers do so. If your image sets
        that variable itself, set it in the spawner's ``environment``, too: what stands there wins.
        """,
    ).tag(config=True)
    cluster_factory = Unicode(
        "coffea_casa.CoffeaCasaCluster",
        help="""
        The cluster that JupyterLab's Dask extension starts, ``module.Class``; images find it as
        ``LABEXTENTION_FACTORY_MODULE`` and ``LABEXTENTION_FACTORY_CLASS``. Empty: what the image says.
        Example: ``dask.distributed.LocalCluster``.
        """,
    ).tag(config=True)
    cluster_label = Unicode(
        "HTCondor Cluster",
        help="What that cluster is called there; images find it as ``LABEXTENTION_CLUSTER``.",
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._secrets = KeyFile("Dask.secret_file", parse_secrets, _MAKE_SECRET)

    @validate("domain", "scheduler_label", "worker_label")
    def _valid_host_part(self, proposal: Any) -> str:
        value: str = proposal["value"]
        if value and not re.fullmatch(DNS_NAME, value):
            raise TraitError(
                f"Dask.{proposal['trait'].name} is {value!a}, must be part of a DNS name: lower-case letters, digits,"
                " - and, between labels, a dot."
            )
        return value

    @validate("cluster_factory")
    def _valid_factory(self, proposal: Any) -> str:
        value: str = proposal["value"]
        if value and not re.fullmatch(r"\w+(\.\w+)+", value, re.ASCII):
            raise TraitError(f"Dask.cluster_factory is {value!a}, must be a module and a class: module.Class.")
        return value

    @validate("cluster_label")
    def _valid_label(self, proposal: Any) -> str:
        value: str = proposal["value"]
        # Images write it into a YAML file by sed s|...|...|.
        if not re.fullmatch(r"[\w .()@+-]+", value):
            raise TraitError(f"Dask.cluster_label is {value!a}, must be letters, digits, blanks and _.()@+-.")
        return value

    @property
    def key_files(self) -> Mapping[str, str]:
        return {"Dask.secret_file": self.secret_file}

    def check(self) -> Sequence[Problem]:
        problems = self._secrets.check(self.secret_file)
        try:
            self._hosts(Server("", "somebody"))
        except CredentialError as error:
            problems.append(Problem.of(error))
        return problems

    def mint(self, request: Request) -> Credential:
        hosts = self._hosts(request.server)
        start, authority = self._authority(request)
        slug = request.server.slug
        host_serial, user_serial = x509.random_serial_number(), x509.random_serial_number()
        return Credential(
            name=self.name,
            files={
                "ca.pem": authority.certificate(),
                # For scheduler, worker and client: today's images use this file in all three roles.
                "hostcert.pem": authority.issue(slug, request.now, host_serial, hosts=list(dict.fromkeys(hosts))),
                "usercert.pem": authority.issue(f"{slug} client", request.now, user_serial),
                # Also without `send_token`: the environment of a running server may name it.
                _FRESH_TOKEN: _FRESH_TOKEN_TEXT,
            },
            issued_at=request.now,
            expires_at=start.not_after,
            # As `openssl x509 -serial` prints serial numbers, but in lower case.
            identifiers={"ca": authority.fingerprint, "host": f"{host_serial:x}", "user": f"{user_serial:x}"},
            summary=f"scheduler {hosts[0]}, worker {hosts[1]}",
            state=start.state(),
        )

    def mint_outside(self, request: Request) -> Credential:
        """The files of a client alone, whose certificate can end before the CA: nobody outside can be the scheduler."""
        hosts = self._hosts(request.server)
        start, authority = self._authority(request)
        until = min(start.not_after, request.now.replace(microsecond=0) + request.lifetime(self.lifetime))
        serial = x509.random_serial_number()
        return Credential(
            name=self.name,
            files={
                "ca.pem": authority.certificate(),
                "usercert.pem": authority.issue(f"{request.server.slug} client", request.now, serial, until=until),
            },
            issued_at=request.now,
            expires_at=until,
            identifiers={"ca": authority.fingerprint, "user": f"{serial:x}"},
            summary=f"scheduler {hosts[0]}",
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        values = dict(self.environment_outside(server, directory))
        if self.send_token:
            values["DASK_DISTRIBUTED__SCHEDULER__PRELOAD"] = _preload(directory / _FRESH_TOKEN)
        return values

    def environment_outside(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:
        scheduler, worker = self._hosts(server)
        values = {"CERT_DIR": str(directory), "HOST_IP": scheduler, "WORKER_IP": worker}
        if self.cluster_factory:
            module, _, factory = self.cluster_factory.rpartition(".")
            values["LABEXTENTION_FACTORY_MODULE"] = module
            values["LABEXTENTION_FACTORY_CLASS"] = factory
            values["LABEXTENTION_CLUSTER"] = self.cluster_label
        return values

    def routes(self, server: Server) -> Sequence[Route]:
        scheduler, worker = self._hosts(server)
        return (Route(scheduler, "scheduler", SCHEDULER_PORT), Route(worker, "worker", WORKER_PORT))

    def _hosts(self, server: Server) -> tuple[str, str]:
        """Host names of the server's scheduler and worker."""
        for trait in ("domain", "scheduler_label", "worker_label"):
            if not getattr(self, trait):
                raise CredentialError(f"Dask.{trait}", "is not set", "Set it: the host names of servers contain it.")
        if (
            SLUG_LENGTH + len(max(self.scheduler_label, self.worker_label, key=len)) + len(self.domain) + 2
            > _LONGEST_HOST
        ):
            raise CredentialError(
                "Dask.domain", f"makes host names of more than {_LONGEST_HOST} characters", "Choose a shorter one."
            )
        scheduler, worker = (server.host(label, self.domain) for label in (self.scheduler_label, self.worker_label))
        return scheduler, worker

    def _authority(self, request: Request) -> tuple[Start, Authority]:
        """The CA to mint under. Raises CredentialError, also if it has expired."""
        start, secret = self._start(request)
        if request.now >= start.not_after:
            raise CredentialError("Dask certificates", f"of this start expired at {when(start.not_after)}", _RESTART)
        return start, Authority(start, secret)

    def _start(self, request: Request) -> tuple[Start, bytes]:
        """The CA to mint under, and its secret: at a start a new CA, at a renewal that of the present credential."""
        secrets = self._secrets.read(self.secret_file)
        if not request.state:
            now = request.now.replace(microsecond=0)
            end = now + timedelta(seconds=self.lifetime)
            start = Start(request.server, request.start_id, secrets[0].id, self.key_type, now - CLOCK_SKEW, end)
            return start, secrets[0].value
        try:
            start = Start.from_state(request)
        except (KeyError, ValueError, OverflowError, OSError):
            raise CredentialError(
                "Dask certificates", "can't be issued again: the state of this start is not readable", _RESTART
            ) from None
        for secret in secrets:
            if secret.id == start.secret_id:
                return start, secret.value
        raise CredentialError(
            f"Dask.secret_file ({self.secret_file})",
            f"lacks the secret {start.secret_id!a}, with which this server started",
            f"Put that line back, below the new one, until the server has stopped. {_RESTART}",
        )
