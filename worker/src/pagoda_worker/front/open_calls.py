"""The calls that are open, by the id that the engine knows them by, and what each update of a step means for one: its row in a frame, its
stamps, its end.

Owned by the switchboard, which opens them. Knows neither grants nor whom a frame goes to.
"""

import asyncio

from pagoda_worker.front.calls import Call, log_failed
from pagoda_worker.front.credits import CreditLedger
from pagoda_worker.front.metrics import WorkerMetrics
from pagoda_worker.request import Finish, FinishReason, SequenceUpdate
from pagoda_worker.wire import worker_pb2 as pb


class OpenCalls:
    def __init__(self, ledger: CreditLedger[int], metrics: WorkerMetrics) -> None:
        """`ledger`: where reservations are spent and given back."""
        self.by_id: dict[str, Call] = {}
        """For reading."""
        self.idle = asyncio.Event()
        """None is open."""
        self.idle.set()
        self._ledger = ledger
        self._metrics = metrics

    def open(self, call: Call) -> None:
        call.session.calls[call.request_id] = self.by_id[call.engine_id] = call
        self.idle.clear()
        self._ledger.spend(call.session.epoch, call.reserved_tokens)

    def hear(self, call: Call, update: SequenceUpdate, at_us: int, gaps_us: dict[int, int]) -> None:
        """Of an open sequence. `gaps_us`: tokens by the time since the one before, to which this adds."""
        if update.started:
            self._start(call, update)
        if count := len(update.token_ids):
            call.session.draft.add_row(call.request_id, update)
            sequence = update.sequence
            call.completion_tokens[sequence] += count
            if last_us := call.last_token_us[sequence]:
                gap_us = (at_us - last_us) // count
                gaps_us[gap_us] = gaps_us.get(gap_us, 0) + count
            else:
                self._first_token(call, sequence, at_us)
            call.last_token_us[sequence] = at_us
        call.session.draft.add_outputs(call.request_id, update)
        if update.finish is not None:
            self._finish(call, update.sequence, update.finish)

    def end_all(self, reason: "pb.FinishReason.ValueType", detail: str, *, engine_died: bool = False) -> None:
        """The engine says nothing of them any more."""
        calls = list(self.by_id.values())
        for call in calls:
            for sequence in sorted(call.open_sequences):
                call.session.draft.add_finish(call, call.finish_unsaid(sequence, reason, detail, engine_died=engine_died))
            self._metrics.ended_unsaid(reason, len(call.open_sequences))
            self._metrics.request_ended(call)
            self.forget(call)
        log_failed(calls, detail)

    def abandon(self, call: Call) -> None:
        """Its session is gone, and with it the session's ledger and list."""
        del self.by_id[call.engine_id]
        self._metrics.abandoned(len(call.open_sequences))
        self._note_idle()

    def forget(self, call: Call) -> None:
        """Its last sequence ended: the reservation goes back."""
        del self.by_id[call.engine_id]
        del call.session.calls[call.request_id]
        self._ledger.give_back(call.session.epoch, call.reserved_tokens)
        self._note_idle()

    def _start(self, call: Call, update: SequenceUpdate) -> None:
        if call.started:
            return  # later sequences of n share the first one's prefill
        call.started = True
        call.cached_tokens = update.cached_tokens
        call.first_scheduled_us = update.first_scheduled_mono_us
        self._metrics.started(call.prompt_tokens)
        queue_us = update.first_scheduled_mono_us - call.received_us
        call.session.draft.started.append(pb.Started(request_id=call.request_id, cached_tokens=update.cached_tokens, queue_us=queue_us))

    def _first_token(self, call: Call, sequence: int, at_us: int) -> None:
        call.first_token_us[sequence] = at_us
        call.session.draft.first_tokens.append((call, sequence))
        self._metrics.first_token(at_us - call.received_us)

    def _finish(self, call: Call, sequence: int, finish: Finish) -> None:
        if finish.timings.first_token_mono_us and not call.first_token_us[sequence]:  # an eos at once has no row
            self._metrics.first_token(finish.timings.first_token_mono_us - call.received_us)
        self._metrics.finished(call, sequence, finish)
        if finish.reason is FinishReason.ENGINE_ERROR:
            log_failed([call], finish.detail)
        call.session.draft.add_finish(call, call.finish_said(sequence, finish))
        call.completion_tokens[sequence] = finish.usage.completion_tokens
        call.open_sequences.discard(sequence)
        if not call.open_sequences:
            self._metrics.request_ended(call)
            self.forget(call)

    def _note_idle(self) -> None:
        if not self.by_id:
            self.idle.set()
