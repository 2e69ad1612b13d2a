# SPDX-License-Identifier: Apache-2.0
"""Alice, whom the fuzzer plays against: the vectors' node, in a session with Bob, in base mode with Carol.

Her keys, nonces and clocks are those of `tests/make_vectors.py`, so the vectors' datagrams mean something to
her, and everything that Bob, Carol or Mallory know can be computed: what is sealed here opens. Each input
starts with a new Alice, so the input alone repeats what it has found.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Callable

import make_vectors as vectors
from make_vectors import ALICE, BOB, BODY_SIZE, CAROL, MALLORY, NOW, WALL, Address, Identity

import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_peer as peers
from vault_udp_node import Node
from vault_udp_segments import Segments
from vault_udp_session import MAX_RETIRED_PAIRS

START = 10.0
"""Seconds on the vectors' clock at which an input begins."""
ADDED = ("192.0.2.5", 5)
"""An address that Alice has added and where nobody is."""
SOURCES = (BOB, CAROL, MALLORY, ADDED, ("192.0.2.2", 40000), ("192.0.2.3", 40000), ("2001:db8::1", 9), BOB)
PAUSES = (0.0, 0.0, 0.01, 0.5, 2.5, 12.0, 47.0, 130.0)
MAX_STEPS = 48


class World:
    """Alice and her clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.alice = vectors.End("alice", ALICE)
        self.node = self.alice.node
        for time, action in history():
            self.at(time, action)
        self.at(START, lambda node, now: node.add_peer(ADDED, now))
        self.counters: dict[bytes, int] = {}

    def at(self, time: float, action: Callable[[Node, float], object] = lambda node, now: None) -> None:
        """Let the time go by, timers included, and do something then."""
        while self.node.deadline() - NOW < time:
            self.now = max(self.now, self.node.deadline() - NOW)
            self.alice.at(self.now, lambda node, now: None)
        self.now = time
        self.alice.at(time, action)
        self.node.deliveries.clear()
        self.node.events.clear()

    def wait(self, pause: float) -> None:
        self.at(self.now + pause)

    def arrive(self, datagrams: list[bytes], source: Address) -> None:
        size = len(datagrams[0])
        is_run = len(datagrams) > 1 and size and all(len(datagram) == size for datagram in datagrams)
        # As the kernel hands them over.
        received = Segments(b"".join(datagrams), size) if is_run else datagrams
        self.at(self.now, lambda node, now: node.receive(received, source, now))
        self.check()

    def check(self) -> None:
        """What always holds for the tables, whatever was received."""
        node = self.node
        assert len(node.retired) <= MAX_RETIRED_PAIRS
        assert node.table.strangers <= peers.MAX_PENDING_STRANGERS + peers.MAX_CONFIRMED_STRANGERS
        assert set(node.base.links) <= set(node.table.by_name), "a link without a peer"
        for tag, pair in node.tags.items():
            assert pair.open_tag == tag
            assert pair in pair.owner.pairs
            assert tag not in node.retired
        for name, peer in node.table.by_name.items():
            assert name in peer.names
            assert all(pair.open_tag in node.tags for pair in peer.session.pairs)
            assert peer.session.send is None or peer.session.send in peer.session.pairs

    # ---------------------------------------------------------------------- what those know who hold keys

    def sealed(self, end: Identity, epoch: int, body: bytes, stamp: float = 0.0) -> bytes:
        """A datagram of `end`, under its session key `epoch` and Alice's current or previous key."""
        local = self.node.local
        mine = local.previous if epoch & 4 and local.previous is not None else local.current
        keys = session_keys(end.seed, end.sign, epoch & 3, local.sign_public, mine.public)
        tag = keys["seal_tag"]
        self.counters[tag] = counter = self.counters.get(tag, 500) + 1
        return vectors.seal(keys, counter, WALL + self.now + stamp, body)

    def hello(self, end: Identity, key_number: int, source: Address, **fields: Any) -> dict[str, Any]:
        """The members of a perfect hello, unless `fields` say otherwise."""
        key = Identity(end.seed, session_secret(end.seed, key_number & 3), end.base)
        echo = self.alice.nonce_for(source, self.now)
        time = int((WALL + self.now) * 1000)
        return vectors.hello_members(key, vectors.hello_blob(key, **{"echo": echo, "time": time, **fields}))

    def nonces(self) -> list[bytes]:
        """Of Alice's pings that may be answered; she tells them to whom she talks."""
        sessions = {id(pair.owner): pair.owner for pair in self.node.tags.values()}
        return [nonce for session in sessions.values() for nonce in session._pings]


def session_secret(seed: bytes, epoch: int) -> bytes:
    names = {vectors.identity(name).seed: name for name in ("bob", "carol", "mallory")}
    return vectors.secret(f"{names[seed]} session {epoch}")


@functools.lru_cache(maxsize=4096)
def session_keys(seed: bytes, sign: bytes, epoch: int, their_sign: bytes, theirs: bytes) -> dict[str, bytes]:
    return vectors.pair_keys(session_secret(seed, epoch), theirs, sign, their_sign)


@functools.lru_cache(maxsize=None)
def history() -> list[tuple[float, Callable[[Node, float], object]]]:
    """What happened to Alice up to the start: the vectors' exchange with Bob, and Carol's announcement."""
    _, sent, _ = vectors.exchange(START)
    mine = [(time, action) for time, name, action in vectors.SCRIPT if name == "alice" and time < START]
    theirs = [
        (datagram.time + vectors.DELAY, vectors.arrive(datagram.datagram, BOB))
        for datagram in sent
        if datagram.source == "bob" and datagram.time + vectors.DELAY < START
    ]
    carol, alice = vectors.identity("carol"), vectors.identity("alice")
    announced = vectors.clear(vectors.base_members(carol, CAROL[1]))
    first = vectors.seal_base(carol, alice.base_enc, WALL + 9.5, vectors.payload(b"hi"), b"first message 16")
    base_mode = [(9.0, vectors.arrive(announced, CAROL)), (9.5, vectors.arrive(first, CAROL))]
    return sorted([*mine, *theirs, *base_mode], key=lambda step: step[0])


class Steps:
    """The steps that an input's bytes stand for; whatever is missing at the end reads as zero."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")

    def some(self) -> bytes:
        """A length of two bytes, and at most that many bytes."""
        size = int.from_bytes(self.take(2), "big")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


def step(head: int, data: bytes) -> bytes:
    """One step of an input: the byte that says how, and bytes with their length."""
    return bytes([head]) + struct.pack(">H", len(data)) + data


def packed_control(members: dict[str, Any]) -> bytes:
    return packet.make_control_body(control_format.write_json(members), BODY_SIZE)
