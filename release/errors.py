"""Why a release is not made."""


class ReleaseError(Exception):
    """Says in a sentence what is wrong with the tree, the version or what was built."""
