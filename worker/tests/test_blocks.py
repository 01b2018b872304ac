"""Reference counts, least-recently-used eviction and prefix hashes of the block pool."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.scheduling.blocks import BlockPool, chain_hash, root_hash


def named(name: int) -> bytes:
    return name.to_bytes(16, "little")


@pytest.mark.parametrize(("salt", "last"), [(b"", "dfccfc44bfebc9fa1a333d45fec84e01"), (b"tenant", "1d36db35bd5c156f9505cddd133c1d3d")])
def test_the_hashes_are_those_that_routers_expect(salt, last):
    """The router's tests hold the same two: a change here is a new HASH_VERSION."""
    known = root_hash(salt)
    for start in range(0, 96, 16):
        known = chain_hash(known, range(start, start + 16))
    assert known.hex() == last


def test_a_taken_block_is_held_once_and_returns_to_the_free_ones():
    pool = BlockPool(4, 16)
    blocks = pool.take(3)
    assert len(set(blocks)) == 3
    assert pool.free_blocks == 1
    pool.release(blocks)
    pool.check([])
    assert pool.free_blocks == 4


def test_a_fresh_pool_hands_out_neighbours():
    assert BlockPool(8, 16).take(4) == [0, 1, 2, 3]


def test_a_shared_block_stays_until_its_last_holder_lets_go():
    pool = BlockPool(2, 16)
    blocks = pool.take(1)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.references(blocks[0]) == 1
    assert pool.free_blocks == 1
    pool.release(blocks)
    assert pool.free_blocks == 2


def test_releasing_more_often_than_taking_is_caught():
    pool = BlockPool(1, 16)
    blocks = pool.take(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(blocks)


def test_a_registered_prefix_is_found_block_by_block_until_the_first_unknown_hash():
    pool = BlockPool(4, 16)
    first, second = pool.take(2)
    pool.register(first, named(1))
    pool.register(second, named(2))
    assert pool.match([named(1), named(2), named(3)]) == [first, second]
    assert pool.match([named(9), named(2)]) == []


def test_a_cached_block_survives_its_holder_and_counts_as_free():
    pool = BlockPool(2, 16)
    blocks = pool.take(1)
    pool.register(blocks[0], named(1))
    pool.release(blocks)
    assert pool.free_blocks == 2
    assert pool.match([named(1)]) == blocks
    pool.share(blocks)
    assert pool.free_blocks == 1
    pool.check([blocks])


def test_uncached_blocks_are_handed_out_before_any_prefix_is_evicted():
    pool = BlockPool(3, 16)
    cached = pool.take(1)
    pool.register(cached[0], named(1))
    pool.release(cached)
    pool.take(2)
    assert pool.match([named(1)]) == cached


def test_the_least_recently_released_prefix_is_evicted_first_and_ends_before_beginnings():
    pool = BlockPool(4, 16)
    old, young = pool.take(2), pool.take(2)
    for i, block in enumerate([*old, *young]):
        pool.register(block, named(i))
    pool.release(old)
    pool.release(young)
    pool.take(1)
    assert pool.match([named(0), named(1)]) == old[:1], "the end of the older prefix went first"
    pool.take(1)
    assert pool.match([named(0)]) == []
    assert pool.match([named(2), named(3)]) == young


def test_using_a_cached_prefix_again_makes_it_young():
    pool = BlockPool(2, 16)
    a, b = pool.take(1), pool.take(1)
    pool.register(a[0], named(1))
    pool.register(b[0], named(2))
    pool.release(a)
    pool.release(b)
    pool.share(a)
    pool.release(a)
    pool.take(1)
    assert pool.match([named(1)]) == a
    assert pool.match([named(2)]) == []


def test_the_first_block_with_a_hash_keeps_it():
    pool = BlockPool(2, 16)
    first, second = pool.take(2)
    pool.register(first, named(1))
    pool.register(second, named(1))
    assert pool.match([named(1)]) == [first]
    pool.release([first, second])
    pool.check([])


def test_a_discredited_block_is_never_found_again():
    pool = BlockPool(1, 16)
    blocks = pool.take(1)
    pool.register(blocks[0], named(1))
    pool.discredit(blocks)
    assert pool.match([named(1)]) == []
    pool.release(blocks)
    pool.check([])


def test_dropping_the_cache_keeps_held_blocks_held():
    pool = BlockPool(2, 16)
    held, cached = pool.take(1), pool.take(1)
    for i, block in enumerate([*held, *cached]):
        pool.register(block, named(i))
    pool.release(cached)
    pool.drop_cache()
    assert pool.match([named(0)]) == []
    pool.check([held])


def test_the_hash_is_blake2b_over_parent_and_little_endian_words():
    """The form routers compute too (hash version 1): a change here is a change of the wire."""
    root = hashlib.blake2b(b"\x04\x00\x00\x00salt\x03\x00\x00\x00sql", digest_size=16).digest()
    assert root_hash(b"salt", "sql") == root
    assert chain_hash(root, [1, 258]) == hashlib.blake2b(root + b"\x01\x00\x00\x00\x02\x01\x00\x00", digest_size=16).digest()


@given(st.binary(max_size=8), st.text(max_size=4), st.binary(max_size=8), st.text(max_size=4))
def test_no_two_salts_and_adapters_share_a_root(salt: bytes, adapter: str, other_salt: bytes, other_adapter: str):
    same = (salt, adapter) == (other_salt, other_adapter)
    assert (root_hash(salt, adapter) == root_hash(other_salt, other_adapter)) == same


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "release", "register", "discredit", "drop"]), st.integers(0, 9)), max_size=60))
def test_no_order_of_operations_loses_or_doubles_a_block(operations: list[tuple[str, int]]):
    pool = BlockPool(6, 4)
    holders: list[list[int]] = []
    for name, number in operations:
        if name == "take" and 0 < number <= pool.free_blocks:
            holders.append(pool.take(number))
        elif name == "share" and (found := pool.match([named(number)])):
            pool.share(found)
            holders.append(found)
        elif name == "release" and holders:
            pool.release(holders.pop(number % len(holders)))
        elif name == "register" and holders:
            held = holders[number % len(holders)]
            pool.register(held[number % len(held)], named(number))
        elif name == "discredit" and holders:
            pool.discredit(holders[number % len(holders)])
        elif name == "drop":
            pool.drop_cache()
        pool.check(holders)
    for held in holders:
        pool.release(held)
    pool.check([])
    assert pool.free_blocks == 6


@given(st.lists(st.tuples(st.sampled_from(["register", "take", "release", "discredit", "drop", "tell"]), st.integers(0, 9)), max_size=60))
def test_the_changes_told_add_up_to_what_the_pool_knows(actions):
    pool, held, told = BlockPool(4, 16), [], set()

    def tell():
        changes = pool.take_changes()
        if changes is not None:
            if changes.cleared:
                told.clear()
            told.difference_update(changes.removed)
            told.update(changes.stored)

    for action, name in actions:
        if action == "register" and held:
            pool.register(held[name % len(held)], named(name))
        elif action == "take" and pool.free_blocks:
            held += pool.take(1)
        elif action == "release" and held:
            pool.release([held.pop(name % len(held))])
        elif action == "discredit" and held:
            pool.discredit([held[name % len(held)]])
        elif action == "drop":
            pool.drop_cache()
        elif action == "tell":
            tell()
    tell()
    assert told == {named(name) for name in range(10) if pool.match([named(name)])}
    assert pool.take_changes() is None
