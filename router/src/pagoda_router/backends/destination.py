"""Where a relayed request goes, and the head that its body gets there. Plain data; no network."""

from dataclasses import dataclass

from pagoda_router.backends.dialect import Dialect
from pagoda_router.backends.http1 import Connections
from pagoda_router.generation import Generation
from pagoda_router.relays import Relay


@dataclass(frozen=True, slots=True)
class Destination:
    connections: Connections
    dialect: Dialect
    target: str
    """Host and port."""
    model: str
    """What the server calls it."""
    name: str
    """Of the worker, in errors."""

    def head(self, relay: Relay, generation: Generation, body_bytes: int) -> bytes:
        """Of the HTTP request, up to its empty line."""
        lines = [
            f"POST {relay.path} HTTP/1.1",
            f"host: {self.target}",
            "content-type: application/json",
            f"content-length: {body_bytes}",
            "accept-encoding: identity",
            "user-agent: pagoda-router",
            f"x-request-id: {generation.request_id}",
        ]
        if generation.traceparent:
            lines.append(f"traceparent: {generation.traceparent}")
        if generation.tracestate:
            lines.append(f"tracestate: {generation.tracestate}")
        return "\r\n".join([*lines, "\r\n"]).encode()
