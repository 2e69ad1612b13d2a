# SPDX-License-Identifier: Apache-2.0
"""Datagrams end to end in one string, and opening them where they are."""

from __future__ import annotations

import os
from typing import Any

import pytest
from fakenet import FakeNet, both_ready, flip_bit
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_node
import vault_udp_socket_helper as crypto
from vault_udp_layout import make_bodies
from vault_udp_segments import Segments

A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)
KEY, NONCE = b"k" * crypto.KEY_SIZE, b"n" * crypto.NONCE_SIZE


@given(st.binary(min_size=1, max_size=60), st.integers(1, 20), st.data())
def test_segments_are_what_cutting_gives(whole: bytes, size: int, data: st.DataObject) -> None:
    segments = Segments(whole, size)
    cut = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert len(segments) == len(cut)
    assert list(segments) == cut
    index = data.draw(st.integers(-len(cut), len(cut) - 1))
    assert segments[index] == cut[index]
    part = data.draw(st.slices(len(cut)))
    assert list(segments[part]) == cut[part]
    assert {type(segment) for segment in segments[part]} <= {bytes}
    assert segments.lengths() == list(map(len, cut))
    for outside in (len(cut), -len(cut) - 1):
        with pytest.raises(IndexError):
            segments[outside]


@pytest.fixture(params=["cffi", "nacl.bindings"])
def workspace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> crypto.Workspace:
    monkeypatch.setattr(crypto, "_uses_cffi", request.param == "cffi")
    return crypto.Workspace()


def opened(workspace: crypto.Workspace, whole: bytes, start: int, size: int, key: bytes = KEY) -> list[bytes]:
    """The texts of one length that open, one after the other."""
    length = max(0, size - crypto.BOX_OVERHEAD)
    return [bytes(plain[:length]) for plain in workspace.open_run(key, whole, start, size)]


def test_what_is_sealed_opens_one_after_the_other(workspace: crypto.Workspace) -> None:
    texts = [os.urandom(100) for _ in range(5)]
    sealed = [workspace.seal(KEY, NONCE, text) for text in texts]
    size = len(sealed[0])
    for index in range(6):
        assert opened(workspace, b"".join(sealed), index * size, size) == texts[index:]
    shorter = workspace.seal(KEY, NONCE, b"shorter")
    assert opened(workspace, b"".join(sealed) + shorter, 0, size) == texts


def test_a_run_ends_with_what_is_not_authentic(workspace: crypto.Workspace) -> None:
    sealed = [workspace.seal(KEY, NONCE, text) for text in (b"one!", b"two!", b"last")]
    size = len(sealed[0])
    for bit in range(0, 8 * size, 7):
        whole = sealed[0] + flip_bit(sealed[1], bit) + sealed[2]
        assert opened(workspace, whole, 0, size) == [b"one!"]
        assert opened(workspace, whole, 2 * size, size) == [b"last"]


@pytest.mark.parametrize("text_size", [0, 1, 100, 1417, 9000, 65_495])
def test_a_run_is_sealed_as_its_datagrams_one_by_one(workspace: crypto.Workspace, text_size: int) -> None:
    size = text_size + crypto.BOX_OVERHEAD
    for count in (0, 1, min(180, crypto.RUN_SIZE // size)):
        nonces = [os.urandom(crypto.NONCE_SIZE) for _ in range(count)]
        texts = [os.urandom(text_size) for _ in range(count)]
        for at, nonce, text in zip(range(0, size * count, size), nonces, texts):
            workspace.run[at : at + size] = nonce + os.urandom(crypto.AUTHENTICATOR_SIZE) + text
        expected = [workspace.seal(KEY, nonce, text) for nonce, text in zip(nonces, texts)]
        assert workspace.seal_run(KEY, size, count) == b"".join(expected)


def test_runs_of_different_sizes_and_lengths_follow_each_other(workspace: crypto.Workspace) -> None:
    for text_size, count in ((100, 2), (100, 5), (200, 3), (100, 1), (0, 4), (0, 0), (100, 6)):
        size, text = text_size + crypto.BOX_OVERHEAD, os.urandom(text_size)
        workspace.run[: size * count] = (NONCE + bytes(crypto.AUTHENTICATOR_SIZE) + text) * count
        assert workspace.seal_run(KEY, size, count) == workspace.seal(KEY, NONCE, text) * count


@pytest.mark.parametrize(
    ("key", "size", "count"),
    [
        (KEY[:-1], 100, 1),
        (KEY + b"k", 100, 1),
        (KEY, crypto.BOX_OVERHEAD - 1, 1),
        (KEY, -100, 1),
        (KEY, 100, -1),
        (KEY, 100, crypto.RUN_SIZE // 100 + 1),
        (KEY, crypto.RUN_SIZE + 1, 1),
    ],
)
def test_nothing_is_sealed_outside_of_the_memory(
    workspace: crypto.Workspace, key: bytes, size: int, count: int
) -> None:
    with pytest.raises(crypto.EncryptionError):
        workspace.seal_run(key, size, count)


@pytest.mark.parametrize("start", [-44, -1, 1, 44, 45, 1 << 40])
def test_nothing_outside_of_the_string_is_read(workspace: crypto.Workspace, start: int) -> None:
    """On both sides lies what would open."""
    sealed = workspace.seal(KEY, NONCE, b"text")
    whole: Any = memoryview(sealed * 3)[44:88]
    assert opened(workspace, whole, 0, 44) == [b"text"]
    assert opened(workspace, whole, start, 44) == []


@pytest.mark.parametrize("size", [-1, 0, 39, 43, 45, 65_537])
def test_other_lengths_do_not_open(workspace: crypto.Workspace, size: int) -> None:
    assert opened(workspace, workspace.seal(KEY, NONCE, b"text"), 0, size) == []


@pytest.mark.parametrize("size", [9216, 9217, 65_535])
def test_the_longest_datagrams_open_one_by_one_at_least(workspace: crypto.Workspace, size: int) -> None:
    text = os.urandom(size - crypto.BOX_OVERHEAD)
    sealed = workspace.seal(KEY, NONCE, text)
    assert len(sealed) == size
    assert workspace.open(KEY, sealed)[: len(text)] == text
    in_a_run = opened(workspace, sealed * 2, 0, size)
    assert in_a_run == [text, text] or (in_a_run == [] and size > crypto._WORKSPACE_SIZE)


@pytest.mark.parametrize("key", [KEY[:-1], KEY + b"k", b"", b"x" * crypto.KEY_SIZE])
def test_another_key_opens_nothing(workspace: crypto.Workspace, key: bytes) -> None:
    sealed = workspace.seal(KEY, NONCE, b"text")
    assert opened(workspace, sealed, 0, len(sealed), key) == []


def test_messages_in_order_are_read_without_cutting_their_datagrams_out() -> None:
    """The first is cut out, to find whose they are and for itself, and none of those that follow."""
    cut: list[int] = []

    class Counting(Segments):
        def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
            cut.append(index)
            return super().__getitem__(index)

    net = FakeNet(0)
    bob = net.node(B)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    session = alice.peer(B).session
    messages = [b"message %d" % (index % 10) for index in range(44)]
    bodies = [make_bodies((message,), session.body_size, False)[0] for message in messages]
    datagrams = session.seal(bodies, alice.now)
    segments = Counting(b"".join(datagrams), len(datagrams[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_udp_node, "Segments", Counting)
        bob.node.receive(segments, A, bob.now)
    assert [message for _, delivered in bob.node.deliveries for message in delivered] == messages
    assert cut == [0, 0]
