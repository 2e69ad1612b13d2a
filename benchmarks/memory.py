# SPDX-License-Identifier: Apache-2.0
"""Memory: of a peer, and after ten million messages.

What a peer takes is what Python's allocator has handed out for it (tracemalloc), on one side, divided by many
peers; the other sides are thrown away before it is read.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from statistics import median
from typing import Callable

import psutil

from tests.base_peer import BasePeer
from vault_udp_socket import UDPSocketClass

from . import nodes
from .ends import HOST, NO_LIMIT, PATIENCE, Address
from .nodes import SERVER, Clock, End
from .report import Row

RATE = 1000
TICK = 0.01
PER_TICK = round(RATE * TICK)
"""Messages that come and go in each tick, each in a datagram of its own."""
SMALL = 20
BATCH = 2000
MAX_GROWTH_KIB = 512
"""The allocator's own coming and going; over ten million messages, a twentieth of a byte a message."""


def measure(quick: bool) -> list[Row]:
    """All rows of this module."""
    seconds = 6 if quick else 60
    busy_base = _per_peer(1, lambda server, count: _busy_base_peers(server, count, seconds))
    return [
        _row("idle session", _per_peer(200 if quick else 2000, _idle_sessions), 6, 3, {}),
        _row(
            "busy session",
            _per_peer(2 if quick else 5, lambda server, count: _busy_sessions(server, count, seconds)),
            16,
            6,
            {"virtual seconds": seconds},
        ),
        _row("busy base peer", busy_base, 2048, 1536, {"virtual seconds": seconds}),
        _growth_row(300_000 if quick else 10_000_000),
    ]


def _row(what: str, size: float, must: float, aims: float, details: dict[str, object]) -> Row:
    return Row(f"memory, {what}", size / 1024, "KiB", must, aims, details=details)


def _per_peer(count: int, make_peers: Callable[[End, int], None]) -> float:
    """Bytes a peer."""
    _grow(1, make_peers)  # fills what is filled once per process
    return _grow(count, make_peers) / count


def _grow(count: int, make_peers: Callable[[End, int], None]) -> int:
    server = End(Clock(), SERVER)
    gc.collect()
    tracemalloc.start()
    make_peers(server, count)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


def _idle_sessions(server: End, count: int) -> None:
    for index in range(count):
        nodes.connect(server, End(server.clock, nodes.address_of(index)))


def _busy_sessions(server: End, count: int, seconds: float) -> None:
    """1,000 messages a second in each direction."""
    clients = [End(server.clock, nodes.address_of(index)) for index in range(count)]
    for client in clients:
        nodes.connect(server, client)
    message = os.urandom(SMALL)
    for _ in range(round(seconds / TICK)):
        server.clock.now += TICK
        for client in clients:
            for _ in range(PER_TICK):
                server.receive(client.seal(SERVER, (message,)), client.address)
                client.receive(server.seal(client.address, (message,)), SERVER)
            nodes.exchange(server, client)
    expected = count * PER_TICK * round(seconds / TICK)
    if server.received != expected:
        raise RuntimeError(f"{server.received} of {expected} messages: {dict(server.node.counters)}")


def _busy_base_peers(server: End, count: int, seconds: float) -> None:
    """1,000 messages a second in each direction, with peers that have no sessions."""
    peers = [_Deployed(server, nodes.address_of(index)) for index in range(count)]
    for peer in peers:
        peer.connect()
    message = os.urandom(SMALL)
    for _ in range(round(seconds / TICK)):
        server.clock.now += TICK
        for peer in peers:
            for _ in range(PER_TICK):
                peer.send("x" * SMALL)
                server.seal(peer.address, (message,))
            peer.carry()
    expected = count * PER_TICK * round(seconds / TICK)
    if server.received != expected:
        raise RuntimeError(f"{server.received} of {expected} messages: {dict(server.node.counters)}")


class _Deployed:
    """A deployed v2 peer, which knows wall time only."""

    def __init__(self, server: End, address: Address) -> None:
        self.server, self.address = server, address
        self.peer = BasePeer(2, address[1], self._wall)

    @property
    def _wall(self) -> float:
        return self.server.clock.now + nodes.EPOCH

    def connect(self) -> None:
        self.server.node.add_peer(self.address, self.server.clock.now)
        self.peer.add_peer(SERVER, self._wall)
        for _ in range(nodes.MAX_STEPS):
            self.carry()
            if self.server.is_ready(self.address) and SERVER in self.peer.keys:
                return
            self.server.clock.now += nodes.STEP
        raise TimeoutError("the base peer and the node found no keys")

    def send(self, text: str) -> None:
        self.peer.send_data(text, SERVER, self._wall)

    def carry(self) -> None:
        """What the two have for each other; the messages of the server are not opened here."""
        self.peer.run_timers(self._wall)
        for _, datagram in self.peer.outgoing:
            self.server.receive((datagram,), self.address)
        self.peer.outgoing.clear()
        for address, datagram in self.server.take_outgoing():
            if address == self.address:
                self.peer.receive(datagram, SERVER, self._wall)


def _growth_row(messages: int) -> Row:
    """Two sockets in this process, 20-byte messages through the public API, keys rotated every 5 s."""
    received = 0

    def count(_: bytes, __: Address) -> None:
        nonlocal received
        received += 1

    message, process = os.urandom(SMALL), psutil.Process()
    samples = []
    with UDPSocketClass(0, NO_LIMIT, lifetime=5) as one, UDPSocketClass(0, NO_LIMIT, lifetime=5) as other:
        other.udp_recv_bytes.connect(count)
        address = (HOST, other.recv_port)
        one.add_peer(address)
        if not one.wait_ready(address, PATIENCE):
            raise TimeoutError("no session")
        for sent in range(BATCH, messages + 1, BATCH):
            for _ in range(BATCH):
                one.send_data(message, address)
            until = time.monotonic() + PATIENCE
            while received < sent:
                if time.monotonic() > until:
                    raise TimeoutError(f"{received} of {sent} came: {other.get_stats()['counters']}")
                time.sleep(0)
            if sent % (messages // 100 // BATCH * BATCH or BATCH) == 0:
                samples.append(process.memory_info().rss / 1024)
    fifth = len(samples) // 5
    growth = median(samples[-fifth:]) - median(samples[fifth : 2 * fifth])
    details = {"messages": messages, "RSS at the end KiB": samples[-1]}
    return Row(
        "memory growth, from the first million messages on", growth, "KiB", MAX_GROWTH_KIB, details=details
    )
