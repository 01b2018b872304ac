"""What a worker may or may not be able to do, and what one request has turned off of it.

Plain data; generation.py's halves both speak of it.
"""

from dataclasses import dataclass
from enum import StrEnum


class Feature(StrEnum):
    """By the wire's names."""

    PROMPT_LOGPROBS = "prompt_logprobs"
    EMBEDDINGS = "embeddings"
    STRUCTURED_OUTPUT = "structured_output"
    BATCHING_TOGGLE = "batching_toggle"
    SPECULATION = "speculation"


@dataclass(frozen=True, slots=True)
class Switches:
    """By the header's names."""

    prefix_cache: bool = True
    """Keys and values that earlier requests left are used, and its own kept."""
    batching: bool = True
    """It may be computed together with others."""
    speculation: bool = True
    """Its tokens may be drafted first, where a worker does that."""


ALL_ON = Switches()
