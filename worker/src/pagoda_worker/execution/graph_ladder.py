"""Which decode steps run as a captured graph, and padded to how many rows. Pure; asked by the runner. Knows no device."""

import bisect

from pagoda_worker.scheduling.plan import StepPlan


def ladder(max_running: int) -> list[int]:
    """Batch sizes to capture: 1, 2, 4, then every 8 up to 256, every 16 up to 512, every 32 beyond, and max_running itself. Padding costs
    at most half of a small batch, and 8 rows of 64 in a large one, where attention skips them."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 512, 16), *range(512, max_running + 1, 32)]
    return sorted({size for size in sizes if size < max_running} | {max_running})


def padded_size(plan: StepPlan, sizes: list[int]) -> int | None:
    """None: the step has prompt tokens, or more rows than any graph. `sizes` ascend."""
    at = bisect.bisect_left(sizes, plan.decode_tokens)
    return sizes[at] if plan.decodes_alone and at < len(sizes) else None
