"""The most that any placement could have found cached: for each request, the longest beginning that an earlier one already had.

No cache is as large and no worker has computed everything that arrived, so this is an upper bound, not a policy. Pure; the loop calls it.
"""

from pagoda_bench.sim.requests import SimRequest


class Oracle:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._known: set[bytes] = set()

    def arrive(self, request: SimRequest) -> None:
        """Sets `oracle_tokens`; the last token of a prompt is always computed."""
        hashes = request.conversation.hashes(request.prompt_tokens)
        findable = (request.prompt_tokens - 1) // self._block_size
        # Chains are closed under prefixes, so the border between known and new is found by halving.
        least, most = 0, len(hashes)
        while least < most:
            middle = (least + most + 1) // 2
            if hashes[middle - 1] in self._known:
                least = middle
            else:
                most = middle - 1
        request.oracle_tokens = min(least, findable) * self._block_size
        self._known.update(hashes[least:])

    def answered(self, request: SimRequest) -> None:
        """Its answer can be part of the next turn's prompt."""
        self._known.update(request.conversation.hashes(request.prompt_tokens + request.output_tokens - 1))
