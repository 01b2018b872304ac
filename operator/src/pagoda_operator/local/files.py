"""Files that readers see whole or not at all. Called by whoever writes into the state folder."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """By rename, readable by the user alone. Where that fails (OSError) the file is as it was, and nothing lies beside it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any) -> None:
    write_whole(path, json.dumps(document, indent=1) + "\n")
