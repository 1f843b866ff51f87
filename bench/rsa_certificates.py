"""Dask certificates as the hub hooks of Coffea-Casa make them."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def rsa_certificates() -> list[bytes]:
    """A CA, a host's and a user's certificate, with a new RSA key of 2048 bits each."""
    ca_key, host_key, user_key = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alice CA")])
    now = datetime.now(UTC)
    made = []
    for key, name, usage in (
        (ca_key, ca_name, None),
        (host_key, "alice.dask.example.org", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        (user_key, "alice", [ExtendedKeyUsageOID.CLIENT_AUTH]),
    ):
        subject = name if isinstance(name, x509.Name) else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
        )
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        made.append(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        made.append(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
        )
    return made
