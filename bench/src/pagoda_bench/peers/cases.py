"""What is measured: models, cases and the prompts of a round. Knows no system and starts nothing; called by the runner and by the gate."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pagoda_bench.errors import SettingsError
from pagoda_bench.random_llama import write_half_billion

MODELS = ("tiny", "0.45b")


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    folder: Path
    """An ordinary Hugging Face folder; every system reads this one."""
    source: str
    """The same for `spec.model.source`."""
    threads: int
    """Compute threads, the same for every system."""


@dataclass(frozen=True, slots=True)
class Case:
    """`streams` requests at once, each of exactly these lengths, greedy, with the end token ignored."""

    model: str
    streams: int
    prompt_tokens: int = 128
    output_tokens: int = 64

    @property
    def name(self) -> str:
        return f"{self.model} c={self.streams}"

    @property
    def tokens(self) -> int:
        return self.streams * self.output_tokens


def threads_for(model: str, cores: int) -> int:
    """Pagoda's own choice, which the peers get too: a model as small as the tiny one is faster on one thread than on two."""
    return 1 if model == "tiny" else cores


def model_named(name: str, *, scratch: Path, cores: int) -> Model:
    """Writes the random Llama into `scratch` when it is asked for and not there yet. Raises SettingsError for an unknown name."""
    threads = threads_for(name, cores)
    if name == "tiny":
        return Model(name, _builtin_tiny(), "builtin://tiny", threads)
    if name == "0.45b":
        folder = scratch / "llama-0.45b"
        write_half_billion(folder)
        return Model(name, folder, f"file://{folder}", threads)
    raise SettingsError(f"no model {name!r} here: one of {', '.join(MODELS)}")


def prompts_for(case: Case, *, seed: Sequence[int]) -> list[list[int]]:
    """Token ids below 200, ordinary text in every vocabulary. Prompts of two seeds share no block, so no prefix cache helps."""
    ids: list[list[int]] = np.random.default_rng(seed).integers(10, 200, size=(case.streams, case.prompt_tokens)).tolist()
    return ids


def _builtin_tiny() -> Path:
    """The shipped folder, found without importing the worker."""
    spec = find_spec("pagoda_worker")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "builtin" / "tiny"
