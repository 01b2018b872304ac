"""A peer in a process of its own, from the recipe to the row: the real transformers on the real tiny model."""

import sys
from pathlib import Path

import psutil
import pytest

from pagoda_bench.peers import environment
from pagoda_bench.peers.cases import Case, model_named
from pagoda_bench.peers.compare import rows
from pagoda_bench.peers.driven import Driven
from pagoda_bench.peers.recipes import RECIPES, python_for
from pagoda_bench.peers.rounds import measure
from pagoda_bench.peers.system import PeerUnavailable


def test_transformers_answers_rounds_on_the_tiny_model_and_leaves_no_process(tmp_path: Path):
    recipe = next(recipe for recipe in RECIPES if recipe.system == "transformers")
    system = recipe.start(python_for(recipe, "cpu"), model_named("tiny", scratch=tmp_path, cores=2), tmp_path, "cpu")
    try:
        unavailable: dict[str, str] = {}
        case = Case("tiny", 2, prompt_tokens=16, output_tokens=8)
        found = measure(case, {"transformers": system}, 2, reference="transformers", unavailable=unavailable, say=print)
    finally:
        system.stop()
    assert unavailable == {}
    (row,) = rows(found)
    assert (row.case, row.system, row.metric) == ("tiny c=2", "transformers", "output_tokens_per_s")
    assert row.low is not None
    assert 0 < row.low <= row.value
    assert not [child for child in psutil.Process().children(recursive=True) if "pagoda_bench.peers" in " ".join(child.cmdline())]


def test_a_driver_that_cannot_start_says_why_in_one_line(tmp_path: Path):
    with pytest.raises(PeerUnavailable, match=r"exit status 1: .*No module named .*drivers\.nothing"):
        Driven(Path(sys.executable), "nothing", model_named("tiny", scratch=tmp_path, cores=1), scratch=tmp_path, device="cpu")


def test_a_gpu_peer_on_a_machine_without_one_is_a_reason_and_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PAGODA_PEERS_HOME", str(tmp_path / "peers"))
    for recipe in RECIPES:
        if "cpu" not in recipe.devices:
            with pytest.raises(PeerUnavailable, match="CUDA device"):
                python_for(recipe, "cpu")
    assert not (tmp_path / "peers").exists()


def test_an_installation_that_fails_names_the_installers_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = tmp_path / "recipes" / "broken"
    recipe.mkdir(parents=True)
    (recipe / "requirements.txt").write_text(f"{tmp_path}/no-such-package.whl\n")
    monkeypatch.setattr(environment, "RECIPES", tmp_path / "recipes")
    monkeypatch.setenv("PAGODA_PEERS_HOME", str(tmp_path / "peers"))
    with pytest.raises(PeerUnavailable, match="installing broken failed"):
        environment.interpreter("broken")


def test_an_environment_is_made_once_and_again_when_its_recipe_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = tmp_path / "recipes" / "empty"
    recipe.mkdir(parents=True)
    (recipe / "requirements.txt").write_text("# nothing\n")
    (recipe / "finish.py").write_text("import pathlib, sys\nwith pathlib.Path(sys.prefix, 'made').open('a') as made: made.write('x')\n")
    monkeypatch.setattr(environment, "RECIPES", tmp_path / "recipes")
    monkeypatch.setenv("PAGODA_PEERS_HOME", str(tmp_path / "peers"))
    made = environment.interpreter("empty").parent.parent / "made"
    born = made.stat().st_ino
    assert environment.interpreter("empty").exists()
    assert made.stat().st_ino == born
    (recipe / "requirements.txt").write_text("# nothing, but other nothing\n")
    environment.interpreter("empty")
    assert made.read_text() == "x"
    assert environment.versions(environment.interpreter("empty"), ("vllm",)) == {"vllm": "absent"}


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.environment], ids=lambda recipe: recipe.system)
def test_every_environment_has_a_recipe_that_names_no_index(recipe):
    folder = environment.RECIPES / recipe.environment
    assert environment.recipe_digest(folder)
    assert (folder / "README.md").exists()
    assert not [file for file in folder.iterdir() if "://" in file.read_text() and file.suffix == ".txt"]
