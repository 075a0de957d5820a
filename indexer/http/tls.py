"""A certificate of the service, for TLS 1.2 or newer."""

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from indexer.config.reload import WatchedFiles
from indexer.config.settings import Settings
from indexer.errors import SettingError

log = logging.getLogger(__name__)


class Certificate:
    """`context`: for present and future connections. `flag`: what the names of its flags begin with. `protocols`: names for ALPN, if any.

    Raises SettingError for files that cannot be used.

    A context that loads a second certificate keeps the first one if their keys are of different kinds. So each state of the files gets its own
    context, and each handshake switches to the newest: OpenSSL calls for that with every hello, even one that names no server.
    """

    def __init__(self, cert: str, key: str, flag: str = "--tls", protocols: Sequence[str] = ()) -> None:
        self._flag = flag
        self._cert = cert
        self._key = key
        self._protocols = protocols
        self.files = WatchedFiles(cert, key)
        self.context = self._newest = self._read()
        self._logged: str | None = None
        self.context.sni_callback = self._switch_to_newest

    def _switch_to_newest(self, connection: ssl.SSLSocket | ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None if the service speaks no TLS. Raises SettingError."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key)

    def _read(self) -> ssl.SSLContext:
        """Raises SettingError."""
        for source, path in ((f"{self._flag}-cert", self._cert), (f"{self._flag}-key", self._key)):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise SettingError(source, path, f"cannot be read: {error.strerror or error}") from None
        both, paths = f"{self._flag}-cert and {self._flag}-key", f"{self._cert} and {self._key}"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._protocols:
            context.set_alpn_protocols(self._protocols)
        try:
            # With a password, even an empty one, OpenSSL does not ask for it on the terminal.
            context.load_cert_chain(self._cert, self._key, password="")
        except ssl.SSLError as error:
            if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
                raise SettingError(f"{self._flag}-key", self._key, f"is not the key of the certificate in {self._flag}-cert {self._cert}") from None
            what = f"should be PEM files, a certificate with its chain and its unencrypted private key: {error.reason or error}"
            raise SettingError(both, paths, what) from None
        except OSError as error:
            raise SettingError(both, paths, f"cannot be read: {error.strerror or error}") from None
        return context

    @property
    def is_current(self) -> bool:
        """Whether the files could be used when they were last read."""
        return self._logged is None

    async def reload(self) -> None:
        """Present what the files hold now. Files that cannot be used are logged once, and change nothing."""
        try:
            self._newest = self._read()
        except SettingError as error:
            if str(error) != self._logged:
                log.error("certificate not read again", extra={"error": str(error)})
            self._logged = str(error)
        else:
            if self._logged is not None:
                log.info("certificate read again")
            self._logged = None
