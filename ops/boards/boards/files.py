"""What is generated, and where it lies: boards and alerts within the chart, as Helm reads only there. Called by __main__ and a test."""

import json
from fractions import Fraction
from pathlib import Path

import yaml

from boards import admission, cost, engine, fleet, gpu, placement, slo
from boards.grafana import Board
from pagoda_operator.manifest.promises import Slo
from pagoda_operator.render.slo_rules import slo_groups

ROOT = Path(__file__).resolve().parents[3]
OPS = ROOT / "ops"
CHART = ROOT / "charts/pagoda/files"
BOARDS: tuple[Board, ...] = tuple(module.BOARD for module in (fleet, slo, admission, placement, engine, gpu, cost))

EXAMPLE = Slo(ttft_s=0.5, tpot_s=0.05, objective=Fraction(99, 100))
EXAMPLE_HEAD = """\
# What the operator makes of spec.slo {ttft: 500ms, tpot: 50ms, objective: "99%"} of the model `chat` in the namespace `models`.
# Generated: python ops/boards. For a Prometheus without its operator, write your names and numbers in.
"""


def generated() -> dict[Path, str]:
    texts = {f"{board.uid.removeprefix('pagoda-')}.json": json.dumps(board.json(), indent=1, ensure_ascii=False) + "\n" for board in BOARDS}
    example = EXAMPLE_HEAD + yaml.dump({"groups": slo_groups("models", "chat", EXAMPLE)}, Dumper=Literal, sort_keys=False, width=1000)
    return {
        **{CHART / "dashboards" / name: text for name, text in texts.items()},
        OPS / "rules/slo-example.yaml": example,
        CHART / "alerts.yaml": (OPS / "rules/alerts.yaml").read_text(),
    }


def outdated() -> list[Path]:
    """Generated files that are missing, differ, or that nothing generates any more."""
    wanted = generated()
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    there = (CHART / "dashboards").glob("*.json")
    return sorted({*differing, *(path for path in there if path not in wanted)})


def write() -> None:
    wanted = generated()
    for path in outdated():
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        else:
            path.unlink()


class Literal(yaml.SafeDumper):
    """Queries of several lines stay readable."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Literal.add_representer(str, _text)
