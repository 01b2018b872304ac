"""What crosses between front and engine process: message types and their framing, a 4-byte length and msgpack, over a unix socket pair.

Knows neither asyncio nor torch. Down go submissions and cancels, up comes one Stepped per engine step; order is kept both ways.
"""

import msgspec

from pagoda_worker.config import EngineConfig
from pagoda_worker.facts import AdapterFacts, AdaptersState, ModelFacts
from pagoda_worker.framing import LENGTH as LENGTH
from pagoda_worker.framing import decode_path, frame
from pagoda_worker.request import EngineState, Request, StepOutput

HEARTBEAT_S = 0.5
"""An idle engine says so this often; silence is how the front notices a hang."""

# ---- down


class Start(msgspec.Struct, tag=1, array_like=True):
    """The first message: what to load."""

    config: EngineConfig


class Submitted(msgspec.Struct, tag=2, array_like=True):
    requests: list[Request]


class Cancelled(msgspec.Struct, tag=3, array_like=True):
    request_id: str
    sequence: int | None


class Sleep(msgspec.Struct, tag=4, array_like=True):
    """When what came before is done; answered by Slept."""

    level: int


class Wake(msgspec.Struct, tag=5, array_like=True):
    """Answered by Woke. A request that finds the engine asleep does the same."""


class LoadAdapter(msgspec.Struct, tag=6, array_like=True):
    """Read beside the steps; answered by AdapterDone. Another version of one that is there replaces it for new requests."""

    name: str
    folder: str


class UnloadAdapter(msgspec.Struct, tag=7, array_like=True):
    """Answered by AdapterDone at once; sequences that have it keep it to their end."""

    name: str


class Drafted(msgspec.Struct, tag=8, array_like=True):
    """Guesses of another worker, from `position` of the output on; not answered. For sequences that run, else they mean nothing."""

    request_id: str
    sequence: int
    position: int
    token_ids: list[int]


Down = Start | Submitted | Cancelled | Sleep | Wake | LoadAdapter | UnloadAdapter | Drafted

# ---- up


class Loading(msgspec.Struct, tag=1, array_like=True):
    """At start, and again when a sleeping engine wakes."""

    stage: str
    bytes_done: int = 0
    bytes_total: int = 0
    """0: this stage is not counted in bytes."""


class Ready(msgspec.Struct, tag=2, array_like=True):
    facts: ModelFacts
    state: EngineState
    adapters: AdaptersState | None = None


class Stepped(msgspec.Struct, tag=3, array_like=True):
    output: StepOutput


class Idle(msgspec.Struct, tag=4, array_like=True):
    """Nothing to do, and answering."""

    state: EngineState


class Rejected(msgspec.Struct, tag=5, array_like=True):
    """The engine's own check refused what the front's had let pass."""

    request_id: str
    error: str
    """Name of the class in errors.py."""
    message: str
    param: str


class Unusable(msgspec.Struct, tag=6, array_like=True):
    """Settings or model folder cannot be served; starting again would not help."""

    message: str
    reason: str = ""
    """Of the error, see errors.py."""


class Slept(msgspec.Struct, tag=7, array_like=True):
    state: EngineState
    freed_bytes: int
    problem: str = ""
    """Why it could not, one sentence; the engine is as it was."""


class Woke(msgspec.Struct, tag=8, array_like=True):
    """The engine is awake, for whatever reason; Loading came before when there was something to load."""

    facts: ModelFacts
    """Those of a first load hold what it measured."""
    state: EngineState
    load_us: int
    """0: it was awake."""
    problem: str = ""
    """Why it still sleeps, one sentence."""


class AdapterDone(msgspec.Struct, tag=9, array_like=True):
    """Of the adapter that was named, in the order of the questions about it."""

    name: str
    state: AdaptersState
    facts: AdapterFacts | None = None
    """Of one that was loaded."""
    problem: str = ""
    """Why it could not, one sentence; everything is as it was."""


Up = Loading | Ready | Stepped | Idle | Rejected | Unusable | Slept | Woke | AdapterDone


decode_down = msgspec.msgpack.Decoder[Down](Down, dec_hook=decode_path).decode
decode_up = msgspec.msgpack.Decoder[Up](Up).decode


def pack(message: Down | Up) -> bytes:
    """One frame: length and payload."""
    return frame(message)
