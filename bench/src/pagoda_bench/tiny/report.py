"""Owns the result files of an evaluation: what was scored, on which machine, by which command, and whether the bars are met."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.results import Row, result_here, write
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

    def rows(self) -> Iterator[Row]:
        for dtype, scores in self.target.items():
            for task, score in scores.items():
                yield _row(task, f"tiny-{dtype}", "exact_match_percent", score, aim=EXACT_MATCH_BAR)
                yield _row(task, f"tiny-{dtype}", "lead_over_lookup_points", score - self.lookup[task], aim=LEAD_BAR)
        for task, score in self.lookup.items():
            yield _row(task, "look-up", "exact_match_percent", score)
        for task, score in self.draft.items():
            yield _row(task, "tiny-draft", "exact_match_percent", score)
            yield _row(task, "tiny-draft", "proposes_targets_token_percent", self.agreement[task])

    def write(self, folder: Path) -> None:
        sizes = ", ".join(f"{name} {size} bytes" for name, size in self.weight_bytes.items())
        notes = (f"{self.items_per_task} held-out items a task; the look-up searches {self.known_per_task}", f"weights: {sizes}")
        result = result_here("tiny-evaluation", self.rows(), command=self.command, packages=("torch",), notes=notes)
        write(result, folder / "tiny-evaluation.json")
        (folder / "tiny-evaluation.md").write_text(self.markdown())


def _row(task: str, system: str, metric: str, value: float, *, aim: float | None = None) -> Row:
    aimed = {} if aim is None else {"aim": f">= {aim:g}", "met": value >= aim}
    return Row(case=task, system=system, metric=metric, value=round(value, 2), unit=metric.rpartition("_")[2], **aimed)  # type: ignore[arg-type]


def hardware(threads: int, torch_version: str) -> dict[str, object]:
    """The processor as Linux names it, with the flags that decide how fast it multiplies."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    telling = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx2", "avx512_vnni", "avx512_bf16", "amx"))]
    return {"cpu": facts.get("model name", platform.processor()), "flags": " ".join(telling), "threads": threads, "torch": torch_version}
