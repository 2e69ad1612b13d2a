# SPDX-License-Identifier: Apache-2.0
"""Who is whom: attempts to be taken for somebody else, to get his messages, or to lead his peers away."""

from __future__ import annotations

import itertools
from typing import Any

import nacl.signing
import pytest
from base_net import OURS, THEIRS, BaseHost, clear_announcement_of
from base_peer import announcement_members, make_announcement_body, to_b64
from fakenet import EPOCH, Address, FakeNet, Host, both_ready
from loopback import Collector, address_of, eventually, pair
from test_protocol_edges import GOT, C, Rogue, rogue_and_host
from test_reviewed_attacks import A, B, base_announcement, encryption_on

import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_keys import NO_KEY, Hello, LocalKeys, SessionKey, read_hello_untrusted


@pytest.mark.parametrize("size", [370, 1393])
@pytest.mark.parametrize("adds", [True, False])
def test_who_is_not_on_the_path_leads_no_session_down(size: int, adds: bool) -> None:
    """Bob looks for Alice; the moment she starts, somebody forges a base announcement in his name."""
    for seed in range(8):
        net = FakeNet(seed, delay=0.03)
        bob = net.node(B, A)
        bob.send(A, b"for Alice")
        net.run(3 + seed / 10)
        alice = net.node(A, *([B] if adds else []))
        net.inject(B, A, base_announcement(encryption_on(net), B[1], size))
        assert net.run_until(lambda: alice.received == [(B, b"for Alice")], limit=5)  # noqa: B023
        assert bob.mode(A) == "session"


def test_nobody_locks_a_v1_peer_out_by_repeating_its_announcement_as_v2() -> None:
    """The signature covers the two keys only, and is there for everybody to copy."""
    net = FakeNet(delay=0.01)
    us, them = net.node(OURS), BaseHost(net, 1)
    net.inject(("10.0.0.66", 5555), OURS, clear_announcement_of(them, 2))
    net.run(1)
    them.add_peer(OURS)
    net.run(1)
    for number in range(5):
        them.send(f"{number}")
        net.run(1)
    assert us.messages_from(THEIRS) == [b"%d" % number for number in range(5)]


class Shower:
    """Shows Alice hellos of Bob's at an address of the attacker's.

    He sees what Bob sends to Alice, and is faster than it. To Bob he passes on what Alice has answered him,
    in her name; so Bob names her, and signs her nonce for the attacker's address. To Alice it is Bob's then,
    as far as hellos go.
    """

    def __init__(self, net: FakeNet, *, passes_on: bool = False) -> None:
        self.net = net
        self.address = ("10.0.0.66", 1)
        self._passes_on = passes_on
        self._keys = LocalKeys(bytes([7]) * 32, 0.0, EPOCH)
        self._from_alice = b""
        self.to_alice = net.outsider(self.address)
        self.to_alice.on_datagram = self._answered
        self._send, net.send = net.send, self._seen  # type: ignore[method-assign,assignment]
        net.every(3, self._ask, until=300)
        net.every(0.02, lambda: net.inject(A, B, self._from_alice), until=300)

    def _ask(self) -> None:
        keys = self._keys.sign_public, self._keys.current.public, NO_KEY, NO_KEY
        hello = crypto.bytes_to_b64_str(Hello(0, 0, 0.0, *keys, bytes(16), bytes(16)).pack())
        members = {"hello": hello, "proof": crypto.bytes_to_b64_str(bytes(64))}
        self.to_alice.send(A, control_format.make_announcement_body(members, 512))

    def _answered(self, _: Address, datagram: bytes) -> None:
        if packet.looks_clear(datagram):
            self._from_alice = datagram
        elif self._passes_on:
            self.net.inject(self.address, B, datagram)  # unread

    def _seen(self, src: Address, dst: Address, datagram: bytes) -> None:
        if (src, dst) == (B, A) and self._from_alice and packet.looks_clear(datagram):
            is_for_us = hello_in(datagram).echo == hello_in(self._from_alice).nonce
            if is_for_us:
                self.net.inject(self.address, A, datagram)
        self._send(src, dst, datagram)


def hello_in(datagram: bytes) -> Hello:
    """The hello of an announcement in clear."""
    members = control_format.read_json(packet.read_body(datagram).control)
    announcement = control_format.read_announcement(members)
    assert announcement.hello is not None
    return read_hello_untrusted(announcement.hello)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_gets_the_first_messages_by_showing_a_hello_at_his_address(seed: int) -> None:
    net = FakeNet(seed, delay=0.05)
    alice, bob = net.node(A), net.node(B)
    Shower(net)
    net.run(2)
    alice.add_peer(B)
    messages = [b"%d" % number for number in range(20)]
    alice.send(B, *messages)
    assert net.run_until(lambda: len(bob.received) == 20, limit=10)
    assert [message for _, message in bob.received] == messages
    assert {sent.dst for sent in net.sent if sent.data in alice.data_sent} == {B}


@pytest.mark.parametrize("passes_on", [True, False])
@pytest.mark.parametrize("alice_adds", [True, False])
def test_nobody_takes_a_session_over_by_showing_its_new_key_first(passes_on: bool, alice_adds: bool) -> None:
    """Bob's keys rotate; the attacker, who is nearer, shows the new one before Bob's rekey is there."""
    net = FakeNet(seed=1, delay=0.05)
    alice, bob = net.node(A, *([B] if alice_adds else []), lifetime=1e6), net.node(B, A, lifetime=20)
    assert net.run_until(lambda: both_ready(alice, bob))
    shower = Shower(net, passes_on=passes_on)
    net.hook = lambda sent: [
        (0.05 if {sent.src, sent.dst} == {A, B} else 0.005, sent.data),
    ]
    numbers = itertools.count()

    def talk() -> None:
        bob.send(A, b"%d" % next(numbers))
        alice.send(B, b"to Bob")

    net.every(0.25, talk, until=net.now + 60)
    net.run(62)
    assert {address for address, _ in alice.received} == {B}, "and not the attacker's"
    assert len(alice.received) == len(bob.received) == next(numbers)
    assert alice.kinds_of_events(B) == bob.kinds_of_events(A) == ["ready"]
    assert shower.address not in {sent.dst for sent in net.sent if sent.data in alice.data_sent}


def test_a_hello_alone_shows_no_identity() -> None:
    net = FakeNet(seed=1, delay=0.05)
    alice, bob = net.node(A), net.node(B, A)
    net.hook = lambda datagram: net.route(datagram) if packet.looks_clear(datagram.data) else []
    net.run(2)
    entry = alice.peer(B)
    assert (entry.identity, entry.proven_identity) == (bob.sign_public, b"")
    net.hook = net.route
    assert net.run_until(lambda: both_ready(alice, bob))
    assert alice.peer(B).proven_identity == bob.sign_public


def asking(nonce: bytes, sign: bytes = b"", enc: bytes = b"") -> bytes:
    """An announcement that anybody can make: nothing of it is true, and it wants to be answered."""
    keys = LocalKeys(bytes([7]) * 32, 0.0, EPOCH)
    fields = sign or keys.sign_public, enc or keys.current.public, NO_KEY, NO_KEY, nonce, bytes(16)
    hello = crypto.bytes_to_b64_str(Hello(0, 0, 0.0, *fields).pack())
    members = {"hello": hello, "proof": crypto.bytes_to_b64_str(bytes(64))}
    return control_format.make_announcement_body(members, 512)


@pytest.mark.parametrize("forged", ["sealed", "hello"])
def test_nobody_introduces_two_ends_that_do_not_know_each_other(forged: str) -> None:
    net = FakeNet(delay=0.02)
    alice, bob = net.node(A), net.node(B)
    net.inject(B, A, asking(bytes(16)) if forged == "hello" else b"\x01" * 512)
    net.run(300)
    assert len(net.sent) <= 2
    assert alice.node.table.by_name == bob.node.table.by_name == {}
    assert alice.node.counters["unasked_answer"] + bob.node.counters["unasked_answer"] == 1


@pytest.mark.parametrize("in_session", [False, True])
def test_what_an_end_answers_to_anybody_is_nobodys_to_show_elsewhere(in_session: bool) -> None:
    """Bob signs any nonce that he is asked with, also Alice's for the attacker's address.

    The attacker asks in the name of Alice, with her keys for his own, from an address where Bob has met
    nobody, or one with whom he is in a session.
    """
    net = FakeNet(delay=0.02)
    alice, bob = net.node(A), net.node(B)
    mallory = net.node(("10.0.0.66", 1), B)
    assert net.run_until(lambda: both_ready(mallory, bob))
    if not in_session:
        mallory.remove_peer(B)
        net.run(1)
    net.detach(mallory.address)
    evil = net.outsider(mallory.address)
    evil.send(A, asking(bytes(16)))
    net.run(1)
    shown = hello_in(evil.received[-1][1])
    net.inject(mallory.address, B, asking(shown.nonce, shown.sign, shown.enc))
    net.run(1)
    answers = [datagram for source, datagram in evil.received if source == B and packet.looks_clear(datagram)]
    assert hello_in(answers[-1]).echo == shown.nonce
    net.inject(mallory.address, A, answers[-1])
    assert alice.node.table.by_name == {}
    assert alice.node.counters["unasked_answer"] == 1


def test_an_end_does_not_name_a_key_that_was_only_announced() -> None:
    """Who is in a session with Bob announces Alice's key as his next one, and shows her the answer."""
    net = FakeNet()
    alice, bob = net.node(A), net.node(B)
    rogue, place = Rogue(net, bob), ("10.0.0.66", 1)
    rogue.come_up(place)
    net.run(2)
    key = SessionKey(1)
    key.public = alice.node.local.current.public
    rogue.shake_hands(place, key)
    assert bob.peer(place).session.enc == key.public
    nonce = alice.node.local.nonce_for(place, alice.now)
    end = rogue.end(place)
    end.send(B, asking(nonce))
    net.run(0.1)
    answer = next(datagram for _, datagram in end.received if packet.looks_clear(datagram))
    assert hello_in(answer).echo == nonce
    net.inject(place, A, answer)
    assert alice.node.counters["unasked_answer"] == 1
    assert alice.node.table.by_name == {}


def test_a_pair_does_not_open_by_what_comes_from_where_no_hello_has_come_from() -> None:
    """Somebody has shown the hello at his address, and what its maker sends comes from the maker's own."""
    _, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(C)
    for _ in range(3):
        host.arrive(B, rogue.sealed(pair, GOT))
    assert host.mode(C) == "waiting for keys"
    host.arrive(C, rogue.sealed(pair, GOT))
    assert host.mode(C) == "session"


@pytest.mark.parametrize("is_rotated", [False, True])
def test_who_holds_our_key_has_met_us_also_if_he_does_not_name_us(is_rotated: bool) -> None:
    net, host, rogue = rogue_and_host()
    end = rogue.end(B)
    end.send(host.address, asking(bytes(16)))
    net.run(0.1)
    answer = hello_in(end.received[0][1])
    if is_rotated:
        host.node.local.rotate()
    for holds, strangers in ((bytes(31) + b"1", 0), (answer.enc, 1)):
        hello = rogue.hello(rogue.local.current, echo=answer.nonce, holds=holds)
        host.arrive(B, control_format.make_announcement_body(rogue.signed(hello), 512))
        assert host.node.table.strangers == strangers


def test_who_has_become_somebody_else_is_made_known_to_strangers_in_session() -> None:
    """Sooner than by his silence."""
    net = FakeNet(delay=0.02)
    server, client = net.node(A), net.node(B, A)
    assert net.run_until(lambda: both_ready(server, client))
    client.kill()
    net.node(B)
    server.send(B, b"to whom it was")
    assert net.run_until(lambda: "lost" in server.kinds_of_events(B), limit=4)


def test_keys_of_the_application_do_for_being_awaited() -> None:
    net = FakeNet(delay=0.02)
    alice, bob = net.node(A), net.node(B)
    keys = bob.encryption.enc_public_key, bob.encryption.sign_public_key
    alice.encryption.update_peer_keys(B, *keys)
    alice._carry_out()
    assert net.run_until(lambda: both_ready(alice, bob), limit=1)


class Showman:
    """Has Bob sign Alice's nonces for an address off their path, and shows her that."""

    def __init__(self, net: FakeNet) -> None:
        self._net = net
        self._end = net.outsider(("10.0.0.66", 1))
        self._end.on_datagram = self._show
        net.every(3, lambda: self._end.send(A, asking(b"n" * 16)), until=30)

    def _show(self, source: Address, datagram: bytes) -> None:
        if packet.looks_clear(datagram):
            if source == A:
                self._end.send(B, asking(hello_in(datagram).nonce))
            else:
                self._net.inject(self._end.address, A, datagram)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_server_shows_messages_under_the_address_of_who_sent_them(loss: float) -> None:
    for seed in range(8):
        net = FakeNet(seed, delay=0.05, loss=loss, jitter=0.02 if loss else 0.0)
        server, client = net.node(A), net.node(B)
        Showman(net)
        net.run(2 + seed * 0.37)
        client.add_peer(A)
        client.send(A, *[b"%d" % number for number in range(20)])
        net.run(20)
        assert {address for address, _ in server.received} == {B}
        assert len(server.received) >= 10
        assert server.node.counters["unasked_answer"] > 0


class KeyThief:
    """Announces a base peer's key as his own, in clear, in the name of that one's IP address."""

    def __init__(self, net: FakeNet, victim: BaseHost) -> None:
        self._net, self._key, self._me = net, victim.peer.enc_key, nacl.signing.SigningKey(bytes(32))
        self.sign = bytes(self._me.verify_key)

    def announce(self, port: int) -> None:
        sign = to_b64(self.sign)
        signature = to_b64(bytes(self._me.sign((self._key + sign).encode())))
        members = {"enc_key": self._key, "sign_key": sign, "signature": signature, "port": port}
        self._net.inject((THEIRS[0], 40000 + port % 20000), OURS, make_announcement_body(2, members))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "times", [[0.0], [1.011], [number / 20 for number in range(40)], [0.5 + number for number in range(60)]]
)
def test_nobody_is_shown_what_another_sealed_by_announcing_its_key(times: list[float], version: int) -> None:
    net = FakeNet(1, delay=0.01)
    us, them = net.node(OURS), BaseHost(net, version, THEIRS)
    thief = KeyThief(net, them)
    for number, time in enumerate(times):
        net.at(time, lambda port=30000 + number: thief.announce(port))  # type: ignore[misc]
    net.at(1.0, lambda: them.add_peer(OURS))
    net.run_until(3)
    for number in range(60):
        them.send(f"{number}")
        net.run(1)
    assert us.messages_from(THEIRS) == [b"%d" % number for number in range(60)]
    assert us.peer(THEIRS).proven_identity == sign_of(them)
    assert thief.sign not in {peer.proven_identity for peer in us.node.table.all()}


def let_them_seal(us: Host, them: BaseHost) -> None:
    """Give them our keys by a way of their application's; they announce themselves sealed then."""
    keys = us.encryption.enc_public_key, us.encryption.sign_public_key
    them.peer.set_peer_keys(us.address, *keys, them.clock)
    them.add_peer(us.address)
    them.net.run(0.1)


@pytest.mark.parametrize("port", [THEIRS[1], 30000])
def test_who_seals_with_a_key_says_whose_it_is_also_where_the_peer_was_added(port: int) -> None:
    """The thief was first, at the very address that the user added, and at another of the peer's."""
    net = FakeNet(1, delay=0.01)
    added = (THEIRS[0], port)
    us, them = net.node(OURS, added), BaseHost(net, 2, THEIRS)
    thief = KeyThief(net, them)
    thief.announce(port)
    thief.announce(31000)
    assert us.peer(added).identity == thief.sign
    net.run(1)
    was_corrected = port == THEIRS[1]  # there our answer has reached its owner, who has answered
    let_them_seal(us, them)
    them.send("mine")
    net.run(1)
    assert us.messages_from(added) == [b"mine"]
    keys = us.encryption.peer_keys(added)
    assert keys is not None
    assert us.peer(added).identity == keys.sign == sign_of(them)
    assert us.mode((THEIRS[0], 31000)) == "unknown"
    assert us.kinds_of_events(added) == (["ready"] if was_corrected else ["ready", "lost", "ready"])


def sign_of(host: BaseHost) -> bytes:
    return crypto.b64_str_to_bytes(host.peer.sign_key)


def test_a_stranger_whose_key_was_announced_at_its_own_address_loses_nothing() -> None:
    net = FakeNet(1, delay=0.01)
    us, them = net.node(OURS), BaseHost(net, 2, THEIRS)
    thief = KeyThief(net, them)
    thief.announce(THEIRS[1])
    let_them_seal(us, them)
    them.send("mine")
    net.run(1)
    assert us.messages_from(THEIRS) == [b"mine"]
    assert us.peer(THEIRS).proven_identity == sign_of(them)


def test_an_owner_of_a_key_keeps_its_addresses_and_the_thief_gets_no_other() -> None:
    net = FakeNet(1, delay=0.01)
    us, them = net.node(OURS), BaseHost(net, 2, THEIRS)
    elsewhere = announcement_members(them.peer.enc_private, them.peer.sign_private, 12001)
    net.inject((THEIRS[0], 12001), OURS, make_announcement_body(2, elsewhere))
    net.inject(THEIRS, OURS, clear_announcement_of(them, 2))
    thief = KeyThief(net, them)
    thief.announce(30000)
    let_them_seal(us, them)
    thief.announce(30001)
    assert us.node.counters["key_of_another"] == 1
    assert set(us.node.table.by_name) == {THEIRS, (THEIRS[0], 12001)}


def test_the_application_knows_better_whose_a_key_is() -> None:
    net = FakeNet(1, delay=0.01)
    us, them = net.node(OURS), BaseHost(net, 2, THEIRS)
    other = to_b64(bytes(nacl.signing.SigningKey(bytes(32)).verify_key))
    us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, other)
    let_them_seal(us, them)
    assert us.node.counters["identity_refused"] == 1
    assert us.peer(THEIRS).identity == crypto.b64_str_to_bytes(other)


def test_nobody_says_whose_a_key_is_with_which_he_does_not_seal() -> None:
    """The thief seals with his own key that the other's is another identity of his."""
    net = FakeNet(1, delay=0.01)
    us, them, thief = net.node(OURS), BaseHost(net, 2, THEIRS), BaseHost(net, 2, ("10.0.0.66", 12000))
    for host in (them, thief):
        host.add_peer(OURS)
    net.run(1)
    identity = us.peer(THEIRS).identity
    me = nacl.signing.SigningKey(bytes(32))
    sign = to_b64(bytes(me.verify_key))
    signature = to_b64(bytes(me.sign((them.peer.enc_key + sign).encode())))
    members = {"enc_key": them.peer.enc_key, "sign_key": sign, "signature": signature, "port": THEIRS[1]}
    thief.send_body(make_announcement_body(2, members))
    net.run(1)
    assert us.node.counters["identity_refused"] == 1
    assert us.peer(THEIRS).identity == identity


@pytest.mark.parametrize("with_message", [True, False])
@pytest.mark.parametrize("stays", [True, False])
def test_a_message_is_delivered_before_somebody_else_can_have_its_senders_place(
    with_message: bool, stays: bool
) -> None:
    """Whoever is called back asks us whose the address is."""
    net = FakeNet()
    alice, mallory = net.node(A, *([B] if stays else [])), net.node(B, A, persistent=stays)
    assert net.run_until(lambda: both_ready(alice, mallory))
    net.run(1)
    session = mallory.peer(A).session
    datagrams = list(session.seal_messages([b"from Mallory"], mallory.now)) if with_message else []
    session.say_goodbye(mallory.now)
    datagrams.append(mallory.node.outgoing.pop()[1])
    decided = alice.node.receive([*datagrams, b"of somebody else"], B, alice.now)
    assert alice.mode(B) == ("waiting for keys" if stays else "unknown")
    assert decided == 2, "all, but with a message before it what follows is looked at once that is delivered"
    assert alice.node.counters["bad_length"] == (not with_message)
    before = [event.kind for event in alice.node.events]
    behind = [(position, event.kind) for position, event in alice.node.between]
    assert (before, behind) == (([], [(1, "lost")]) if with_message else (["lost"], [])), (
        "it is told after it"
    )
    delivered = [message for _, messages in alice.node.deliveries for message in messages]
    assert delivered == ([b"from Mallory"] if with_message else [])


def test_a_kept_message_is_not_shown_as_somebody_elses() -> None:
    with pair() as (a, b):
        address = address_of(a)
        b._delivery.deliver_all([(address, [b"of a"]), (("192.0.2.1", 9), [b"of who is gone"])])
        with b._lock:
            b._node.table.set_identity(b._node.table.by_name[address], b"another's")
        collector = Collector[Any]()
        b.udp_recv_bytes.connect(collector)
        assert collector.wait_for(1) == [(b"of who is gone", ("192.0.2.1", 9))]
        eventually(lambda: b.get_stats()["counters"]["nobody_connected"] == 1, "the other is counted")
        assert len(collector.items) == 1
