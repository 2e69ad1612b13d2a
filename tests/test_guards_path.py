# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: what is known of one path."""

from __future__ import annotations

from typing import Callable

import pytest
from test_path_mtu import V4, body, in_use, lowered

from vault_udp_path import (
    CHECK_INTERVAL,
    CHECK_PATIENCE,
    CHECK_ROUNDS,
    DOUBT_LASTS,
    NEVER,
    RAISE_AFTER,
    RAISE_ROUNDS,
    Path,
)

RTT = 0.02


def in_doubt(answered: int) -> Path:
    """A path whose size stays silent since 0.0, and on which `answered` was answered at 1.0."""
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.answered(body(answered), RTT, 1.0)
    return path


def attempt_to_raise(path: Path) -> None:
    for _ in range(RAISE_ROUNDS):
        path.run(path.due_at)


def test_a_doubt_goes_on_where_it_is_when_another_ping_stays_silent() -> None:
    path = in_doubt(1280)
    path.run(1.0)
    assert path.doubt(1.1) == [body(size) for size in (1450, 1420, 1400)]
    assert path.due_at == 1.0 + CHECK_INTERVAL
    assert in_use(path) == (body(1280), body(1500))


def test_what_was_answered_in_one_doubt_says_nothing_in_the_next() -> None:
    begins: tuple[Callable[[Path], object], ...] = (
        lambda path: path.doubt(2.0),
        lambda path: path.question(body(576), RTT, 2.0),
    )
    for begin in begins:
        path = lowered(1420)
        path.doubt(0.0)
        path.answered(body(1280), RTT, 1.0)
        path.answered(body(1420), RTT, 1.0)
        begin(path)
        assert path.doubt(2.0) == [body(size) for size in (1400, 1280, 576)]
        while path.doubted:
            path.run(path.due_at)
        assert path.size == body(1420), "nothing was answered"


def rounds_left(path: Path) -> int:
    rounds = 0
    while path.run(path.due_at):
        rounds += 1
    return rounds


def test_an_attempt_to_raise_the_size_ends_with_a_doubt() -> None:
    path = lowered(1400)
    path.run(path.due_at)
    assert path.doubt(11.0) == [body(1280), body(576)]
    assert path.due_at == 11.0 + DOUBT_LASTS
    path.answered(body(576), RTT, 12.0)
    assert path.due_at == 12.0
    assert rounds_left(path) == CHECK_ROUNDS


def test_a_peer_that_hears_nothing_is_believed_amid_an_attempt_to_raise_the_size() -> None:
    path = lowered(1400)
    path.run(path.due_at)
    path.question(body(1280), RTT, 11.0)
    assert in_use(path) == (body(1280), body(1400))


def test_where_there_is_no_smaller_size_a_peer_that_hears_nothing_changes_nothing() -> None:
    path = Path(V4, body(576))
    path.question(128, RTT, 0.0)
    assert path.is_default
    assert path.due_at == NEVER


def test_an_answer_of_full_size_ends_a_doubt_in_which_nothing_else_was_answered() -> None:
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.answered(body(1500), RTT, 1.0)
    assert path.is_default
    assert path.due_at == NEVER
    path.answered(body(1280), RTT, 1.1)  # overtaken
    assert path.is_default


def test_answers_of_our_size_do_not_put_off_the_attempt_to_raise_it() -> None:
    path = lowered()
    for now in range(1, 10):
        path.answered(body(1280), RTT, now)
    assert path.due_at == RAISE_AFTER
    path.run(path.due_at)
    path.answered(body(1280), RTT, path.due_at - 0.1)
    assert path.due_at == RAISE_AFTER + CHECK_INTERVAL


def test_the_limit_is_not_exceeded_whatever_is_answered() -> None:
    path = lowered()
    path.answered(body(9000), RTT, 1.0)
    assert path.is_default


def test_each_larger_answer_does_not_begin_the_rounds_anew() -> None:
    path = in_doubt(576)
    path.run(1.0)
    path.answered(body(1280), RTT, 1.1)
    assert path.due_at == 1.0 + CHECK_INTERVAL
    assert 1 + rounds_left(path) == CHECK_ROUNDS


def test_who_is_near_has_a_second_to_answer_the_last_round() -> None:
    path = in_doubt(1280)
    for _ in range(CHECK_ROUNDS):
        path.run(path.due_at)
    assert path.due_at == 1.0 + (CHECK_ROUNDS - 1) * CHECK_INTERVAL + CHECK_PATIENCE


@pytest.mark.parametrize("carried", [None, body(300)])
def test_a_refusal_at_the_floor_does_not_put_off_the_attempt_to_raise_it(carried: int | None) -> None:
    path = lowered(576)
    path.refused(body(576), carried, 5.0)
    assert path.size == body(576)
    assert path.due_at == RAISE_AFTER


def test_after_a_path_has_shrunk_again_it_is_tried_soon() -> None:
    path = lowered()
    for _ in range(5):
        attempt_to_raise(path)
    path.refused(body(1280), None, 1000.0)
    assert path.due_at == 1000.0 + RAISE_AFTER


def test_a_path_that_has_grown_or_stayed_is_tried_as_seldom_as_before() -> None:
    path = lowered()
    attempt_to_raise(path)
    path.answered(body(1400), RTT, 100.0)
    assert path.due_at == 100.0 + 2 * RAISE_AFTER
    path = lowered()
    attempt_to_raise(path)
    path.doubt(100.0)
    path.run(path.due_at)
    assert path.due_at == 100.0 + DOUBT_LASTS + 2 * RAISE_AFTER


def test_an_attempt_after_a_doubt_that_the_system_has_ended_has_all_its_rounds() -> None:
    path = in_doubt(1280)
    path.run(1.0)
    path.refused(body(1500), body(1400), 1.1)
    assert in_use(path) == (body(1400), body(1400))
    times = []
    for _ in range(RAISE_ROUNDS + 1):
        times.append(path.due_at)
        assert path.run(path.due_at) == [body(1500), body(1450), body(1420)]
    attempt = [1.1 + RAISE_AFTER + count * CHECK_INTERVAL for count in range(RAISE_ROUNDS)]
    assert times == pytest.approx([*attempt, attempt[-1] + 2 * RAISE_AFTER])
