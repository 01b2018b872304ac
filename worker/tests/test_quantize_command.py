"""`pagoda quantize` as a command, and the text it is calibrated with."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from quantizable import with_tokenizer, write_text
from tokenizers import Tokenizer
from typer.testing import CliRunner

from pagoda_worker.errors import ConfigError
from pagoda_worker.offline.quantize.calibration import calibration_pieces
from pagoda_worker.offline.quantize_command import quantize as command


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return with_tokenizer(checkpoint("in bf16", dtype="bfloat16"), tmp_path / "model")


TEXTS: dict[str, tuple[str, str, int | str]] = {
    "plain": ("a.txt", "w1 w2 " * 50, 100),
    "JSONL": ("a.jsonl", '{"text": "w1 w2"}\n\n"w3"\n' * 20, 60),
    "chats": ("a.jsonl", '{"messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]}\n' * 20, 60),
    "prompts": ("a.jsonl", '{"prompt": "w1 w2", "x": 1}\n' * 20, 40),
    "short": ("a.txt", "w1 w2", "it has 2 tokens; at least 32"),
    "no JSON": ("a.jsonl", "w1 w2", "line 1: it is no JSON"),
    "no text": ("a.jsonl", '{"text": "w1"}\n{"label": 3}', "line 2: it has none of text, content, prompt or messages"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_calibration_reads_text_and_jsonl(folder: Path, tmp_path: Path, case: str):
    name, content, expected = TEXTS[case]
    (tmp_path / name).write_text(content)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            calibration_pieces(tmp_path / name, tokenizer, length=512, samples=4)
    else:
        assert calibration_pieces(tmp_path / name, tokenizer, length=512, samples=4).shape == (1, expected)
        pieces = calibration_pieces(tmp_path / name, tokenizer, length=32, samples=4)
        assert len(pieces) == expected // 32


app = typer.Typer()
app.command()(command)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_what_it_wrote(folder: Path, tmp_path: Path):
    text = write_text(tmp_path / "text.txt")
    out = tmp_path / "out"
    status, printed, _ = run(str(folder), "--to", "int4", "--group-size", "32", "--calibration", str(text), "--out", str(out))
    assert status == 0
    assert f"written: {out}" in printed
    assert "14 linears" in printed
    assert "of the outputs' power; worst" in printed
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in out.iterdir()), "a worker that runs as another user reads it"


def test_in_a_log_the_progress_is_lines(folder: Path, tmp_path: Path):
    _, _, said = run(str(folder), "--to", "int8", "--out", str(tmp_path / "out"))
    assert re.fullmatch(r"(\d+ of 14 linears after \d+ s\n){10}", said), said
    assert said.splitlines()[-1].startswith("14 of 14")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_leaves_no_folder(tmp_path: Path, ending: signal.Signals):
    text = write_text(tmp_path / "text.txt")
    arguments = ("builtin://tiny", "--to", "int4", "--method", "gptq", "--calibration", str(text), "--out", str(tmp_path / "out"))
    code = "import typer; from pagoda_worker.offline.quantize_command import quantize; typer.run(quantize)"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "of 35 linears" in process.stderr.readline()
        process.send_signal(ending)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"pagoda quantize: stopped; nothing was left at {tmp_path / 'out'}"
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("/nowhere", "--to", "int8"), "MODEL /nowhere: there is no folder /nowhere"),
        (("builtin://tiny", "--to", "int4", "--method", "awq"), "--method awq learns from text: add --calibration FILE"),
        (("builtin://tiny", "--to", "int4", "--sparsity", "3:4"), "--sparsity is 3:4; only 2:4 is there"),
    ],
    ids=str,
)
def test_what_the_command_cannot_do_is_one_line(arguments: tuple[str, ...], sentence: str):
    status, printed, said = run(*arguments)
    assert (status, printed) == (1, "")
    assert said.startswith("pagoda quantize: ")
    assert sentence in said
    assert said.count("\n") == 1
