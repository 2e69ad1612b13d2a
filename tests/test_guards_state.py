# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: the table and its timers."""

from __future__ import annotations

import msgpack
from base_net import THEIRS, connected
from base_peer import make_data_body, seal_body
from fakenet import FakeNet
from test_names import NAME, V6, A, B
from test_protocol import two_in_session

import vault_udp_socket_helper as crypto
from vault_udp_socket_helper import bytes_to_b64_str


def test_a_released_base_peer_is_not_sent_to_any_more() -> None:
    net = FakeNet(delay=0.01)
    us, _ = connected(net)
    us.node.release_pin(us.peer(THEIRS), "test", us.now)
    assert not us.is_ready(THEIRS)
    assert us.node.events[-1].kind == "lost"


def test_a_key_given_with_the_second_name_does_not_bind_the_first() -> None:
    net = FakeNet()
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)
    alice.add_peer(B, bob.sign_public)
    assert alice.peer(NAME) is alice.peer(B)
    bob.stop()
    net.run(0.1)
    assert alice.peer(B).supplied == bob.sign_public
    assert alice.peer(NAME).supplied is None


def test_a_key_given_with_one_ip_still_binds_the_other_when_they_part() -> None:
    net = FakeNet()
    bob, alice = net.node(B, alias=V6), net.node(A, alias=("fd00::1", 1001))
    alice.add_peer(B, bob.sign_public)
    alice.add_peer(V6)
    assert net.run_until(lambda: alice.is_ready(B) and alice.is_ready(V6), limit=5)
    assert alice.peer(B) is alice.peer(V6)
    bob.stop()
    net.run(0.1)
    assert alice.peer(B) is not alice.peer(V6)
    assert alice.peer(B).supplied == alice.peer(V6).supplied == bob.sign_public


def test_another_base_key_ends_no_session() -> None:
    net, alice, bob = two_in_session()
    enc = bytes_to_b64_str(crypto.new_enc_private())
    alice.encryption.set_private_keys(enc, bytes_to_b64_str(alice.encryption.sign_seed))
    assert alice.mode(B) == "session"
    alice.send(B, b"as before")
    net.run(0.1)
    assert bob.messages_from(A) == [b"as before"]


def test_another_identity_ends_sessions_and_forgets_strangers() -> None:
    _, alice, bob = two_in_session()
    alice.encryption.generate_keys()
    assert alice.mode(B) == "waiting for keys"
    bob.encryption.generate_keys()
    assert bob.mode(A) == "unknown"


def test_several_messages_in_one_body_are_refused_of_base_peers() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net)
    before = len(us.received)
    box = them.peer._box(us.address)
    assert box is not None
    body = msgpack.packb({"v": 2, "p": b"", "c": b"", "m": [b"one", b"two"], "g": bytes(100)})
    us.arrive(them.source, seal_body(box, body, them.clock))
    assert us.node.counters["mixed_body"] == 1
    assert len(us.received) == before


def test_what_a_base_peer_has_shown_sealed_is_the_least_that_is_accepted() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net, 1)
    box = them.peer._box(us.address)
    assert box is not None
    us.arrive(them.source, seal_body(box, make_data_body(2, "new"), them.clock))
    us.arrive(them.source, seal_body(box, make_data_body(1, "old"), them.clock))
    assert us.received[-1] == (THEIRS, b"new")
    assert us.node.counters["downgrade_refused"] == 1
