"""What a user sees when something breaks: every stream ends, the stack mends itself, nothing is left behind."""

import asyncio
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from pagoda_bench.local_stack import LocalStack, local_stack
from pagoda_bench.processes import of_home, running

QUICKSTART = Path(__file__).parents[3] / "docs/quickstart/inferencemodel.yaml"
LONG = {"model": "tiny", "prompt": "My", "max_tokens": 1800, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture
def own_stack() -> Iterator[LocalStack]:
    with local_stack(QUICKSTART, extra_env={"PAGODA_DEVICE": "cpu"}) as stack:
        yield stack


async def read_to_the_end(client: httpx.AsyncClient, chunk: asyncio.Event) -> list[str]:
    """The data lines of one long stream; each sets `chunk`."""
    lines: list[str] = []
    async with client.stream("POST", "/v1/completions", json=LONG) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                lines.append(line.removeprefix("data: "))
                chunk.set()
    return lines


async def kill_the_engine(stack: LocalStack, chunks: list[asyncio.Event]) -> int:
    """Once every stream has had a chunk from it. Its process id."""
    for chunk in chunks:
        chunk.clear()
    await asyncio.gather(*(chunk.wait() for chunk in chunks))
    [engine] = running(stack.home, "pagoda_worker.engine_process")
    engine.kill()
    return engine.pid


async def another_engine(stack: LocalStack, client: httpx.AsyncClient, dead: int) -> None:
    """Until it is loaded."""
    while [process.pid for process in running(stack.home, "pagoda_worker.engine_process")] in ([], [dead]):
        await asyncio.sleep(0.05)
    while not (await client.get("/ready")).json()["models"]["tiny"]["ready"]:
        await asyncio.sleep(0.05)


async def test_streams_outlive_their_engine_once_and_after_its_second_death_it_works_for_others(own_stack: LocalStack) -> None:
    async with httpx.AsyncClient(base_url=own_stack.url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        chunks = [asyncio.Event() for _ in range(8)]
        streams = [asyncio.create_task(read_to_the_end(client, chunk)) for chunk in chunks]
        first = await kill_the_engine(own_stack, chunks)
        await another_engine(own_stack, client, first)  # else what is still on its way to the clients counts as the second one's
        second = await kill_the_engine(own_stack, chunks)
        endings = await asyncio.gather(*streams)
    for lines in endings:
        assert json.loads(lines[-1])["error"]["code"] == "engines_died", lines[-1]
        tokens = [choice["text"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
        assert "".join(tokens), "what was sent before is good"

    with openai.OpenAI(base_url=f"{own_stack.url}/v1", api_key="unused", max_retries=5, timeout=60) as client_after:
        answer = client_after.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "What is 27 + 46?"}], temperature=0
        )
    assert "73" in (answer.choices[0].message.content or "")
    [replacement] = running(own_stack.home, "pagoda_worker.engine_process")
    assert replacement.pid not in (first, second)


async def test_a_client_that_leaves_frees_its_blocks(stack: LocalStack) -> None:
    async with httpx.AsyncClient(base_url=stack.url, timeout=60) as client:
        async with client.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert await running_sequences(stack) == 1
        async with asyncio.timeout(10):
            while await running_sequences(stack) != 0:
                await asyncio.sleep(0.05)


async def running_sequences(stack: LocalStack) -> int:
    """`vllm:num_requests_running` of the stack's one worker."""
    fleet = json.loads((stack.home / "fleet.json").read_text())
    [endpoints] = fleet["endpointSlices"]
    port = next(port["port"] for port in endpoints["ports"] if port["name"] == "http")
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    [line] = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
    return int(float(line.split()[-1]))


def run_shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_readme_s_curl_line_answers(stack: LocalStack) -> None:
    readme = (QUICKSTART.parents[2] / "README.md").read_text()
    curl, *_ = [block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if block.startswith("curl ")]
    assert "73" in run_shell(curl.replace("127.0.0.1:8000", f"127.0.0.1:{stack.port}"))


def test_up_twice_changes_nothing_and_down_leaves_no_process(own_stack: LocalStack) -> None:
    before = {process.pid for process in of_home(own_stack.home)}
    again = own_stack.pagoda("up", str(QUICKSTART))
    assert "unchanged" in again.stdout
    [curl] = [line for line in again.stdout.splitlines() if line.strip().startswith("curl ")]
    assert "73" in run_shell(curl)
    assert {process.pid for process in of_home(own_stack.home)} == before
    own_stack.pagoda("down")
    assert list(of_home(own_stack.home)) == []


def test_down_leaves_no_process_after_the_supervisor_was_killed(own_stack: LocalStack) -> None:
    [supervisor] = running(own_stack.home, "pagoda_operator.local")
    children = [process for process in of_home(own_stack.home) if process.pid != supervisor.pid]
    assert len(children) >= 3  # router, worker front, engine
    supervisor.send_signal(signal.SIGKILL)
    own_stack.pagoda("down")
    assert list(of_home(own_stack.home)) == []
    psutil.wait_procs(children, timeout=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("  model:\n    source: file:///no/such/folder", "/no/such/folder"),
        ("  model:\n    source: builtin://tiny\n  engine: {dtype: fp7}", "spec.engine.dtype"),
        ("  model: {source: [", "line"),
    ],
    ids=["missing folder", "bad value", "broken YAML"],
)
def test_a_bad_manifest_gives_one_clear_line(tmp_path: Path, stack: LocalStack, change: str, expected: str) -> None:
    manifest = tmp_path / "bad.yaml"
    manifest.write_text(f"apiVersion: pagoda.dev/v1alpha1\nkind: InferenceModel\nmetadata: {{name: bad}}\nspec:\n{change}\n")
    refused = stack.pagoda("up", "--timeout", "60", str(manifest), check=False)
    assert refused.returncode != 0
    assert expected in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout
    stack.pagoda("delete", "bad", check=False)


def answered_once_known(client: openai.OpenAI) -> openai.types.Completion:
    """A router looks for changes ten times a second; what it knew before is what it may say until then."""
    while True:
        try:
            return client.completions.create(model="odd", prompt="My", max_tokens=2)
        except openai.InternalServerError as error:
            if "tensorParallel is 3" not in str(error):
                raise
            time.sleep(0.05)


def test_a_worker_that_refuses_its_settings_is_told_to_who_woke_it_and_to_all_after_until_it_is_mended(
    tmp_path: Path, stack: LocalStack
) -> None:
    manifest = tmp_path / "odd.yaml"
    written = QUICKSTART.read_text().replace("name: tiny", "name: odd").replace("{min: 1, max: 1}", "{min: 0, max: 1}")
    manifest.write_text(written.replace("engine:\n", "engine:\n    tensorParallel: 3\n"))
    stack.pagoda("apply", str(manifest))
    try:
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", timeout=250) as client:  # below wakeTimeout
            for _ in range(2):
                with pytest.raises(openai.InternalServerError, match=r"no worker of odd can come: .*tensorParallel is 3") as refused:
                    client.completions.create(model="odd", prompt="My")
                assert refused.value.code == "model_unavailable"
                assert "retry-after" not in refused.value.response.headers
            manifest.write_text(written)
            stack.pagoda("apply", str(manifest))
            assert answered_once_known(client).usage
    finally:
        stack.pagoda("delete", "odd")


def test_a_busy_port_gives_one_clear_line(stack: LocalStack, tmp_path: Path) -> None:
    second = LocalStack(home=tmp_path, port=stack.port, extra_env={})
    refused = second.pagoda("up", "--port", str(stack.port), str(QUICKSTART), check=False)
    try:
        assert refused.returncode != 0
        assert str(stack.port) in refused.stderr
        assert "PORT=" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    finally:
        second.pagoda("down", check=False)
