# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: known peers."""

from __future__ import annotations

from fakenet import Copies, Datagram, FakeNet, both_ready
from test_known_peers import V6, A, B, Program

import vault_udp_packet as packet


def test_each_name_of_one_program_is_met() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True, alias=V6)
    alice = Program(net, A, remember=True, alias=("fd00::1", 1001))
    alice.add_peer(B)
    assert net.run_until(lambda: alice.is_ready(B))
    alice.add_peer(V6)
    assert net.run_until(lambda: alice.is_ready(V6))
    net.run(10)
    assert alice.peer(B) is alice.peer(V6)
    assert alice.met == [(B, bob.key), (V6, bob.key)]


def test_who_has_shown_no_keys_is_not_met() -> None:
    net = FakeNet()

    def hellos_only(datagram: Datagram) -> Copies:
        return net.route(datagram) if packet.looks_clear(datagram.data) else []

    net.hook = hellos_only
    bob = Program(net, B, persistent=True)
    alice = Program(net, A, remember=True)
    bob.add_peer(A)
    net.run(1)
    assert alice.peer(B).identity == bob.sign_public
    alice.add_peer(B)
    assert alice.met == []
    net.hook = net.route
    assert net.run_until(lambda: both_ready(alice, bob))
    assert alice.met == [(B, bob.key)]


def test_a_name_that_leads_to_a_lost_program_is_told_ready_when_it_is_back() -> None:
    net = FakeNet()
    bob = Program(net, B, alias=V6)
    alice = Program(net, A, alias=("fd00::1", 1001))
    alice.add_peer(B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)

    def over_ipv6(datagram: Datagram) -> Copies:
        return net.route(datagram) if ":" in datagram.dst[0] else []

    net.hook = over_ipv6
    alice.send(B, b"unanswered")
    assert net.run_until(lambda: alice.mode(B) == "lost", limit=20)

    def hellos_only(datagram: Datagram) -> Copies:
        return over_ipv6(datagram) if packet.looks_clear(datagram.data) else []

    net.hook = hellos_only
    alice.add_peer(V6)
    net.run(5)
    assert not alice.is_ready(V6)
    assert [event.kind for _, event in alice.events] == ["ready", "lost"]
