"""A few cases of the fuzzer, the same in every run: `python -m fuzz.engine --hours 2` plays others. CONTRIBUTING.md says when."""

from pathlib import Path

import pytest
from fuzz.cases import draw
from fuzz.engine import Fuzzer


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    root: Path = tmp_path_factory.mktemp("fuzz")
    return Fuzzer(root)


@pytest.mark.parametrize("seed", [1, 3, 4, 5, 6, 7, 10, 11])
def test_whatever_chance_asks_of_an_engine_is_answered_as_by_a_plain_one(fuzzer: Fuzzer, seed: int):
    fuzzer.run(draw(seed, ranks=False))
