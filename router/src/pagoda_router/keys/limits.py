"""Requests and tokens a minute of each key: buckets that fill steadily, so that a minute's worth may come at once. Pure; the caller brings
the time.

Owned by the ledger of one router process: with several, each lets through its own, unless Redis counts for all. What OpenAI clients are
told of limits is made here too.
"""

import math
from dataclasses import dataclass

from pagoda_router.errors import LargerThanLimit, RateLimited
from pagoda_router.keys.key import ApiKey

MINUTE_S = 60.0
MOST_KEYS = 10_000
"""Whose buckets are kept; full ones are forgotten first, which changes nothing."""
Told = list[tuple[bytes, bytes]]
HEADERS = {
    unit: (b"x-ratelimit-limit-" + unit, b"x-ratelimit-remaining-" + unit, b"x-ratelimit-reset-" + unit)
    for unit in (b"requests", b"tokens")
}
"""By unit: the limit, what is left of it, how long until all of it is."""


@dataclass(slots=True)
class Bucket:
    limit: int
    """A minute's worth, and the most that it holds."""
    left: float
    """Negative after a request that took more than was predicted: later ones wait for it."""
    at_s: float

    def fill(self, limit: int, now_s: float) -> None:
        """Up to now. A limit that was changed changes what is left by as much."""
        left = self.left + limit - self.limit
        if now_s > self.at_s:
            left += (now_s - self.at_s) * limit / MINUTE_S
        self.limit, self.left, self.at_s = limit, min(limit, left), now_s

    def wait_s(self, amount: float) -> float:
        """Until so much is there."""
        return max(0.0, amount - self.left) * MINUTE_S / self.limit


class RateLimits:
    def __init__(self) -> None:
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def arrive(self, key: ApiKey, now_s: float) -> None:
        """One request of the key's. Raises RateLimited, and then nothing is taken."""
        limit = key.requests_per_minute
        if limit is None:
            return
        bucket = _bucket(self._requests, key.id, limit, now_s)
        if bucket.left < 1:
            raise requests_spent(key, bucket.wait_s(1))
        bucket.left -= 1

    def reserve(self, key: ApiKey, prompt_tokens: int, output_tokens: int, now_s: float) -> int:
        """Tokens taken: those of the prompt and of the predicted output, or all of a full bucket for a request whose prediction, but not
        its prompt, is larger. Raises RateLimited, and then nothing is taken."""
        limit = key.tokens_per_minute
        if limit is None:
            return 0
        if prompt_tokens >= limit:
            raise larger_than_limit(key, prompt_tokens)
        bucket = _bucket(self._tokens, key.id, limit, now_s)
        wanted = min(prompt_tokens + output_tokens, limit)
        if bucket.left < wanted:
            raise tokens_spent(key, wanted, bucket.wait_s(wanted))
        bucket.left -= wanted
        return wanted

    def settle(self, key: ApiKey, reserved_tokens: int, used_tokens: int, now_s: float) -> None:
        """The request is over, or never ran."""
        if key.tokens_per_minute is not None:
            bucket = _bucket(self._tokens, key.id, key.tokens_per_minute, now_s)
            bucket.left = min(bucket.limit, bucket.left + reserved_tokens - used_tokens)

    def give_back_request(self, key: ApiKey) -> None:
        """It was refused elsewhere."""
        bucket = self._requests.get(key.id)
        if bucket is not None:
            bucket.left = min(bucket.limit, bucket.left + 1)

    def told(self, key: ApiKey, now_s: float) -> Told:
        """x-ratelimit headers; none without limits."""
        told: Told = []
        if (limit := key.requests_per_minute) is not None:
            told += told_of(b"requests", limit, _bucket(self._requests, key.id, limit, now_s).left)
        if (limit := key.tokens_per_minute) is not None:
            told += told_of(b"tokens", limit, _bucket(self._tokens, key.id, limit, now_s).left)
        return told


def _bucket(buckets: dict[str, Bucket], key_id: str, limit: int, now_s: float) -> Bucket:
    bucket = buckets.get(key_id)
    if bucket is None:
        if len(buckets) >= MOST_KEYS:
            for name, each in list(buckets.items()):
                each.fill(each.limit, now_s)
                if each.left >= each.limit:
                    del buckets[name]
        bucket = buckets[key_id] = Bucket(limit, limit, now_s)
    if bucket.at_s != now_s or bucket.limit != limit:
        bucket.fill(limit, now_s)
    return bucket


# ---------------------------------------------------------------- in words


def requests_spent(key: ApiKey, wait_s: float) -> RateLimited:
    return RateLimited(
        f"the key {key.prefix}… may send {key.requests_per_minute} requests a minute, and has sent them: wait as long as Retry-After says",
        retry_after_s=wait_s,
    )


def tokens_spent(key: ApiKey, wanted: int, wait_s: float) -> RateLimited:
    return RateLimited(
        f"the key {key.prefix}… may use {key.tokens_per_minute} tokens a minute, and this request needs about {wanted} of them, which are "
        "not left: wait as long as Retry-After says, or lower max_tokens",
        retry_after_s=wait_s,
    )


def larger_than_limit(key: ApiKey, prompt_tokens: int) -> LargerThanLimit:
    return LargerThanLimit(
        f"the prompt has {prompt_tokens} tokens, and the key {key.prefix}… may use {key.tokens_per_minute} a minute: shorten the "
        "prompt, or ask for a larger limit"
    )


def told_of(unit: bytes, limit: int, left: float) -> Told:
    of_limit, of_left, of_reset = HEADERS[unit]
    remaining = int(left) if left > 0 else 0
    return [(of_limit, b"%d" % limit), (of_left, b"%d" % remaining), (of_reset, told((limit - left) * MINUTE_S / limit))]


def told(seconds: float) -> bytes:
    """As OpenAI writes durations: 120ms, 1s, 6m0s. Rounded up."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    minutes, rest = divmod(math.ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
