# SPDX-License-Identifier: Apache-2.0
"""Who is whom: attempts to be taken for somebody else, to get his messages, or to lead his peers away."""

from __future__ import annotations

import pytest
from base_net import OURS, THEIRS, BaseHost, clear_announcement_of
from fakenet import EPOCH, Address, FakeNet, Outsider
from test_reviewed_attacks import A, B, base_announcement, encryption_on

import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_keys import NO_KEY, Hello, LocalKeys, read_hello_untrusted


@pytest.mark.parametrize("size", [370, 1393])
@pytest.mark.parametrize("adds", [True, False])
def test_who_is_not_on_the_path_leads_no_session_down(size: int, adds: bool) -> None:
    """Bob looks for Alice; the moment she starts, somebody forges a base announcement in his name."""
    for seed in range(8):
        net = FakeNet(seed, delay=0.03)
        bob = net.node(B, A)
        bob.send(A, b"for Alice")
        net.run(3 + seed / 10)
        alice = net.node(A, *([B] if adds else []))
        net.inject(B, A, base_announcement(encryption_on(net), B[1], size))
        assert net.run_until(lambda: alice.received == [(B, b"for Alice")], limit=5)  # noqa: B023
        assert bob.mode(A) == "session"


def test_nobody_locks_a_v1_peer_out_by_repeating_its_announcement_as_v2() -> None:
    """The signature covers the two keys only, and is there for everybody to copy."""
    net = FakeNet(delay=0.01)
    us, them = net.node(OURS), BaseHost(net, 1)
    net.inject(("10.0.0.66", 5555), OURS, clear_announcement_of(them, 2))
    net.run(1)
    them.add_peer(OURS)
    net.run(1)
    for number in range(5):
        them.send(f"{number}")
        net.run(1)
    assert us.messages_from(THEIRS) == [b"%d" % number for number in range(5)]


@pytest.mark.parametrize("seed", range(6))
def test_nobody_leads_the_first_messages_to_himself_by_showing_a_hello_at_his_address(seed: int) -> None:
    """Bob signs any nonce that he is asked with: also the one that Alice has for the attacker's address.

    So to Alice that address is Bob's, as far as hellos go, and what he sends opens there.
    """
    net = FakeNet(seed, delay=0.05)
    alice, bob = net.node(A), net.node(B)
    shown_to_alice, shown_to_bob = net.outsider(("10.0.0.66", 1)), net.outsider(("10.0.0.67", 1))
    attacker = LocalKeys(bytes([7]) * 32, 0.0, EPOCH)
    signed: list[bytes] = []

    def ask(end: Outsider, target: Address, nonce: bytes) -> None:
        hello = Hello(
            0, 0, 0.0, attacker.sign_public, attacker.current.public, NO_KEY, NO_KEY, nonce, bytes(16)
        )
        members = {
            "hello": crypto.bytes_to_b64_str(hello.pack()),
            "proof": crypto.bytes_to_b64_str(bytes(64)),
        }
        end.send(target, control_format.make_announcement_body(members, 512))

    def hand_on(source: Address, datagram: bytes) -> None:
        if source == A and packet.looks_clear(datagram):
            announcement = control_format.read_announcement(
                control_format.read_json(packet.read_body(datagram).control)
            )
            assert announcement.hello is not None
            ask(shown_to_bob, B, read_hello_untrusted(announcement.hello).nonce)

    def show() -> None:
        if signed:
            net.inject(shown_to_alice.address, A, signed[-1])

    shown_to_alice.on_datagram = hand_on
    shown_to_bob.on_datagram = lambda _, datagram: signed.append(datagram)
    net.every(3, lambda: ask(shown_to_alice, A, bytes(16)), until=30)
    net.every(0.02, show, until=30)
    net.run(2)
    alice.add_peer(B)
    messages = [b"%d" % number for number in range(20)]
    alice.send(B, *messages)
    assert net.run_until(lambda: len(bob.received) == 20, limit=10)
    assert [message for _, message in bob.received] == messages
    assert not [
        sent for sent in net.sent if sent.dst == shown_to_alice.address and sent.data in alice.data_sent
    ]
