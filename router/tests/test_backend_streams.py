"""The requests of one session without any network: whatever happens in whatever order, everything is given back exactly once."""

import asyncio
from typing import Any

import pytest
from fleet_rig import generation
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission.credits import CreditLedger, price
from pagoda_router.backends.base import RefusedByWorker, Settlement
from pagoda_router.backends.streams import RunningRequests
from pagoda_router.generation import EndReason, ModelName, Tokens, WorkerId
from pagoda_router.wire import worker_pb2 as wire

CAPACITY = 4096


class Heard:
    """A LinkListener that adds up."""

    def __init__(self) -> None:
        self.settled_tokens = 0
        self.settlements = 0
        self.outputs: list[int] = []
        self.used: list[int] = []
        self.failures: list[str | None] = []

    def capacity_changed(self, model: ModelName) -> None:
        pass

    def settled(self, settlement: Settlement) -> None:
        self.settled_tokens += settlement.reserved_tokens
        self.settlements += 1
        self.outputs += settlement.output_tokens
        self.used.append(settlement.used_tokens)
        self.failures.append(settlement.failure)

    def session_ended(self, worker: WorkerId, reason: str) -> None:
        pass


def requests_of(heard: Heard, sent: list[Any]) -> RunningRequests:
    ledger = CreditLedger(1, CAPACITY)
    ledger.grant(1, 1, 10**9)
    return RunningRequests(WorkerId("w"), ModelName("tiny"), ledger, heard, sent.append, block_size=lambda: 16)


def finish(request_id: int, sequence: int, reason: int, tokens: int = 3) -> Any:
    return wire.Frame(
        finishes=[wire.Finish(request_id=request_id, sequence=sequence, reason=reason, usage=wire.Usage(completion_tokens=tokens))]
    )


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "tokens", "started", "finish", "abandon", "stop", "refuse", "lose", "end_all"]),
        st.integers(0, 30),
        st.integers(0, 3),
    ),
    max_size=80,
)
REASONS = [wire.FINISH_STOP, wire.FINISH_LENGTH, wire.FINISH_CANCELLED, wire.FINISH_ENGINE_ERROR]


@given(OPERATIONS)
def test_everything_returns_to_zero_and_each_sequence_ends_at_most_once(trace):
    heard, sent = Heard(), []
    requests = requests_of(heard, sent)
    streams: list[Any] = []
    events: dict[int, list[Any]] = {}
    reserved_total = 0

    def read_all() -> None:
        for stream in streams:
            events.setdefault(stream.request_id, []).extend(stream._pending)
            stream._pending = []

    for operation, which, sequence in trace:
        if operation == "submit":
            wanted = generation(1 + which, 8, n=1 + sequence)
            cost = price(wanted, 8, 16)
            reserved = requests.ledger.reservation_for(cost)
            if reserved is not None:
                streams.append(requests.add(wanted, cost, reserved))
                reserved_total += reserved
        elif operation == "lose":
            requests.lose_all("gone")
        elif streams:
            stream = streams[which % len(streams)]
            if operation == "tokens":
                rows = {"request_ids": [stream.request_id], "sequences": [sequence], "token_counts": [2], "token_ids": [7, 8]}
                requests.deliver(wire.Frame(**rows))
            elif operation == "started":
                requests.deliver(wire.Frame(started=[wire.Started(request_id=stream.request_id)]))
            elif operation == "finish":
                requests.deliver(finish(stream.request_id, sequence, REASONS[which % len(REASONS)]))
            elif operation == "abandon":
                stream.abandon()
            elif operation == "stop" and sequence < stream.generation.n:
                stream.stop(sequence)
            elif operation == "refuse":
                requests.refuse(stream.request_id, RefusedByWorker("no"))
            elif operation == "end_all":
                stream.end_all(EndReason.SHUTDOWN, "drained")
        assert requests.ledger.outstanding_tokens + heard.settled_tokens == reserved_total
        assert requests.ledger.outstanding_tokens <= CAPACITY
    for stream in streams:
        for sequence in range(stream.generation.n):
            requests.deliver(finish(stream.request_id, sequence, wire.FINISH_CANCELLED))
    read_all()
    assert len(requests) == requests.sequences == requests.unbegun_prompt_tokens == requests.ledger.outstanding_tokens == 0
    assert heard.settlements == len(streams)
    for seen in events.values():
        ended = [event.sequence for event in seen if not isinstance(event, Tokens) and hasattr(event, "reason")]
        assert len(ended) == len(set(ended))
        for event in seen:
            if isinstance(event, Tokens) and event.sequence in ended:
                assert seen.index(event) < next(i for i, e in enumerate(seen) if hasattr(e, "reason") and e.sequence == event.sequence)


def test_only_answers_that_ended_by_themselves_teach_a_length():
    heard, sent = Heard(), []
    requests = requests_of(heard, sent)
    for number, reason in enumerate(REASONS, start=1):
        wanted = generation()
        requests.add(wanted, price(wanted, 8, 16), 16)
        requests.deliver(finish(number, 0, reason, tokens=number))
    assert heard.outputs == [1, 2]
    wanted = generation()
    stopped = requests.add(wanted, price(wanted, 8, 16), 16)
    stopped.stop(0)
    requests.deliver(finish(stopped.request_id, 0, wire.FINISH_CANCELLED, tokens=9))
    assert heard.outputs == [1, 2, 9], "a stop string's end is a real end"


def test_a_cancel_is_sent_once_and_not_for_what_is_over():
    heard, sent = Heard(), []
    requests = requests_of(heard, sent)
    wanted = generation()
    stream = requests.add(wanted, price(wanted, 8, 16), 16)
    requests.deliver(finish(stream.request_id, 0, wire.FINISH_STOP))
    stream.abandon()
    stream.stop(0)
    assert sent == []


def rows(request_id: int, *token_ids: int) -> Any:
    return wire.Frame(request_ids=[request_id], sequences=[0], token_counts=[len(token_ids)], token_ids=token_ids)


async def tapped(take: Any) -> tuple[RunningRequests, Any, "asyncio.Task[Any]"]:
    """A stream with a tap, and its reader, which waits."""
    requests = requests_of(Heard(), [])
    wanted = generation(4, 8)
    cost = price(wanted, 8, 16)
    stream = requests.add(wanted, cost, requests.ledger.reservation_for(cost) or 0)
    stream.tap(take)
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    return requests, stream, reader


async def test_what_a_tap_takes_wakes_no_reader():
    taken: list[Any] = []
    requests, stream, reader = await tapped(lambda tokens: not taken.append(tokens))
    requests.deliver(rows(stream.request_id, 7, 8))
    requests.deliver(rows(stream.request_id, 9))
    await asyncio.sleep(0)
    assert not reader.done()
    assert [list(tokens.token_ids) for tokens in taken] == [[7, 8], [9]]
    assert stream.progress == 2  # it is no stalled stream
    requests.deliver(finish(stream.request_id, 0, wire.FINISH_STOP))
    assert [type(event).__name__ for event in await reader] == ["Ended"]


async def test_no_tap_overtakes_what_its_reader_has_not_read():
    taken: list[Any] = []
    may_take = False

    def take(tokens: Tokens) -> bool:
        taken.append(tokens)
        return may_take

    requests, stream, reader = await tapped(take)
    requests.deliver(rows(stream.request_id, 7))  # refused, so the reader has it to read
    may_take = True
    requests.deliver(rows(stream.request_id, 8))
    assert [list(event.token_ids) for event in await reader] == [[7], [8]]
    requests.deliver(rows(stream.request_id, 9))  # nobody waits: its reader may be in the middle of writing
    assert [list(event.token_ids) for event in await anext(stream)] == [[9]]
    assert len(taken) == 1


async def test_a_tap_that_fails_fails_its_own_stream_and_no_other():
    def take(tokens: Tokens) -> bool:
        raise ZeroDivisionError("in this answer")

    requests, stream, reader = await tapped(take)
    other = requests.add(stream.generation, stream.cost, 16)
    requests.deliver(wire.Frame(request_ids=[stream.request_id, other.request_id], sequences=[0, 0], token_counts=[1, 1], token_ids=[7, 8]))
    with pytest.raises(ZeroDivisionError):
        await reader
    assert [list(event.token_ids) for event in await anext(other)] == [[8]]


async def test_a_stopped_sequence_is_offered_to_no_tap():
    taken: list[Any] = []
    requests, stream, reader = await tapped(lambda tokens: not taken.append(tokens))
    stream.stop(0)
    requests.deliver(rows(stream.request_id, 7))
    assert taken == []
    stream.wake()
    with pytest.raises(StopAsyncIteration):
        await reader
