"""Text in, the most likely next tokens out: one forward pass of the engine as it serves, without any server.

Knows folders and an engine. Called by the command `pagoda logits`; the folder it is given exists.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError, ModelError
from pagoda_worker.models.checkpoint import read_config
from pagoda_worker.models.registry import footprint_of
from pagoda_worker.models.texts import read_tokenizer_json


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str


@dataclass(frozen=True, slots=True)
class NextToken:
    token: Token
    logprob: float

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)


@dataclass(frozen=True, slots=True)
class NextTokens:
    prompt: list[Token]
    top: list[NextToken]
    """Most likely first."""
    architecture: str
    dtype: str
    device: str


def next_tokens(folder: Path, text: str, top: int) -> NextTokens:
    """`top`: 1 to the engine's MAX_TOP_LOGPROBS. Raises ModelError, UnsupportedModel, ConfigError, OutOfMemory."""
    tokenizer = read_tokenizer(folder)
    ids: list[int] = tokenizer.encode(text).ids
    longest = footprint_of(read_config(folder)).max_position
    if not 1 <= len(ids) < longest:
        raise ConfigError(f"the text has {len(ids)} tokens; this model takes 1 to {longest - 1} and gives the next one")
    engine = Engine(EngineConfig(model_dir=folder, max_running=1, max_model_len=len(ids) + 1))
    (completion,) = engine.generate([ids], max_tokens=1, ignore_eos=True, top_logprobs=top)
    assert completion.logprobs is not None, "they were asked for"
    return NextTokens(
        prompt=[_token(tokenizer, each) for each in ids],
        top=[NextToken(_token(tokenizer, each), logprob) for each, logprob in completion.logprobs[0].top],
        architecture=engine.facts.architecture,
        dtype=engine.facts.dtype,
        device=engine.facts.device,
    )


def read_tokenizer(folder: Path) -> Tokenizer:
    text = read_tokenizer_json(folder)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower, whatever the file lacks
        raise ModelError(f"{folder}'s tokenizer.json cannot be read: {error}") from error


def _token(tokenizer: Tokenizer, token_id: int) -> Token:
    """Its text, or its name in the vocabulary where it is no whole character. Empty: the tokenizer knows no such token (some models have
    more rows than tokens)."""
    text: str = tokenizer.decode([token_id], skip_special_tokens=False)
    return Token(token_id, text if text and "\ufffd" not in text else tokenizer.id_to_token(token_id) or "")
