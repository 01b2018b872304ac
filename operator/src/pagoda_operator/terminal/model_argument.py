"""`--model DIR_OR_hf://ORG/NAME` → the manifest it stands for. Pure but for making the folder absolute. Called by commands.py."""

import re
from pathlib import Path
from typing import Any

import yaml

from pagoda_operator.manifest.validate import API_VERSION, KIND
from pagoda_operator.terminal.errors import CommandError

NAME_LENGTH = 40


def manifest_for(model: str, name: str | None) -> dict[str, Any]:
    source = model if "://" in model else f"file://{Path(model).expanduser().resolve()}"
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name or _name_of(source)},
        "spec": {"model": {"source": source}},
    }


def as_yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False)


def _name_of(source: str) -> str:
    """The last part of the path, as Kubernetes spells names."""
    last = source.rstrip("/").rpartition("/")[2].partition("@")[0]
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:NAME_LENGTH].strip("-")
    if not name or not name[0].isalpha():
        raise CommandError(f"--model {source}: no name can be made of {last!r}: add --name NAME")
    return name
