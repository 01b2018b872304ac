"""A second worker is asked where a first token is long overdue and the fleet half empty: the first to answer wins, the other is left."""

import asyncio
from typing import Any

import pytest
from fleet_rig import Rig, ends_of, generation, rig, tokens_of
from scripted_worker import ScriptedWorker
from test_continuing import first_asked

from pagoda_router.dispatch import hedging
from pagoda_router.dispatch.second_tries import RetryShares
from pagoda_router.wire import worker_pb2 as wire

FACTOR = 1.0


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "SHORTEST_S", 0.02)


@pytest.fixture
async def pair() -> Any:
    async with ScriptedWorker(name="a") as a, ScriptedWorker(name="b") as b:
        yield a, b


async def answer(worker: ScriptedWorker, submit: Any, token: int) -> None:
    worker.tokens(submit.request_id, [token], started=True)
    worker.finish(submit.request_id)


def hedges(router: Rig, won: str) -> float:
    return router.metric("hedges_total", model="tiny", won=won)


@pytest.mark.parametrize("winner", ["first", "second"])
async def test_whoever_has_a_first_token_first_goes_on_and_the_other_is_cancelled(tmp_path: Any, pair: Any, winner: str) -> None:
    async with rig(tmp_path, *pair, hedge_factor=FACTOR) as router:
        wanted = generation()
        task = asyncio.create_task(router.collect(wanted))
        slow, other, submit = await first_asked(*pair)
        again = await other.next_submit()
        assert list(again.prompt_ids) == list(submit.prompt_ids)
        quick, loser = ((other, again), (slow, submit)) if winner == "second" else ((slow, submit), (other, again))
        await answer(*quick, 7)
        assert (tokens_of(await task), ends_of(await task)) == ([7], {0: "stop"})
        cancel = await loser[0].next_cancel()
        assert (cancel.request_id, cancel.reason) == (loser[1].request_id, wire.CANCEL_HEDGE_LOST)
        loser[0].rows([], started=[loser[1].request_id])
        loser[0].finish(loser[1].request_id, wire.FINISH_CANCELLED)
        await router.until(lambda: router.outstanding_tokens == 0)
        assert hedges(router, winner) == 1
        assert router.metric("hedge_lost_tokens_total", model="tiny") > 0, "its prompt was computed for nothing"
        assert [(attempt.worker.partition("@")[0], attempt.failed) for attempt in wanted.trace.attempts] == [
            (loser[0].name, "hedge_lost"),
            (quick[0].name, ""),
        ]


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_one_that_fails_leaves_it_to_the_other(tmp_path: Any, pair: Any, failing: str) -> None:
    async with rig(tmp_path, *pair, hedge_factor=FACTOR) as router:
        task = asyncio.create_task(router.collect())
        slow, other, submit = await first_asked(*pair)
        again = await other.next_submit()
        if failing == "first":
            slow.refuse(submit.request_id, wire.Refused.OVERLOADED, "full")
            await answer(other, again, 8)
        else:
            other.finish(again.request_id, wire.FINISH_ENGINE_ERROR, detail="broken")
            await answer(slow, submit, 8)
        assert tokens_of(await task) == [8]


async def test_a_client_that_leaves_cancels_both(tmp_path: Any, pair: Any) -> None:
    async with rig(tmp_path, *pair, hedge_factor=FACTOR) as router:
        task = asyncio.create_task(router.collect())
        slow, other, submit = await first_asked(*pair)
        again = await other.next_submit()
        task.cancel()
        assert (await slow.next_cancel()).request_id == submit.request_id
        assert (await other.next_cancel()).request_id == again.request_id
        with pytest.raises(asyncio.CancelledError):
            await task


NOT_HEDGED = {
    "off": ({}, {}),
    "the budget is spent": ({"hedge_factor": FACTOR, "retries": RetryShares(retries=0.0)}, {}),
    "the other is half full": ({"hedge_factor": FACTOR}, {"num_running": 4}),
}


@pytest.mark.parametrize(("settings", "state"), NOT_HEDGED.values(), ids=NOT_HEDGED)
async def test_nobody_else_is_asked_when(tmp_path: Any, pair: Any, settings: Any, state: dict[str, int]) -> None:
    async with rig(tmp_path, *pair, **settings) as router:
        for worker in pair:
            worker.change_state(**state)
        await router.until(lambda: all(link.view().running == state.get("num_running", 0) for link in router.fleet.links("tiny")))
        task = asyncio.create_task(router.collect())
        slow, other, submit = await first_asked(*pair)
        await asyncio.sleep(0.1)  # five times what a hedge waits for
        await answer(slow, submit, 7)
        assert tokens_of(await task) == [7]
        assert other.submits.empty()


async def test_nobody_else_is_asked_while_something_waits(tmp_path: Any, pair: Any) -> None:
    """What is free then belongs to those that wait."""
    async with rig(tmp_path, *pair, hedge_factor=FACTOR) as router:
        task = asyncio.create_task(router.collect())
        slow, other, submit = await first_asked(*pair)
        waits = asyncio.create_task(router.collect(generation(variant="of nobody")))
        await asyncio.sleep(0.1)
        assert other.submits.empty()
        waits.cancel()
        await answer(slow, submit, 7)
        assert tokens_of(await task) == [7]
