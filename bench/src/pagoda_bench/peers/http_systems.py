"""Systems measured over HTTP: Pagoda as a user starts it (`pagoda up`), and OpenAI servers of peers, each a process of ours on loopback."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from pagoda_bench.local_stack import free_port, local_stack
from pagoda_bench.peers.cases import Model
from pagoda_bench.peers.process import PeerProcess
from pagoda_bench.peers.streams import closed_round
from pagoda_bench.peers.system import PeerUnavailable, Round

MAX_MODEL_LEN = 2048
READY_TIMEOUT_S = 600
"""vLLM compiles for a minute or two at its first start, and for longer on a busy machine."""
SERVED_NAME = "model"


class Pagoda:
    def __init__(self, model: Model, *, scratch: Path, program: Path | None = None, quantization: str | None = None) -> None:
        """`program`: the `pagoda` command of another checkout. Raises PeerUnavailable when `pagoda up` fails."""
        manifest = scratch / f"{model.name}-{quantization or 'plain'}.json"
        engine = {"maxModelLen": MAX_MODEL_LEN} | ({"quantization": quantization} if quantization else {})
        spec = {"model": {"source": model.source}, "engine": engine, "scaling": {"min": 1, "max": 1}}
        head = {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": {"name": SERVED_NAME}}
        manifest.write_text(json.dumps({**head, "spec": spec}))
        self._closing = ExitStack()
        try:
            self._stack = self._closing.enter_context(local_stack(manifest, program=program))
        except RuntimeError as error:
            raise PeerUnavailable(str(error).replace("\n", " ")[:400]) from error

    def round(self, prompts: Sequence[list[int]], output_tokens: int) -> Round:
        return closed_round(self._stack.url, SERVED_NAME, prompts, output_tokens)

    def stop(self) -> None:
        self._closing.close()


class OpenAIServer:
    def __init__(self, command: Sequence[str], *, port: int, log: Path, env: Mapping[str, str]) -> None:
        """Returns when /health answers 200. Raises PeerUnavailable when the process ends first, or takes too long."""
        self._url = f"http://127.0.0.1:{port}"
        self._process = PeerProcess(command, log=log, env=env)
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.stop()
            raise

    def round(self, prompts: Sequence[list[int]], output_tokens: int) -> Round:
        return closed_round(self._url, SERVED_NAME, prompts, output_tokens)

    def stop(self) -> None:
        self._process.stop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.ended():
                raise PeerUnavailable(f"was not ready when it {self._process.end()}")
            try:
                if httpx.get(f"{self._url}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise PeerUnavailable(f"not ready after {READY_TIMEOUT_S} s: {self._process.last_words()}")


def vllm_server(
    python: Path, model: Model, *, scratch: Path, cuda: bool, own_cores: bool = False, folder: Path | None = None
) -> OpenAIServer:
    """One GiB of KV cache holds 100 streams of the 0.45B model at the lengths measured. `own_cores`: vLLM chooses the cores itself.
    `folder`: the model in another form."""
    port = free_port()
    command = [str(python.parent / "vllm"), "serve", str(folder or model.folder), "--served-model-name", SERVED_NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MAX_MODEL_LEN), "--dtype", "bfloat16"]
    env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not cuda:
        env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto" if own_cores else _cores(model.threads)}
    return OpenAIServer(command, port=port, log=scratch / f"vllm-{(folder or model.folder).name}.log", env=env)


def sglang_server(python: Path, model: Model, *, scratch: Path) -> OpenAIServer:
    port = free_port()
    command = [str(python), "-m", "sglang.launch_server", "--model-path", str(model.folder), "--served-model-name", SERVED_NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--context-length", str(MAX_MODEL_LEN), "--dtype", "bfloat16"]
    return OpenAIServer(command, port=port, log=scratch / f"sglang-{model.name}.log", env={"HF_HUB_OFFLINE": "1"})


def _cores(threads: int) -> str:
    """vLLM binds one thread to each core named; left alone on two cores it keeps one for its scheduler and computes on the other."""
    return f"0-{threads - 1}" if threads > 1 else "0"
