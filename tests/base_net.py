# SPDX-License-Identifier: Apache-2.0
"""Base peers on the fake network, and what the tests of base mode share."""

from __future__ import annotations

import json
from typing import Any, Tuple

import msgpack
import nacl.public
import nacl.signing
import pytest
import pyzstd
from base_peer import BasePeer, announcement_members, make_announcement_body, to_b64
from fakenet import EPOCH, SEALED_SIZES, FakeNet, Host

Address = Tuple[str, int]

OURS = ("10.0.0.1", 11000)
THEIRS = ("10.0.0.2", 12000)
OTHER_SOURCE_PORT = 45678
ATTACKER = ("10.0.0.66", 6666)
FORGETTING = 90.0
"""Seconds after which a deployed peer has forgotten a key that was not announced again, at the latest."""
PIN = 45.0

VERSIONS = pytest.mark.parametrize("version", [2, 1])
PORT_HABITS = pytest.mark.parametrize("source_port", [THEIRS[1], OTHER_SOURCE_PORT])


class BaseHost:
    """A `BasePeer` on the fake network.

    Args:
        clock_offset: seconds by which its wall clock is ahead of the others'.
        source_port: where it sends from; it listens at `address`.
    """

    def __init__(
        self,
        net: FakeNet,
        version: int = 2,
        address: Address = THEIRS,
        *,
        source_port: int = OTHER_SOURCE_PORT,
        clock_offset: float = 0.0,
        **options: Any,
    ) -> None:
        self.net = net
        self.address = address
        self.source = (address[0], source_port)
        self.clock_offset = clock_offset
        self.alive = True
        self.peer = BasePeer(version, address[1], self.clock, **options)
        self._listener = net.outsider(address)
        self._listener.on_datagram = self._arrive
        self._sleep()

    @property
    def clock(self) -> float:
        return EPOCH + self.net.now + self.clock_offset

    def add_peer(self, address: Address) -> None:
        self.peer.add_peer(address, self.clock)
        self._carry_out()

    def send(self, text: str, address: Address = OURS) -> None:
        self.peer.send_data(text, address, self.clock)
        self._carry_out()

    def send_body(self, body: bytes, address: Address = OURS) -> None:
        self.peer.send_body(body, address, self.clock)
        self._carry_out()

    def kill(self) -> None:
        self.alive = False
        self.net.detach(self.address)

    def texts(self) -> list[str]:
        return [text for text, _ in self.peer.received]

    def _arrive(self, source: Address, datagram: bytes) -> None:
        self.peer.receive(datagram, source, self.clock)
        self._carry_out()

    def _carry_out(self) -> None:
        outgoing, self.peer.outgoing = self.peer.outgoing, []
        for address, datagram in outgoing:
            self.net.send(self.source, address, datagram)

    def _sleep(self) -> None:
        self.net.at(self.peer.deadline() - EPOCH - self.clock_offset, self._wake)

    def _wake(self) -> None:
        if self.alive:
            self.peer.run_timers(max(self.clock, self.peer.deadline()))
            self._carry_out()
            self._sleep()


class Nets:
    """Makes fake networks, and checks at the end what holds for every datagram that a node sent."""

    def __init__(self) -> None:
        self.made: list[FakeNet] = []

    def __call__(self, **options: Any) -> FakeNet:
        self.made.append(FakeNet(delay=0.01, **options))
        return self.made[-1]

    def check(self, our_addresses: tuple[Address, ...] = (OURS,)) -> None:
        for net in self.made:
            ours = [sent.data for sent in net.sent if sent.src in our_addresses]
            for clear in filter(None, map(read_clear, ours)):
                assert set(clear) & {"enc_key", "hello"}, "something but an announcement left in clear"
            assert all(len(data) in {512, *SEALED_SIZES} or read_clear(data) for data in ours)


def keys_tried_by(us: Host, monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """By the address of its owner, each key that a datagram is tried with from now on."""
    tried: list[Address] = []
    actual = us.encryption.open

    def count(datagram: bytes, addr: Address) -> bytes:
        tried.append(addr)
        return actual(datagram, addr)

    monkeypatch.setattr(us.encryption, "open", count)
    return tried


def read_clear(datagram: bytes) -> dict[str, Any] | None:
    """The members of an announcement in clear, v2 or v1; other clear bodies as they are; None if sealed."""
    try:
        body = msgpack.unpackb(datagram)
        if isinstance(body, list):
            body = {"c": pyzstd.decompress(body[0])}
        members: dict[str, Any] = json.loads(body["c"]) if body["c"] else {"payload": body["p"]}
    except (ValueError, TypeError, KeyError, msgpack.UnpackException, pyzstd.ZstdError):
        return None
    return members


def sent_by(net: FakeNet, source: Address) -> list[bytes]:
    return [datagram.data for datagram in net.sent if datagram.src == source]


def exchange(net: FakeNet, us: Host, them: BaseHost, tag: str = "") -> None:
    """One message each way, at once."""
    us.send(them.address, f"from us{tag}".encode())
    them.send(f"from them{tag}")
    net.run(0.1)
    assert them.texts()[-1:] == [f"from us{tag}"], them.peer.dropped
    assert us.received[-1:] == [(them.address, f"from them{tag}".encode())], dict(us.node.counters)
    assert us.mode(them.address) == f"base v{them.peer.version}"


def both_know(us: Host, them: BaseHost) -> bool:
    return us.is_ready(them.address) and us.address in them.peer.keys and us.address in them.peer.peers


def connected(net: FakeNet, version: int = 2, **options: Any) -> tuple[Host, BaseHost]:
    """A node and a base peer that hold each other's key and know each other's ports."""
    us, them = net.node(OURS, THEIRS), BaseHost(net, version, **options)
    them.add_peer(OURS)
    net.run(1)
    exchange(net, us, them)
    return us, them


def clear_announcement_of(them: BaseHost, version: int) -> bytes:
    members = announcement_members(them.peer.enc_private, them.peer.sign_private, them.peer.port)
    return make_announcement_body(version, members)


def with_application_keys(net: FakeNet, **options: Any) -> tuple[Host, BaseHost]:
    """Both hold each other's keys by ways of their applications'; nobody has announced anything."""
    us, them = net.node(OURS), BaseHost(net, **options)
    private = [
        to_b64(bytes(nacl.public.PrivateKey.generate())),
        to_b64(bytes(nacl.signing.SigningKey.generate())),
    ]
    us.encryption.set_private_keys(*private)
    us.encryption.set_private_keys(*private)
    them.peer.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, them.clock)
    us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, them.peer.sign_key)
    return us, them
