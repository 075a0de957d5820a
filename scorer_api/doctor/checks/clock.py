"""Finds clocks that differ from ours."""

from msgspec import Struct

from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.kinds import Severity

# Smaller differences have no effect; a Date header has whole seconds, and an answer takes time.
SKEW_MAX_S = 5.0


class Clock(Struct, frozen=True):
    """One reading of another clock. `skew_s`: that clock minus ours."""

    subject: str
    skew_s: float


def check_clocks(clocks: list[Clock]) -> list[Finding]:
    """A finding for each clock that is off. If two or more agree with each other and not with ours, ours is off."""
    off = [clock for clock in clocks if abs(clock.skew_s) > SKEW_MAX_S]
    machines = {clock.subject for clock in clocks}
    spread_s = max((clock.skew_s for clock in clocks), default=0) - min((clock.skew_s for clock in clocks), default=0)
    if len(off) == len(clocks) and len(machines) > 1 and spread_s <= SKEW_MAX_S:
        detail = f"the clocks of {len(machines)} others are all {_difference(off[0].skew_s)} ours"
        return [finding("clock_off", "here", detail, Severity.NOTE)]
    worst: dict[str, Clock] = {}
    for clock in off:
        if abs(clock.skew_s) > abs(worst.get(clock.subject, Clock("", 0.0)).skew_s):
            worst[clock.subject] = clock
    return [finding("clock_off", clock.subject, f"its clock is {_difference(clock.skew_s)} ours") for clock in worst.values()]


def _difference(skew_s: float) -> str:
    return f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'}"
