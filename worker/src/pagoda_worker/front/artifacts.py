"""The text assets of a model folder as routers fetch them: tokenizer.json and the chat template, named by content hash.

Reads the folder once at start; knows no gRPC. Called by the service.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pagoda_worker.models.texts import read_texts

CHUNK_BYTES = 256 * 1024


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
    texts = read_texts(model_dir)
    return TextArtifacts(
        tokenizer=_artifact("tokenizer.json", texts.tokenizer.encode()),
        chat_template=_artifact("chat_template.jinja", texts.chat_template.encode()) if texts.chat_template else None,
        special_tokens_json=json.dumps(texts.special_tokens, ensure_ascii=False),
    )


def _artifact(name: str, content: bytes) -> TextArtifact:
    return TextArtifact(name, hashlib.sha256(content).hexdigest(), content)
