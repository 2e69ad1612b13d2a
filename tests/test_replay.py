# SPDX-License-Identifier: Apache-2.0
"""The replay windows, against models too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vault_udp_replay import WINDOW_SIZE, CounterWindow, NonceCache

STEPS = st.one_of(
    st.integers(-3, 3),
    st.integers(-WINDOW_SIZE - 80, WINDOW_SIZE + 80),
    st.sampled_from([-WINDOW_SIZE, -WINDOW_SIZE + 1, -WINDOW_SIZE - 1, WINDOW_SIZE, 3 * WINDOW_SIZE]),
)


class NaiveWindow:
    """Remembers everything."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        highest = max(self.seen, default=-1)
        if counter in self.seen or counter <= highest - WINDOW_SIZE:
            return False
        self.seen.add(counter)
        return True


@given(st.lists(STEPS, max_size=80))
def test_counters_are_judged_as_if_all_were_remembered(steps: list[int]) -> None:
    window, naive, counter = CounterWindow(), NaiveWindow(), 0
    for step in steps:
        counter = max(0, counter + step)
        assert window.accept(counter) == naive.accept(counter)
        assert window.highest == max(naive.seen, default=-1)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_any_64_bit_counter_is_judged(counters: list[int]) -> None:
    window, naive = CounterWindow(), NaiveWindow()
    assert [window.accept(c) for c in counters] == [naive.accept(c) for c in counters]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 63, 64, 12345])
def test_exactly_the_window_is_open_behind_the_highest(start: int) -> None:
    window = CounterWindow()
    highest = start + WINDOW_SIZE
    assert window.accept(highest)
    assert not window.accept(highest - WINDOW_SIZE)
    assert all(window.accept(counter) for counter in range(highest - WINDOW_SIZE + 1, highest))
    assert not any(window.accept(counter) for counter in range(start, highest + 1))


def test_the_window_is_at_least_8192_and_costs_what_is_used() -> None:
    assert WINDOW_SIZE >= 8192
    window = CounterWindow()
    assert len(window._ring) == 0
    for counter in range(100):
        assert window.accept(counter)
        assert len(window._ring) <= 2 * (counter // 8 + 1)
    window.accept_next(28)
    assert len(window._ring) == 16


@pytest.mark.parametrize("step", [1, 3, 8, 17])
def test_a_window_that_grows_forgets_nothing(step: int) -> None:
    window = CounterWindow()
    for counter in range(0, 20_000, step):
        assert window.accept(counter)
        assert not window.accept(counter)
    highest = window.highest
    for counter in range(max(0, highest - WINDOW_SIZE + 1), highest + 1):
        assert window.accept(counter) == (counter % step != 0)


MESSAGES = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 9)), max_size=60)


@given(MESSAGES, st.integers(1, 5))
def test_a_nonce_is_never_accepted_twice_however_small_the_cache(
    messages: list[tuple[int, int]], size: int
) -> None:
    cache, accepted = NonceCache(), set()
    for number, timestamp in messages:
        nonce = bytes([number, timestamp])  # a datagram's nonce and time belong together
        if cache.is_fresh(nonce, timestamp):
            assert nonce not in accepted
            accepted.add(nonce)
            cache.add(nonce, timestamp, size)
        assert len(cache) <= size


def test_when_full_the_smallest_timestamp_goes_and_nothing_up_to_it_is_accepted() -> None:
    cache = NonceCache()
    for timestamp in (3, 1, 2):
        cache.add(bytes([timestamp]), timestamp, size=2)
    assert cache.floor == 1
    assert not cache.is_fresh(b"another", 1)
    assert not cache.is_fresh(bytes([1]), 1)
    assert cache.is_fresh(b"another", 2)
    assert not cache.is_fresh(bytes([2]), 2)


def test_what_is_forgotten_by_age_is_not_accepted_again() -> None:
    cache = NonceCache()
    for timestamp in range(5):
        cache.add(bytes([timestamp]), timestamp, size=10)
    cache.forget_before(3)
    assert len(cache) == 2
    assert not any(cache.is_fresh(bytes([timestamp]), timestamp) for timestamp in range(5))
    assert cache.is_fresh(b"new", 3)


def test_nothing_at_or_before_the_floor_is_accepted() -> None:
    cache = NonceCache(floor=100.0)
    assert not cache.is_fresh(b"nonce", 100.0)
    assert not cache.is_fresh(b"nonce", float("nan"))
    assert cache.is_fresh(b"nonce", 100.5)


@given(
    st.lists(
        st.one_of(st.integers(0, 40), st.tuples(st.integers(0, 300) | st.integers(8000, 9000))), max_size=30
    )
)
@example([(8 * 1032,), (3,)])
def test_accepting_the_next_ones_is_accepting_each(steps: list[int | tuple[int]]) -> None:
    """A plain number skips so many counters and accepts the one behind; a tuple accepts the next ones."""
    together, singly = CounterWindow(), CounterWindow()
    for step in steps:
        if isinstance(step, tuple):
            together.accept_next(step[0])
            assert all(singly.accept(singly.highest + 1) for _ in range(step[0]))
        else:
            counter = singly.highest + 1 + step
            assert together.accept(counter)
            assert singly.accept(counter)
        assert together.highest == singly.highest
    for counter in range(max(0, singly.highest - 500), singly.highest + 20):
        assert together.accept(counter) == singly.accept(counter)
