"""The truth is transformers with the adapter merged into its weights: logits of LoRA adapters however the engine computes them.

Tolerance as in test_models.py, twice: the merged weight and the two small products round differently.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logits_tap import Truth, logits_of
from random_adapter import GPT2_ALL, merge, write_adapter
from random_checkpoint import VOCAB, kv_bytes, small_engine
from torch import Tensor
from transformers import AutoModelForCausalLM

from pagoda_worker.engine import Engine
from pagoda_worker.errors import AdapterError, AdapterNotFound
from pagoda_worker.loading.adapters import AdapterDirectory
from pagoda_worker.loading.peft import AdapterWeights
from pagoda_worker.request import Request, Sampling
from pagoda_worker.speculation.ngram import NgramProposer
from pagoda_worker.speculation.proposer import Proposer
from pagoda_worker.speculation.speculation import Speculation
from pagoda_worker.speculation.suffix import SuffixProposer

TOLERANCE = 1e-4
Checkpoint = Callable[..., Path]
Seen = list[tuple[list[int], Tensor]]


def prompt(tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (tokens,), generator=generator).tolist()


def of_prompt(seen: Seen, start: list[int]) -> Seen:
    return [each for each in seen if each[0][: len(start)] == start]


class Adapted:
    """A base model, some adapters of it, and the truth of each."""

    def __init__(self, base: Path, folder: Path, *kinds: dict[str, Any]) -> None:
        self.base = base
        self.folders = {f"a{i}": write_adapter(folder / f"a{i}", base, seed=i + 1, **kind) for i, kind in enumerate(kinds)}
        self.truths = {name: Truth(merge(base, each, folder / f"merged-{name}")) for name, each in self.folders.items()}
        self.truths[""] = Truth(base)

    def engine(self, **settings: Any) -> Engine:
        return small_engine(self.base, **{"adapters": self.folders, **settings})

    def worst(self, seen: Seen, prompts: list[list[int]], names: list[str]) -> float:
        return max(self.truths[name].worst_difference(of_prompt(seen, start)) for name, start in zip(names, prompts, strict=True))


@pytest.fixture
def adapted(checkpoint: Checkpoint, tmp_path: Path) -> Adapted:
    kinds = [
        {},
        {"rank": 2, "targets": ("q_proj", "v_proj")},
        {"rank": 16, "rslora": True},
        {"rank": 3, "targets": ("up_proj", "down_proj")},
    ]
    return Adapted(checkpoint("untied"), tmp_path, *kinds)


@pytest.mark.parametrize("settings", [{}, {"attention": "eager"}, {"max_batch_tokens": 9}], ids=str)
def test_a_batch_of_several_adapters_and_the_base_model_equals_their_merged_weights(adapted: Adapted, settings: dict[str, Any]):
    names = ["a0", "", "a1", "a2", "a0", "a3", ""]
    prompts = [prompt(5 + 7 * i, seed=i) for i in range(len(names))]
    engine = adapted.engine(**settings)
    with logits_of(engine) as seen:
        engine.generate(prompts, max_tokens=6, ignore_eos=True, adapters=names)
    assert len(seen) == 6 * len(names)
    assert adapted.worst(seen, prompts, names) < TOLERANCE
    assert adapted.truths[""].worst_difference(of_prompt(seen, prompts[0])) > 0.1, "the adapter changes nothing that a test could see"


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "qwen3", "mistral"])
def test_other_architectures_take_adapters(checkpoint: Checkpoint, tmp_path: Path, model_type: str):
    kind = {"targets": GPT2_ALL} if model_type == "gpt2" else {}
    adapted = Adapted(checkpoint(f"adapted {model_type}", model_type=model_type), tmp_path, kind)
    prompts, names = [prompt(20, 1), prompt(9, 2)], ["a0", ""]
    engine = adapted.engine()
    with logits_of(engine) as seen:
        engine.generate(prompts, max_tokens=4, ignore_eos=True, adapters=names)
    assert adapted.worst(seen, prompts, names) < TOLERANCE


def test_more_adapters_than_slots_take_turns_and_come_back(adapted: Adapted):
    names = ["a0", "a1", "a2", "a3", "a0", "a2"]
    prompts = [prompt(12, seed=i) for i in range(len(names))]
    engine = adapted.engine(adapter_slots=2)
    with logits_of(engine) as seen:
        engine.generate(prompts, max_tokens=5, ignore_eos=True, adapters=names)
    assert len(seen) == 5 * len(names)
    assert adapted.worst(seen, prompts, names) < TOLERANCE
    engine.check_integrity()


def test_preempted_sequences_come_back_with_their_adapters(adapted: Adapted):
    names = ["a0", "a1", "", "a2", "a3"]
    prompts = [prompt(14, seed=i) for i in range(len(names))]
    engine = adapted.engine(adapter_slots=3, kv_cache_bytes=kv_bytes(12, 8), block_size=8, max_model_len=96, prefix_caching=False)
    with logits_of(engine) as seen:
        engine.generate(prompts, max_tokens=40, ignore_eos=True, adapters=names)
    assert engine.idle_state().preemptions_total > 0
    assert adapted.worst(seen, prompts, names) < TOLERANCE


def test_prefixes_are_shared_within_an_adapter_and_never_across(adapted: Adapted):
    engine, (start, tail) = adapted.engine(), (prompt(64, 3), prompt(5, 4))
    first = engine.generate([start], max_tokens=2, ignore_eos=True, adapters=["a0"])
    with logits_of(engine) as seen:
        others = engine.generate([start + tail] * 3, max_tokens=3, ignore_eos=True, adapters=["a1", "a0", ""])
    assert first[0].finish.usage.cached_tokens == 0
    assert [each.finish.usage.cached_tokens for each in others] == [0, 64, 0]
    by_adapter = [line for tokens, line in seen if len(tokens) == 69]
    for line, name in zip(by_adapter, ["a1", "a0", ""], strict=True):
        assert (line - adapted.truths[name].logits(start + tail)[-1]).abs().max() < TOLERANCE


def test_n_sequences_and_sampling_with_an_adapter_equal_its_merged_weights(adapted: Adapted):
    start, engine = prompt(30, 5), adapted.engine()
    with logits_of(engine) as seen:
        engine.generate([start], Sampling(temperature=1.5, seed=3), max_tokens=6, n=3, ignore_eos=True, adapters=["a2"])
    assert len(seen) == 18
    assert adapted.truths["a2"].worst_difference(seen) < TOLERANCE


def test_an_adapter_loaded_while_others_run_is_there_for_the_next_request(adapted: Adapted):
    engine = adapted.engine(adapters={})
    engine.submit(Request(request_id="base", prompt_ids=prompt(8, 1), max_tokens=60, ignore_eos=True))
    engine.adapters.begin("late", adapted.folders["a0"])
    while engine.adapters.reading:  # the base model's request goes on meanwhile
        engine.step()
        for load in engine.adapters.poll():
            assert load.facts is not None, load.problem
    start = prompt(11, 2)
    with logits_of(engine) as seen:
        engine.submit(Request(request_id="late", prompt_ids=start, max_tokens=4, ignore_eos=True, adapter="late"))
        while engine.has_work:
            engine.step()
    assert adapted.truths["a0"].worst_difference(of_prompt(seen, start)) < TOLERANCE


def test_a_swapped_adapter_answers_new_requests_while_old_ones_keep_their_weights(adapted: Adapted):
    engine = adapted.engine(adapters={"sql": adapted.folders["a0"]})
    old, new = prompt(32, 1), prompt(32, 1)
    with logits_of(engine) as seen:
        engine.submit(Request(request_id="old", prompt_ids=old, max_tokens=12, ignore_eos=True, adapter="sql"))
        engine.step()
        engine.adapters.load("sql", adapted.folders["a2"])
        engine.submit(Request(request_id="new", prompt_ids=new, max_tokens=2, ignore_eos=True, adapter="sql"))
        updates = [update for _ in range(30) if engine.has_work for update in engine.step().updates]
    truths = adapted.truths
    assert [u.cached_tokens for u in updates if u.started and u.request_id == "new"] == [0], "keys of the old version were shared"
    lines = [(tokens, line) for tokens, line in seen if len(tokens) == 32]
    assert (lines[0][1] - truths["a0"].logits(old)[-1]).abs().max() < TOLERANCE
    assert (lines[1][1] - truths["a2"].logits(new)[-1]).abs().max() < TOLERANCE
    (longest,) = [tokens for tokens, _ in seen if len(tokens) == 43]
    assert truths["a0"].worst_difference([each for each in seen if each[0] == longest[: len(each[0])] and len(each[0]) > 33]) < TOLERANCE


def test_an_unloaded_adapter_finishes_what_runs_and_takes_nothing_new(adapted: Adapted):
    engine, start = adapted.engine(), prompt(9, 1)
    with logits_of(engine) as seen:
        engine.submit(Request(request_id="runs", prompt_ids=start, max_tokens=8, ignore_eos=True, adapter="a0"))
        engine.step()
        engine.adapters.unload("a0")
        with pytest.raises(AdapterNotFound, match="no adapter 'a0'; there is: a1, a2, a3"):
            engine.submit(Request(request_id="late", prompt_ids=start, adapter="a0"))
        reasons = [u.finish.reason.name for _ in range(20) if engine.has_work for u in engine.step().updates if u.finish]
    assert reasons == ["LENGTH"]
    assert adapted.truths["a0"].worst_difference(seen) < TOLERANCE
    assert engine.adapters_state().resident == []
    engine.check_integrity()


def test_adapters_survive_sleep_at_both_levels(adapted: Adapted):
    engine, start = adapted.engine(), prompt(17, 1)
    for level in (1, 2):
        engine.generate([start], max_tokens=2, adapters=["a1"])
        engine.sleep(level)
        with logits_of_woken(engine) as seen:
            engine.generate([start], max_tokens=3, ignore_eos=True, adapters=["a1"])
        assert adapted.truths["a1"].worst_difference(seen) < TOLERANCE


def logits_of_woken(engine: Engine) -> Any:
    engine.wake()
    return logits_of(engine)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks transformers so
def test_peft_itself_agrees(checkpoint: Checkpoint, tmp_path: Path):
    """Not our reading of its files: PEFT's own model saves the adapter and computes the logits."""
    peft = pytest.importorskip("peft", reason="the package peft is not installed: it is in the dev extra of bench")
    base = checkpoint("untied")
    torch.manual_seed(1)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(r=5, lora_alpha=7, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    ).eval()
    model.save_pretrained(tmp_path / "saved")
    start, engine = prompt(25, 1), small_engine(base, adapters={"theirs": tmp_path / "saved"})
    with logits_of(engine) as seen, torch.inference_mode():
        engine.generate([start], max_tokens=4, ignore_eos=True, adapters=["theirs"])
        for tokens, line in seen:
            assert (line - model(torch.tensor([tokens])).logits[0, -1]).abs().max() < TOLERANCE


@pytest.mark.parametrize(("quantization", "alike"), [("int8", 0.99), ("int4", 0.8), ("fp8", 0.9)])
def test_an_adapter_beside_quantized_weights_adds_the_same_as_beside_what_they_mean(
    checkpoint: Checkpoint, tmp_path: Path, quantization: str, alike: float
):
    """The difference that the adapter makes, against the one that it makes to the plain model: rounding moves both by little."""
    kind = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    adapted = Adapted(checkpoint("wide", **kind), tmp_path, {"alpha": 32.0})
    start, lines = prompt(24, 7), {}
    for name in ("", "a0"):
        engine = adapted.engine(quantization=quantization)
        with logits_of(engine) as seen:
            engine.generate([start], max_tokens=1, adapters=[name])
        lines[name] = seen[0][1]
    made = lines["a0"] - lines[""]
    meant = adapted.truths["a0"].logits(start)[-1] - adapted.truths[""].logits(start)[-1]
    assert torch.nn.functional.cosine_similarity(made, meant, dim=0) > alike


@pytest.mark.parametrize("proposer", [NgramProposer, SuffixProposer])
def test_guessed_tokens_are_verified_with_the_adapter(adapted: Adapted, proposer: Callable[[], Proposer]):
    """Guessed always: whether it pays is a question of time, which a busy machine answers with no."""
    names = ["a0", "", "a1", "a2"]
    prompts = [prompt(4, seed=i) * 8 for i in range(len(names))]
    engine = adapted.engine(speculative="ngram")
    engine.speculation = Speculation(proposer(), tokens=4, possible=engine.constraints.longest_possible, adapting=False)
    with logits_of(engine) as seen:
        guessed = engine.generate(prompts, max_tokens=40, ignore_eos=True, adapters=names)
    plain = adapted.engine().generate(prompts, max_tokens=40, ignore_eos=True, adapters=names)
    assert [each.token_ids for each in guessed] == [each.token_ids for each in plain]
    assert engine.idle_state().draft_tokens_total > 0, "nothing was guessed"
    assert len(seen) > 4 * 40, "nothing was verified"


def test_an_adapter_is_read_by_one_thread_and_others_keep_theirs():
    seen: list[int] = []
    usual, was_read = torch.get_num_threads(), threading.Event()

    def read(folder: Path) -> AdapterWeights:
        seen.append(torch.get_num_threads())
        was_read.set()
        raise AdapterError(f"{folder} is only looked at")

    torch.set_num_threads(2)
    try:
        directory = AdapterDirectory()
        directory.open(read)
        directory.begin("sql", Path("sql"))
        assert was_read.wait(60)
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert [*seen, torch.get_num_threads()] == [1, 2, 2]
    finally:
        torch.set_num_threads(usual)
