"""Manifest files → InferenceModel documents ready to submit: read, checked as a whole, paths made absolute, sources found.

Raises CommandError with every problem at once, each in a line that names its file and field. Called by commands.py.
"""

import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pagoda_operator.errors import InvalidManifest
from pagoda_operator.local.sources import SourceMissing, check_adapter, resolve_source
from pagoda_operator.manifest.spec import InferenceModel, parse
from pagoda_operator.manifest.validate import API_VERSION, KIND
from pagoda_operator.terminal.errors import CommandError

STDIN = "-"
NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Origin:
    label: str
    """How problems name it: the file as the user wrote it, with its position when it holds several documents."""
    folder: Path
    """What relative file:// paths count from."""


def load(files: Sequence[str], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    found = [pair for file in files for pair in _documents(file)]
    problems = [problem for origin, document in found for problem in _check(origin, document, environment)]
    names = [document["metadata"]["name"] for _, document in found if not problems]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{name} is there twice: give each InferenceModel its own metadata.name" for name in twice]
    if problems:
        raise CommandError(*problems)
    if not found:
        raise CommandError(f"{', '.join(map(_label, files))}: there is no {KIND} in it")
    return [document for _, document in found]


def check(document: dict[str, Any], label: str, environment: Mapping[str, str]) -> None:
    """The same for a document that came from no file. Raises CommandError."""
    if problems := list(_check(Origin(label, Path.cwd()), document, environment)):
        raise CommandError(*problems)


def _label(file: str) -> str:
    return "stdin" if file == STDIN else file


def _documents(file: str) -> Iterator[tuple[Origin, dict[str, Any]]]:
    path = Path(file)
    label = _label(file)
    folder = Path.cwd() if file == STDIN else path.absolute().parent
    try:
        text = sys.stdin.read() if file == STDIN else path.read_text()
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except FileNotFoundError:
        raise CommandError(f"{label}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{label}: it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{label}: it is not YAML: {_yaml_problem(error)}") from None
    for position, document in enumerate(documents, start=1):
        where = label if len(documents) == 1 else f"{label} document {position}"
        if not isinstance(document, dict):
            raise CommandError(f"{where}: a manifest is an object with apiVersion, kind, metadata and spec")
        if document.get("kind") != KIND:
            raise CommandError(f"{where}: kind {document.get('kind')!r} is not known here: write kind: {KIND}, apiVersion: {API_VERSION}")
        yield Origin(where, folder), _plain(document)


def _check(origin: Origin, document: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Problems of one document; makes its source absolute on the way."""
    _make_absolute(document, origin.folder)
    try:
        model = parse(document)
    except InvalidManifest as error:
        return [f"{origin.label}: {problem}" for problem in error.problems]
    document["metadata"]["namespace"] = NAMESPACE  # a machine has one
    try:
        resolve_source(model.spec.model.source, environment)
    except SourceMissing as error:
        return [f"{origin.label}: spec.model.source: {error}"]
    try:
        for draft in {variant.engine.speculative.draft for variant in model.variants} - {None}:
            resolve_source(str(draft), environment)
    except SourceMissing as error:
        return [f"{origin.label}: spec.engine.speculative.draft: {error}"]
    return [f"{origin.label}: spec.adapters[{at}].source: {problem}" for at, problem in _adapter_problems(model)]


def _adapter_problems(model: InferenceModel) -> Iterator[tuple[int, str]]:
    for at, adapter in enumerate(model.spec.adapters):
        try:
            check_adapter(adapter.source)
        except SourceMissing as error:
            yield at, str(error)


def _make_absolute(document: Mapping[str, Any], folder: Path) -> None:
    """file://./my-llama and file://my-llama count from the manifest's folder."""
    spec = document.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    adapters = spec.get("adapters") if isinstance(spec, dict) else None
    variants = spec.get("variants") if isinstance(spec, dict) else None
    engines = [each.get("engine") for each in [spec, *(variants if isinstance(variants, list) else ())] if isinstance(each, dict)]
    drafts = [each.get("speculative") for each in engines if isinstance(each, dict)]
    sources = [(given, "source") for given in [model, *(adapters if isinstance(adapters, list) else ())]]
    for given, field in [*sources, *((each, "draft") for each in drafts)]:
        if isinstance(given, dict) and isinstance(source := given.get(field), str) and source.startswith("file://"):
            given[field] = f"file://{(folder / Path(source.removeprefix('file://')).expanduser()).resolve()}"


def _plain(value: Any) -> Any:
    """YAML's dates as the text they were: JSON has none."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{what}, line {mark.line + 1} column {mark.column + 1}" if mark is not None else what
