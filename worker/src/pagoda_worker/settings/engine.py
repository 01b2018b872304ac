"""From PAGODA_ENGINE, the manifest's `spec.engine` as JSON (camelCase), to EngineConfig. Knows no torch.

Called by settings. A value the engine does not have yet is refused with what it has, never ignored.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pagoda_worker.config import Device, EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.settings.sources import resolve_source

MAX_DRAFT_TOKENS = 16
_QUANTITY = re.compile("([0-9]{1,18})(Ki|Mi|Gi|Ti|)")
_SHIFTS = {"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}

Reader = Callable[[str, Any], dict[str, Any]]
"""(path of the field, its value) → arguments of EngineConfig."""


def parse_engine(
    text: str,
    *,
    model_dir: Path,
    device: Device = "auto",
    threads: int | None = None,
    memory_bytes: int | None = None,
    self_test: bool = True,
    adapters: Mapping[str, Path] | None = None,
    cache: Path | None = None,
) -> EngineConfig:
    """`cache`: where the fetch step brings models. Raises ConfigError naming the field, what it said and what is possible."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"PAGODA_ENGINE is not JSON: {error}") from error
    arguments = _read_object("PAGODA_ENGINE", given, ENGINE_FIELDS)
    arguments["adapters"] = dict(adapters or {})
    if (draft := arguments.pop("draft_source", None)) is not None:
        arguments["draft_dir"] = resolve_source(draft, cache=cache, named="PAGODA_ENGINE.speculative.draft")
    return EngineConfig(model_dir=model_dir, device=device, threads=threads, memory_bytes=memory_bytes, self_test=self_test, **arguments)


def _read_object(path: str, given: Any, fields: Mapping[str, Reader]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{path} must be a JSON object, not {json.dumps(given)}")
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        read = fields.get(name)
        if read is None:
            raise ConfigError(f"{path}.{name} is not a field this engine knows; it knows {', '.join(sorted(fields))}")
        arguments |= read(f"{path}.{name}", value)
    return arguments


def _whole(argument: str, lowest: int, highest: int) -> Reader:
    def read(path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise ConfigError(f"{path} is {json.dumps(value)}; it must be a whole number from {lowest} to {highest}")
        return {argument: value}

    return read


def _truth(argument: str) -> Reader:
    def read(path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, bool):
            raise ConfigError(f"{path} is {json.dumps(value)}; it must be true or false")
        return {argument: value}

    return read


def _choice(argument: str, possible: tuple[str, ...]) -> Reader:
    def read(path: str, value: Any) -> dict[str, Any]:
        if value not in possible:
            raise ConfigError(f"{path} is {json.dumps(value)}; this engine has {', '.join(possible)}")
        return {argument: value}

    return read


def _bytes(argument: str) -> Reader:
    """A quantity as the manifest has it: bytes, or a whole number with Ki, Mi, Gi or Ti."""

    def read(path: str, value: Any) -> dict[str, Any]:
        match = _QUANTITY.fullmatch(str(value)) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
        if match is None:
            raise ConfigError(f'{path} is {json.dumps(value)}; it must be bytes, such as 0, 4294967296 or "4Gi"')
        return {argument: int(match[1]) << _SHIFTS[match[2]]}

    return read


def _only(*possible: Any) -> Reader:
    """A field of the manifest whose other values do not work yet."""

    def read(path: str, value: Any) -> dict[str, Any]:
        if value not in possible or isinstance(value, bool):
            raise ConfigError(f"{path} is {json.dumps(value)}; this engine has {', '.join(json.dumps(each) for each in possible)} so far")
        return {}

    return read


def _source(argument: str) -> Reader:
    """Of a model; where it is on this machine is looked up when all is read."""

    def read(path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, str):
            raise ConfigError(f"{path} is {json.dumps(value)}; it must be a model's source, such as builtin://NAME or hf://ORG/NAME")
        return {argument: value}

    return read


def _nested(fields: Mapping[str, Reader]) -> Reader:
    return lambda path, value: _read_object(path, value, fields)


ENGINE_FIELDS: Mapping[str, Reader] = {
    "backend": _only("pagoda"),
    "dtype": _choice("dtype", ("auto", "bf16", "fp16", "fp32")),
    "maxModelLen": _whole("max_model_len", 1, 1 << 24),
    "maxBatchTokens": _whole("max_batch_tokens", 1, 1 << 20),
    "longPrefillTokens": _whole("long_prefill_tokens", 0, 1 << 20),
    "maxRunning": _whole("max_running", 1, 1 << 16),
    "prefixCaching": _truth("prefix_caching"),
    "load": _choice("load", ("eager", "lazy", "warm")),
    "attention": _choice("attention", ("auto", "triton", "flash", "native", "sdpa", "eager")),
    "batchInvariant": _truth("batch_invariant"),
    "compile": _truth("compile"),
    "kvCache": _nested(
        {
            "blockSize": _whole("block_size", 1, 1024),
            "dtype": _choice("kv_dtype", ("auto", "int8", "fp8")),
            "swap": _bytes("swap_bytes"),
            "hostTier": _bytes("host_tier_bytes"),
        }
    ),
    "adapters": _nested({"slots": _whole("adapter_slots", 0, 256), "maxRank": _whole("max_adapter_rank", 1, 64)}),
    "quantization": _choice("quantization", ("none", "int8", "int4", "fp8")),
    "speculative": _nested(
        {
            "method": _choice("speculative", ("none", "ngram", "suffix", "draft", "remote")),
            "tokens": _whole("draft_tokens", 1, MAX_DRAFT_TOKENS),
            "draft": _source("draft_source"),
        }
    ),
    "tensorParallel": _whole("tensor_parallel", 1, 64),
    "pipelineParallel": _only(1),
}
