"""quantization_config of a config.json → the reader of its layout. What is not named there is not guessed. Called by registry.py."""

from collections.abc import Callable, Mapping
from typing import Any

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.models.formats.awq import Awq
from pagoda_worker.models.formats.compressed_tensors import CompressedTensors
from pagoda_worker.models.formats.fp8 import Fp8
from pagoda_worker.models.formats.gptq import Gptq
from pagoda_worker.models.formats.layout import Layout

PARSERS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "awq": Awq.parse,
    "compressed-tensors": CompressedTensors.parse,
    "fbgemm_fp8": Fp8.parse,
    "fp8": Fp8.parse,
    "gptq": Gptq.parse,
}


def layout_of(raw: Mapping[str, Any]) -> Layout | None:
    """`raw`: config.json. None: a plain checkpoint. Raises ModelError, UnsupportedModel."""
    config = raw.get("quantization_config") or raw.get("compression_config")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise ModelError(f"config.json: quantization_config must be an object, it is {config!r}")
    method = config.get("quant_method")
    if method not in PARSERS:
        raise UnsupportedModel(f"quantization_config with quant_method {method!r} is not supported; {', '.join(sorted(PARSERS))} are")
    return PARSERS[method](config)
