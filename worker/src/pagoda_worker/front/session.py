"""One router's stream as the switchboard sees it: its calls, the frame under construction, what waits to be written. Knows no engine.

The service moves its outbox onto the wire.
"""

import asyncio
from collections.abc import Sequence

import grpc

from pagoda_worker.request import EngineState, Finish, Request, SequenceUpdate, Timings, TokenLogprobs, Usage
from pagoda_worker.wire import worker_pb2 as pb

MAX_UNREAD_FRAMES = 1024
STATE_INTERVAL_US = 100_000
"""A router without rows in a step hears of changed load this often; of readiness at once."""


class Call:
    """One accepted submit. Per-sequence facts are kept so that a finish can be written when the engine cannot say it any more."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "engine_id",
        "first_scheduled_us",
        "first_token_us",
        "last_token_us",
        "open_sequences",
        "prompt_tokens",
        "received_us",
        "request_id",
        "reserved_tokens",
        "session",
        "started",
        "stopped_by_text",
    )

    def __init__(self, session: "RouterSession", request_id: int, request: Request, reserved_tokens: int, now_us: int) -> None:
        self.session = session
        self.request_id = request_id
        self.engine_id = request.request_id
        self.prompt_tokens = len(request.prompt_ids)
        self.reserved_tokens = reserved_tokens
        self.open_sequences = set(range(request.n))
        self.stopped_by_text: set[int] = set()
        self.started = False
        self.cached_tokens = 0
        self.received_us = now_us
        self.first_scheduled_us = 0
        self.completion_tokens = [len(request.resume_ids)] * request.n
        self.first_token_us = [0] * request.n
        self.last_token_us = [0] * request.n

    def finish_unsaid(self, sequence: int, reason: "pb.FinishReason.ValueType", detail: str) -> pb.Finish:
        """The end of a sequence of which the engine says nothing any more."""
        return pb.Finish(
            request_id=self.request_id,
            sequence=sequence,
            reason=reason,
            detail=detail,
            usage=pb.Usage(
                prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens, completion_tokens=self.completion_tokens[sequence]
            ),
            timings=pb.Timings(
                received_mono_us=self.received_us,
                first_scheduled_mono_us=self.first_scheduled_us,
                first_token_mono_us=self.first_token_us[sequence],
                last_token_mono_us=self.last_token_us[sequence],
            ),
        )


class FrameDraft:
    """Rows of one step for one router, collected as plain lists and made a message once."""

    __slots__ = ("finishes", "logprobs", "request_ids", "sequences", "started", "token_counts", "token_ids")

    def __init__(self) -> None:
        self.request_ids: list[int] = []
        self.sequences: list[int] = []
        self.token_counts: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[pb.RowLogprobs] = []
        self.finishes: list[pb.Finish] = []
        self.started: list[pb.Started] = []

    def add_row(self, request_id: int, update: SequenceUpdate) -> None:
        if update.logprobs is not None:
            self.logprobs.append(_row_logprobs(len(self.request_ids), update.logprobs))
        self.request_ids.append(request_id)
        self.sequences.append(update.sequence)
        self.token_counts.append(len(update.token_ids))
        self.token_ids += update.token_ids

    def is_empty(self) -> bool:
        return not (self.request_ids or self.finishes or self.started)

    def to_frame(self, step: int, at_us: int) -> pb.Frame:
        return pb.Frame(
            step=step,
            at_mono_us=at_us,
            request_ids=self.request_ids,
            sequences=self.sequences,
            token_counts=self.token_counts,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finishes=self.finishes,
            started=self.started,
        )


class RouterSession:
    """Owned by the switchboard; the service reads `outbox` until `None`, and looks at `ended` for an end that cannot wait for it."""

    def __init__(self, epoch: int, router_id: str) -> None:
        self.epoch = epoch
        self.router_id = router_id
        self.calls: dict[int, Call] = {}
        self.draft = FrameDraft()
        self.outbox: asyncio.Queue[pb.FromWorker | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.end_code = grpc.StatusCode.OK
        self.end_details = ""
        self._grant_seq = 0
        self._frames_sent = 0
        self._frames_read = 0
        self._state_told: pb.WorkerState | None = None
        self._state_told_us = 0

    # ---- up

    def send(self, message: pb.FromWorker) -> None:
        if not self.ended.is_set():
            self.outbox.put_nowait(message)

    def welcome(self, worker_id: str, state: pb.WorkerState, grants: Sequence[pb.Grant], now_us: int) -> None:
        self._state_told, self._state_told_us = state, now_us
        self.send(pb.FromWorker(welcome=pb.Welcome(epoch=self.epoch, worker_id=worker_id, state=state, grants=grants)))

    def grant(self, model: str, total: int) -> pb.Grant:
        self._grant_seq += 1
        return pb.Grant(model=model, epoch=self.epoch, seq=self._grant_seq, granted_kv_tokens_total=total)

    def send_frame(self, step: int, now_us: int, state: pb.WorkerState, grant: pb.Grant | None) -> None:
        """What has gathered since the last frame, if anything has. A router that does not read is cut off: it must not cost memory."""
        idle = self.draft.is_empty()
        tell_state = self._state_is_news(state, now_us, idle=idle)
        if self.ended.is_set() or (idle and grant is None and not tell_state):
            return
        if self._frames_sent - self._frames_read >= MAX_UNREAD_FRAMES:
            self.end(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_UNREAD_FRAMES} frames are unacknowledged: read faster, and send FlowCredit as you read",
            )
            return
        frame = self.draft.to_frame(step, now_us)
        self.draft = FrameDraft()
        if tell_state:
            frame.state.CopyFrom(state)
            self._state_told, self._state_told_us = state, now_us
        if grant is not None:
            frame.grants.append(grant)
        self._frames_sent += 1
        self.send(pb.FromWorker(frame=frame))

    def _state_is_news(self, state: pb.WorkerState, now_us: int, *, idle: bool) -> bool:
        told = self._state_told
        if told is None or not idle or now_us - self._state_told_us >= STATE_INTERVAL_US:
            return told != state
        return (told.ready, told.draining, told.not_ready_reason) != (state.ready, state.draining, state.not_ready_reason)

    # ---- down

    def frames_read(self, total: int) -> None:
        if not self._frames_read <= total <= self._frames_sent:
            self.end(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"FlowCredit says {total} frames read; {self._frames_sent} were sent and {self._frames_read} already acknowledged",
            )
            return
        self._frames_read = total

    # ---- end

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """At once, whatever still waits to be written."""
        if self.ended.is_set():
            return
        self.end_code, self.end_details = code, details
        self.ended.set()
        while not self.outbox.empty():
            self.outbox.get_nowait()

    def end_after_outbox(self) -> None:
        self.outbox.put_nowait(None)


def worker_state(state: EngineState | None, *, draining: bool, not_ready_reason: str) -> pb.WorkerState:
    """`state` None: no engine."""
    message = pb.WorkerState(draining=draining, ready=not not_ready_reason, not_ready_reason=not_ready_reason)
    if state is not None:
        message.num_running = state.num_running
        message.num_waiting = state.num_waiting
        message.queued_prefill_tokens = state.queued_prefill_tokens
        message.kv_capacity_tokens = state.kv_capacity_tokens
        message.kv_free_tokens = state.kv_free_tokens
        message.prefill_tokens_per_s = state.prefill_tokens_per_s
        message.decode_step_ms = state.decode_step_ms
    return message


def finish_message(request_id: int, sequence: int, finish: Finish) -> pb.Finish:
    return pb.Finish(
        request_id=request_id,
        sequence=sequence,
        reason=pb.FinishReason.ValueType(finish.reason),
        stop_token_id=finish.stop_token_id or 0,
        detail=finish.detail,
        usage=_usage(finish.usage),
        timings=_timings(finish.timings),
    )


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens, completion_tokens=usage.completion_tokens)


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        received_mono_us=timings.received_mono_us,
        first_scheduled_mono_us=timings.first_scheduled_mono_us,
        first_token_mono_us=timings.first_token_mono_us,
        last_token_mono_us=timings.last_token_mono_us,
        preemptions=timings.preemptions,
        steps=timings.steps,
        batch_sizes=timings.batch_sizes,
    )


def _row_logprobs(row: int, logprobs: Sequence[TokenLogprobs]) -> pb.RowLogprobs:
    return pb.RowLogprobs(
        row=row,
        sampled=[each.sampled for each in logprobs],
        top_ids=[token_id for each in logprobs for token_id, _ in each.top],
        top=[logprob for each in logprobs for _, logprob in each.top],
        k=len(logprobs[0].top) if logprobs else 0,
    )
