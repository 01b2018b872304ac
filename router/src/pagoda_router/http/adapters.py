"""/admin/v1/adapters (and /admin/adapters) on the public port, for admin keys: list, load on every worker of a model, unload.

Owns what was loaded through this router and is in no manifest: a worker that comes later, or again, gets it too. One that another router
unloaded is forgotten. app.py checks the key; the calls are backends/adapters.py's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NoReturn, Protocol
from urllib.parse import parse_qs

import msgspec

from pagoda_router.backends.adapters import AdapterAnswer
from pagoda_router.backends.base import WorkerLink
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.errors import BadRequest, MethodNotAllowed, ModelNotFound, NoWorker
from pagoda_router.fleet import Fleet
from pagoda_router.generation import ModelName

PATHS = ("/admin/v1/adapters", "/admin/adapters")
LOOK_EVERY_S = 2.0
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]

log = logging.getLogger(__name__)


class LoadRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: Name
    """A served name of the base model."""
    name: Name
    source: Text


class AdapterCalls(Protocol):
    """Never raise: what went wrong is in the answer."""

    async def load(self, endpoint: Endpoint, name: str, source: str) -> AdapterAnswer: ...
    async def unload(self, endpoint: Endpoint, name: str) -> AdapterAnswer: ...


class AdapterAdmin:
    def __init__(self, fleet: Fleet, calls: AdapterCalls) -> None:
        self._fleet = fleet
        self._calls = calls
        self._wishes: dict[tuple[ModelName, str], str] = {}
        """Source of what was loaded through this router, by model and name."""
        self._had: set[tuple[str, str]] = set()
        """(life of a worker, name): it had it once, so where it has it no more somebody unloaded it."""
        self._missed: set[tuple[str, str]] = set()
        """Of them, those that lacked it at the last look. A worker tells of it a moment after its answer, so one look proves nothing."""
        self._refused: set[tuple[str, str]] = set()
        """(life of a worker, name) that is not asked again."""

    async def answer(self, method: str, path: str, query: bytes, body: bytes) -> tuple[int, bytes]:
        """Status and JSON. `path`: one of PATHS, or a name below it. Raises BadRequest, ModelNotFound, NoWorker, MethodNotAllowed."""
        root = next(each for each in PATHS if path == each or path.startswith(each + "/"))
        name = path.removeprefix(root).removeprefix("/")
        if method == "GET" and not name:
            return 200, msgspec.json.encode({"object": "list", "data": self.documents()})
        if method == "POST" and not name:
            return await self._load(body)
        if method == "DELETE" and name:
            return await self._unload(name, query)
        takes = f"{root} takes GET and POST, {root}/NAME takes DELETE"
        raise MethodNotAllowed(f"{takes}, not {method[:20]}", allow="DELETE" if name else "GET, POST")

    def documents(self) -> list[dict[str, Any]]:
        """Every adapter of every model, and the workers that have it."""
        documents = []
        for entry in self._fleet.list():
            if entry.adapter:
                having = [link for link in self._fleet.links(entry.model) if entry.adapter in link.adapters]
                facts = having[0].adapters[entry.adapter] if having else None
                documents.append(
                    {
                        "object": "adapter",
                        "name": entry.adapter,
                        "model": entry.parent,
                        "source": entry.root,
                        "rank": None if facts is None else facts.rank,
                        "version": None if facts is None else facts.version,
                        "size_bytes": None if facts is None else facts.size_bytes,
                        "declared": self._is_declared(entry.model, entry.adapter),
                        "workers": [_worker(link, entry.adapter) for link in having],
                    }
                )
        return documents

    async def _load(self, body: bytes) -> tuple[int, bytes]:
        try:
            asked = msgspec.json.decode(body, type=LoadRequest)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"this is no adapter to be loaded: {error}") from None
        entry = self._fleet.get(asked.model)
        if entry.adapter:
            raise BadRequest(f"{asked.model} is an adapter itself: name its model, {entry.parent}", param="model")
        self._check_free(entry.model, asked.name)
        answers = await self._of_all(entry.model, lambda link: self._load_on(link, asked.name, asked.source))
        failed = [answer for answer in answers if answer.error]
        if len(failed) == len(answers):
            _raise(failed[0])
        self._wishes[entry.model, asked.name] = asked.source
        loaded = {"object": "adapter", "name": asked.name, "model": asked.model, "source": asked.source}
        return 207 if failed else 200, msgspec.json.encode({**loaded, "workers": [_told(answer) for answer in answers]})

    async def _load_on(self, link: WorkerLink, name: str, source: str) -> AdapterAnswer:
        answer = await self._calls.load(link.endpoint, name, source)
        if not answer.error:  # remembered now, not at the next look: another router may unload it before that
            self._had.add((link.life, name))
            self._missed.discard((link.life, name))
        return answer

    async def _unload(self, name: str, query: bytes) -> tuple[int, bytes]:
        known = {each.adapter: each for each in self._fleet.list() if each.adapter}
        entry = known.get(name)
        given = parse_qs(query.decode("latin-1")).get("model", [])
        if entry is None or (given and self._fleet.get(given[0]).model != entry.model):
            of = f" of {given[0][:200]}" if given else ""
            raise ModelNotFound(f"there is no adapter {name[:200]!r}{of}; there is: {', '.join(sorted(known)) or 'none'}", param="name")
        if self._is_declared(entry.model, name):
            raise BadRequest(f"{name} is declared in spec.adapters of {entry.model}: remove it there", param="name")
        self._wishes.pop((entry.model, name), None)
        links = [link for link in self._fleet.links(entry.model) if name in link.adapters]
        answers = await asyncio.gather(*(self._calls.unload(link.endpoint, name) for link in links))
        failed = [answer for answer in answers if answer.error]
        unloaded = {"object": "adapter", "name": name, "model": entry.parent, "unloaded": not failed}
        return 207 if failed else 200, msgspec.json.encode({**unloaded, "workers": [_told(answer) for answer in answers]})

    def _check_free(self, model: ModelName, name: str) -> None:
        """A name means one thing. Raises BadRequest."""
        try:
            taken = self._fleet.get(name)
        except ModelNotFound:
            return
        if not taken.adapter or taken.model != model:
            what = f"an adapter of {taken.parent}" if taken.adapter else "a model"
            raise BadRequest(f"{name} is the name of {what} already: choose another", param="name")
        if self._is_declared(model, name):
            raise BadRequest(f"{name} is declared in spec.adapters of {model}: change it there", param="name")

    def _is_declared(self, model: ModelName, name: str) -> bool:
        return any(each.name == name for each in self._fleet.model(model).adapters)

    async def _of_all(self, model: ModelName, ask: Callable[[WorkerLink], Awaitable[AdapterAnswer]]) -> Sequence[AdapterAnswer]:
        links = [link for link in self._fleet.links(model) if link.routable]
        if not links:
            raise NoWorker(f"{model} has no worker now, and what is loaded lies on workers: declare it in spec.adapters, or wake the model")
        return await asyncio.gather(*(ask(link) for link in links))

    # ------------------------------------------------------------ workers that come later

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception:  # the loop's outermost line
                log.exception("adapters: looking after new workers failed")

    async def look(self) -> None:
        """Once over all workers: who lacks what was loaded gets it, unless somebody took it away."""
        for (model, name), source in list(self._wishes.items()):
            links = [link for link in self._fleet.links(model) if link.routable]
            if any(self._took_away(link, name) for link in links):
                self._wishes.pop((model, name), None)
                log.info("adapter %s of %s was unloaded by somebody else: it is not loaded on new workers any more", name, model)
                continue
            for link in links:
                key = link.life, name
                if name not in link.adapters and key not in self._had and key not in self._refused:
                    answer = await self._load_on(link, name, source)
                    if answer.error:
                        log.warning("adapter %s cannot be loaded on %s: %s", name, link.worker, answer.error)
                        self._refused.add(key)

    def _took_away(self, link: WorkerLink, name: str) -> bool:
        """Whether somebody unloaded it from a worker that had it: it lacks it for the second look in a row."""
        key = link.life, name
        if name in link.adapters:
            self._had.add(key)
            self._missed.discard(key)
            return False
        if key not in self._had:
            return False
        if key not in self._missed:
            self._missed.add(key)
            return False
        self._had.discard(key)
        self._missed.discard(key)
        return True


def _worker(link: WorkerLink, name: str) -> dict[str, Any]:
    return {"worker": link.endpoint.name, "resident": link.adapters[name].resident, "version": link.adapters[name].version}


def _told(answer: AdapterAnswer) -> dict[str, Any]:
    told: dict[str, Any] = {"worker": answer.worker, "rank": answer.rank, "version": answer.version, "error": answer.error}
    return {name: value for name, value in told.items() if value not in (None, "")}


def _raise(answer: AdapterAnswer) -> NoReturn:
    if answer.is_client_fault:
        raise BadRequest(answer.error, param="source")
    raise NoWorker(answer.error)
