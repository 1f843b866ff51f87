"""A certificate authority of people and hosts, and proxies (RFC 3820) as IAM and grid tools make them.

The keys are RSA: what reads proxies knows few others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID, ObjectIdentifier

from casa_hub.demo.certificates import subject_hash

#: RFC 3820, 3.8: the extension of a proxy; with the policy "inherit all" (1.3.6.1.5.5.7.21.1) and no length.
PROXY_CERT_INFO = ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")
DAY = timedelta(days=1)


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def key(number: int) -> rsa.RSAPrivateKey:
    """The same key for the same number, in this process: a new one takes a quarter of a second."""
    del number
    return new_key()


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def pem_of_key(of: Any, form: PrivateFormat = PrivateFormat.TraditionalOpenSSL) -> str:
    return str(of.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


def read_key(text: bytes) -> rsa.RSAPrivateKey:
    """What `pem_of_key` gave of an RSA key; also among certificates."""
    found = load_pem_private_key(text, None)
    if not isinstance(found, rsa.RSAPrivateKey):
        raise TypeError("the key is not RSA")
    return found


def name_of(*parts: tuple[ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])


def dn(name: x509.Name) -> str:
    """As grid tools and IAM's table of certificates write it: ``/DC=org/CN=alice``."""
    return "".join(f"/{attribute.rfc4514_attribute_name}={attribute.value!s}" for attribute in name)


@dataclass(frozen=True)
class Holder:
    """Somebody with a certificate and its key; or a proxy, with the certificates above it."""

    certificate: x509.Certificate
    key: Any = field(repr=False)
    #: What it was made of, the nearest first; without the authority.
    above: tuple[x509.Certificate, ...] = ()

    @property
    def identity(self) -> str:
        """Subject of the person's own certificate."""
        return dn((self.certificate, *self.above)[-1].subject)

    @property
    def authority(self) -> str:
        """Issuer of the person's own certificate, as IAM writes it."""
        return (self.certificate, *self.above)[-1].issuer.rfc4514_string()

    @property
    def pem(self) -> str:
        """As the tools write it: certificate, key, chain."""
        return pem_of(self.certificate) + pem_of_key(self.key) + "".join(map(pem_of, self.above))

    @classmethod
    def of_pem(cls, text: bytes) -> Holder:
        """What `pem` gave."""
        certificate, *above = x509.load_pem_x509_certificates(text)
        return cls(certificate, read_key(text), tuple(above))

    def proxy(
        self,
        life: timedelta,
        *,
        now: datetime | None = None,
        own: Any = None,
        extensions: Sequence[tuple[Any, bool]] | None = None,
    ) -> Holder:
        """A proxy of it as IAM makes one: from now on, with a key of its own (`own`) and a number as common name."""
        now = now or datetime.now(UTC)
        own, serial = own or key(100 + len(self.above)), x509.random_serial_number() >> 96
        last = x509.NameAttribute(NameOID.COMMON_NAME, str(serial))
        subject = x509.Name([*self.certificate.subject, last])
        builder = x509.CertificateBuilder(self.certificate.subject, subject, own.public_key(), serial)
        builder = builder.not_valid_before(now).not_valid_after(now + life)
        if extensions is None:
            extensions = [(x509.UnrecognizedExtension(PROXY_CERT_INFO, _INHERIT_ALL), True), (_signs(), True)]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return Holder(builder.sign(self.key, hashes.SHA256()), own, (self.certificate, *self.above))


class Authority:
    """An authority that people's and hosts' certificates are of; with the same key it is the same one again."""

    def __init__(
        self,
        common_name: str = "Test CA",
        *,
        domain: str = "test",
        key_number: int = 0,
        own: rsa.RSAPrivateKey | None = None,
    ) -> None:
        """Args:
        common_name: in its name, in ASCII, with single blanks.
        domain: the same; all names begin with it (``/DC=test``).
        key_number: of its key, see `key`.
        own: its key, instead.
        """
        self.key = own or key(key_number)
        self.name = name_of((NameOID.DOMAIN_COMPONENT, domain), (NameOID.COMMON_NAME, common_name))
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self.name, self.name, self.key.public_key(), 1)
        builder = builder.not_valid_before(now - DAY).not_valid_after(now + 30 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_signs(certificates=True), critical=True)
        builder = builder.add_extension(self._identifier, critical=False)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self._revoked: list[Holder] = []

    def revoke(self, holder: Holder) -> None:
        """Put a person's certificate on the list that `publish` writes."""
        self._revoked.append(holder)

    def certify(
        self,
        common_name: str,
        *,
        key_number: int = 1,
        life: timedelta = 10 * DAY,
        now: datetime | None = None,
        names: Sequence[str] = (),
    ) -> Holder:
        """A person's certificate, or that of a host of this name, and of more names."""
        now, own = now or datetime.now(UTC), key(key_number)
        subject = x509.Name([next(iter(self.name)), x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        serial = x509.random_serial_number()
        builder = x509.CertificateBuilder(self.name, subject, own.public_key(), serial)
        builder = builder.not_valid_before(now - DAY).not_valid_after(now + life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_signs(), critical=True)
        hosts = x509.SubjectAlternativeName([x509.DNSName(name) for name in (common_name, *names)])
        builder = builder.add_extension(hosts, critical=False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
        builder = builder.add_extension(identifier, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier)
        builder = builder.add_extension(authority, critical=False)
        return Holder(builder.sign(self.key, hashes.SHA256()), own)

    def publish(self, directory: Path) -> None:
        """Put it where XRootD looks for it: certificate, signing policy and revocation list, by the subject's hash."""
        directory.mkdir(parents=True, exist_ok=True)
        found = subject_hash(self.name)
        (directory / f"{found}.0").write_text(pem_of(self.certificate))
        policy = f"access_id_CA X509 '{dn(self.name)}'\npos_rights globus CA:sign\ncond_subjects globus '\"/*\"'\n"
        (directory / f"{found}.signing_policy").write_text(policy)
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now - DAY, now + 30 * DAY)
        for holder in self._revoked:
            entry = x509.RevokedCertificateBuilder(holder.certificate.serial_number, now - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        (directory / f"{found}.r0").write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))


def _signs(*, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
