"""Token ids for the simulator's users: prompts that share what their conversations share, and say at their end whose they are. Pure."""

from collections.abc import Sequence

from pagoda_bench.sim.demand import Conversation

FIRST_ID, IDS = 20, 200
"""Of the builtin model's vocabulary: past its special tokens."""


def prompt_of(user: Conversation) -> list[int]:
    """Of its first turn: its tenant's prefix, then the two digits of its number, again and again up to the last token."""
    own, digits = user.turns[0].prompt_tokens - user.prefix_tokens, (user.id // IDS, user.id % IDS)
    return [FIRST_ID + user.tenant % IDS] * user.prefix_tokens + [FIRST_ID + digits[(own - at + 1) % 2] for at in range(1, own + 1)]


def number_of(prompt_ids: Sequence[int]) -> int:
    """Whose prompt it is."""
    return IDS * (prompt_ids[-2] - FIRST_ID) + prompt_ids[-1] - FIRST_ID
