"""The front's copy of what the prefix cache holds: bounded messages that add up, also for a router that comes late."""

from pagoda_worker.front.cache_mirror import MOST_HASHES, CacheMirror
from pagoda_worker.front.session import RouterSession, worker_state
from pagoda_worker.request import CacheChanges
from pagoda_worker.wire import worker_pb2 as pb


def named(name: int) -> bytes:
    return name.to_bytes(16, "little")


def hashes(events: list[pb.CacheEvent]) -> list[bytes]:
    return [event.block_hashes[at : at + 16] for event in events for at in range(0, len(event.block_hashes), 16)]


def test_a_late_router_hears_everything_in_bounded_events_a_parent_before_its_child():
    mirror = CacheMirror("tiny")
    mirror.apply(CacheChanges(stored=[named(at) for at in range(5000)]))
    mirror.apply(CacheChanges(removed=[named(7)]))
    events = mirror.whole()
    assert hashes(events) == [named(at) for at in range(5000) if at != 7]
    assert [len(event.block_hashes) // 16 for event in events] == [MOST_HASHES, MOST_HASHES, 4999 - 2 * MOST_HASHES]


def test_a_step_that_cleared_and_stored_tells_so_in_this_order():
    mirror = CacheMirror("tiny")
    mirror.block_size = 16
    mirror.apply(CacheChanges(stored=[named(1)]))
    cleared, stored = mirror.apply(CacheChanges(cleared=True, stored=[named(2)]))
    assert (cleared.kind, stored.kind) == (pb.CacheEvent.CLEARED, pb.CacheEvent.STORED)
    assert (stored.model, stored.block_size, stored.hash_version, len(mirror)) == ("tiny", 16, 1, 1)


def test_cache_events_travel_with_frames_and_cost_one_of_their_own_ten_times_a_second_at_most():
    session = RouterSession(1, "r", wants_cache_events=True)
    state = worker_state(None, draining=False, not_ready_reason="", routers=1)
    session.welcome("w", state, [], 0)
    event = pb.CacheEvent(kind=pb.CacheEvent.STORED, block_hashes=named(1))
    for now_us in range(1_000_000, 1_200_000, 10_000):
        session.cache_changed([event])
        session.send_frame(1, now_us, state, None)
    assert session.outbox.qsize() == 1 + 2
    other = RouterSession(2, "r")
    other.cache_changed([event])
    assert other.draft.cache_events == []
