# SPDX-License-Identifier: Apache-2.0
"""Key rotation under traffic: keys go, sessions stay, and data that arrives always finds its key."""

from __future__ import annotations

import itertools

import pytest
from fakenet import EPOCH, SEALED_SIZE, Copies, Datagram, FakeNet, Host, both_ready
from test_protocol_edges import GOT, C, Rogue, rogue_and_host

import vault_udp_upkeep
from vault_udp_control import read_json
from vault_udp_keys import Pair, SessionKey
from vault_udp_layout import make_bodies
from vault_udp_packet import read_body
from vault_udp_session import MOVE_PINGS
from vault_udp_socket_helper import bytes_to_b64_str

A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)
ROTATIONS = 20


def talk_through_rotations(net: FakeNet, a: Host, b: Host, seconds: float, interval: float) -> None:
    """Both send a message every `interval` seconds; 5 more seconds for what is on its way."""
    numbers = iter(range(10**9))

    def tick() -> None:
        a.send(b.address, b"%d" % next(numbers))
        b.send(a.address, b"%d" % next(numbers))

    net.every(interval, tick, until=net.now + seconds)
    net.run(seconds + 5)


def data_refused(host: Host, sender: Host) -> list[str]:
    """The reasons for which data that has arrived was refused, but for being a second copy."""
    data = set(sender.data_sent)
    return [reason for _, reason, _, datagram in host.refused if datagram in data and reason != "replayed"]


@pytest.mark.parametrize(
    ("lifetimes", "loss", "delay", "interval"),
    [
        ((60, 60), 0.1, 0.01, 0.5),
        ((60, 42), 0.3, 0.05, 0.5),
        ((10, 10), 0.3, 0.2, 0.1),
        ((10, 13), 0.3, 0.2, 0.1),
        ((10, 60), 0.3, 0.1, 0.1),
        ((5, 5), 0.3, 0.1, 0.1),
        ((5, 5), 0.1, 0.2, 0.05),
        ((5, 6.5), 0.1, 0.2, 0.05),
    ],
)
def test_twenty_rotations_under_traffic_refuse_no_data(
    lifetimes: tuple[float, float], loss: float, delay: float, interval: float
) -> None:
    for seed in range(2):
        net = FakeNet(seed, loss=loss, duplication=0.1, delay=delay, jitter=delay)
        bob = net.node(B, A, lifetime=lifetimes[0])
        alice = net.node(A, B, lifetime=lifetimes[1])
        talk_through_rotations(net, alice, bob, 1.06 * ROTATIONS * min(lifetimes), interval)
        assert max(host.node.local.current.epoch for host in (alice, bob)) >= ROTATIONS
        for host, other in ((alice, bob), (bob, alice)):
            assert data_refused(host, other) == []
            assert host.node.counters["forged"] == 0
            assert host.kinds_of_events(other.address) == ["ready"], "the session has never been down"
            messages = host.messages_from(other.address)
            assert len(messages) == len(set(messages)) > (0.95 - loss) * len(other.data_sent)


def test_without_loss_every_message_arrives_in_order_through_rotations() -> None:
    net = FakeNet(delay=0.03)
    bob, alice = net.node(B, A, lifetime=5), net.node(A, B, lifetime=5)
    talk_through_rotations(net, alice, bob, 60, 0.02)
    for host in (alice, bob):
        numbers = [int(message) for _, message in host.received]
        assert numbers == sorted(numbers)
        assert len(numbers) in (3000, 3001)
        assert not data_refused(host, alice if host is bob else bob)


def test_the_data_moves_to_new_keys_with_each_rotation_of_either_end() -> None:
    net = FakeNet()
    bob, alice = net.node(B, lifetime=10), net.node(A, B, lifetime=15)
    assert net.run_until(lambda: both_ready(alice, bob))
    tags = set()

    def send() -> None:
        alice.send(B, b"x")
        tags.add(alice.data_sent[-1][:8])

    net.every(0.5, send, until=60)
    net.run_until(60)
    rotations = alice.node.local.current.epoch + bob.node.local.current.epoch
    assert rotations >= 8
    assert rotations - 1 <= len(tags) <= rotations + 1


def test_an_idle_session_survives_rotations() -> None:
    net = FakeNet(1, loss=0.2)
    bob, alice = net.node(B, lifetime=5), net.node(A, B, lifetime=7)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(200)
    assert alice.kinds_of_events(B) == bob.kinds_of_events(A) == ["ready"]
    alice.send(B, *[b"still here"] * 5)
    net.hook = lambda datagram: [(0.001, datagram.data)]
    alice.send(B, b"now")
    net.run(0.1)
    assert (A, b"now") in bob.received


def test_the_lifetime_set_takes_effect_on_the_next_rotation() -> None:
    net = FakeNet()
    bob, alice = net.node(B), net.node(A, B, lifetime=1000)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(20)
    alice.set_lifetime(5)
    epoch = alice.node.local.current.epoch
    net.run(5.3)
    assert alice.node.local.current.epoch == epoch + 1
    net.run(21.2)
    assert alice.node.local.current.epoch in (epoch + 4, epoch + 5)


def test_keys_are_overwritten_at_the_second_rotation() -> None:
    net = FakeNet()
    bob, alice = net.node(B, lifetime=5), net.node(A, B, lifetime=5)
    assert net.run_until(lambda: both_ready(alice, bob))
    first = alice.node.local.current
    pairs = [pair for pair in alice.peer(B).session.pairs if pair.mine is first]
    assert pairs
    net.run(10.6)
    assert bytes(first.private) == bytes(32)
    assert not [pair for pair in alice.peer(B).session.pairs if pair.mine is first]
    assert not [pair for pair in alice.node.tags.values() if pair.mine is first]
    assert not [pair for pair in alice.node.retired.values() if pair.mine is first]
    # A datagram of that time is of no key any more.
    old = next(datagram for datagram in net.sent if datagram.src == B and len(datagram.data) > 1024)
    net.inject(B, A, old.data)
    assert alice.refused[-1][1] == "unknown_tag"


def test_a_peer_that_does_not_follow_is_announced_to_anew() -> None:
    net = FakeNet()
    bob, alice = net.node(B, lifetime=1e6), net.node(A, B, lifetime=5)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.hook = lambda datagram: []
    net.run(12)
    assert alice.kinds_of_events(B) == ["ready", "lost"]
    net.hook = net.route
    alice.send(B, b"hello again")
    assert net.run_until(lambda: (A, b"hello again") in bob.received, limit=16)
    bob.send(A, b"and you")
    assert net.run_until(lambda: (B, b"and you") in alice.received, limit=16)


def test_a_peer_that_stays_away_for_hours_is_offered_the_new_key_again_and_again() -> None:
    net = FakeNet()
    alice, bob = net.node(A, B, lifetime=9000), net.node(B, A, lifetime=9000)
    assert net.run_until(lambda: both_ready(alice, bob))
    bob.kill()
    net.run(9450 + 3700)
    assert alice.peer(B).session._rekeys > 1751, "as many as a power of 1.5 can have"


def test_memory_is_bounded_while_peers_come_and_go() -> None:
    net = FakeNet(3, loss=0.1, duplication=0.1, delay=0.01, jitter=0.01)
    server = net.node(B, lifetime=5)
    server.on_message = lambda address, message: server.send(address, message)
    sizes = []
    for number in range(60):
        client = net.node((f"10.1.0.{number}", 1000), B, lifetime=5)
        client.send(B, b"hello")
        net.run(2)
        (client.stop if number % 2 else client.kill)()
        sizes.append((len(server.node.tags), len(server.node.retired), len(server.node.timers)))
    assert max(tags for tags, _, _ in sizes[20:]) <= 4 * 16
    assert max(retired for _, retired, _ in sizes[20:]) <= 64
    assert max(timers for _, _, timers in sizes[20:]) <= 150
    net.run(150)
    assert server.node.table.by_name == {}
    assert (server.node.tags, server.node.retired, server.node.timers) == ({}, {}, [])


def test_a_long_session_keeps_few_pairs_and_timers() -> None:
    net = FakeNet(1, loss=0.2, delay=0.05, jitter=0.05)
    bob, alice = net.node(B, A, lifetime=5), net.node(A, B, lifetime=5)
    most = [0, 0, 0]

    def look() -> None:
        alice.send(B, b"x")
        node = alice.node
        for index, size in enumerate((len(node.tags), len(node.retired), len(node.timers))):
            most[index] = max(most[index], size)

    net.every(0.25, look, until=300)
    net.run_until(300)
    assert len(bob.received) > 900
    assert most[0] <= 4
    assert most[1] <= 8
    assert most[2] <= 40


def test_an_idle_rotation_takes_three_datagrams() -> None:
    """REKEY, CONFIRM(got=false), CONFIRM(got=true): each is needed, and nothing is answered twice."""
    net = FakeNet(delay=0.01)
    bob = net.node(B, A, lifetime=60)
    alice = net.node(A, B, lifetime=3600)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    before = len(net.sent)
    net.run(65)
    assert bob.node.local.current.epoch == 1
    assert len(net.sent) - before == 3
    for host, other in ((alice, B), (bob, A)):
        send = host.peer(other).session.send
        assert send is not None
        assert bob.node.local.current.public in (send.mine.public, send.theirs)


@pytest.mark.parametrize("largest", [SEALED_SIZE, 1300])
def test_a_rotation_is_followed_although_the_first_answer_to_its_rekey_is_lost(largest: int) -> None:
    """Whoever got the REKEY asks again, in smaller sizes too, and says what it answers."""
    net = FakeNet(delay=0.01)
    bob = net.node(B, A, lifetime=60)
    alice = net.node(A, B, lifetime=3600)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    sent: list[tuple[str, int]] = []

    def first_rekey_and_later_answers(datagram: Datagram) -> Copies:
        sent.append(datagram.src)
        is_first = sent.count(datagram.src) == 1
        passes = is_first if datagram.src == B else not is_first and len(datagram.data) <= largest
        return net.route(datagram) if passes else []

    net.hook = first_rekey_and_later_answers
    assert net.run_until(lambda: A in sent, limit=70)
    net.run(0.4 if largest == SEALED_SIZE else 1)
    send = bob.peer(A).session.send
    assert send is not None
    assert send.mine.epoch == 1


def test_nobody_looks_for_an_answer_that_has_come() -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B, A, lifetime=60), net.node(A, B, lifetime=3600)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    assert net.run_until(lambda: len(alice.peer(B).session.pairs) == 2, limit=70)
    assert alice.node.deadline() < alice.now + 0.3
    net.run(0.05)
    assert alice.node.deadline() > alice.now + 100


@pytest.mark.parametrize("count", [1, 2])
def test_data_that_opens_a_new_pair_is_confirmed(count: int) -> None:
    """If the CONFIRMs of a hello are lost, data under the new pair does for them, and is answered."""
    net, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(B)
    bodies = make_bodies([b"first"] * count, 1393, False)
    host.node.receive(pair.seal(bodies, EPOCH + net.now), B, host.now)
    assert host.mode(B) == "session"
    assert [message for _, messages in host.node.deliveries for message in messages] == [b"first"] * count
    assert host.node.deadline() <= host.now, "it is answered at once"
    host.node.outgoing.clear()
    host.node.run_timers(host.now)
    answers = [read_body(pair.open(answer)[1]).control for _, answer in host.node.outgoing]
    assert [read_json(answer)["got"] for answer in answers] == [True]


@pytest.mark.parametrize("count", [1, 2])
def test_data_under_the_pair_of_a_rotation_is_delivered_before_it_has_opened(count: int) -> None:
    """The other end may know already that it has; that it is still where it was, only an answer shows."""
    net = FakeNet(delay=0.01)
    bob = net.node(B, A, lifetime=60)
    alice = net.node(A, B, lifetime=3600)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(50)
    known = {pair.open_tag for pair in bob.peer(A).session.pairs}
    net.run_until(lambda: {pair.open_tag for pair in bob.peer(A).session.pairs} != known)
    new_at_bob = next(pair for pair in bob.peer(A).session.pairs if pair.open_tag not in known)
    net.run_until(lambda: len(alice.peer(B).session.pairs) == 2)
    new_at_alice = next(pair for pair in alice.peer(B).session.pairs if not pair.opened)
    bodies = make_bodies([b"first"] * count, bob.peer(A).session.body_size, False)
    datagrams = new_at_bob.seal(bodies, bob.node.local.session_time(bob.now))
    alice.node.receive(datagrams, B, alice.now)
    assert [(name, [*messages]) for name, messages in alice.node.deliveries] == [(B, [b"first"] * count)]
    assert not new_at_alice.opened
    net.run(0.05)
    assert new_at_alice.opened
    assert alice.peer(B).session.send is new_at_alice
    assert bob.peer(A).session.send is new_at_bob


@pytest.mark.parametrize("rotates", ["host", "peer"])
def test_who_is_not_at_the_endpoint_any_more_does_not_follow_a_rotation(rotates: str) -> None:
    """It goes on in the name of its former address; our new session key is told to it where it is now."""
    net = FakeNet(seed=1)
    host = net.node(A, lifetime=20 if rotates == "host" else 1e6)
    rogue = Rogue(net, host)
    old = rogue.come_up(B)
    net.run(15)
    if rotates == "host":
        assert net.run_until(lambda: host.node.local.current.epoch == 1, limit=10)
        net.run(0.1)
        new = Pair(rogue.local, rogue.theirs, old.mine, host.node.local.current.public)
    else:
        new = rogue.rekey(B, old, SessionKey(1))
    unanswered = {"type": "confirm", "got": False, "nonce": b64(16), "time": 0}
    for control in (GOT, unanswered, {**unanswered, "echo": b64(16)}, {**GOT, "echo": b64(16), "time": 0}):
        host.arrive(B, rogue.sealed(new, control))
    send = host.peer(B).session.send
    assert send is not None
    assert send.open_tag != new._seal_tag
    if rotates == "host":
        net.run(25)
        assert host.mode(B) != "session", "the old pair is gone with its key"
    else:
        net.run(0.1)
        rogue.pong(B, new)
        send = host.peer(B).session.send
        assert send is not None
        assert send.open_tag == new._seal_tag


def test_a_hello_from_elsewhere_does_not_show_that_the_peer_is_at_its_endpoint_yet() -> None:
    """It has moved from B to C, has left that, too, and is at B again, but goes on in the name of C."""
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    rogue.move(C, pair)
    assert host.peer(B).session.endpoint == C
    net.run(2)
    new = rogue.shake_hands(B, SessionKey(1))
    host.arrive(C, rogue.sealed(new, GOT))
    send = host.peer(B).session.send
    assert send is not None
    assert send.open_tag == pair._seal_tag
    host.arrive(B, rogue.sealed(new, GOT))
    net.run(0.1)
    rogue.pong(B, new)
    assert host.peer(B).session.endpoint == B
    send = host.peer(B).session.send
    assert send is not None
    assert send.open_tag == new._seal_tag


def test_an_answer_to_a_rekey_counts_from_the_endpoint_only() -> None:
    net = FakeNet(seed=1)
    host = net.node(A, lifetime=20)
    rogue = Rogue(net, host)
    old = rogue.come_up(B)
    assert net.run_until(lambda: host.node.local.current.epoch == 1, limit=25)
    net.run(0.1)
    new = Pair(rogue.local, rogue.theirs, old.mine, host.node.local.current.public)
    for place, opens in ((C, False), (B, True)):
        echo = bytes_to_b64_str(host.node.local.nonce_for(place, host.now))
        control = {"type": "confirm", "got": False, "nonce": b64(16), "echo": echo, "time": 0}
        host.arrive(place, rogue.sealed(new, control))
        send = host.peer(B).session.send
        assert send is not None
        assert (send.open_tag == new._seal_tag) == opens


def b64(size: int) -> str:
    return bytes_to_b64_str(bytes(size))


def test_retries_that_an_answer_has_made_needless_do_not_wake_anybody_up_each() -> None:
    net = FakeNet(3)
    spokes = [net.node((f"10.0.1.{number}", 2000)) for number in range(40)]
    hub = net.node(A, *[spoke.address for spoke in spokes], lifetime=600)
    assert net.run_until(lambda: all(both_ready(hub, spoke) for spoke in spokes))
    net.run(2)  # what confirms the sessions
    before = hub.wake_ups
    net.run(125)
    rotations = sum(spoke.node.local.current.epoch for spoke in spokes)
    assert rotations >= 60
    assert hub.wake_ups - before < 0.6 * rotations  # each has left a retry, which its answer overtook


# ---------------------------------------------------------------------------------------------------- in step


def note_rotations(host: Host) -> list[float]:
    """The network's time of each rotation from now on."""
    times: list[float] = []
    rotate = host.node.local.rotate

    def rotate_and_note() -> None:
        times.append(host.net.now)
        rotate()

    host.node.local.rotate = rotate_and_note  # type: ignore[method-assign]
    return times


def assert_on_time(rotations: list[float], lifetime: float) -> None:
    intervals = [later - earlier for earlier, later in zip(rotations, rotations[1:])]
    assert intervals
    assert min(intervals) >= 0.95 * lifetime - 0.001
    assert max(intervals) <= 1.05 * lifetime + 0.001


@pytest.mark.parametrize(("loss", "apart"), [(0.0, 0.1), (0.1, 2.0)])
def test_who_has_one_peer_rotates_with_it(loss: float, apart: float) -> None:
    net = FakeNet(5, loss=loss, delay=0.02, jitter=0.02)
    spokes = []
    for number in range(8):
        spokes.append(net.node((f"10.0.1.{number}", 2000), A))
        net.run(0.2)  # they start one after the other
    hub = net.node(A)
    assert net.run_until(lambda: all(both_ready(hub, spoke) for spoke in spokes))
    at_hub, at_spokes = note_rotations(hub), [note_rotations(spoke) for spoke in spokes]
    net.run(25 * 60)
    for rotations in (at_hub, *at_spokes):
        assert_on_time(rotations, 60)
    for number in range(-6, -1):
        times = [rotations[number] for rotations in at_spokes]
        assert min(times) - at_hub[number] > 0, "the hub leads"
        assert max(times) - at_hub[number] < apart
    assert all(hub.kinds_of_events(spoke.address) == ["ready"] for spoke in spokes)


def test_who_has_several_peers_follows_none() -> None:
    """When it rotates would tell each of them whom it talks to."""
    net = FakeNet(delay=0.01)
    ends = [net.node(A), net.node(B, A), net.node(("10.0.0.3", 1003), A, B)]
    assert net.run_until(lambda: all(both_ready(a, b) for a, b in itertools.combinations(ends, 2)))
    times = [note_rotations(end) for end in ends]
    net.run(10 * 60)
    for rotations in times:
        assert_on_time(rotations, 60)
    together = [a for a, b in itertools.permutations(times, 2) for x in a for y in b if abs(x - y) < 0.05]
    assert len(together) <= 2


@pytest.mark.parametrize(("peers", "earliest", "latest"), [(1, 1.0, 1.05), (2, 0.97, 1.0)])
def test_chance_decides_when_an_end_rotates_by_itself(peers: int, earliest: float, latest: float) -> None:
    net = FakeNet(delay=0.01)
    others = [net.node((f"10.0.1.{number}", 2000), lifetime=1000) for number in range(peers)]
    end = net.node(A, *[other.address for other in others], lifetime=10)
    assert net.run_until(lambda: all(both_ready(end, other) for other in others))
    times = note_rotations(end)
    net.run(1500)
    intervals = [(later - earlier) / 10 for earlier, later in zip(times, times[1:])]
    width = latest - earliest
    assert earliest - 1e-4 <= min(intervals) < earliest + width / 8
    assert latest - width / 8 < max(intervals) <= latest + 1e-4


def test_a_lifetime_that_is_set_again_and_again_puts_nothing_off() -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    node = alice.node
    first = node.may_rotate_at, node.lead_at, node.rotate_at
    for _ in range(13):
        net.run(5)
        alice.set_lifetime(60)
        assert node.local.current.epoch or first == (node.may_rotate_at, node.lead_at, node.rotate_at)
    assert node.local.current.epoch == 1


def test_what_follows_a_rekey_in_its_batch_is_received_before_we_rotate() -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(50)
    alice.node.may_rotate_at = alice.now
    bob.node._rotate(bob.now)
    bob.node.run_timers(bob.now)
    (rekey,) = [datagram for _, datagram in bob.node.outgoing]
    _, data = bob.node.seal_messages(bob.peer(A), [b"behind it"], bob.now)
    alice.node.receive([rekey, *data], B, alice.now)
    assert alice.node.deliveries == [(B, (b"behind it",))]
    assert alice.node.local.current.epoch == 0
    assert alice.node.deadline() <= alice.now
    alice.node.run_timers(alice.now)
    assert alice.node.local.current.epoch == 1


def test_early_rotations_wait_until_all_peers_were_told_of_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vault_udp_upkeep, "REKEYS_PER_SECOND", 10)
    net = FakeNet(delay=0.01)
    spokes = [net.node((f"10.0.1.{number}", 2000)) for number in range(60)]
    hub = net.node(A, *[spoke.address for spoke in spokes])
    assert net.run_until(lambda: all(both_ready(hub, spoke) for spoke in spokes))
    times = note_rotations(hub)
    net.every(1.0, lambda: hub.node.count_drop("too_many_sessions", B, hub.now), until=net.now + 100)
    net.run(100)
    intervals = [later - earlier for earlier, later in zip(times, times[1:])]
    assert 10.9 < min(intervals) <= max(intervals) < 12.1, "6 s of REKEYs, and 5"
    assert all(hub.kinds_of_events(spoke.address) == ["ready"] for spoke in spokes)


def test_two_that_rotate_together_need_six_datagrams() -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    before = len(net.sent)
    assert net.run_until(lambda: alice.node.local.current.epoch == 1, limit=70)
    began = net.now
    net.run(1)
    assert bob.node.local.current.epoch == 1
    assert len(net.sent) - before == 6
    assert net.now - began <= 1.1
    for host, other in ((alice, B), (bob, A)):
        pair = host.peer(other).session.send
        assert pair is not None
        assert pair.mine is host.node.local.current


@pytest.mark.parametrize(("per_second", "within"), [(100, 0.5), (2, 15.0)])
def test_rekeys_are_spread_but_not_beyond_the_next_rotation(
    per_second: int, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_udp_upkeep, "REKEYS_PER_SECOND", per_second)
    net = FakeNet(delay=0.01)
    spokes = [net.node((f"10.0.1.{number}", 2000)) for number in range(60)]
    hub = net.node(A, *[spoke.address for spoke in spokes])
    assert net.run_until(lambda: all(both_ready(hub, spoke) for spoke in spokes))
    net.run(5)
    hub.node._rotate(hub.now)
    due = [peer.session._rekey_at - hub.now for peer in hub.node.table.all()]
    assert due == sorted(due)
    assert [due.count(when) for when in dict.fromkeys(due)] == [vault_udp_upkeep.REKEYS_AT_ONCE] * 6
    assert 0.8 * within <= due[-1] <= within


def test_peers_without_a_session_keep_nobody_waiting_for_a_rekey() -> None:
    net = FakeNet(delay=0.01)
    absent = [(f"10.0.2.{number}", 2000) for number in range(40)]
    bob, hub = net.node(B), net.node(A, *absent, B)
    assert net.run_until(lambda: both_ready(hub, bob))
    net.run(5)
    hub.node._rotate(hub.now)
    assert hub.peer(B).session._rekey_at == hub.now


@pytest.mark.parametrize("seed", range(3))
def test_who_meets_a_second_peer_leads_from_the_first_rotation_on(seed: int) -> None:
    net = FakeNet(seed, delay=0.01)
    hub = net.node(A)
    times = note_rotations(hub)
    spokes = [net.node((f"10.0.1.{number}", 2000), A) for number in range(2)]
    assert net.run_until(lambda: all(both_ready(hub, spoke) for spoke in spokes))
    net.run(60)
    assert len(times) == 1
    assert 0.97 * 60 <= times[0] <= 60


def test_nobody_rotates_with_a_peer_before_it_is_nearly_time() -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B, A, lifetime=55), net.node(A, B, lifetime=65)
    assert net.run_until(lambda: both_ready(alice, bob))
    assert net.run_until(lambda: bob.node.local.current.epoch == 1, limit=60)
    net.run(1)
    assert alice.node.local.current.epoch == 0


def test_a_rekey_that_is_repeated_takes_nobody_with_it() -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B, A, lifetime=54), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(50)
    alice.node.rotate_at = alice.now + 100
    net.hook = lambda datagram: [] if datagram.src == A else [(0.01, datagram.data)]  # no answers
    assert net.run_until(lambda: len(alice.peer(B).session.pairs) == 2, limit=8)
    assert alice.now < alice.node.may_rotate_at
    net.run(10)
    assert alice.now > alice.node.may_rotate_at
    assert bob.peer(A).session._rekeys > 3
    assert alice.node.local.current.epoch == 0


# ----------------------------------------------------------------------------------------------------- moving


def test_who_has_moved_says_so_at_growing_intervals() -> None:
    net = FakeNet()
    bob, alice = net.node(B, A), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    session, moved_at = alice.peer(B).session, alice.now
    session.moved(moved_at)
    times = []
    while session._move_pings:
        due = session.deadline()
        session.run_timers(due)
        times.append(due - moved_at)
    assert times == pytest.approx(MOVE_PINGS)
    assert len(alice.node.outgoing) == len(MOVE_PINGS)


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("again", [False, True])
def test_a_rotation_amid_a_key_exchange_does_not_divide_the_two(again: bool, loss: float) -> None:
    """A client comes, or is back, and the server's keys rotate while the two get to know each other's."""
    for seed in range(24):
        net = FakeNet(seed, delay=0.3)
        server, client = net.node(A), net.node(B, lifetime=1000)
        if again:
            client.add_peer(A)
            net.run(5)
            client.remove_peer(A)
            net.run(1)
        net.loss = loss
        client.add_peer(A)

        def rotate(server: Host = server) -> None:
            with server._acting():
                server.node.rotate_at = server.now
                server.node.run_timers(server.now)

        net.at(net.now + 0.3 + net.rng.random() * 1.5, rotate)
        net.run(2.5)
        net.loss = 0.0
        assert net.run_until(lambda: both_ready(server, client), limit=3)  # noqa: B023
        for number in range(10):
            client.send(A, b"%d" % number)
            server.send(B, b"%d" % number)
            net.run(0.5)
        assert server.messages_from(B) == client.messages_from(A) == [b"%d" % number for number in range(10)]


def test_a_key_that_a_rekey_has_confirmed_is_not_taken_for_a_recorded_one() -> None:
    """Its hello came before anything of the key before it had opened, as when the peer rotates just then."""
    _, host, rogue = rogue_and_host()
    key = SessionKey(1)
    first = rogue.shake_hands(B)
    rogue.shake_hands(B, key)
    host.arrive(B, rogue.sealed(first, GOT))
    assert host.mode(B) == "session"
    assert host.peer(B).session.enc == first.mine.public, "as if the other's hello were a recorded one"
    rogue.rekey(B, first, key)
    rogue.shake_hands(B, key)
    assert host.peer(B).session.enc == key.public
    assert "stale_hello" not in host.node.counters


def test_who_has_slept_through_two_rotations_is_found_where_it_wakes_up() -> None:
    """We have added it; a pair that our REKEY made is still there, and nobody will ever answer it."""
    net = FakeNet(seed=1, delay=0.02)
    server, laptop = net.node(A, B, lifetime=60), net.node(B, A, lifetime=1e6)
    assert net.run_until(lambda: both_ready(server, laptop))
    server.send(B, b"the last one")
    net.run(1)
    laptop.suspend(127)
    assert server.node.local.current.epoch == 2
    laptop.move(C, knowingly=False)
    for number in range(8):
        laptop.send(A, b"%d" % number)
        net.run(0.5)
    assert server.received[-1:] == [(C, b"7")]


@pytest.mark.parametrize("why", ["its goodbye is lost", "it needed the room"])
@pytest.mark.parametrize("both_send", [True, False])
def test_what_is_sent_arrives_though_the_peer_forgot_us_while_our_keys_were_replaced(
    why: str, both_send: bool
) -> None:
    """Its pair with us is the one that our REKEY was to bring; that we have tried must not keep it back."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, lifetime=1000)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    net.loss = 1.0
    if why == "it needed the room":
        bob.node.table.forget(bob.peer(A))
    else:
        bob.remove_peer(A)
    net.loss = 0.0
    assert net.run_until(lambda: alice.node.local.current.epoch == 1, limit=70)
    net.run(1)
    for number in range(20):
        alice.send(B, b"%d" % number)
        if both_send:
            bob.send(A, b"%d" % number)
        net.run(0.5)
    assert bob.messages_from(A) == [b"%d" % number for number in range(20)]
    assert alice.messages_from(B) == bob.messages_from(A) * both_send


def test_a_goodbye_of_before_the_rotation_does_not_end_the_session_of_after_it() -> None:
    """Somebody held it back; the peer has come back since, as the same process, with the same key."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B, lifetime=10), net.node(B, A, lifetime=1000)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    net.loss = 1.0
    bob.remove_peer(A)
    goodbye = net.sent[-1]
    net.loss = 0.0
    assert net.run_until(lambda: alice.node.local.current.epoch == 1, limit=70)
    bob.add_peer(A)
    net.run(1)
    session = alice.peer(B).session
    assert session.send is not None
    assert session.send.mine is alice.node.local.current
    told = alice.kinds_of_events(B)
    net.inject(B, A, goodbye.data)
    assert alice.node.counters["stale_hello"] == 1
    assert alice.is_ready(B)
    assert alice.kinds_of_events(B) == told


def test_a_goodbye_amid_a_rotation_is_understood() -> None:
    """The one end seals under the new pair already, the other does not know yet that it may."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, A, lifetime=1000)
    assert net.run_until(lambda: both_ready(alice, bob))
    rekeys = 0

    def only_the_rekey(sent: Datagram) -> Copies:
        nonlocal rekeys
        rekeys += sent.src == A
        return net.route(sent) if sent.src == B or rekeys == 1 else []

    net.run(1)
    assert net.run_until(lambda: alice.node.local.current.epoch == 1, limit=70)
    net.hook = only_the_rekey
    session = alice.peer(B).session
    assert net.run_until(lambda: session.send is not None and session.send.mine.epoch == 1, limit=1)
    pair = bob.peer(A).session.send
    assert pair is not None
    assert pair.theirs != alice.node.local.current.public, "Bob does not know"
    bob.stop()
    net.run(0.1)
    assert alice.kinds_of_events(B) == ["ready", "lost"]
