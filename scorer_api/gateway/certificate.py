"""The certificate that the endpoint picker presents to gateways: of files that may be renewed, or made at the start."""

from pathlib import Path
from typing import Protocol, Self

from msgspec import Struct

from indexer.config.reload import WatchedFiles
from indexer.config.settings import Settings
from indexer.http.tls import Certificate


class Pem(Struct, frozen=True):
    """A private key, and a certificate with its chain."""

    key: bytes
    chain: bytes


class Certified(Protocol):
    """Has a certificate to present."""

    @property
    def pem(self) -> Pem: ...


class MadeCertificate(Struct, frozen=True):
    """One that stays as it is."""

    pem: Pem


class CertificateFiles:
    """`pem`: what the files held when they were last fit for use. Raises SettingError for files that are not."""

    def __init__(self, cert: str, key: str) -> None:
        self._checked = Certificate(cert, key, "--gateway-tls")
        self._cert = cert
        self._key = key
        self.pem = self._read()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None if there are none. Raises SettingError."""
        if settings.gateway_tls_cert is None or settings.gateway_tls_key is None:
            return None
        return cls(settings.gateway_tls_cert, settings.gateway_tls_key)

    @property
    def files(self) -> WatchedFiles:
        return self._checked.files

    def _read(self) -> Pem:
        return Pem(Path(self._key).read_bytes(), Path(self._cert).read_bytes())

    async def reload(self) -> None:
        """Present what the files hold now. Files that cannot be used are logged once, and change nothing."""
        await self._checked.reload()
        if self._checked.is_current:
            self.pem = self._read()
