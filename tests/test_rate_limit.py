# SPDX-License-Identifier: Apache-2.0
"""The token buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_rate_limit
from vault_udp_rate_limit import Bucket, RateLimiter


def test_a_burst_of_one_second_passes_and_then_the_rate() -> None:
    limiter = RateLimiter(10)
    assert limiter.allow("peer", 25, now=0.0) == 10
    assert limiter.allow("peer", 1, now=0.05) == 0
    assert limiter.allow("peer", 5, now=0.25) == 2
    assert limiter.allow("peer", 100, now=60.0) == 10


def test_each_key_has_an_allowance_of_its_own() -> None:
    limiter = RateLimiter(1)
    assert limiter.allow("a", 1, now=0.0) == 1
    assert limiter.allow("a", 1, now=0.0) == 0
    assert limiter.allow("b", 1, now=0.0) == 1


def test_a_rate_below_one_still_lets_one_pass() -> None:
    limiter = RateLimiter(0.5)
    assert [limiter.allow("peer", 1, now) for now in (0.0, 1.0, 2.0, 3.0)] == [1, 0, 1, 0]


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 100)), min_size=1, max_size=40),
)
def test_in_no_span_does_more_pass_than_the_burst_and_the_rate(
    rate: int, requests: list[tuple[float, int]]
) -> None:
    limiter, now, passed = RateLimiter(rate), 0.0, []
    for pause, count in requests:
        now += pause
        allowed = limiter.allow("peer", count, now)
        assert 0 <= allowed <= count
        passed.append((now, allowed))
    for first, (start, _) in enumerate(passed):
        for last in range(first, len(passed)):
            span = passed[last][0] - start
            assert sum(allowed for _, allowed in passed[first : last + 1]) <= rate + rate * span + 1e-6


def test_the_clock_given_is_used_by_allow_request_and_cleanup() -> None:
    now = 0.0
    limiter = RateLimiter(2, clock=lambda: now)
    assert [limiter.allow_request(("10.0.0.1", 1)) for _ in range(3)] == [True, True, False]
    limiter.cleanup_old_entries()
    assert len(limiter) == 1, "its allowance is still spent"
    now = 1.0
    limiter.cleanup_old_entries()
    assert len(limiter) == 0
    assert limiter.allow_request(("10.0.0.1", 1))


def test_the_keys_least_recently_seen_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_rate_limit, "MAX_TRACKED", 3)
    limiter = RateLimiter(1)
    for key in "abcad":
        limiter.allow(key, 1, now=0.0)
    assert len(limiter) == 3
    assert limiter.allow("a", 1, now=0.0) == 0, "a was seen again and is remembered"
    assert limiter.allow("b", 1, now=0.0) == 1, "b was forgotten"


def test_a_bucket_may_be_kept_elsewhere_and_comes_back_as_it_is() -> None:
    limiter, now = RateLimiter(10), 5.0
    limiter.allow("peer", 4, now)
    bucket = limiter.take("peer", now)
    assert len(limiter) == 0
    assert limiter.charge(bucket, 4, now) == 4
    limiter.put_back("peer", bucket)
    assert limiter.allow("peer", 4, now) == 2
    assert limiter.charge(limiter.take("somebody else", now), 99, now) == 10


def test_no_more_buckets_are_put_back_than_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_rate_limit, "MAX_TRACKED", 3)
    limiter = RateLimiter(1)
    for key in "abcabd":
        limiter.put_back(key, Bucket(0.0, 0.0))
    assert len(limiter) == 3
    assert [limiter.allow(key, 1, now=0.0) for key in "abd"] == [0, 0, 0], "the last that were put back"


@pytest.mark.parametrize("rate", [0, -1, float("nan"), True, "10", None])
def test_a_rate_that_is_none_is_refused_by_name(rate: object) -> None:
    with pytest.raises(ValueError, match="max_per_second"):
        RateLimiter(rate)  # type: ignore[arg-type]


def test_a_whole_request_is_left_or_none() -> None:
    limiter = RateLimiter(1)
    bucket = limiter.take("peer", 5.0)
    assert limiter.has_left(bucket, 5.0)
    assert limiter.charge(bucket, 1, 5.0) == 1
    assert not limiter.has_left(bucket, 5.0)
    assert not limiter.has_left(bucket, 5.75)
    assert limiter.has_left(bucket, 6.0)
