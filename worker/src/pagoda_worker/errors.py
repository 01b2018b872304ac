"""
WorkerError
├── ConfigError            the process stops with this one line
├── ModelError             a model folder that cannot be served: names the file, the field, the value
│   └── UnsupportedModel   an architecture or option the engine does not have
├── RequestRefused         a request that can never run; the proto's Refused.INVALID, names the field
│   ├── ContextTooLong     Refused.CONTEXT_TOO_LONG, carries both numbers
│   └── NotImplementedYet  Refused.UNIMPLEMENTED
└── EngineDied             the engine process is gone; its requests end with ENGINE_ERROR
"""


class WorkerError(Exception):
    """Base of everything a user or the network can cause."""


class ConfigError(WorkerError):
    pass


class ModelError(WorkerError):
    pass


class UnsupportedModel(ModelError):
    pass


class RequestRefused(WorkerError):
    """`param` names the field of the request at fault, in the proto's spelling."""

    def __init__(self, message: str, *, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class ContextTooLong(RequestRefused):
    pass


class NotImplementedYet(RequestRefused):
    pass


class EngineDied(WorkerError):
    pass
