"""GPU figures of a scrape: there when the driver tells them in time, else absent; never a failed scrape. NVML itself is a double here."""

import asyncio
import logging

import pytest
from nvml_double import UUID, FakeNvml
from prometheus_client import CollectorRegistry, generate_latest

from pagoda_worker.front.gpu import GpuMetrics, GpuReader, GpuSample, load_nvml

SAMPLE = GpuSample("0", 71_940_702_208, 85_520_809_984, 0.97, 412.345)


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def reader(nvml: FakeNvml, timeout_s: float = 20.0) -> GpuReader:
    return GpuReader(load=lambda: nvml, timeout_s=timeout_s)


async def test_figures_come_in_base_units(nvml: FakeNvml):
    assert await reader(nvml).read([UUID]) == [SAMPLE]


async def test_they_are_gauges_of_the_worker_and_its_gpu(nvml: FakeNvml):
    registry = CollectorRegistry()
    metrics = GpuMetrics("chat", registry, reader(nvml))
    assert generate_latest(registry) == b"", "nothing before it is asked"
    await metrics.refresh([UUID])
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    labels = '{gpu="0",model_name="chat"}'
    assert sorted(lines) == [
        f"pagoda_gpu_memory_total_bytes{labels} 8.5520809984e+10",
        f"pagoda_gpu_memory_used_bytes{labels} 7.1940702208e+10",
        f"pagoda_gpu_power_watts{labels} 412.345",
        f"pagoda_gpu_utilization_ratio{labels} 0.97",
    ]


async def test_a_worker_without_a_gpu_never_loads_nvml():
    def load() -> FakeNvml:
        raise AssertionError("nobody asked for a GPU")

    assert await GpuReader(load=load).read([]) == []


async def test_what_a_device_cannot_tell_is_left_out_and_the_rest_stays(nvml: FakeNvml):
    nvml.knows_power = False
    [sample] = await reader(nvml).read([UUID])
    assert (sample.power_watts, sample.utilization_ratio) == (None, 0.97)
    registry = CollectorRegistry()
    metrics = GpuMetrics("chat", registry, reader(nvml))
    await metrics.refresh([UUID])
    assert b"power" not in generate_latest(registry)


async def test_a_lost_gpu_costs_its_series_says_so_once_and_may_come_back(nvml: FakeNvml, caplog: pytest.LogCaptureFixture):
    reads = reader(nvml)
    nvml.lost = True
    assert await reads.read([UUID]) == []
    assert await reads.read([UUID]) == []
    assert [record.getMessage() for record in caplog.records] == ["GPU figures are missing: GPU is lost"]
    nvml.lost = False
    assert await reads.read([UUID]) == [SAMPLE]


async def test_a_hanging_driver_is_waited_for_only_so_long_and_by_one_thread(nvml: FakeNvml, caplog: pytest.LogCaptureFixture):
    reads = reader(nvml, timeout_s=0.01)
    nvml.answers.clear()
    with caplog.at_level(logging.WARNING):
        assert await reads.read([UUID]) == []
        assert await reads.read([UUID]) == []
    assert await asyncio.to_thread(nvml.asked.wait, 30)
    assert nvml.readers == 1, "the second scrape started no second thread"
    assert caplog.messages == ["the GPU driver has not answered for 0.01 s"]
    nvml.answers.set()


async def test_two_scrapes_at_once_share_one_answer(nvml: FakeNvml):
    reads = reader(nvml)
    nvml.answers.clear()
    scrapes = [asyncio.create_task(reads.read([UUID])) for _ in range(2)]
    assert await asyncio.to_thread(nvml.asked.wait, 30)
    nvml.answers.set()
    assert await asyncio.gather(*scrapes) == [[SAMPLE], [SAMPLE]]
    assert nvml.readers == 1


async def test_the_real_binding_without_a_driver_leaves_the_figures_out(caplog: pytest.LogCaptureFixture):
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert await GpuReader(load=load_nvml).read([UUID]) == []
        assert "GPU figures are missing" in caplog.text
    else:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        [sample] = await GpuReader(load=load_nvml, timeout_s=20.0).read([pynvml.nvmlDeviceGetUUID(handle)])
        assert sample.memory_total_bytes
        assert sample.memory_used_bytes is not None
