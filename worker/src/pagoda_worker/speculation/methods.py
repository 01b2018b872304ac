"""From the engine's settings to what guesses. Called by the engine once."""

from pagoda_worker.config import EngineConfig
from pagoda_worker.speculation.draft_model import DraftModelProposer
from pagoda_worker.speculation.ngram import NgramProposer
from pagoda_worker.speculation.proposer import Proposer
from pagoda_worker.speculation.remote import RemoteProposer
from pagoda_worker.speculation.suffix import SuffixProposer


def proposer_of(config: EngineConfig, *, catch_up: int, max_draft_len: int) -> Proposer | None:
    """`catch_up`: tokens that a draft model may read beside a step; `max_draft_len`: of the longest sequence that it takes. None: no
    speculation."""
    match config.speculative:
        case "ngram":
            return NgramProposer()
        case "suffix":
            return SuffixProposer()
        case "remote":
            return RemoteProposer()
        case "draft":
            return DraftModelProposer(block_size=config.block_size, budget=catch_up, max_len=max_draft_len)
        case _:
            return None
