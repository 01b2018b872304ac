"""Tokenizers and chat templates on disk, named by the sha256 of their bytes, and what each model last said of itself.

Owns the cache folder: everything in it was verified and written by rename, so a crash leaves whole files only and several routers may
share it. Knows no network: the worker's link brings the bytes. Descriptions persist so that a model whose workers sleep can still be
tokenized for.
"""

import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path

import msgspec

from pagoda_router.catalog import TextAssets

log = logging.getLogger(__name__)

MAX_ARTIFACT_BYTES = 256 * 2**20


class BadArtifact(Exception):
    """What a worker sent is not what it named."""


class StoredDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a worker's description that outlives it."""

    source: str
    """spec.model.source at that time; another source makes the record stale."""
    tokenizer_sha256: str
    chat_template_sha256: str | None
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    vocab_size: int
    max_model_len: int
    max_sequences_per_request: int
    max_top_logprobs: int
    features: tuple[str, ...] | None = None


class ArtifactCache:
    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder cannot be made."""
        self._folder = folder
        self._verified: set[str] = set()
        (folder / "models").mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BadArtifact(f"{sha256!r} is not a sha256 in hex")
        return self._folder / sha256

    def has(self, sha256: str) -> bool:
        """True when the file is there and hashes to its name. Reads it once per process; blocking."""
        path = self.path(sha256)
        if sha256 in self._verified and path.exists():
            return True
        try:
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        except OSError:
            return False
        if whole:
            self._verified.add(sha256)
        else:
            log.warning("artifacts: %s does not hash to its name, it will be fetched again", path)
        return whole

    def store(self, sha256: str, content: bytes) -> None:
        """Blocking."""
        path = self.path(sha256)
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise BadArtifact(f"the worker sent {len(content)} bytes that hash to {found}, not to {sha256}")
        self._write(path, content)
        self._verified.add(sha256)

    def remember(self, model: str, description: StoredDescription) -> None:
        """Blocking."""
        self._write(self._model_file(model), msgspec.json.encode(description))

    def recall(self, model: str, source: str) -> TextAssets | None:
        """What was remembered for this source, if its files are still whole. Blocking, small."""
        try:
            stored = msgspec.json.decode(self._model_file(model).read_bytes(), type=StoredDescription)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("artifacts: the stored description of %s is unusable: %s", model, error)
            return None
        hashes = [stored.tokenizer_sha256, stored.chat_template_sha256]
        if stored.source != source or not all(self.has(sha256) for sha256 in hashes if sha256 is not None):
            return None
        return self.assets(stored)

    def assets(self, stored: StoredDescription) -> TextAssets:
        """Blocking: reads the template."""
        template = stored.chat_template_sha256
        return TextAssets(
            tokenizer_file=str(self.path(stored.tokenizer_sha256)),
            chat_template=None if template is None else self.path(template).read_text(encoding="utf-8"),
            special_tokens=stored.special_tokens,
            eos_token_ids=stored.eos_token_ids,
            bos_token_id=stored.bos_token_id,
            vocab_size=stored.vocab_size,
            max_model_len=stored.max_model_len,
            max_sequences_per_request=stored.max_sequences_per_request,
            max_top_logprobs=stored.max_top_logprobs,
            features=None if stored.features is None else frozenset(stored.features),
        )

    def _model_file(self, model: str) -> Path:
        return self._folder / "models" / f"{hashlib.sha256(model.encode()).hexdigest()[:32]}.json"

    def _write(self, path: Path, content: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
