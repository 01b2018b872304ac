"""The one model whose decode step tests compile, and the settings of its engine. Shared, so that the compiler's own cache has the second
test's programs from the first: to compile costs half a minute."""

from pathlib import Path
from typing import Any

from pagoda_worker.gpu_check.shapes import Shape, write_checkpoint

SHAPE = Shape(
    name="one layer", hidden=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate=64, vocab=100, positions=64, dtype="float32",
    qk_norm=True,
)  # fmt: skip
SETTINGS: dict[str, Any] = {"device": "cpu", "max_running": 4, "max_batch_tokens": 64, "kv_cache_bytes": 64 * 16 * 2 * 32 * 4}


def settings_of(folder: Path) -> dict[str, Any]:
    """Of an engine over the model, which is written there."""
    write_checkpoint(folder, SHAPE)
    return {"model_dir": folder, **SETTINGS}
