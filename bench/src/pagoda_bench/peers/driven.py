"""Libraries without a server: a driver (`drivers/`) runs in the peer's own interpreter and answers rounds as JSON lines on its stdout."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pagoda_bench.peers.cases import Model
from pagoda_bench.peers.process import PeerProcess
from pagoda_bench.peers.system import PeerUnavailable, Round

SOURCES = Path(__file__).parents[2]
"""On the driver's PYTHONPATH: it imports nothing of ours but `drivers`."""


class Driven:
    def __init__(
        self, python: Path, driver: str, model: Model, *, scratch: Path, device: str, arguments: Mapping[str, str] | None = None
    ) -> None:
        """Returns when the model is loaded. Raises PeerUnavailable with the driver's last error."""
        command = [
            str(python),
            "-m",
            f"pagoda_bench.peers.drivers.{driver}",
            "--folder",
            str(model.folder),
            "--threads",
            str(model.threads),
        ]
        command += ["--device", device]
        for name, value in (arguments or {}).items():
            command += [f"--{name}", value]
        env = {"PYTHONPATH": os.fspath(SOURCES), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(model.threads), "PYTHONWARNINGS": "ignore"}
        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._process = PeerProcess(command, log=scratch / f"{driver}-{model.name}.log", env=env, pipes=True)
        try:
            self._answer()  # {"ready": true}
        except BaseException:
            self._process.stop()
            raise

    def round(self, prompts: Sequence[list[int]], output_tokens: int) -> Round:
        asked = json.dumps({"prompts": list(prompts), "output_tokens": output_tokens}).encode()
        try:
            self._process.stdin.write(asked + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerUnavailable(self._process.end()) from error
        answer = self._answer()
        tokens: list[list[int]] = answer["tokens"]
        if len(tokens) != len(prompts) or any(len(row) != output_tokens for row in tokens):
            raise PeerUnavailable(f"asked for {len(prompts)} × {output_tokens} tokens, got {[len(row) for row in tokens]}")
        return Round(answer["seconds"], tuple(self._tokenizer.decode(row) for row in tokens), tuple(answer["ttft_s"]))

    def stop(self) -> None:
        self._process.stop()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise PeerUnavailable(self._process.end())
        answer: dict[str, Any] = json.loads(line)
        return answer
