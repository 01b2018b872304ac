"""Our error tree in OpenAI's words: body, headers, event. The one place where a RouterError becomes bytes."""

import math

import msgspec

from pagoda_router.errors import MethodNotAllowed, RouterError
from pagoda_router.http.asgi import JSON_TYPE, Headers

LONGEST_RETRY_S = 60.0
"""Clients treat a longer Retry-After as "never": openai-python stops retrying."""


def error_object(error: RouterError) -> dict[str, dict[str, str | None]]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_body(error: RouterError) -> bytes:
    return msgspec.json.encode(error_object(error))


def error_event(error: RouterError) -> bytes:
    """For a stream whose headers have left; it is the stream's last event."""
    return b"data: " + error_body(error) + b"\n\n"


def retry_after_told_s(error: RouterError) -> float | None:
    """Of a 429 or 503. None: nothing is told, as of what no wait heals. Clients that do not know x-should-retry, such as urllib3's Retry,
    come back for that header alone."""
    if error.status not in (429, 503) or (error.retry_after_s is None and not error.worth_a_retry):
        return None
    return 1.0 if error.retry_after_s is None else min(max(error.retry_after_s, 0.0), LONGEST_RETRY_S)


def error_headers(error: RouterError) -> Headers:
    headers = [JSON_TYPE]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):
        # The rest of the body is still on its way: do not read it.
        headers.append((b"connection", b"close"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if error.status in (429, 503) or not error.worth_a_retry:
        # openai-python obeys it: for what no retry heals it reports the error at once.
        headers.append((b"x-should-retry", b"true" if error.worth_a_retry else b"false"))
    if error.status in (429, 503):
        # For proxies and logs, which read no bodies.
        headers.append((b"x-pagoda-refused", (error.code or error.type).encode()))
    if (retry_s := retry_after_told_s(error)) is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_s))).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(retry_s * 1000)).encode()))
    return headers
