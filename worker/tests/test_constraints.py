"""Bitmasks of rows: against a plain account of what may come next; and requests that wait for their grammar while others go on."""

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import run_all
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from random_checkpoint import small_engine

from pagoda_worker.request import Request, Sampling, StructuredOutput
from pagoda_worker.sampling.bitmasks import clear_bits, no_bits, set_bits
from pagoda_worker.sampling.constraints import Constraints
from pagoda_worker.sampling.row_masks import allowed
from pagoda_worker.sampling.sequence_constraint import Constraint
from pagoda_worker.sampling.structured import COMPILE_S, compile_grammar, read_tokenizer
from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits
from pagoda_worker.settings.sources import BUILTIN_DIR

EOS = 1
ids = st.integers(0, 19)


def bits_of(chosen: set[int], vocab_size: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    bits = no_bits(vocab_size)
    set_bits(bits, np.array(sorted(chosen), np.int64))
    return bits


@given(vocab=st.integers(1, 200), data=st.data())
def test_bits_are_what_was_set_and_not_cleared(vocab: int, data: st.DataObject):
    chosen, gone = (data.draw(st.sets(st.integers(0, vocab - 1))) for _ in range(2))
    bits = bits_of(chosen, vocab)
    clear_bits(bits, np.array(sorted(gone), np.int64))
    there = allowed(torch.from_numpy(bits[None]), vocab)
    assert there.shape == (1, vocab)
    assert set(there[0].nonzero().flatten().tolist()) == chosen - gone


def possible(request: Request, output: list[int], vocab_size: int) -> set[int]:
    """Said once more, slowly."""
    sampling = request.sampling
    left = set(sampling.allowed_token_ids) or set(range(vocab_size))
    for word in sampling.bad_words:
        if len(word) == 1 or (len(output) >= len(word) - 1 and output[len(output) - len(word) + 1 :] == word[:-1]):
            left.discard(word[-1])
    ends = set(request.stop_token_ids) | (set() if request.ignore_eos else {EOS})
    return left - ends if len(output) < request.min_tokens else left


@given(
    allowed_ids=st.lists(ids, max_size=8),
    words=st.lists(st.lists(ids, min_size=1, max_size=3), max_size=4),
    output=st.lists(ids, max_size=8),
    min_tokens=st.integers(0, 8),
    stops=st.lists(ids, max_size=2),
    ignore_eos=st.booleans(),
)
def test_a_mask_holds_exactly_what_is_possible(
    allowed_ids: list[int], words: list[list[int]], output: list[int], min_tokens: int, stops: list[int], ignore_eos: bool
):
    request = Request(
        request_id="a",
        prompt_ids=[1],
        sampling=Sampling(allowed_token_ids=allowed_ids, bad_words=words),
        min_tokens=min_tokens,
        max_tokens=20,
        stop_token_ids=stops,
        ignore_eos=ignore_eos,
    )
    everything = bits_of(set(range(20)), 20)
    constraint = Constraint(request, None, everything, (EOS,))
    for token in output:
        assert not constraint.advance(token)
    bits = everything.copy()
    sentence = constraint.narrow(bits)
    expected = possible(request, output, 20)
    assert bool(sentence) == (not expected)
    if expected:
        assert set(allowed(torch.from_numpy(bits[None]), 20)[0].nonzero().flatten().tolist()) == expected


@pytest.fixture(scope="module")
def engine(checkpoint: Any) -> Any:
    return small_engine(checkpoint())


def ask(request_id: str, **fields: Any) -> Request:
    return Request(**{"request_id": request_id, "prompt_ids": [3, 1, 4, 1, 5], "max_tokens": 40, "ignore_eos": True, **fields})


def test_bad_words_never_appear_whatever_runs_beside_them(engine: Any):
    free = run_all(engine, ask("free"))["free", 0].tokens
    words = [free[3:5], [free[1]], free[10:13]]
    sampled = [ask(f"s{seed}", sampling=Sampling(temperature=1.0, seed=seed, bad_words=words)) for seed in range(4)]
    outcomes = run_all(engine, ask("greedy", sampling=Sampling(bad_words=words)), ask("free"), *sampled)
    assert outcomes["free", 0].tokens == free
    for key, outcome in outcomes.items():
        for word in words if key[0] != "free" else []:
            assert word not in [outcome.tokens[i : i + len(word)] for i in range(len(outcome.tokens))]
    assert outcomes["greedy", 0].tokens[:1] == free[:1], "only what would complete a word is gone"


def test_nothing_but_allowed_ids_is_sampled_and_the_best_of_them_wins(engine: Any):
    free = run_all(engine, ask("free", max_tokens=1))["free", 0].tokens
    outcomes = run_all(
        engine,
        ask("a", sampling=Sampling(allowed_token_ids=[7, 8, 9, 9])),
        ask("b", sampling=Sampling(allowed_token_ids=[*free, 7], temperature=0.5, seed=1)),
        ask("c", sampling=Sampling(allowed_token_ids=[1]), ignore_eos=False),
    )
    assert set(outcomes["a", 0].tokens) <= {7, 8, 9}
    assert set(outcomes["b", 0].tokens) <= {7, *free}
    assert (outcomes["c", 0].tokens, outcomes["c", 0].reason) == ([], "STOP")


def test_min_tokens_holds_with_a_bitmask_as_without(engine: Any):
    ends = Sampling(logit_bias={EOS: 100.0}, bad_words=[[9, 9]])
    outcome = run_all(engine, ask("a", sampling=ends, min_tokens=4, ignore_eos=False))["a", 0]
    assert (len(outcome.tokens), outcome.reason) == (4, "STOP")


def test_a_model_without_tokenizer_refuses_structure_and_serves_the_rest(engine: Any):
    assert not engine.facts.structured_output
    with pytest.raises(Exception, match=r"needs a tokenizer\.json") as refusal:
        engine.submit(ask("a", structured=StructuredOutput(kind="json_object")))
    assert getattr(refusal.value, "param", "") == "structured"


# ---------------------------------------------------------------- waiting for a grammar

LIMITS = SchedulerLimits(max_running=4, max_batch_tokens=64, max_model_len=64, eos_token_ids=(EOS,))
ONE_A = StructuredOutput(kind="regex", text="a")


class Bench:
    """Scheduler and constraints under a clock, with grammars that are compiled when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.futures: list[Future[LLMatcher]] = []
        self.scheduler = Scheduler(BlockPool(16, 16), LIMITS)
        self.constraints = Constraints(self, vocab_size=1024, eos_token_ids=(EOS,), clock=lambda: self.now)  # type: ignore[arg-type]

    def compile(self, wanted: StructuredOutput) -> Future[LLMatcher]:
        self.futures.append(Future())
        return self.futures[-1]

    def submit(self, request_id: str, **fields: Any) -> None:
        family = self.scheduler.submit(Request(request_id=request_id, prompt_ids=[1, 2], **fields), now=self.now, seed=0)
        if fields:
            self.constraints.begin(family)

    def scheduled(self) -> list[str]:
        plan = self.scheduler.schedule(self.now)
        self.scheduler.settle(plan, Sampled([5] * len(plan.sampling())), self.now)
        return [sequence.request.request_id for sequence in plan.sampling()]


@pytest.fixture(scope="module")
def matcher() -> LLMatcher:
    return compile_grammar(read_tokenizer((BUILTIN_DIR / "tiny/tokenizer.json").read_text, vocab_size=1024, eos_token_ids=[EOS]), ONE_A)


def test_others_overtake_a_request_whose_grammar_is_being_compiled(matcher: LLMatcher):
    bench = Bench()
    bench.submit("held", structured=ONE_A)
    bench.submit("plain")
    assert bench.scheduled() == ["plain"]
    assert bench.constraints.poll().ready == []
    bench.futures[0].set_result(matcher)
    compiled = bench.constraints.poll()
    assert (compiled.ready, compiled.rejections) == (["held"], [])
    bench.scheduler.release("held")
    assert bench.scheduled() == ["plain", "held"]


def test_a_grammar_that_takes_too_long_is_rejected():
    bench = Bench()
    bench.submit("held", structured=ONE_A)
    bench.now = COMPILE_S - 0.1
    assert not bench.constraints.poll().rejections
    bench.now = COMPILE_S
    (rejection,) = bench.constraints.poll().rejections
    assert (rejection.request_id, rejection.param) == ("held", "structured.regex")
    assert "not compiled within 10 s" in rejection.message
    assert bench.scheduler.drop("held")
    assert not bench.scheduler.has_work
    bench.scheduler.check()


def test_a_compiler_that_fails_costs_its_request_only():
    bench = Bench()
    bench.submit("held", structured=ONE_A)
    bench.futures[0].set_exception(MemoryError())
    (rejection,) = bench.constraints.poll().rejections
    assert "the compiler failed (MemoryError)" in rejection.message


def test_a_request_cancelled_while_its_grammar_is_compiled_is_gone(matcher: LLMatcher):
    bench = Bench()
    bench.submit("held", structured=ONE_A, n=2)
    bench.scheduler.cancel("held", 0)
    assert bench.scheduled() == [], "the sibling that leads now is held as well"
    bench.scheduler.cancel("held")
    bench.futures[0].set_result(matcher)
    for request_id in bench.constraints.poll().ready:
        bench.scheduler.release(request_id)
    assert bench.scheduled() == []
    assert not bench.scheduler.drop("held")
    bench.scheduler.check()
