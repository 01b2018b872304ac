"""Which code runs: the distribution's version, and a digest of the operator's own files, so that a changed checkout is noticed too."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

DISTRIBUTION = "pagoda-operator"


def distribution_version() -> str:
    return version(DISTRIBUTION)


@cache
def code_version() -> str:
    """Compared between the command line and a running supervisor."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{distribution_version()}+{digest.hexdigest()[:8]}"
