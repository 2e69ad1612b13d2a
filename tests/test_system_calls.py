# SPDX-License-Identifier: Apache-2.0
"""What speed rests on, counted instead of timed: system calls, datagrams and allocations a message."""

from __future__ import annotations

import functools
import gc
import os
import random
import socket
import sys
import threading
import tracemalloc
from typing import Any, Iterator

import pytest
from fakenet import FakeNet
from loopback import PATIENCE, address_of, eventually

import vault_udp_carrier
import vault_udp_platform
import vault_udp_socket
from vault_udp_datagram import DatagramSocket
from vault_udp_socket import UDPSocketClass

COUNT = 1000
BIG = 1200
SMALL = 20
NO_LIMIT = 10**9
PACKER_BUFFER = 256 * 1024
"""Bytes that `msgpack.packb` reserves for each call, whatever it packs."""
SENDER = "vault-udp-send"


class CountingSocket(socket.socket):
    """A socket of the system that notes every call which sends or receives.

    Attributes:
        sends: for each call, (name of the thread, number of datagrams).
        receives: number of calls.
        gate: while it is cleared, the send thread waits before it sends.
        segments: whether UDP segmentation is to be had.
    """

    segments = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sends: list[tuple[str, int]] = []
        self.receives = 0
        self.gate = threading.Event()
        self.gate.set()

    def _note(self, datagrams: int) -> None:
        name = threading.current_thread().name
        if name == SENDER:
            assert self.gate.wait(PATIENCE)
        self.sends.append((name, datagrams))

    def setsockopt(self, *args: Any) -> None:
        if not self.segments and args[1] == vault_udp_platform.UDP_SEGMENT:
            raise OSError(92, "not on this system")
        super().setsockopt(*args)

    def sendto(self, *args: Any) -> int:
        self._note(1)
        return super().sendto(*args)

    def sendmsg(self, buffers: Any, *args: Any) -> int:
        buffers, ((_, _, size),) = list(buffers), args[0]
        self._note(-(-sum(map(len, buffers)) // int.from_bytes(size, sys.byteorder)))
        return super().sendmsg(buffers, *args)

    def recvmsg_into(self, *args: Any) -> Any:
        self.receives += 1
        return super().recvmsg_into(*args)

    def recvfrom_into(self, *args: Any) -> Any:
        self.receives += 1
        return super().recvfrom_into(*args)


class UnsegmentedSocket(CountingSocket):
    segments = False


class Counted:
    """Two sockets in a session; what the first one does to the system is counted."""

    def __init__(self, sender: UDPSocketClass, receiver: UDPSocketClass) -> None:
        self.sender, self.receiver = sender, receiver
        self.address = address_of(receiver)
        self.received: list[bytes] = []
        receiver.udp_recv_bytes.connect(lambda message, _: self.received.append(message))
        sender.add_peer(self.address)
        assert sender.wait_ready(self.address, PATIENCE)
        # Confirming the session sends datagrams too: they are over when the peer is as ready as we are.
        receiver_view = address_of(sender)
        assert receiver.wait_ready(receiver_view, PATIENCE)
        self.system = self._socket_of(sender)
        self.receiving_system = self._socket_of(receiver)

    @staticmethod
    def _socket_of(sock: UDPSocketClass) -> CountingSocket:
        system = sock._datagrams._socket
        assert isinstance(system, CountingSocket)
        return system

    def send_burst(self, size: int) -> list[int]:
        """Send `COUNT` messages while the send thread is held up; how many datagrams each call then took.

        The first ones leave in this thread, until it counts as a burst.
        """
        messages = [os.urandom(size) for _ in range(COUNT)]
        self.system.sends.clear()
        self.receiving_system.receives = 0
        self.system.gate.clear()
        for message in messages:
            self.sender.send_data(message, self.address)
        self.system.gate.set()
        eventually(lambda: len(self.received) == COUNT, "every message of the burst has arrived")
        assert self.received == messages
        return [datagrams for _, datagrams in self.system.sends]


def counted(socket_type: type[CountingSocket], monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    factory = functools.partial(DatagramSocket, socket_factory=socket_type)
    monkeypatch.setattr(vault_udp_socket, "DatagramSocket", factory)
    with UDPSocketClass(0, NO_LIMIT) as sender, UDPSocketClass(0, NO_LIMIT) as receiver:
        yield Counted(sender, receiver)


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    for both in counted(CountingSocket, monkeypatch):
        if not both.sender._datagrams.gso:
            pytest.skip("this system has no UDP segmentation")
        yield both


@pytest.fixture
def unsegmented(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    yield from counted(UnsegmentedSocket, monkeypatch)


@pytest.fixture(params=["segmented", "unsegmented"])
def either(request: pytest.FixtureRequest) -> Counted:
    both: Counted = request.getfixturevalue(request.param)
    return both


@pytest.fixture
def always_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages count as a burst however slowly this machine sends them."""
    monkeypatch.setattr(vault_udp_carrier, "BURST_GAP", float("inf"))


@pytest.fixture
def never_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages count as single ones however fast this machine sends them."""
    monkeypatch.setattr(vault_udp_carrier, "BURST_GAP", 0.0)


@pytest.mark.usefixtures("always_burst")
def test_a_burst_leaves_in_few_calls_where_the_kernel_divides_it(segmented: Counted) -> None:
    calls = segmented.send_burst(BIG)
    assert sum(calls) >= COUNT
    # 45 datagrams of this size fit into a call; the rounds of the send thread need not be multiples of it.
    assert len(calls) < COUNT / 20


@pytest.mark.usefixtures("always_burst")
def test_a_burst_is_received_in_few_calls(segmented: Counted) -> None:
    calls = segmented.send_burst(BIG)
    if not segmented.receiver._datagrams.gro:
        pytest.skip("this system does not hand over several datagrams at once")
    # At most one that gets the batch and one that finds no more, for each batch that was sent.
    assert segmented.receiving_system.receives <= 2 * len(calls) + 10


@pytest.mark.usefixtures("always_burst")
def test_a_burst_needs_one_call_a_datagram_without_segmentation(unsegmented: Counted) -> None:
    calls = unsegmented.send_burst(BIG)
    assert set(calls) == {1}
    # A message a datagram; a few more are of the protocol.
    assert COUNT <= len(calls) < COUNT + 5


@pytest.mark.usefixtures("always_burst")
def test_small_messages_of_a_burst_share_datagrams(either: Counted) -> None:
    calls = either.send_burst(SMALL)
    # 59 of them fit; the last one of each round may be emptier, and the first ones left singly.
    assert sum(calls) < COUNT / 25


@pytest.mark.usefixtures("always_burst")
def test_a_burst_is_taken_over_by_the_send_thread(either: Counted) -> None:
    calls = either.send_burst(SMALL)
    own = [name for name, _ in either.system.sends if name != SENDER]
    assert len(own) <= vault_udp_carrier.BURST_LENGTH < len(calls) + vault_udp_carrier.BURST_LENGTH


@pytest.mark.usefixtures("never_burst")
@pytest.mark.parametrize("size", [SMALL, BIG])
def test_a_message_that_finds_nothing_waiting_is_one_call_in_its_own_thread(
    either: Counted, size: int
) -> None:
    here = threading.current_thread().name
    for count in range(1, 101):
        either.sender.send_data(os.urandom(size), either.address)
        eventually(lambda count=count: len(either.received) == count, "the message has arrived")  # type: ignore[misc]
    own = [datagrams for name, datagrams in either.system.sends if name == here]
    assert own == [1] * 100


@pytest.mark.usefixtures("never_burst")
def test_a_broadcast_is_one_call_a_peer(either: Counted) -> None:
    here = threading.current_thread().name
    with UDPSocketClass(0) as second, UDPSocketClass(0) as third:
        for peer in (second, third):
            either.sender.add_peer(address_of(peer))
            assert either.sender.wait_ready(address_of(peer), PATIENCE)
        eventually(lambda: not either.sender._laned, "nothing waits")
        either.system.sends.clear()
        either.sender.send_data(b"to all three")
        own = [datagrams for name, datagrams in either.system.sends if name == here]
    assert own == [1, 1, 1]


# ----------------------------------------------------------------------------------------------- allocations


class Flow:
    """Messages between two nodes, without sockets: sealed by one, opened by the other."""

    def __init__(self, seed: int) -> None:
        self.net = FakeNet(seed)
        self.alice = self.net.node(("10.0.0.1", 1000), ("10.0.0.2", 1000), rate_limit=NO_LIMIT)
        self.bob = self.net.node(("10.0.0.2", 1000), ("10.0.0.1", 1000), rate_limit=NO_LIMIT)
        assert self.net.run_until(lambda: self.alice.is_ready(self.bob.address))
        assert self.net.run_until(lambda: self.bob.is_ready(self.alice.address))
        self.net.run(1)

    def carry(self, messages: list[bytes], batch: int) -> None:
        """All messages, so many at a time; what arrives is dropped."""
        alice, bob, now = self.alice, self.bob, self.alice.now
        peer = alice.peer(bob.address)
        for start in range(0, len(messages), batch):
            _, datagrams = alice.node.seal_messages(peer, messages[start : start + batch], now)
            bob.node.receive(datagrams, alice.address, bob.now)
            assert sum(len(found) for _, found in bob.node.deliveries) == len(messages[start : start + batch])
            bob.node.deliveries.clear()


def warm_flow(messages: list[bytes], batch: int) -> Flow:
    flow = Flow(seed=1)
    flow.carry(messages, batch)
    return flow


@pytest.mark.skipif(not hasattr(sys, "getallocatedblocks"), reason="CPython only")
@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("size", [SMALL, BIG])
def test_messages_leave_nothing_behind(size: int, batch: int) -> None:
    messages = [random.Random(size).getrandbits(8 * size).to_bytes(size, "big")] * COUNT
    flow = warm_flow(messages, batch)
    gc.collect()
    before = sys.getallocatedblocks()
    flow.carry(messages, batch)
    gc.collect()
    # A block a message would be a thousand.
    assert sys.getallocatedblocks() - before < COUNT / 20


@pytest.mark.parametrize("size", [SMALL, BIG])
def test_a_batch_needs_no_more_memory_than_a_few_copies_of_itself(size: int) -> None:
    batch = 50
    messages = [bytes(size)] * batch
    flow = warm_flow(messages, batch)
    gc.collect()
    tracemalloc.start()
    try:
        flow.carry(messages, batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    datagrams, packer = (batch, 0) if size == BIG else (1, PACKER_BUFFER)
    # Bodies, sealed datagrams, opened messages, and what lists and numbers take.
    assert peak - packer < 4 * datagrams * 1457 + 400 * batch
