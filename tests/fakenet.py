# SPDX-License-Identifier: Apache-2.0
"""A network in memory with its own clock, which drops, duplicates, delays and corrupts under a fixed seed.

    net = FakeNet(seed=1, loss=0.3, delay=0.01, jitter=0.02)
    alice = net.node(("10.0.0.1", 1000), ("10.0.0.2", 1000))     # has added the second address
    bob = net.node(("10.0.0.2", 1000))
    alice.send(bob.address, b"hello")
    assert net.run_until(lambda: bob.received == [(alice.address, b"hello")])

A `Host` does with its `Node` what `UDPSocketClass` does, without threads. Nothing waits for real time, and
the same seed gives the same run: the keys and nonces, too, come from the network's own generator.
"""

from __future__ import annotations

import heapq
import itertools
import random
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence, Tuple

import vault_udp_path
import vault_udp_socket_helper as crypto
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_node import Node
from vault_udp_peer import Peer
from vault_udp_state import Event

Address = Tuple[str, int]

EPOCH = 1_700_000_000.0
"""Unix time at which the network's clock stands at 0."""
BODY_SIZE = 1393
"""Bytes of a body for an interface MTU of 1500."""
SEALED_SIZE = BODY_SIZE + 64
SEALED_SIZES = {vault_udp_path.body_size_within(size, "0.0.0.0") + 64 for size in vault_udp_path.PACKET_SIZES}
"""The lengths that are tried while it is in doubt whether that of all passes, which is one of them."""
DEFAULT_LIMIT = 120.0
NOT_REFUSALS = {"datagrams_received", "sent", "received", "goodbyes", "hello_without_echo"}


class Datagram(NamedTuple):
    """One datagram on its way; `time` is when it was sent, in seconds of the network's clock."""

    time: float
    src: Address
    dst: Address
    data: bytes


Copies = List[Tuple[float, bytes]]
"""What becomes of a datagram: for each copy that arrives, seconds of delay, and its bytes."""


class FakeNet:
    """The network and its clock.

    Args:
        seed: of everything random here, the nodes' keys and jitter included.
        loss, duplication, corruption: probability for each datagram.
        delay, jitter: seconds; a copy takes `delay` plus up to `jitter`, so jitter reorders.

    Attributes:
        hook: decides what becomes of a datagram; `route` (the rates above) unless replaced. A hook may call
            `route` itself.
        sent: every datagram that anybody sent, in order, whatever became of it.
        names: by host name, the IPs that it stands for; others cannot be resolved.
        lookups: every name that anybody has asked for, with the time: [(time, name)].
        lookup_delay: seconds that an answer takes.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        corruption: float = 0.0,
        delay: float = 0.001,
        jitter: float = 0.0,
    ) -> None:
        self.rng = random.Random(seed)
        self.loss, self.duplication, self.corruption = loss, duplication, corruption
        self.delay, self.jitter = delay, jitter
        self.now = 0.0
        self.hook: Callable[[Datagram], Copies] = self.route
        self.sent: list[Datagram] = []
        self.names: dict[str, list[str]] = {}
        self.lookups: list[tuple[float, Address]] = []
        self.lookup_delay = 0.02
        self._ends: dict[Address, Host | Outsider] = {}
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()

    # ----------------------------------------------------------------------------------------- the ends

    def node(self, address: Address, *peers: Address, **options: Any) -> Host:
        """A node that listens at `address` and has added `peers`; options as of `Host`."""
        host = Host(self, address, **options)
        for peer in peers:
            host.add_peer(peer)
        return host

    def outsider(self, address: Address) -> Outsider:
        """An end without a node: an attacker, or a peer played by the test."""
        return Outsider(self, address)

    def attach(self, address: Address, end: Host | Outsider) -> None:
        """Let datagrams to `address` arrive at `end`."""
        assert address not in self._ends, f"{address} is taken"
        self._ends[address] = end

    def detach(self, address: Address) -> None:
        """Nobody is at `address` any more."""
        del self._ends[address]

    # ------------------------------------------------------------------------------------ the datagrams

    def route(self, datagram: Datagram) -> Copies:
        """What the rates make of a datagram."""
        copies = []
        for _ in range(2 if self.rng.random() < self.duplication else 1):
            if self.rng.random() >= self.loss:
                data = datagram.data
                if self.rng.random() < self.corruption:
                    data = flip_bit(data, self.rng.randrange(8 * len(data)))
                copies.append((self.delay + self.jitter * self.rng.random(), data))
        return copies

    def send(self, src: Address, dst: Address, data: bytes) -> None:
        """Put a datagram on its way; the hook decides what becomes of it."""
        datagram = Datagram(self.now, src, dst, data)
        self.sent.append(datagram)
        for delay, copy in self.hook(datagram):
            self.at(self.now + delay, lambda copy=copy: self.inject(src, dst, copy))  # type: ignore[misc]

    def inject(self, src: Address, dst: Address, data: bytes) -> None:
        """Let a datagram arrive now, whoever really sent it; it is not recorded."""
        end = self._ends.get(dst)
        if end is not None:
            end.arrive(src, data)

    # ---------------------------------------------------------------------------------------- the clock

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Do something when the clock stands at `time`."""
        heapq.heappush(self._agenda, (max(time, self.now), next(self._sequence), action))

    def every(self, interval: float, action: Callable[[], object], until: float) -> None:
        """Do something now and then again and again, until the clock stands at `until`."""

        def tick() -> None:
            action()
            if self.now + interval <= until:
                self.at(self.now + interval, tick)

        self.at(self.now, tick)

    def run_until(self, target: float | Callable[[], bool], limit: float = DEFAULT_LIMIT) -> bool:
        """Let the clock run.

        Args:
            target: a time, or a condition; then the clock stops as soon as it holds.
            limit: seconds after which a condition is given up.

        Returns:
            Whether the condition came to hold; True for a time.
        """
        if callable(target):
            condition, end = target, self.now + limit
        else:
            condition, end = (lambda: False), target
        if condition():
            return True
        while self._agenda and self._agenda[0][0] <= end:
            self.now, _, action = heapq.heappop(self._agenda)
            action()
            if condition():
                return True
        self.now = max(self.now, end)
        return not callable(target)

    def run(self, seconds: float) -> None:
        """Let the clock run for some seconds."""
        self.run_until(self.now + seconds)

    @contextmanager
    def seeded_keys(self) -> Iterator[None]:
        """Inside, the library's random bytes come from this network's generator."""
        system = crypto.random_bytes
        # Before Python 3.9 there are no zero random bits.
        crypto.random_bytes = lambda size: self.rng.getrandbits(8 * size or 1).to_bytes(size or 1, "big")[
            :size
        ]
        try:
            yield
        finally:
            crypto.random_bytes = system


class Host:
    """A program with a `Node`: clocks, a port, and what arrived.

    Args:
        lifetime: seconds between rotations.
        encryption: the identity to use; one of its own if omitted.
        rate_limit: messages a second from one peer; no limit unless given.
        known: identities that a known-peers file would have; those met are in `events`.
        wall_offset: seconds by which the wall clock is wrong. `jump_wall` changes it while running.
        clock_rate: seconds that the monotonic clock counts in one true second. Its origin is random.
        alias: an address of the other family; what goes to such addresses is sent from there.
        legacy_peers, body_size, finds_sizes, persistent, keepalive: as of `Node`.

    Attributes:
        path_mtu: for each address, bytes of an IP packet above which our system refuses to send there.
        tells_path_mtu: whether the system tells them.
        lost_here: datagrams that it has refused for good.
        received: (address, message) of everything delivered, in order.
        events: everything the user is told, with the network's time: [(time, Event)].
        refused: every datagram that went nowhere: [(time, reason, source, datagram)].
        data_sent: the datagrams that carried messages of the user's.
        on_message: called with (address, message) for each message, as a callback of the user's would be.
        wake_ups: how often it has woken up for a timer.
    """

    def __init__(
        self,
        net: FakeNet,
        address: Address,
        *,
        lifetime: float = 60,
        encryption: VaultAsymmetricEncryption | None = None,
        rate_limit: float | None = None,
        wall_offset: float = 0.0,
        clock_rate: float = 1.0,
        alias: Address | None = None,
        legacy_peers: bool = True,
        body_size: int = BODY_SIZE,
        finds_sizes: bool = True,
        known: dict[Address, bytes] | None = None,
        persistent: bool = False,
        keepalive: float | None = None,
    ) -> None:
        self.net = net
        self.address = address
        self.received: list[tuple[Address, bytes]] = []
        self.events: list[tuple[float, Event]] = []
        self.refused: list[tuple[float, str, Address, bytes]] = []
        self.data_sent: list[bytes] = []
        self.on_message: Callable[[Address, bytes], None] = lambda address, message: None
        self.alias = alias
        self.path_mtu: dict[Address, int] = {}
        self.tells_path_mtu = True
        self.lost_here: list[bytes] = []
        self.wake_ups = 0
        self.wall_offset = wall_offset
        self.alive = False
        self._clock_rate = clock_rate
        self._clock_origin = net.rng.uniform(0, 1e6)
        self._options: dict[str, Any] = {
            "rate_limit": rate_limit,
            "legacy_peers": legacy_peers,
            "body_size": body_size,
            "finds_sizes": finds_sizes,
            "persistent": persistent,
            "keepalive": keepalive,
        }
        if known is not None:
            self._options.update(known_key=known.get, remember_peers=True)
        with net.seeded_keys():
            self.encryption = encryption or self._new_encryption(lifetime)
        self._start()

    def _new_encryption(self, lifetime: float, **keys: str) -> VaultAsymmetricEncryption:
        return VaultAsymmetricEncryption(lifetime, monotonic=lambda: self.now, wall=lambda: self.wall, **keys)

    def _start(self) -> None:
        with self.net.seeded_keys():
            self.node = Node(
                self.encryption,
                port=self.address[1],
                now=self.now,
                wall=self.wall,
                rng=random.Random(self.net.rng.random()),
                **self._options,
            )
        self.encryption.on_identity_changed = lambda: self.node.identity_changed(self.now)
        self.encryption.on_peer_keys_supplied = lambda peer: self.node.keys_supplied(peer, self.now)
        self.alive = True
        self._wakes_at = float("inf")
        self._attach()
        with self._acting():
            pass

    def _attach(self) -> None:
        self.net.attach(self.address, self)
        if self.alias is not None:
            self.net.attach(self.alias, self)

    def _detach(self) -> None:
        self.net.detach(self.address)
        if self.alias is not None:
            self.net.detach(self.alias)

    # ----------------------------------------------------------------------------------------- clocks

    @property
    def now(self) -> float:
        """This host's monotonic clock, seconds."""
        return self._clock_origin + self.net.now * self._clock_rate

    @property
    def wall(self) -> float:
        """This host's wall clock, Unix time."""
        return EPOCH + self.net.now + self.wall_offset

    def jump_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall_offset += seconds

    # ------------------------------------------------------------------------------- what the user does

    @property
    def sign_public(self) -> bytes:
        """The identity."""
        return self.node.local.sign_public

    def add_peer(self, address: Address, supplied: bytes | None = None) -> None:
        """As the user does."""
        with self._acting():
            self.node.add_peer(address, self.now, supplied)

    def remove_peer(self, address: Address) -> bool:
        """As the user does."""
        with self._acting():
            return self.node.remove_peer(address, self.now)

    def send(self, address: Address, *messages: bytes) -> None:
        """Send messages: at once if the peer is ready, else queued."""
        with self._acting():
            peer = self.node.contact(address, self.now)
            self._seal_or_queue(peer, messages)

    def set_lifetime(self, seconds: float) -> None:
        """As the user does."""
        with self._acting():
            self.encryption.lifetime = seconds
            self.node.lifetime_changed(self.now)

    def move(self, address: Address, *, knowingly: bool = True) -> None:
        """Be at another address: by `update_recv_port`, or not `knowingly`, by a NAT that has changed."""
        self.net.detach(self.address)
        self.address = address
        self.net.attach(address, self)
        if knowingly:
            with self._acting():
                self.node.port = address[1]
                self.node.moved(self.now)

    def stop(self) -> None:
        """End as `stop()` does: with a goodbye."""
        with self._acting():
            for peer in self.node.table.all():
                peer.session.say_goodbye(self.now)
                peer.session.close()
        self.kill()

    def kill(self) -> None:
        """Vanish without a word."""
        self.alive = False
        self._detach()

    def suspend(self, seconds: float) -> None:
        """Close the lid for a while: nothing arrives, and the monotonic clock stands still."""
        self._detach()
        self.alive = False
        self.net.run(seconds)
        self._clock_origin -= seconds * self._clock_rate
        self.alive = True
        self._wakes_at = float("inf")
        self._attach()
        with self._acting():
            pass

    def restart(self, *peers: Address, same_identity: bool = True) -> None:
        """Start the program again after `stop` or `kill`, as a new process that adds `peers`."""
        assert not self.alive
        keys = {}
        if same_identity:
            keys["sign_private_key"] = crypto.bytes_to_b64_str(self.encryption.sign_seed)
        self._clock_origin = self.net.rng.uniform(0, 1e6)
        with self.net.seeded_keys():
            self.encryption = self._new_encryption(self.encryption.lifetime, **keys)
        self._start()
        for peer in peers:
            self.add_peer(peer)

    # --------------------------------------------------------------------------- what tests want to know

    def peer(self, address: Address) -> Peer:
        """The entry of that name."""
        return self.node.table.by_name[address]

    def mode(self, address: Address) -> str:
        """How we talk to that peer; "unknown" if there is none."""
        peer = self.node.table.by_name.get(address)
        return "unknown" if peer is None else self.node.mode(peer)

    def is_ready(self, address: Address) -> bool:
        """Whether data for that peer leaves at once."""
        peer = self.node.table.by_name.get(address)
        return peer is not None and self.node.is_ready(peer, self.now)

    def messages_from(self, address: Address) -> list[bytes]:
        """What was delivered under that address."""
        return [message for source, message in self.received if source == address]

    def kinds_of_events(self, address: Address) -> list[str]:
        """What the user was told about that peer."""
        return [event.kind for _, event in self.events if event.address == address]

    # -------------------------------------------------------------------------------------- the machinery

    def arrive(self, src: Address, data: bytes) -> None:
        """A datagram has arrived."""
        before = dict(self.node.counters)
        with self._acting():
            self.node.receive([data], src, self.now)
            for reason, count in self.node.counters.items():
                if count > before.get(reason, 0) and reason not in NOT_REFUSALS:
                    self.refused.append((self.net.now, reason, src, data))

    @contextmanager
    def _acting(self) -> Iterator[None]:
        with self.net.seeded_keys():
            yield
            self._carry_out()

    def _seal_or_queue(self, peer: Peer, messages: Sequence[bytes]) -> None:
        if self.node.is_ready(peer, self.now):
            waiting = self.node.take_queue(peer)
            endpoint, datagrams = self.node.seal_messages(peer, [*waiting, *messages], self.now)
            self.data_sent.extend(datagrams)
            self._transmit(endpoint, datagrams)
        else:
            for message in messages:
                self.node.queue(peer, message, self.now)

    def _transmit(self, endpoint: Address, datagrams: Sequence[bytes]) -> None:
        other_family = self.alias is not None and (":" in self.alias[0]) == (":" in endpoint[0])
        source = self.alias if other_family and self.alias is not None else self.address
        for datagram in datagrams:
            mtu = self.path_mtu.get(endpoint)
            if mtu is None or packet_size(endpoint, datagram) <= mtu:
                self.net.send(source, endpoint, datagram)
            elif not self.node.refused(endpoint, datagram, mtu if self.tells_path_mtu else None, self.now):
                self.lost_here.append(datagram)

    def _carry_out(self) -> None:
        node = self.node
        deliveries, events = node.deliveries[:], node.events + [event for _, event in node.between]
        node.deliveries.clear()
        node.events.clear()
        node.between.clear()
        self._send_outgoing()
        for name in node.lookups:
            self.net.lookups.append((self.net.now, name))
            self.net.at(self.net.now + self.net.lookup_delay, partial(self._answer, node, name))
        node.lookups.clear()
        for peer in node.take_flushable():
            if node.is_ready(peer, self.now) and peer.has_messages:
                lane, peer.lane = peer.lane, []
                self._seal_or_queue(peer, lane)
        self._send_outgoing()
        self.events.extend((self.net.now, event) for event in events)
        self._sleep()
        for address, messages in deliveries:
            for message in messages:
                self.received.append((address, bytes(message)))
                self.on_message(address, bytes(message))

    def _send_outgoing(self) -> None:
        outgoing = self.node.outgoing
        while outgoing:  # what is refused for its size is there again
            endpoint, datagram = outgoing.pop(0)
            self._transmit(endpoint, [datagram])

    def _answer(self, node: Node, name: Address) -> None:
        if node is self.node and self.alive:
            addresses = [(ip, name[1]) for ip in self.net.names.get(name[0], [])]
            with self._acting():
                node.resolved(name, addresses, "" if addresses else "no such name", self.now)

    def _sleep(self) -> None:
        deadline = self.node.deadline()
        wakes_at = max(self.net.now, (deadline - self._clock_origin) / self._clock_rate)
        if wakes_at < self._wakes_at:
            self._wakes_at = wakes_at
            node = self.node
            self.net.at(wakes_at, lambda: self._wake(node, wakes_at))

    def _wake(self, node: Node, wakes_at: float) -> None:
        if node is not self.node or not self.alive or wakes_at != self._wakes_at:
            return
        self._wakes_at = float("inf")
        self.wake_ups += 1
        with self._acting():
            # Two clocks and floats: the deadline is now, even if our clock reads a trifle less.
            deadline = node.deadline()
            node.run_timers(max(self.now, deadline) if deadline - self.now < 1e-6 else self.now)


class Outsider:
    """An end that the test plays itself.

    Attributes:
        received: (source, datagram) of everything that arrived here.
        on_datagram: called with (source, datagram) for each of them.
    """

    def __init__(self, net: FakeNet, address: Address) -> None:
        self.net = net
        self.address = address
        self.received: list[tuple[Address, bytes]] = []
        self.on_datagram: Callable[[Address, bytes], None] = lambda source, datagram: None
        net.attach(address, self)

    def send(self, dst: Address, datagram: bytes) -> None:
        """Send bytes as they are."""
        self.net.send(self.address, dst, datagram)

    def arrive(self, src: Address, data: bytes) -> None:
        """A datagram has arrived."""
        self.received.append((src, data))
        self.on_datagram(src, data)


def packet_size(dst: Address, datagram: bytes) -> int:
    """Bytes of the IP packet around a datagram to `dst`."""
    return len(datagram) + 8 + (40 if ":" in dst[0] else 20)


def flip_bit(data: bytes, bit: int) -> bytes:
    """`data` with one bit the other way."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def both_ready(a: Host, b: Host) -> bool:
    """Whether each of the two can send to the other at once, in a session."""
    return a.mode(b.address) == b.mode(a.address) == "session"
