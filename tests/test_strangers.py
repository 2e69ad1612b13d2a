# SPDX-License-Identifier: Apache-2.0
"""Floods of spoofed datagrams: they cost strangers their wait, and nobody else anything.

8,000 datagrams of each kind; `STRANGERS_FLOOD=200000` in the environment makes it that many, and `pytest -s`
then shows what each flood came to.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import defaultdict

import pytest
from fakenet import EPOCH, Address, FakeNet, Host, both_ready

import vault_udp_announce
import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_peer
import vault_udp_rate_limit
import vault_udp_replay
import vault_udp_session
import vault_udp_socket_helper as crypto
import vault_udp_state
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_keys import LocalKeys
from vault_udp_rate_limit import RateLimiter

FLOOD = int(os.environ.get("STRANGERS_FLOOD", "8000"))
FLOOD_SECONDS = 6.0
"""Of the network's clock: more than the longest time between two rotations at a lifetime of 5 s."""
POOL = 1000
"""Different datagrams of each kind; sources are all different."""
PORT = 5000
"""Of all of them: the port that a base announcement tells must be where its answer is accounted for."""
ADDED, SERVER, STRANGER = ("10.0.0.1", PORT), ("10.0.0.2", PORT), ("10.0.0.3", PORT)
NEWCOMER = ("10.0.0.4", PORT)


# -------------------------------------------------------------------------------------- kinds of datagrams


def garbage(rng: random.Random, net: FakeNet) -> list[bytes]:
    """Anything: of all lengths, half of it beginning as clear or v1 bodies do."""
    heads = [b"", b"", b"", b"\x85\xa1", b"\x84\xa1v\x02\xa1p\xc4\x00\xa1c\xc5", b"\x92\xc5"]
    return [rng.choice(heads) + os_bytes(rng, rng.choice([0, 7, 60, 68, 512, 1457])) for _ in range(POOL)]


def os_bytes(rng: random.Random, size: int) -> bytes:
    return rng.getrandbits(8 * size).to_bytes(size, "big") if size else b""


def new_identities(rng: random.Random, net: FakeNet) -> list[bytes]:
    """Announcements that are valid but for the echo, which their authors could not know."""
    made = []
    for number in range(POOL):
        local = LocalKeys(os_bytes(rng, 32), 0.0, EPOCH)
        echo = os_bytes(rng, 16) if number % 2 else b""
        members = local.hello_members(SERVER, 0.0, echo=echo)
        made.append(control_format.make_announcement_body(members, 512))
    return made


def forged_announcements(rng: random.Random, net: FakeNet) -> list[bytes]:
    """The same, in the name of those who are there: their hellos with another key, echo, or signature."""
    real = [datagram.data for datagram in net.sent if len(datagram.data) in (512, 1024)]
    made = []
    for number in range(POOL):
        members = control_format.read_json(packet.read_body(real[number % len(real)]).control)
        blob = bytearray(crypto.b64_str_to_bytes(members["hello"]))
        if number % 3:
            at = rng.choice([70, 134, 182])
            blob[at : at + 16] = os_bytes(rng, 16)
            members["hello"] = crypto.bytes_to_b64_str(bytes(blob))
        else:
            members["proof"] = crypto.bytes_to_b64_str(os_bytes(rng, 64))
        made.append(control_format.make_announcement_body(members, 1024))
    return made


def replays(rng: random.Random, net: FakeNet) -> list[bytes]:
    """Everything that was ever sent to or by the server."""
    return [datagram.data for datagram in net.sent]


def unknown_tags(rng: random.Random, net: FakeNet) -> list[bytes]:
    """What looks sealed, of every length that is and is not answered; first bytes as of clear ones too."""
    return [os_bytes(rng, rng.choice([68, 511, 512, 1457])) for _ in range(POOL)]


def base_announcements(rng: random.Random, net: FakeNet) -> list[bytes]:
    """Valid announcements of base peers, in both versions: base mode has no echo, so they make entries."""
    made = []
    for number in range(POOL):
        members = VaultAsymmetricEncryption(60).base_members(PORT)
        make = (
            control_format.make_announcement_body if number % 2 else control_format.make_v1_announcement_body
        )
        made.append(make(members, rng.choice([600, 1024])))
    return made


KINDS = {
    "garbage": garbage,
    "forged announcements": forged_announcements,
    "new identities": new_identities,
    "replays": replays,
    "unknown tags": unknown_tags,
    "base announcements": base_announcements,
}


# ------------------------------------------------------------------------------------------------ the flood


class Scene:
    """A server with two peers in a session, one it has added and one it has not, who talk all the time."""

    def __init__(self) -> None:
        self.net = FakeNet(seed=7, delay=0.01)
        self.server = self.net.node(SERVER, ADDED, lifetime=5)
        self.server.on_message = self._echo
        self.peers = [self.net.node(address, SERVER, lifetime=5) for address in (ADDED, STRANGER)]
        self.sent = 0
        assert self.net.run_until(lambda: all(both_ready(peer, self.server) for peer in self.peers))
        self.net.every(0.05, self._talk, until=self.net.now + FLOOD_SECONDS + 1)
        self.net.run(1)
        self.came_from: defaultdict[Address, int] = defaultdict(int)
        self.flood_from = len(self.net.sent)

    def _echo(self, address: Address, message: bytes) -> None:
        self.server.send(address, b"re " + message)

    def _talk(self) -> None:
        self.sent += 1
        for peer in self.peers:
            peer.send(SERVER, b"%d" % self.sent)

    def source(self, number: int) -> Address:
        """Each a new address, but for those that are the peers' own, or the neighbours of one."""
        if number % 10 < 2:
            return self.peers[number % 10].address
        if number % 10 == 2:
            return (STRANGER[0], 10_000 + number % 50_000)
        return (f"{11 + (number >> 24)}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", PORT)

    def flood(self, datagrams: list[bytes], count: int) -> None:
        """`count` of them arrive within FLOOD_SECONDS."""
        numbers = iter(range(count))
        slice_size = -(-count // int(FLOOD_SECONDS * 100))

        def tick() -> None:
            for _, number in zip(range(slice_size), numbers):
                source, datagram = self.source(number), datagrams[number % len(datagrams)]
                self.came_from[source] += len(datagram)
                self.net.inject(source, SERVER, datagram)
            assert_bounded(self.server)

        self.net.every(0.01, tick, until=self.net.now + FLOOD_SECONDS)
        self.net.run(FLOOD_SECONDS + 1)
        assert next(numbers, None) is None

    def sent_to_unproven(self) -> dict[Address, int]:
        """Bytes that the server has sent during the flood to addresses that are not of its peers."""
        sent: defaultdict[Address, int] = defaultdict(int)
        for datagram in self.net.sent[self.flood_from :]:
            if datagram.src == SERVER and datagram.dst not in (ADDED, STRANGER):
                sent[datagram.dst] += len(datagram.data)
        return sent


def assert_bounded(host: Host) -> None:
    """Every table of the host is under the bound that PROTOCOL.md states for it."""
    node, encryption = host.node, host.encryption
    limiters = [
        value
        for owner in (node, node._introductions, node.base)
        for value in vars(owner).values()
        if isinstance(value, RateLimiter)
    ]
    assert len(limiters) >= 5
    assert all(len(limiter) <= vault_udp_rate_limit.MAX_TRACKED for limiter in limiters)
    assert len(node.table._pending) <= vault_udp_peer.MAX_PENDING_STRANGERS
    assert len(node.table._confirmed) <= vault_udp_peer.MAX_CONFIRMED_STRANGERS
    assert len(node.retired) <= vault_udp_session.MAX_RETIRED_PAIRS
    assert len(node.best_version) <= vault_udp_state.MAX_IDENTITIES
    assert len(encryption._nonces) <= vault_udp_replay.MAX_NONCE_CACHES
    assert len(node.base.links) <= len(node.table.by_name)
    assert len(encryption._peers) <= len(node.table.by_name)
    assert len(node.tags) <= vault_udp_session.MAX_PAIRS * len(node.table.by_name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_strangers(kind: str) -> None:
    scene = Scene()
    net, server = scene.net, scene.server
    datagrams = KINDS[kind](random.Random(3), net)
    before, started = dict(server.node.counters), time.perf_counter()
    identities, epoch = set(server.node.best_version), server.node.local.current.epoch
    scene.flood(datagrams, FLOOD)
    took = time.perf_counter() - started

    # The peers have noticed nothing.
    assert server.node.local.current.epoch > epoch
    for peer in scene.peers:
        expected = [b"%d" % number for number in range(1, scene.sent + 1)]
        assert server.messages_from(peer.address) == expected
        assert peer.messages_from(SERVER) == [b"re " + message for message in expected]
        assert server.kinds_of_events(peer.address).count("ready") == 1
        assert "lost" not in server.kinds_of_events(peer.address)
        assert peer.kinds_of_events(SERVER) == ["ready"]

    # Nothing is remembered of who has not shown that it receives at its address.
    if kind != "base announcements":
        assert set(server.node.table.by_name) == {ADDED, STRANGER}
        assert set(server.node.best_version) == identities
        assert not server.node.base.links
        assert not server.encryption._nonces
        assert {event.address for _, event in server.events} == {ADDED, STRANGER}
    assert {pair.owner.owner.name for pair in server.node.tags.values()} <= {ADDED, STRANGER}
    assert len(server.node.retired) <= 16

    # Nobody was made to receive more than was sent in its name.
    sent = scene.sent_to_unproven()
    assert {address for address, size in sent.items() if size > scene.came_from[address]} == set()

    newcomer = net.node(NEWCOMER, SERVER)
    arrived_at = net.now
    assert net.run_until(lambda: both_ready(newcomer, server), limit=5), server.node.counters
    counted = {
        reason: count - before.get(reason, 0)
        for reason, count in server.node.counters.items()
        if count > before.get(reason, 0)
    }
    print(
        f"\n{kind}: {FLOOD} in {took:.1f} s, newcomer after {net.now - arrived_at:.2f} s, "
        f"{sum(sent.values())} bytes answered to {sum(scene.came_from.values())}, {counted}"
    )


def test_only_who_is_nobody_to_us_is_hopeless_in_a_flood() -> None:
    net = FakeNet()
    server = net.node(SERVER, ADDED)
    node, is_hopeless, now = server.node, server.node._introductions.is_hopeless, net.now
    base, place = ("10.0.0.7", 7), ("10.0.0.8", 8)
    assert not is_hopeless(STRANGER, now)
    while node._introductions.affordable(("10.1.0.1", 1), now):
        pass
    assert is_hopeless(("10.1.0.1", 2), now), "its IP has spent all"
    assert not is_hopeless(STRANGER, now)
    spenders = ((f"10.2.{number >> 8}.{number & 255}", 1) for number in itertools.count())
    while node._introductions.affordable(next(spenders), now):
        pass
    assert [is_hopeless(source, now) for source in (STRANGER, base, place)] == [True, True, True]
    node.receive([bytes(1000)] * 3, STRANGER, now)
    assert node.counters["stranger_budget"] == 3
    assert not is_hopeless(ADDED, now)
    assert not is_hopeless(STRANGER, now + 0.0011), "the budget has something again"
    node.base.add(base, 2, now)
    assert [is_hopeless(source, now) for source in (STRANGER, base, place)] == [True, False, True]
    node.table.by_place[place] = [server.peer(ADDED)]
    assert [is_hopeless(source, now) for source in (STRANGER, base, place)] == [True, False, False]
    node.base.remove(base, keep_keys=True)
    assert [is_hopeless(source, now) for source in (STRANGER, base, place)] == [True, True, False]


@pytest.mark.parametrize("confirmed", [False, True])
def test_who_was_heard_of_last_is_evicted_last(confirmed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_PENDING_STRANGERS", "MAX_CONFIRMED_STRANGERS"):
        monkeypatch.setattr(vault_udp_peer, limit, 2)
    node = FakeNet().node(SERVER).node
    peers = []
    for number in range(3):
        peers.append(node.new_peer((f"10.9.0.{number}", 1)))
        node.table.heard(peers[-1], confirmed=confirmed)
        node.table.heard(peers[0])
    assert [bool(peer.names) for peer in peers] == [True, False, True]


def test_a_stranger_that_said_goodbye_is_gone() -> None:
    net = FakeNet()
    server, stranger = net.node(SERVER), net.node(STRANGER, SERVER)
    assert net.run_until(lambda: stranger.peer(SERVER).session.up)
    net.run(1)
    assert server.node.table.strangers == 1
    stranger.stop()
    net.run(1)
    assert server.node.table.strangers == 0
    assert STRANGER not in server.node.table.by_name


def test_spoofed_base_announcements_fill_no_table_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_peer, "MAX_PENDING_STRANGERS", 50)
    monkeypatch.setattr(vault_udp_state, "MAX_IDENTITIES", 100)
    monkeypatch.setattr(vault_udp_rate_limit, "MAX_TRACKED", 200)
    scene = Scene()
    server = scene.server
    scene.flood(base_announcements(random.Random(3), scene.net), 3000)
    # They were reached: `assert_bounded` has looked at full tables.
    assert len(server.node.table._pending) == 50
    assert len(server.node.best_version) <= 2, "what identities can do counts once something has opened"
    for number in range(300):
        server.node.note_version(b"%032d" % number, 2)
    assert len(server.node.best_version) == 100
    assert len(server.node._introductions._strangers_of_ip) == 200
    assert {ADDED, STRANGER} <= set(server.node.table.by_name)
    assert server.mode(ADDED) == server.mode(STRANGER) == "session"


def test_one_identity_at_many_ports_pays_for_the_search_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_announce, "SEARCHED_AT_ONCE", 1)
    net = FakeNet()
    server, local = net.node(SERVER), LocalKeys(bytes(range(32)), 0.0, EPOCH)
    for port in range(1, 50):
        local.rotate()
        source = ("12.0.0.1", port)
        echo = server.node.local.nonce_for(source, server.now)
        members = local.hello_members(SERVER, 0.0, echo=echo, to_sign=server.sign_public)
        net.inject(source, SERVER, control_format.make_announcement_body(members, 512))
    # 500 a second: 1 for each datagram, and 0, 1, 2 … for the entries that are there by then.
    assert len(server.node.table.with_identity(local.sign_public)) == 31
    assert server.node.counters["stranger_budget"] == 18
    elsewhere, at_home = net.node(NEWCOMER, SERVER), net.node(("12.0.0.1", 1000), SERVER)
    assert net.run_until(lambda: both_ready(elsewhere, server), limit=0.1)
    assert net.run_until(lambda: both_ready(at_home, server), limit=5)


def test_strangers_with_valid_echoes_leave_no_more_than_their_pending_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vault_udp_peer, "MAX_PENDING_STRANGERS", 20)
    scene = Scene()
    net, server = scene.net, scene.server
    for number in range(200):
        # One attacker with many addresses, each with an identity of its own, none of which ever confirms.
        source, local = (f"12.0.0.{number}", PORT), LocalKeys(os_bytes(net.rng, 32), 0.0, EPOCH)
        for echo in (b"", server.node.local.nonce_for(source, server.now)):
            members = local.hello_members(SERVER, 0.0, echo=echo, to_sign=server.sign_public)
            body = control_format.make_announcement_body(members, 512)
            net.inject(source, SERVER, body)
        assert_bounded(server)
    assert len(server.node.table._pending) == 20
    assert len(server.node.tags) <= 20 + 2 * vault_udp_session.MAX_PAIRS
    assert not server.node.retired, "what nothing was accepted under leaves nothing behind"
    newcomer = net.node(NEWCOMER, SERVER)
    assert net.run_until(lambda: both_ready(newcomer, server), limit=5)
