"""When to ask again.

All that this client asks (score, explain, pods) reads and changes nothing, POST or not, so asking twice does no harm. It asks again after a
connection that could not be made or broke without an answer, and after 503 or 429 that says with Retry-After when. Never after another
answer, since the same request gets the same one; and never where an answer took too long: the service was busy with it, and would be twice.
"""

import random

import httpx
from msgspec import Struct

from scorer_api.client.calls import retry_after_s

NOT_NOW = (429, 503)
# Connections that never came to be, or that ended before an answer began. ReadTimeout and WriteTimeout are none of them.
BROKEN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class Retries(Struct, frozen=True):
    """`count`: how often a request is sent again at most. `first_s`: the first pause, which doubles. `pause_max_s`: the longest pause; a service that
    wants a longer one is not asked again. Each pause is stretched by up to a half at random, so that clients do not come back at the same time.
    """

    count: int = 2
    first_s: float = 0.1
    pause_max_s: float = 2.0

    def pause_s(self, tries: int, outcome: httpx.Response | Exception) -> float | None:
        """How long to wait before sending again, None where it is not to be sent again. `tries`: how often it was sent."""
        if tries > self.count:
            return None
        if isinstance(outcome, httpx.Response):
            asked_s = retry_after_s(outcome) if outcome.status_code in NOT_NOW else None
        else:
            asked_s = min(self.pause_max_s, self.first_s * 2 ** (tries - 1)) if isinstance(outcome, BROKEN) else None
        if asked_s is None or asked_s > self.pause_max_s:
            return None
        return asked_s * random.uniform(1.0, 1.5)


DEFAULT = Retries()
NONE = Retries(count=0)
