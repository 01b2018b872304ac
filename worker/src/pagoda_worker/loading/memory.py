"""How much memory a model needs and whether it is there: the sums behind block counts and the sentence when they do not work out. Pure.

Called by the loader before the first weight is read, so that a model that cannot fit says so at once and names the length that would.
"""

from dataclasses import dataclass

from pagoda_worker.errors import OutOfMemory, gibibytes

SMALLEST_CONTEXT = 2
"""Tokens: one of prompt, one of output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """Bytes of one model at its dtype."""

    weights: int
    per_token: int
    """KV of one token in all layers."""
    besides: int
    """Activations of the largest step, and what the processes hold already where that counts against the same limit."""

    def kv_room(self, there: int) -> int:
        return max(there - self.weights - self.besides, 0)


def fitting_length(needs: MemoryNeeds, room: int, *, block_size: int, longest: int) -> int:
    """The longest context that one sequence alone could have: whole blocks, at most what the model was trained for."""
    return min(room // (needs.per_token * block_size) * block_size, longest)


def check_fits(needs: MemoryNeeds, room: int, there: int, *, wanted: int | None, block_size: int, longest: int) -> None:
    """`wanted` None: any length will do. Raises OutOfMemory."""
    fits = fitting_length(needs, room, block_size=block_size, longest=longest)
    if fits >= SMALLEST_CONTEXT and (wanted is None or wanted <= fits):
        return
    besides = f", {gibibytes(needs.besides)} for everything else" if needs.besides else ""
    if fits < SMALLEST_CONTEXT:
        least = needs.weights + needs.besides + needs.per_token * block_size
        raise OutOfMemory(
            f"the model needs {gibibytes(needs.weights)} for weights{besides}, {gibibytes(there)} are there: no maxModelLen fits, "
            f"give the worker at least {gibibytes(least)}"
        )
    kv = needs.per_token * (wanted or 0)
    raise OutOfMemory(
        f"the model needs {gibibytes(needs.weights)} for weights and {gibibytes(kv)} for KV of {wanted} tokens{besides}; "
        f"{gibibytes(there)} are there: maxModelLen {fits} fits"
    )


def check_host_fits(wanted: int, there: int) -> None:
    """Host memory for KV blocks beside a device with memory of its own. Raises OutOfMemory."""
    if wanted > there:
        raise OutOfMemory(
            f"kvCache.swap and kvCache.hostTier ask for {gibibytes(wanted)} of host memory; {gibibytes(there)} are there: "
            f"lower them or raise the worker's memory"
        )
