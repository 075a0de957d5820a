"""How much of the traffic to a model's pods this router does not see.

Other routers know nothing of its picks, and it knows nothing of theirs before an engine's next figures. They see the same index and the same loads,
so they are expected to pick alike: for each request from here as many of theirs as of late. Without that, all of them send to the pod that was the
least busy at the last look.
"""

import math
from collections.abc import Iterable

from msgspec import Struct

# Requests count for about so long.
REMEMBERED_S = 10.0
# More requests than this for each one from here are not expected: a router that sends little knows little.
OTHERS_MAX = 16.0
# Less is the time that requests are under way.
OTHERS_MIN = 0.1
# Above this number, pods that were not measured for some time are forgotten.
PODS_MAX = 1_024


class _Measured(Struct):
    """A pod's last figures: when, and how many requests its engine had had. `sent`: how many were sent from here since."""

    at_s: float
    requests: float
    sent: int = 0


class OtherSenders:
    """Of one model. Times are of the monotonic clock, and never decrease."""

    def __init__(self) -> None:
        self._pods: dict[str, _Measured] = {}
        self._arrived = 0.0
        self._sent = 0.0
        self._at_s = -math.inf

    def sent(self, pod: str) -> None:
        """A request was sent from here."""
        if (known := self._pods.get(pod)) is not None:
            known.sent += 1

    def learn(self, measured: Iterable[tuple[str, float, float]]) -> None:
        """`measured`: each pod, when it was measured, and how many requests its engine had had since its start by then."""
        for pod, at_s, requests in measured:
            known = self._pods.get(pod)
            if known is None or requests < known.requests:
                known = _Measured(at_s, requests)
            elif at_s > known.at_s:
                if at_s > self._at_s:
                    kept = math.exp((self._at_s - at_s) / REMEMBERED_S)
                    self._arrived, self._sent, self._at_s = kept * self._arrived, kept * self._sent, at_s
                self._arrived += requests - known.requests
                self._sent += known.sent
                known = _Measured(at_s, requests)
            self._pods[pod] = known
        if len(self._pods) > PODS_MAX:
            self._pods = {pod: known for pod, known in self._pods.items() if known.at_s > self._at_s - REMEMBERED_S}

    @property
    def per_request(self) -> float:
        """How many requests others send for each one from here."""
        others = (self._arrived - self._sent) / (1 + self._sent)
        return min(OTHERS_MAX, others) if others > OTHERS_MIN else 0.0
