"""How busy the machine is: time limits of tests are those of a quiet one, and grow with what else wants to run."""

import os
import time
from pathlib import Path

_LOAD = Path("/proc/loadavg")
_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slowness() -> float:
    """How many threads want a CPU at this moment, for each CPU; at least 1, and always 1 where the system does not tell."""
    try:
        running = int(_LOAD.read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return 1.0
    return max(1.0, running / _CPUS)


class Budget:
    """Seconds that a quiet machine would need: the busier this one is, the slower they pass."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._looked_s = time.monotonic()
        self._used_s = 0.0

    def is_left(self) -> bool:
        """To be asked several times a second: what passed since the last time counts by how busy the machine is now."""
        now_s = time.monotonic()
        self._used_s += (now_s - self._looked_s) / slowness()
        self._looked_s = now_s
        return self._used_s < self.seconds
