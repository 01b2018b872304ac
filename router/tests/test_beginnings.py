"""What is known of things that begin alike: the longest common beginning, of one sender, within the bound."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.beginnings import LEAD, MOST_ALIKE, KnownBeginnings, common_length
from pagoda_router.placement.chains import LEAST_IDS_BYTES, SLICE_BLOCKS, GrowingChain, PrefixChains
from pagoda_router.placement.prefixes import PrefixChain, chain_of

TURN = "so it goes on. " * 1000
LEAST_IDS = LEAST_IDS_BYTES // 4


@given(st.integers(0, 20_000), st.integers(0, 9000), st.integers(0, 9000))
def test_what_two_have_in_common_is_found_to_the_character(same: int, one: int, other: int) -> None:
    assert common_length("s" * same + "a" * one, "s" * same + "b" * other) == same
    assert common_length(b"s" * same + b"a" * one, b"s" * same + b"b" * other) == same


def test_of_those_that_begin_alike_the_one_with_most_in_common_is_found() -> None:
    known: KnownBeginnings[str, str] = KnownBeginnings(10**6)
    for name in ("first", "second", "third"):
        known.remember("a", TURN + name * 2000, name, 1, None)
    found = known.longest("a", TURN + "second" * 2000 + " and then")
    assert found is not None
    assert (found.known.worked, found.length) == ("second", len(TURN) + 12_000)
    assert known.longest("b", TURN) is None, "another sender's"
    assert known.longest("a", TURN[: LEAD - 1]) is None


def test_a_conversation_is_remembered_once_however_many_turns_it_has() -> None:
    known: KnownBeginnings[str, int] = KnownBeginnings(10**6)
    text = TURN
    for turn in range(50):
        known.remember("a", text, turn, len(text), known.longest("a", text))
        text += f"turn {turn}. " * 40
    assert known.held_bytes < len(text)


def test_memory_is_bounded_and_what_was_used_longest_ago_goes_first() -> None:
    known: KnownBeginnings[str, int] = KnownBeginnings(10)
    for number in range(20):
        known.remember("a", f"{number:05}" * LEAD, number, 2, None)
        assert known.longest("a", "00000" * LEAD) is not None
        assert known.held_bytes <= 10
    assert known.longest("a", "00001" * LEAD) is None
    endings = "abcdefghij"[: MOST_ALIKE + 2]
    for ending in endings:
        known.remember("b", TURN + ending * LEAD, 0, 0, None)
    lengths = [found.length for ending in endings if (found := known.longest("b", TURN + ending * LEAD)) is not None]
    assert lengths == [len(TURN)] * 2 + [len(TURN) + LEAD] * MOST_ALIKE, "and of those alike the first"


@pytest.mark.parametrize("kept", [0, LEAST_IDS, LEAST_IDS + 1, LEAST_IDS + 17, 3 * LEAST_IDS])
def test_a_chain_of_which_the_beginning_is_known_has_the_hashes_that_it_has_anew(kept: int) -> None:
    chains, first = PrefixChains(), list(range(3 * LEAST_IDS))
    for ids in (first, [*first[:kept], *range(7, LEAST_IDS)], first, first[: 2 * LEAST_IDS + 5]):
        for label in ("", "sql@v1"):
            assert whole(chains.begun(ids, 16, tenant="a", label=label)) == chain_of(ids, 16, label=label).hashes


def test_what_is_one_requests_own_is_not_remembered() -> None:
    chains = PrefixChains()
    assert whole(chains.begun(range(2 * LEAST_IDS), 16, b"salt")) == chain_of(range(2 * LEAST_IDS), 16, b"salt").hashes
    assert chains.held_bytes == 0


@pytest.mark.parametrize("known", [0, 5 * SLICE_BLOCKS // 2])
def test_a_long_new_prompt_is_hashed_in_slices_between_which_others_may_go_on(known: int) -> None:
    chains, ids = PrefixChains(), list(range(16 * SLICE_BLOCKS * 4 + 5))
    whole(chains.begun(ids[: known * 16], 16))
    chain, heard = chains.begun(ids, 16), list[bytes]()
    begun_blocks = len(chain.hashes)
    assert begun_blocks == known + SLICE_BLOCKS, "what is remembered, and a slice"
    assert not chain.is_whole
    chain.follow(heard.extend)
    assert whole(chain) == chain_of(ids, 16).hashes
    assert heard == chain.hashes[begun_blocks:]
    assert chains.begun(ids, 16).is_whole, "remembered, though it came in slices"


def whole(chain: PrefixChain) -> Sequence[bytes]:
    while isinstance(chain, GrowingChain) and not chain.is_whole:
        chain.grow()
    return chain.hashes
