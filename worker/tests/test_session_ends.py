"""A session that ends at once is told so."""

import asyncio
import contextlib
from typing import Any

import grpc
from front_support import PATIENCE_S, running_front
from grpc import aio

from pagoda_worker.wire import worker_pb2 as pb


async def end_of(call: Any) -> grpc.StatusCode:
    with contextlib.suppress(aio.AioRpcError):
        while await call.read() is not aio.EOF:
            pass
    code: grpc.StatusCode = await call.code()
    return code


async def test_a_session_that_is_wrong_from_its_second_message_on_is_told_so_while_its_welcome_is_on_the_way():
    async with running_front() as bench:
        await (await bench.router(router_id="first")).leave()
        calls = [bench.stub.Session() for _ in range(60)]
        for number, call in enumerate(calls):
            await call.write(pb.ToWorker(hello=pb.Hello(protocol=1, router_id=f"r{number}")))
            await call.write(pb.ToWorker())
        codes = await asyncio.wait_for(asyncio.gather(*map(end_of, calls)), PATIENCE_S)
        assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
