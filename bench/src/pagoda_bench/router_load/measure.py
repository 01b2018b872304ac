"""One scenario on one system: the load generator runs once, and what the router and the rig took in its window is read off /proc.

Called by run.py, which decides who takes turns when.
"""

import json
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagoda_bench.router_load.pinned import Pinned
from pagoda_bench.router_load.scenarios import Scenario
from pagoda_bench.router_load.systems import RouterSystem

GRACE_S = 60.0


class LoadFailed(Exception):
    """The load generator itself could not run."""


@dataclass(frozen=True, slots=True)
class Measured:
    requests: int
    errors: int
    first_error: str
    tokens: int
    seconds: float
    ttft_p50_s: float
    ttft_p99_s: float
    late_p99_s: float
    router_cpu_s: float
    rig_cpu_s: float
    """Load generator and mock together."""
    itl_p50_s: float = 0.0
    itl_p99_s: float = 0.0
    itl_max_s: float = 0.0
    """Between a stream's tokens; 0 where none came apart."""
    rss_bytes: Sequence[int] = field(default=())
    """Of the router: early in the window, and at its end."""

    def per_s(self, what: str) -> float:
        return self.count(what) / self.seconds

    def count(self, what: str) -> int:
        return self.tokens if what == "tokens" else self.requests

    def ceiling_per_s(self, what: str) -> float:
        """What the rig could do with the whole of its core, at what this run cost it."""
        return self.count(what) / self.rig_cpu_s if self.rig_cpu_s else 0.0


@dataclass(frozen=True, slots=True)
class Rig:
    """The compiled program and the mocks that it runs as."""

    program: Path
    cores: Sequence[int]
    mocks: dict[str, Pinned]
    """backend, worker."""

    def measure(self, scenario: Scenario, system: RouterSystem, *, warm_up_s: float, window_s: float) -> Measured:
        """Raises LoadFailed."""
        processes = max(1, len(system.processes))
        arguments = scenario.load_arguments(system.url, system.key, warm_up_s=warm_up_s, window_s=window_s, processes=processes)
        pin = ["taskset", "-c", ",".join(map(str, self.cores))]
        load = subprocess.Popen([*pin, str(self.program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # A load generator that hangs ends here; its pipe then closes, and the reading below fails.
        guard = threading.Timer(warm_up_s + window_s + GRACE_S, load.kill)
        guard.start()
        try:
            return self._follow(load, system)
        finally:
            guard.cancel()
            load.kill()
            load.communicate()

    def _follow(self, load: subprocess.Popen[str], system: RouterSystem) -> Measured:
        assert load.stdout is not None
        assert load.stderr is not None
        stamps: list[tuple[float, float, int]] = []
        for expected in ("begin", "end"):
            line = load.stdout.readline().strip()
            if line != expected:
                raise LoadFailed(f"the load generator said {line!r}, not {expected!r}: {load.stderr.read()[-300:]}")
            stamps.append((system.cpu_s(), self.mocks[system.behind].cpu_s(), system.rss_bytes()))
        told = load.stdout.readline()
        if not told:
            raise LoadFailed(f"the load generator ended without figures: {load.stderr.read()[-300:]}")
        return measured(json.loads(told), stamps)


def measured(told: dict[str, Any], stamps: Sequence[tuple[float, float, int]]) -> Measured:
    """`told`: the load generator's JSON. `stamps`: CPU seconds of router and mock, and the router's memory, at the window's two ends."""
    (router_before, mock_before, rss_before), (router_after, mock_after, rss_after) = stamps
    return Measured(
        requests=told["requests"],
        errors=told["errors"],
        first_error=told["first_error"],
        tokens=told["tokens"],
        seconds=told["seconds"],
        ttft_p50_s=told["ttft_ms"]["p50"] / 1e3,
        ttft_p99_s=told["ttft_ms"]["p99"] / 1e3,
        late_p99_s=told["late_ms"]["p99"] / 1e3,
        router_cpu_s=router_after - router_before,
        rig_cpu_s=told["cpu_s"] + mock_after - mock_before,
        itl_p50_s=told["itl_ms"]["p50"] / 1e3,
        itl_p99_s=told["itl_ms"]["p99"] / 1e3,
        itl_max_s=told["itl_ms"]["max"] / 1e3,
        rss_bytes=(rss_before, rss_after),
    )
