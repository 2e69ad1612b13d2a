# SPDX-License-Identifier: Apache-2.0
"""The protocol between nodes, on a network that loses, repeats, delays and forges. No sockets, no waiting."""

from __future__ import annotations

from fakenet import FakeNet

A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)


def test_first_messages_wait_for_the_keys_and_arrive_in_order_within_50_ms() -> None:
    net = FakeNet()
    bob = net.node(B)
    alice = net.node(A, B)
    messages = [b"%d" % number for number in range(50)]
    for message in messages:
        alice.send(B, message)
    assert net.run_until(lambda: bob.messages_from(A) == messages, limit=0.05)


def test_the_same_seed_gives_the_same_datagrams() -> None:
    def run(seed: int) -> list[bytes]:
        net = FakeNet(seed, loss=0.3, duplication=0.1, jitter=0.02)
        net.node(B, A)
        alice = net.node(A, B)
        alice.send(B, b"hello")
        net.run(20)
        return [datagram.data for datagram in net.sent]

    assert run(1) == run(1)
    assert run(1) != run(2)
