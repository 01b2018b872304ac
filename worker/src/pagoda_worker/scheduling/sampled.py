"""What a step sampled, and which of it counts where drafts were verified. Plain data and one pure function; filled by the runner, read by
settling and by the constraints.
"""

from dataclasses import dataclass, field

from pagoda_worker.request import PromptLogprobs, TokenLogprobs
from pagoda_worker.scheduling.plan import StepPlan


@dataclass(slots=True)
class Sampled:
    """The runner's answer, in the order of `StepPlan.sampling()`."""

    token_ids: list[int]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By position in token_ids, for those that asked."""
    broken: set[int] = field(default_factory=set)
    """Positions whose logits were not finite: their token means nothing."""
    complete: set[int] = field(default_factory=set)
    """Positions whose grammar takes nothing after this token."""
    stuck: dict[int, str] = field(default_factory=dict)
    """Positions where no token was possible, with the sentence that says why."""
    prompt_logprobs: dict[int, PromptLogprobs] = field(default_factory=dict)
    """By position, beside the first token of a sequence that computed the prompt."""
    embeddings: dict[int, list[float]] = field(default_factory=dict)
    """By index in the plan's chunks, length 1; empty: not finite."""
    passed_over: set[int] = field(default_factory=set)
    """Positions behind a draft that was not what the place before it sampled: nothing there means anything."""

    @property
    def told(self) -> set[int]:
        """Positions of which more is said than a token."""
        return self.broken.union(self.logprobs, self.complete, self.stuck, self.prompt_logprobs)


def judge_drafts(plan: StepPlan, sampled: Sampled) -> list[int]:
    """How many drafts of each verification were what the model sampled itself. Places after the first that was not are passed over.

    Each place was sampled with the noise of its own position, as a step of its own would have done, so a draft can only save steps: it
    never changes a token (docs/speculation.md)."""
    accepted, ids = [], sampled.token_ids
    at = len(ids) - sum(each.places for each in plan.verifications)
    for each in plan.verifications:
        count = 0
        while count < len(each.drafts) and ids[at + count] == each.drafts[count] and at + count not in sampled.stuck:
            count += 1
        accepted.append(count)
        sampled.passed_over.update(range(at + count + 1, at + each.places))
        at += each.places
    return accepted
