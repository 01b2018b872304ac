"""A device without tensors: remembers for each cache slot which prefix was written there, so that any wrong block shows at once.

Keeps its own rows from the plans' deltas alone, as the real runner does. The "model" is a pure function of all tokens before: a sequence
whose cache was mixed up, computed twice or shared wrongly samples something else.
"""

from collections.abc import Callable

from pagoda_worker.request import Request
from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification

VOCAB = 50
EOS = 1
SCRUBBED = 0
"""Content of a zeroed slot: the hash of no prefix."""


def next_token(tokens: list[int], seed: int = 0) -> int:
    """Seldom EOS; depends on everything."""
    return hash((*tokens, seed)) % VOCAB


class SimulatedDevice:
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.size = scheduler.blocks.block_size
        self.slots: dict[int, int] = {}
        self.host: dict[int, list[int | None]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.tables: dict[int, dict[int, int]] = {}
        self.seeds: dict[int, int] = {}

    def run(self, plan: StepPlan) -> Sampled:
        assert not (plan.empty and (plan.swap_out or plan.swap_in or plan.scrubs)), "changes that an empty step would lose"
        self.host |= {slot: self._content(block) for block, slot in plan.swap_out}
        for block in plan.scrubs:
            self._fill(block, [SCRUBBED] * self.size)
        self._copy(plan.copies)
        for block, slot in plan.swap_in:
            assert slot in self.host, "a host slot is read that nobody wrote"
            self._fill(block, self.host[slot])
        for row, at, block in plan.added_blocks:
            self.tables[row][at] = block
        for sequence in plan.opened:
            self.tokens[sequence.row] = list(sequence.tokens)
            self.tables[sequence.row] = dict(enumerate(sequence.blocks))
            self.seeds[sequence.row] = sequence.seed
        spans = [(s, s.computed - 1, 1) for s in plan.decodes] + [(c.sequence, c.start, c.count) for c in plan.chunks]
        spans += [(v.sequence, v.start, v.places) for v in plan.verifications]
        for each in plan.verifications:
            assert self.tokens[each.sequence.row] == each.sequence.tokens, "drafts behind tokens that nobody knows"
            self.tokens[each.sequence.row] += each.drafts
        assert sum(count for _, _, count in spans) <= self.scheduler.limits.max_batch_tokens, "the budget was exceeded"
        assert len({s.row for s in self.scheduler.running}) <= self.scheduler.limits.max_running
        for sequence, start, count in spans:
            self._write(sequence, start, count)
        for sequence, start, count in spans:
            self._read(sequence, start + count)
        ids: list[int] = []
        for sequence in plan.sampling()[: len(plan.decodes) + sum(len(chunk.sequences) for chunk in plan.chunks)]:
            row = sequence.row
            known = len(sequence.tokens)
            assert self.tokens[row][:known] == sequence.tokens, "the row's tokens differ from the sequence's"
            assert len(self.tokens[row]) == sequence.length - 1, "the row has more or fewer tokens than the plan counts"
            self._read(sequence, len(self.tokens[row]))
            ids.append(next_token(self.tokens[row], self.seeds[row]))
            self.tokens[row].append(ids[-1])
        for each in plan.verifications:
            ids += self._verify(each)
        return Sampled(ids)

    def _verify(self, each: Verification) -> list[int]:
        """What every place samples. The row keeps what counts: the rest is written over later, or read by nobody."""
        row, tokens = each.sequence.row, self.tokens[each.sequence.row]
        ids = [next_token(tokens[: each.start + i], self.seeds[row]) for i in range(1, each.places + 1)]
        right = next((i for i, draft in enumerate(each.drafts) if draft != ids[i]), len(each.drafts))
        self.tokens[row] = [*tokens[: each.start + 1], *ids[: right + 1]]
        return ids

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        contents = [self._content(source) for source, _ in copies]
        for (_, target), content in zip(copies, contents, strict=True):
            self._fill(target, content)

    def _content(self, block: int) -> list[int | None]:
        return [self.slots.get(block * self.size + i) for i in range(self.size)]

    def _fill(self, block: int, content: list[int | None]) -> None:
        for i, value in enumerate(content):
            if value is not None:
                self.slots[block * self.size + i] = value

    def _slot(self, row: int, position: int) -> int:
        return self.tables[row][position // self.size] * self.size + position % self.size

    def _write(self, sequence: Sequence, start: int, count: int) -> None:
        for position in range(start, start + count):
            block = self.tables[sequence.row][position // self.size]
            assert self.scheduler.blocks.references(block) >= 1, "a write to a free block"
            self.slots[self._slot(sequence.row, position)] = hash(tuple(self.tokens[sequence.row][: position + 1]))

    def _read(self, sequence: Sequence, length: int) -> None:
        for position in range(length):
            seen = self.slots.get(self._slot(sequence.row, position))
            assert seen == hash(tuple(self.tokens[sequence.row][: position + 1])), f"{sequence.key} reads a foreign key at {position}"


def simulated(*, blocks: int = 32, block_size: int = 4, **limits: object) -> tuple[Scheduler, SimulatedDevice]:
    settings: dict[str, object] = {"max_running": 8, "max_batch_tokens": 64, "max_model_len": 200, "eos_token_ids": (EOS,)}
    scheduler = Scheduler(BlockPool(blocks, block_size), SchedulerLimits(**{**settings, **limits}))  # type: ignore[arg-type]
    return scheduler, SimulatedDevice(scheduler)


def guess(scheduler: Scheduler, lengths: Callable[[], tuple[int, int]]) -> None:
    """Drafts for everyone who can have some: `lengths` says how many are right, and how many wrong ones follow."""
    for sequence in scheduler.running:
        if sequence.decodes_alone:
            sequence.waits_for_token = True
            if sequence.remaining == 1 and not sequence.pending:
                right, wrong = lengths()
                tokens = list(sequence.tokens)
                for i in range(right + wrong):
                    tokens.append((next_token(tokens, sequence.seed) + (i >= right)) % VOCAB)
                sequence.offer(tokens[len(sequence.tokens) :])


def expected_output(request: Request, seed: int, *, max_model_len: int = 200) -> list[int]:
    """What the sequence must report, whatever else runs: without the ending eos or stop id."""
    tokens = [*request.prompt_ids, *request.resume_ids]
    begin = len(tokens)
    limit = min(len(request.prompt_ids) + request.max_tokens, max_model_len)
    while len(tokens) < limit:
        token = next_token(tokens, seed)
        if token in request.stop_token_ids or (token == EOS and not request.ignore_eos):
            break
        tokens.append(token)
    return tokens[begin:]
