"""The text assets of a model folder as routers fetch them: tokenizer.json and the chat template, named by content hash.

Reads the folder once at start; knows no gRPC. Called by the service.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_worker.errors import ModelError

CHUNK_BYTES = 256 * 1024
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TextArtifact:
    name: str
    sha256: str
    content: bytes

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, len(self.content), CHUNK_BYTES):
            yield self.content[start : start + CHUNK_BYTES]


@dataclass(frozen=True, slots=True)
class TextArtifacts:
    tokenizer: TextArtifact
    chat_template: TextArtifact | None
    """None: the model has none; chat requests are the router's to refuse."""
    special_tokens_json: str

    def by_hash(self, sha256: str) -> TextArtifact | None:
        return next((each for each in (self.tokenizer, self.chat_template) if each is not None and each.sha256 == sha256), None)


def read_artifacts(model_dir: Path) -> TextArtifacts:
    """Raises ModelError naming the file at fault."""
    tokenizer_file = model_dir / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise ModelError(f"{tokenizer_file} does not exist: routers need a fast tokenizer's tokenizer.json beside the weights")
    config = _read_json(model_dir / "tokenizer_config.json")
    template_file = model_dir / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else _template_in(config)
    return TextArtifacts(
        tokenizer=_artifact("tokenizer.json", tokenizer_file.read_bytes()),
        chat_template=_artifact("chat_template.jinja", template.encode()) if template else None,
        special_tokens_json=json.dumps(_special_tokens(config), ensure_ascii=False),
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object")
    return content


def _template_in(config: dict[str, Any]) -> str:
    """Either one string, or a list of named ones of which `default` is for chat."""
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template", "") for each in template if isinstance(each, dict)}
        template = named.get("default") or ""
    return template if isinstance(template, str) else ""


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """A token is written as a string or as an object with its content."""
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _artifact(name: str, content: bytes) -> TextArtifact:
    return TextArtifact(name, hashlib.sha256(content).hexdigest(), content)
