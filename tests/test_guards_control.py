# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: control and announcements."""

from __future__ import annotations

import pytest
from test_packet import HELLO, reason_of

import vault_udp_control as control_format
from vault_udp_control import MAX_CONTROL_BRACKETS, MAX_CONTROL_SIZE


@pytest.mark.parametrize(("size", "reason"), [(MAX_CONTROL_SIZE, ""), (MAX_CONTROL_SIZE + 1, "bad_control")])
def test_control_is_read_up_to_its_greatest_size(size: int, reason: str) -> None:
    text = b'{"a":"%b"}' % (b"x" * (size - 8))
    assert len(text) == size
    assert reason_of(control_format.read_json, text) == reason


@pytest.mark.parametrize(
    ("count", "reason"), [(MAX_CONTROL_BRACKETS, ""), (MAX_CONTROL_BRACKETS + 1, "bad_control")]
)
@pytest.mark.parametrize("opens", [b'{"a":', b"["])
def test_control_has_so_many_brackets_of_both_kinds(count: int, reason: str, opens: bytes) -> None:
    closes = b"}" if opens != b"[" else b"]"
    text = b'{"a":' + opens * (count - 1) + b"1" + closes * (count - 1) + b"}"
    assert reason_of(control_format.read_json, text) == reason


@pytest.mark.parametrize("answers", [1, "true", [True], None, False])
def test_nothing_but_true_says_that_an_announcement_answers_one(answers: object) -> None:
    assert control_format.read_announcement({**HELLO, "answers": True}).answers
    assert not control_format.read_announcement({**HELLO, "answers": answers}).answers


def test_an_envelope_costs_no_more_than_its_braces_whatever_the_alphabet() -> None:
    text = "Ελληνικά 日本語"
    assert control_format.make_v1_text(text.encode()) == b'{"data":"%b"}' % text.encode()


@pytest.mark.parametrize("text", [b' {"data":"x"}', b'\n{"enc_key":"k"}', b'\t{"data":"x"}\n'])
def test_v1_text_that_begins_with_space_is_the_users(text: bytes) -> None:
    assert control_format.read_v1_text(text) == text
