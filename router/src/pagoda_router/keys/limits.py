"""Requests a minute of each key: a bucket that fills steadily, so that a minute's worth may come at once. Pure; the caller brings the time.

Owned by the app of one router process: with several, each lets through its own. What OpenAI clients are told of it is made here too.
"""

import math
from dataclasses import dataclass

from pagoda_router.errors import RateLimited
from pagoda_router.http.asgi import Headers
from pagoda_router.keys.key import ApiKey

MINUTE_S = 60.0
MOST_KEYS = 10_000
"""Buckets kept; full ones are forgotten first, which changes nothing."""


@dataclass(slots=True)
class Bucket:
    left: float
    at_s: float


class RequestLimits:
    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def take(self, key: ApiKey, now_s: float) -> Headers:
        """One request of the key's. Its x-ratelimit headers; none without a limit. Raises RateLimited, and then nothing is taken."""
        limit = key.requests_per_minute
        if limit is None:
            return []
        if len(self._buckets) >= MOST_KEYS:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if now_s - bucket.at_s < MINUTE_S}
        bucket = self._buckets.setdefault(key.id, Bucket(limit, now_s))
        bucket.left = min(limit, bucket.left + max(0.0, now_s - bucket.at_s) * limit / MINUTE_S)
        bucket.at_s = now_s
        if bucket.left < 1:
            raise RateLimited(
                f"the key {key.prefix}… may send {limit} requests a minute and has: wait as long as Retry-After says",
                retry_after_s=(1 - bucket.left) * MINUTE_S / limit,
            )
        bucket.left -= 1
        full_in_s = (limit - bucket.left) * MINUTE_S / limit
        return [
            (b"x-ratelimit-limit-requests", str(limit).encode()),
            (b"x-ratelimit-remaining-requests", str(int(bucket.left)).encode()),
            (b"x-ratelimit-reset-requests", told(full_in_s).encode()),
        ]


def told(seconds: float) -> str:
    """As OpenAI writes durations: 120ms, 1s, 6m0s. Rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
