# SPDX-License-Identifier: Apache-2.0
"""Attacks that a review has found to work, each with what is left of it now."""

from __future__ import annotations

import heapq
import logging
import os
import struct
import time
from typing import Callable, Sequence

import msgpack
import pytest
from fakenet import EPOCH, FakeNet, Host, Outsider, both_ready
from hypothesis import given
from hypothesis import strategies as st
from loopback import PATIENCE, address_of, eventually

import vault_udp_control as control_format
import vault_udp_delivery
import vault_udp_packet as packet
import vault_udp_peer
import vault_udp_replay
import vault_udp_socket_helper as crypto
import vault_udp_state
from vault_udp_datagram import Batch
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_keys import NO_KEY, Hello, read_hello_untrusted
from vault_udp_layout import make_bodies
from vault_udp_packet import PacketError
from vault_udp_replay import NonceCaches
from vault_udp_segments import Segments
from vault_udp_socket import UDPSocketClass

A, B, EVIL = ("10.0.0.1", 1000), ("10.0.0.2", 1000), ("10.6.6.6", 666)


def base_announcement(encryption: VaultAsymmetricEncryption, port: int, size: int = 1024) -> bytes:
    return control_format.make_announcement_body({**encryption.base_members(port)}, size)


def encryption_on(net: FakeNet) -> VaultAsymmetricEncryption:
    return VaultAsymmetricEncryption(60, monotonic=lambda: net.now, wall=lambda: EPOCH + net.now)


# ---------------------------------------------------------------------------------------------- the port zero


def hello_of_somebody(_: FakeNet) -> bytes:
    elsewhere = FakeNet()
    elsewhere.node(EVIL, A)
    elsewhere.run(0.01)
    return elsewhere.sent[0].data


@pytest.mark.parametrize(
    "datagram_of",
    [
        hello_of_somebody,
        lambda net: os.urandom(512),
        lambda net: base_announcement(encryption_on(net), 7).replace(b'"port":7', b'"post":7'),
    ],
    ids=["hello", "junk", "base announcement without a port"],
)
def test_nothing_is_sent_to_the_port_zero(datagram_of: Callable[[FakeNet], bytes]) -> None:
    """Linux delivers what comes from port 0, and nothing can be sent there."""
    net = FakeNet()
    alice = net.node(A)
    datagram = datagram_of(net)
    before = len(net.sent)
    alice.node.receive([datagram] * 3, ("10.0.0.9", 0), net.now)
    assert alice.node.outgoing == []
    assert len(net.sent) == before
    assert alice.node.counters["no_source_port"] == 3


def test_a_session_does_not_follow_to_the_port_zero() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, bob))
    session = alice.peer(B).session
    (datagram,) = session.seal([packet.make_payload_body(packet.store_frame(b"copied"), 1393)], net.now)
    bob.node.receive([datagram], (A[0], 0), net.now)
    assert bob.node.outgoing == []
    assert bob.peer(A).session.endpoint == A


# -------------------------------------------------------------------------------------------- many containers


def nested(map_or_array: bytes, count: int) -> bytes:
    """32 members of arrays of empty maps or arrays, as far as the limits of each container go."""
    member = b"\xdc" + struct.pack(">H", count) + map_or_array * count
    return b"\xde" + struct.pack(">H", 32) + b"".join(b"\xa1%c%b" % (64 + key, member) for key in range(32))


@pytest.mark.parametrize("empty", [b"\x80", b"\x90"], ids=["maps", "arrays"])
def test_a_body_has_few_containers(empty: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    body = nested(empty, 250)
    assert msgpack.unpackb(body, strict_map_key=True)  # it is well-formed
    made: list[int] = []
    monkeypatch.setattr(packet._Containers, "_count", counting(packet._Containers._count, made))
    with pytest.raises(PacketError) as raised:
        packet.read_body(body)
    assert raised.value.reason == "bad_body"
    assert len(made) == packet.MAX_CONTAINERS + 1


def counting(
    original: Callable[[packet._Containers], None], calls: list[int]
) -> Callable[[packet._Containers], None]:
    def count(self: packet._Containers) -> None:
        calls.append(1)
        original(self)

    return count


def test_unknown_members_may_have_some_containers() -> None:
    body = msgpack.packb({"v": 2, "p": packet.store_frame(b"text"), "x": {"y": [[], {}]}, "g": b""})
    assert packet.messages_of(packet.read_body(body)) == (b"text",)


# ------------------------------------------------------------------------------------------------ a ping-pong


@pytest.mark.parametrize("version", [1, 2])
def test_two_nodes_do_not_answer_each_others_answers(version: int) -> None:
    """One forged base announcement, without the mark of an answer, which anybody can leave out."""
    net = FakeNet(delay=0.02)
    alice, bob = net.node(A), net.node(B)
    members = {**bob.encryption.base_members(B[1])}
    make = control_format.make_v1_announcement_body if version == 1 else control_format.make_announcement_body
    net.inject(B, A, make(members, 1024))
    net.run(60)
    between = [sent for sent in net.sent if {sent.src, sent.dst} == {A, B}]
    assert len(between) == 1, "Alice's answer, which Bob refuses"
    assert alice.node.base.links.keys() == {B}
    assert bob.node.base.links.keys() == set()
    assert bob.node.counters["downgrade_refused"] == 1


# ----------------------------------------------------------------------------------- a key of the past, again


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_recorded_hello_does_not_bring_back_the_key_of_an_ended_session(way: str) -> None:
    net = FakeNet(3, delay=0.01)
    alice = net.node(A, B, lifetime=3600, persistent=True)
    bob = net.node(B, A, lifetime=5)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    recorded = [sent.data for sent in net.sent if sent.src == A and packet.looks_clear(sent.data)]
    getattr(alice, way)()
    net.run(0.5)
    alice.restart(B)
    assert net.run_until(lambda: both_ready(alice, bob))
    for datagram in recorded:
        net.inject(A, B, datagram)
    sent: list[int] = []
    net.every(1.0, lambda: sent.append(1), until=net.now + 60)
    net.every(1.0, lambda: alice.send(B, b"to bob"), until=net.now + 60)
    net.every(1.0, lambda: bob.send(A, b"to alice"), until=net.now + 60)
    net.run(65)
    assert len(bob.received) == len(alice.received) == len(sent) >= 60
    assert bob.node.counters["stale_hello"] > 0


def test_the_same_process_may_come_back_after_a_goodbye() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, bob))
    for _ in range(3):
        alice.remove_peer(B)
        net.run(2)
        alice.add_peer(B)
        assert net.run_until(lambda: both_ready(alice, bob), limit=10)


# ----------------------------------------------------------------------------------------------------- memory


def strangers_session(sock: UDPSocketClass, to: UDPSocketClass) -> None:
    sock.add_peer(address_of(to))
    assert sock.wait_ready(address_of(to), PATIENCE)


def test_early_messages_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_delivery, "MAX_EARLY_BYTES", 3 << 20)
    zeros = bytes(1 << 20)
    with UDPSocketClass(0) as receiver, UDPSocketClass(0) as sender:
        strangers_session(sender, receiver)
        for number in range(8):
            sender.send_data(zeros[:-1] + b"%d" % number, address_of(receiver))
        eventually(lambda: receiver.get_stats()["counters"]["received"] == 8, "all have come")
        eventually(
            lambda: receiver.get_stats()["counters"].get("nobody_connected") == 5, "the oldest have gone"
        )
        got: list[bytes] = []
        receiver.udp_recv_bytes.connect(lambda message, _: got.append(message[-1:]))
        eventually(lambda: got == [b"5", b"6", b"7"], "the newest are kept")


@pytest.mark.parametrize("together", [True, False])
def test_what_unpacks_large_is_delivered_before_more_is_unpacked(together: bool) -> None:
    """Four datagrams in one round of the receive thread: the first fills the round."""
    frame = packet.compress_frame(bytes(1 << 20), 1300)
    with UDPSocketClass(0, None) as receiver, UDPSocketClass(0) as sender:
        held: list[int] = []
        receiver.udp_recv_bytes.connect(lambda message, _: held.append(len(message)))
        strangers_session(sender, receiver)
        peer = sender._node.table.by_name[address_of(receiver)]
        with sender._lock:
            _, datagrams = sender._node.seal_messages(peer, [frame] * 4, time.monotonic())
        source = ("127.0.0.1", sender.recv_port)
        batches: list[Batch] = [([datagram], source) for datagram in datagrams]
        if together:
            batches = [(Segments(b"".join(datagrams), len(datagrams[0])), source)]
        for count in range(1, 5):
            batches = list(receiver._take_in(batches))
            assert sum(len(received) for received, _ in batches) == 4 - count
            assert len(held) == count
        assert receiver.get_stats()["counters"]["received"] == 4


@pytest.mark.parametrize("shape", [(4,), (1, 3), (3, 1), (1, 1, 1, 1)])
def test_what_unpacks_in_several_batches_counts_together(shape: tuple[int, ...]) -> None:
    frame = packet.compress_frame(bytes(600_000), 1300)
    with UDPSocketClass(0, None) as receiver, UDPSocketClass(0) as sender:
        strangers_session(sender, receiver)
        peer = sender._node.table.by_name[address_of(receiver)]
        with sender._lock:
            _, sealed = sender._node.seal_messages(peer, [frame] * 4, time.monotonic())
        datagrams, source = iter(sealed), ("127.0.0.1", sender.recv_port)
        parts = [[next(datagrams) for _ in range(count)] for count in shape]
        left = receiver._take_in([(Segments(b"".join(part), len(part[0])), source) for part in parts])
        assert sum(len(received) for received, _ in left) == 2


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (4, 1)])
def test_messages_in_several_batches_keep_their_order_and_are_counted_once(shape: tuple[int, ...]) -> None:
    frames = [packet.compress_frame(b"%d" % number * 400_000, 1300) for number in range(5)]
    with UDPSocketClass(0, None) as receiver, UDPSocketClass(0) as sender:
        got: list[bytes] = []
        receiver.udp_recv_bytes.connect(lambda message, _: got.append(message[:1]))
        strangers_session(sender, receiver)
        peer = sender._node.table.by_name[address_of(receiver)]
        with sender._lock:
            _, sealed = sender._node.seal_messages(peer, frames, time.monotonic())
        datagrams, source = iter(sealed), ("127.0.0.1", sender.recv_port)
        batches: Sequence[Batch] = [([next(datagrams) for _ in range(count)], source) for count in shape]
        rounds = []
        while batches:
            batches = receiver._take_in(batches)
            rounds.append(len(got))
        assert got == [b"0", b"1", b"2", b"3", b"4"]
        assert rounds == [3, 5], "a round ends when it has unpacked a megabyte"


def test_nonces_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_replay, "MAX_NONCES", 100)
    caches = NonceCaches()
    for number in range(5):
        assert caches.accept(b"modest", b"nonce %d" % number, 1000.0 + number, 1000, 0.0)
    for number in range(1000):
        assert caches.accept(b"greedy", b"nonce %d" % number, 1000.0 + number, 1000, 0.0)
        assert sum(caches.sizes()) <= 100
    for number in range(5):
        assert not caches.accept(b"modest", b"nonce %d" % number, 1000.0 + number, 1000, 0.0)
    for number in range(1000):
        assert not caches.accept(b"greedy", b"nonce %d" % number, 1000.0 + number, 1000, 0.0), "never again"
    assert caches.sizes()[0] == 5, "the fullest pay"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=200))
def test_bounded_caches_accept_nothing_twice(arrivals: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_udp_replay, "MAX_NONCES", 20)
        caches, accepted = NonceCaches(), set()
        for peer, number in arrivals:
            if caches.accept(b"%d" % peer, b"%d" % number, float(number), 10, -1.0):
                assert (peer, number) not in accepted
                accepted.add((peer, number))
            assert sum(caches.sizes()) <= 20


# ----------------------------------------------------------------------------------- a source port taken over


class BasePeerOnSource:
    """Sealed datagrams of a base peer, from whatever source they are said to come."""

    def __init__(self, net: FakeNet, ours: Host, home: tuple[str, int]) -> None:
        self.net, self.home, self.keys = net, home, encryption_on(net)
        our_key = crypto.enc_public_of(bytes(ours.encryption._enc_private))
        self._shared = crypto.shared_key(bytes(self.keys._enc_private), our_key)

    def announce(self) -> None:
        self.net.inject(self.home, A, base_announcement(self.keys, self.home[1], 700))

    def send(self, source: tuple[str, int], text: bytes) -> None:
        inside = os.urandom(16) + struct.pack(">d", EPOCH + self.net.now - 1)
        body = packet.make_payload_body(packet.store_frame(text), 300)
        self.net.inject(source, A, crypto.seal(self._shared, os.urandom(24), inside + body))


def test_a_base_peer_keeps_the_source_that_it_has_shown() -> None:
    net = FakeNet()
    home, source = ("10.0.0.2", 11000), ("10.0.0.2", 40000)
    alice = net.node(A, home)
    bob, mallory = BasePeerOnSource(net, alice, home), BasePeerOnSource(net, alice, ("10.0.0.2", 777))
    bob.announce()
    net.run(0.01)
    bob.send(source, b"first")
    net.run(1)
    mallory.announce()
    until, sent = net.now + 5, []

    def speak() -> None:
        sent.append(b"bob's")
        bob.send(source, b"bob's")

    net.every(0.1, speak, until=until)
    net.every(0.09, lambda: mallory.send(source, b"forged source"), until=until)
    net.every(0.004, lambda: net.inject(("10.0.0.2", 50000), A, b"\x01" + os.urandom(67)), until=until)
    net.run(6)
    assert alice.messages_from(home)[1:] == sent != []


def test_a_source_port_that_another_program_uses_now_costs_no_trials() -> None:
    net = FakeNet()
    alice = net.node(A)
    source = ("10.0.0.2", 40000)
    first = BasePeerOnSource(net, alice, ("10.0.0.2", 11000))
    second = BasePeerOnSource(net, alice, ("10.0.0.2", 12000))
    for peer in (first, second):
        peer.announce()
        net.run(0.01)
        peer.send(source, b"first")
        net.run(0.01)
    for _ in range(500):
        second.send(source, b"text")
        net.run(0.004)
    assert len(alice.messages_from(second.home)) == 501
    assert alice.node.counters["trial_budget"] == 0


def test_who_claims_a_source_before_its_owner_does_not_shut_him_out() -> None:
    net = FakeNet()
    home, source = ("10.0.0.2", 11000), ("10.0.0.2", 40000)
    alice = net.node(A, home)
    bob, mallory = BasePeerOnSource(net, alice, home), BasePeerOnSource(net, alice, ("10.0.0.2", 777))
    for peer in (mallory, bob):
        peer.announce()
        net.run(0.01)
        peer.send(source, b"text")
        net.run(0.01)
    for number in range(400):
        net.inject(("10.0.0.2", 50000), A, b"\x01" + os.urandom(67))
        if number % 10 == 0:
            bob.send(source, b"text")
        net.run(0.004)
    assert alice.messages_from(home) == [b"text"] * 41


@pytest.mark.parametrize("size", [366, 370, 400, 700])
def test_a_short_announcement_is_answered_if_there_is_room_to_say_so(size: int) -> None:
    net = FakeNet(delay=0.01)
    net.node(A)
    outsider, keys = net.outsider(B), encryption_on(net)
    for count in (1, 2):
        outsider.send(A, base_announcement(keys, B[1], size))
        net.run(1)
        assert [len(data) for _, data in outsider.received] == [size] * (count if size >= 400 else 0)


def test_a_hello_replayed_while_a_newer_one_is_confirmed_does_no_harm() -> None:
    """The peer has ended and begun anew; before the first datagram of its new session comes its old hello."""
    net = FakeNet(3, delay=0.05)
    alice, bob = net.node(A, B, lifetime=30), net.node(B, A, lifetime=30)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    recorded = [sent.data for sent in net.sent if sent.src == B and packet.looks_clear(sent.data)]
    bob.stop()
    net.run(0.5)
    bob.restart(A)
    session = alice.peer(B).session
    assert net.run_until(lambda: bool(session.enc) and session.enc == bob.node.local.current.public)
    assert session.send is None
    net.inject(B, A, recorded[-1])
    assert session.enc != bob.node.local.current.public, "it is taken for the newer one"
    net.every(1.0, lambda: alice.send(B, b"text"), until=net.now + 120)
    net.every(1.0, lambda: bob.send(A, b"text"), until=net.now + 120)
    net.run(125)
    assert alice.kinds_of_events(B)[-1] == "ready"
    assert alice.kinds_of_events(B).count("lost") == 1, "the goodbye"
    assert alice.node.counters["unknown_tag"] + bob.node.counters["unknown_tag"] < 5
    assert session.enc == bob.node.local.current.public


# -------------------------------------------------------------------------------------------- a flood of logs


def hello(net: FakeNet, number: int, echo: bytes, to_sign: bytes = NO_KEY) -> bytes:
    """A short announcement of an identity that has that number."""
    seed, enc = number.to_bytes(32, "big"), crypto.enc_public_of(crypto.new_enc_private())
    sign = crypto.sign_public_of(seed)
    blob = Hello(2, 0, EPOCH + net.now, sign, enc, to_sign, NO_KEY, bytes(16), echo).pack()
    proof = crypto.sign_detached(seed, blob)
    members = {"hello": crypto.bytes_to_b64_str(blob), "proof": crypto.bytes_to_b64_str(proof)}
    return control_format.make_announcement_body(members, control_format.SHORT_ANNOUNCEMENT_SIZE)


def echo_for(net: FakeNet, evil: Outsider) -> bytes:
    """What Alice wants to see again from that address."""
    evil.send(A, hello(net, 1, bytes(16)))
    net.run(0.1)
    answer = control_format.read_announcement(
        control_format.read_json(packet.read_body(evil.received[-1][1]).control)
    )
    assert answer.hello is not None
    return read_hello_untrusted(answer.hello).nonce


def test_new_identities_at_one_address_make_no_lines_and_no_events(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet()
    alice, evil = net.node(A), net.outsider(EVIL)
    echo = echo_for(net, evil)
    with caplog.at_level(logging.INFO):
        for number in range(2, 200):
            net.inject(EVIL, A, hello(net, number, echo, alice.sign_public))
            net.run(0.01)
    assert len(caplog.records) <= 3
    assert alice.events == []
    assert alice.node.table.strangers == 1


def test_a_goodbye_does_not_renew_an_allowance() -> None:
    net = FakeNet(delay=0.001)
    server = net.node(A, rate_limit=10)
    client = net.node(B, A)
    for _ in range(5):
        assert net.run_until(lambda: client.is_ready(A))
        client.send(A, *[b"text"] * 10)
        net.run(0.01)
        client.stop()
        net.run(0.01)
        client.restart(A)
    assert len(server.messages_from(B)) < 20


@pytest.mark.parametrize("together", [True, False])
def test_a_goodbye_right_behind_messages_does_not_renew_an_allowance(together: bool) -> None:
    net = FakeNet(delay=0.001)
    server, client = net.node(A, rate_limit=10), net.node(B, A)
    for _ in range(5):
        assert net.run_until(lambda: client.is_ready(A))
        session = client.peer(A).session
        bodies = [
            *make_bodies([b"text"] * 10, session.body_size, False),
            packet.make_control_body(control_format.write_json({"type": "bye"}), session.body_size),
        ]
        datagrams = session.seal(bodies, client.now)
        whole = Segments(b"".join(datagrams), len(datagrams[0]))
        with server._acting():
            for batch in [whole] if together else [[datagram] for datagram in datagrams]:
                server.node.receive(batch, B, server.now)
        client.kill()
        client.restart(A)
    assert server.node.counters["goodbyes"] == 5
    assert len(server.messages_from(B)) < 20


def test_a_peer_that_keeps_us_changing_timers_fills_no_memory() -> None:
    """Data makes an acknowledgement due soon, a ping's answer is one: what is next is far away again."""
    net = FakeNet()
    server, client = net.node(A), net.node(B, A)
    assert net.run_until(lambda: both_ready(client, server))
    net.run(1)
    server.node.local.keepalive = 3600.0
    session, now = client.peer(A).session, server.now
    for number in range(1000):
        session.ping(client.now)
        ((_, ping),) = client.node.outgoing
        client.node.outgoing.clear()
        for datagram in (session.seal([make_bodies([b"x"], 1000, False)[0]], client.now)[0], ping):
            server.node.receive([datagram], B, now + number * 1e-3)
        server.node.outgoing.clear()
    assert server.node.counters["received"] == 1000
    assert len(server.node.timers) <= 2 * 1 + vault_udp_state.MAX_STALE_TIMERS


def test_what_nobody_needs_leaves_the_queue_of_timers_and_the_rest_stays_in_order() -> None:
    net = FakeNet()
    node = net.node(A).node
    peers = [node.new_peer((f"10.2.0.{number}", 9)) for number in range(40)]
    for number in range(1000):
        node.look_at(peers[number * 7 % 40], 5000.0 - number)
    for peer in peers[:20]:
        node.table.forget(peer)
    node._drop_stale_timers()
    assert sorted(due for due, _, _ in node.timers) == sorted(peer.scheduled for peer in peers[20:])
    assert [heapq.heappop(node.timers)[0] for _ in range(20)] == sorted(peer.scheduled for peer in peers[20:])


def test_base_peers_that_come_and_go_do_not_make_us_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_replay, "MAX_NONCE_CACHES", 3)
    net = FakeNet()
    alice = net.node(A, lifetime=60)
    for number in range(10):
        stranger = BasePeerOnSource(net, alice, ("10.1.0.1", 2000 + number))
        stranger.announce()
        net.run(0.1)
        stranger.send(stranger.home, b"text")
        net.run(0.1)
    assert alice.node.counters["too_many_base_peers"] == 7
    net.run(50)
    assert alice.node.local.current.epoch == 0


def test_a_stranger_who_only_acknowledges_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer strangers push out who was heard least recently: not whom we talk to all the time."""
    monkeypatch.setattr(vault_udp_peer, "MAX_CONFIRMED_STRANGERS", 3)
    net = FakeNet(delay=0.01)
    server = net.node(A)
    client = net.node(B, A)
    assert net.run_until(lambda: both_ready(server, client))
    for number in range(6):
        newcomer = net.node(("10.2.0.1", 3000 + number), A)
        assert net.run_until(lambda newcomer=newcomer: newcomer.is_ready(A))  # type: ignore[misc]
        newcomer.kill()
        for _ in range(4):
            server.send(B, b"text")
            net.run(1)
    assert server.kinds_of_events(B) == ["ready"]
    assert len(client.messages_from(A)) == 24
    assert server.messages_from(B) == []


def test_addresses_are_validated_within_a_budget_and_the_last_one_again() -> None:
    """A ping may be lost; and who copies from many addresses gets few."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    session, sent = alice.peer(B).session, alice.node.outgoing

    def asks(port: int, after: float) -> bool:
        before = len(sent)
        session.validate(("10.0.0.9", port), 1457, alice.now + after)
        return len(sent) > before

    assert [asks(port, 0.0) for port in range(1, 12)] == [True] * 8 + [False] * 3
    assert not asks(8, 0.4)
    assert asks(8, 0.6)
    assert [asks(port, 0.7) for port in (9, 10)] == [False, False]
    assert [asks(port, 1.2) for port in (9, 10)] == [True, False]
    sent.clear()


def test_what_the_system_refuses_is_not_looked_for_among_all_peers() -> None:
    """Answers to forged strangers are nobody's; there may be many of them, and many peers."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, bob))
    scans: list[int] = []
    peers = alice.node.table.all()
    alice.node.table.all = lambda: scans.append(1) or peers  # type: ignore[method-assign, func-returns-value]
    alice.node.note_refused(("10.9.9.9", 9), "socket_EPERM", 1)
    alice.node.note_refused(B, "socket_EPERM", 2)
    assert scans == []
    assert alice.peer(B).counters == {"socket_EPERM": 2}


def test_of_many_refused_identities_a_few_are_told_between_two_rotations() -> None:
    net = FakeNet()
    alice, evil = net.node(A, lifetime=60), net.outsider(EVIL)
    alice.add_peer(EVIL, bytes(31) + b"\1")
    for expected in (8, 16):
        echo = echo_for(net, evil)
        for number in range(2, 50):
            net.inject(EVIL, A, hello(net, number, echo, alice.sign_public))
            net.run(0.05)
        assert alice.kinds_of_events(EVIL) == ["rejected"] * expected
        net.run(64)
