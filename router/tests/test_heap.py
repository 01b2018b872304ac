"""Memory that a long prompt frees is there for the next one: counted in page faults, not in time."""

import subprocess
import sys

PROMPTS = """
import resource
from array import array
from pagoda_router.heap import keep_freed_memory
from pagoda_router.token_ids import packed

def prompt():
    ids = array("I", bytes(500_000))
    return b"".join([packed(ids), bytes(20)])


keep_freed_memory()
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    prompt(), prompt()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_a_long_prompt_freed_is_not_taken_anew_from_the_kernel():
    done = subprocess.run([sys.executable, "-c", PROMPTS], capture_output=True, text=True, check=True)
    faults = [int(line) for line in done.stdout.splitlines()]
    assert min(faults) < 50, "some hundreds each time where freed memory goes back"
