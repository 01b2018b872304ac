"""Guesses that come from another worker: what of them is used, and that no token ever depends on them."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import Outcome
from front_support import TINY, running_front
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoint import kv_bytes, small_engine
from test_speculation import corpus, tokens_of

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.request import Request
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.speculation.remote import MOST_HELD, RemoteProposer
from pagoda_worker.speculation.speculation import Speculation
from pagoda_worker.wire import worker_pb2 as pb

arrivals = itertools.count()


def text_of(*output: int) -> Sequence:
    """A prompt of three tokens and this output."""
    request = Request(request_id=f"{next(arrivals)}", prompt_ids=[1, 2, 3])
    sequence = Sequence(request, 0, arrival=0, accepted=0.0, limit=1000, seed=0, root=b"")
    sequence.tokens += output
    return sequence


def test_what_continues_the_text_is_proposed_and_no_more_than_asked_for():
    proposer, text = RemoteProposer(), text_of(10)
    proposer.take(text, 1, [11, 12, 13])
    assert proposer.propose(text, 2) == [11, 12]
    assert proposer.propose(text, 9) == [11, 12, 13], "nothing is used up: the step may not have taken place"


def test_a_stretch_grows_as_more_of_it_arrives():
    proposer, text = RemoteProposer(), text_of()
    proposer.take(text, 0, [10])
    proposer.take(text, 1, [11, 12])
    assert proposer.propose(text, 9) == [10, 11, 12]


def test_what_has_become_text_meanwhile_is_passed_over():
    proposer, text = RemoteProposer(), text_of()
    proposer.take(text, 0, [10, 11, 12, 13])
    text.tokens += [10, 11]
    assert proposer.propose(text, 9) == [12, 13]
    text.tokens += [12, 13, 14]
    assert proposer.propose(text, 9) == []
    assert not proposer.holds(text)


def test_a_stretch_that_contradicts_the_text_is_dropped_with_what_belongs_to_it():
    proposer, text = RemoteProposer(), text_of()
    proposer.take(text, 0, [10, 11, 12, 13])
    text.tokens += [10, 99]
    assert proposer.propose(text, 9) == []
    proposer.take(text, 4, [14, 15])
    assert not proposer.holds(text), "the rest of the wrong guess leaves a gap"
    proposer.take(text, 2, [20, 21])
    assert proposer.propose(text, 9) == [20, 21]


def test_a_new_guess_replaces_the_old_one_from_its_position_on():
    proposer, text = RemoteProposer(), text_of(10)
    proposer.take(text, 1, [11, 12, 13])
    proposer.take(text, 2, [20])
    assert proposer.propose(text, 9) == [11, 20]


def test_what_is_held_is_bounded():
    proposer, text = RemoteProposer(), text_of()
    for at in range(0, 2 * MOST_HELD, 100):
        proposer.take(text, at, [7] * 100)
    assert len(proposer.propose(text, 10 * MOST_HELD)) == MOST_HELD


@given(st.data())
def test_proposals_are_of_a_guess_whose_beginning_came_true(data: st.DataObject):
    """Whatever arrives, in any order: what is proposed follows, in something that arrived, the text as it is."""
    proposer, text, told = RemoteProposer(), text_of(), dict[int, set[int]]()
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            text.tokens.append(data.draw(st.integers(0, 2)))
        position, ids = data.draw(st.integers(0, 8)), data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
        for at, token in enumerate(ids, position):
            told.setdefault(at, set()).add(token)
        proposer.take(text, position, ids)
        length = len(text.tokens) - text.output_start
        for at, token in enumerate(proposer.propose(text, data.draw(st.integers(1, 5))), length):
            assert token in told[at]


ENGINES: dict[str, dict[str, Any]] = {
    "ahead": {"async_scheduling": True},
    "chunked and preempting": {"max_batch_tokens": 24, "kv_cache_bytes": kv_bytes(14, 8), "block_size": 8},
}


@pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)
def test_no_token_depends_on_what_arrives_or_when(settings: dict[str, Any], checkpoint: Callable[..., Path]):
    right = drafted(small_engine(checkpoint()), {}, seed=0)
    engine = small_engine(checkpoint(), speculative="remote", **settings)
    guessing = engine.speculation = Speculation(RemoteProposer(), tokens=5, possible=engine.constraints.longest_possible, adapting=False)
    assert tokens_of(drafted(engine, tokens_of(right), seed=1)) == tokens_of(right)
    assert guessing.accepted_by_place[2] > 0, "several drafts of one step were accepted"
    assert sum(guessing.accepted_by_place) < guessing.draft_tokens, "and some were not"


def drafted(engine: Engine, outputs: dict[tuple[str, int], list[int]], *, seed: int) -> dict[tuple[str, int], Outcome]:
    """Runs the longer half of the corpus while stretches of these outputs arrive, late, early, wrong or for nobody."""
    dice, outcomes = random.Random(seed), dict[tuple[str, int], Outcome]()
    for request in corpus()[1::2]:
        engine.submit(request)
    while engine.has_work:
        for (request_id, index), output in outputs.items():
            told = len(outcomes.get((request_id, index), Outcome()).tokens)
            at = max(0, told + dice.randint(-3, 3))
            ids = list(output[at : at + dice.randint(1, 8)])
            if ids and dice.random() < 0.3:
                ids[dice.randrange(len(ids))] = dice.randrange(engine.facts.vocab_size)
            if ids and dice.random() < 0.7:
                engine.draft(request_id, index, at, ids)
        for update in engine.step().updates:
            outcome = outcomes.setdefault((update.request_id, update.sequence), Outcome())
            outcome.tokens += update.token_ids
            outcome.finish = update.finish or outcome.finish
    engine.draft("nobody", 0, 0, [1])
    engine.check_integrity()
    return outcomes


async def test_a_router_brings_drafts_and_the_answer_says_how_many_held():
    config = EngineConfig(
        model_dir=TINY, device="cpu", dtype="fp32", max_running=4, max_batch_tokens=64, threads=1, speculative="remote", draft_tokens=6
    )
    async with running_front(command=ENGINE_COMMAND, config=config) as bench:
        router = await bench.router()
        described = await bench.stub.Describe(pb.DescribeRequest())
        assert pb.FEATURE_VERIFY in described.models[0].features
        await router.submit(1, [5, 6, 7], max_tokens=200, ignore_eos=True)
        plain = await router.finish(1)
        assert plain.usage.draft_tokens == 0
        submit = pb.Submit(request_id=2, model="tiny", prompt_ids=[5, 6, 7], max_tokens=200, ignore_eos=True)
        draft = pb.DraftTokens(request_id=2, token_ids=router.tokens[1, 0])
        nobodys = pb.DraftTokens(request_id=77, token_ids=[1])
        impossible = pb.DraftTokens(request_id=2, token_ids=[2**31])
        more = [pb.ToWorker(draft=each) for each in (nobodys, impossible, draft)]
        await router.send(pb.ToWorker(submit=submit, more=more))
        guessed = await router.finish(2)
        assert router.tokens[2, 0] == router.tokens[1, 0]
        assert 0 < guessed.usage.accepted_draft_tokens <= guessed.usage.draft_tokens
        submit.request_id, draft.request_id, submit.toggles.no_speculation = 3, 3, True
        await router.send(pb.ToWorker(submit=submit, more=[pb.ToWorker(draft=draft)]))
        assert (await router.finish(3)).usage.draft_tokens == 0, "speculation is off for this request"
