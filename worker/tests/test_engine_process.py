"""The engine's process from outside (messages, exits) and its loop from inside, step by step."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest
from engine_turns import Turns
from front_support import SCRIPTED_COMMAND, TINY
from scripted_engine import FACTS, HANGS, RAISES, REFUSED, ScriptedEngine

from pagoda_worker.channel import (
    LENGTH,
    Down,
    Idle,
    Loading,
    Ready,
    Rejected,
    Sleep,
    Slept,
    Start,
    Stepped,
    Submitted,
    Unusable,
    Up,
    Wake,
    Woke,
    decode_up,
    pack,
)
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine_process import loaded_line
from pagoda_worker.request import FinishReason, Request

CONFIG = EngineConfig(model_dir=TINY, device="cpu")


class Child:
    """The test's end of an engine process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.process = subprocess.Popen([*SCRIPTED_COMMAND, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        self._stream: BinaryIO = ours.makefile("rb")

    def send(self, message: Down) -> None:
        self.socket.sendall(pack(message))

    def receive(self) -> Up:
        (length,) = LENGTH.unpack(self._stream.read(LENGTH.size))
        return decode_up(self._stream.read(length))

    def close(self) -> None:
        self._stream.close()
        self.socket.close()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()
    child.process.kill()
    child.process.wait()


def test_it_loads_serves_and_says_that_it_is_idle(child: Child):
    child.send(Start(CONFIG))
    assert isinstance(child.receive(), Loading)
    ready = child.receive()
    assert isinstance(ready, Ready)
    assert ready.facts == FACTS
    child.send(Submitted([Request(request_id="1:1", prompt_ids=[5], max_tokens=2)]))
    heard = [child.receive()]
    while not (isinstance(heard[-1], Stepped) and heard[-1].output.updates[0].finish):
        heard.append(child.receive())
    steps = [message.output.updates[0].token_ids for message in heard if isinstance(message, Stepped)]
    assert steps == [[6], [7]]
    assert isinstance(child.receive(), Idle)


@pytest.mark.parametrize(
    ("facts", "speed"),
    [({}, "cpu"), ({"checkpoint_bytes": 3_000_000_000, "weights_s": 2.0}, "cpu, 3.0 GB of weights at 1.50 GB/s")],
    ids=str,
)
def test_the_log_says_how_fast_weights_were_read(facts: dict[str, float], speed: str):
    line = loaded_line(EngineConfig(model_dir=Path("/models/chat")), replace(FACTS, **facts), 2.34)  # type: ignore[arg-type]
    assert line == f"loaded ScriptedForCausalLM from /models/chat in 2.3 s on {speed}"


def test_it_leaves_when_the_front_is_gone(child: Child):
    child.send(Start(CONFIG))
    child.close()
    assert child.process.wait(10) == 0


def test_it_leaves_in_the_middle_of_a_step_that_hangs(child: Child):
    child.send(Start(CONFIG))
    child.send(Submitted([Request(request_id="1:1", prompt_ids=[HANGS])]))
    assert isinstance(child.receive(), Loading)
    assert isinstance(child.receive(), Ready)
    child.close()
    assert child.process.wait(10) == 0


def test_it_leaves_signals_of_a_terminal_to_the_front(child: Child):
    child.send(Start(CONFIG))
    assert isinstance(child.receive(), Loading)
    assert isinstance(child.receive(), Ready)
    child.process.send_signal(signal.SIGINT)
    child.process.send_signal(signal.SIGTERM)
    assert isinstance(child.receive(), Idle)
    assert isinstance(child.receive(), Idle)


def test_what_cannot_be_served_is_said_and_ends_with_2(child: Child):
    child.send(Start(EngineConfig(model_dir=TINY, seed=13)))
    assert isinstance(child.receive(), Loading)
    unusable = child.receive()
    assert isinstance(unusable, Unusable)
    assert unusable.message == "the scripted engine does not like the seed 13"
    assert child.process.wait(10) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="parent death signals are Linux's")
def test_a_stopped_engine_dies_with_its_front(tmp_path: Path):
    """SIGSTOP keeps it from seeing the closed socket; only the parent's death can end it."""
    script = tmp_path / "front.py"
    script.write_text(
        "import socket, subprocess, sys\n"
        "ours, theirs = socket.socketpair()\n"
        "child = subprocess.Popen([*sys.argv[1:], '--fd', str(theirs.fileno())], pass_fds=[theirs.fileno()])\n"
        "from pagoda_worker.channel import *\n"
        "from pagoda_worker.config import EngineConfig\n"
        "from pathlib import Path\n"
        "ours.sendall(pack(Start(EngineConfig(model_dir=Path('/')))))\n"
        "ours.recv(4)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, str(script), *SCRIPTED_COMMAND], stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        engine = psutil.Process(int(front.stdout.readline()))
        engine.suspend()
        os.kill(front.pid, signal.SIGKILL)
        psutil.wait_procs([engine], timeout=10)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_a_busy_engine_takes_messages_between_steps():
    turns = Turns(ScriptedEngine(CONFIG))
    turns.submit(1, request_id="a")
    turns.turn()
    turns.submit(1, request_id="b")
    step = turns.turn()
    assert isinstance(step, Stepped)
    assert [update.request_id for update in step.output.updates] == ["a", "b"]


def test_an_idle_engine_beats():
    assert isinstance(Turns(ScriptedEngine(CONFIG)).turn(), Idle)


def test_a_refusal_of_the_engine_names_its_class():
    turns = Turns(ScriptedEngine(CONFIG))
    turns.submit(REFUSED)
    turns.turn()
    assert turns.sent[0] == Rejected("1:1", "RequestRefused", "the engine does not like this prompt", "prompt_ids")


def test_the_third_failed_step_in_a_row_is_given_up():
    turns = Turns(ScriptedEngine(CONFIG))
    for _ in range(2):
        turns.submit(RAISES)
        turns.turn()
        step = turns.turn()
        assert isinstance(step, Stepped)
        assert [update.finish.reason for update in step.output.updates if update.finish] == [FinishReason.ENGINE_ERROR]
    turns.submit(RAISES)
    with pytest.raises(RuntimeError, match="scripted failure"):
        turns.turn()


def test_tokens_between_failures_start_the_count_anew():
    turns = Turns(ScriptedEngine(CONFIG))
    for _ in range(4):
        turns.submit(RAISES)
        turns.turn()
        turns.turn()
        turns.submit(1, max_tokens=1)
        turns.turn()


def test_an_engine_sleeps_when_what_came_before_has_ended_and_wakes_for_a_request():
    turns = Turns(ScriptedEngine(CONFIG))
    turns.submit(1, max_tokens=2)
    turns.inbox.put(Sleep(1))
    turns.turn()
    turns.turn()
    assert not any(isinstance(message, Slept) for message in turns.sent)
    slept = turns.turn()
    assert isinstance(slept, Slept)
    assert (slept.state.sleep_level, slept.freed_bytes, slept.problem) == (1, 1000, "")
    assert isinstance(turns.turn(), Idle)
    turns.submit(1, request_id="next", max_tokens=1)
    turns.turn()
    loading, woke, step = turns.sent[-3:]
    assert isinstance(loading, Loading)
    assert isinstance(woke, Woke)
    assert (woke.state.sleep_level, woke.problem) == (0, "")
    assert isinstance(step, Stepped)


def test_a_wake_that_fails_refuses_each_request_with_the_reason():
    turns = Turns(ScriptedEngine(EngineConfig(model_dir=TINY, device="cpu", seed=16, load="lazy")))
    turns.submit(1, request_id="a")
    turns.submit(1, request_id="b")
    turns.turn()
    rejected = [message for message in turns.sent if isinstance(message, Rejected)]
    assert [(each.request_id, each.error) for each in rejected] == [("a", "WakeFailed"), ("b", "WakeFailed")]
    assert all("the scripted weights are gone" in each.message for each in rejected)


def test_an_engine_that_is_awake_says_so_when_it_is_woken():
    turns = Turns(ScriptedEngine(CONFIG))
    turns.inbox.put(Wake())
    turns.turn()
    assert isinstance(turns.sent[0], Woke)
    assert turns.sent[0].load_us == 0
