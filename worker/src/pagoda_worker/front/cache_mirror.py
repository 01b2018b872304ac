"""What the engine's prefix cache holds, kept beside it so that a router that connects later hears all of it, in bounded messages.

Fed by the switchboard with each step's changes; knows no sessions.
"""

from collections.abc import Iterator, Sequence

from pagoda_worker.request import CacheChanges
from pagoda_worker.scheduling.blocks import HASH_VERSION
from pagoda_worker.wire import worker_pb2 as pb

MOST_HASHES = 2048
"""In one event: 32 KB, so that a large cache is told between other frames and not before them."""


class CacheMirror:
    def __init__(self, model: str) -> None:
        self.block_size = 0
        """Of the loaded engine."""
        self._model = model
        self._known: dict[bytes, None] = {}
        """In the order in which they became known: a parent before its child."""

    def __len__(self) -> int:
        return len(self._known)

    def apply(self, changes: CacheChanges) -> list[pb.CacheEvent]:
        events = self.clear() if changes.cleared else []
        for known in changes.removed:
            self._known.pop(known, None)
        self._known.update(dict.fromkeys(changes.stored))
        events += self._events(pb.CacheEvent.REMOVED, changes.removed)
        events += self._events(pb.CacheEvent.STORED, changes.stored)
        return events

    def clear(self) -> list[pb.CacheEvent]:
        """The engine lost all of it."""
        self._known.clear()
        return [pb.CacheEvent(kind=pb.CacheEvent.CLEARED, model=self._model, block_size=self.block_size, hash_version=HASH_VERSION)]

    def whole(self) -> list[pb.CacheEvent]:
        """For a router that knows nothing yet."""
        return list(self._events(pb.CacheEvent.STORED, list(self._known)))

    def _events(self, kind: "pb.CacheEvent.Kind.ValueType", hashes: Sequence[bytes]) -> Iterator[pb.CacheEvent]:
        for start in range(0, len(hashes), MOST_HASHES):
            yield pb.CacheEvent(
                kind=kind,
                model=self._model,
                block_size=self.block_size,
                hash_version=HASH_VERSION,
                block_hashes=b"".join(hashes[start : start + MOST_HASHES]),
            )
