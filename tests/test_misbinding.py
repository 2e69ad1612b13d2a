# SPDX-License-Identifier: Apache-2.0
"""Who is whom: attempts to be taken for somebody else, to get his messages, or to lead his peers away."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from base_net import OURS, THEIRS, BaseHost, clear_announcement_of
from fakenet import EPOCH, Address, FakeNet, Outsider, both_ready
from loopback import Collector, address_of, eventually, pair
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


class Shower:
    """Shows Alice hellos of Bob's at an address of the attacker's, off the path between the two.

    Bob signs any nonce that he is asked with: also the one that Alice has for that address. So to Alice it is
    Bob's, as far as hellos go, and what he sends opens there.
    """

    def __init__(self, net: FakeNet, *, passes_on: bool = False) -> None:
        self.net = net
        self.address = ("10.0.0.66", 1)
        self._passes_on = passes_on
        self._keys = LocalKeys(bytes([7]) * 32, 0.0, EPOCH)
        self._nonce = bytes(16)
        self.to_alice, self.to_bob = net.outsider(self.address), net.outsider(("10.0.0.67", 1))
        self.to_alice.on_datagram, self.to_bob.on_datagram = self._from_alice, self._from_bob
        net.every(3, lambda: self._ask(self.to_alice, A, bytes(16)), until=300)
        net.every(0.02, lambda: self._ask(self.to_bob, B, self._nonce), until=300)

    def _ask(self, end: Outsider, target: Address, nonce: bytes) -> None:
        keys = self._keys.sign_public, self._keys.current.public, NO_KEY, NO_KEY
        hello = crypto.bytes_to_b64_str(Hello(0, 0, 0.0, *keys, nonce, bytes(16)).pack())
        members = {"hello": hello, "proof": crypto.bytes_to_b64_str(bytes(64))}
        end.send(target, control_format.make_announcement_body(members, 512))

    def _from_alice(self, _: Address, datagram: bytes) -> None:
        if packet.looks_clear(datagram):
            self._nonce = hello_in(datagram).nonce
        elif self._passes_on:
            self.net.inject(self.address, B, datagram)  # unread

    def _from_bob(self, _: Address, datagram: bytes) -> None:
        if hello_in(datagram).echo == self._nonce:
            self.net.inject(self.address, A, datagram)


def hello_in(datagram: bytes) -> Hello:
    """The hello of an announcement in clear."""
    members = control_format.read_json(packet.read_body(datagram).control)
    announcement = control_format.read_announcement(members)
    assert announcement.hello is not None
    return read_hello_untrusted(announcement.hello)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_gets_the_first_messages_by_showing_a_hello_at_his_address(seed: int) -> None:
    net = FakeNet(seed, delay=0.05)
    alice, bob = net.node(A), net.node(B)
    Shower(net)
    net.run(2)
    alice.add_peer(B)
    messages = [b"%d" % number for number in range(20)]
    alice.send(B, *messages)
    assert net.run_until(lambda: len(bob.received) == 20, limit=10)
    assert [message for _, message in bob.received] == messages
    assert {sent.dst for sent in net.sent if sent.data in alice.data_sent} == {B}


@pytest.mark.parametrize("passes_on", [True, False])
@pytest.mark.parametrize("alice_adds", [True, False])
def test_nobody_takes_a_session_over_by_showing_its_new_key_first(passes_on: bool, alice_adds: bool) -> None:
    """Bob's keys rotate; the attacker, who is nearer, shows the new one before Bob's rekey is there."""
    net = FakeNet(seed=1, delay=0.05)
    alice, bob = net.node(A, *([B] if alice_adds else []), lifetime=1e6), net.node(B, A, lifetime=20)
    assert net.run_until(lambda: both_ready(alice, bob))
    shower = Shower(net, passes_on=passes_on)
    net.hook = lambda sent: [
        (0.05 if {sent.src, sent.dst} == {A, B} else 0.005, sent.data),
    ]
    numbers = itertools.count()

    def talk() -> None:
        bob.send(A, b"%d" % next(numbers))
        alice.send(B, b"to Bob")

    net.every(0.25, talk, until=net.now + 60)
    net.run(62)
    assert {address for address, _ in alice.received} == {B}, "and not the attacker's"
    assert len(alice.received) == len(bob.received) == next(numbers)
    assert alice.kinds_of_events(B) == bob.kinds_of_events(A) == ["ready"]
    assert shower.address not in {sent.dst for sent in net.sent if sent.data in alice.data_sent}


def test_a_hello_alone_shows_no_identity() -> None:
    net = FakeNet(seed=1, delay=0.05)
    alice, bob = net.node(A), net.node(B)
    shower = Shower(net)
    net.run(2)
    entry = alice.peer(shower.address)
    assert (entry.identity, entry.proven_identity) == (bob.sign_public, b"")
    alice.add_peer(B)
    assert net.run_until(lambda: both_ready(alice, bob))
    assert alice.peer(B).proven_identity == bob.sign_public


@pytest.mark.parametrize("with_message", [True, False])
def test_a_message_is_delivered_before_somebody_else_can_have_its_senders_place(with_message: bool) -> None:
    """Whoever is called back asks us whose the address is."""
    net = FakeNet()
    alice, mallory = net.node(A), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, mallory))
    net.run(1)
    session = mallory.peer(A).session
    datagrams = list(session.seal_messages([b"from Mallory"], mallory.now)) if with_message else []
    session.say_goodbye(mallory.now)
    datagrams.append(mallory.node.outgoing.pop()[1])
    decided = alice.node.receive([*datagrams, b"of somebody else"], B, alice.now)
    assert B not in alice.node.table.by_name
    assert decided == 2, "all, but with a message before it what follows is looked at once that is delivered"
    assert alice.node.counters["bad_length"] == (not with_message)
    delivered = [message for _, messages in alice.node.deliveries for message in messages]
    assert delivered == ([b"from Mallory"] if with_message else [])


def test_a_kept_message_is_not_shown_as_somebody_elses() -> None:
    with pair() as (a, b):
        address = address_of(a)
        b._delivery.deliver_all([(address, [b"of a"]), (("192.0.2.1", 9), [b"of who is gone"])])
        with b._lock:
            b._node.table.set_identity(b._node.table.by_name[address], b"another's")
        collector = Collector[Any]()
        b.udp_recv_bytes.connect(collector)
        assert collector.wait_for(1) == [(b"of who is gone", ("192.0.2.1", 9))]
        eventually(lambda: b.get_stats()["counters"]["nobody_connected"] == 1, "the other is counted")
        assert len(collector.items) == 1
