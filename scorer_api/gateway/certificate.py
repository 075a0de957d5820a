"""The certificate that the endpoint picker presents to gateways: of files that may be renewed, or made at the start."""

import ssl
import tempfile
from pathlib import Path
from typing import Self

from indexer.config.settings import Settings
from indexer.http.tls import Certificate

# HTTP/2 by TLS, as ALPN names it. Gateways that do not ask for a protocol get it as well.
PROTOCOLS = ("h2",)


class CertificateFiles(Certificate):
    """Of the files of `--gateway-tls-cert` and `-key`."""

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None if there are none. Raises SettingError."""
        if settings.gateway_tls_cert is None or settings.gateway_tls_key is None:
            return None
        return cls(settings.gateway_tls_cert, settings.gateway_tls_key, "--gateway-tls", PROTOCOLS)


def context_of(pem: bytes) -> ssl.SSLContext:
    """Presents a certificate that stays as it is. `pem`: its private key and itself."""
    with tempfile.TemporaryDirectory() as folder:  # OpenSSL's wrapper takes files only
        file = Path(folder) / "pem"
        file.write_bytes(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(file)
    context.set_alpn_protocols(PROTOCOLS)
    return context
