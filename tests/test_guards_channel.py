# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: pings, clocks and sizes of a session."""

from __future__ import annotations

import pytest
from fakenet import EPOCH, FakeNet, Host
from test_path_mtu import two_in_session
from test_protocol import B
from test_protocol_edges import GOT, C, Rogue, rogue_and_host

import vault_udp_control as control_format
import vault_udp_packet as packet
from vault_udp_channel import MAX_PINGS_KEPT, PING_VALID
from vault_udp_keys import Pair
from vault_udp_path import NEVER


def in_session() -> tuple[FakeNet, Host, Rogue, Pair]:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    net.run(1)
    rogue.end(B)
    return net, host, rogue, pair


def control_at(rogue: Rogue, pair: Pair) -> list[dict[str, object]]:
    """What has arrived at `B` in control."""
    ours = [data for _, data in rogue._ends[B].received if data.startswith(pair.open_tag)]
    return [control_format.read_json(packet.read_body(pair.open(data)[1]).control) for data in ours]


def test_so_many_pings_are_remembered_the_oldest_goes_first() -> None:
    _, host, _, _ = in_session()
    session = host.peer(B).session
    session._pings.clear()
    for _ in range(MAX_PINGS_KEPT):
        session.ping(host.now)
    kept = list(session._pings)
    assert len(kept) == MAX_PINGS_KEPT
    session.ping(host.now)
    assert list(session._pings)[:-1] == kept[1:]


@pytest.mark.parametrize(("late", "kept"), [(0.0, 2), (0.001, 1)])
def test_pings_are_remembered_as_long_as_their_answers_count(late: float, kept: int) -> None:
    _, host, _, _ = in_session()
    session, now = host.peer(B).session, 1000.0
    session._pings.clear()
    session.ping(now)
    session.ping(now + PING_VALID + late)
    assert len(session._pings) == kept


def test_an_answer_that_leaves_anyway_acknowledges_what_has_come() -> None:
    net, host, rogue, pair = in_session()
    body = packet.make_payload_body(packet.store_frame(b"data"), 1393)
    host.arrive(B, pair.seal([body], EPOCH + net.now)[0])
    host.arrive(B, rogue.sealed(pair, {"type": "confirm", "got": False}))
    assert host.received == [(B, b"data")]
    net.run(2.9)
    assert [members["got"] for members in control_at(rogue, pair)] == [True]


# -------------------------------------------------------------------------------- pings to other addresses


def test_a_peer_that_moves_before_anything_has_opened_is_asked_there() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(B)
    end = rogue.end(C)
    host.arrive(C, rogue.sealed(pair, GOT))
    net.run(0.1)
    assert [data.startswith(pair.open_tag) for _, data in end.received] == [True]


@pytest.mark.parametrize(
    ("size", "asked"), [(127, []), (128, [128]), (129, [129]), (1393, [1393]), (4000, [1393])]
)
def test_a_ping_to_another_address_has_room_and_is_no_longer_than_ours_are(
    size: int, asked: list[int]
) -> None:
    net, host, rogue, pair = in_session()
    end = rogue.end(C)
    host.arrive(C, rogue.sealed(pair, GOT, size))
    net.run(0.1)
    assert [len(data) - 64 for _, data in end.received] == asked


@pytest.mark.parametrize(("after", "asked"), [(0.0, 1), (0.25, 1), (0.5, 2)])
def test_an_address_is_asked_again_as_soon_as_the_interval_has_passed(after: float, asked: int) -> None:
    net, host, rogue, _ = in_session()
    session, end = host.peer(B).session, rogue.end(C)
    with host._acting():
        session.validate(C, 1457, 1000.0)
        session.validate(C, 1457, 1000.0 + after)
    net.run(0.1)
    assert len(end.received) == asked


# ------------------------------------------------------------------------------------------------- clocks


def measured(*samples: tuple[float, float, float]) -> list[float]:
    """The offsets that are known after each of some samples: (round trip, offset that it shows, when)."""
    _, host, _, _ = in_session()
    session, offsets = host.peer(B).session, []
    session._offset_error = NEVER
    for round_trip, offset, now in samples:
        middle = host.node.local.session_time(now - round_trip / 2)
        session._measure(middle + offset, now - round_trip, now)
        assert session.round_trip == round_trip
        offsets.append(round(session.clock_offset, 3))
    return offsets


def test_the_peer_read_its_clock_halfway() -> None:
    assert measured((4.0, 100.0, 1000.0)) == [100.0]


def test_a_sample_that_is_as_good_replaces_the_one_before() -> None:
    assert measured((2.0, 100.0, 1000.0), (2.0, 100.5, 1001.0)) == [100.0, 100.5]


@pytest.mark.parametrize(("offset", "known"), [(102.5, 100.0), (103.5, 103.5)])
def test_a_worse_sample_counts_only_if_it_contradicts(offset: float, known: float) -> None:
    assert measured((2.0, 100.0, 1000.0), (4.0, offset, 1001.0)) == [100.0, known]


@pytest.mark.parametrize(("now", "known"), [(1060.0, 100.0), (1060.5, 101.0)])
def test_a_worse_sample_counts_when_the_one_before_is_a_minute_old(now: float, known: float) -> None:
    assert measured((2.0, 100.0, 1000.0), (4.0, 101.0, now)) == [100.0, known]


# -------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("finds_sizes", "size"), [(True, 469), (False, 1393)])
def test_with_a_fixed_size_a_peer_that_does_not_hear_us_changes_nothing(finds_sizes: bool, size: int) -> None:
    _, host, rogue, pair = in_session()
    host.node.local.finds_sizes = finds_sizes
    host.arrive(B, rogue.sealed(pair, {"type": "confirm", "got": False, "silent": True}, 500))
    assert host.peer(B).session.body_size == size


def test_the_answer_to_a_ping_that_was_refused_and_asked_in_less_counts() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    session = alice.peer(B).session
    alice.path_mtu[B], session.round_trip = 1300, None
    with alice._acting():
        session.ping(alice.now)
    net.run(1)
    assert session.round_trip == pytest.approx(0.02)


def test_a_refused_attempt_to_raise_the_size_is_not_repeated_in_less() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net, lifetime=10_000)
    alice.path_mtu[B] = 1400
    alice.send(B, b"x")
    net.run(5)
    before, path = len(net.sent), alice.peer(B).session._path
    assert path is not None
    attempt_at = path.due_at
    net.run(10)
    assert path.due_at > attempt_at
    assert net.sent[before:] == []


def test_while_a_size_is_in_doubt_messages_may_be_as_long_as_before() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    session = alice.peer(B).session
    session._question_size(500, alice.now)
    assert session.body_size < 500
    assert alice.peer(B).room == packet.message_room(1393)
