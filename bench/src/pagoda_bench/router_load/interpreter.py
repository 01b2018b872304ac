"""What a router's Python is: how one was built is worth a tenth of a request, so that a result says which it was. Called by run.py."""

import json
import subprocess
from pathlib import Path

from pagoda_bench.errors import SettingsError

_ASK = """
import json, platform
try:
    import pagoda_router
    missing = ""
except ImportError as error:
    missing = str(error)
print(json.dumps([platform.python_version(), platform.python_compiler(), platform.python_build()[1], missing]))
"""
LONGEST_S = 60.0


def described(interpreter: Path) -> str:
    """One phrase. Raises SettingsError for what cannot run a router."""
    try:
        told = subprocess.run([str(interpreter), "-c", _ASK], capture_output=True, text=True, check=True, timeout=LONGEST_S).stdout
        version, compiler, built, missing = json.loads(told)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SettingsError(f"--python {interpreter} is no interpreter that answers: {error}") from None
    if missing:
        raise SettingsError(f"--python {interpreter} cannot run a router ({missing}): install pagoda-router there")
    return f"Python {version}, {compiler}, built {built}"
