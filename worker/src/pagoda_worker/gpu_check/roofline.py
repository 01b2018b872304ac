"""How fast a device could be at best: bytes over its bandwidth, operations over its matrix peak. Pure.

Counts what no engine can avoid: every weight once a step, every key and value of every context once a step, two operations per weight and
token, and the causal half of attention. Activations, logits and launches count nothing, so nobody reaches 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda_worker.config import Quantization
from pagoda_worker.gpu_check.shapes import BF16_BYTES, Shape

WEIGHT_BYTES = {"none": BF16_BYTES, "int8": 1.0, "int4": 0.5, "fp8": 1.0}
HEAD_BYTES = {"none": BF16_BYTES, "int8": 1.0, "int4": 1.0, "fp8": 1.0}
"""Of the products of layers and of the head, without scales: see models/rounded.py."""


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """Measured in the same run, not read from a data sheet."""

    bytes_per_s: float
    """Reading and writing together, of a large copy."""
    flops_per_s: float
    """Of a large bf16 matrix product."""


def decode_step_s(
    shape: Shape, speed: DeviceSpeed, *, batch: int, context_tokens: int, kv_bytes_per_token: float | None = None,
    quantization: Quantization = "none",
) -> float:  # fmt: skip
    """One token for each of `batch` sequences, whose contexts are `context_tokens` long in all. `kv_bytes_per_token`: other than bf16's."""
    head = shape.head_parameters
    in_layers = shape.matmul_parameters - head
    weights = (in_layers * WEIGHT_BYTES[quantization] + head * HEAD_BYTES[quantization]) / speed.bytes_per_s
    products = 2 * shape.matmul_parameters * batch / ((2 if quantization == "int8" else 1) * speed.flops_per_s)
    return max(weights, products) + (kv_bytes_per_token or shape.kv_bytes_per_token) * context_tokens / speed.bytes_per_s


def prefill_s(shape: Shape, speed: DeviceSpeed, tokens: int) -> float:
    """One prompt; logits of its last token only."""
    products = 2 * ((shape.matmul_parameters - shape.head_parameters) * tokens + shape.head_parameters)
    attention = 4 * (tokens * (tokens + 1) // 2) * shape.heads * shape.head_dim * shape.layers
    return (products + attention) / speed.flops_per_s


def workload_s(shape: Shape, speed: DeviceSpeed, requests: Sequence[tuple[int, int]]) -> float:
    """(prompt tokens, output tokens) of requests that all come at once: every prompt computed, then steps in which all that have not
    ended yet take part. The first output token comes with the prompt."""
    seconds = sum(prefill_s(shape, speed, prompt) for prompt, _ in requests)
    for produced in range(1, max(output for _, output in requests)):
        contexts = [prompt + produced for prompt, output in requests if output > produced]
        seconds += decode_step_s(shape, speed, batch=len(contexts), context_tokens=sum(contexts))
    return seconds


def product_s(products: Sequence[tuple[int, int]], speed: DeviceSpeed, *, rows: int, bits: int, speedup: int) -> float:
    """Products of `rows` with weights of (outputs, inputs) and so many bits, one after another; inputs and outputs count nothing. speedup:
    of the matrix instructions over bf16's."""
    weights = [outputs * inputs for outputs, inputs in products]
    return sum(max(each * bits / 8 / speed.bytes_per_s, 2 * each * rows / (speedup * speed.flops_per_s)) for each in weights)
