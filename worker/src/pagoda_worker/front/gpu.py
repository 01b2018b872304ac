"""GPU memory, utilisation and power, read through NVML when a scrape comes: by the driver's own library, so without torch and whatever the
engine is doing. Knows no requests.

A driver that hangs or fails costs a scrape its GPU series, never the scrape: the call runs in a thread of its own and is waited for only so
long. On a MIG slice NVML tells little, so little is there.
"""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

READ_TIMEOUT_S = 0.25
"""A healthy driver answers in about a millisecond."""
GAUGES = (
    ("pagoda_gpu_memory_used_bytes", "memory_used_bytes", "GPU memory in use, by whomever."),
    ("pagoda_gpu_memory_total_bytes", "memory_total_bytes", "GPU memory there is."),
    ("pagoda_gpu_utilization_ratio", "utilization_ratio", "Share of the last sample period, up to a second, in which a kernel ran."),
    ("pagoda_gpu_power_watts", "power_watts", "Power drawn by the board."),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuSample:
    """None: this device does not tell."""

    gpu: str
    """NVML's index on this host (in a container, of the devices given to it)."""
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization_ratio: float | None
    power_watts: float | None


def load_nvml() -> Any:
    """The pynvml module, its library initialised. Raises NVMLError without a driver."""
    import pynvml  # type: ignore[import-untyped]  # here: workers without a GPU never load it

    pynvml.nvmlInit()
    return pynvml


class GpuReader:
    """At most one thread reads; a second scrape waits for the same answer."""

    def __init__(self, load: Callable[[], Any] = load_nvml, *, timeout_s: float = READ_TIMEOUT_S) -> None:
        self._load = load
        self._timeout_s = timeout_s
        self._nvml: Any = None
        self._reading: concurrent.futures.Future[list[GpuSample]] | None = None
        self._trouble = ""

    async def read(self, uuids: Sequence[str]) -> list[GpuSample]:
        """Of the devices that can be read within the time; never raises."""
        if not uuids:
            return []
        if self._reading is None or self._reading.done():
            self._reading = concurrent.futures.Future()
            # Not the loop's executor: a thread that hangs in the driver would be waited for when the front ends.
            threading.Thread(target=self._read_now, args=(self._reading, list(uuids)), name="nvml", daemon=True).start()
        done, _ = await asyncio.wait([asyncio.wrap_future(self._reading)], timeout=self._timeout_s)
        if not done:
            self._note(f"the GPU driver has not answered for {self._timeout_s:.2f} s")
        return [sample for future in done for sample in future.result()]

    def _read_now(self, answer: "concurrent.futures.Future[list[GpuSample]]", uuids: list[str]) -> None:
        samples: list[GpuSample] = []
        try:
            self._nvml = self._nvml or self._load()
            samples = [self._sample(self._nvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in uuids]
            self._trouble = ""
        except Exception as error:  # the outermost line of this thread: whatever driver and binding raise, the scrape goes on
            self._note(f"GPU figures are missing: {error}")
        answer.set_result(samples)

    def _sample(self, handle: Any) -> GpuSample:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        return GpuSample(
            gpu=str(nvml.nvmlDeviceGetIndex(handle)),
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            utilization_ratio=None if rates is None else rates.gpu / 100,
            power_watts=None if power_mw is None else power_mw / 1000,
        )

    def _ask(self, question: Callable[[Any], Any], handle: Any) -> Any:
        """None when this device cannot tell that."""
        try:
            return question(handle)
        except self._nvml.NVMLError_NotSupported:
            return None

    def _note(self, trouble: str) -> None:
        """Once, until it changes."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("%s", trouble)


class GpuMetrics(Collector):
    """Registered on the registry it is given. `refresh` before each scrape."""

    def __init__(self, model: str, registry: CollectorRegistry, reader: GpuReader) -> None:
        self._model = model
        self._reader = reader
        self._samples: list[GpuSample] = []
        registry.register(self)

    async def refresh(self, uuids: Sequence[str]) -> None:
        """`uuids`: of the devices that the engine owns; none without a GPU."""
        self._samples = await self._reader.read(uuids)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, field, help_text in GAUGES:
            values = {sample.gpu: getattr(sample, field) for sample in self._samples}
            told = {gpu: value for gpu, value in values.items() if value is not None}
            if told:
                family = GaugeMetricFamily(name, help_text, labels=["model_name", "gpu"])
                for gpu, value in told.items():
                    family.add_metric([self._model, gpu], value)
                yield family
