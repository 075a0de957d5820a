"""Showing what users wrote without the secrets in it."""

import re
from typing import Final

MASK = "***"
# Of URLs, other than engines': all that may be a password. Rather too much than too little, so up to the last @, with whatever is in between: a
# password that should have been written with %2F or %40 is one all the same.
_URL = r"(?P<begin>\b(?!tcp:|ipc:)[A-Za-z][A-Za-z0-9+.-]*://"
_BEFORE_HOST = re.compile(_URL + r"[^:@/]*):.*@", re.DOTALL)
# Where a port should be and is none.
_FOR_A_PORT = re.compile(_URL + r"(?:[^:@/\[]*:\d{1,5},)*[^:@/\[]*):(?!\d{1,5}(?:[/?,'\"\s]|$))[^/?@]+")
_PARAMETER = re.compile(r"(?P<begin>\w*(?:password|secret|token)=)[^&\s'\"]+", re.IGNORECASE)


class _Hidden:
    def __repr__(self) -> str:
        return MASK


HIDDEN: Final = _Hidden()
"""Stands for a value that nobody knows the meaning of: it may be a secret."""


def masked(text: str) -> str:
    """A text with the passwords of the URLs in it replaced, those before the host and those in parameters."""
    text = _BEFORE_HOST.sub(rf"\g<begin>:{MASK}@", text)
    text = _FOR_A_PORT.sub(rf"\g<begin>:{MASK}", text)
    return _PARAMETER.sub(rf"\g<begin>{MASK}", text)
