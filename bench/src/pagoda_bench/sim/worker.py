"""One simulated worker: continuous batching, chunked prefill, paged KV with a prefix cache, preemption. Pure; the loop has the clock.

    waiting ──blocks for its present length──▶ prompts ──last chunk: first token──▶ decoding ──last token──▶ over
       ▲                                                                                │
       └───────────────────── preempted: no block for the next token ◀─────────────────┘

Plans a step as the engine's scheduler does (its scheduling/; a test holds the two rules against each other). Where nothing but
decoding happens, steps up to the first sequence's end are taken at once, and cut short when a request comes: same times, fewer events.
"""

import heapq
import math
from collections import deque
from itertools import islice

from pagoda_bench.sim.block_pool import BlockPool
from pagoda_bench.sim.engine_profile import EngineProfile, pairs
from pagoda_bench.sim.meter import SimMeter
from pagoda_bench.sim.prefill_share import share
from pagoda_bench.sim.requests import SimRequest
from pagoda_bench.sim.sequence import Sequence, WorkerListener, WorkerLoad

MOST_NEWCOMERS = 8
"""In waiting, that a step weighs against prompts in progress, as in the engine's admission.py."""


class SimWorker:
    def __init__(self, number: int, profile: EngineProfile, listener: WorkerListener, *, one_by_one: bool = False) -> None:
        """`one_by_one`: every step ends by itself, for a listener that plays them in real time."""
        self.number = number
        self.profile = profile
        self.slowness = 1.0
        """Times as long as its profile says: a fault."""
        self.meter = SimMeter(profile)
        self.told = WorkerLoad()
        """When its latest step ended."""
        self.preemptions = 0
        self.ends_s: float | None = None
        """When the steps under way end. None: idle."""
        self.pool = BlockPool(profile.kv_tokens // profile.block_size)
        self._listener = listener
        self._one_by_one = one_by_one
        self._inbox: list[Sequence] = []
        """What came during the step under way: the engine reads it after the step, and no frame tells of it before the next one."""
        self._waiting: deque[Sequence] = deque()
        self._queued_tokens = 0
        self._running: dict[Sequence, None] = {}
        """In order of admission."""
        self._prompts: list[Sequence] = []
        self._decoding: dict[Sequence, int] = {}
        """And the step count at which each began."""
        self._finishes: list[tuple[int, int, Sequence]] = []
        self._phases = [0] * profile.block_size
        """How many of those that decode need a block at steps of this remainder."""
        self._context_tokens = 0
        self._steps = 0
        """Decode steps so far."""
        self._began_s = 0.0
        self._planned = 0
        """Decode steps under way, each with all that decode."""
        self._chunks: list[tuple[Sequence, int]] = []
        self._ticks = 0

    @property
    def decoding(self) -> list[SimRequest]:
        """Those that the step under way gives a token each."""
        return [sequence.request for sequence in self._decoding]

    @property
    def prefilling(self) -> list[tuple[SimRequest, int]]:
        """Whose prompts the step under way computes, and how many tokens of each."""
        return [(sequence.request, tokens) for sequence, tokens in self._chunks]

    # ------------------------------------------------------------ what happens to it

    def submit(self, request: SimRequest, now_s: float) -> None:
        sequence = Sequence(request, request.prompt_tokens, request.output_tokens)
        cached = self.pool.cached_blocks(request.conversation.hashes(sequence.target - 1)) * self.profile.block_size
        sequence.expected_tokens = sequence.target - cached
        self._inbox.append(sequence)
        if self.ends_s is None:
            self._plan(now_s)
        elif not self._chunks and self._planned > 1:
            self._cut_short(now_s)

    def steps_ended(self, now_s: float) -> None:
        """The steps under way are over; plans the next."""
        rows, steps, elapsed_s = len(self._decoding), self._planned, now_s - self._began_s
        prompt_tokens = sum(tokens for _, tokens in self._chunks)
        self.meter.measure(rows, prompt_tokens, elapsed_s / max(1, steps))
        self.ends_s = None
        if rows and not self._chunks and not self._queued_tokens:
            self._listener.decoded(self, rows, steps, elapsed_s / steps)
        if rows:
            self._take_later_blocks(steps)
            self._steps += steps
            self._context_tokens += rows * steps
        for sequence, tokens in self._chunks:
            self._computed(sequence, tokens, now_s)
        while self._finishes and self._finishes[0][0] <= self._steps:
            _, _, sequence = heapq.heappop(self._finishes)
            if sequence in self._decoding and self._decoding[sequence] + sequence.left <= self._steps:
                self._end(sequence, now_s)
        self.told = WorkerLoad(len(self._running), len(self._waiting), self._queued_tokens)
        self._plan(now_s)

    def unfinished(self) -> list[SimRequest]:
        """What dies with it."""
        return [sequence.request for sequence in (*self._running, *self._waiting, *self._inbox)]

    def latest_step_s(self, now_s: float) -> float:
        """When the latest step ended, or the one under way began: each step's frame is a word to the router."""
        if self.ends_s is None:
            return now_s
        each_s = (self.ends_s - self._began_s) / self._planned
        return min(now_s, self._began_s + math.floor((now_s - self._began_s) / each_s) * each_s)

    # ------------------------------------------------------------ planning

    def _plan(self, now_s: float) -> None:
        self._began_s = now_s
        self._waiting += self._inbox
        self._queued_tokens += sum(sequence.expected_tokens for sequence in self._inbox)
        self._inbox.clear()
        self._take_decode_blocks()
        prompts = [(sequence, sequence.target - sequence.computed) for sequence in self._prompts]
        self._chunks = [(sequence, 1) for sequence, left in prompts if left == 1]  # for the engine, one more that decodes
        decoding = len(self._decoding) + len(self._chunks)
        budget = self.profile.max_batch_tokens - decoding
        if decoding:
            budget = min(budget, self.profile.long_prefill_tokens)
        if prompts := [(sequence, left) for sequence, left in prompts if left > 1]:
            counts = share([left for _, left in prompts] + self._newcomers(), budget)  # whose part is left for them to be admitted
            chunks = [(sequence, n) for (sequence, _), n in zip(prompts, counts, strict=False) if n]
            self._chunks += chunks
            budget -= sum(n for _, n in chunks)
        while budget > 0 and (admitted := self._admit(now_s)) is not None:
            taken = min(budget, admitted.target - admitted.computed)
            self._chunks.append((admitted, taken))
            budget -= taken
        self._report_cache(now_s)
        if not (decoding or self._chunks):
            return
        self._planned = 1 if self._chunks else self._steps_at_once()
        self.ends_s = now_s + self._duration_s(self._planned)

    def _duration_s(self, steps: int) -> float:
        rows, profile = len(self._decoding), self.profile
        prompt_tokens = sum(tokens for _, tokens in self._chunks)
        prompt_pairs = sum(pairs(sequence.computed, tokens) for sequence, tokens in self._chunks)
        first_s = profile.step_s(rows, prompt_tokens, self._context_tokens, prompt_pairs)
        return self.slowness * (steps * first_s + profile.context_token_s * rows * steps * (steps - 1) / 2)

    def _steps_at_once(self) -> int:
        """Until somebody ends or blocks run out."""
        steps = 1 if self._one_by_one else max(1, self._finishes[0][0] - self._steps)
        size, available, grown = self.profile.block_size, self.pool.available, 0
        rows = len(self._decoding)
        if (steps // size + 1) * rows <= available:
            return steps
        for ahead in range(1, steps):
            grown += self._phases[(self._steps + ahead) % size]
            if grown > available:
                return ahead
        return steps

    def _take_decode_blocks(self) -> None:
        """For the first of the next steps."""
        size = self.profile.block_size
        while self._decoding and not self.pool.take(self._phases[self._steps % size]):
            self._preempt(next(reversed(self._running)))

    def _take_later_blocks(self, steps: int) -> None:
        """Of steps that were taken at once, those that the first one did not need. `_steps_at_once` saw that they are there."""
        size = self.profile.block_size
        taken = self.pool.take(sum(self._phases[(self._steps + ahead) % size] for ahead in range(1, steps)))
        assert taken, "steps were planned beyond the blocks there are"

    def _cut_short(self, now_s: float) -> None:
        """A request came in the middle of many steps: they end with the one under way."""
        first_s = self._duration_s(1)
        bend_s = self.slowness * self.profile.context_token_s * len(self._decoding) / 2
        line_s, elapsed_s = first_s - bend_s, now_s - self._began_s
        steps = elapsed_s / line_s if bend_s <= 0 else (math.sqrt(line_s**2 + 4 * bend_s * elapsed_s) - line_s) / (2 * bend_s)
        self._planned = min(self._planned, max(1, math.ceil(steps - 1e-9)))
        self.ends_s = max(now_s, self._began_s + self._duration_s(self._planned))

    def _newcomers(self) -> list[int]:
        """Tokens to compute of those in waiting that would be let in now."""
        found: list[int] = []
        size, available, running = self.profile.block_size, self.pool.available, len(self._running)
        for sequence in islice(self._waiting, min(self.profile.max_running - running, MOST_NEWCOMERS)):
            hashes = sequence.request.conversation.hashes(sequence.target - 1)
            cached = self.pool.cached_blocks(hashes)
            available -= -(-sequence.target // size) - cached + self.pool.idle_among(hashes[:cached])
            if available < running + len(found):
                break
            found.append(sequence.target - cached * size)
        return found

    def _admit(self, now_s: float) -> Sequence | None:
        if not self._waiting or len(self._running) >= self.profile.max_running:
            return None
        sequence, size = self._waiting[0], self.profile.block_size
        hashes = sequence.request.conversation.hashes(sequence.target - 1)
        cached = self.pool.cached_blocks(hashes)
        idle_before = self.pool.available
        self.pool.hold(hashes[:cached])
        spare = -(-len(self._running) // 4)
        need = -(-sequence.target // size) - cached
        if (self._running and need + spare > self.pool.available) or not self.pool.take(need):
            self.pool.release(hashes[:cached], 0)
            assert self.pool.available == idle_before
            return None
        self._waiting.popleft()
        self._running[sequence] = None
        self._prompts.append(sequence)
        sequence.held = list(hashes[:cached])
        sequence.computed = cached * size
        self._queued_tokens += (sequence.target - sequence.computed) - sequence.expected_tokens
        if sequence.began_s is None:
            sequence.began_s = now_s
            sequence.request.cached_tokens = sequence.computed
            self._listener.begun(self, sequence, now_s)
        return sequence

    # ------------------------------------------------------------ what a step did

    def _computed(self, sequence: Sequence, tokens: int, now_s: float) -> None:
        sequence.computed += tokens
        self._queued_tokens -= tokens
        full = sequence.request.conversation.hashes(sequence.computed)
        self.pool.share(full[len(sequence.held) :])
        sequence.held = list(full)
        if sequence.computed < sequence.target:
            return
        self._prompts.remove(sequence)
        sequence.left -= 1
        if sequence.request.first_s is None:
            self._listener.first_token(self, sequence, now_s)
        self._decoding[sequence] = self._steps
        self._phases[(self._steps - sequence.target) % self.profile.block_size] += 1
        self._context_tokens += sequence.target
        self._ticks += 1
        heapq.heappush(self._finishes, (self._steps + sequence.left, self._ticks, sequence))

    def _stop_decoding(self, sequence: Sequence) -> None:
        """Its context is in `computed` then, its blocks are back."""
        began = self._decoding.pop(sequence)
        size, done = self.profile.block_size, self._steps - began
        self._phases[(began - sequence.target) % size] -= 1
        sequence.computed = sequence.target + done
        self._context_tokens -= sequence.computed
        sequence.left -= done

    def _give_back(self, sequence: Sequence) -> None:
        size = self.profile.block_size
        full = sequence.request.conversation.hashes(min(sequence.computed, sequence.request.prompt_tokens + sequence.request.output_tokens))
        self.pool.share(full[len(sequence.held) :])
        blocks = -(-max(sequence.computed, sequence.target) // size)
        self.pool.release(full, blocks - len(full))
        sequence.held = []
        del self._running[sequence]

    def _end(self, sequence: Sequence, now_s: float) -> None:
        self._stop_decoding(sequence)
        self._give_back(sequence)
        self._listener.over(self, sequence, now_s)

    def _preempt(self, sequence: Sequence) -> None:
        if sequence in self._decoding:
            self._stop_decoding(sequence)
            self._give_back(sequence)
            sequence.target = sequence.computed + 1  # the latest sampled token is not in the cache yet
        else:
            self._queued_tokens -= sequence.target - sequence.computed
            self._prompts.remove(sequence)
            self._give_back(sequence)
        sequence.computed = 0
        sequence.expected_tokens = sequence.target
        self._queued_tokens += sequence.target
        sequence.request.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(sequence)

    # ------------------------------------------------------------ what it tells

    def _report_cache(self, now_s: float) -> None:
        if self.pool.stored or self.pool.evicted:
            stored, evicted = self.pool.stored, self.pool.evicted
            self.pool.stored, self.pool.evicted = [], []
            self._listener.cache_changed(self, stored, evicted, now_s)
