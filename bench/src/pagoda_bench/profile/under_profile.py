"""`python -m pagoda_bench.profile.under_profile FOLDER MODULE`: runs a module as a process of its own and profiles it between two signals.

SIGUSR1 begins a profile (FOLDER/begun appears), SIGUSR2 ends it (FOLDER/profile.json appears). Knows nothing of the module. The timer is
the main thread's CPU clock, so that waiting and whatever else the machine runs count nothing. What the profiler itself adds is in the
figures; `stages.py` takes it off.
"""

import cProfile
import json
import os
import pstats
import runpy
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any


class Profiling:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._profile = new_profile()
        self._began_s = 0.0

    def begin(self, signum: int, frame: FrameType | None) -> None:
        self._profile = new_profile()
        self._began_s = time.process_time()
        (self._folder / "begun").touch()
        self._profile.enable()

    def end(self, signum: int, frame: FrameType | None) -> None:
        self._profile.disable()
        result = {"process_s": time.process_time() - self._began_s, "functions": functions(self._profile)}
        unfinished = self._folder / "profile.json.part"
        unfinished.write_text(json.dumps(result))
        unfinished.replace(self._folder / "profile.json")


def new_profile() -> cProfile.Profile:
    return cProfile.Profile(time.thread_time_ns, 1e-9)


def functions(profile: cProfile.Profile) -> list[dict[str, Any]]:
    """Every function with its own seconds, and how often who called it; a file named `~` is C."""
    stats: Any = pstats.Stats(profile)
    return [
        {
            "file": file,
            "line": line,
            "name": name,
            "calls": calls,
            "own_s": own_s,
            "callers": [[*caller, counts[1], counts[2]] for caller, counts in callers.items()],
        }
        for (file, line, name), (_, calls, own_s, _, callers) in stats.stats.items()
    ]


def main() -> None:
    folder, module = Path(sys.argv[1]), sys.argv[2]
    profiling = Profiling(folder)
    signal.signal(signal.SIGUSR1, profiling.begin)
    signal.signal(signal.SIGUSR2, profiling.end)
    (folder / "pid").write_text(str(os.getpid()))
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
