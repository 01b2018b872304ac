"""What the OpenAI surface is told and what it tells: its settings, and the observer that metrics hang on. Pure data.

`__main__` builds both; app and openai/ read them. Knows no HTTP and no fleet.
"""

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceSettings:
    max_body_bytes: int = 10 * 1024 * 1024
    """Larger request bodies answer 413. 10 MiB holds a million tokens of text."""
    body_timeout_s: float = 60.0
    """From the headers to the body's last byte; slower clients answer 408."""
    stalled_reader_s: float = 60.0
    """A client that takes no byte of its stream for so long is cut off; until then its stream costs one socket buffer."""
    keep_alive_first_s: float = 1.0
    """A stream whose model has no worker yet gets its headers and a comment after so long…"""
    keep_alive_s: float = 5.0
    """…and a comment each time so long: well under the 15 to 60 s after which proxies call a silent connection dead."""
    max_messages: int = 4096
    max_stop_strings: int = 16
    max_stop_chars: int = 1024
    """Of one stop string: text up to this long may be held back while it could still become a match."""
    max_choices: int = 1024
    """n times the prompts of one /v1/completions request."""
    max_batch_in_flight: int = 32
    """Prompts of one batched /v1/completions request that run together; the rest wait inside the request."""
    template_timeout_s: float = 2.0
    """A chat template that renders longer is stopped and answers 400."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call /v1 from a browser; `*` is everyone. None by default."""
    template_output_factor: int = 4
    """A rendered chat may be this many times max_body_bytes, in characters."""


Endpoint = Literal["chat", "completions", "responses", "embeddings"]


@dataclass(slots=True, kw_only=True)
class RequestOutcome:
    """One generation request as a whole, filled while it runs and reported once. Durations in seconds; None: never got so far."""

    endpoint: Endpoint
    request_id: str
    model: str | None = None
    """Name of the InferenceModel, only when it exists: safe as a metric label."""
    served_name: str | None = None
    """What the client called it, only when it exists."""
    stream: bool = False
    status: int = 0
    """HTTP status; 499 when the client left first, 0 when the server itself was stopped under the request. A stream that failed after its
    headers has the error's status here."""
    error_code: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    """Of the choices, in their order: "stop", "length" or "tool_calls"; "stop" for each embedding."""
    longest_completion_tokens: int = 0
    """Of its choices."""
    ttft_s: float | None = None
    """From the request's arrival to its first tokens."""
    last_token_s: float | None = None
    """From the request's arrival to its last tokens."""
    duration_s: float = 0.0
    retry_after_s: float | None = None
    """What the client was told, when it was turned away."""
    overhead_s: float | None = None
    """Added by the router before the worker had the request, waiting excluded. None: the worker did not tell."""
    fell_back_from: str | None = None
    """The model that was asked for and could not answer, when another one did…"""
    fell_back_why: str = ""
    """…and the code of its refusal."""
    predicted_cached_tokens: int = 0
    """Prompt tokens that placement expected in the worker's prefix cache."""
    first_token_s: tuple[float, float] | None = None
    """From its placement: predicted by the policy, and what came. None: there was no first token, or the worker did not tell."""


class Observer(Protocol):
    """Called on the event loop, twice per generation request: must be quick and never raise."""

    def request_started(self, endpoint: Endpoint) -> None: ...

    def request_finished(self, outcome: RequestOutcome) -> None: ...


class SilentObserver:
    """The default: nobody watches."""

    def request_started(self, endpoint: Endpoint) -> None:
        pass

    def request_finished(self, outcome: RequestOutcome) -> None:
        pass
