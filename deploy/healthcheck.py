"""The image's HEALTHCHECK: exit code 0 when the service beside it answers /healthz, else 1 with a line that says why.

It asks where KV_INDEXER_HOST and KV_INDEXER_PORT say, by TLS where there is KV_INDEXER_TLS_CERT, so give these as variables and not as flags.
"""

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0
# What listens on every address is asked on the loopback one.
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here


def address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the service."""
    host = environ.get("KV_INDEXER_HOST", "")
    port = environ.get("KV_INDEXER_PORT", "")
    # Kubernetes sets KV_INDEXER_PORT=tcp://… beside a service called kv-indexer: not ours.
    return LOOPBACK.get(host, host), int(port) if port.isdecimal() else 8080


def connection_to(host: str, port: int, environ: Mapping[str, str]) -> http.client.HTTPConnection:
    """Whose certificate it is does not matter: the question is whether the service beside us answers, and nothing is told."""
    if not environ.get("KV_INDEXER_TLS_CERT"):
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def main() -> int:
    host, port = address(os.environ)
    connection = connection_to(host, port, os.environ)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port}: {error!r}", file=sys.stderr)  # noqa: T201 - docker inspect shows it
        return 1
    finally:
        connection.close()
    if status != http.client.OK:
        print(f"{host}:{port}: {status}", file=sys.stderr)  # noqa: T201 - docker inspect shows it
    return status != http.client.OK


if __name__ == "__main__":
    sys.exit(main())
