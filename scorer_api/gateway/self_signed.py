"""A certificate that is made at the start, for gateways that want TLS and check no certificate. It needs `cryptography`."""

import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scorer_api.gateway.certificate import context_of

NAME = "kv-indexer"
# Longer than a process lives; clocks may differ by an hour.
DAYS = 3_650
EARLIER = timedelta(hours=1)


def make_context() -> ssl.SSLContext:
    """Presents a certificate of its own, with a new key of P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return context_of(private + certificate.public_bytes(serialization.Encoding.PEM))
