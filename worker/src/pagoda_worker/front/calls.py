"""One accepted submit, the front's own stamps of its sequences, and how a sequence's end reads on the wire. Knows neither streams nor the
engine process.

Opened and closed by the switchboard; the session stamps what leaves.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagoda_worker.front.validation import trace_id
from pagoda_worker.request import Finish, Request
from pagoda_worker.wire import worker_pb2 as pb

if TYPE_CHECKING:
    from pagoda_worker.front.session import RouterSession

MAX_TRACES_NAMED = 20
"""In one line of the log."""

log = logging.getLogger(__name__)


class Call:
    """Per-sequence facts are kept so that a finish can be written when the engine cannot say it any more. Times are CLOCK_MONOTONIC
    microseconds; 0: it did not come to that."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "engine_id",
        "first_scheduled_us",
        "first_sent_us",
        "first_token_us",
        "handed_us",
        "last_token_us",
        "max_tokens",
        "n",
        "open_sequences",
        "prompt_tokens",
        "received_us",
        "request_id",
        "reserved_tokens",
        "resumed_tokens",
        "session",
        "started",
        "stopped_by_text",
        "trace_id",
    )

    def __init__(self, session: "RouterSession", submit: pb.Submit, request: Request, received_us: int) -> None:
        self.session = session
        self.request_id = submit.request_id
        self.engine_id = request.request_id
        self.trace_id = trace_id(submit.trace)
        self.prompt_tokens = len(request.prompt_ids)
        self.resumed_tokens = len(request.resume_ids)
        self.max_tokens = request.max_tokens
        self.n = request.n
        self.reserved_tokens = submit.reserved_kv_tokens
        self.open_sequences = set(range(request.n))
        self.stopped_by_text: set[int] = set()
        self.started = False
        self.cached_tokens = 0
        self.received_us = received_us
        self.handed_us = 0
        self.first_scheduled_us = 0
        self.completion_tokens = [self.resumed_tokens] * request.n
        self.first_token_us = [0] * request.n
        self.last_token_us = [0] * request.n
        self.first_sent_us = [0] * request.n

    def finish_said(self, sequence: int, finish: Finish) -> pb.Finish:
        """The end of a sequence as the engine told it, with the front's stamps beside the engine's."""
        usage, timings = finish.usage, finish.timings
        return pb.Finish(
            request_id=self.request_id,
            sequence=sequence,
            reason=pb.FinishReason.ValueType(finish.reason),
            stop_token_id=finish.stop_token_id or 0,
            detail=finish.detail,
            usage=pb.Usage(
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                draft_tokens=usage.draft_tokens,
                accepted_draft_tokens=usage.accepted_draft_tokens,
                drafts=usage.drafts,
                accepted_by_place=usage.accepted_by_place,
            ),
            timings=pb.Timings(
                received_mono_us=self.received_us,
                handed_mono_us=self.handed_us,
                accepted_mono_us=timings.accepted_mono_us,
                first_scheduled_mono_us=timings.first_scheduled_mono_us,
                first_token_mono_us=timings.first_token_mono_us,
                last_token_mono_us=timings.last_token_mono_us,
                preemptions=timings.preemptions,
                steps=timings.steps,
                batch_sizes=[size for size, _ in timings.batches],
                batch_steps=[steps for _, steps in timings.batches],
            ),
        )

    def finish_unsaid(self, sequence: int, reason: "pb.FinishReason.ValueType", detail: str, *, engine_died: bool = False) -> pb.Finish:
        """The end of a sequence of which the engine says nothing any more: what the front has seen of it."""
        return pb.Finish(
            request_id=self.request_id,
            sequence=sequence,
            reason=reason,
            detail=detail,
            engine_died=engine_died,
            usage=pb.Usage(
                prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens, completion_tokens=self.completion_tokens[sequence]
            ),
            timings=pb.Timings(
                received_mono_us=self.received_us,
                handed_mono_us=self.handed_us,
                first_scheduled_mono_us=self.first_scheduled_us,
                first_token_mono_us=self.first_token_us[sequence],
                last_token_mono_us=self.last_token_us[sequence],
            ),
        )


def log_failed(calls: Sequence[Call], detail: str) -> None:
    """So that a trace leads to this log, and the other way round."""
    traces = [call.trace_id for call in calls if call.trace_id]
    if traces:
        more = f" and {len(traces) - MAX_TRACES_NAMED} more" if len(traces) > MAX_TRACES_NAMED else ""
        log.warning("%s: traces %s%s", detail, ", ".join(traces[:MAX_TRACES_NAMED]), more)
