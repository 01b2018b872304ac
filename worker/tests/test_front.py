"""The front around a scripted engine: failures of the engine, drain, probes. Each call ends, the worker recovers by itself."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
from front_support import MODEL, SCRIPTED_COMMAND, TINY, running_front
from scripted_engine import CAPACITY, DIES, HANGS, RAISES

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.front.process import Front
from pagoda_worker.front.progress import Backoff
from pagoda_worker.loading.limits import Limits
from pagoda_worker.settings.worker import WorkerSettings
from pagoda_worker.wire import worker_pb2 as pb


async def test_a_dead_engine_ends_its_calls_with_a_sentence_and_comes_back():
    async with running_front() as bench:
        bench.front.supervisor.backoff = Backoff(first_s=2.0)
        router = await bench.router()
        await router.submit(1, [10, 11], max_tokens=200, reserved_kv_tokens=320)
        await router.until(lambda: len(router.tokens.get((1, 0), [])) >= 3)
        pid = bench.front.supervisor.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        finish = await router.finish(1)
        assert finish.reason == pb.FINISH_ENGINE_ERROR
        assert finish.detail == "the engine process was ended by SIGKILL; ask again"
        assert finish.engine_died
        assert finish.usage.completion_tokens == len(router.tokens[1, 0]), "no token lost or doubled"
        assert not router.state.ready
        assert router.granted == 320, "without an engine there is nothing to spend"
        health = await bench.http.get("/health")
        assert health.status_code == 503
        assert "SIGKILL; starting it again in 2.0 s" in health.json()["reason"]
        await router.submit(2, [10])
        assert (await router.refusal(2)).code == pb.Refused.NOT_READY
        await router.until(lambda: router.state.ready)
        assert router.granted == CAPACITY + 320
        await router.submit(3, [10], max_tokens=2)
        assert (await router.finish(3)).reason == pb.FINISH_LENGTH
        assert (await bench.http.get("/health")).json() == {"status": "ok"}
        assert await bench.metric("pagoda_engine_restarts_total") == 1


async def test_an_engine_that_dies_of_a_request_takes_only_running_calls_along():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [DIES])
        assert (await router.finish(1)).reason == pb.FINISH_ENGINE_ERROR
        await router.until(lambda: router.state.ready)
        await router.submit(2, [10], max_tokens=1)
        assert (await router.finish(2)).reason == pb.FINISH_LENGTH


async def test_a_step_that_raises_costs_its_requests_not_the_engine():
    async with running_front() as bench:
        router = await bench.router()
        pid = bench.front.supervisor.engine_pid
        for request_id in (1, 2):
            await router.submit(request_id, [RAISES])
            finish = await router.finish(request_id)
            assert (finish.reason, finish.detail) == (pb.FINISH_ENGINE_ERROR, "a step of the engine failed (RuntimeError); ask again")
        await router.submit(3, [10], max_tokens=1)
        assert (await router.finish(3)).reason == pb.FINISH_LENGTH
        assert bench.front.supervisor.engine_pid == pid


async def test_three_failed_steps_in_a_row_restart_the_engine():
    async with running_front() as bench:
        router = await bench.router()
        for request_id, cause in ((1, "a step of the engine failed"), (2, "a step of the engine failed"), (3, "the engine process ended")):
            await router.submit(request_id, [RAISES])
            assert (await router.finish(request_id)).detail.startswith(cause)
        await router.until(lambda: router.state.ready)
        assert await bench.metric("pagoda_engine_restarts_total") == 1


async def test_a_hung_engine_is_noticed_its_stacks_written_and_replaced(capfd: pytest.CaptureFixture[str]):
    async with running_front(stall_s=1.0) as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=1)
        await router.finish(1)
        await router.submit(2, [HANGS])
        await router.until(lambda: not router.state.ready)
        assert (await bench.http.get("/health")).status_code == 503
        finish = await router.finish(2)
        assert finish.reason == pb.FINISH_ENGINE_ERROR
        assert "no token moved for" in finish.detail or "has not answered for" in finish.detail
        await router.until(lambda: router.state.ready)
    assert "_misbehave" in capfd.readouterr().err, "faulthandler wrote where it hung"


async def test_a_stopped_engine_that_goes_on_in_time_is_not_replaced():
    async with running_front(stall_s=1.0) as bench:
        router = await bench.router()
        pid = bench.front.supervisor.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await router.until(lambda: not router.state.ready)
        assert "has not answered" in router.state.not_ready_reason
        os.kill(pid, signal.SIGCONT)
        await router.until(lambda: router.state.ready)
        assert bench.front.supervisor.engine_pid == pid
        await router.submit(1, [10], max_tokens=1)
        assert (await router.finish(1)).reason == pb.FINISH_LENGTH


async def test_a_drain_lets_running_calls_finish_and_takes_no_new_ones():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=150)
        await router.until(lambda: router.tokens)
        bench.front.stop()
        await router.until(lambda: router.goodbyes)
        assert router.goodbyes[0].drain_us == 30_000_000
        await router.submit(2, [10])
        assert (await router.refusal(2)).code == pb.Refused.DRAINING
        assert router.state.draining
        ready = await bench.http.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "Draining")
        assert (await bench.http.get("/health")).status_code == 200
        finish = await router.finish(1)
        assert (finish.reason, len(router.tokens[1, 0])) == (pb.FINISH_LENGTH, 150)
        await asyncio.wait_for(asyncio.shield(bench.run), 10)


async def test_a_drain_that_runs_out_of_time_says_so_to_each_call():
    async with running_front(drain_s=0.2) as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=250, n=2)
        await router.until(lambda: router.tokens)
        bench.front.stop()
        for sequence in (0, 1):
            finish = await router.finish(1, sequence)
            assert (finish.reason, finish.detail) == (pb.FINISH_SHUTDOWN, "the worker stopped before this was finished; ask again")
        await asyncio.wait_for(asyncio.shield(bench.run), 10)


async def test_a_second_stop_ends_at_once():
    async with running_front(drain_s=600.0) as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=250)
        await router.until(lambda: router.tokens)
        bench.front.stop()
        bench.front.stop()
        assert (await router.finish(1)).reason == pb.FINISH_SHUTDOWN
        await asyncio.wait_for(asyncio.shield(bench.run), 10)


async def test_no_engine_process_is_left_behind():
    async with running_front() as bench:
        await bench.router()
        pid = bench.front.supervisor.engine_pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_taken_port_is_one_line():
    async with running_front() as bench:
        port = bench.http.base_url.port
        settings = WorkerSettings(model_name=MODEL, engine=EngineConfig(model_dir=TINY), grpc_port=0, http_port=port or 0)
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: is the port taken\? Set PAGODA_HTTP_PORT"):
            await Front(settings).run()
        settings = WorkerSettings(model_name=MODEL, engine=EngineConfig(model_dir=TINY), grpc_port=bench.front.grpc_port, http_port=0)
        with pytest.raises(ConfigError, match="Set PAGODA_GRPC_PORT"):
            await Front(settings).run()


async def test_what_the_engine_cannot_serve_ends_the_front_with_its_line():
    settings = WorkerSettings(model_name=MODEL, engine=EngineConfig(model_dir=TINY, seed=13), grpc_port=0, http_port=0)
    front = Front(settings, engine_command=SCRIPTED_COMMAND)
    with pytest.raises(ConfigError, match="the scripted engine does not like the seed 13"):
        await asyncio.wait_for(front.run(), 10)
    told = front.supervisor.readiness  # what /ready answers until the process has ended
    assert told is not None
    assert told.message == "the scripted engine does not like the seed 13"


async def test_before_the_engine_is_loaded_the_probes_say_what_it_is_at():
    async with running_front() as bench:
        health, ready = await asyncio.gather(bench.http.get("/health"), bench.http.get("/ready"))
        if ready.status_code == 503:
            assert (ready.json()["reason"], ready.json()["ready"]) == ("Loading", False)
            assert health.status_code == 503
        router = await bench.router(ready=False)
        await router.until(lambda: router.state.ready)
        answer = (await bench.http.get("/ready")).json()
        assert answer["ready"] is True
        assert answer["capacity"] == {
            "kvTokens": CAPACITY,
            "maxModelLen": 256,
            "maxModelLenFitting": 4096,
            "prefillTokensPerS": 10000.0,
            "decodeTokensPerS": 500.0,
            "loadS": 0.25,
            "warmS": 0.0,
            "device": "cpu",
        }


async def test_a_crash_is_told_with_its_signal_and_last_line_until_a_new_engine_serves():
    async with running_front() as bench:
        bench.front.supervisor.backoff = Backoff(first_s=30.0)
        router = await bench.router()
        await router.submit(1, [DIES])
        await router.finish(1)
        await router.until(lambda: not router.state.ready)
        answer = (await bench.http.get("/ready")).json()
        assert answer["reason"] == "EngineCrash"
        assert "engineFailures" not in answer, "it has served"
        assert "the engine process was ended by SIGKILL; its last line: about to die; now starting it again in 30.0 s" in answer["message"]
        assert (answer["progress"], answer["bytesDone"]) == (None, None)


class Counted(Backoff):
    """Remembers what it was told and said, and waits no longer than a test can."""

    def __init__(self) -> None:
        super().__init__(first_s=0.01)
        self.waits_s: list[float] = []
        self.served_s: list[float] = []

    def after(self, served_s: float) -> float:
        self.served_s.append(served_s)
        self.waits_s.append(super().after(served_s))
        return self.waits_s[-1]


async def test_an_engine_that_dies_at_each_start_is_started_ever_later_and_the_front_says_why(tmp_path: Path):
    """Each start looks whether the engine before it is still there: two would not fit into one device."""
    program = tmp_path / "engine.py"
    pid_file = tmp_path / "pid"
    program.write_text(
        "import os, pathlib, sys\n"
        f"before = pathlib.Path({str(pid_file)!r})\n"
        "if before.exists() and os.path.exists('/proc/' + before.read_text()): sys.exit('two at once')\n"
        "before.write_text(str(os.getpid()))\n"
        "sys.exit('the device is gone')\n"
    )
    backoff = Counted()
    front = Front(
        WorkerSettings(model_name=MODEL, engine=EngineConfig(model_dir=TINY, device="cpu"), grpc_port=0, http_port=0),
        engine_command=(sys.executable, str(program)),
    )
    front.supervisor.backoff = backoff
    running = asyncio.create_task(front.run())
    while len(backoff.waits_s) < 4:
        await asyncio.sleep(0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.http_port}") as http:
        health, ready, metrics = [await http.get(path) for path in ("/health", "/ready", "/metrics")]
    front.stop()
    front.stop()
    await running
    assert backoff.waits_s[:4] == [0.01, 0.02, 0.04, 0.08]
    assert backoff.served_s[:4] == [0.0] * 4, "the time to load is no time of health"
    for answer, words in ((health, health.json()["reason"]), (ready, ready.json()["message"])):
        assert answer.status_code == 503
        assert "the engine process ended with status 1" in words
    assert "its last line: the device is gone" in ready.json()["message"]
    assert ready.json()["reason"] == "EngineCrash"
    assert ready.json()["engineFailures"] >= 4
    assert f'pagoda_engine_up{{model_name="{MODEL}"}} 0.0' in metrics.text


@pytest.mark.parametrize(("kills", "reason"), [(0, "EngineCrash"), (1, "OutOfMemory")])
async def test_a_kill_for_lack_of_memory_is_told_apart_from_others(tmp_path: Path, kills: int, reason: str):
    events = tmp_path / "sys/fs/cgroup"
    events.mkdir(parents=True)
    (events / "memory.events").write_text("oom_kill 3\n")
    (events / "memory.max").write_text(str(6 << 30))
    async with running_front() as bench:
        bench.front.supervisor._limits = Limits(tmp_path)
        bench.front.supervisor.backoff = Backoff(first_s=0.01)
        router = await bench.router()
        for request_id in (1, 2):  # the second life begins with the counts of this folder
            if request_id == 2:
                bench.front.supervisor.backoff = Backoff(first_s=30.0)
                (events / "memory.events").write_text(f"oom_kill {3 + kills}\n")
            await router.submit(request_id, [DIES])
            await router.finish(request_id)
            await router.until(lambda: not router.state.ready)
            if request_id == 1:
                await router.until(lambda: router.state.ready)
        answer = (await bench.http.get("/ready")).json()
        assert answer["reason"] == reason
        assert ("the kernel found no memory for it, the limit is 6 GiB" in answer["message"]) == bool(kills)


async def test_loading_is_told_in_bytes():
    async with running_front(config=EngineConfig(model_dir=TINY, device="cpu", seed=14)) as bench:
        while (answer := (await bench.http.get("/ready")).json())["bytesTotal"] is None:
            pass
        assert (answer["reason"], answer["progress"], answer["bytesDone"], answer["bytesTotal"]) == ("Loading", 0.25, 10**9, 4 * 10**9)
        assert answer["message"] == "loading weights: 1.0 GB of 4.0 GB"


async def test_metrics_count_what_happened_under_vllms_names():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [10] * 7, max_tokens=5, n=2)
        await router.finish(1, 0)
        await router.finish(1, 1)
        await router.submit(2, [5000])
        await router.refusal(2)
        engine = {"model_name": MODEL, "engine": "0"}
        assert await bench.metric("vllm:prompt_tokens_total", **engine) == 7
        assert await bench.metric("vllm:generation_tokens_total", **engine) == 10
        assert await bench.metric("vllm:request_success_total", finished_reason="length", **engine) == 2
        assert await bench.metric("vllm:time_to_first_token_seconds_count") == 2
        assert await bench.metric("vllm:inter_token_latency_seconds_count") == 8
        assert await bench.metric("pagoda_requests_refused_total", code="invalid") == 1
        assert await bench.metric("vllm:num_requests_running", **engine) == 0
        assert await bench.metric("pagoda_engine_up", model_name=MODEL) == 1
        for histogram in ("request_params_n", "request_params_max_tokens", "request_max_num_generation_tokens"):
            assert await bench.metric(f"vllm:{histogram}_count", **engine) == 1, "once a request"
        assert await bench.metric("vllm:request_generation_tokens_sum", **engine) == 10
        assert await bench.metric("vllm:iteration_tokens_total_sum", **engine) == 2 * 7 + 8, "the scripted engine shares no prompt"
        steps = await bench.metric("pagoda_step_duration_seconds_count", model_name=MODEL)
        assert steps == await bench.metric("pagoda_step_sequences_count", model_name=MODEL) >= 5


async def test_unknown_paths_and_methods_are_answered():
    async with running_front() as bench:
        answers: list[httpx.Response] = [
            await bench.http.get("/nothing"),
            await bench.http.post("/health"),
            await bench.http.head("/metrics"),
        ]
        assert [answer.status_code for answer in answers] == [404, 405, 200]
