"""Replaces secrets in texts that users wrote."""

import re
from typing import Final

MASK = "***"
# In URLs, other than those of engines: everything that may be a password, rather too much than too little. So up to the last @, whatever is in
# between: a password that should have been quoted, with %2F or %40, is one too.
_URL = r"(?P<begin>\b(?!tcp:|ipc:)[A-Za-z][A-Za-z0-9+.-]*://"
_BEFORE_HOST = re.compile(_URL + r"[^:@/]*):.*@", re.DOTALL)
# Text in the place of a port that is no port.
_FOR_A_PORT = re.compile(_URL + r"(?:[^:@/\[]*:\d{1,5},)*[^:@/\[]*):(?!\d{1,5}(?:[/?,'\"\s]|$))[^/?@]+")
_PARAMETER = re.compile(r"(?P<begin>\w*(?:password|secret|token)=)[^&\s'\"]+", re.IGNORECASE)


class _Hidden:
    def __repr__(self) -> str:
        return MASK


HIDDEN: Final = _Hidden()
"""Replaces a value of unknown meaning, which may be a secret."""


def masked(text: str) -> str:
    """A text with the passwords of the URLs in it replaced, those before the host and those in parameters."""
    text = _BEFORE_HOST.sub(rf"\g<begin>:{MASK}@", text)
    text = _FOR_A_PORT.sub(rf"\g<begin>:{MASK}", text)
    return _PARAMETER.sub(rf"\g<begin>{MASK}", text)
