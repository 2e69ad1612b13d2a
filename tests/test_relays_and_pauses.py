# SPDX-License-Identifier: Apache-2.0
"""Who passes on, withholds or repeats what others said, pauses of our own, and names that have two meanings.

None of that keeps a peer out, chooses its name, takes its key back, loses it, or loses what was to be sent.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Sequence

import pytest
from fakenet import EPOCH, Address, Copies, Datagram, FakeNet, Host, both_ready
from loopback import PATIENCE, address_of, eventually, on_posix, pair

import vault_udp_carrier
import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_carrier import LANE_SIZE, SMALL_LANE_SIZE
from vault_udp_errors import check_keepalive
from vault_udp_identity import KnownPeers
from vault_udp_keys import FLAG_COALESCE, Hello, LocalKeys, Pair, read_hello_untrusted
from vault_udp_socket import InvalidArgumentError, StoppedError, UDPSocketClass

A, B, M = ("10.0.0.1", 1000), ("10.0.0.2", 1000), ("10.9.9.9", 666)
A6, B6 = ("fd00::1", 1000), ("fd00::2", 1000)
NO_KEY, NO_NONCE = bytes(32), bytes(16)
CONFIRM = b'{"type":"confirm","got":true}'
KEY = crypto.bytes_to_b64_str(crypto.sign_public_of(bytes(range(32))))


def hello_in(datagram: bytes) -> Hello | None:
    """The hello of a clear announcement; None for anything else."""
    with contextlib.suppress(packet.PacketError):
        blob = control_format.read_announcement(
            control_format.read_json(packet.read_body(datagram).control)
        ).hello
        return read_hello_untrusted(blob) if blob else None
    return None


def announcement(local: LocalKeys, answered: Hello | None = None, *, nonce: bytes = NO_NONCE) -> bytes:
    """A short announcement: with a valid echo if it answers a hello, and whatever nonce its author likes."""
    blob = Hello(
        FLAG_COALESCE,
        0,
        EPOCH,
        local.sign_public,
        local.current.public,
        answered.sign if answered else NO_KEY,
        answered.enc if answered else NO_KEY,
        nonce,
        answered.nonce if answered else NO_NONCE,
    ).pack()
    proof = crypto.sign_detached(local.sign_seed, blob)
    members = {"hello": crypto.bytes_to_b64_str(blob), "proof": crypto.bytes_to_b64_str(proof)}
    return control_format.make_announcement_body(members, control_format.SHORT_ANNOUNCEMENT_SIZE)


class Relay:
    """Sees nothing of what two hosts send to each other, but lets `other` sign the nonce of `victim`.

    The victim then has, at the relay's address, a hello of the other one with a valid echo.
    """

    def __init__(self, net: FakeNet, victim: Address, other: Address) -> None:
        self.victim, self.other = victim, other
        self.end = net.outsider(M)
        self.end.on_datagram = self._pass_on
        self.local = LocalKeys(bytes(range(32)), 0.0, EPOCH)
        self.relayed = 0
        self.end.send(victim, announcement(self.local))
        net.run(0.5)

    def _pass_on(self, source: Address, datagram: bytes) -> None:
        hello = hello_in(datagram)
        if hello is None:
            return
        if source == self.victim and hello.to_sign == NO_KEY:
            self.end.send(self.other, announcement(self.local, nonce=hello.nonce))
        elif source == self.other:
            self.relayed += 1
            self.end.send(self.victim, datagram)


@pytest.fixture
def relayed() -> tuple[FakeNet, Host, Host]:
    """A, which has B's hello from M's address, and B, which knows of nobody."""
    net = FakeNet(seed=1)
    a, b = net.node(A), net.node(B)
    assert Relay(net, A, B).relayed == 1
    return net, a, b


def ready_pair(**options: float) -> tuple[FakeNet, Host, Host]:
    """Two hosts in a session, three seconds later."""
    net = FakeNet(seed=1, delay=0.01)
    a, b = net.node(A, B, **options), net.node(B, A, **options)
    assert net.run_until(lambda: both_ready(a, b))
    net.run(3)
    return net, a, b


def two_names() -> tuple[FakeNet, Host, Host]:
    """A host that has added both addresses of another."""
    net = FakeNet(seed=1)
    return net, net.node(A, alias=A6), net.node(B, alias=B6)


# ------------------------------------------------------------------------------- hellos passed on, held back


def test_a_relayed_hello_does_not_keep_an_added_peer_out(relayed: tuple[FakeNet, Host, Host]) -> None:
    net, a, b = relayed
    a.add_peer(B)
    a.send(B, b"hello")
    net.run(5)
    assert b.received == [(A, b"hello")]
    assert a.mode(B) == "session"


def test_a_relayed_hello_does_not_keep_out_peers_that_add_each_other(
    relayed: tuple[FakeNet, Host, Host],
) -> None:
    net, a, b = relayed
    a.add_peer(B)
    b.add_peer(A)
    assert net.run_until(lambda: both_ready(a, b), 5)


def test_a_relayed_hello_does_not_choose_the_name_of_a_peer(relayed: tuple[FakeNet, Host, Host]) -> None:
    net, a, b = relayed
    b.add_peer(A)
    b.send(A, b"hello")
    net.run(10)
    assert a.received == [(B, b"hello")]


def test_a_hello_that_led_nowhere_does_not_keep_data_from_being_announced_for() -> None:
    net = FakeNet(seed=1)
    a, b = net.node(A), net.node(B)

    def lose_what_b_seals(datagram: Datagram) -> Copies:
        return net.route(datagram) if datagram.src != B or hello_in(datagram.data) else []

    net.hook = lose_what_b_seals
    b.add_peer(A)
    net.run(3)
    b.kill()
    net.hook = net.route
    net.run(60)
    assert B in a.node.table.by_name
    b.restart()
    a.send(B, b"hello")
    net.run(30)
    assert b.received == [(A, b"hello")]


def test_a_withheld_rekey_of_a_process_that_died_does_not_take_the_key_back() -> None:
    net, a, b = ready_pair(lifetime=20)
    net.delay = 0.05
    held: list[bytes] = []

    def hold(datagram: Datagram) -> Copies:
        if datagram.src != B:
            return net.route(datagram)
        held.append(datagram.data)
        return []

    net.hook = hold
    epoch = b.node.local.current.epoch
    assert net.run_until(lambda: b.node.local.current.epoch > epoch and bool(held))
    net.run(0.5)
    b.kill()
    net.hook = net.route
    net.run(1)
    b.restart(A)
    key = b.node.local.current.public
    assert net.run_until(lambda: a.peer(B).session.enc == key, 10)
    assert a.peer(B).session.send is not None  # what was held back still opens
    for datagram in held:
        net.inject(B, A, datagram)
    assert a.node.counters["stale_hello"] > 0
    assert net.run_until(lambda: both_ready(a, b), 5)
    assert a.peer(B).session.enc == key
    came_back = net.now
    net.run(90)
    assert [e for t, e in a.events + b.events if e.kind == "lost" and t > came_back] == []


def test_an_added_peer_does_not_make_us_remember_a_pair_for_each_of_its_hellos() -> None:
    net = FakeNet(seed=1)
    a, end = net.node(A, lifetime=86400), net.outsider(M)
    a.add_peer(M)
    local = LocalKeys(bytes(range(32)), 0.0, EPOCH)
    seen: list[Hello] = []

    def keep(source: Address, datagram: bytes) -> None:
        hello = hello_in(datagram)
        if hello is not None:
            seen.append(hello)

    def change_key() -> None:
        theirs = seen[-1]
        local.rotate()
        end.send(A, announcement(local, theirs))
        sealing = Pair(local, theirs.sign, local.current, theirs.enc)
        confirm = sealing.seal([packet.make_control_body(CONFIRM, 200)], EPOCH + net.now)[0]
        net.at(net.now + 0.005, lambda: end.send(A, confirm))

    end.on_datagram = keep
    net.run(0.5)
    net.every(5, lambda: end.send(A, announcement(local)), net.now + 20)
    net.every(0.02, change_key, net.now + 20)
    net.run(20)
    assert a.node.counters["too_many_keys"] > 500
    assert 5 <= len(a.node.retired) <= 25  # one a second


# ------------------------------------------------------------------------- keys for a peer with two names


def test_keys_for_a_second_name_do_not_end_the_session_under_it() -> None:
    net, a, b = two_names()
    a.add_peer(B)
    a.add_peer(B6)
    assert net.run_until(lambda: a.mode(B) == a.mode(B6) == "session", 10)
    net.run(2)
    name = a.peer(B6).names[1]
    a.encryption.update_peer_keys(name, b.encryption.enc_public_key, b.encryption.sign_public_key)
    net.run(10)
    a.send(name, b"hello")
    net.run(10)
    assert a.mode(name) == "session"
    assert [message for _, message in b.received] == [b"hello"]


def test_keys_for_a_second_name_do_not_lift_a_supplied_identity() -> None:
    net, a, b = two_names()
    rogue = net.node(M)
    a.add_peer(B)
    a.add_peer(B6, b.sign_public)
    assert net.run_until(lambda: a.mode(B) == a.mode(B6) == "session", 10)
    net.run(2)
    name = a.peer(B6).names[1]
    a.encryption.update_peer_keys(name, rogue.encryption.enc_public_key, rogue.encryption.sign_public_key)
    net.run(3)
    assert a.mode(name) == "session"
    assert a.peer(name).identity == b.sign_public


@pytest.mark.parametrize("line", [f"fd00::1 11000 {KEY}\n", f"#::1 11000 {KEY}\n"])
def test_a_line_that_ends_alike_does_not_keep_an_identity_from_being_written(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / "known"
    path.write_text(line, encoding="utf-8")
    KnownPeers(path).remember(("::1", 11000), KEY)
    assert KnownPeers(path).key_of(("::1", 11000)) == base64.b64decode(KEY)


# ------------------------------------------------------------------------------------- pauses of our own


def wake_late(host: Host, seconds: float) -> None:
    """The process stood still: its clock went on, and its timers run before it reads what has come."""
    host._clock_origin += seconds
    with host._acting():
        host.node.run_timers(host.now)


def test_a_pause_of_our_own_does_not_release_a_pin() -> None:
    net, a, b = ready_pair()
    with a._acting(), pytest.raises(packet.PacketError):
        a.node.check_identity(a.peer(B), bytes(32), a.now, echoed=True)
    wake_late(a, 4)
    net.run(0.5)
    assert a.peer(B).identity == b.sign_public
    assert "lost" not in a.kinds_of_events(B)


def test_a_pause_of_our_own_does_not_lose_a_peer() -> None:
    net, a, _ = ready_pair()
    a.send(B, b"data")
    wake_late(a, 8)
    net.run(0.5)
    assert "lost" not in a.kinds_of_events(B)


@pytest.mark.parametrize("keepalive", [1e-20, 0.5, float("nan")])
def test_a_keepalive_that_the_clock_does_not_resolve_is_refused(keepalive: float) -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1 second"):
        check_keepalive(keepalive)


# ------------------------------------------------------------------------------------- the way of messages


@on_posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("to_all", [False, True])
def test_a_child_forked_in_a_burst_does_not_swallow_messages(to_all: bool) -> None:
    with pair() as (a, b):
        name = address_of(b)
        with a._lock:
            a._lane_locked(a._by_name[name])
            child = os.fork()
            if child == 0:
                try:
                    a.send_data(b"lost", None if to_all else name)
                except StoppedError:
                    os._exit(0)
                finally:
                    os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("to_all", [False, True])
def test_no_lane_takes_messages_while_the_socket_stops(monkeypatch: pytest.MonkeyPatch, to_all: bool) -> None:
    sending, go_on = threading.Event(), threading.Event()

    def send(datagrams: Sequence[bytes], _: Address) -> int:
        sending.set()
        go_on.wait(PATIENCE)
        return len(datagrams)

    with pair() as (a, b):
        name = address_of(b)
        peer = a._by_name[name]
        monkeypatch.setattr(a._datagrams, "send", send)
        with a._lock:
            peer.lane.append(b"first")
            a._lane_locked(peer)
        assert sending.wait(PATIENCE)
        stopper = threading.Thread(target=a.stop)
        stopper.start()
        eventually(lambda: a._stopped, "it is being stopped")
        peer.laned = True  # as if the send thread had not been told yet
        with pytest.raises(StoppedError):
            a.send_data(b"lost", None if to_all else name)
        go_on.set()
        stopper.join()


def test_a_session_lost_in_a_burst_does_not_change_the_order_of_messages() -> None:
    with pair() as (a, b):
        name = address_of(b)
        peer = a._by_name[name]
        with a._lock:
            a._lane_locked(peer)
            a.send_data(b"1", name)
            peer.session.lost = True
            a.send_data("2", name)
            a._take_batches_locked(0.0)
            order = [message for _, message in peer.queue]
            peer.session.lost = False
        assert order == [b"1", b"2"]


def test_small_messages_that_share_no_datagrams_wait_for_room_as_others_do() -> None:
    with pair() as (a, b):
        peer = a._by_name[address_of(b)]
        cases: list[tuple[int, bytes, int]] = [
            (0, b"small", LANE_SIZE),
            (FLAG_COALESCE, b"small", SMALL_LANE_SIZE),
            (FLAG_COALESCE, packet.compress_frame(bytes(5000), 100), LANE_SIZE),
        ]
        with a._lock:
            for flags, message, most in cases:
                peer.session.flags = flags
                peer.lane.append(message)
                a._lane_locked(peer)
                assert a._lane_size == most
                a._take_batches_locked(0.0)


def test_more_lanes_than_room_for_all_do_not_stop_the_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_carrier, "LANES_SIZE", 2)
    with UDPSocketClass(0) as hub, UDPSocketClass(0) as b, UDPSocketClass(0) as c, UDPSocketClass(0) as d:
        for other in (b, c, d):
            hub.add_peer(address_of(other))
            assert hub.wait_ready(address_of(other), PATIENCE)
        with hub._lock:
            for other in (b, c, d):
                hub._lane_locked(hub._by_name[address_of(other)])
            assert hub._lane_size >= 1


def test_two_changes_of_the_port_during_a_callback_do_not_leave_a_socket_open() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as first, socket.socket(type=socket.SOCK_DGRAM) as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (first, second)]
    inside, go_on = threading.Event(), threading.Event()

    def wait(data: object, address: Address) -> None:
        inside.set()
        go_on.wait(PATIENCE)

    with pair() as (a, b):
        a.udp_recv_data.connect(wait)
        b.send_data("x", address_of(a))
        try:
            assert inside.wait(PATIENCE)
            a.update_recv_port(ports[0])
            between = a._datagrams
            a.update_recv_port(ports[1])
        finally:
            go_on.set()
        eventually(lambda: between._socket.fileno() == -1, "the socket in between is closed")
