"""Owns the result files of an evaluation: what was scored, on which machine, by which command, and whether the bars are met."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pagoda_bench.tiny.evaluation import Scores, table

EXACT_MATCH_BAR = 95.0
"""Percent each task must reach, in every dtype scored."""
LEAD_BAR = 30.0
"""Points each task must lie above the look-up."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One evaluation. Scores are percent of held-out items per task."""

    command: str
    items_per_task: int
    known_per_task: int
    """Training items per task in which the look-up searches."""
    target: Mapping[str, Scores]
    """By dtype."""
    lookup: Scores
    draft: Scores
    agreement: Scores
    """Percent of the target's greedy tokens that the draft would have proposed."""
    weight_bytes: Mapping[str, int]
    """Size of each model's `model.safetensors`."""
    seconds: float
    hardware: Mapping[str, object]

    @property
    def met(self) -> bool:
        return all(
            score >= EXACT_MATCH_BAR and score - self.lookup[task] >= LEAD_BAR
            for scores in self.target.values()
            for task, score in scores.items()
        )

    def markdown(self) -> str:
        columns = {f"target {dtype}": scores for dtype, scores in self.target.items()}
        columns |= {"look-up": self.lookup, "draft": self.draft, "draft agrees": self.agreement}
        sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in self.weight_bytes.items())
        machine = (
            f"{self.hardware['cpu']}, {self.hardware['threads']} threads, flags {self.hardware['flags']}, torch {self.hardware['torch']}"
        )
        bars = f"{EXACT_MATCH_BAR:.0f} % in each task and dtype, {LEAD_BAR:.0f} points above the look-up"
        return f"""# The tiny models on held-out questions

Percent of {self.items_per_task} held-out questions per task answered exactly, greedy decoding. Look-up: the answer of the most similar of
{self.known_per_task} training questions. Draft agrees: percent of the target's tokens that the draft proposes too.

{table(columns)}

Bars: {bars}: {"met" if self.met else "NOT met"}. Weights: {sizes}.

    {self.command}

took {self.seconds:.0f} s on {machine}.
"""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self) | {"met": self.met, "bars": {"exact_match": EXACT_MATCH_BAR, "lead": LEAD_BAR}}
        (folder / "tiny-evaluation.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "tiny-evaluation.md").write_text(self.markdown())


def hardware(threads: int, torch_version: str) -> dict[str, object]:
    """The processor as Linux names it, with the flags that decide how fast it multiplies."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    telling = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx2", "avx512_vnni", "avx512_bf16", "amx"))]
    return {"cpu": facts.get("model name", platform.processor()), "flags": " ".join(telling), "threads": threads, "torch": torch_version}
