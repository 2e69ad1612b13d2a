# SPDX-License-Identifier: Apache-2.0
"""Datagrams end to end in one string, and opening them where they are."""

from __future__ import annotations

import os

import pytest
from fakenet import FakeNet, Host, both_ready, flip_bit
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_node
import vault_udp_socket_helper as crypto
from vault_udp_layout import make_bodies
from vault_udp_packet import fit, make_control_body, message_room
from vault_udp_path import NEVER
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


def opened(workspace: crypto.Workspace, whole: bytes, size: int, key: bytes = KEY) -> list[bytes]:
    """The texts of one length that open, one after the other."""
    workspace.run[: len(whole)] = whole
    ends = range(size, size * (workspace.open_run(key, size, len(whole) // size) + 1), size)
    return [bytes(workspace.run[end - size + crypto.BOX_OVERHEAD : end]) for end in ends]


@pytest.mark.parametrize("text_size", [0, 1, 100, 1417, 9000, 65_495])
def test_what_is_sealed_opens_one_after_the_other(workspace: crypto.Workspace, text_size: int) -> None:
    size = text_size + crypto.BOX_OVERHEAD
    for count in (0, 1, min(5, crypto.RUN_SIZE // size), crypto.RUN_SIZE // size // 10):
        texts = [os.urandom(text_size) for _ in range(count)]
        assert opened(workspace, b"".join(crypto.seal(KEY, NONCE, text) for text in texts), size) == texts


def test_a_run_ends_with_what_is_not_authentic(workspace: crypto.Workspace) -> None:
    sealed = [crypto.seal(KEY, NONCE, text) for text in (b"one!", b"two!", b"last")]
    size = len(sealed[0])
    for bit in range(0, 8 * size, 7):
        altered = flip_bit(sealed[1], bit)
        assert opened(workspace, sealed[0] + altered + sealed[2], size) == [b"one!"]
        assert bytes(workspace.run[size : 2 * size]) == altered, "nothing is decrypted before it is authentic"


@pytest.mark.parametrize("text_size", [0, 1, 100, 1417, 9000, 65_495])
def test_a_run_is_sealed_as_its_datagrams_one_by_one(workspace: crypto.Workspace, text_size: int) -> None:
    size = text_size + crypto.BOX_OVERHEAD
    for count in (0, 1, min(180, crypto.RUN_SIZE // size)):
        nonces = [os.urandom(crypto.NONCE_SIZE) for _ in range(count)]
        texts = [os.urandom(text_size) for _ in range(count)]
        for at, nonce, text in zip(range(0, size * count, size), nonces, texts):
            workspace.run[at : at + size] = nonce + os.urandom(crypto.AUTHENTICATOR_SIZE) + text
        expected = [crypto.seal(KEY, nonce, text) for nonce, text in zip(nonces, texts)]
        assert workspace.seal_run(KEY, size, count) == b"".join(expected)


def test_runs_of_different_sizes_and_lengths_follow_each_other(workspace: crypto.Workspace) -> None:
    for text_size, count in ((100, 2), (100, 5), (200, 3), (100, 1), (0, 4), (0, 0), (100, 6)):
        size, text = text_size + crypto.BOX_OVERHEAD, os.urandom(text_size)
        workspace.run[: size * count] = (NONCE + bytes(crypto.AUTHENTICATOR_SIZE) + text) * count
        assert workspace.seal_run(KEY, size, count) == crypto.seal(KEY, NONCE, text) * count


@pytest.mark.parametrize(
    ("key", "size", "count"),
    [
        (KEY[:-1], 100, 1),
        (KEY + b"k", 100, 1),
        (b"", 100, 1),
        (KEY, crypto.BOX_OVERHEAD - 1, 1),
        (KEY, 0, 1),
        (KEY, -100, 1),
        (KEY, -100, -1),
        (KEY, 100, -1),
        (KEY, 100, crypto.RUN_SIZE // 100 + 1),
        (KEY, crypto.RUN_SIZE + 1, 1),
    ],
)
def test_nothing_is_touched_outside_of_the_memory(
    workspace: crypto.Workspace, key: bytes, size: int, count: int
) -> None:
    with pytest.raises(crypto.EncryptionError):
        workspace.seal_run(key, size, count)
    with pytest.raises(crypto.DecryptionError):
        workspace.open_run(key, size, count)


def test_another_key_opens_nothing(workspace: crypto.Workspace) -> None:
    sealed = crypto.seal(KEY, NONCE, b"text")
    assert opened(workspace, sealed, len(sealed), b"x" * crypto.KEY_SIZE) == []
    assert opened(workspace, sealed + b"!", len(sealed) + 1) == []


def test_messages_in_order_are_read_without_cutting_their_datagrams_out() -> None:
    """The first is cut out, to find whose they are, and none of those that follow."""
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
    for _ in range(2):
        datagrams = session.seal(bodies, alice.now)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vault_udp_node, "Segments", Counting)
            bob.node.receive(Counting(b"".join(datagrams), len(datagrams[0])), A, bob.now)
        assert [message for _, delivered in bob.node.deliveries for message in delivered] == messages
        assert cut == [0]
        bob.node.deliveries.clear()
        cut.clear()


def test_a_batch_of_what_was_expected_shows_that_the_sender_is_there_and_where() -> None:
    net = FakeNet(0)
    bob = net.node(B)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    session, moved_to = bob.peer(A).session, ("10.0.0.9", 1009)
    for source in (A, A, moved_to):
        bob.node.seal_messages(bob.peer(A), [b"is anybody there?"], bob.now)
        assert session._suspect_at < NEVER
        net.run(0.5)
        datagrams = alice.peer(B).session.seal(
            make_bodies([b"same"] * 44, session.body_size, False), alice.now
        )
        assert isinstance(datagrams, Segments)
        bob.node.receive(Segments(bytes(datagrams.whole), datagrams.size), source, bob.now)
        assert session._suspect_at == NEVER
        assert session.last_opened == bob.now
    assert [address for address, _ in bob.node.outgoing] == [moved_to]


@pytest.mark.parametrize(("messages", "kept"), [([b"same"] * 10, True), ([b""] * 2560, False)])
def test_what_is_expected_next_time_takes_little_memory(messages: list[bytes], kept: bool) -> None:
    """What is common to bodies of 256 messages takes ten times as much as the replay window of a pair."""
    net = FakeNet(0)
    bob = net.node(B)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    session = alice.peer(B).session
    datagrams = session.seal(make_bodies(messages, session.body_size, not kept), alice.now)
    pair = bob.node.tags[datagrams[0][:8]]
    bob.node.receive(Segments(b"".join(datagrams), len(datagrams[0])), A, bob.now)
    assert [message for _, some in bob.node.deliveries for message in some] == messages
    assert (pair.layout is not None) == kept


@pytest.mark.parametrize("alone", [True, False])
def test_old_datagrams_from_elsewhere_show_no_move(alone: bool) -> None:
    net = FakeNet(0)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    session = alice.peer(B).session
    batches = []
    for _ in range(2):
        datagrams = session.seal(make_bodies([b"same"] * 5, session.body_size, False), alice.now)
        assert isinstance(datagrams, Segments)
        batches.append(Segments(bytes(datagrams.whole), datagrams.size))
    bob.node.receive(batches[1], A, bob.now)
    old = [batches[0][0]] if alone else batches[0]
    bob.node.receive(old, ("10.0.0.9", 1009), bob.now)
    assert sum(len(messages) for _, messages in bob.node.deliveries) == 5 + len(old)
    assert bob.node.outgoing == []


def test_a_move_is_seen_behind_a_late_datagram_of_its_batch() -> None:
    net = FakeNet(0)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    session, moved_to = alice.peer(B).session, ("10.0.0.9", 1009)
    late = session.seal([make_control_body(b'{"type":"other"}', session.body_size)], alice.now)
    first, *others = session.seal(make_bodies([b"same"] * 5, session.body_size, False), alice.now)
    bob.node.receive([first], A, bob.now)
    bob.node.receive(Segments(b"".join([*late, *others]), len(first)), moved_to, bob.now)
    assert [address for address, _ in bob.node.outgoing] == [moved_to]


def test_a_clock_that_an_answer_corrects_counts_for_what_is_behind_it() -> None:
    net = FakeNet(0)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    at_bob, session = bob.peer(A).session, alice.peer(B).session
    at_bob.clock_offset += 1000
    data = make_bodies([b"same"] * 5, session.body_size, False)
    bob.node.outgoing.clear()
    at_bob.ping(bob.now)
    for _, ping in bob.node.outgoing:
        alice.node.receive([ping], B, alice.now)
    answers = [datagram for _, datagram in alice.node.outgoing]
    datagrams = [*session.seal(data, alice.now), *answers, *session.seal(data, alice.now)]
    bob.node.receive(Segments(b"".join(datagrams), len(datagrams[0])), A, bob.now)
    assert bob.node.counters["outside_window"] == 5
    assert [message for _, some in bob.node.deliveries for message in some] == [b"same"] * 5


def count_openings(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many datagrams the host has opened in each go, from now on; alone or in its workspace."""
    openings: list[int] = []
    workspace = host.node.local.workspaces.take()
    open_run: crypto.OpenRun = workspace.open_run
    open_sealed = crypto.open_sealed

    def counted_run(key: bytes, size: int, count: int) -> int:
        openings.append(count)
        return open_run(key, size, count)

    def counted(key: bytes, datagram: crypto.Buffer) -> bytes:
        openings.append(1)
        return open_sealed(key, datagram)

    monkeypatch.setattr(workspace, "open_run", counted_run)
    monkeypatch.setattr(crypto, "open_sealed", counted)
    host.node.local.workspaces.give_back(workspace)
    return openings


def test_a_batch_that_comes_again_is_opened_hardly_more_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = FakeNet(0)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    session = alice.peer(B).session
    datagrams = session.seal(make_bodies([b"same"] * 40, session.body_size, False), alice.now)
    batch = Segments(b"".join(datagrams), len(datagrams[0]))
    bob.node.receive(batch, A, bob.now)
    openings = count_openings(bob, monkeypatch)
    bob.node.receive(batch, A, bob.now)
    bob.node.receive(batch, A, bob.now)
    assert bob.node.counters["replayed"] == 80
    assert sum(openings) <= 80 + 40 + 2  # what the first batch earned is opened in vain once


@pytest.mark.parametrize("size", [8, 9, 39, 40, 63, 64, 67, 68])
def test_short_datagrams_of_a_pair_are_refused_by_the_batch(size: int) -> None:
    net = FakeNet(0)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    tag = alice.peer(B).session.seal([bytes(1000)], alice.now)[0][:8]
    bob.node.receive(Segments(tag.ljust(size, b"x") * 3, size), A, bob.now)
    assert bob.node.counters["bad_length" if size < 68 else "forged"] == 3


def test_a_pair_that_is_kept_for_its_window_keeps_no_session() -> None:
    net = FakeNet(0)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    assert {pair.owner for pair in bob.node.tags.values()} == {bob.peer(A).session}
    alice.stop()
    net.run(0.1)
    assert bob.node.retired
    assert {pair.owner for pair in bob.node.retired.values()} == {None}


def test_a_batch_of_what_was_expected_brings_a_lost_peer_back() -> None:
    net = FakeNet(0)
    bob = net.node(B, A)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    batches = []
    for _ in range(2):
        datagrams = alice.peer(B).session.seal(make_bodies([b"same"] * 44, 1000, False), alice.now)
        assert isinstance(datagrams, Segments)
        batches.append(Segments(bytes(datagrams.whole), datagrams.size))
    bob.node.receive(batches[0], A, bob.now)
    net.loss = 1
    bob.send(A, b"is anybody there?")
    assert net.run_until(lambda: bob.mode(A) == "lost", limit=10)
    bob.node.receive(batches[1], A, bob.now)
    assert [event.kind for event in bob.node.events] == ["ready"]


def test_bursts_of_messages_of_all_sizes_arrive() -> None:
    net = FakeNet(0)
    bob = net.node(B)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    session = alice.peer(B).session
    for size in range(message_room(session.body_size) + 1):
        messages = [b"%d" % number * size for number in range(4)]
        datagrams = session.seal(make_bodies(messages, session.body_size, False), alice.now)
        assert isinstance(datagrams, Segments)
        bob.node.receive(Segments(bytes(datagrams.whole), datagrams.size), A, bob.now)
        assert [message for _, some in bob.node.deliveries for message in some] == messages
        bob.node.deliveries.clear()


def runs(*lengths: int, unusual: bool = False) -> list[bytes]:
    """Messages of two sizes in turns, so many of one size in a row; or such that are compressed in turns."""
    kinds = (b"same", b"u" * 2000 if unusual else b"other")
    return [kinds[turn % 2] for turn, length in enumerate(lengths) for _ in range(length)]


@pytest.mark.parametrize(
    ("batches", "most"),
    [
        ([runs(44)] * 10, 1),
        ([[*runs(43), b"a remainder"]] * 10, 1),
        ([runs(*[1] * 44)] * 10, 1),
        ([runs(0, 44, unusual=True)] * 10, 1.03),
        ([runs(*[2, 1] * 15, unusual=True)] * 10, 2),
        ([runs(*[3, 1] * 11, unusual=True)] * 10, 2),
        ([runs(*[1] * 44, unusual=True)] * 10, 2),
        # The worst that can follow a long run.
        ([*[runs(44)] * 3, runs(0, *[1] * 44, unusual=True)], 3),
    ],
    ids=["same", "remainder", "in turns", "unusual", "two and one", "three and one", "one and one", "worst"],
)
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "backwards"])
def test_few_are_opened_in_vain(
    batches: list[list[bytes]], most: float, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where something unusual comes, what was opened ahead of its time is opened again.

    In vain are opened at most as many as were usual since the last that was not, and one.
    """
    net = FakeNet(0)
    bob = net.node(B)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    session, openings = alice.peer(B).session, count_openings(bob, monkeypatch)
    for messages in batches:
        openings.clear()
        fitted = [fit(message, session.body_size) for message in messages]
        bodies = [make_bodies((message,), session.body_size, False)[0] for message in fitted]
        step = 1 if in_order else -1
        datagrams = [*session.seal(bodies, alice.now)][::step]
        bob.node.receive(Segments(b"".join(datagrams), len(datagrams[0])), A, bob.now)
        assert [message for _, some in bob.node.deliveries for message in some] == messages[::step]
        bob.node.deliveries.clear()
        assert sum(openings) <= most * len(messages)
