"""
WorkerError                each class has a `reason`: the word that /ready and the last line of a process give to machines
├── ConfigError            the process stops with this one line; status 2, or 3 when it carries a reason
│   ├── ModelMissing       the source names no folder that is there
│   └── OutOfMemory        weights and one sequence's KV do not fit: carries what would
├── ModelError             a model folder that cannot be served: names the file, the field, the value
│   └── UnsupportedModel   an architecture or option the engine does not have
├── FetchError             weights that did not arrive: WeightsDownload; a later try may succeed
│   ├── ConnectionLost     one answer of hub or bucket broke off; tried again inside the step
│   ├── SourceMissing      ModelNotFound: no such model, revision or file there
│   ├── AccessDenied       Unauthorized: gated, private, or a wrong token
│   └── DiskFull           carries what is needed and what is free
├── RequestRefused         a request that can never run; the proto's Refused.INVALID, names the field
│   ├── ContextTooLong     Refused.CONTEXT_TOO_LONG, carries both numbers
│   ├── NotImplementedYet  Refused.UNIMPLEMENTED
│   ├── AdapterNotFound    Refused.MODEL_NOT_FOUND: none of that name is loaded, or not any more
│   └── WakeFailed         Refused.NOT_READY: it is not the request's fault
├── AdapterError           an adapter that cannot be loaded or unloaded: names the file, the field or the tensor; all else goes on
├── CannotSleep            Sleep or Wake cannot be done; the worker goes on as it was
└── EngineDied             the engine process is gone; its requests end with ENGINE_ERROR

RanksOutOfStep             no WorkerError, and no Exception: a tensor parallel engine cannot go on, and its process ends
"""

from pathlib import Path

EXIT_BAD_CONFIGURATION = 2
EXIT_INCURABLE = 3
"""Starting the same again would end the same way."""
EXIT_RANK_LOST = 4
"""Of an engine process: a rank of its tensor parallel engine is gone."""
EXIT_RANK_KILLED = 5
"""The same, by SIGKILL, as the kernel does when memory lacks."""


class WorkerError(Exception):
    """Base of everything a user or the network can cause."""

    reason = ""


class ConfigError(WorkerError):
    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or type(self).reason

    @property
    def exit_status(self) -> int:
        return EXIT_INCURABLE if self.reason else EXIT_BAD_CONFIGURATION


class ModelMissing(ConfigError):
    reason = "ModelNotFound"


class OutOfMemory(ConfigError):
    reason = "OutOfMemory"


class ModelError(WorkerError):
    reason = "ModelNotFound"


class UnsupportedModel(ModelError):
    pass


class FetchError(WorkerError):
    reason = "WeightsDownload"
    exit_status = 1


class ConnectionLost(FetchError):
    """`after_s`: the other side asked to be left alone so long. `refused_range`: what is there does not go on from the asked offset."""

    def __init__(self, message: str, *, after_s: float = 0.0, refused_range: bool = False) -> None:
        super().__init__(message)
        self.after_s = after_s
        self.refused_range = refused_range


class SourceMissing(FetchError):
    reason = "ModelNotFound"
    exit_status = EXIT_INCURABLE


class AccessDenied(FetchError):
    reason = "Unauthorized"
    exit_status = EXIT_INCURABLE


class DiskFull(FetchError):
    reason = "DiskFull"
    exit_status = EXIT_INCURABLE

    @classmethod
    def before(cls, source: str, needed_bytes: int, folder: Path, free_bytes: int) -> "DiskFull":
        return cls(f"{source} needs {gigabytes(needed_bytes)}, {folder} has {gigabytes(free_bytes)} free")


class AdapterError(WorkerError):
    reason = "ModelNotFound"
    """Of a process whose settings declare it."""


class RequestRefused(WorkerError):
    """`param` names the field of the request at fault, in the proto's spelling."""

    def __init__(self, message: str, *, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class ContextTooLong(RequestRefused):
    pass


class NotImplementedYet(RequestRefused):
    pass


class AdapterNotFound(RequestRefused):
    pass


class WakeFailed(RequestRefused):
    """The engine slept and its weights cannot come back now; the next request tries again."""


class CannotSleep(WorkerError):
    pass


class EngineDied(WorkerError):
    pass


class RanksOutOfStep(BaseException):
    """A rank is lost, or failed in the middle of a step. No Exception: whoever catches those goes on with other requests, and here nothing
    goes on, since the ranks no longer make the same calls and would wait for ever. `killed`: a rank was ended by SIGKILL."""

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


def last_line(program: str, error: WorkerError) -> str:
    """What a process writes last on stderr; Kubernetes copies it into the pod's status."""
    sentence = " ".join(str(error).split())
    return f"{program}: {error.reason}: {sentence}" if error.reason else f"{program}: {sentence}"


def gibibytes(count: int) -> str:
    """As memory is asked for: 5.1 GiB, 6 GiB, 500 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} bytes"


def gigabytes(count: int) -> str:
    """As disks are sold: 16.1 GB, 240 MB, 12 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.95 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
