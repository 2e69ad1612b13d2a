# SPDX-License-Identifier: Apache-2.0
"""What a path carries: found out, lowered, raised again; and what the system refuses is sent again."""

from __future__ import annotations

import functools
import logging
import random
import socket
import sys
from typing import Any, Callable, Iterator, Sequence

import pytest
from base_net import OURS, THEIRS, BaseHost, connected
from fakenet import BODY_SIZE, Copies, Datagram, FakeNet, Host, both_ready, packet_size
from loopback import Inbox, address_of, has_ipv6
from test_datagram import Factory, FakeSocket, failing, on_platform, receive_all

import vault_udp_packet as packet
import vault_udp_path
import vault_udp_platform
import vault_udp_socket
from vault_udp_datagram import DatagramSocket
from vault_udp_path import (
    CHECK_INTERVAL,
    CHECK_ROUNDS,
    MAX_RAISE_AFTER,
    RAISE_AFTER,
    RAISE_ROUNDS,
    Path,
    body_size_within,
)
from vault_udp_socket import MessageTooLargeError, UDPSocketClass

V4, V6 = "192.0.2.1", "2001:db8::1"
A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)
A6, B6 = ("2001:db8::1", 1001), ("2001:db8::2", 1002)
BASE_MTU = vault_udp_path.MIN_IPV6_PACKET


def body(packet_size: int, ip: str = V4) -> int:
    return body_size_within(packet_size, ip)


def largest_step(mtu: int) -> int:
    """The size that is found; packets are 15 bytes shorter than it says, see `PACKET_OVERHEAD`."""
    return next(size for size in vault_udp_path.PACKET_SIZES if size - 15 <= mtu)


# ----------------------------------------------------------------------------------------- the state machine


def in_use(path: Path) -> tuple[int, int]:
    return path.size, path.largest


def test_the_overhead_is_that_of_the_public_constants() -> None:
    assert (
        sum(
            getattr(vault_udp_socket, name)
            for name in vault_udp_socket.__all__
            if name.endswith(("HEADER_SIZE", "OVERHEAD"))
        )
        == vault_udp_path.PACKET_OVERHEAD
    )
    assert body(1500) == BODY_SIZE


@pytest.mark.parametrize(
    ("ip", "limit", "expected"),
    [
        (V4, 9000, (1500, 1450, 1420, 1400, 1280, 576)),
        (V4, 1500, (1450, 1420, 1400, 1280, 576)),
        (V4, 1450, (1420, 1400, 1280, 576)),
        (V4, 576, ()),
        (V6, 1500, (1450, 1420, 1400, 1280)),
        (V6, 1280, ()),
        (V6, 576, ()),
    ],
)
def test_the_sizes_to_try_are_below_the_limit_and_not_below_what_every_path_carries(
    ip: str, limit: int, expected: Sequence[int]
) -> None:
    path = Path(ip, body(limit, ip))
    assert path.doubt(0.0) == [body(size, ip) for size in expected]
    assert in_use(path) == (body(limit, ip),) * 2, "to doubt a size is not to lower it"


def test_the_size_that_is_answered_is_used_at_once_and_stays_if_the_others_are_silent() -> None:
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.answered(body(1280), 0.02, 1.0)
    assert in_use(path) == (body(1280), body(1500)), "what must may still have the size in doubt"
    now, asked = 1.0, []
    for _ in range(CHECK_ROUNDS):
        assert path.due_at == now
        asked.append(path.run(now))
        now += CHECK_INTERVAL
    assert asked == [[body(size) for size in (1500, 1450, 1420, 1400)]] * CHECK_ROUNDS
    assert path.run(path.due_at) == ()
    assert in_use(path) == (body(1280), body(1280))
    assert not path.is_default


def test_a_round_asks_only_for_what_is_larger_than_what_was_answered() -> None:
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.answered(body(576), 0.02, 1.0)
    path.run(1.0)
    path.answered(body(1420), 0.02, 1.1)
    path.answered(body(1280), 0.02, 1.1)  # overtaken
    assert path.run(1.25) == [body(1500), body(1450)]
    assert path.size == body(1420)


@pytest.mark.parametrize("rounds", range(CHECK_ROUNDS + 1))
def test_an_answer_of_full_size_ends_the_doubt(rounds: int) -> None:
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.answered(body(1280), 0.02, 1.0)
    for _ in range(rounds):
        path.run(path.due_at)
    path.answered(body(1500), 0.02, path.due_at)
    assert in_use(path) == (body(1500), body(1500))
    assert path.is_default


def test_who_is_far_away_has_time_to_answer() -> None:
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.answered(body(1280), 3.0, 10.0)
    for _ in range(CHECK_ROUNDS):
        path.run(path.due_at)
    assert path.due_at == 10.0 + (CHECK_ROUNDS - 1) * 1.0 + 2 * 3.0


def test_a_doubt_that_nothing_answers_ends_without_a_change() -> None:
    path = Path(V4, body(1500))
    path.doubt(0.0)
    path.doubt(1.0)
    assert path.due_at == 1.0 + vault_udp_path.DOUBT_LASTS
    assert path.run(path.due_at) == ()
    assert path.is_default


def test_when_the_peer_hears_nothing_its_size_is_used_until_ours_is_known() -> None:
    path = Path(V4, body(1500))
    path.question(body(1420), 0.02, 0.0)
    assert in_use(path) == (body(1420), body(1500))
    path.question(body(576), 0.02, 0.0)  # its other ping
    assert path.size == body(1420)
    assert path.run(0.0) == [body(size) for size in (1500, 1450, 1420, 1400, 1280, 576)]
    path.answered(body(1400), 0.02, 0.1)
    while path.doubted:
        path.run(path.due_at)
    assert in_use(path) == (body(1400), body(1400))


def test_a_question_without_any_answer_changes_nothing() -> None:
    path = Path(V4, body(1500))
    path.question(body(1280), 0.02, 0.0)
    while path.doubted:
        path.run(path.due_at)
    assert path.is_default


def test_a_question_that_our_answer_settles() -> None:
    path = Path(V4, body(1500))
    path.question(body(1500), 0.02, 0.0)
    assert path.is_default, "our answer of full size tells"
    path = Path(V4, body(576))
    path.question(body(576), 0.02, 0.0)
    assert path.is_default, "there is nothing below"


def lowered(size: int = 1280, limit: int = 1500) -> Path:
    path = Path(V4, body(limit))
    path.refused(body(limit), body(size), 0.0)
    assert path.size == body(size)
    return path


def test_larger_sizes_are_asked_for_less_and_less_often() -> None:
    path, times = lowered(), []
    for _ in range(9 * RAISE_ROUNDS):
        times.append(path.due_at)
        assert path.run(path.due_at) == [body(size) for size in (1500, 1450, 1420, 1400)]
    rounds = [times[index : index + RAISE_ROUNDS] for index in range(0, len(times), RAISE_ROUNDS)]
    for first, *others in rounds:
        assert others == [first + CHECK_INTERVAL, first + 2 * CHECK_INTERVAL]
    gaps = [after[0] - before[-1] for before, after in zip([[0.0], *rounds], rounds)]
    assert gaps == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert (gaps[0], gaps[-1]) == (RAISE_AFTER, MAX_RAISE_AFTER)


def test_the_largest_that_is_answered_becomes_the_size() -> None:
    path = lowered()
    path.run(10.0)
    path.answered(body(1420), 0.02, 10.1)
    path.answered(body(1400), 0.02, 10.1)
    assert in_use(path) == (body(1420), body(1420))
    assert path.run(path.due_at) == [body(1500), body(1450)]
    path.answered(body(1500), 0.02, 31.0)
    assert path.is_default


@pytest.mark.parametrize(
    ("ip", "carried", "expected"),
    [
        (V4, 1300, 1300),
        (V4, None, 1450),
        (V4, 1500, 1450),  # it says that it carries what it has refused
        (V4, 300, 576),
        (V6, 1300, 1300),
        (V6, 600, 1280),
    ],
)
def test_what_the_system_refuses_lowers_the_size(ip: str, carried: int | None, expected: int) -> None:
    path = Path(ip, body(1500, ip))
    path.refused(body(1500, ip), None if carried is None else body(carried, ip), 0.0)
    assert in_use(path) == (body(expected, ip),) * 2


def test_refusals_without_a_size_go_down_step_by_step_to_the_floor() -> None:
    path, sizes = Path(V4, body(1500)), []
    for _ in range(6):
        path.refused(path.size, None, 0.0)
        sizes.append(path.size)
    assert sizes == [body(size) for size in (1450, 1420, 1400, 1280, 576, 576)]


def test_a_refused_attempt_to_raise_the_size_changes_nothing() -> None:
    path = lowered()
    path.run(10.0)
    path.refused(body(1500), None, 10.0)
    assert in_use(path) == (body(1280), body(1280))


# ------------------------------------------------------------------------------------------------ black holes


Link = Callable[[Datagram], bool]


def everywhere(datagram: Datagram) -> bool:
    return True


def from_a(datagram: Datagram) -> bool:
    return datagram.src in (A, A6)


def from_b(datagram: Datagram) -> bool:
    return datagram.src in (B, B6)


def narrow(net: FakeNet, mtu: int, where: Link = everywhere) -> None:
    """A link that swallows longer packets without a word."""

    def hook(datagram: Datagram) -> Copies:
        if where(datagram) and packet_size(datagram.dst, datagram.data) > mtu:
            return []
        return net.route(datagram)

    net.hook = hook


def size_of(host: Host, peer: tuple[str, int]) -> int:
    mtu: int = host.node.info(host.peer(peer), host.now)["mtu"]
    return mtu


def two(net: FakeNet, a: tuple[str, int] = A, b: tuple[str, int] = B, **options: Any) -> tuple[Host, Host]:
    bob = net.node(b, **options)
    return net.node(a, b, **options), bob


def two_in_session(net: FakeNet, **options: Any) -> tuple[Host, Host]:
    alice, bob = two(net, **options)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    return alice, bob


def exchange_for(net: FakeNet, alice: Host, bob: Host, seconds: float, size: int = 400) -> None:
    """Each sends the other a message of `size` bytes, each half second."""
    end = net.now + seconds

    def both() -> None:
        alice.send(bob.address, b"a" * size)
        bob.send(alice.address, b"b" * size)

    net.every(0.5, both, until=end)
    net.run_until(end)


@pytest.mark.parametrize(("a", "b"), [(A, B), (A6, B6)], ids=["v4", "v6"])
@pytest.mark.parametrize("where", [everywhere, from_a, from_b])
def test_a_handshake_through_a_black_hole(a: tuple[str, int], b: tuple[str, int], where: Link) -> None:
    net = FakeNet(delay=0.01)
    narrow(net, BASE_MTU, where)
    alice, bob = two(net, a, b)
    alice.send(b, b"x" * 1000)
    assert net.run_until(lambda: both_ready(alice, bob), limit=5)
    bob.send(a, b"y" * 1000)
    net.run(2)
    if where is everywhere:
        # In one direction only, who sends there learns of it from the other's silence, and after its first.
        assert bob.messages_from(a) == [b"x" * 1000], "the first message went in a size that passes"
        assert alice.messages_from(b) == [b"y" * 1000]
    alice.send(b, b"later")
    bob.send(a, b"later")
    net.run(1)
    assert bob.messages_from(a)[-1] == alice.messages_from(b)[-1] == b"later"
    if where in (everywhere, from_a):
        assert size_of(alice, b) == body(1280, a[0])
    if where in (everywhere, from_b):
        assert size_of(bob, a) == body(1280, a[0])


@pytest.mark.parametrize("mtu", [1470, 1420, 1280, 576])
@pytest.mark.parametrize("where", [everywhere, from_a, from_b])
@pytest.mark.parametrize("speakers", ["a", "b", "ab"])
def test_a_path_that_shrinks_in_mid_session(mtu: int, where: Link, speakers: str) -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    narrow(net, mtu, where)
    narrowed_at = net.now

    def speak() -> None:
        if "a" in speakers:
            alice.send(B, b"a" * 400)
        if "b" in speakers:
            bob.send(A, b"b" * 400)

    net.every(0.5, speak, until=narrowed_at + 15)
    net.run_until(narrowed_at + 10)
    before = len(bob.received), len(alice.received)
    net.run_until(narrowed_at + 16)
    expected = 10
    assert len(bob.received) - before[0] >= expected * ("a" in speakers)
    assert len(alice.received) - before[1] >= expected * ("b" in speakers)
    assert "lost" not in alice.kinds_of_events(B) + bob.kinds_of_events(A)
    step = largest_step(mtu)
    if "a" in speakers and where in (everywhere, from_a):
        assert size_of(alice, B) == body(step)
    if "b" in speakers and where in (everywhere, from_b):
        assert size_of(bob, A) == body(step)


def test_a_path_that_grows_again_is_noticed() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 10)
    assert size_of(alice, B) == size_of(bob, A) == body(1280)
    net.hook = net.route
    exchange_for(net, alice, bob, 60)
    assert size_of(alice, B) == size_of(bob, A) == BODY_SIZE
    assert alice.peer(B).session._path is bob.peer(A).session._path is None, "and nothing is kept of it"


def test_an_interruption_after_which_less_passes() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net, lifetime=10_000)
    net.hook = lambda datagram: []
    exchange_for(net, alice, bob, 30)
    assert (alice.mode(B), bob.mode(A)) == ("lost", "lost")
    narrow(net, BASE_MTU)
    assert net.run_until(lambda: both_ready(alice, bob), limit=20)
    exchange_for(net, alice, bob, 5)
    assert size_of(alice, B) == size_of(bob, A) == body(1280)


def test_a_lost_peer_is_not_pinged_in_all_sizes() -> None:
    net = FakeNet()
    alice, bob = two_in_session(net, lifetime=10_000)
    bob.kill()
    alice.send(B, b"x")
    assert net.run_until(lambda: alice.mode(B) == "lost")
    before = len(net.sent)
    net.run(60)
    sizes = {packet_size(B, sent.data) for sent in net.sent[before:]}
    assert max(sizes) == packet_size(B, bytes(1024))
    assert body(576) + 64 in {len(sent.data) for sent in net.sent[before:]}


def test_loss_is_seldom_taken_for_a_small_path_and_set_right() -> None:
    """Half a hundredth of the time, taken over several runs: one episode is nearly a hundredth of a run."""
    doubted = below = 0
    for seed in range(5):
        net = FakeNet(seed, loss=0.3, delay=0.05, jitter=0.05)
        alice, bob = two_in_session(net)
        send = functools.partial(alice.send, B, b"so seldom that silence is often suspected")
        net.every(3.0, send, until=1200)
        for _ in range(1200):
            net.run(1)
            doubted += alice.peer(B).session._path is not None
            below += (size_of(alice, B) < BODY_SIZE) + (size_of(bob, A) < BODY_SIZE)
        net.loss = 0.0
        exchange_for(net, alice, bob, 700)
        assert size_of(alice, B) == size_of(bob, A) == BODY_SIZE
    assert doubted > 0
    assert below < 0.005 * 2400 * 5


@pytest.mark.parametrize("seed", range(5))
def test_a_black_hole_is_found_in_spite_of_loss(seed: int) -> None:
    net = FakeNet(seed, loss=0.3, delay=0.05, jitter=0.05)
    alice, bob = two_in_session(net)
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 30)
    before = len(alice.received), len(bob.received)
    exchange_for(net, alice, bob, 60)
    assert len(alice.received) - before[0] > 120 * 0.5
    assert len(bob.received) - before[1] > 120 * 0.5
    assert size_of(alice, B) <= body(1280)
    assert size_of(bob, A) <= body(1280)


def test_no_message_is_lost_to_a_size_in_doubt() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    session = alice.peer(B).session
    path = session._known_path()
    path.question(body(576), 0.02, alice.now)
    session._follow(path)
    large = random.Random(1).randbytes(packet.message_room(BODY_SIZE)) if sys.version_info >= (3, 9) else b""
    large = large or bytes(random.Random(1).choices(range(256), k=packet.message_room(BODY_SIZE)))
    alice.send(B, b"small", large, b"small again")
    assert {len(sent) - 64 for sent in alice.data_sent} == {body(576), BODY_SIZE}
    net.run(1)
    assert bob.messages_from(A) == [b"small", large, b"small again"]
    assert alice.node.counters["sent"] == 3


def test_an_answer_is_no_longer_than_the_ping() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    session = alice.peer(B).session
    assert session.send is not None
    with alice._acting():
        session._confirm(session.send, False, alice.now, body_size=body(1280))
    before = len(net.sent)
    net.run(0.1)
    assert [len(sent.data) - 64 for sent in net.sent[before:] if sent.src == B] == [body(1280)]


def test_the_pings_of_a_doubt_are_all_remembered_until_they_can_be_answered() -> None:
    net = FakeNet(delay=1.5)  # three seconds for a round trip
    alice, bob = two_in_session(net)
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 45)
    assert size_of(alice, B) == size_of(bob, A) == body(1280)


def test_another_endpoint_is_another_path() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 10)
    assert size_of(alice, B) == body(1280)
    net.hook = net.route
    bob.move(("10.0.0.7", 7))
    net.run_until(lambda: alice.peer(B).session.endpoint == ("10.0.0.7", 7), limit=5)
    assert size_of(alice, B) == BODY_SIZE
    session = alice.peer(B).session
    session.move_to(("2001:db8::7", 7))
    assert size_of(alice, B) == BODY_SIZE - 20
    assert alice.peer(B).room == packet.message_room(BODY_SIZE - 20)


def test_a_new_session_with_the_same_endpoint_keeps_the_size() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 10)
    bob.kill()
    bob.restart(A)
    net.run_until(lambda: both_ready(alice, bob), limit=10)
    assert both_ready(alice, bob)
    assert size_of(alice, B) == body(1280)


def test_with_a_fixed_size_nothing_is_found_out() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two(net, finds_sizes=False)
    net.run(1)
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 20)
    assert size_of(alice, B) == BODY_SIZE
    assert {len(sent.data) for sent in net.sent if len(sent.data) not in (512, 1024)} == {BODY_SIZE + 64}


def test_what_fits_follows_the_size_and_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    caplog.set_level(logging.INFO, "vault_udp")
    narrow(net, BASE_MTU)
    exchange_for(net, alice, bob, 10)
    room = packet.message_room(body(1280))
    assert alice.peer(B).room == room
    of_bob = [record.getMessage() for record in caplog.records if str(B) in record.getMessage()]
    assert len(of_bob) == 1
    assert str(room) in of_bob[0]
    assert str(packet.message_room(BODY_SIZE)) in of_bob[0]


# ---------------------------------------------------------------------------------- what the system refuses


def random_bytes(size: int) -> bytes:
    return bytes(random.Random(size).choices(range(256), k=size))


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("mtu", [1470, 1300, 1280, 576])
def test_what_the_system_refuses_is_sent_again_in_less(mtu: int, tells: bool) -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    alice.path_mtu[B], alice.tells_path_mtu = mtu, tells
    messages = [b"one", b"2" * 1300, b"three", bytes(300)]
    alice.send(B, *messages)
    net.run(1)
    assert bob.messages_from(A) == messages
    assert alice.lost_here == []
    assert alice.node.counters["sent"] == alice.peer(B).sent == len(messages)
    step = mtu if tells else largest_step(mtu)
    assert size_of(alice, B) == body(step)
    assert bob.node.counters["received"] == len(messages)


def test_what_fits_no_more_however_hard_compressed_is_counted() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    alice.path_mtu[B] = 1280
    alice.send(B, b"small", random_bytes(packet.message_room(BODY_SIZE)), b"too")
    net.run(1)
    assert bob.messages_from(A) == [b"small", b"too"]
    assert (alice.node.counters["sent"], alice.node.counters["too_large_for_peer"]) == (2, 1)


def test_a_compressed_message_is_compressed_again_or_read_again() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    message = b"a line that comes again and again\n" * 200
    alice.path_mtu[B] = 576
    alice.send(B, packet.fit(message, BODY_SIZE))
    net.run(1)
    assert bob.messages_from(A) == [message]


def test_at_the_floor_it_is_lost_and_told() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    alice.path_mtu[B] = 500
    alice.send(B, b"x")
    assert len(alice.lost_here) == 1
    assert size_of(alice, B) == body(576)


def test_ipv6_is_not_lowered_below_what_every_path_carries() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two(net, A6, B6)
    assert net.run_until(lambda: both_ready(alice, bob))
    alice.path_mtu[B6] = 600
    alice.send(B6, b"x")
    assert size_of(alice, B6) == body(1280, V6)
    assert alice.lost_here


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("mtu", [1400, 576])
def test_a_handshake_over_a_path_that_the_system_knows(mtu: int, tells: bool) -> None:
    net = FakeNet(delay=0.01)
    bob, alice = net.node(B), net.node(A)
    for host, other in ((alice, B), (bob, A)):
        host.path_mtu[other], host.tells_path_mtu = mtu, tells
    alice.add_peer(B)
    assert net.run_until(lambda: both_ready(alice, bob), limit=2), "in the short form, if need be"
    exchange_for(net, alice, bob, 3)
    assert len(alice.received) == len(bob.received) == 6 or len(bob.received) == 7


def test_a_rotation_goes_on_in_the_smaller_size() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net, lifetime=5)
    alice.path_mtu[B] = bob.path_mtu[A] = 576
    exchange_for(net, alice, bob, 60)
    assert "lost" not in alice.kinds_of_events(B) + bob.kinds_of_events(A)
    assert alice.lost_here == bob.lost_here == []


def test_attempts_to_raise_that_the_system_refuses_are_no_losses() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    alice.path_mtu[B] = 1400
    alice.send(B, b"x")
    assert size_of(alice, B) == body(1400)
    net.run(60)
    assert alice.lost_here == []
    assert size_of(alice, B) == body(1400)
    del alice.path_mtu[B]
    net.run(120)
    assert size_of(alice, B) == BODY_SIZE


def test_a_refused_attempt_may_tell_that_even_less_passes() -> None:
    path = lowered(1400)
    path.run(10.0)
    path.refused(body(1500), body(1300), 10.0)
    assert in_use(path) == (body(1300), body(1300))


def test_late_answers_do_not_raise_what_the_system_has_refused() -> None:
    net = FakeNet(delay=0.5)
    alice, _ = two_in_session(net)
    with alice._acting():
        alice.peer(B).session.ping(alice.now)
    alice.path_mtu[B] = 1400
    alice.send(B, b"x")
    net.run(3)
    assert size_of(alice, B) == body(1400)


def sealed_since(net: FakeNet, start: int, source: tuple[str, int]) -> list[Datagram]:
    return [sent for sent in net.sent[start:] if sent.src == source]


def test_a_refused_ping_is_asked_in_less_at_once() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    alice.path_mtu[B] = 1300
    before = len(net.sent)
    with alice._acting():
        alice.peer(B).session.ping(alice.now)
    assert [len(sent.data) - 64 for sent in sealed_since(net, before, A)] == [body(1300)]
    net.run(1)
    assert [len(sent.data) - 64 for sent in sealed_since(net, before, B)] == [body(1300)], "it is answered"


def test_refused_control_is_sealed_again_at_once() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net, lifetime=10_000)
    alice.path_mtu[B] = 1300
    with bob._acting():
        bob.peer(A).session.ping(bob.now)
    assert bob.peer(A).session._pings
    net.run(0.1)
    assert not bob.peer(A).session._pings, "it was answered"


def test_a_refused_full_announcement_is_followed_by_a_short_one_at_once() -> None:
    net = FakeNet(delay=0.01)
    net.node(B)
    alice = net.node(A)
    alice.path_mtu[B] = 576
    alice.add_peer(B)
    net.run(0.0)
    assert [(sent.time, len(sent.data)) for sent in net.sent] == [(0.0, 512)]


def test_where_even_short_announcements_are_refused_we_keep_to_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = FakeNet(delay=0.01)
    alice = net.node(A)
    alice.path_mtu[B] = 500
    actual, refused = alice.node.refused, 0

    def count(*arguments: Any) -> bool:
        nonlocal refused
        refused += 1
        assert refused < 50
        return actual(*arguments)

    monkeypatch.setattr(alice.node, "refused", count)
    alice.add_peer(B)
    net.run(20)
    assert len(alice.lost_here) > 10


@pytest.mark.parametrize("version", [2, 1])
def test_a_refused_announcement_under_the_box_is_made_again_at_once(version: int) -> None:
    net = FakeNet(delay=0.01)
    us, _ = connected(net, version)
    us.path_mtu[THEIRS] = 900
    us.node.base.links[THEIRS].refresh_at = us.now + 1
    us.node.look_at(us.peer(THEIRS), us.now + 1)
    us._sleep()
    before = len(net.sent)
    net.run(1.001)
    assert [len(sent.data) - 64 for sent in sealed_since(net, before, OURS)] == [body(900)]


def test_what_was_sealed_for_a_session_that_is_gone_is_lost() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    _, (sealed,) = alice.node.seal_messages(alice.peer(B), (b"x",), alice.now)
    alice.peer(B).session.close()
    assert not alice.node.refused(B, sealed, 1280, alice.now)
    alice.remove_peer(B)
    assert not alice.node.refused(B, sealed, 1280, alice.now)


def test_what_a_lost_session_was_to_carry_waits() -> None:
    net = FakeNet(delay=0.01)
    alice, _ = two_in_session(net)
    peer = alice.peer(B)
    _, (sealed,) = alice.node.seal_messages(peer, (b"one", b"two"), alice.now)
    peer.session.lost = True
    assert alice.node.refused(B, sealed, 1280, alice.now)
    assert [message for _, message in peer.queue] == [b"one", b"two"]
    assert alice.node.counters["sent"] == 0


def test_a_roamed_peer_is_found_by_its_endpoint() -> None:
    net = FakeNet(delay=0.01)
    alice, bob = two_in_session(net)
    bob.move(("10.0.0.7", 7))
    net.run_until(lambda: alice.peer(B).session.endpoint == ("10.0.0.7", 7), limit=5)
    alice.path_mtu[("10.0.0.7", 7)] = 1400
    alice.send(B, b"x" * 1300)
    net.run(1)
    assert bob.messages_from(A) == [b"x" * 1300]
    assert size_of(alice, B) == body(1400)


@pytest.mark.parametrize("version", [2, 1])
@pytest.mark.parametrize("tells", [True, False])
def test_base_peers_are_lowered_by_refusals_only(version: int, tells: bool) -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net, version)
    us.path_mtu[THEIRS], us.tells_path_mtu = 576, tells
    sent = us.node.counters["sent"]
    text = "long enough to need to be compressed again " * 20
    us.send(THEIRS, text.encode(), b"short")
    net.run(1)
    assert them.texts()[-2:] == [text, "short"]
    assert us.lost_here == []
    assert us.node.counters["sent"] == us.peer(THEIRS).sent == sent + 2
    assert size_of(us, THEIRS) == body(576)
    assert us.peer(THEIRS).room == packet.message_room(body(576))
    before = len(net.sent)
    net.run(60)
    ours = [sent for sent in net.sent[before:] if sent.src == OURS and sent.dst[0] == THEIRS[0]]
    assert ours, "announcements go on"
    assert {len(sent.data) for sent in ours} <= {body(576) + 64, 1024}
    assert us.lost_here == []


def test_a_black_hole_towards_a_base_peer_is_not_noticed() -> None:
    net = FakeNet(delay=0.01)
    us, _ = connected(net)
    narrow(net, BASE_MTU)
    us.send(THEIRS, b"x")
    net.run(30)
    assert size_of(us, THEIRS) == BODY_SIZE


def test_a_session_with_a_former_base_peer_begins_with_its_own_size() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net)
    us.path_mtu[THEIRS] = 576
    us.send(THEIRS, b"x")
    del us.path_mtu[THEIRS]
    assert us.peer(THEIRS).room == packet.message_room(body(576))
    them.kill()
    net.node(THEIRS, OURS)
    assert net.run_until(lambda: us.mode(THEIRS) == "session", limit=300)
    assert us.peer(THEIRS).room == packet.message_room(BODY_SIZE)
    assert size_of(us, THEIRS) == BODY_SIZE


# ------------------------------------------------------------------------------------------------- the socket


@pytest.fixture
def make() -> Iterator[Callable[..., DatagramSocket]]:
    made: list[DatagramSocket] = []

    def make_socket(*args: Any, **options: Any) -> DatagramSocket:
        made.append(DatagramSocket(0, None, *args, **options))
        return made[-1]

    yield make_socket
    for sock in made:
        sock.close()


Make = Callable[..., DatagramSocket]
Options = "list[tuple[int, int, int]]"
FORBIDDING = {
    "linux": [(socket.IPPROTO_IP, 10, 2), (socket.IPPROTO_IPV6, 23, 2)],
    "darwin": [(socket.IPPROTO_IP, 28, 1), (socket.IPPROTO_IPV6, 62, 1)],
    "win32": [(socket.IPPROTO_IP, 14, 1), (socket.IPPROTO_IPV6, 14, 1)],
    "sunos5": [],
}


def recording(made: list[tuple[int, int, int]], *, refuses: bool) -> Factory:
    forbidding = [option for options in FORBIDDING.values() for option in options]

    def prepare(fake: FakeSocket) -> None:
        real = fake.real.setsockopt

        def setsockopt(level: int, option: int, value: int) -> None:
            made.append((level, option, value))
            if (level, option, value) in forbidding:
                if refuses:
                    raise failing("ENOPROTOOPT")
            elif option != -5:
                real(level, option, value)

        fake.__dict__["setsockopt"] = setsockopt

    return Factory(prepare)


@pytest.mark.parametrize("platform", FORBIDDING)
@pytest.mark.parametrize("refuses", [False, True])
def test_fragments_are_forbidden_on_each_platform(
    make: Make, monkeypatch: pytest.MonkeyPatch, platform: str, refuses: bool
) -> None:
    on_platform(monkeypatch, platform)
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    monkeypatch.setattr(vault_udp_platform, "_disable_connection_reset", lambda sock: None)
    options: list[tuple[int, int, int]] = []
    sock = make(recording(options, refuses=refuses), fragments=False)
    assert [option for option in options if option in FORBIDDING[platform]] == FORBIDDING[platform]
    assert sock.send([b"x"], ("127.0.0.1", sock.port)) == 1
    assert receive_all(sock, 1) == [(b"x", ("127.0.0.1", sock.port))]
    options.clear()
    make(recording(options, refuses=refuses))
    assert not [option for option in options if option in FORBIDDING[platform]]


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the MTU of a path")


@on_linux
@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1",
        pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")),
    ],
)
def test_linux_refuses_what_is_too_long_and_tells_the_mtu_of_the_path(make: Make, ip: str) -> None:
    sock = make(fragments=False)
    mtu = sock.path_mtu((ip, sock.port))
    assert mtu is not None
    assert mtu >= 1280
    refused: list[tuple[Any, bytes]] = []

    def take(address: Any, data: bytes) -> bool:
        refused.append((address, data))
        return True

    sock.on_too_long = take
    largest = min(mtu, 65_535) - 8 - (40 if ":" in ip else 20)
    if mtu > 65_535:
        pytest.skip("the loopback carries all that UDP can have")
    assert sock.send([bytes(largest)], (ip, sock.port)) == 1
    assert sock.send([bytes(largest + 1)], (ip, sock.port)) == 0
    assert refused == [((ip, sock.port), bytes(largest + 1))]


def test_the_mtu_of_a_path_is_unknown_where_there_is_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = make()
    assert sock.path_mtu(("fe80::1%5000000", 9)) is None
    on_platform(monkeypatch, "darwin")
    assert sock.path_mtu(("127.0.0.1", sock.port)) is None


def test_what_is_taken_care_of_is_not_counted(make: Make) -> None:
    factory = Factory()
    sock = make(factory)
    sock.gso = False
    taken: list[bytes] = []

    def take(address: Any, data: bytes) -> bool:
        taken.append(data)
        return data != b"2"

    sock.on_too_long = take
    factory.fakes[-1].will("sendto", *[failing("EMSGSIZE")] * 3)
    assert sock.send([b"1", b"2", b"3", b"4"], ("127.0.0.1", sock.port)) == 1
    assert taken == [b"1", b"2", b"3"]
    assert sock.errors == {"EMSGSIZE": 1}
    factory.fakes[-1].will("sendto", failing("EMSGSIZE"), failing("EPERM"))
    assert sock.send([b"5"], ("127.0.0.1", sock.port)) == 0
    assert sock.send([b"6"], ("127.0.0.1", sock.port)) == 0
    assert taken[3:] == [b"5"]
    assert sock.errors == {"EMSGSIZE": 1, "EPERM": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="UDP segmentation is Linux's")
@pytest.mark.parametrize("name", ["EINVAL", "EMSGSIZE"])
def test_a_route_that_is_too_small_for_segments_does_not_end_segmentation(make: Make, name: str) -> None:
    factory = Factory()
    sock = make(factory)
    if not sock.gso:
        pytest.skip("no segmentation here")
    taken: list[bytes] = []

    def take(address: Any, data: bytes) -> bool:
        taken.append(data)
        return True

    sock.on_too_long = take
    factory.fakes[-1].will("sendmsg", failing(name))
    factory.fakes[-1].will("sendto", failing("EMSGSIZE"), failing("EMSGSIZE"), None)
    assert sock.send([b"11", b"22", b"3"], ("127.0.0.1", sock.port)) == 1, "a shorter last one passes"
    assert taken == [b"11", b"22"]
    assert sock.gso
    assert sock.errors == {}


# ------------------------------------------------------------------------------------------- the whole socket


class SmallRoute(socket.socket):
    """A socket whose system refuses what is longer than its route carries, and tells."""

    mtu: int | None = None

    def _check(self, size: int) -> None:
        if self.mtu is not None and size + 28 > self.mtu:
            raise failing("EMSGSIZE")

    def sendto(self, *args: Any) -> int:
        self._check(len(args[0]))
        return super().sendto(*args)

    def sendmsg(self, buffers: Any, *args: Any) -> int:
        buffers = list(buffers)
        if self.mtu is not None and max(map(len, buffers)) + 28 > self.mtu:
            raise failing("EINVAL")
        return super().sendmsg(buffers, *args)


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[UDPSocketClass, UDPSocketClass]]]:
    opened: list[UDPSocketClass] = []
    monkeypatch.setattr("vault_ip.get_min_mtu", lambda: 1500)

    def open_pair(**options: Any) -> tuple[UDPSocketClass, UDPSocketClass]:
        real = DatagramSocket

        def with_route(port: int, bind_address: str | None, **kwargs: Any) -> DatagramSocket:
            return real(port, bind_address, SmallRoute, **kwargs)

        monkeypatch.setattr(vault_udp_socket, "DatagramSocket", with_route)
        monkeypatch.setattr(DatagramSocket, "path_mtu", lambda self, address: self._socket.mtu)
        opened.extend(UDPSocketClass(0, None, **options) for _ in range(2))
        a, b = opened
        a.add_peer(address_of(b))
        assert a.wait_ready(address_of(b), 10)
        return a, b

    yield open_pair
    for sock in opened:
        sock.stop()


Routed = Callable[..., "tuple[UDPSocketClass, UDPSocketClass]"]


def set_route(sock: UDPSocketClass, mtu: int) -> None:
    route: Any = sock._datagrams._socket
    route.mtu = mtu


def mtu_of(sock: UDPSocketClass, peer: UDPSocketClass) -> int:
    info = sock.get_peer_info(address_of(peer))
    assert info is not None
    mtu: int = info["mtu"]
    return mtu


def test_messages_arrive_though_the_route_has_shrunk_and_counters_add_up(routed: Routed) -> None:
    a, b = routed()
    inbox = Inbox(b)
    assert mtu_of(a, b) == a.get_stats()["mtu"] == 1393
    set_route(a, 1300)
    texts = [f"{number} ".ljust(1000, ".") for number in range(300)]
    for text in texts:
        a.send_data(text, address_of(b))
    assert sorted(inbox.wait_for_texts(300)) == sorted(texts)
    assert mtu_of(a, b) == 1300 - vault_udp_path.PACKET_OVERHEAD
    counters = a.get_stats()["counters"]
    assert counters["sent"] == 300
    assert "socket_EMSGSIZE" not in counters
    assert a.get_stats()["mtu"] == 1393, "of the socket"


def test_too_large_is_judged_by_what_the_peer_takes_now(routed: Routed) -> None:
    a, b = routed()
    set_route(a, 1300)
    inbox = Inbox(b)
    a.send_data("x", address_of(b))
    inbox.wait_for_text("x")
    with pytest.raises(MessageTooLargeError, match=str(packet.payload_room(1300 - 107))):
        a.send_data(random_bytes(1300), address_of(b))
    with pytest.raises(MessageTooLargeError, match=str(packet.payload_room(1300 - 107))):
        a.send_data(random_bytes(1300))
    a.send_data(random_bytes(1300), ("127.0.0.1", 9))  # of which nothing is known
    a.send_data(random_bytes(1150), address_of(b))


def test_with_mtu_given_nothing_is_forbidden_or_found_out(routed: Routed) -> None:
    a, b = routed(mtu=1400)
    assert mtu_of(a, b) == 1400 - vault_udp_path.PACKET_OVERHEAD
    set_route(a, 1300)
    a.send_data("x", address_of(b))
    assert a.get_stats()["counters"]["socket_EMSGSIZE"] == 1
    assert mtu_of(a, b) == 1400 - vault_udp_path.PACKET_OVERHEAD
    if sys.platform == "linux":
        option = a._datagrams._socket.getsockopt(socket.IPPROTO_IP, 10)
        assert option != 2


@on_linux
def test_without_mtu_fragments_are_forbidden_also_on_the_next_port(routed: Routed) -> None:
    a, _ = routed()
    for _ in range(2):
        sock = a._datagrams._socket
        assert sock.getsockopt(socket.IPPROTO_IP, 10) == 2
        if sock.family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, 23) == 2
        a.update_recv_port(0)


def test_a_route_that_shrinks_after_a_change_of_port(routed: Routed) -> None:
    a, b = routed()
    inbox = Inbox(b)
    a.update_recv_port(0)
    set_route(a, 1300)
    a.send_data("x" * 1000, address_of(b))
    inbox.wait_for_text("x" * 1000)
    assert mtu_of(a, b) == 1300 - vault_udp_path.PACKET_OVERHEAD


def test_jumbo_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault_ip.get_min_mtu", lambda: 9000)
    with UDPSocketClass(0, None) as a, UDPSocketClass(0, None) as b:
        arrived: list[bytes] = []
        inbox = Inbox(b)
        b.udp_recv_bytes.connect(lambda data, addr: arrived.append(data))
        message = random_bytes(8800)
        a.send_data(message, address_of(b))
        a.send_data("after it", address_of(b))
        inbox.wait_for_text("after it")
        assert message in arrived


def test_a_jumbo_path_with_an_ordinary_network_on_it() -> None:
    net = FakeNet(delay=0.01)
    narrow(net, 1500)
    alice, bob = two(net, body_size=body(9000))
    alice.send(B, b"x" * 1000)
    assert net.run_until(lambda: both_ready(alice, bob), limit=5)
    net.run(4)
    assert size_of(alice, B) == size_of(bob, A) == body(1500)
    assert bob.messages_from(A) == [b"x" * 1000]


def test_an_end_with_jumbo_frames_and_one_without() -> None:
    net = FakeNet(delay=0.01)
    narrow(net, 1500)
    bob = net.node(B)
    alice = net.node(A, B, body_size=body(9000))
    assert net.run_until(lambda: both_ready(alice, bob), limit=5)
    exchange_for(net, alice, bob, 10)
    assert size_of(alice, B) == size_of(bob, A) == body(1500)


def test_an_idle_session_has_no_path(routed: Routed) -> None:
    a, b = routed()
    with a._lock:
        assert a._node.table.by_name[address_of(b)].session._path is None


def test_nothing_is_sent_to_base_peers_that_is_longer_than_a_lowered_link() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net)
    assert isinstance(them, BaseHost)
    us.path_mtu[THEIRS] = 1280
    us.send(THEIRS, b"x")
    assert size_of(us, THEIRS) == body(1280)
    with us._acting():
        us.node.lifetime_changed(us.now)
    net.run(100)
    assert us.lost_here == []
