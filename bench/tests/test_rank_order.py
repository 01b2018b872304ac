"""Asking a real server what simulated users ask: what is waited for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pagoda_bench.rank_order.asking import Ask, ask_all
from pagoda_bench.rank_order.real_workers import LONG_TOKENS, LONGEST_TOKENS, PROBE_TOKENS, prompt_costs

ASKS = [Ask.completion(at_s, [1, 2], model="m") for at_s in (0.0, 0.01)]


@asynccontextmanager
async def serving(rest: Callable[[], Awaitable[object]]) -> AsyncIterator[str]:
    """One event at once, and the end after `rest`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n7\r\ndata: 1\r\n")
        await rest()
        writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_first_tokens_alone_wait_for_no_answers_end():
    never = asyncio.Event()
    async with serving(never.wait) as url, asyncio.timeout(20):
        answers = await ask_all(url, ASKS, whole=False)
        never.set()
    assert all(answer.first_s is not None and answer.ended_s is None and not answer.failure for answer in answers)


async def test_whole_answers_have_an_end():
    async with serving(lambda: asyncio.sleep(0)) as url, asyncio.timeout(20):
        answers = await ask_all(url, ASKS)
    assert all(answer.ended_s is not None for answer in answers)


async def test_a_server_that_is_not_there_is_a_failure_of_every_request():
    async with asyncio.timeout(20):
        answers = await ask_all("http://127.0.0.1:9", ASKS, whole=False)
    assert all(answer.failure.startswith("connect") for answer in answers)


@pytest.mark.parametrize(("token_s", "pair_s"), [(0.001, 0.0), (0.0003, 1.5e-7)])
def test_what_a_prompt_costs_follows_from_three_lengths(token_s, pair_s):
    def took_s(tokens: int) -> float:
        return token_s * tokens + pair_s * tokens**2 / 2

    short_s, long_s, longest_s = (took_s(tokens) for tokens in (PROBE_TOKENS, LONG_TOKENS, LONGEST_TOKENS))
    assert prompt_costs(long_s - short_s, longest_s - short_s) == pytest.approx((token_s, pair_s))


def test_noise_makes_no_prompt_free():
    token_s, pair_s = prompt_costs(1.0, 0.5)
    assert token_s > 0
    assert pair_s == 0
