"""What a stream reads of the machine's bandwidth."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagoda_bench.peers.bandwidth import bandwidth_rows, bytes_per_token


def test_a_token_reads_all_weights_but_the_table_of_embeddings(tmp_path: Path):
    save_file({"model.embed_tokens.weight": torch.zeros(100, 8), "lm_head.weight": torch.zeros(100, 8)}, tmp_path / "a.safetensors")
    save_file({"model.norm.weight": torch.zeros(8, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    assert bytes_per_token(tmp_path) == 100 * 8 * 4 + 8 * 2


@pytest.mark.parametrize(("tokens_per_s", "met"), [((7.0, 9.0, 8.0), True), ((7.0, 7.9, 12.0), False)])
def test_the_median_round_is_held_against_the_aim(tokens_per_s: tuple[float, ...], met: bool):
    _, ratio = bandwidth_rows("0.45b c=1", "pagoda", tokens_per_s, token_bytes=1_000_000, bytes_per_s=10_000_000.0)
    assert (ratio.met, ratio.aim) == (met, ">= 0.8")
    assert ratio.low == pytest.approx(min(tokens_per_s) / 10)
