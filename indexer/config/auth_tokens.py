"""Files of bearer tokens: one a line, `#` begins a comment. Several, so that one can be replaced while both are in use."""

import re
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from indexer.errors import SettingError

# As in RFC 6750.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# Each request is compared with all of them.
TOKENS_MAX = 64
FILE_BYTES_MAX = 65_536


def read_tokens(path: str, source: str) -> list[str]:
    """The file's tokens, at least one. Raises SettingError, which never shows one."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SettingError(source, path, f"cannot be read: {error.strerror or error}") from None
    if len(content) > FILE_BYTES_MAX:
        raise SettingError(source, path, f"has more than {FILE_BYTES_MAX} bytes; it should hold tokens, one a line")
    tokens = []
    for number, line in enumerate(content.decode("latin-1").splitlines(), 1):
        token = line.partition("#")[0].strip()
        if not token:
            continue
        if not _TOKEN.fullmatch(token):
            raise SettingError(source, path, f"line {number} is no token: letters, digits and -._~+/, with = at its end only; one a line")
        tokens.append(token)
    if not 1 <= len(tokens) <= TOKENS_MAX:
        raise SettingError(source, path, f"holds {len(tokens)} tokens; it should hold 1 to {TOKENS_MAX}, one a line")
    return tokens


class TokenFile:
    """The tokens that are valid at present. Raises SettingError for a file that cannot be used."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self._source = source
        self.read()

    def read(self) -> None:
        """Read the file again. Raises SettingError, and then the tokens stay as they were."""
        self._digests = [sha256(token.encode()).digest() for token in read_tokens(self.path, self._source)]

    def admits(self, token: bytes) -> bool:
        """Whether the file holds this token. Takes constant time: all digests have one length, and all are compared."""
        digest = sha256(token).digest()
        is_known = False
        for known in self._digests:
            is_known |= compare_digest(digest, known)
        return is_known
