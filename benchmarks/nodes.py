# SPDX-License-Identifier: Apache-2.0
"""`Node` objects without sockets and threads, under a clock that moves when it is told to."""

from __future__ import annotations

import random
from typing import Sequence, Tuple

from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_node import Node
from vault_udp_peer import Peer

Address = Tuple[str, int]

BODY_SIZE = 1393
"""Bytes of a body at an MTU of 1500."""
EPOCH = 1_700_000_000.0
"""Unix time when the virtual clock stands at 0."""
SERVER: Address = ("10.255.0.1", 9)
START = 1000.0
STEP = 0.01
MAX_STEPS = 2000


class Clock:
    """Seconds."""

    def __init__(self) -> None:
        self.now = START


class End:
    """A node at an address."""

    def __init__(
        self, clock: Clock, address: Address, rate_limit: float | None = 1e9, lifetime: float = 60
    ) -> None:
        self.clock = clock
        self.address = address
        self.received = 0
        encryption = VaultAsymmetricEncryption(
            lifetime, monotonic=lambda: clock.now, wall=lambda: clock.now + EPOCH
        )
        self.node = Node(
            encryption,
            port=address[1],
            body_size=BODY_SIZE,
            rate_limit=rate_limit,
            now=clock.now,
            wall=clock.now + EPOCH,
            rng=random.Random(address[1]),
        )

    def peer(self, address: Address) -> Peer:
        """The entry of that name."""
        return self.node.table.by_name[address]

    def is_ready(self, address: Address) -> bool:
        """Whether data for that peer leaves at once."""
        peer = self.node.table.by_name.get(address)
        return peer is not None and self.node.is_ready(peer, self.clock.now)

    def seal(self, address: Address, messages: Sequence[bytes]) -> list[bytes]:
        """The datagrams that carry `messages` to that peer."""
        return self.node.seal_messages(self.peer(address), messages, self.clock.now)[1]

    def receive(self, datagrams: Sequence[bytes], source: Address) -> None:
        """Let datagrams arrive; what is delivered is counted and dropped."""
        self.node.receive(datagrams, source, self.clock.now)
        self.collect()

    def collect(self) -> None:
        """Take what was delivered and told."""
        self.received += sum(len(messages) for _, messages in self.node.deliveries)
        self.node.deliveries.clear()
        self.node.events.clear()

    def take_outgoing(self) -> list[tuple[Address, bytes]]:
        """What the node wants to send; timers are run first."""
        if self.node.deadline() <= self.clock.now:
            self.node.run_timers(self.clock.now)
        outgoing = self.node.outgoing[:]
        self.node.outgoing.clear()
        return outgoing


def exchange(one: End, other: End) -> None:
    """Carry what the two have for each other, until there is nothing more."""
    busy = True
    while busy:
        busy = False
        for sender, receiver in ((one, other), (other, one)):
            for address, datagram in sender.take_outgoing():
                if address == receiver.address:
                    receiver.receive((datagram,), sender.address)
                    busy = True


def connect(one: End, other: End) -> None:
    """Make the two peers with a session, on both sides."""
    one.node.add_peer(other.address, one.clock.now)
    other.node.add_peer(one.address, other.clock.now)
    for _ in range(MAX_STEPS):
        exchange(one, other)
        if one.is_ready(other.address) and other.is_ready(one.address):
            exchange(one, other)
            return
        one.clock.now += STEP
    raise TimeoutError("the two nodes found no session")


def address_of(index: int) -> Address:
    """A different address for each index."""
    return f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", 10_000 + index % 50_000
