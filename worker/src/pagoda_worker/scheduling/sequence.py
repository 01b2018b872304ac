"""One continuation of one request, as scheduler and runner know it. Plain data; knows neither tensors nor policy."""

from pagoda_worker.request import Finish, Request, SequenceUpdate, Timings, TokenLogprobs, Usage
from pagoda_worker.scheduling.adapters import Adapter

MAX_BATCH_RUNS = 256
"""Runs of equal batch sizes told of one sequence; 2 KB on the wire."""


class Sequence:
    """One continuation of one request. Written by the scheduler only; the runner reads it when its row is opened."""

    __slots__ = (
        "__weakref__",
        "accepted",
        "adapter",
        "adapter_slot",
        "announced",
        "arrival",
        "batches",
        "blocks",
        "cached_tokens",
        "computed",
        "constrained",
        "deadline",
        "draft_tokens",
        "drafts",
        "drafts_accepted",
        "drafts_verified",
        "ended",
        "enders",
        "entered_length",
        "first_scheduled",
        "first_token",
        "hashes",
        "held",
        "index",
        "last_token",
        "limit",
        "order",
        "output_start",
        "pending",
        "preemptions",
        "prompt_told",
        "registered",
        "request",
        "request_id",
        "row",
        "seed",
        "siblings",
        "steps",
        "swapped",
        "swapped_tokens",
        "tokens",
        "unasked_until",
        "verifying",
        "waits_for_token",
        "want_timings",
        "written_to",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        arrival: int,
        accepted: float,
        limit: int,
        seed: int,
        root: bytes,
        eos: frozenset[int] = frozenset(),
        adapter: Adapter | None = None,
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.want_timings = request.want_timings
        """Both as in the request, which a step of many rows would otherwise have to fetch for each of them."""
        self.index = index
        self.arrival = arrival
        self.accepted = accepted
        self.seed = seed
        self.tokens: list[int] = [*request.prompt_ids, *request.resume_ids]
        self.output_start = len(request.prompt_ids)
        self.limit = limit
        """Length at which it ends: prompt + max_tokens, at most max_model_len."""
        self.order = (-request.priority, arrival, index)
        self.deadline = None if request.deadline_s is None else accepted + request.deadline_s
        self.computed = 0
        """Tokens whose keys and values are in its blocks (after the step that is being planned)."""
        self.blocks: list[int] = []
        self.hashes: list[bytes] = [root]
        """Chained: hashes[i + 1] is that of the i-th full block."""
        self.registered = 0
        """Full blocks offered to the prefix cache."""
        self.entered_length = 0
        """When it got its blocks. A token sampled since vouches for all that was computed before it: its logits were finite."""
        self.unasked_until = 0
        """Until so many tokens are computed it decodes in a block of its own that does not fill up: residency need not be asked."""
        own = frozenset(request.stop_token_ids)
        self.enders = own if request.ignore_eos else eos | own if own else eos
        """Tokens that end its output."""
        self.row = -1
        """Of the runner's state while running, else -1."""
        self.adapter = adapter
        self.adapter_slot = -1
        """On the device while running; -1 otherwise, and for the base model."""
        self.pending = 0
        """Tokens that planned steps will sample and nobody on the host knows yet: they follow `tokens`."""
        self.waits_for_token = request.constrained
        """Its next step can only be planned when all of its tokens are known (a mask follows from them)."""
        self.ended = False
        """Its finish was told: what a step still in flight samples for it means nothing."""
        self.swapped: list[int] = []
        """Host slots that keep its blocks while it waits, preempted; empty: it will be computed again."""
        self.swapped_tokens = 0
        self.siblings: list[Sequence] = []
        """Sequences of the same request that begin with this one's prompt as soon as it is computed."""
        self.held = request.structured is not None
        """Waits for its grammar; those behind it go first."""
        self.constrained = request.constrained
        """The engine's Constraints know what its output may be."""
        self.prompt_told = request.prompt_logprobs is None
        """Nobody waits for its prompt's logprobs: they left with its first token, or with that of a sibling."""
        self.announced = False
        """The start of its first chunk was reported."""
        self.cached_tokens = 0
        self.preemptions = 0
        self.steps = 0
        self.first_scheduled = 0.0
        self.first_token = 0.0
        self.last_token = 0.0
        self.batches: list[list[int]] = []
        """Runs of [sequences in the step, steps]."""
        self.drafts: list[int] = []
        """Guesses at its next tokens, while a step that verifies them is planned and computed."""
        self.verifying = False
        """A planned step verifies drafts of it. How many of its tokens count is known when that is settled: nothing is planned on top."""
        self.written_to = 0
        """Drafts that nobody has vouched for were written up to here. 0: none."""
        self.drafts_verified = self.draft_tokens = 0
        self.drafts_accepted: list[int] = []
        """By place in the guess; as long as the longest of them."""

    @property
    def length(self) -> int:
        """With the tokens that are being sampled."""
        return len(self.tokens) + self.pending

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled. None while its last token is being sampled: the length is known before
        the token is, so that max_tokens costs no extra step."""
        pending = self.pending
        length = len(self.tokens) + pending
        if pending and (length >= self.limit or self.waits_for_token or self.verifying):
            return 0
        return length - self.computed

    @property
    def decodes_alone(self) -> bool:
        """One token to compute makes it decode: nobody waits for its prompt, and a token is what was asked for."""
        return not self.siblings and not self.request.embedding

    def offer(self, drafts: list[int]) -> None:
        """For the step that is about to be planned, when all of its tokens are known and it decodes."""
        self.drafts, self.unasked_until = drafts, 0 if drafts else self.unasked_until

    @property
    def key(self) -> tuple[str, int]:
        return (self.request_id, self.index)

    def update(self, token_ids: list[int], logprobs: list[TokenLogprobs] | None, finish: Finish | None) -> SequenceUpdate:
        """The first one also announces the start."""
        if self.announced:
            return SequenceUpdate(self.request_id, self.index, token_ids, logprobs, finish)
        self.announced = True
        first_us = int(self.first_scheduled * 1e6)
        return SequenceUpdate(self.request_id, self.index, token_ids, logprobs, finish, True, self.cached_tokens, first_us)

    def note_drafts(self, count: int, accepted: int) -> None:
        """One guess of `count` tokens was verified."""
        self.drafts_verified += count > 0
        self.draft_tokens += count
        by_place = self.drafts_accepted
        if len(by_place) < count:
            by_place += [0] * (count - len(by_place))
        for place in range(accepted):
            by_place[place] += 1

    def note_step(self, size: int) -> None:
        self.steps += 1
        if self.want_timings:
            self.note_batch(size)

    def note_batch(self, size: int) -> None:
        """One more step, of `size` sequences. Bounded, however long the output and restless the batch: past MAX_BATCH_RUNS one run of
        size 0 counts the steps that are left."""
        runs = self.batches
        if runs and (runs[-1][0] == size or len(runs) > MAX_BATCH_RUNS):
            runs[-1][1] += 1
        else:
            runs.append([size if len(runs) < MAX_BATCH_RUNS else 0, 1])

    def usage(self) -> Usage:
        completion = len(self.tokens) - self.output_start
        by_place = tuple(self.drafts_accepted)
        return Usage(
            len(self.request.prompt_ids), self.cached_tokens, completion, self.draft_tokens, sum(by_place), self.drafts_verified, by_place
        )

    def timings(self) -> Timings:
        return Timings(
            accepted_mono_us=int(self.accepted * 1e6),
            first_scheduled_mono_us=int(self.first_scheduled * 1e6),
            first_token_mono_us=int(self.first_token * 1e6),
            last_token_mono_us=int(self.last_token * 1e6),
            preemptions=self.preemptions,
            steps=self.steps,
            batches=[(size, steps) for size, steps in self.batches],
        )
