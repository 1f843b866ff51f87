"""Pure: an X.509 proxy (RFC 3820) as somebody else sent it. Nothing of it is believed.

RFC 3820 has the certificates; the order in the file (the proxy, its key, what it was made of) is that of the Globus
Toolkit, which all grid tools read.

A proxy is read on the hub's event loop, so it must take well under a millisecond. Loading an RSA key takes OpenSSL
44 ms at 2048 bits, because it looks for the primes' being prime; so the key is loaded without that, and the equations
that such a key must fulfil (RFC 8017, 3.2) are verified here. A public key with a long exponent costs OpenSSL as
much as a private one; so such a key is refused before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from casa_hub.moments import when
from casa_hub.text import printable

#: Characters of PEM. A proxy with the attributes of several VOMS servers has 20,000.
LONGEST = 65536
#: Certificates; OpenSSL follows no longer chain unless it is told so.
_DEEPEST = 10
#: How far the clocks of the two sides may differ. IAM's proxies are valid from the second in which they are made.
_LEEWAY = timedelta(minutes=5)

#: RFC 3820, 3.8: the extension that makes a certificate a proxy.
_PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]{1,40})-----[A-Za-z0-9+/=\s]+-----END \1-----")
_KEYS = frozenset({"PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"})
_NAME_LENGTH = 400
#: Bits of an RSA key, and of its public exponent. Grid authorities have up to 4096, and 65537.
_LONGEST_RSA, _LONGEST_EXPONENT = 8192, 64


class BadProxyError(Exception):
    """It is no usable proxy; the text is a predicate ("has no private key") and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class ProxyChain:
    """A proxy that is sound, as far as that can be seen without its authority."""

    #: The proxy's certificate, its private key, the certificates above it; each a block of PEM.
    pem: str = field(repr=False)
    #: Whose it is: the subject of the person's own certificate, as grid map files write it (``/DC=org/CN=Alice``).
    identity: str
    #: Subject and issuer of the proxy's own certificate, in the same form.
    subject: str
    issuer: str
    #: Serial number of the proxy's own certificate, hexadecimal.
    serial: str
    #: When the first of the certificates expires; aware UTC.
    expires_at: datetime
    #: Whether that is sooner than whoever made it wanted: what it was made of ends then, too.
    cut_short: bool


def read_proxy(text: str, now: datetime) -> ProxyChain:
    """Read a proxy. Raises BadProxyError."""
    key, *certificates = _blocks(text)
    try:
        chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in certificates]
        for one in chain:
            _look_at_size(one)
        _look_at_key(key, chain[0])
        for lower, upper in pairwise(chain):
            _look_at_signature(lower, upper)
        own = _of_person(chain)
        expires_at = _end(chain, now)
        return ProxyChain(
            pem="".join(f"{pem}\n" for pem in (certificates[0], key, *certificates[1:])),
            identity=_name(own.subject),
            subject=_name(chain[0].subject),
            issuer=_name(chain[0].issuer),
            serial=f"{chain[0].serial_number:x}",
            expires_at=expires_at,
            cut_short=expires_at < chain[0].not_valid_after_utc,
        )
    except BadProxyError:
        raise
    except Exception:  # noqa: BLE001 - the library's many, whose texts may quote what they could not read
        raise BadProxyError("can't be read") from None


def _blocks(text: str) -> list[str]:
    """The blocks of PEM: the key, then the certificates in their order."""
    if len(text) > LONGEST:
        raise BadProxyError(f"has more than {LONGEST} characters")
    blocks = [(match[1], match[0]) for match in _BLOCK.finditer(text)]
    certificates = [pem for kind, pem in blocks if kind == "CERTIFICATE"]
    keys = [pem for kind, pem in blocks if kind in _KEYS]
    if not certificates:
        raise BadProxyError("has no certificate in PEM")
    if len(certificates) > _DEEPEST:
        raise BadProxyError(f"has more than {_DEEPEST} certificates")
    if len(keys) != 1:
        raise BadProxyError("has more than one private key" if keys else "has no private key without a password")
    return [*keys, *certificates]


def _of_person(chain: Sequence[x509.Certificate]) -> x509.Certificate:
    """The certificate that the first proxy was made of."""
    if not _is_proxy(chain[0]):
        raise BadProxyError("is no proxy certificate (RFC 3820)")
    for certificate in chain[1:]:
        if not _is_proxy(certificate):
            return certificate
    raise BadProxyError("lacks the certificate of the person, of which it was made")


def _end(chain: Sequence[x509.Certificate], now: datetime) -> datetime:
    expires_at = min(one.not_valid_after_utc for one in chain)
    if expires_at <= now:
        raise BadProxyError(f"expired at {when(expires_at)}")
    begins_at = max(one.not_valid_before_utc for one in chain)
    if begins_at > now + _LEEWAY:
        raise BadProxyError(f"is not valid before {when(begins_at)}: the clocks of the two sides differ")
    return expires_at


def _look_at_size(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and (
        key.key_size > _LONGEST_RSA or key.public_numbers().e.bit_length() > _LONGEST_EXPONENT
    ):
        raise BadProxyError("has a certificate with an RSA key of a size that nobody uses")


def _look_at_key(pem: str, certificate: x509.Certificate) -> None:
    key = load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise BadProxyError("has a private key that is neither RSA nor on an elliptic curve")
    if key.public_key() != certificate.public_key() or not (
        isinstance(key, ec.EllipticCurvePrivateKey) or _fulfils_equations(key.private_numbers())
    ):
        raise BadProxyError("has a private key that doesn't belong to its certificate")


def _fulfils_equations(key: rsa.RSAPrivateNumbers) -> bool:
    """RFC 8017, 3.2, but for the primes' being prime."""
    p, q, e = key.p, key.q, key.public_numbers.e
    if min(p, q) <= 2:  # noqa: PLR2004 - the smallest prime; the modulus is odd
        return False
    return (
        p * q == key.public_numbers.n
        and key.d * e % (p - 1) == key.d * e % (q - 1) == 1
        and (key.dmp1, key.dmq1) == (key.d % (p - 1), key.d % (q - 1))
        and key.iqmp * q % p == 1
    )


def _look_at_signature(lower: x509.Certificate, upper: x509.Certificate) -> None:
    try:
        lower.verify_directly_issued_by(upper)
    except Exception:  # noqa: BLE001 - see `read_proxy`
        raise BadProxyError("has a certificate that the next one in the chain didn't sign") from None


def _is_proxy(certificate: x509.Certificate) -> bool:
    return any(extension.oid == _PROXY_CERT_INFO for extension in certificate.extensions)


def _name(name: x509.Name) -> str:
    """As OpenSSL's ``X509_NAME_oneline`` and grid map files write it; safe for a log line."""
    parts = (f"/{_short(part)}={part.value!s}" for part in name)
    return printable("".join(parts))[:_NAME_LENGTH]


def _short(part: x509.NameAttribute[str | bytes]) -> str:
    return "emailAddress" if part.oid == x509.NameOID.EMAIL_ADDRESS else part.rfc4514_attribute_name
