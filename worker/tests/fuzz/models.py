"""The fuzzer's models, drafts and adapters, in a folder of their own, and engines of them."""

import itertools
import shutil
from pathlib import Path
from typing import Any

from random_adapter import ALL, GPT2_ALL, write_adapter
from random_checkpoint import write_checkpoint
from rank_threads import RankThread

from fuzz.cases import ADAPTERS, VOCAB, Case
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import RanksOutOfStep
from pagoda_worker.execution.ranks import Ranks
from pagoda_worker.layers.kv_cache import QUANTIZED
from pagoda_worker.loading.loader import DTYPES
from pagoda_worker.models.checkpoint import read_config
from pagoda_worker.models.registry import footprint_of
from pagoda_worker.settings.sources import BUILTIN_DIR

TINY = BUILTIN_DIR / "tiny"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "odd": {
        "vocab_size": 1029,
        "hidden_size": 72,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "attention_bias": True,
    },
    "gpt2": {"model_type": "gpt2"},
    "mistral": {"model_type": "mistral", "sliding_window": 21},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
}
NUMERICS = ("dtype", "quantization", "kv_dtype", "attention", "batch_invariant")
"""Settings that answers may depend on; no other one may change them beyond rounding."""


class Models:
    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, name: str) -> Path:
        if name == "tiny":
            return TINY
        folder = self._root / name
        if not folder.exists():
            write_checkpoint(folder, **{"vocab_size": VOCAB, "seed": 1, **FAMILIES[name]})
            shutil.copy(TINY / "tokenizer.json", folder)
        return folder

    def draft(self, name: str) -> Path:
        """Of the shipped model the shipped draft; of a random one the model itself, so that many guesses hold."""
        return BUILTIN_DIR / "tiny-draft" if name == "tiny" else self.folder(name)

    def adapter(self, model: str, name: str, version: int) -> Path:
        folder = self._root / f"{model}-{name}{version}"
        if not folder.exists():
            targets = GPT2_ALL if model == "gpt2" else ALL
            write_adapter(folder, self.folder(model), rank=ADAPTERS[name], seed=100 * version + ord(name), targets=targets)
        return folder

    def config(self, case: Case) -> EngineConfig:
        settings = dict(case.settings)
        folder = self.folder(case.model)
        draft = self.draft(case.model) if settings["speculative"] == "draft" else None
        per_block = settings["block_size"] * self._bytes_per_token(case, folder, draft)
        if case.blocks is not None and settings.get("paged_kv", True) and settings.get("kv_cache", True):
            settings["kv_cache_bytes"] = case.blocks * per_block
            settings |= {"swap_bytes": case.host_blocks[0] * per_block, "host_tier_bytes": case.host_blocks[1] * per_block}
        return EngineConfig(model_dir=folder, draft_dir=draft, device="cpu", threads=1, **settings)

    def reference_config(self, case: Case) -> EngineConfig:
        """Whose answers are compared: one request at a time, whole, with nothing kept and nothing guessed."""
        settings = {name: case.settings[name] for name in NUMERICS}
        adapters = None if case.settings["batch_invariant"] else 16
        return EngineConfig(
            model_dir=self.folder(case.model),
            device="cpu",
            threads=1,
            max_running=2,
            max_batch_tokens=1024,
            max_model_len=case.settings["max_model_len"],
            prefix_caching=False,
            adapter_slots=adapters,
            **settings,
        )

    @staticmethod
    def _bytes_per_token(case: Case, folder: Path, draft: Path | None) -> int:
        dtype = DTYPES[case.settings["dtype"]]
        ranks = case.settings.get("tensor_parallel", 1)
        own = footprint_of(read_config(folder), ranks).cache.bytes_per_token(QUANTIZED.get(case.settings["kv_dtype"], dtype))
        return (own + (footprint_of(read_config(draft)).cache.bytes_per_token(dtype) if draft else 0)) * ranks


def engine_of(config: EngineConfig) -> Engine:
    """Its clock counts how often it is read, a millisecond each: deadlines, and what is worth a copy, are the same in every run."""
    clock = map(float.__mul__, itertools.repeat(1e-3), map(float, itertools.count())).__next__
    if config.tensor_parallel == 1:
        return Engine(config, clock=clock)
    losses: list[RanksOutOfStep] = []
    return Engine(config, clock=clock, ranks=Ranks.start(config, spawn=RankThread, lost=losses.append))
