"""Where weights come from, `spec.model` and `spec.adapters`: whose, with whose rights, and where they are kept. Parsed, without I/O.

Called by `spec.parse` with values that are known to be right; `render/weights.py` says how they come into a pod.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda_operator.manifest.given import given
from pagoda_operator.manifest.quantities import parse_quantity

FETCHED = ("hf", "s3")
"""Schemes whose weights a fetch step brings before the worker starts."""


def is_fetched(source: str) -> bool:
    return source.partition("://")[0] in FETCHED


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretKey:
    name: str
    key: str = "token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """A volume that keeps fetched weights, shared by a model's workers. Exactly one of claim and size_bytes is set."""

    claim: str | None = None
    """A PersistentVolumeClaim that exists."""
    size_bytes: int | None = None
    """Of the claim that is made for the model."""
    storage_class: str | None = None
    """None: the cluster's default."""
    access_mode: str = "ReadWriteMany"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where files are: a scheme and what it leads to."""

    source: str
    revision: str | None = None
    """Branch, tag or commit of a hub's repository. None: main."""

    @property
    def scheme(self) -> str:
        """builtin | file | hf | s3 | pvc"""
        return self.source.partition("://")[0]

    @property
    def location(self) -> str:
        """What follows "://": a name, an absolute folder, ORG/NAME, BUCKET/PREFIX, CLAIM/FOLDER."""
        return self.source.partition("://")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource(Source):
    endpoint: str | None = None
    """Of the hub or the S3 server. None: the public one."""
    token_secret: SecretKey | None = None
    credentials_secret: str | None = None
    """Its keys are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN and AWS_REGION."""
    cache: Cache | None = None
    """None: each worker fetches into a folder of its own pod."""

    @property
    def fetched(self) -> bool:
        return self.scheme in FETCHED


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter(Source):
    """A LoRA adapter of the model."""

    name: str


def source(written: Mapping[str, Any]) -> ModelSource:
    token, credentials, cache = written.get("tokenSecretRef"), written.get("credentialsSecretRef"), written.get("cache")
    return ModelSource(
        **given(written, source="source", revision="revision", endpoint="endpoint"),
        token_secret=None if token is None else SecretKey(**given(token, name="name", key="key")),
        credentials_secret=None if credentials is None else credentials["name"],
        cache=None if cache is None else _cache(cache),
    )


def adapter(written: Mapping[str, Any]) -> Adapter:
    return Adapter(**given(written, name="name", source="source", revision="revision"))


def _cache(written: Mapping[str, Any]) -> Cache:
    size = written.get("size")
    return Cache(
        **given(written, claim="claim", storage_class="storageClass", access_mode="accessMode"),
        size_bytes=None if size is None else math.ceil(parse_quantity(size)),
    )
