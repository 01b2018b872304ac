"""Why a container ended, or a pod found no node, from the words of kubelet, scheduler and our own processes. Pure; for pods.py and
the local executor, so that both tell the same end in the same words.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OUR_LAST_LINE = re.compile(r"pagoda-(?:worker|fetch): (?P<reason>[A-Z][A-Za-z]+): (?P<sentence>.+)")
"""With which our processes end when they know the cause: `pagoda-worker: OutOfMemory: sentence`."""
OUR_REASONS = frozenset({"ModelNotFound", "OutOfMemory", "Stalled", "EngineCrash", "DiskFull", "Unauthorized", "WeightsDownload"})
LASTING_REASONS = frozenset({"ModelNotFound", "Unauthorized", "DiskFull", "OutOfMemory", "OOMKilled", "EngineCrash"})
"""Another try is likely to end the same way: somebody must act."""
BEFORE_ANY_BYTES = frozenset({"ModelNotFound", "Unauthorized"})
"""Of them, those that a try is past once it has read some of the weights."""
BEGINNINGS = frozenset({"", "Loading", "WeightsDownload"})
"""What a process says of itself while nothing has gone wrong yet."""
INCURABLE = (2, 3)
"""Exit statuses with which a process says that trying again is useless: bad configuration (as argparse has it too), or what it loads."""
LONGEST_MESSAGE = 300
INSUFFICIENT = re.compile(r"Insufficient ([A-Za-z0-9./-]*[A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Cause:
    reason: str = ""
    message: str = ""


def cause_of_termination(ended: Mapping[str, Any], *, fetches: bool = False, loops: bool = False) -> Cause:
    """`ended`: a container's `terminated` state. `fetches`: it was the fetch step. `loops`: it waits for its next start."""
    exit_code, reason = int(ended.get("exitCode", 0)), ended.get("reason", "")
    how = _how(exit_code, int(ended.get("signal") or 0))
    if reason == "OOMKilled":
        return Cause("OOMKilled", f"it was ended at its memory limit ({how})")
    line = last_line(ended.get("message", ""))
    if told := cause_in(line):
        return Cause("FetchFailed", told.message) if told.reason == "WeightsDownload" else told
    if reason in ("ContainerCannotRun", "StartError"):
        return Cause(reason, line or how)
    message = f"{how}, last words: {line}" if line else f"{how}, without a last word"
    if fetches:
        return Cause("FetchFailed", message)
    return Cause("CrashLoopBackOff" if loops else "Error", message)


def cause_of_next_try(before: Cause, said: Cause, *, bytes_done: int | None) -> Cause:
    """What to tell of a process that says `said`, after one that ended with `before`: a lasting cause until it is past that, else a status
    would flip to Loading and back at every try. A process that serves is past all: the caller does not ask."""
    is_past = before.reason in BEFORE_ANY_BYTES and bool(bytes_done)
    return before if before.reason in LASTING_REASONS and said.reason in BEGINNINGS and not is_past else said


def cause_in(line: str) -> Cause | None:
    """What our own last line says. None: it is no such line."""
    found = OUR_LAST_LINE.search(line)
    if found is None or found["reason"] not in OUR_REASONS:
        return None
    return Cause(found["reason"], _short(found["sentence"]))


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _short(lines[-1]) if lines else ""


def missing_resources(sentence: str) -> list[str]:
    """Named in the scheduler's "0/3 nodes are available: 2 Insufficient cpu, 3 Insufficient nvidia.com/gpu"."""
    return sorted(set(INSUFFICIENT.findall(sentence)))


def _how(exit_code: int, number: int) -> str:
    number = number or (exit_code - 128 if exit_code > 128 else 0)
    try:
        return f"signal {signal.Signals(number).name}" if number else f"exit status {exit_code}"
    except ValueError:
        return f"exit status {exit_code}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
