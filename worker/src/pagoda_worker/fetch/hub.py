"""hf:// by huggingface_hub: its client resolves revisions and lists files; bytes are read here. Called by step.py.

NOTE: its own download starts a file that was cut off by a kill from 0 again, and leaves what it had: huggingface_hub #4196.
"""

import httpx2
from huggingface_hub import HfApi, close_session, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling

from pagoda_worker.errors import AccessDenied, ConnectionLost, FetchError, SourceMissing
from pagoda_worker.fetch.origin import Bytes, Choose, Digest, Listing, RemoteFile, choose
from pagoda_worker.settings.model_cache import RemoteSource, is_commit

PUBLIC = "https://huggingface.co"
TIMEOUT_S = 30.0
"""Without a byte."""
RESOLVE_TIMEOUT_S = 10.0
"""For the list of files: with a complete copy at hand, a hub that does not answer must not hold up a start for long."""
CHUNK_BYTES = 1 << 20
LONGEST_WAIT_S = 120.0


class Hub:
    def __init__(self, source: RemoteSource, revision: str, *, endpoint: str, token: str, choose: Choose = choose) -> None:
        self._choose = choose
        self._source = source
        self._revision = revision
        self._endpoint = endpoint or PUBLIC
        self._has_token = bool(token)
        # token=False: whatever a home folder or HF_TOKEN holds is not meant for this
        self._api = HfApi(endpoint=self._endpoint, token=token or False, library_name="pagoda")
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        # redirects to another host go without the token: httpx2 sees to that
        self._client = httpx2.Client(
            headers={"Accept-Encoding": "identity", "User-Agent": "pagoda", **bearer}, timeout=TIMEOUT_S, follow_redirects=True
        )
        self._commit = ""

    def resolve(self) -> Listing:
        try:
            info = self._api.model_info(self._source.path, revision=self._revision, files_metadata=True, timeout=RESOLVE_TIMEOUT_S)
        except HfHubHTTPError as error:
            raise self._explain(error) from error
        except HFValidationError as error:
            raise SourceMissing(f"{self._source}: {error}") from error
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise ConnectionLost(f"{self._endpoint} cannot be asked: {_describe(error)}") from error
        if info.sha is None or not is_commit(info.sha):
            raise FetchError(f"{self._endpoint} names no commit for {self._source} at {self._revision}")
        self._commit = info.sha
        there: dict[str, RemoteFile] = {}
        for each in info.siblings or ():
            if each.size is not None:
                there[each.rfilename] = RemoteFile(each.rfilename, each.size, _digest(each))
        return Listing(info.sha, self._choose(str(self._source), there, self.read))

    def read(self, file: RemoteFile, offset: int) -> Bytes:
        url = hf_hub_url(self._source.path, file.name, revision=self._commit, endpoint=self._endpoint)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._client.stream("GET", url, headers=headers) as answer:
                self._check(answer, file, offset)
                yield from answer.iter_raw(CHUNK_BYTES)
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise ConnectionLost(f"{file.name}: {_describe(error)}") from error

    def close(self) -> None:
        self._client.close()
        close_session()

    def _check(self, answer: httpx2.Response, file: RemoteFile, offset: int) -> None:
        status = answer.status_code
        if status == 416 or (offset and status == 200):
            raise ConnectionLost(f"{file.name}: the server does not go on from byte {offset}", refused_range=True)
        if status in (401, 403):
            gated = answer.headers.get("X-Error-Code") == "GatedRepo"  # its listing is open to all, its files are not
            raise self._gated() if gated else self._denied(f"{status} for {file.name}")
        if status == 404:
            raise SourceMissing(f"{self._source}: {file.name} is listed but not there")
        if status == 429 or status >= 500:
            raise ConnectionLost(f"{file.name}: the server answered {status}", after_s=_retry_after(answer.headers.get("Retry-After")))
        if status not in (200, 206):
            raise FetchError(f"{self._source}: the server answered {status} for {file.name}")

    def _explain(self, error: HfHubHTTPError) -> FetchError:
        status = error.response.status_code if error.response is not None else 0
        if isinstance(error, GatedRepoError):
            return self._gated()
        if isinstance(error, RevisionNotFoundError):
            return SourceMissing(f"{self._source} has no revision {self._revision}: correct spec.model.revision")
        if isinstance(error, RepositoryNotFoundError) and (status == 404 or not self._has_token):
            private = "" if self._has_token else ", or it is private: then name a token in spec.model.tokenSecretRef"
            return SourceMissing(f"{self._source} is not on {self._endpoint}: correct the name{private}")
        if status in (401, 403):
            return self._denied(str(status))
        if status == 429 or status >= 500:
            after_s = _retry_after(error.response.headers.get("Retry-After")) if error.response is not None else 0.0
            return ConnectionLost(f"{self._endpoint} answered {status}", after_s=after_s)
        return FetchError(f"{self._endpoint} answered {status} for {self._source}")

    def _gated(self) -> AccessDenied:
        given = ", the given one has none" if self._has_token else ""
        return AccessDenied(
            f"{self._source} is gated: accept its terms on the hub and name a token with access in spec.model.tokenSecretRef{given}"
        )

    def _denied(self, what: str) -> AccessDenied:
        token = (
            "the token of spec.model.tokenSecretRef is wrong or has no access"
            if self._has_token
            else "name a token in spec.model.tokenSecretRef"
        )
        return AccessDenied(f"{self._source} was refused ({what}): {token}")


def _digest(file: RepoSibling) -> Digest | None:
    if file.lfs is not None:
        return "sha256", file.lfs.sha256
    return ("git", file.blob_id) if file.blob_id else None


def _retry_after(text: str | None) -> float:
    """Seconds; a date is not read."""
    return min(float(text), LONGEST_WAIT_S) if text and text.isdigit() else 0.0


def _describe(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
