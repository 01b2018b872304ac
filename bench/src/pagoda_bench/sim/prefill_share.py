"""Who gets how much of a step's prompt tokens: the engine's rule (worker scheduling/policy.py), which a test holds it against. Pure."""


def share(remaining: list[int], budget: int) -> list[int]:
    """Tokens for each prompt of a step, in order: the first has half of the budget, the shortest the rest. As the engine's
    policy.share_prefill for one class."""
    counts = [0] * len(remaining)
    if not remaining or budget <= 0:
        return counts
    counts[0] = min(remaining[0], budget - budget // 2)
    budget -= counts[0]
    for at in sorted(range(len(remaining)), key=lambda at: remaining[at]):
        more = min(remaining[at] - counts[at], budget)
        counts[at] += more
        budget -= more
    return counts
