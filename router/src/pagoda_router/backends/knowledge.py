"""What a link learns of its worker within one session, beside its state: prefixes it has, how fast it is, when it last said something.

A lost session loses all of it: the worker may come back with an empty cache, or as another machine. Knows no wire but cache events.
"""

from collections.abc import Callable
from typing import Any

from pagoda_router.placement.prefixes import HASH_VERSION, Expectation, KnownPrefixes, PrefixChain, split_hashes
from pagoda_router.placement.rates import WorkerRates
from pagoda_router.tracing.record import WorkerTimes
from pagoda_router.wire import worker_pb2 as wire

FRESH_S = 10.0
"""For so long after its last token a step's time is believed. Then the worker counts as the mean of the others and is tried: a bad figure
that keeps everybody away would never be mended."""


class WorkerKnowledge:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic."""
        self.rates = WorkerRates()
        self._clock = clock
        self._prefixes: KnownPrefixes | None = None
        """None: its block size is not known yet."""
        self._heard_s = clock()
        self._decoded_s = self._heard_s
        self._step = -1
        self._step_at_us = 0
        """Of the last frame."""

    def described(self, block_size: int, capacity_tokens: int) -> None:
        most_blocks = max(1, capacity_tokens // max(1, block_size))
        if self._prefixes is None or self._prefixes.block_size != block_size:
            self._prefixes = KnownPrefixes(block_size, most_blocks)
        self._prefixes.most_blocks = most_blocks

    # ------------------------------------------------------------ prefixes

    def cached_tokens(self, chain: PrefixChain) -> int:
        return 0 if self._prefixes is None else self._prefixes.cached_tokens(chain)

    def held_tokens(self, chain: PrefixChain) -> int:
        return 0 if self._prefixes is None else self._prefixes.held_tokens(chain)

    def expect(self, chain: PrefixChain) -> Expectation | None:
        """A request goes there."""
        return None if self._prefixes is None or not chain.hashes else self._prefixes.expect(chain)

    def cache_changed(self, event: Any) -> None:
        """The wire's CacheEvent, of the base model; of hashes that are made otherwise nothing can be learned."""
        if event.adapter or event.hash_version != HASH_VERSION:
            return
        if self._prefixes is None:
            self._prefixes = KnownPrefixes(event.block_size)
        if event.block_size != self._prefixes.block_size:
            return
        if event.kind == wire.CacheEvent.STORED:
            self._prefixes.stored(split_hashes(event.block_hashes))
        elif event.kind == wire.CacheEvent.REMOVED:
            self._prefixes.removed(split_hashes(event.block_hashes))
        elif event.kind == wire.CacheEvent.CLEARED:
            self._prefixes.clear()

    # ------------------------------------------------------------ speed

    def prefilled(self, computed_tokens: int, times: WorkerTimes) -> None:
        """A request ran to its end."""
        if times.first_scheduled_us and times.first_token_us:
            self.rates.prefilled(computed_tokens, (times.first_token_us - times.first_scheduled_us) / 1e6)

    def heard(self, frame: Any, state: Any) -> None:
        """A frame came. `state`: the worker's last one."""
        self.woken()
        step, at_us = frame.step, frame.at_mono_us
        if step == self._step + 1 and frame.request_ids and not (frame.started or frame.finishes or state.queued_prefill_tokens):
            self.rates.decoded(max(len(frame.request_ids), state.num_running), (at_us - self._step_at_us) / 1000)
        self._step, self._step_at_us = step, at_us
        if frame.request_ids:
            self._decoded_s = self._heard_s

    def step_ms(self, running: int) -> float:
        """0: nobody knows, or nobody knows any more."""
        return self.rates.step_ms(running) if self._is_fresh(running) else 0.0

    def step_ms_per_sequence(self, running: int) -> float | None:
        return self.rates.steps.per_sequence_ms if self._is_fresh(running) else None

    def _is_fresh(self, running: int) -> bool:
        return running > 0 or self._clock() - self._decoded_s < FRESH_S

    def woken(self) -> None:
        """Its first request after a pause goes out: silence counts from here."""
        self._heard_s = self._clock()

    def silent_s(self) -> float:
        return self._clock() - self._heard_s
