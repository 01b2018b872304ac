"""Prefixes: the same hashes as the worker's, speculative entries at once, never more than memory allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.placement.chains import SLICE_BLOCKS, GrowingChain
from pagoda_router.placement.prefix_tree import PrefixTree
from pagoda_router.placement.prefixes import USUAL_ROOT, KnownPrefixes, PrefixChain, chain_of, split_hashes
from pagoda_router.token_ids import packed

PROMPT = list(range(100))


@pytest.mark.parametrize(("salt", "last"), [(b"", "dfccfc44bfebc9fa1a333d45fec84e01"), (b"tenant", "1d36db35bd5c156f9505cddd133c1d3d")])
def test_the_hashes_are_those_of_the_workers_prefix_cache(salt, last):
    """The worker's tests hold the same two."""
    hashes = chain_of(PROMPT, 16, salt).hashes
    assert (len(hashes), hashes[-1].hex()) == (6, last)


def test_the_whole_prompt_is_the_key_not_only_its_beginning():
    known = KnownPrefixes(16)
    known.expect(chain_of(PROMPT, 16))
    assert known.cached_tokens(chain_of([*PROMPT[:40], *range(500, 560)], 16)) == 32
    assert known.cached_tokens(chain_of([7, *PROMPT], 16)) == 0


def test_tenants_with_different_salts_never_meet():
    known = KnownPrefixes(16)
    known.expect(chain_of(PROMPT, 16, b"one"))
    assert known.cached_tokens(chain_of(PROMPT, 16, b"two")) == 0


def test_blocks_of_another_size_say_nothing():
    known = KnownPrefixes(16)
    known.expect(chain_of(PROMPT, 16))
    assert known.cached_tokens(chain_of(PROMPT, 32)) == 0
    known.expect(chain_of(PROMPT, 32)).over()
    assert len(known) == 6


def test_what_a_request_that_never_began_was_expected_to_leave_is_taken_back():
    known, chain = KnownPrefixes(16), chain_of(PROMPT, 16)
    expectation = known.expect(chain)
    assert known.cached_tokens(chain) == 96
    expectation.over()
    assert known.cached_tokens(chain) == 0


def test_what_another_request_made_true_meanwhile_stays():
    known, chain = KnownPrefixes(16), chain_of(PROMPT, 16)
    expectation = known.expect(chain)
    known.stored(chain.hashes[:2])
    expectation.over()
    assert known.cached_tokens(chain) == 32


def test_a_block_is_held_until_the_last_request_with_it_is_over():
    known, long, short = KnownPrefixes(16), chain_of(PROMPT, 16), chain_of(PROMPT[:40], 16)
    first, second = known.expect(long), known.expect(short)
    first.begun()
    assert (known.held_tokens(long), known.held_tokens(short)) == (96, 32)
    first.over()
    assert (known.held_tokens(long), known.cached_tokens(long)) == (32, 96)
    second.over()
    assert (known.held_tokens(long), known.cached_tokens(long)) == (0, 96)


def test_events_of_the_worker_correct_what_was_expected():
    known, chain = KnownPrefixes(16), chain_of(PROMPT, 16)
    known.stored(split_hashes(b"".join(chain.hashes)))
    known.removed(chain.hashes[3:])
    assert known.cached_tokens(chain) == 48
    known.clear()
    assert known.cached_tokens(chain) == 0


def test_memory_is_bounded_and_the_end_of_the_oldest_prefix_goes_first():
    known = KnownPrefixes(16, most_blocks=8)
    old, new = chain_of(PROMPT, 16), chain_of(range(1000, 1064), 16)
    known.expect(old)
    known.expect(new)
    assert len(known) == 8
    assert (known.cached_tokens(old), known.cached_tokens(new)) == (64, 64)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30), st.integers(4, 20))
def test_what_is_known_is_closed_under_prefixes_so_that_a_binary_search_finds_the_longest(steps, most_blocks):
    known = KnownPrefixes(4, most_blocks)
    prompts = [[*range(8), *range(100 * branch, 100 * branch + 4 * tail)] for branch in range(4) for tail in range(4)]
    for branch, tail, stored in steps:
        chain = chain_of(prompts[branch * 4 + tail], 4)
        known.stored(chain.hashes) if stored else known.expect(chain)
    for prompt in prompts:
        chain = chain_of(prompt, 4)
        linear = next((at for at, each in enumerate(chain.hashes) if each not in known), len(chain.hashes))
        assert known.cached_tokens(chain) == 4 * linear
    assert len(known) <= most_blocks


def test_the_next_turn_of_a_conversation_takes_its_place_and_shares_what_it_had():
    known, first, second = KnownPrefixes(16), chain_of(PROMPT, 16), chain_of([*PROMPT, *PROMPT], 16)
    known.expect(first).begun()
    later = known.expect(second)
    assert len(known) == len(second.hashes)
    later.over()
    assert (known.cached_tokens(second), len(known)) == (96, 6)


def test_what_others_go_on_from_stays_when_the_first_never_began():
    known, first, second = KnownPrefixes(16), chain_of(PROMPT, 16), chain_of([*PROMPT, *PROMPT], 16)
    expectation, later = known.expect(first), known.expect(second)
    expectation.over()
    assert known.cached_tokens(second) == 192
    later.over()
    assert len(known) == 0


def test_a_block_that_the_worker_gave_up_is_known_again_once_it_is_sent_again():
    known, chain = KnownPrefixes(16), chain_of(PROMPT, 16)
    known.expect(chain).begun()
    known.removed(chain.hashes[2:3])
    assert (known.cached_tokens(chain_of(PROMPT[:48], 16)), len(known)) == (32, 5)
    known.removed(chain.hashes[3:])
    assert (known.cached_tokens(chain), len(known)) == (32, 2)
    known.expect(chain).begun()
    assert known.cached_tokens(chain) == 96


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 400), st.booleans()), max_size=20))
def test_what_is_held_is_never_more_than_requests_hold_and_all_of_it_for_the_turns_of_one_conversation(steps):
    known, running = KnownPrefixes(4), []
    for branch, blocks, ends in steps:
        if ends and running:
            running.pop(0)[0].over()
        prompt = [*range(4 * 100), *range(1000 * branch, 1000 * branch + 4 * 400)][: 4 * blocks]
        chain = chain_of(prompt, 4)
        true = max((_shared(chain.hashes, other.hashes) for _, other in running), default=0) * 4
        assert true - 4 * 64 < known.held_tokens(chain) <= true
        running.append((known.expect(chain), chain))
        assert known.held_tokens(chain) == 4 * blocks, "its own"
    for expectation, _ in running:
        expectation.over()
    assert not known._held


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 12)), max_size=20), st.integers(1, 30))
def test_a_tree_forgets_many_blocks_at_once_as_it_does_one_by_one(steps, most):
    at_once, singly = PrefixTree(), PrefixTree()
    for branch, shared, own in steps:
        chain = [*[b"shared %d" % at for at in range(shared)], *[b"%d of %d after %d" % (at, branch, shared) for at in range(own)]]
        for tree in (at_once, singly):
            tree.use(chain)
    while len(at_once) and len(singly):
        removed = at_once.remove_oldest(most)
        assert removed == [block for _ in removed for block in singly.remove_oldest(1)]
        assert 1 <= len(removed) <= most
        assert (at_once._parents, at_once._followers, list(at_once._ends)) == (singly._parents, singly._followers, list(singly._ends))
    assert not at_once._ends or len(at_once)
    assert len(at_once) == len(singly) == 0
    assert not at_once._followers


class Script:
    """A request with a long prompt, whose chain is whole at once or grows while other things happen."""

    def __init__(self, blocks, *, grows):
        self.known, ids = KnownPrefixes(4, most_blocks=5 * SLICE_BLOCKS), range(4 * blocks)
        chain = chain_of(ids, 4)
        self.chain = GrowingChain(packed(ids), 4, USUAL_ROOT, chain.hashes[:10], "", lambda hashes: None) if grows else chain
        self.expectation = self.known.expect(self.chain)

    def play(self, step):
        if step == "grow" and isinstance(self.chain, GrowingChain) and not self.chain.is_whole:
            self.chain.grow()
        elif step == "begun":
            self.expectation.begun()
        elif step == "over":
            self.expectation.over()
        elif step.startswith("other"):
            ids = range(4 * 3) if step == "other begins" else range(10**6, 10**6 + 4 * int(step.split()[-1]))
            self.known.expect(chain_of(ids, 4)).begun()


@given(
    st.integers(11, 4 * SLICE_BLOCKS),
    st.sampled_from([["begun", "over"], ["over"], ["begun"], []]),
    st.lists(st.sampled_from(["grow", "other begins", "other 700"]), max_size=8),
    st.data(),
)
def test_a_chain_that_grows_becomes_known_and_held_as_if_it_had_been_whole_from_the_first(blocks, life, steps, data):
    for step in life:
        steps.insert(data.draw(st.integers(steps.index("begun") + 1 if "begun" in steps else 0, len(steps))), step)
    whole, growing = (Script(blocks, grows=grows) for grows in (False, True))
    for step in [*steps, *["grow"] * 8]:
        whole.play(step)
        growing.play(step)
    for probe in (PrefixChain(4, whole.chain.hashes), PrefixChain(4, whole.chain.hashes[:37]), chain_of(range(10**6, 10**6 + 2800), 4)):
        assert growing.known.held_tokens(probe) == whole.known.held_tokens(probe)
        # A step of the other chain in the middle makes it older than the rest of this one: where memory is short, that goes the sooner.
        if len(whole.known) < 5 * SLICE_BLOCKS and len(growing.known) < 5 * SLICE_BLOCKS:
            assert growing.known.cached_tokens(probe) == whole.known.cached_tokens(probe)
    assert growing.known._held == whole.known._held


def _shared(one, other):
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
