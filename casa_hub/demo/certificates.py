"""A throw-away certificate authority for the demo's servers on loopback."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = timedelta(days=30)
#: Types of attributes -> themselves in DER.
_OIDS = {
    NameOID.COMMON_NAME: bytes.fromhex("0603550403"),
    NameOID.DOMAIN_COMPONENT: bytes.fromhex("060a0992268993f22c640119"),
}


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """Files of a server's certificate and of the authority that signed it."""

    certificate: Path
    key: Path
    #: The authority's certificate, PEM.
    ca_file: Path
    #: Directory for ``X509_CERT_DIR`` of OpenSSL and XRootD: the authority's certificate, named by the subject's hash.
    ca_directory: Path


def make_host_certificate(directory: Path, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> HostCertificate:
    """Make an authority and a server certificate for these host names and addresses; the first is the common name."""
    ca_directory = directory / "ca"
    ca_directory.mkdir(parents=True)
    now = datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "casa-hub demo")])
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        x509.CertificateBuilder(ca_name, ca_name, ca_key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder(
            ca_name,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]),
            key.public_key(),
            x509.random_serial_number(),
        )
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = HostCertificate(directory / "hostcert.pem", directory / "hostkey.pem", directory / "ca.pem", ca_directory)
    pem = serialization.Encoding.PEM
    files.certificate.write_bytes(certificate.public_bytes(pem))
    files.ca_file.write_bytes(ca.public_bytes(pem))
    (ca_directory / f"{subject_hash(ca_name)}.0").write_bytes(ca.public_bytes(pem))
    files.key.touch(mode=0o600)
    files.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def subject_hash(name: x509.Name) -> str:
    """OpenSSL's X509_NAME_hash of common names and domain components in ASCII, without double or outer blanks.

    It is the first four bytes of SHA-1 over the name in canonical form (lower case, UTF8String, no outer SEQUENCE), in
    reverse.
    """
    canonical = b""
    for attribute in name:
        value = str(attribute.value).lower().encode()
        pair = _OIDS[attribute.oid] + b"\x0c" + bytes([len(value)]) + value
        sequence = b"\x30" + bytes([len(pair)]) + pair
        canonical += b"\x31" + bytes([len(sequence)]) + sequence
    return hashlib.sha1(canonical, usedforsecurity=False).digest()[3::-1].hex()
