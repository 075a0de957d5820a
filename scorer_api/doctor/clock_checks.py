"""Whose clock is off, by what each said of the time, compared with ours."""

from msgspec import Struct

from scorer_api.doctor.findings import Finding, finding

# Less than this nobody minds; a Date says whole seconds, and an answer takes its time.
SKEW_MAX_S = 5.0


class Clock(Struct, frozen=True):
    """`skew_s`: that clock less ours. `code`: of the finding, where it is that clock that is off."""

    subject: str
    code: str
    skew_s: float


def judge_clocks(clocks: list[Clock]) -> list[Finding]:
    """Where two or more agree with each other and not with ours, it is ours that is off."""
    off = [clock for clock in clocks if abs(clock.skew_s) > SKEW_MAX_S]
    machines = {clock.subject for clock in clocks}
    spread_s = max((clock.skew_s for clock in clocks), default=0) - min((clock.skew_s for clock in clocks), default=0)
    if len(off) == len(clocks) and len(machines) > 1 and spread_s <= SKEW_MAX_S:
        return [finding("clock_here_off", "here", f"the clocks of {len(machines)} others are all {_by(off[0].skew_s)} ours")]
    worst: dict[str, Clock] = {}
    for clock in off:
        if abs(clock.skew_s) > abs(worst.get(clock.subject, Clock("", "", 0.0)).skew_s):
            worst[clock.subject] = clock
    return [finding(clock.code, clock.subject, f"its clock is {_by(clock.skew_s)} ours") for clock in worst.values()]


def _by(skew_s: float) -> str:
    return f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'}"
