"""What one run of the bench is told, parsed once. Built by command.py and quick.py, read by run.py."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pagoda_bench.load.prompts import Endpoint
from pagoda_bench.load.scenarios import Lengths, Scenario
from pagoda_bench.load.slo import Slo

LevelKind = Literal["closed", "poisson", "trace"]


@dataclass(frozen=True, slots=True)
class Level:
    """One load to measure at."""

    kind: LevelKind
    amount: float
    """Users of a closed loop; arrivals a second of a Poisson process; speed of a trace, 1 as recorded."""

    @property
    def label(self) -> str:
        return f"{'c' if self.kind == 'closed' else 'rate' if self.kind == 'poisson' else 'trace'}={self.amount:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    url: str
    api_key: str | None = None
    model: str | None = None
    """None: the only one the server has."""
    endpoint: Endpoint = "completions"
    system: str | None = None
    """Name of the server in results. None: as the server's list of models says (`owned_by`)."""
    label: str | None = None
    """Opens every case; None: the scenario."""
    scenario: Scenario = Scenario.SHORT
    lengths: Lengths = field(default_factory=Lengths)
    levels: tuple[Level, ...]
    rounds: int = 1
    """Every level is measured so often, in turn."""
    requests_per_user: int | None = 6
    """Conversations of each user of a closed loop, beyond the warm-up. None: until the duration is over."""
    duration_s: float | None = None
    """Of sending after the warm-up. None: closed loops end by count, open loops last 30 s."""
    warm_up: bool = True
    """Closed: each user's first conversation counts for nothing. Open: the first fifth of the time, at most 10 s."""
    ramp_s: float = 0.0
    """Over which the users of a closed loop start. 0: at once, and with answers of one length they stay in step."""
    trace: Path | None = None
    max_requests: int | None = None
    """Of a trace."""
    slo: Slo | None = None
    tokenizer: Path | None = None
    seed: int = 0
    """Draws lengths and arrivals."""
    prompt_seed: str = field(default_factory=lambda: secrets.token_hex(4))
    """Draws the prompts themselves; another one each run, so that nothing is in a prefix cache that should not be."""
    timeout_s: float = 600.0

    @property
    def case_prefix(self) -> str:
        return self.label or str(self.scenario)

    def open_duration_s(self) -> float:
        return 30.0 if self.duration_s is None else self.duration_s
