"""`pagoda logits`: what it prints is what transformers computes, and what it cannot show it says in one line."""

from pathlib import Path
from shutil import copytree

import pytest
import torch
import typer
from logits_tap import Truth
from typer.testing import CliRunner

from pagoda_worker.engine import MAX_TOP_LOGPROBS
from pagoda_worker.offline.logits_command import TOP_AT_MOST, logits
from pagoda_worker.offline.next_tokens import next_tokens
from pagoda_worker.settings.sources import BUILTIN_DIR

TEXT = "What is 27 + 46?"
app = typer.Typer()
app.command()(logits)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_the_next_tokens_are_those_of_transformers():
    folder = BUILTIN_DIR / "tiny"
    found = next_tokens(folder, TEXT, 5)
    assert "".join(token.text for token in found.prompt) == TEXT
    expected = Truth(folder).logits([token.id for token in found.prompt])[-1].log_softmax(dim=-1)
    assert found.top[0].token.id == int(expected.argmax())
    assert [each.logprob for each in found.top] == sorted((each.logprob for each in found.top), reverse=True)
    ours = torch.tensor([each.logprob for each in found.top])
    theirs = expected[[each.token.id for each in found.top]]
    torch.testing.assert_close(ours, theirs, atol=0.3, rtol=0)  # the shipped model is bf16; logits of about 20 lie 0.125 apart


def test_the_command_prints_both_tables():
    status, printed, _ = run(TEXT, "--top", "3")
    assert status == 0
    assert "builtin://tiny: LlamaForCausalLM in bf16" in printed
    assert "' + '" in printed
    rows = [line for line in printed.splitlines() if line.rstrip(" │").endswith(tuple("0123456789")) and "%" in line]
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((TEXT, "--model", "/nowhere"), "--model /nowhere: there is no folder /nowhere"),
        ((TEXT, "--model", "builtin://huge"), "this worker ships builtin://tiny, builtin://tiny-draft"),
        (("",), "the text has 0 tokens; this model takes 1 to 2047 and gives the next one"),
        (("word " * 3000,), "tokens; this model takes 1 to 2047"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_shown_is_one_line(arguments: tuple[str, ...], sentence: str):
    status, printed, said = run(*arguments)
    assert (status, printed) == (1, "")
    assert said.startswith("pagoda logits: ")
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_model_of_the_hub_that_is_not_here_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    _, _, said = run(TEXT, "--model", "hf://some/model")
    assert "it is not in the Hugging Face cache of this machine; `hf download some/model` brings it" in said


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path):
    folder = Path(copytree(BUILTIN_DIR / "tiny", tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in run(TEXT, "--model", str(folder))[2]
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json does not exist" in run(TEXT, "--model", str(folder))[2]


def test_it_offers_as_many_tokens_as_the_engine_gives():
    assert TOP_AT_MOST == MAX_TOP_LOGPROBS
