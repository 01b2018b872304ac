"""One router's stream as the switchboard sees it: its calls, the frame under construction, what waits to be written and is stamped when it
leaves. Knows no engine.

The service moves its outbox onto the wire.
"""

import asyncio
from collections.abc import Sequence

import grpc

from pagoda_worker.front.calls import Call
from pagoda_worker.front.outputs import prompt_logprobs_message
from pagoda_worker.request import EngineState, SequenceUpdate, TokenLogprobs
from pagoda_worker.wire import worker_pb2 as pb

MAX_UNREAD_FRAMES = 1024
STATE_INTERVAL_US = 100_000
"""A router without rows in a step hears of changed load this often; of readiness at once."""


TOLD_AT_ONCE = ("ready", "draining", "not_ready_reason", "sleep_level", "routers")


class FrameDraft:
    """Rows of one step for one router, collected as plain lists and made a message once."""

    __slots__ = (
        "adapters",
        "cache_events",
        "embeddings",
        "ended",
        "finishes",
        "first_tokens",
        "logprobs",
        "prompt_logprobs",
        "request_ids",
        "sequences",
        "started",
        "token_counts",
        "token_ids",
    )

    def __init__(self) -> None:
        self.first_tokens: list[tuple[Call, int]] = []
        """Sequences whose first token this frame brings."""
        self.ended: list[tuple[Call, int]] = []
        """Whose the finishes are, in their order."""
        self.request_ids: list[int] = []
        self.sequences: list[int] = []
        self.token_counts: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[pb.RowLogprobs] = []
        self.finishes: list[pb.Finish] = []
        self.started: list[pb.Started] = []
        self.prompt_logprobs: list[pb.PromptLogprobs] = []
        self.embeddings: list[pb.Embedding] = []
        self.cache_events: list[pb.CacheEvent] = []
        """No reason for a frame by themselves: they wait for one, or for the interval."""
        self.adapters: pb.AdaptersState | None = None

    def add_row(self, request_id: int, update: SequenceUpdate) -> None:
        if update.logprobs is not None:
            self.logprobs.append(_row_logprobs(len(self.request_ids), update.logprobs))
        self.request_ids.append(request_id)
        self.sequences.append(update.sequence)
        self.token_counts.append(len(update.token_ids))
        self.token_ids += update.token_ids

    def add_outputs(self, request_id: int, update: SequenceUpdate) -> None:
        """What comes once per request, beside its first token or its finish."""
        if update.prompt_logprobs is not None:
            self.prompt_logprobs.append(prompt_logprobs_message(request_id, update.prompt_logprobs))
        if update.embedding is not None:
            self.embeddings.append(pb.Embedding(request_id=request_id, values=update.embedding))

    def add_finish(self, call: Call, finish: pb.Finish) -> None:
        self.finishes.append(finish)
        self.ended.append((call, finish.sequence))

    def is_empty(self) -> bool:
        return not (self.request_ids or self.finishes or self.started or self.adapters is not None)

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
            prompt_logprobs=self.prompt_logprobs,
            embeddings=self.embeddings,
            cache_events=self.cache_events,
            adapters=self.adapters,
        )


class Outgoing:
    """A message that waits for the stream. Frames may wait behind others, so `sent` is stamped as the last thing before the write."""

    __slots__ = ("_draft", "_message")

    def __init__(self, message: pb.FromWorker, draft: FrameDraft | None = None) -> None:
        self._message = message
        self._draft = draft

    def leaves(self, now_us: int) -> pb.FromWorker:
        draft = self._draft
        if draft is None:
            if self._message.WhichOneof("message") == "pong":
                self._message.pong.replied_mono_us = now_us
            return self._message
        for call, sequence in draft.first_tokens:
            call.first_sent_us[sequence] = now_us
        if draft.ended:
            for (call, sequence), finish in zip(draft.ended, self._message.frame.finishes, strict=True):
                timings = finish.timings
                timings.last_sent_mono_us = now_us
                if timings.first_token_mono_us:  # an eos as the first token has no row, so its finish is the first of it
                    timings.first_sent_mono_us = call.first_sent_us[sequence] or now_us
        return self._message


class RouterSession:
    """Owned by the switchboard; the service reads `outbox` until `None`, and looks at `ended` for an end that cannot wait for it."""

    def __init__(self, epoch: int, router_id: str, *, wants_cache_events: bool = False) -> None:
        self.epoch = epoch
        self.router_id = router_id
        self.wants_cache_events = wants_cache_events
        self._cache_told_us = 0
        self.calls: dict[int, Call] = {}
        self.draft = FrameDraft()
        self.outbox: asyncio.Queue[Outgoing | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.end_code = grpc.StatusCode.OK
        self.end_details = ""
        self._grant_seq = 0
        self._frames_sent = 0
        self._frames_read = 0
        self._state_told: pb.WorkerState | None = None
        self._state_told_us = 0

    # ---- up

    def send(self, message: pb.FromWorker, draft: FrameDraft | None = None) -> None:
        """`draft`: what a frame was made of."""
        if not self.ended.is_set():
            self.outbox.put_nowait(Outgoing(message, draft))

    def welcome(
        self,
        worker_id: str,
        state: pb.WorkerState,
        grants: Sequence[pb.Grant],
        now_us: int,
        adapters: pb.AdaptersState | None = None,
    ) -> None:
        self._state_told, self._state_told_us = state, now_us
        welcome = pb.Welcome(
            epoch=self.epoch,
            worker_id=worker_id,
            state=state,
            grants=grants,
            takes_batches=True,
            takes_packed_ids=True,
            adapters=adapters,
        )
        self.send(pb.FromWorker(welcome=welcome))

    def cache_changed(self, events: Sequence[pb.CacheEvent]) -> None:
        if self.wants_cache_events:
            self.draft.cache_events += events

    def grant(self, model: str, total: int) -> pb.Grant:
        self._grant_seq += 1
        return pb.Grant(model=model, epoch=self.epoch, seq=self._grant_seq, granted_kv_tokens_total=total)

    def send_frame(self, step: int, now_us: int, state: pb.WorkerState, grant: pb.Grant | None) -> None:
        """What has gathered since the last frame, if anything has. A router that does not read is cut off: it must not cost memory."""
        idle = self.draft.is_empty()
        tell_state = self._state_is_news(state, now_us, idle=idle)
        tell_cache = bool(self.draft.cache_events) and now_us - self._cache_told_us >= STATE_INTERVAL_US
        if self.ended.is_set() or (idle and grant is None and not tell_state and not tell_cache):
            return
        if self._frames_sent - self._frames_read >= MAX_UNREAD_FRAMES:
            self.end(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_UNREAD_FRAMES} frames are unacknowledged: read faster, and send FlowCredit as you read",
            )
            return
        if self.draft.cache_events:
            self._cache_told_us = now_us
        draft, self.draft = self.draft, FrameDraft()
        frame = draft.to_frame(step, now_us)
        if tell_state:
            frame.state.CopyFrom(state)
            self._state_told, self._state_told_us = state, now_us
        if grant is not None:
            frame.grants.append(grant)
        self._frames_sent += 1
        self.send(pb.FromWorker(frame=frame), draft)

    def send_cache(self, events: Sequence[pb.CacheEvent], now_us: int) -> None:
        """All that is known, an event in each frame."""
        for event in events:
            self._frames_sent += 1
            self.send(pb.FromWorker(frame=pb.Frame(at_mono_us=now_us, cache_events=[event])))

    def _state_is_news(self, state: pb.WorkerState, now_us: int, *, idle: bool) -> bool:
        told = self._state_told
        if told is None or not idle or now_us - self._state_told_us >= STATE_INTERVAL_US:
            return told != state
        return any(getattr(told, field) != getattr(state, field) for field in TOLD_AT_ONCE)

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


def worker_state(state: EngineState | None, *, draining: bool, not_ready_reason: str, routers: int) -> pb.WorkerState:
    """`state` None: no engine."""
    message = pb.WorkerState(draining=draining, ready=not not_ready_reason, not_ready_reason=not_ready_reason, routers=routers)
    if state is not None:
        message.num_running = state.num_running
        message.num_waiting = state.num_waiting
        message.queued_prefill_tokens = state.queued_prefill_tokens
        message.kv_capacity_tokens = state.kv_capacity_tokens
        message.kv_free_tokens = state.kv_free_tokens
        message.prefill_tokens_per_s = state.prefill_tokens_per_s
        message.decode_step_ms = state.decode_step_ms
        message.prefill_step_ms, message.prefill_token_ms = state.prefill_step_ms, state.prefill_token_ms
        message.sleep_level = state.sleep_level
    return message


def _row_logprobs(row: int, logprobs: Sequence[TokenLogprobs]) -> pb.RowLogprobs:
    return pb.RowLogprobs(
        row=row,
        sampled=[each.sampled for each in logprobs],
        top_ids=[token_id for each in logprobs for token_id, _ in each.top],
        top=[logprob for each in logprobs for _, logprob in each.top],
        k=len(logprobs[0].top) if logprobs else 0,
    )
