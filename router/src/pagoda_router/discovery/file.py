"""Watches a fleet file that its writer replaces by rename, and hands each good snapshot on. Owns the last good one.

A missing, half-written or too new file changes nothing: what was known stays in force, and the complaint is logged once per cause.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

from pagoda_router.discovery.snapshot import BadSnapshot, FleetSnapshot, parse_snapshot

log = logging.getLogger(__name__)

POLL_S = 0.1
"""One stat each; a change is seen well within the 200 ms that a supervisor may count on."""


class FileDiscovery:
    def __init__(self, path: Path, on_snapshot: Callable[[FleetSnapshot], None]) -> None:
        self._path = path
        self._on_snapshot = on_snapshot
        self._seen: tuple[int, int, int] | None = None
        self._complaint = ""
        self.loaded = False
        """A good snapshot was read at least once."""

    async def run(self) -> None:
        while True:
            try:
                self.poll()
            except Exception:  # the loop's outermost line: a bug costs this snapshot, not the watch
                log.exception("fleet: internal error while reading %s", self._path)
            await asyncio.sleep(POLL_S)

    def poll(self) -> None:
        """Reads the file when it changed since the last look."""
        try:
            stat = self._path.stat()
            identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if identity == self._seen:
                return
            document = json.loads(self._path.read_bytes())
            snapshot = parse_snapshot(document)
        except FileNotFoundError:
            self._complain(f"{self._path} does not exist yet")
            return
        except (OSError, ValueError, RecursionError, BadSnapshot) as error:
            self._complain(f"{self._path} is unusable, the last good fleet stays in force: {error}")
            return
        self._seen = identity
        self._complain("; ".join(snapshot.problems))
        self.loaded = True
        self._on_snapshot(snapshot)

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            log.warning("fleet: %s", complaint)
        self._complaint = complaint
