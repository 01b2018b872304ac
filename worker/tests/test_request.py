"""The plain data of requests: no torch anywhere near it, and msgspec carries it as it is."""

import subprocess
import sys

import msgspec
import pytest

from pagoda_worker.request import (
    EngineState,
    Finish,
    FinishReason,
    Request,
    Sampling,
    SequenceUpdate,
    StepOutput,
    Timings,
    TokenLogprobs,
    Usage,
)
from pagoda_worker.wire import worker_pb2

WITHOUT_TORCH = """
import sys
for name in ("torch", "numpy", "grpc", "msgspec"):
    sys.modules[name] = None
import pagoda_worker.scheduling.scheduler, pagoda_worker.scheduling.blocks, pagoda_worker.scheduling.plan
import pagoda_worker.request, pagoda_worker.config, pagoda_worker.errors
"""


def test_scheduling_imports_neither_torch_nor_numpy_nor_a_network():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, timeout=60)


def test_the_engine_imports_without_grpc_prometheus_and_msgspec():
    code = WITHOUT_TORCH.replace('"torch", "numpy", ', '"prometheus_client", ') + "import pagoda_worker.engine, pagoda_worker.offline.batch"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=110)


def test_finish_reasons_have_the_numbers_of_the_wire():
    for reason in FinishReason:
        assert worker_pb2.FinishReason.Value(f"FINISH_{reason.name}") == reason


REQUEST = Request(
    request_id="a",
    prompt_ids=[1, 2],
    sampling=Sampling(temperature=0.5, seed=7, logit_bias={3: -1.0}),
    n=2,
    cache_salt=b"\x00salt",
    deadline_s=1.5,
    resume_ids=[4],
)
OUTPUT = StepOutput(
    [
        SequenceUpdate(
            "a",
            1,
            [5],
            [TokenLogprobs(-0.5, [(5, -0.5), (6, -1.0)])],
            Finish(FinishReason.STOP, Usage(2, 0, 1), Timings(1, 2, 3, 4, 0, 1, [(1, 1)]), 9),
        )
    ],
    EngineState(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13.0, 14.0),
    sequences=1,
    tokens=2,
    duration_us=3,
)


@pytest.mark.parametrize("value", [REQUEST, OUTPUT], ids=["request", "step output"])
def test_msgspec_carries_it_unchanged(value: Request | StepOutput):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value


def test_defaults_are_greedy_without_any_filter():
    sampling = Sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 1, 0, 0)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty, sampling.logit_bias) == (0, 0, 1, {})
