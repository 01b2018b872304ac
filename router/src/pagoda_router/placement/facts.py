"""What a placement looks at: one request's facts, and each worker as seen now. Plain data; policy.py and scores.py read it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pagoda_router.admission.credits import Price
from pagoda_router.generation import WorkerId
from pagoda_router.records import record


@dataclass(slots=True, kw_only=True)
class WorkerView:
    """One worker as the router sees it now: its last state, corrected by what this router sent since.

    It belongs to the worker's link, which rewrites it at each look: a hundred new ones for each request cost more than all
    else in a choice. So a view is good until the event loop goes on; who keeps one keeps a copy.
    """

    worker: WorkerId
    routable: bool
    """Session up, ready, not draining, described, and discovery wants new requests there."""
    reason: str = ""
    """One sentence when not routable."""
    variant: str = "default"
    template: str = ""
    capacity_tokens: int = 0
    available_tokens: int = 0
    """Of the capacity, what this router may still reserve: other routers have their shares."""
    reserved_tokens: int = 0
    """What this router's requests there hold."""
    used_tokens: int = 0
    """What the worker says sequences hold, all routers'."""
    reservable_tokens: int | None = None
    """What a request of this price would reserve now; None: no room yet. Set by the caller for the request at hand."""
    batch_full: bool = False
    """No room yet for any request of this class, however small."""
    cached_tokens: int = 0
    """Of its prompt, expected in this worker's prefix cache. Set in the same way."""
    queued_prefill_tokens: int = 0
    """Uncached prompt tokens not computed yet; what this router sent counts from the moment it was sent."""
    running: int = 0
    """Sequences."""
    waiting: int = 0
    max_running: int = 1
    prefill_tokens_per_s: float = 0.0
    """0: not measured yet. Where the worker tells what a step costs apart, of its tokens alone."""
    prefill_step_ms: float = 0.0
    """Of a step that computes prompts, what it costs whatever their length; 0: not told apart."""
    decode_step_ms: float = 0.0
    """Of a batch as it is now, or of one sequence while it has none. 0: not measured yet."""
    decode_step_ms_per_sequence: float | None = None
    """What one more sequence adds to it, learned; None: not learned yet."""
    sleeps: bool = False
    """A request wakes it, and waits."""
    decode_tokens_per_s: float = 0.0
    """Of its self-test after loading; 0: it made none."""
    adapter_to_copy: bool = False
    """It has the request's adapter, in none of the device's slots. Set in the same way as reservable_tokens."""
    is_elsewhere: bool = False
    """In another zone than this router. False also when either zone is not known."""
    silent_s: float = 0.0
    """It has something of this router's to do and has not said a word for so long."""

    def copied(self) -> "WorkerView":
        """Set field by field: a fifth of the time of a call with as many names. Each placement copies up to eight."""
        twin = object.__new__(WorkerView)
        twin.worker = self.worker
        twin.routable = self.routable
        twin.reason = self.reason
        twin.variant = self.variant
        twin.template = self.template
        twin.capacity_tokens = self.capacity_tokens
        twin.available_tokens = self.available_tokens
        twin.reserved_tokens = self.reserved_tokens
        twin.used_tokens = self.used_tokens
        twin.reservable_tokens = self.reservable_tokens
        twin.batch_full = self.batch_full
        twin.cached_tokens = self.cached_tokens
        twin.queued_prefill_tokens = self.queued_prefill_tokens
        twin.running = self.running
        twin.waiting = self.waiting
        twin.max_running = self.max_running
        twin.prefill_tokens_per_s = self.prefill_tokens_per_s
        twin.prefill_step_ms = self.prefill_step_ms
        twin.decode_step_ms = self.decode_step_ms
        twin.decode_step_ms_per_sequence = self.decode_step_ms_per_sequence
        twin.sleeps = self.sleeps
        twin.decode_tokens_per_s = self.decode_tokens_per_s
        twin.adapter_to_copy = self.adapter_to_copy
        twin.is_elsewhere = self.is_elsewhere
        twin.silent_s = self.silent_s
        return twin


@record(frozen=True, slots=True)
class RequestFacts:
    cost: Price
    lane: int = 0
    """Of its length, among the lanes that live traffic was cut into."""
    lane_of: Mapping[WorkerId, int] = field(default_factory=dict)
    """Whose lane is which; a worker that is not in it takes every length."""
    turn_of: Mapping[WorkerId, int] = field(default_factory=dict)
    """Number of this router's latest placement on each; none is 0."""

    def uncached_tokens(self, view: WorkerView) -> int:
        """At least one: the last token of a prompt is always computed."""
        uncached = self.cost.prompt_tokens - view.cached_tokens
        return max(1, uncached)

    def lanes_away(self, view: WorkerView) -> int:
        lane = self.lane_of.get(view.worker)
        return 0 if lane is None else abs(lane - self.lane)


def queued_prefill_tokens(told_tokens: int, unbegun_tokens: int, unbegun: Iterable[tuple[int, int]], untold_sequences: int) -> int:
    """Prompt tokens that a worker has still to compute: what it told when its last step ended, and what reached it too late for that. A
    step with a long prompt takes a second on a CPU, and whoever comes meanwhile is in no state before the next one ends.

    `unbegun`: this router's requests that the worker has not begun, latest first, as (sequences, uncached prompt tokens), of
    `unbegun_tokens` in all. `untold_sequences`: how many more sequences this router has there than the worker told of. Where other routers'
    make up for them it is too small, and what is left counts at least as much as is unbegun.
    """
    untold_tokens = 0
    for sequences, tokens in unbegun:
        if untold_sequences <= 0:
            break
        untold_sequences -= sequences
        untold_tokens += tokens
    return max(told_tokens + untold_tokens, unbegun_tokens)
