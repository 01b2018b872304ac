"""The state folder ($PAGODA_HOME) and what lies where in it. Paths only; whoever uses a path reads and writes it.

One supervisor per folder. Its path decides the run id's first half, so that orphans are found even when the folder's files are lost.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pagoda_operator.local.errors import Unwritable

SOCKET_PATH_BYTES = 100
"""Linux takes 107 bytes in sun_path; above this the socket moves to a short folder."""


@dataclass(frozen=True, slots=True)
class Home:
    path: Path

    @property
    def state_file(self) -> Path:
        """The objects with their status, and the settings of the last `up`."""
        return self.path / "state.json"

    @property
    def fleet_file(self) -> Path:
        """What the router reads."""
        return self.path / "fleet.json"

    @property
    def supervisor_file(self) -> Path:
        """pid, start time, version and socket of the supervisor; stale when that process is gone."""
        return self.path / "supervisor.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor for as long as it lives."""
        return self.path / "supervisor.lock"

    @property
    def launch_lock(self) -> Path:
        """Locked by a command while it makes sure that a supervisor runs."""
        return self.path / "launch.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def prometheus(self) -> Path:
        """A configuration for Prometheus: targets, and rules of the models."""
        return self.path / "prometheus"

    @property
    def cache(self) -> Path:
        """The router's tokenizers and chat templates."""
        return self.path / "cache"

    @property
    def models(self) -> Path:
        """Weights that were fetched."""
        return self.cache / "models"

    @property
    def digest(self) -> str:
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]

    @property
    def socket(self) -> Path:
        inside = self.path / "supervisor.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES:
            return inside
        return Path(tempfile.gettempdir()) / f"pagoda-{os.getuid()}-{self.digest}" / "supervisor.sock"

    def new_run_id(self) -> str:
        """Carried by the supervisor and all its children in PAGODA_RUN_ID."""
        return f"{self.digest}-{secrets.token_hex(4)}"

    def owns_run(self, run_id: str) -> bool:
        return run_id.startswith(f"{self.digest}-")

    def create(self) -> None:
        """Raises Unwritable."""
        try:
            for folder in (self.path, self.logs, self.secrets, self.prometheus, self.cache, self.models):
                folder.mkdir(parents=True, exist_ok=True)
            for private in (self.path, self.secrets):
                private.chmod(0o700)
        except OSError as error:
            raise Unwritable(self.path, error) from error


def home_from(environment: Mapping[str, str]) -> Home:
    """$PAGODA_HOME, else pagoda/ under the XDG state folder."""
    if chosen := environment.get("PAGODA_HOME"):
        return Home(Path(chosen).expanduser().resolve())
    state = environment.get("XDG_STATE_HOME") or ""
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local/state"
    return Home((base / "pagoda").resolve())
