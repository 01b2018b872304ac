"""Secrets of the local stack: one file of mode 0600 each, made at first use. The cluster's Secret objects. Called by executor.py."""

import secrets
from pathlib import Path

from pagoda_operator.local.files import write_whole
from pagoda_operator.local.template import SecretKey
from pagoda_operator.render.pods import API_KEY_SECRET


class SecretFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, str] = {}

    def reveal(self, key: SecretKey) -> str | None:
        """The value. A missing optional one is None, a missing required one is generated."""
        path = self.file_of(key)
        if path not in self._known:
            if path.exists():
                self._known[path] = path.read_text()
            elif key.optional:
                return None
            else:
                self._known[path] = secrets.token_urlsafe(32)
                write_whole(path, self._known[path])
        return self._known[path]

    def given(self, key: SecretKey) -> str | None:
        """The value of a secret that only people can make. None: there is no such file."""
        path = self.file_of(key)
        return path.read_text().strip() if path.exists() else None

    def file_of(self, key: SecretKey) -> Path:
        return self._folder / f"{key.secret}.{key.key}"

    def forget(self) -> None:
        """Files are read again: somebody changed one."""
        self._known.clear()


def api_key_file(folder: Path) -> Path:
    return folder / ".".join(API_KEY_SECRET)


def read_api_key(folder: Path) -> str | None:
    path = api_key_file(folder)
    return path.read_text() if path.exists() else None
