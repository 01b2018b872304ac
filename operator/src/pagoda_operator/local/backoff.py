"""When a process that ended is started again. Pure; the caller brings the clock. Called by pod.py."""

from dataclasses import dataclass

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
STEADY_S = 60.0
"""A run that was up this long was a good one: what ends it counts as a first failure again."""
CRASH_LOOP_FAILURES = 2
"""From the second failure in a row a pod is said to crash-loop; one death with a quick recovery is not a loop."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Failures in a row; 0 before the first."""

    failures: int = 0

    def after_run(self, lasted_s: float) -> "Backoff":
        return Backoff(1 if lasted_s >= STEADY_S else self.failures + 1)

    @property
    def delay_s(self) -> float:
        if self.failures == 0:
            return 0.0
        return float(min(FIRST_DELAY_S * 2 ** min(self.failures - 1, 16), LONGEST_DELAY_S))

    @property
    def loops(self) -> bool:
        return self.failures >= CRASH_LOOP_FAILURES
