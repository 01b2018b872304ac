"""Memory that a step frees is there for the next one: counted in page faults, not in time."""

import subprocess
import sys

LAYERS_OF_AN_ENGINE = """
import resource
import torch
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.settings.sources import BUILTIN_DIR

def new(columns):
    return torch.empty(1024, columns, dtype=torch.bfloat16).fill_(1)

def layers():
    residual, x = new(1024), new(1024)
    for _ in range(8):
        heads, x = new(2048), new(1024)
        residual, x = new(1024), new(1024)
        gate = new(4096)
        residual, x = new(1024), new(1024)

engine = Engine(EngineConfig(model_dir=BUILTIN_DIR / "tiny", device="cpu", max_running=2))
layers()
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_with_an_engine_what_a_layer_freed_is_not_taken_anew_from_the_kernel():
    done = subprocess.run([sys.executable, "-c", LAYERS_OF_AN_ENGINE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "thousands where freed memory goes back"
