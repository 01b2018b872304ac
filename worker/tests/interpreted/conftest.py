"""These tests run Triton's kernels in its interpreter, in a process of their own: tests/test_kernels.py starts it. Elsewhere they are not
collected, since the variable must be set before anything imports Triton."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
