"""W3C trace context: which trace a request belongs to, and the ids under which its worker goes on. Pure but for random ids.

What a client sends is taken when it is well formed and otherwise as absent, as the recommendation says: a new trace begins.
"""

import os
import re

from pagoda_router.records import record

LONGEST_TRACESTATE = 512
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@record(frozen=True, slots=True)
class TraceContext:
    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits: this router's part of the trace."""
    parent_span_id: str = ""
    """Whoever called us; empty: the trace begins here."""
    sampled: bool = False
    """Wanted by a collector: by the caller's word, or because we export."""
    tracestate: str = ""

    @property
    def traceparent(self) -> str:
        """For the next one down."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def trace_context(traceparent: bytes | None, tracestate: bytes | None, *, sample: bool) -> TraceContext:
    """`sample`: whether a trace that begins here is wanted."""
    ids = os.urandom(24).hex()
    span_id = ids[32:]
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return TraceContext(ids[:32], span_id, sampled=sample)
    version, trace_id, parent_id, flags, rest = found.groups()
    is_newer = version != b"00"
    if version == b"ff" or trace_id.strip(b"0") == b"" or parent_id.strip(b"0") == b"" or (rest is not None and not is_newer):
        return TraceContext(ids[:32], span_id, sampled=sample)
    state = "" if tracestate is None or len(tracestate) > LONGEST_TRACESTATE else tracestate.decode("ascii", errors="ignore")
    return TraceContext(trace_id.decode(), span_id, parent_id.decode(), bool(int(flags, 16) & 1), state)
