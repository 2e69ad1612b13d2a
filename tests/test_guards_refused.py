# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: what the system refuses, and what unpacks large."""

from __future__ import annotations

import pytest
from base_net import OURS, THEIRS, connected
from base_peer import make_body, seal_body
from fakenet import FakeNet, Host
from test_path_mtu import A, B, body, size_of, two_in_session

import vault_udp_packet as packet
from vault_udp_path import NEVER


def announcements(host: Host, size: int) -> list[bytes]:
    return [sent.data for sent in host.net.sent if sent.src == host.address and len(sent.data) == size]


@pytest.mark.parametrize("version", [1, 2])
def test_what_base_peers_send_unpacks_no_further_than_is_delivered_in_between(version: int) -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net, version)
    frame = packet.compress_frame(b"x" * (1 << 20), 1300)
    box = them.peer._box(OURS)
    assert box is not None
    datagrams = [seal_body(box, make_body(version, frame), them.clock) for _ in range(3)]
    assert us.node.receive(datagrams, them.source, us.now) == 1
    assert us.node.receive(datagrams[1:], them.source, us.now) == 1
    assert us.node.receive(datagrams[2:], them.source, us.now) == 1


def test_with_a_fixed_size_base_peers_are_not_lowered() -> None:
    net = FakeNet(delay=0.01)
    us, _ = connected(net)
    us.node.local.finds_sizes = False
    us.path_mtu[THEIRS] = 576
    before = size_of(us, THEIRS)
    us.send(THEIRS, b"short")
    assert len(us.lost_here) == 1
    assert size_of(us, THEIRS) == before


def test_what_was_sealed_for_a_peer_that_is_announced_to_again_is_lost() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    _, (sealed,) = alice.node.seal_messages(alice.peer(B), (b"x",), alice.now)
    bob.stop()
    net.run(0.1)
    announce_at = alice.peer(B).announce_at
    assert announce_at != NEVER
    assert not alice.node.refused(B, sealed, 1280, alice.now)
    assert alice.peer(B).announce_at == announce_at


def test_a_refused_announcement_to_where_the_peer_is_not_lowers_nothing() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    bob.move(("10.0.0.7", 7))
    assert net.run_until(lambda: alice.peer(B).session.endpoint == ("10.0.0.7", 7), limit=5)
    bob.kill()
    alice.path_mtu[B] = 1000
    alice.send(B, b"x")
    net.run(10)
    assert alice.mode(B) == "lost"
    assert size_of(alice, B) == body(1500)


def test_a_refused_announcement_tells_what_the_path_carries() -> None:
    net = FakeNet(delay=0.01)
    alice = net.node(A)
    alice.path_mtu[B] = 1000
    alice.add_peer(B)
    net.run(0.0)
    assert size_of(alice, B) == body(1000)


def test_a_short_announcement_that_is_refused_is_lost() -> None:
    net = FakeNet(delay=0.01)
    alice = net.node(A, B)
    net.run(10)
    short = announcements(alice, 512)[-1]
    announce_at = alice.peer(B).announce_at
    assert not alice.node.refused(B, short, 500, alice.now)
    assert alice.peer(B).announce_at == announce_at


def test_an_announcement_to_who_has_come_up_meanwhile_is_not_repeated() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    full = announcements(alice, 1024)[0]
    assert not alice.node.refused(B, full, 1000, alice.now)
    assert alice.peer(B).announce_at == NEVER
