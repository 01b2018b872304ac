"""One sequence against the prefix cache: which of its blocks are known, which of its blocks become known.

Pure bookkeeping between a Sequence and the BlockPool; called by the scheduler. Knows neither budgets nor tensors.
"""

from pagoda_worker.scheduling.blocks import BlockPool, chain_hash
from pagoda_worker.scheduling.sequence import Sequence


def cached_prefix(pool: BlockPool, sequence: Sequence) -> list[int]:
    """Never the whole sequence: its last token must be computed, or there would be nothing to sample from (the L-1 rule)."""
    full = (len(sequence.tokens) - 1) // pool.block_size
    _extend_hashes(sequence, full, pool.block_size)
    return pool.match(sequence.hashes[1 : full + 1])


def register_prefix(pool: BlockPool, sequence: Sequence) -> None:
    """Offers the full blocks up to `computed` that were not offered yet, as far as their tokens are known."""
    full = min(sequence.computed, len(sequence.tokens)) // pool.block_size
    if full > sequence.registered:
        _extend_hashes(sequence, full, pool.block_size)
        for i in range(sequence.registered, full):
            pool.register(sequence.blocks[i], sequence.hashes[i + 1])
        sequence.registered = full


def _extend_hashes(sequence: Sequence, blocks: int, block_size: int) -> None:
    for i in range(len(sequence.hashes) - 1, blocks):
        sequence.hashes.append(chain_hash(sequence.hashes[-1], sequence.tokens[i * block_size : (i + 1) * block_size]))
