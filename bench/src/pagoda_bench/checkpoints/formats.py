"""The folders that `pagoda quantize` makes of the shipped model: one of every format and method, and what its options change in a file.

Called by the run; makes a folder when it is asked for.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.errors import SettingsError
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.quality.shipped import quantize

PLAIN = "bf16"
_ERROR = re.compile(r"error of their outputs: ([0-9.e+-]+) %")


@dataclass(frozen=True, slots=True)
class Format:
    label: str
    options: str
    """Of `pagoda quantize`; empty: the plain model, which shows what two engines differ by in any case."""


FORMATS = (
    Format(PLAIN, ""),
    Format("int8 rtn", "--to int8 --method rtn"),
    Format("int8 gptq", "--to int8 --method gptq"),
    Format("fp8 rtn", "--to fp8 --method rtn"),
    Format("int4 rtn", "--to int4 --method rtn"),
    Format("int4 awq", "--to int4 --method awq"),
    Format("int4 gptq", "--to int4 --method gptq"),
    Format("int4 gptq, zero points", "--to int4 --method gptq --asym"),
    Format("int4 gptq, zero points, groups of 32", "--to int4 --method gptq --asym --group-size 32"),
    Format("int4 rtn, 2:4", "--to int4 --method rtn --sparsity 2:4"),
    Format("int4 gptq, 2:4", "--to int4 --method gptq --sparsity 2:4"),
    Format("int8 gptq, 2:4", "--to int8 --method gptq --sparsity 2:4"),
)


@dataclass(frozen=True, slots=True)
class Made:
    folder: Path
    error_ratio: float | None
    """As the command told it: mean squared error of the linears' outputs on the calibration text, of their mean square, mean over linears.
    None: the plain model."""


def chosen(labels: list[str]) -> list[Format]:
    """The plain one always, first. Raises SettingsError."""
    if unknown := set(labels) - {one.label for one in FORMATS}:
        raise SettingsError(f"no format {', '.join(sorted(unknown))}; there are {'; '.join(one.label for one in FORMATS)}")
    return [one for one in FORMATS if not labels or one.label in labels or not one.options]


def make(one: Format, scratch: Path, calibration: Path) -> Made:
    """Raises NotQuantized."""
    if not one.options:
        return Made(builtin_tiny(), None)
    folder = scratch / re.sub(r"\W+", "-", one.label)
    return Made(folder, told_error(quantize(builtin_tiny(), folder, shlex.split(one.options), calibration)))


def told_error(output: str) -> float:
    """Of what `pagoda quantize` prints, which has percents of two digits."""
    found = _ERROR.search(output)
    assert found, f"pagoda quantize told no error: {output}"
    return float(found[1]) / 100
