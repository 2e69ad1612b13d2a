# SPDX-License-Identifier: Apache-2.0
"""Token buckets by key: the per-peer rate limit, and the budgets for work that strangers cause."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Callable, Hashable

MAX_TRACKED = 16384


class Bucket:
    """What is left of one key's allowance."""

    __slots__ = ("tokens", "when")

    def __init__(self, tokens: float, when: float) -> None:
        self.tokens = tokens
        self.when = when
        """Seconds: when so much was left."""


class RateLimiter:
    """At most `max_per_second` requests a second for each key; a second's allowance may come at once.

    Not thread-safe by itself. Keys least recently seen are forgotten beyond 16,384 of them.

    Args:
        max_per_second: requests per second, above 0.
        clock: seconds, monotonic.

    Raises:
        ValueError: max_per_second is not a number above 0.
    """

    def __init__(self, max_per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if (
            isinstance(max_per_second, bool)
            or not isinstance(max_per_second, (int, float))
            or not max_per_second > 0
        ):
            raise ValueError(f"max_per_second is {max_per_second!r}; it must be a number above 0")
        self.max_per_second = max_per_second
        self._burst = max(max_per_second, 1.0)
        self._clock = clock
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow_request(self, addr: Hashable) -> bool:
        """Charge one request to `addr`; False if its allowance is spent."""
        return self.allow(addr, 1, self._clock()) == 1

    def allow(self, key: Hashable, count: int, now: float) -> int:
        """Charge up to `count` requests to `key` at `now`; returns how many of them are allowed."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = Bucket(self._burst, now)
            self.put_back(key, bucket)
        else:
            self._buckets.move_to_end(key)
        return self.charge(bucket, count, now)

    def charge(self, bucket: Bucket, count: int, now: float) -> int:
        """`allow`, for a caller that holds the bucket."""
        tokens = bucket.tokens + (now - bucket.when) * self.max_per_second
        if tokens > self._burst:
            tokens = self._burst
        allowed = count if count <= tokens else int(tokens)
        bucket.tokens, bucket.when = tokens - allowed, now
        return allowed

    def has_left(self, bucket: Bucket, now: float) -> bool:
        """Whether `charge` would allow a request; nothing is charged."""
        return bucket.tokens + (now - bucket.when) * self.max_per_second >= 1

    def take(self, key: Hashable, now: float) -> Bucket:
        """Hand the bucket of `key` to the caller, until it is put back."""
        return self._buckets.pop(key, None) or Bucket(self._burst, now)

    def put_back(self, key: Hashable, bucket: Bucket) -> None:
        """Keep the bucket of `key` here."""
        self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        if len(self._buckets) > MAX_TRACKED:
            self._buckets.popitem(last=False)

    def cleanup_old_entries(self) -> None:
        """Forget the keys whose allowance is whole again: forgetting them changes nothing."""
        self.forget_whole(self._clock())

    def forget_whole(self, now: float) -> None:
        """`cleanup_old_entries` at `now`."""
        whole = [
            key
            for key, bucket in self._buckets.items()
            if bucket.tokens + (now - bucket.when) * self.max_per_second >= self._burst
        ]
        for key in whole:
            del self._buckets[key]
