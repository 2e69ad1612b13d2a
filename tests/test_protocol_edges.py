# SPDX-License-Identifier: Apache-2.0
"""Peers that follow the handshake and then do as they please, and datagrams that are late or of the past."""

from __future__ import annotations

import itertools
import random
import struct
from typing import Any

import msgpack
import pytest
from fakenet import EPOCH, Copies, Datagram, FakeNet, Host, Outsider, both_ready
from test_protocol import A, B, X, two_in_session

import vault_udp_announce
import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_session
import vault_udp_socket_helper as crypto
from vault_udp_announce import ANNOUNCEMENT_CYCLE
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_keys import NO_KEY, Hello, LocalKeys, Pair, SessionKey
from vault_udp_node import Node

C, D = ("10.0.0.3", 1003), ("10.0.0.4", 1004)
A6, B6 = ("fd00::1", 1001), ("fd00::2", 1002)
GOT = {"type": "confirm", "got": True}


class Rogue:
    """A peer with an identity who makes its datagrams by hand, from as many addresses as it likes."""

    def __init__(self, net: FakeNet, host: Host) -> None:
        self.net, self.host = net, host
        self.local = LocalKeys(net.rng.getrandbits(256).to_bytes(32, "big"), 0.0, EPOCH)
        self.theirs = b""
        self._ends: dict[Any, Outsider] = {}

    def shake_hands(self, address: Any, key: SessionKey | None = None) -> Pair:
        """Send hellos from `address` until they count; our end of the pair."""
        key = key or self.local.current
        end = self.end(address)
        blob = self.hello(key)
        self._send_hello(end, blob)
        text = next(data for _, data in end.received if len(data) == control_format.SHORT_ANNOUNCEMENT_SIZE)
        answer = control_format.read_announcement(control_format.read_json(packet.read_body(text).control))
        assert answer.hello
        fields = Hello._make(struct.unpack(">24sHIQ32s32s32s32s16s16s", answer.hello)[1:])
        self.theirs = fields.sign
        end.received.clear()
        self._send_hello(end, blob._replace(echo=fields.nonce, to_sign=fields.sign))
        return Pair(self.local, fields.sign, key, fields.enc)

    def end(self, address: Any) -> Outsider:
        if address not in self._ends:
            self._ends[address] = self.net.outsider(address)
        self._ends[address].received.clear()
        return self._ends[address]

    def hello(self, key: SessionKey, **fields: Any) -> Hello:
        none = bytes(16)
        made = Hello(2, key.epoch, EPOCH, self.local.sign_public, key.public, NO_KEY, NO_KEY, none, none)
        return made._replace(**fields)

    def _send_hello(self, end: Outsider, hello: Hello) -> None:
        end.send(self.host.address, control_format.make_announcement_body(self.signed(hello), 512))
        self.net.run(0.01)

    def signed(self, hello: Hello) -> dict[str, str]:
        blob = hello.pack()
        proof = crypto.sign_detached(self.local.sign_seed, blob)
        return {"hello": crypto.bytes_to_b64_str(blob), "proof": crypto.bytes_to_b64_str(proof)}

    def come_up(self, address: Any, key: SessionKey | None = None) -> Pair:
        """Shake hands and show that we hold the keys; our end of the pair."""
        pair = self.shake_hands(address, key)
        self.host.arrive(address, self.sealed(pair, GOT))
        assert self.host.mode(address) == "session"
        return pair

    def pings(self, address: Any, pair: Pair) -> list[str]:
        """The nonces of the pings under the pair that have arrived there; each can be read once."""
        ours = [data for _, data in self._ends[address].received if data.startswith(pair.open_tag)]
        members = [control_format.read_json(packet.read_body(pair.open(data)[1]).control) for data in ours]
        return [member["nonce"] for member in members if not member["got"]]

    def pong(self, address: Any, pair: Pair) -> None:
        """Answer the last ping under the pair."""
        self._answer(address, pair, self.pings(address, pair)[-1])

    def _answer(self, address: Any, pair: Pair, nonce: str) -> None:
        answer = {**GOT, "echo": nonce, "time": round((EPOCH + self.net.now) * 1000)}
        self.host.arrive(address, self.sealed(pair, answer))

    def move(self, address: Any, pair: Pair) -> None:
        """Send from another address, and answer the one ping that comes there."""
        self.end(address)
        self.host.arrive(address, self.sealed(pair, GOT))
        self.net.run(0.1)
        (nonce,) = self.pings(address, pair)
        self._answer(address, pair, nonce)

    def rekey(self, address: Any, pair: Pair, key: SessionKey) -> Pair:
        """Announce another session key under the pair; our end of the pair that it makes."""
        hello = self.hello(key, to_sign=self.theirs)
        self.host.arrive(address, self.sealed(pair, {"type": "rekey", **self.signed(hello)}))
        return Pair(self.local, self.theirs, key, self.host.node.local.current.public)

    def sealed(self, pair: Pair, members: dict[str, Any], size: int = 1393) -> bytes:
        body = packet.make_control_body(control_format.write_json(members), size)
        return pair.seal([body], EPOCH + self.net.now)[0]


def rogue_and_host() -> tuple[FakeNet, Host, Rogue]:
    net = FakeNet(seed=1)
    host = net.node(A)
    return net, host, Rogue(net, host)


# ------------------------------------------------------------------------------------------ what is malformed


@pytest.mark.parametrize("version", [1, 2])
def test_text_that_is_no_unicode_is_refused(version: int) -> None:
    net = FakeNet()
    bob, outsider = net.node(B), net.outsider(X)
    text = b'{"data":"\\ud800"}'
    body = packet.make_v1_body(packet.store_frame(text), 512)
    outsider.send(B, body if version == 1 else packet.make_control_body(text, 512))
    net.run(1)
    assert [source for _, _, source, _ in bob.refused] == [X]


@pytest.mark.parametrize("size", [41, 60, 67])
def test_a_sealed_datagram_without_room_for_its_timestamp_is_refused(size: int) -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(B)
    tail = crypto.random_bytes(8) + bytes(8)
    datagram = crypto.seal(pair._seal_key, pair._seal_tag + tail, (tail + bytes(99))[: size - 40])
    host.arrive(B, datagram)
    assert host.node.counters["bad_length"] == 1


@pytest.mark.parametrize("time", [10**400, 1 << 64, -1])
def test_a_peer_s_impossible_time_is_refused(time: int) -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(B)
    net.run(0.5)
    end = rogue._ends[B]
    datagram = next(data for _, data in end.received if data.startswith(pair.open_tag))
    ping = control_format.read_json(packet.read_body(pair.open(datagram)[1]).control)
    host.arrive(B, rogue.sealed(pair, {**GOT, "echo": ping["nonce"], "time": time}))
    assert host.node.counters["bad_control"] == 1
    net.run(1)


def test_a_clear_v1_frame_is_read_no_further_than_announcements_go(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    read = packet.read_frame

    def recorded(frame: bytes, *limit: int) -> bytes:
        limits.extend(limit or (packet.MAX_MESSAGE_SIZE,))
        return read(frame, *limit)

    monkeypatch.setattr(packet, "read_frame", recorded)
    host = FakeNet().node(A)
    host.arrive(X, msgpack.packb([packet.compress_frame(b"{" * 100_000, 1000), bytes(100)]))
    assert limits == [control_format.MAX_CONTROL_SIZE]
    assert host.node.counters["message_over_limit"] == 1


# ------------------------------------------------------------------------------------- one key, two sessions


def test_a_session_key_is_of_one_session_only() -> None:
    net, host, rogue = rogue_and_host()
    first, second = rogue.local.current, SessionKey(1)
    pair = rogue.come_up(B, first)
    rogue.come_up(C, second)
    rogue.rekey(B, pair, second)
    assert host.node.counters["pair_of_another"] == 1
    net.run(200)  # rotations drop all those pairs again


def test_a_rotation_comes_to_its_end_although_the_other_end_has_one_key_in_two_sessions() -> None:
    net, host, rogue = rogue_and_host()
    first, second = rogue.come_up(B), rogue.come_up(C, SessionKey(0))
    assert net.run_until(lambda: host.node.local.current.epoch == 1, limit=70)
    shared = SessionKey(1)
    net.run(0.1)
    rogue.rekey(B, first, shared)
    session = host.peer(B).session

    def holds_the_pair() -> bool:
        current = host.node.local.current
        return any(pair.theirs == shared.public and pair.mine is current for pair in session.pairs)

    assert holds_the_pair()
    # It is given up when nobody has confirmed it, and then free for the other session.
    assert net.run_until(lambda: not holds_the_pair(), limit=40)
    pair = rogue.rekey(C, second, shared)
    net.run(0.1)
    rogue.pong(C, pair)
    net.run(3)  # the next REKEY in the first session finds it taken
    assert not holds_the_pair()
    assert host.mode(B) == host.mode(C) == "session"


def test_a_goodbye_that_was_overtaken_ends_nothing() -> None:
    """Whoever is removed and added again goes on under the same pair: its goodbye may come behind that."""
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    goodbyes = [rogue.sealed(pair, {"type": "bye"}) for _ in range(3)]
    host.arrive(B, rogue.sealed(pair, GOT))
    for goodbye in goodbyes[:2]:
        host.arrive(B, goodbye)
    assert host.mode(B) == "session"
    assert host.node.counters["stale_hello"] == 2
    host.arrive(B, rogue.sealed(pair, {"type": "bye"}))
    assert host.mode(B) == "unknown"


def test_a_peer_that_is_removed_and_added_again_gets_what_is_sent_to_it_then() -> None:
    for seed in (108, 565, 616, 640, *range(100)):
        net = FakeNet(seed, delay=0.001, jitter=0.004)
        alice, bob = net.node(A, B), net.node(B, *([] if seed % 3 == 0 else [A]))
        assert net.run_until(lambda: both_ready(alice, bob), limit=20)  # noqa: B023
        net.run(net.rng.random() * 0.02)
        alice.remove_peer(B)
        net.run(net.rng.random() * 0.004 if seed % 4 else 0)
        alice.add_peer(B)
        alice.send(B, b"again")
        assert net.run_until(lambda: bob.messages_from(A) == [b"again"], limit=10), seed  # noqa: B023


@pytest.mark.parametrize("member", [{"port": 0}, {"port": "x"}, {"enc_key": 5}, {"later": None}])
def test_members_that_a_rekey_does_not_have_are_ignored(member: dict[str, Any]) -> None:
    _, host, rogue = rogue_and_host()
    pair, key = rogue.come_up(B), SessionKey(1)
    hello = rogue.hello(key, to_sign=rogue.theirs)
    host.arrive(B, rogue.sealed(pair, {"type": "rekey", **rogue.signed(hello), **member}))
    assert host.peer(B).session.enc == key.public


def test_a_peer_with_new_keys_each_second_does_not_make_us_rotate_more_often() -> None:
    net = FakeNet(seed=1)
    host = net.node(A, lifetime=10)
    rogue = Rogue(net, host)
    pair = rogue.come_up(B)
    rotations, epoch = [net.now], 0
    for number in range(1, 120):
        pair = rogue.rekey(B, pair, SessionKey(number))
        host.arrive(B, rogue.sealed(pair, GOT))
        net.run(1.1)
        if host.node.local.current.epoch > epoch:
            epoch += 1
            assert host.node.local.current.epoch == epoch
            rotations.append(net.now)
    assert 12 <= len(rotations) <= 15
    assert min(later - earlier for earlier, later in zip(rotations[1:], rotations[2:])) > 9.5 - 1.2


def test_new_session_keys_are_taken_once_a_second_at_most() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    taken = []
    for epoch in range(1, 400):
        key = SessionKey(epoch)
        new = rogue.rekey(B, pair, key)
        if host.peer(B).session.enc == key.public:
            taken.append(net.now)
            pair = new
            host.arrive(B, rogue.sealed(pair, GOT))
        net.run(0.01)
    assert len(taken) in (4, 5)
    assert all(later - earlier > 0.99 for earlier, later in zip(taken, taken[1:]))


def test_a_peer_with_ever_new_session_keys_waits_for_our_rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_session, "MAX_RETIRED_PAIRS", 4)
    net = FakeNet(seed=1)
    host = net.node(A, lifetime=1e6)
    rogue = Rogue(net, host)
    pair = rogue.come_up(B)
    for epoch in range(1, 16):
        net.run(1.1)
        key = SessionKey(epoch)
        new = rogue.rekey(B, pair, key)
        if host.peer(B).session.enc == key.public:
            pair = new
            host.arrive(B, rogue.sealed(pair, GOT))
        assert len(host.node.retired) <= 5
        if host.node.counters["too_many_sessions"]:
            break
    for rotations in (1, 2):
        assert host.node.counters["too_many_sessions"] == rotations
        net.run(6)
        assert host.node.local.current.epoch == rotations, "each refusal calls for one"
        rogue.rekey(B, pair, SessionKey(20 + rotations))
    assert not host.node.retired


# ---------------------------------------------------------------------------------------------- two families


@pytest.mark.parametrize("first", ["IPv4", "IPv6"])
def test_messages_fit_when_one_process_is_known_over_both_families(first: str) -> None:
    net = FakeNet(seed=2)
    bob = net.node(B, alias=B6)
    names = (B, B6) if first == "IPv4" else (B6, B)
    alice = net.node(A, *names, alias=A6)
    net.run(3)
    assert alice.peer(B) is alice.peer(B6)
    message = bytes(packet.message_room(1393))
    alice.send(B, message)
    alice.send(B6, message)
    net.run(1)
    assert [received for _, received in bob.received] == [message, message]


def test_a_second_name_that_is_removed_takes_its_base_link_along() -> None:
    net = FakeNet(seed=1)
    host = net.node(A, lifetime=10)
    rogue = Rogue(net, host)
    seed = crypto.bytes_to_b64_str(rogue.local.sign_seed)
    members = VaultAsymmetricEncryption(60, sign_private_key=seed).base_members(B[1])
    rogue.end(B).send(A, control_format.make_announcement_body(members, 1024))
    net.run(0.01)
    assert host.mode(B) == "base v2"
    host.arrive(B, rogue.sealed(rogue.shake_hands(B), GOT))
    host.add_peer(C)
    rogue.shake_hands(C)
    assert host.peer(B) is host.peer(C)
    host.remove_peer(B)
    net.run(30)  # rotations go over all links
    assert B not in host.node.base.links


# ---------------------------------------------------------------------------------------------------- moving


def test_a_move_is_noticed_although_something_opens_before_the_first_ping() -> None:
    net, alice, bob = two_in_session()
    alice.send(B, b"on its way to the old port")
    bob.move(D)
    bob.arrive(A, alice.data_sent[-1])
    net.run(0.3)  # the old port is given up after half a second
    assert alice.peer(B).session.endpoint == D


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_move_is_noticed_although_the_first_ping_is_lost_or_overtaken(overtaken: bool) -> None:
    net, alice, bob = two_in_session()
    held: list[bytes] = []

    def hold_the_first_ping(datagram: Datagram) -> Copies:
        if datagram.src == D and not held:
            held.append(datagram.data)
            return []
        return net.route(datagram)

    net.hook = hold_the_first_ping
    alice.send(B, b"to the old port")
    bob.move(D)
    net.run(0)
    bob.arrive(A, alice.data_sent[-1])  # it opens, but it does not say that the new port is known
    assert held
    if overtaken:
        net.run(0.01)
        net.inject(D, A, held[0])
    net.run(1)
    assert alice.peer(B).session.endpoint == D
    alice.send(B, b"to the new port")
    net.run(0.1)
    assert bob.received[-1][1] == b"to the new port"


def test_pings_after_a_move_come_to_an_end() -> None:
    net, _, bob = two_in_session()
    net.run(5)
    bob.move(D)
    net.run(2)
    before = len(net.sent)
    net.run(10)
    assert len(net.sent) == before


# ---------------------------------------------------------------------------------------------------- timers


def test_an_announcement_cycle_ends_once_however_coarse_the_clock_is() -> None:
    """A clock of 15.625 ms reads the end of the cycle to the digit; rounding is worst at a power of two."""
    ticks = ((tick / 64, (tick / 64) + ANNOUNCEMENT_CYCLE) for tick in range(904 * 64, 1024 * 64))
    to_ms = ((int(start * 1000) / 1000, int(end * 1000) / 1000) for start, end in ticks)
    rounded = [(start, end) for start, end in to_ms if end - start < ANNOUNCEMENT_CYCLE <= end - start + 1e-9]
    rounded = [(start, end) for start, end in rounded if start + ANNOUNCEMENT_CYCLE <= end]
    assert rounded
    for start, end in rounded[:50]:
        encryption = VaultAsymmetricEncryption(600, monotonic=lambda: 0.0, wall=lambda: EPOCH)
        node = Node(encryption, port=1, body_size=1393, rate_limit=None, now=start, wall=EPOCH)
        node.add_peer(B, start)
        node.run_timers(start)
        node.outgoing.clear()
        node.run_timers(end)
        assert len(node.outgoing) == 1


def test_the_delay_of_announcements_is_bounded_however_many_there_were() -> None:
    assert 13 < vault_udp_announce.announce_delay(10**6, random.Random(1)) < 17


def test_a_ping_at_its_deadline_moves_the_deadline() -> None:
    _, alice, _ = two_in_session()
    session = alice.peer(B).session
    for number in range(3000):
        for unanswered in range(vault_udp_session.PINGS_BEFORE_LOST):
            session.lost = False
            session._acknowledge_at = session._rekey_at = float("inf")
            session._suspect_at, session._pings_unanswered = 3.9 + number * 0.00013, unanswered
            due = session.deadline()
            session.run_timers(due)
            assert session.deadline() > due
        alice.node.outgoing.clear()


def test_the_deadline_of_a_session_is_the_earliest_of_all() -> None:
    never = float("inf")
    _, alice, _ = two_in_session()
    session = alice.peer(B).session
    session._pair_with(session.local.current, bytes(range(1, 33)), 9)
    session._known_path()
    assert len(session.pairs) > 1
    timers: list[tuple[Any, str]] = [
        (session, name) for name in ("_acknowledge_at", "_rekey_at", "_suspect_at")
    ]
    timers += [(pair, "confirm_at") for pair in session.pairs]
    timers += [(session._path, "due_at"), (session.local, "keepalive")]
    for owner, name in timers:
        setattr(owner, name, never)
    session._sent_at = 0.0
    assert session.deadline() == never
    for number, (owner, name) in enumerate(reversed(timers)):
        setattr(owner, name, 100.0 - number)
        assert session.deadline() == 100.0 - number
    session._move_pings = (90.0, 5.0)
    assert session.deadline() == 5.0
    session._move_pings, session._suspect_at, session.lost = (), 1.0, True
    assert session.deadline() > 1.0, "a peer that is lost is asked by announcements"


# ------------------------------------------------------------------------------------------ exchange of keys


def test_no_datagram_of_a_first_contact_is_unknown() -> None:
    net = FakeNet(seed=1)
    alice, bob = net.node(A, B), net.node(B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    assert not alice.node.counters["unknown_tag"] + bob.node.counters["unknown_tag"]


@pytest.mark.parametrize("start", range(0, 256, 64))
def test_unknown_tags_are_answered_whatever_their_first_byte(start: int) -> None:
    for byte in range(start, start + 64):
        net = FakeNet()
        net.node(B)
        outsider = net.outsider(X)
        outsider.send(B, bytes([byte]) + bytes(1456))
        net.run(1)
        assert outsider.received, byte


# -------------------------------------------------------------------------------------- datagrams of the past


def test_recorded_hellos_neither_disturb_nor_take_a_session_back() -> None:
    net = FakeNet(seed=3)
    alice, bob = net.node(A, B, lifetime=5), net.node(B, lifetime=7)
    assert net.run_until(lambda: both_ready(alice, bob))
    hellos = [sent.data for sent in net.sent if sent.src == A and sent.data[:1] == b"\x84"]
    assert hellos

    def talk() -> None:
        alice.send(B, b"x")
        bob.send(A, b"y")

    def replay() -> None:
        for hello in hellos:
            net.inject(A, B, hello)

    net.every(0.05, talk, 60)
    net.every(0.5, replay, 60)
    epochs = []
    net.every(0.5, lambda: epochs.append(bob.peer(A).session.epoch), 60)
    net.run_until(60)
    assert alice.kinds_of_events(B) + bob.kinds_of_events(A) == ["ready", "ready"]
    data = set(alice.data_sent)
    assert not [reason for _, reason, _, datagram in bob.refused if datagram in data and reason != "replayed"]
    assert bob.node.counters["stale_hello"] > 0
    assert epochs == sorted(epochs)
    assert both_ready(alice, bob)


def test_what_opens_under_a_pair_that_has_come_back_makes_nobody_ready() -> None:
    """It may have been on its way since before the goodbye: only the answer to a ping tells."""
    net = FakeNet()
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    of_alice, of_bob = alice.peer(B).session, bob.peer(A).session
    late = of_alice.seal_messages([b"late"], alice.now)[0]
    goodbye = of_alice.seal([packet.make_control_body(b'{"type":"bye"}', 1000)], alice.now)[0]
    net.hook = lambda sent: [] if sent.src == A and sent.data[:1] != b"\x84" else net.route(sent)
    net.inject(A, B, goodbye)
    assert net.run_until(lambda: bool(of_bob.pairs))
    assert [pair.needs_pong for pair in of_bob.pairs] == [True]
    net.inject(A, B, late)
    net.run(0.01)
    assert [message for _, message in bob.received] == [b"late"]
    assert not of_bob.up
    assert bob.kinds_of_events(A) == ["ready", "lost"]


def test_a_lost_peer_is_back_whatever_it_says() -> None:
    net = FakeNet()
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    net.hook = lambda sent: [] if sent.src == A else net.route(sent)
    bob.send(A, b"are you there?")
    assert net.run_until(lambda: bob.peer(A).session.lost)
    pair = alice.peer(B).session.send
    assert pair is not None
    net.inject(A, B, pair.seal([b"\xc1" * 1000], EPOCH + net.now)[0])
    assert bob.node.counters["bad_body"] == 1
    assert bob.kinds_of_events(A) == ["ready", "lost", "ready"]


def test_what_is_too_long_is_not_waited_for_an_answer_to() -> None:
    net = FakeNet()
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    session = alice.peer(B).session
    before = session.deadline()
    with pytest.raises(packet.TooLargeError):
        session.seal_messages([bytes(5000)], alice.now)
    assert session.deadline() == before


def test_data_that_goes_back_acknowledges_and_puts_the_keepalive_off() -> None:
    net = FakeNet()
    bob, alice = net.node(B, A, keepalive=10), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    alice.send(B, b"question")
    net.run(1)
    bob.send(A, b"answer")
    answered_at, before = net.now, len(net.sent)
    net.run(9.9)
    assert [sent.time for sent in net.sent[before:] if sent.src == B] == []
    net.run(0.2)
    assert [round(sent.time - answered_at, 6) for sent in net.sent[before:] if sent.src == B] == [10]


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_an_idle_peer_that_is_gone_is_noticed_by_the_keepalive(loss: float) -> None:
    net = FakeNet(seed=1)
    alice, bob = net.node(A, B, keepalive=5, lifetime=1e6), net.node(B, lifetime=1e6)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.loss = loss
    net.run(300)
    assert alice.kinds_of_events(B) == ["ready"]
    bob.kill()
    net.run(12)
    assert alice.kinds_of_events(B) == ["ready", "lost"]


def test_who_moves_and_loses_the_keys_that_it_has_sent_with_stops_pinging() -> None:
    net = FakeNet()
    alice, bob = net.node(A, B, lifetime=5), net.node(B, A, lifetime=5)
    assert net.run_until(lambda: both_ready(alice, bob))
    bob.kill()
    session = alice.peer(B).session
    assert session.send is not None
    key = session.send.mine
    assert net.run_until(lambda: alice.node.local.previous is key)
    net.run(alice.node.rotate_at - alice.now - 0.25)
    alice.move(C)
    assert net.run_until(lambda: session.send is None, limit=0.5)
    net.run(3)
    bob.restart(A)
    assert net.run_until(lambda: bob.is_ready(C), limit=20)


def test_a_pair_that_was_given_up_and_is_made_again_goes_on_with_other_counters() -> None:
    """Bob hears Alice, and is not heard for so long that she gives the pair up."""
    net = FakeNet()
    alice, bob = net.node(A, B), net.node(B)
    first_hellos = itertools.count()
    net.hook = lambda sent: net.route(sent) if sent.src == A or not next(first_hellos) else []
    assert net.run_until(lambda: bool(alice.node.tags))
    assert net.run_until(lambda: not alice.node.tags, limit=60)
    net.hook = net.route
    assert net.run_until(lambda: both_ready(alice, bob), limit=30)
    messages = [b"%d" % number for number in range(20)]
    for message in messages:
        alice.send(B, message)
    net.run(1)
    assert bob.messages_from(A) == messages
    assert not bob.node.counters["replayed"]


def test_a_stranger_that_says_goodbye_is_no_stranger_any_more() -> None:
    net = FakeNet()
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    assert bob.node.table.strangers == 1
    alice.stop()
    net.run(0.01)
    assert bob.node.table.strangers == 0


def test_what_a_killed_process_left_on_the_way_does_not_take_over() -> None:
    net = FakeNet(seed=5)
    bob, alice = net.node(B, A, lifetime=1000), net.node(A, B, lifetime=5)
    assert net.run_until(lambda: both_ready(alice, bob))
    held: list[bytes] = []

    def talk() -> None:
        alice.send(B, b"x")
        bob.send(A, b"y")

    def hold_what_bob_has_not_opened(datagram: Datagram) -> Copies:
        known = bob.node.tags.get(datagram.data[:8]) if datagram.src == A else None
        if known is not None and not known.opened:
            held.append(datagram.data)
            return []
        return net.route(datagram)

    net.every(0.5, talk, 100)
    net.run(22)
    net.hook = hold_what_bob_has_not_opened
    assert net.run_until(lambda: len(held) >= 2, 20)
    alice.kill()
    net.hook = net.route
    alice.restart(B)
    assert net.run_until(lambda: both_ready(alice, bob), 10)
    net.run(1)
    for datagram in held:
        net.inject(A, B, datagram)
    alice.received.clear()
    net.run(24)
    assert len(alice.received) >= 40


def test_the_goodbye_of_the_process_before_ends_nothing() -> None:
    net = FakeNet(seed=1)
    host, peer = net.node(A, B), net.node(B, A)
    assert net.run_until(lambda: both_ready(host, peer))
    held: list[bytes] = []

    def hold(datagram: Datagram) -> Copies:
        held.append(datagram.data)
        return []

    net.hook = hold
    peer.stop()
    net.hook = net.route
    peer.restart(A)
    assert net.run_until(lambda: both_ready(host, peer))
    net.inject(B, A, held[-1])
    assert both_ready(host, peer)
    assert not host.node.counters["goodbyes"]


# --------------------------------------------------------------------------------------- what strangers cost


def test_a_ping_to_a_new_address_is_no_longer_than_what_came_from_there() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(B)
    host.arrive(B, rogue.sealed(pair, GOT))
    for size in range(50, 1400, 50):
        victim = net.outsider(("10.0.1.1", size))
        datagram = rogue.sealed(pair, GOT, size)
        net.inject(victim.address, A, datagram)
        net.run(0.6)
        assert sum(len(data) for _, data in victim.received) <= len(datagram)
        assert bool(victim.received) == (size >= 128)


def test_junk_from_an_added_address_does_not_keep_its_owner_out() -> None:
    net = FakeNet(seed=1)
    host = net.node(A, B)
    net.every(0.005, lambda: net.inject(B, A, b"\x84\xa1" + bytes(600)), 30)
    net.run(2)
    peer = net.node(B, A)
    assert net.run_until(lambda: both_ready(host, peer), limit=20), dict(host.node.counters)


def test_strangers_wait_for_a_rotation_when_too_many_have_come_and_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vault_udp_announce, "MAX_RETIRED_PAIRS", 8)
    monkeypatch.setattr(vault_udp_session, "MIN_REKEY_INTERVAL", 0.0)
    net = FakeNet(seed=1)
    host = net.node(A, D, lifetime=1e6)
    rogue = Rogue(net, host)
    pairs = []
    for number in range(30):
        pairs.append(rogue.shake_hands(B, SessionKey(number)))
        host.arrive(B, rogue.sealed(pairs[-1], GOT))
        assert len(host.node.retired) <= 8 + 4
    assert host.node.counters["too_many_sessions"] > 0
    added = net.node(D)
    assert net.run_until(lambda: both_ready(host, added)), "who was added does not wait"
    for pair in pairs:  # nothing that was accepted has been forgotten
        before = len(host.received)
        pair.counters = itertools.count()
        body = packet.make_payload_body(packet.store_frame(b"again"), 1393)
        host.arrive(B, pair.seal([body], EPOCH + net.now)[0])
        assert len(host.received) == before
    net.run(11)  # two early rotations, 5 s apart
    stranger = net.node(C, A)
    assert net.run_until(lambda: both_ready(host, stranger), limit=10)


def test_sessions_that_come_and_go_leave_a_bounded_memory_behind() -> None:
    net, alice, bob = two_in_session()
    sizes = []
    for _ in range(20):
        alice.stop()
        net.run(0.1)
        alice.restart(B, same_identity=False)
        assert net.run_until(lambda: both_ready(alice, bob))
        net.run(1.1)
        sizes.append(len(bob.node.retired))
    net.run(130)
    assert len(bob.node.retired) < max(sizes)


@pytest.mark.parametrize("same_identity", [True, False])
def test_a_peer_that_moved_and_came_back_to_its_name_is_found_there(same_identity: bool) -> None:
    """Bob has added Alice; she roams to C, dies, and comes back at A, waiting to be called."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, bob))
    alice.move(C, knowingly=False)
    alice.send(B, b"from elsewhere")
    net.run(2)
    assert bob.peer(A).session.endpoint == C
    alice.kill()
    alice.address = A
    alice.restart(same_identity=same_identity)
    net.every(0.5, lambda: bob.send(A, b"hello"), until=net.now + 60)
    assert net.run_until(lambda: bool(alice.received), limit=30)
