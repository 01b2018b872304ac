"""The session between one router and a front whose engine is scripted: ids in, frames out, in order, for everybody at once."""

from front_support import running_front

from pagoda_worker.wire import worker_pb2 as pb


async def test_a_session_streams_tokens_and_ends_with_usage():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(7, [10, 20, 30], max_tokens=4)
        finish = await router.finish(7)
        assert router.tokens[7, 0] == [31, 32, 33, 34]
        assert finish.reason == pb.FINISH_LENGTH
        assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (3, 4)
        assert router.started[7].queue_us == 5
