"""The image's HEALTHCHECK: exit code 0 when the service beside it answers /healthz, else 1 with a line that says why.

It asks where KV_INDEXER_HOST and KV_INDEXER_PORT say, so give these as variables and not as flags.
"""

import http.client
import os
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


def main() -> int:
    host, port = address(os.environ)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
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
