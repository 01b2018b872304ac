"""Logprobs of a prompt's tokens in the two shapes that clients know: vLLM's prompt_logprobs, and the beginning of an echo's logprobs.

Pure. run.py keeps what the worker sent; the formats and choices ask here for its shape.
"""

from collections.abc import Sequence
from typing import Any

from pagoda_router.generation import TokenLogprobs
from pagoda_router.openai.sequence import TokenEntry
from pagoda_router.text.tokens import TokenText

LOWEST_LOGPROB = -9999.0
"""What OpenAI shows for "impossible"; JSON has no infinity."""


def shown_logprob(value: float) -> float:
    return max(value, LOWEST_LOGPROB)


def vllm_prompt_logprobs(prompt_ids: Sequence[int], known: Sequence[TokenLogprobs], text: TokenText) -> list[dict[str, Any] | None]:
    """Per position the most likely ids and the prompt's own, each with logprob, rank and text; None for the first, which follows nothing.

    The rank of a token that is not among the most likely ones is not known here: null.
    """
    shown: list[dict[str, Any] | None] = [None]
    for token_id, logprobs in zip(prompt_ids[1:], known, strict=True):
        ranked: dict[int, tuple[float, int | None]] = {token: (value, rank) for rank, (token, value) in enumerate(logprobs.top, start=1)}
        ranked.setdefault(token_id, (logprobs.sampled, None))
        shown.append(
            {
                str(token): {
                    "logprob": shown_logprob(value),
                    "rank": rank,
                    "decoded_token": text.token_bytes(token).decode(errors="replace"),
                }
                for token, (value, rank) in ranked.items()
            }
        )
    return shown


def echoed_entries(
    prompt_ids: Sequence[int], known: Sequence[TokenLogprobs], text: TokenText, *, skip_special_tokens: bool
) -> list[TokenEntry]:
    """One per prompt token; the first has no logprobs."""
    detokenizer = text.detokenizer((), skip_special_tokens=skip_special_tokens)
    entries: list[TokenEntry] = []
    offset = 0
    for token_id, logprobs in zip(prompt_ids, (None, *known), strict=True):
        entries.append(TokenEntry(token_id, logprobs, offset))
        offset += len(detokenizer.feed([token_id]))
    return entries
