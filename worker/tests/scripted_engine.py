"""An engine that does what the prompt's last token says, for failures that a real engine does not show on demand.

Run as an engine process (`python scripted_engine.py --fd N`) in place of pagoda_worker.engine_process; same loop, same messages, no torch.
An ordinary prompt [..., t] yields t+1, t+2, … (modulo the vocabulary), one token per step.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine_loop import EngineLike
from pagoda_worker.engine_process import LoadingNews, run_process
from pagoda_worker.errors import AdapterError, CannotSleep, ModelError, RequestRefused
from pagoda_worker.facts import AdapterFacts, AdaptersState, ModelFacts
from pagoda_worker.request import EngineState, Finish, FinishReason, Request, SequenceUpdate, StepOutput, Timings, TokenLogprobs, Usage

VOCAB = 1000
BLOCK = 16
CAPACITY = 1024 * BLOCK
RAISES = 900  # the step that runs it raises
DIES = 902  # the process is gone
HANGS = 903  # the step never returns
ENDLESS = 901  # tokens without end, whatever max_tokens says
REFUSED = 904  # the engine's own check refuses it
STEP_S = 0.002
WAKE_S = 0.01

FACTS = ModelFacts(
    max_batch_tokens=8192,
    architecture="ScriptedForCausalLM",
    dtype="fp32",
    device="cpu",
    max_model_len=256,
    vocab_size=VOCAB,
    eos_token_ids=[1],
    bos_token_id=None,
    block_size=BLOCK,
    kv_capacity_tokens=CAPACITY,
    max_running=8,
    max_sequences_per_request=4,
    max_top_logprobs=5,
    max_model_len_fitting=4096,
    prefill_tokens_per_s=10_000.0,
    decode_tokens_per_s=500.0,
    load_s=0.25,
    awake_bytes=8 << 20,
    structured_output=True,
    adapter_slots=4,
    kernels="scripted",
)


@dataclass(frozen=True)
class AdapterLoad:
    name: str
    facts: AdapterFacts | None
    problem: str = ""


class ScriptedAdapters:
    """Reads a folder by its name: one that ends in `bad` is refused, any other is there at the next look."""

    opened = True

    def __init__(self) -> None:
        self.loaded: dict[str, AdapterFacts] = {}
        self._asked: list[tuple[str, Path]] = []

    @property
    def reading(self) -> bool:
        return bool(self._asked)

    def begin(self, name: str, folder: Path) -> None:
        self._asked.append((name, folder))

    def poll(self) -> list[AdapterLoad]:
        asked, self._asked = self._asked, []
        return [self._read(name, folder) for name, folder in asked]

    def _read(self, name: str, folder: Path) -> AdapterLoad:
        if folder.name.endswith("bad"):
            return AdapterLoad(name, None, f"{folder} is no adapter")
        self.loaded[name] = AdapterFacts(name, f"of-{folder.name}", str(folder), 8, 1000)
        return AdapterLoad(name, self.loaded[name])

    def unload(self, name: str) -> None:
        if name not in self.loaded:
            raise AdapterError(f"there is no adapter {name!r} to unload")
        del self.loaded[name]


class ScriptedEngine:
    """Implements EngineLike; see the module."""

    def __init__(self, config: EngineConfig) -> None:
        if config.seed == 13:
            raise ModelError("the scripted engine does not like the seed 13")
        self.facts = FACTS
        self._requests: dict[str, Request] = {}
        self._accepted: dict[str, int] = {}
        self._scheduled: dict[str, int] = {}
        self._first_token: dict[tuple[str, int], int] = {}
        self._emitted: dict[tuple[str, int], int] = {}
        self._cancelled: list[tuple[str, int]] = []
        self._abandoned: list[tuple[tuple[str, int], str]] = []
        self.adapters = ScriptedAdapters()
        for name, folder in config.adapters.items():
            self.adapters.begin(name, folder)
            self.adapters.poll()
        self._cannot_wake = config.seed == 16
        self.sleep_level = 2 if config.load == "lazy" else 0
        self._steps = 0
        self._generated = 0
        self._prompted = 0

    @property
    def has_work(self) -> bool:
        return bool(self._emitted or self._cancelled or self._abandoned)

    def submit(self, request: Request) -> None:
        if request.prompt_ids[-1] == REFUSED:
            raise RequestRefused("the engine does not like this prompt", param="prompt_ids")
        self._requests[request.request_id] = request
        self._accepted[request.request_id] = now_us()
        for sequence in range(request.n):
            self._emitted[request.request_id, sequence] = 0

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        for key in [key for key in self._emitted if key[0] == request_id and sequence in (None, key[1])]:
            del self._emitted[key]
            self._cancelled.append(key)

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None:
        pass

    def abandon(self, detail: str) -> None:
        self._abandoned = [(key, detail) for key in self._emitted]
        self._emitted.clear()

    def step(self) -> StepOutput:
        began = now_us()
        for request_id, _ in self._emitted:
            self._scheduled.setdefault(request_id, began)
        time.sleep(STEP_S)
        self._steps += 1
        for request_id, _ in list(self._emitted):
            self._misbehave(self._requests[request_id].prompt_ids[-1])
        updates = [SequenceUpdate(key[0], key[1], [], finish=self._finish(key, FinishReason.CANCELLED, 0)) for key in self._cancelled]
        self._cancelled.clear()
        updates += [
            SequenceUpdate(key[0], key[1], [], finish=self._finish(key, FinishReason.ENGINE_ERROR, 0, detail))
            for key, detail in self._abandoned
        ]
        self._abandoned.clear()
        assert not self.sleep_level, "nothing is computed asleep"
        live = list(self._emitted)
        tokens = sum(1 if self._emitted[key] else len(self._requests[key[0]].prompt_ids) for key in live)
        updates += [self._advance(key) for key in live]
        return StepOutput(updates, self.idle_state(), len(live), tokens, now_us() - began)

    def idle_state(self) -> EngineState:
        used = sum(-(-(len(self._requests[key[0]].prompt_ids) + emitted) // BLOCK) * BLOCK for key, emitted in self._emitted.items())
        return EngineState(
            step=self._steps,
            at_mono_us=now_us(),
            num_running=len(self._emitted),
            num_waiting=0,
            queued_prefill_tokens=0,
            kv_capacity_tokens=CAPACITY,
            kv_free_tokens=CAPACITY - used,
            preemptions_total=0,
            prefix_queries_total=0,
            prefix_hits_total=0,
            prompt_tokens_total=self._prompted,
            generation_tokens_total=self._generated,
            prefill_tokens_per_s=10_000.0,
            decode_step_ms=2.0,
            sleep_level=self.sleep_level,
        )

    def adapters_state(self) -> AdaptersState:
        return AdaptersState(list(self.adapters.loaded.values()), [])

    def sleep(self, level: int) -> int:
        if level > 2:
            raise CannotSleep(f"the scripted engine has no sleep level {level}")
        self.sleep_level = level
        return 1000 * level

    def wake(self) -> None:
        if self._cannot_wake:
            raise ModelError("the scripted weights are gone")
        time.sleep(WAKE_S)
        self.sleep_level = 0

    def _misbehave(self, command: int) -> None:
        if command == RAISES:
            raise RuntimeError("scripted failure of a step")
        if command == DIES:
            print("about to die", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if command == HANGS:
            while True:
                time.sleep(1.0)

    def _advance(self, key: tuple[str, int]) -> SequenceUpdate:
        request = self._requests[key[0]]
        emitted = self._emitted[key]
        self._generated += 1
        if emitted == 0:
            self._prompted += len(request.prompt_ids)
        endless = request.prompt_ids[-1] == ENDLESS
        token = (request.prompt_ids[-1] + 1 + emitted) % VOCAB
        self._emitted[key] = emitted + 1
        self._first_token.setdefault(key, now_us())
        finish = None
        if emitted + 1 == request.max_tokens and not endless:
            del self._emitted[key]
            finish = self._finish(key, FinishReason.LENGTH, emitted + 1)
        logprobs = None
        if request.top_logprobs is not None:
            logprobs = [
                TokenLogprobs(-0.5, [(token, -0.5), *((other, -2.0) for other in range(request.top_logprobs - 1))][: request.top_logprobs])
            ]
        scheduled = self._scheduled[key[0]]
        return SequenceUpdate(key[0], key[1], [token], logprobs, finish, started=emitted == 0, first_scheduled_mono_us=scheduled)

    def _finish(self, key: tuple[str, int], reason: FinishReason, completed: int, detail: str = "") -> Finish:
        request = self._requests[key[0]]
        usage = Usage(len(request.prompt_ids), 0, completed)
        first = self._first_token.get(key, 0)
        batches = [(len(self._emitted) + 1, completed)] if request.want_timings else []
        timings = Timings(self._accepted[key[0]], self._scheduled.get(key[0], 0), first, now_us() if first else 0, 0, completed, batches)
        return Finish(reason, usage, timings, detail=detail)


def now_us() -> int:
    return time.monotonic_ns() // 1000


def build(config: EngineConfig, news: LoadingNews) -> EngineLike:
    if config.seed == 14:
        news("loading weights", 10**9, 4 * 10**9)
        time.sleep(3600)
    return ScriptedEngine(config)


if __name__ == "__main__":
    run_process(build)
