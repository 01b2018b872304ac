"""s3:// by obstore, in ranged reads of a few MiB: a cut connection costs at most one of them. Called by step.py.

Credentials, region and the like come from AWS_* variables, read by obstore itself; without any, requests are anonymous.
"""

import hashlib
import os
import re
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from pagoda_worker.errors import AccessDenied, ConnectionLost, FetchError, SourceMissing
from pagoda_worker.fetch.origin import Bytes, Choose, Listing, RemoteFile, choose
from pagoda_worker.settings.model_cache import RemoteSource

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

PIECE_BYTES = 8 << 20
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class Bucket:
    def __init__(self, source: RemoteSource, *, endpoint: str, choose: Choose = choose) -> None:
        self._choose = choose
        self._source = source
        self._endpoint = endpoint
        config: S3Config = {}
        if endpoint:
            config["endpoint"] = endpoint
        if not any(os.environ.get(name) for name in CREDENTIALS):
            config["skip_signature"] = True
        client: ClientConfig = {"allow_http": endpoint.startswith("http://"), "connect_timeout": "10s", "timeout": "60s"}
        retry: RetryConfig = {"max_retries": 1}  # ours are counted and told
        self._store = S3Store(source.bucket, config=config, client_options=client, retry_config=retry)

    def resolve(self) -> Listing:
        """An object's version is its ETag; the folder's commit a hash over all of them, so that changed objects are another commit."""
        there: dict[str, RemoteFile] = {}
        folder = f"{self._source.prefix}/"
        try:
            for page in obstore.list(self._store, prefix=self._source.prefix):
                for each in page:
                    name = each["path"].removeprefix(folder)
                    if each["path"].startswith(folder) and "/" not in name:
                        there[name] = RemoteFile(name, each["size"], version=each["e_tag"] or "")
        except (BaseError, OSError) as error:
            raise self._explain(error, "its list of objects") from error
        if not there:
            raise SourceMissing(f"{self._source} holds no objects: correct the bucket or the folder")
        files = self._choose(str(self._source), there, self.read)
        facts = "\n".join(f"{file.name} {file.size} {file.version}" for file in sorted(files, key=lambda file: file.name))
        return Listing(hashlib.sha256(facts.encode()).hexdigest()[:40], files)

    def read(self, file: RemoteFile, offset: int) -> Bytes:
        path = f"{self._source.prefix}/{file.name}"
        while offset < file.size:
            end = min(offset + PIECE_BYTES, file.size)
            try:
                answer = obstore.get(self._store, path, options={"range": (offset, end), "if_match": file.version or None})
                piece = bytes(answer.bytes())
            except (BaseError, OSError) as error:
                raise self._explain(error, file.name) from error
            if not piece:
                raise ConnectionLost(f"{file.name}: the server sent nothing for bytes {offset} to {end}")
            yield piece
            offset += len(piece)

    def close(self) -> None:
        """The store has nothing to close."""

    def _explain(self, error: Exception, what: str) -> FetchError:
        status = _status(error)
        if isinstance(error, PreconditionError):
            return FetchError(f"{self._source}: {what} changed while it was fetched; the next start takes the new one")
        if isinstance(error, NotFoundError | FileNotFoundError) or status == 404:
            return SourceMissing(f"{self._source}: {what} is not there: correct the bucket or the folder")
        if isinstance(error, UnauthenticatedError | PermissionDeniedError | PermissionError) or status in (401, 403):
            return AccessDenied(
                f"{self._source}: {what} was refused: name a secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                f"in spec.model.credentialsSecretRef"
            )
        if 300 <= status < 500 and status != 429:
            region = ": is AWS_REGION the bucket's?" if status < 400 else ""
            return FetchError(f"{self._source}: the server answered {status} for {what}{region}")
        return ConnectionLost(f"{what} of {self._source}: {_first_line(error)}")


def _status(error: Exception) -> int:
    """obstore tells it in words only; 0 without one."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else 0


def _first_line(error: Exception) -> str:
    """obstore adds a dump of the error below its sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
