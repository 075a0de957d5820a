"""What the simulation itself raises."""


class SimulationError(Exception):
    """The simulated world cannot go on: an endless loop, or tasks that all wait."""


class Violation(AssertionError):
    """An answer is not what it has to be."""
