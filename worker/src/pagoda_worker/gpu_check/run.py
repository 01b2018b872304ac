"""The check from its first part to its last, within one budget of seconds. Called by __main__; imports torch, which that has looked for.

What is checked first is what matters most: kernels, tokens, backends of attention, then the speed of the small and of the large model.
A part that would not fit in what is left is skipped with a line; one that raises costs its own figure only.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pagoda_worker.config import Device
from pagoda_worker.errors import OutOfMemory
from pagoda_worker.gpu_check import device as measured
from pagoda_worker.gpu_check.backends import FULL_LAYER, SMALL_LAYER, Layer, compare
from pagoda_worker.gpu_check.gates import gate
from pagoda_worker.gpu_check.guessing import FULL_GUESSING, SMALL_GUESSING, GuessingScale, time_guessing
from pagoda_worker.gpu_check.report import Report
from pagoda_worker.gpu_check.roofline import DeviceSpeed, decode_step_s, prefill_s, workload_s
from pagoda_worker.gpu_check.shapes import BF16_BYTES, LLAMA_8B, QWEN3_06B, TINY, Shape
from pagoda_worker.gpu_check.speed import FULL, MODES, QUANTIZED, SMALL, WARM_STEPS, Figure, Mode, NotMeasured, TimedModel, Workload
from pagoda_worker.gpu_check.truth import CHECKS, CUDA_CHECKS, Check, Trial
from pagoda_worker.layers.selection import triton_refusal

DEVICE_SPEED = "bandwidth and matrix peak"
"""The part that every figure is told beside."""
EXPECTED_SHARE = 0.05
"""Of the roofline that a part is planned with; reaching more only saves time."""
PART_S = 3.0
"""Launches, prompts and warm-up of any part, beyond its roofline."""
TRUTH_S = 20.0
LOAD_S = 15.0
COMPILE_S = 100.0
"""To load and compile a model of 28 layers (a guess)."""
KERNEL_S = 40.0
"""Compiling a kernel for each combination takes most of it."""
GUESSING_S = 40.0
"""Six engines, of which each compiles (a guess)."""
PRODUCT_S = 10.0
"""Of one form and four numbers of rows, compiling too (a guess)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    shapes: tuple[Shape, ...]
    workload: Workload
    copy_bytes: int
    matrix: int
    truth_tokens: int
    kernels: str
    """The name of a scale in kernels.py, which imports Triton."""
    layer: Layer
    guessing: GuessingScale
    modes: Sequence[Mode]
    """Of the first shape, beside the usual one."""
    quantized: Sequence[Mode]
    """Of the last shape."""


SCALES = {
    "full": Scale(
        shapes=(QWEN3_06B, LLAMA_8B),
        workload=FULL,
        copy_bytes=2 << 30,
        matrix=8192,
        truth_tokens=48,
        kernels="FULL_KERNELS",
        layer=FULL_LAYER,
        guessing=FULL_GUESSING,
        modes=MODES,
        quantized=QUANTIZED,
    ),
    "small": Scale(
        shapes=(TINY,),
        workload=SMALL,
        copy_bytes=16 << 20,
        matrix=256,
        truth_tokens=12,
        kernels="SMALL_KERNELS",
        layer=SMALL_LAYER,
        guessing=SMALL_GUESSING,
        modes=(Mode(label=" without graphs", cuda_graphs=False, batches=(1, 2)), Mode(label=" KV int8", kv_dtype="int8", batches=(2,))),
        quantized=(replace(QUANTIZED[0], batches=(2,)),),
    ),
}


class Parts:
    """Runs parts while there is time for them. `only`: those with one of these words in their names; none: all."""

    def __init__(self, report: Report, budget_s: float, clock: Callable[[], float] = time.monotonic, *, only: Sequence[str] = ()) -> None:
        self._report = report
        self._clock = clock
        self._only = only
        self.deadline = clock() + budget_s

    def run(self, name: str, needs_s: float, body: Callable[[], None]) -> None:
        if self._only and name != DEVICE_SPEED and not any(word in name for word in self._only):
            return
        left_s = self.deadline - self._clock()
        if needs_s > left_s:
            self._report.skip(name, f"it may need {needs_s:.0f} s and {max(left_s, 0):.0f} s are left")
            return
        try:
            body()
        except (NotMeasured, OutOfMemory) as error:
            self._report.skip(name, str(error))
        except Exception as error:  # a kernel that fails must not cost the figures of all other parts; the exit status tells of it
            self._report.fail(name, error)


def check(scale: Scale, where: Device, report: Report, budget_s: float, only: Sequence[str] = ()) -> None:
    parts = Parts(report, budget_s, only=only)
    device = torch.device(where)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _check_kernels(scale, device, parts, report)
        _check_truth(scale, where, parts, report, folder / "truth")
        parts.run("backends of attention", KERNEL_S, partial(compare, scale.layer, device, report))
        measured.release(device)
        parts.run("speculation of the shipped pair", GUESSING_S, partial(time_guessing, scale.guessing, where, report))
        measured.release(device)
        speeds: list[DeviceSpeed] = []
        parts.run(DEVICE_SPEED, PART_S, lambda: speeds.append(_measure_device(scale, device, report)))
        if not speeds:
            return
        _time_products(scale, device, speeds[0], parts, report)
        for shape in scale.shapes:
            _time_shape(shape, scale.workload, speeds[0], where, parts, report, folder / shape.name)
            measured.release(device)
        others = [(scale.shapes[-1], mode) for mode in scale.quantized] + [(scale.shapes[0], mode) for mode in scale.modes]
        for i, (shape, mode) in enumerate(others):
            _time_mode(shape, mode, scale.workload, speeds[0], where, parts, report, folder / f"mode {i}")
            measured.release(device)


def _time_mode(
    shape: Shape, mode: Mode, workload: Workload, speed: DeviceSpeed, where: Device, parts: Parts, report: Report, folder: Path
) -> None:
    """Last, for what matters least: how decode steps could be run otherwise."""
    models = list[TimedModel]()

    def load() -> None:
        models.append(TimedModel(shape, workload, speed, folder=folder, device=where, mode=mode))
        report.add_value(f"{shape.name}{mode.label}", "pagoda", "load_s", models[0].load_s, "s")

    parts.run(f"{shape.name}{mode.label} load", COMPILE_S if mode.compile else LOAD_S, load)
    for model in models:
        for batch in mode.batches:
            needs_s = _decode_needs_s(shape, workload, speed, batch)
            parts.run(
                f"{shape.name}{mode.label} decode b={batch}", needs_s, partial(_take_figure, partial(model.decode, batch), parts, report)
            )


def _decode_needs_s(shape: Shape, workload: Workload, speed: DeviceSpeed, batch: int) -> float:
    step_s = decode_step_s(shape, speed, batch=batch, context_tokens=batch * workload.context)
    prompts_s = batch * prefill_s(shape, speed, workload.context)
    return _planned_s(prompts_s + (WARM_STEPS + workload.decode_steps) * step_s)


def _check_kernels(scale: Scale, device: torch.device, parts: Parts, report: Report) -> None:
    """First, since whoever reads that a token is wrong wants to know which kernel made it so."""
    if (why := triton_refusal(device.type)) is not None:
        report.skip("kernels", why)
        return
    from pagoda_worker.gpu_check import kernels, products  # import Triton

    torch.manual_seed(0)
    trial = kernels.KernelTrial(getattr(kernels, scale.kernels), device)
    for each in kernels.KERNEL_CHECKS:
        parts.run(f"kernel {each.__name__}", KERNEL_S, lambda each=each: report.add_check(each(trial)))  # type: ignore[misc]
    sizes = products.SCALES[scale.kernels]
    for of_products in products.PRODUCT_CHECKS:
        parts.run(f"kernel {of_products.__name__}", KERNEL_S, lambda each=of_products: report.add_check(each(trial, sizes)))  # type: ignore[misc]
    measured.release(device)


def _time_products(scale: Scale, device: torch.device, speed: DeviceSpeed, parts: Parts, report: Report) -> None:
    if triton_refusal(device.type) is not None:
        return
    from pagoda_worker.gpu_check import product_speed  # imports Triton

    sizes = product_speed.SCALES[scale.kernels]
    for shape in sizes.shapes:
        for each in product_speed.contenders_on(device):
            body = partial(product_speed.time_contender, shape, each, sizes, device, speed, report)
            parts.run(f"products of {shape.name}, {each.name}", PRODUCT_S, body)
            measured.release(device)


def _check_truth(scale: Scale, where: Device, parts: Parts, report: Report, folder: Path) -> None:
    trials: list[Trial] = []
    parts.run("the CPU's tokens", TRUTH_S, lambda: trials.append(Trial(folder, where, scale.truth_tokens)))
    for each in (*CHECKS, *(CUDA_CHECKS if where == "cuda" else ())) if trials else ():
        parts.run(each.__name__, TRUTH_S, partial(_take_check, each, trials[0], report))


def _take_check(each: Callable[[Trial], Check], trial: Trial, report: Report) -> None:
    report.add_check(each(trial))


def _measure_device(scale: Scale, device: torch.device, report: Report) -> DeviceSpeed:
    measured.release(device)
    speed = measured.measure_speed(device, copy_bytes=scale.copy_bytes, matrix=scale.matrix)
    report.add_value("copy", "device", "bandwidth_bytes_per_s", speed.bytes_per_s, "bytes/s")
    report.add_value("bf16 matrix product", "device", "flops_per_s", speed.flops_per_s, "flop/s")
    measured.release(device)
    return speed


def _time_shape(shape: Shape, workload: Workload, speed: DeviceSpeed, where: Device, parts: Parts, report: Report, folder: Path) -> None:
    models: list[TimedModel] = []

    def load() -> None:
        model = TimedModel(shape, workload, speed, folder=folder, device=where)
        models.append(model)
        report.add_value(shape.name, "pagoda", "load_s", model.load_s, "s")
        report.add_value(shape.name, "pagoda", "kv_tokens", model.kv_tokens, "tokens")

    weights_s = shape.matmul_parameters * BF16_BYTES / speed.bytes_per_s
    parts.run(f"{shape.name} load", LOAD_S + _planned_s(weights_s), load)
    for model in models:
        for batch in workload.batches:
            needs_s = _decode_needs_s(shape, workload, speed, batch)
            parts.run(f"{shape.name} decode b={batch}", needs_s, partial(_take_figure, partial(model.decode, batch), parts, report))
        needs_s = _planned_s((1 + workload.prefills) * prefill_s(shape, speed, workload.prefill_tokens))
        parts.run(f"{shape.name} prefill", needs_s, partial(_take_figure, model.prefill, parts, report))
        needs_s = _planned_s(workload_s(shape, speed, workload.mixture()))
        parts.run(f"{shape.name} mixture", needs_s, partial(_take_figure, model.mixture, parts, report))
    if models and (peak := measured.peak_bytes(torch.device(where))) is not None:
        report.add_value(shape.name, "pagoda", "peak_memory_bytes", peak, "bytes")


def _planned_s(roofline_s: float) -> float:
    return PART_S + roofline_s / EXPECTED_SHARE


def _take_figure(measure: Callable[[float], Figure], parts: Parts, report: Report) -> None:
    figure = measure(parts.deadline)
    report.add_figure(figure)
    if (asked := gate(figure, str(report.hardware.get("device")))) is not None:
        report.add_check(asked)
