"""What an H200 must reach, written beside each figure as met or not met. Pure; called by the check.

Decode and workload in output tokens/s of whole engine steps in bf16; prefill as a share of the matrix peak that the same run measured.
"""

from pagoda_worker.gpu_check.shapes import LLAMA_8B, QWEN3_06B
from pagoda_worker.gpu_check.speed import Figure
from pagoda_worker.gpu_check.truth import Check

DEVICE = "H200"
"""By its name; other devices have no gates."""
PREFILL_SHARE = 0.6
LEAST_TOKENS_PER_S = {
    f"{LLAMA_8B.name} decode b=1 ctx=512": 240,
    f"{LLAMA_8B.name} decode b=64 ctx=512": 10_500,
    f"{LLAMA_8B.name} decode b=256 ctx=512": 20_000,
    f"{QWEN3_06B.name} decode b=1 ctx=512": 1_000,
    f"{QWEN3_06B.name} 256 requests 100-1024 in and out": 24_000,
}


def gate(figure: Figure, device_name: str) -> Check | None:
    """None where nothing is asked of the figure."""
    if DEVICE not in device_name:
        return None
    if (least := LEAST_TOKENS_PER_S.get(figure.case)) is not None:
        return Check(f"gate: {figure.case}", figure.value >= least, f"{figure.value:.0f} tokens/s, at least {least} wanted")
    if figure.case.endswith("prefill 8192"):
        detail = f"{100 * figure.share:.0f} % of the measured peak, at least {100 * PREFILL_SHARE:.0f} % wanted"
        return Check(f"gate: {figure.case}", figure.share >= PREFILL_SHARE, detail)
    return None
