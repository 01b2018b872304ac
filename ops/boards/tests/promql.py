"""As much of PromQL's grammar as tests need: which series a query selects, and how."""

import re
from dataclasses import dataclass

STRING = r'"(?:[^"\\]|\\.)*"'
SELECTOR = re.compile(
    rf"(?<![\w:$])(?P<name>[a-zA-Z_:][\w:]*)(?P<labels>\{{(?:[^{{}}\"]|{STRING})*\}})?(?P<range>\[[^\]]+\])?(?!\s*\()(?![\w:])"
)
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf", "nan"}
OF_HISTOGRAM = re.compile("_(bucket|sum|count)$")


@dataclass(frozen=True)
class Selected:
    name: str
    labels: str
    range: str
    inside: str
    """The function right around it; empty when there is none."""

    @property
    def instant(self) -> str:
        return f"{self.name}{self.labels}"


def selected(expr: str) -> list[Selected]:
    text = GROUPING.sub(lambda match: " " * len(match[0]), expr)
    found = []
    for match in SELECTOR.finditer(text):
        if match["name"].lower() in WORDS or _in_string(text, match.start()):
            continue
        around = re.search(r"(\w+)\s*\(\s*$", text[: match.start()])
        found.append(Selected(match["name"], match["labels"] or "", match["range"] or "", around[1] if around else ""))
    return found


def divisors(expr: str) -> list[str]:
    """What stands after each division sign: what is in brackets there, or the next word."""
    found = []
    for sign in re.finditer("/", expr):
        if _in_string(expr, sign.start()):
            continue
        rest = re.sub(r"^\s*(?:(?:on|ignoring)\s*\([^)]*\)\s*)?(?:group_(?:left|right)\s*\([^)]*\)\s*)?", "", expr[sign.end() :])
        found.append(_bracketed(rest) if rest.startswith("(") else rest.split()[0].rstrip(")"))
    return found


def _bracketed(text: str) -> str:
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return text[1:position]
    raise ValueError(f"{text!r} has no closing bracket")


def _in_string(text: str, position: int) -> bool:
    return any(match.start() < position < match.end() for match in re.finditer(STRING, text))


def is_counter(name: str) -> bool:
    return (name.endswith("_total") and name != "vllm:iteration_tokens_total") or OF_HISTOGRAM.search(name) is not None
