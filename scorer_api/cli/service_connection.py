"""How the commands that ask a running service reach it, and how they report failures."""

import argparse
import ssl
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

from indexer.config.auth_tokens import read_tokens as read_bearer_tokens
from indexer.errors import SettingError
from indexer.masking import masked
from scorer_api.client import Client, ClientError, NoAnswerError, ProblemError

TIMEOUT_S = 30.0
HINTS = {401: ", see --token-file"}


class Connection(NamedTuple):
    """Where the service is, and how to authenticate."""

    url: str
    token: str | None
    verify: Literal[True] | ssl.SSLContext


def add_service(parser: argparse.ArgumentParser) -> None:
    """Declare where the service is."""
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the service is (default: %(default)s)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token for the service: the first one in it")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM file of the authority that signed the certificate of an https service")


def connection_of(parsed: argparse.Namespace) -> Connection:
    """Raises SettingError for a file that cannot be used."""
    token = None if parsed.token_file is None else read_bearer_tokens(parsed.token_file, "--token-file")[0]
    return Connection(parsed.url, token, True if parsed.ca_file is None else trusted_context(parsed.ca_file))


def trusted_context(ca_file: str) -> ssl.SSLContext:
    """A context that trusts the certificates in this file. Raises SettingError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        why = f"cannot be read: {error.strerror}" if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) else "is no PEM file"
        raise SettingError("--ca-file", ca_file, f"{why}; it should hold certificates in PEM form") from None


def ask(parsed: argparse.Namespace, request: Callable[[Client], str]) -> int:
    """Print the text that `request` makes of a response. Returns the exit code. Raises SettingError for words or files that cannot be used."""
    connection = connection_of(parsed)
    try:
        client = Client(connection.url, token=connection.token, verify=connection.verify, timeout_s=TIMEOUT_S)
    except ValueError as error:
        raise SettingError("--url", connection.url, str(error).removeprefix("url: ")) from None
    with client:
        try:
            print(request(client))  # noqa: T201 - the command's output
        except ClientError as error:
            print(f"kv-indexer: {error_line(error, connection.url)}", file=sys.stderr)  # noqa: T201 - the command's one line of error
            return 1
    return 0


def error_line(error: ClientError, url: str) -> str:
    """A failure in one line. `url`: the service as the user named it."""
    if isinstance(error, ProblemError):
        return error.detail + HINTS.get(error.status, "")
    if isinstance(error, NoAnswerError):
        return f"no answer from {masked(url)}: {masked(error.why)}"
    return masked(str(error))
