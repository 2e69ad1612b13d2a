# SPDX-License-Identifier: Apache-2.0
"""Clocks that differ, jump and stand still, and what rotations leave of the past.

Base peers and their clocks: `test_base_mode.py`.
"""

from __future__ import annotations

import gc
import itertools
from typing import Callable

import pytest
from fakenet import Address, Copies, Datagram, FakeNet, Host, both_ready

import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_encryption import MAX_MESSAGE_AGE_SECONDS

A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)
HOUR, DAY = 3600.0, 86400.0


def session(lifetime: float = 1e6, wall_offset: float = 0.0) -> tuple[FakeNet, Host, Host]:
    net = FakeNet(seed=1, delay=0.01)
    bob = net.node(B, A, lifetime=lifetime)
    alice = net.node(A, B, lifetime=lifetime, wall_offset=wall_offset)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    return net, alice, bob


def exchange(alice: Host, bob: Host) -> None:
    alice.send(B, b"x")
    bob.send(A, b"y")


def jump_monotonic(host: Host, seconds: float) -> None:
    """The clock that should not jump does so, as on a machine that is moved to other hardware."""
    host._clock_origin += seconds
    host.send(B, b"the timers are looked at")


@pytest.mark.parametrize("offset", [3 * HOUR, -3 * HOUR, 40 * DAY, -40 * DAY])
def test_peers_whose_clocks_differ_exchange_messages_within_a_second(offset: float) -> None:
    net = FakeNet(delay=0.05)
    bob, alice = net.node(B), net.node(A, wall_offset=offset)
    bob.on_message = lambda address, message: bob.send(address, b"re " + message)
    alice.add_peer(B)
    alice.send(B, b"what time is it?")
    assert net.run_until(lambda: alice.received == [(B, b"re what time is it?")], limit=1)
    assert not alice.node.counters["outside_window"]
    assert not bob.node.counters["outside_window"]


@pytest.mark.parametrize("jump", [3 * DAY, -3 * DAY])
def test_a_peer_that_is_restarted_with_another_time_is_understood_at_once(jump: float) -> None:
    net, alice, bob = session()

    def route(datagram: Datagram) -> Copies:
        """The answers to pings, which tell the time more exactly than the hello does, are lost."""
        is_control = datagram.src == B and not packet.looks_clear(datagram.data)
        return [] if is_control and datagram.data not in bob.data_sent else net.route(datagram)

    net.hook = route
    bob.kill()
    bob.jump_wall(jump)
    bob.restart(A)
    bob.send(A, b"what time is it?")
    assert net.run_until(lambda: alice.received == [(B, b"what time is it?")], limit=1)
    assert not alice.node.counters["outside_window"]


def test_of_many_datagrams_that_are_late_the_first_asks_for_the_time() -> None:
    net, alice, bob = session()
    late = [alice.peer(B).session.seal_messages([b"late"], alice.now)[0] for _ in range(10)]
    net.run(MAX_MESSAGE_AGE_SECONDS + 1)
    before = len(net.sent)
    for datagram in late:
        net.inject(A, B, datagram)
    net.run(0.015)
    assert bob.node.counters["outside_window"] == 10
    assert [sent.dst for sent in net.sent[before:] if sent.src == B] == [A]


JUMPS: dict[str, Callable[[Host], None]] = {
    "wall clock ahead": lambda host: host.jump_wall(3 * DAY),
    "wall clock back": lambda host: host.jump_wall(-3 * DAY),
    "suspended for an hour": lambda host: host.suspend(HOUR),
    "suspended for a day": lambda host: host.suspend(DAY),
    "monotonic clock ahead": lambda host: jump_monotonic(host, 3 * DAY),
}


@pytest.mark.parametrize("lifetime", [60, 1e6])
@pytest.mark.parametrize("jump", JUMPS)
def test_messages_flow_again_within_ten_seconds_of_a_jump(jump: str, lifetime: float) -> None:
    net, alice, bob = session(lifetime)
    net.run(20)
    JUMPS[jump](alice)
    jumped_at, numbers = net.now, itertools.count()

    def talk() -> None:
        number = next(numbers)
        alice.send(B, b"from alice %d" % number)
        bob.send(A, b"from bob %d" % number)

    net.every(0.5, talk, until=jumped_at + 60)
    net.run_until(jumped_at + 61)
    # What was sent 10 s after the jump and later has all arrived.
    late = range(20, next(numbers))
    assert {b"from alice %d" % number for number in late} <= set(bob.messages_from(A))
    assert {b"from bob %d" % number for number in late} <= set(alice.messages_from(B))
    if jump.startswith("wall"):
        assert not alice.refused
        assert not bob.refused


@pytest.mark.parametrize("jump", ["none", *JUMPS])
@pytest.mark.parametrize("offset", [0.0, 3 * HOUR, -3 * HOUR])
def test_the_replay_window_is_as_tight_whatever_the_clocks_say(offset: float, jump: str) -> None:
    net, alice, bob = session(wall_offset=offset)
    if jump != "none":
        JUMPS[jump](alice)
        net.every(0.5, lambda: exchange(alice, bob), until=net.now + 10)
        net.run(11)
    for sender, receiver in ((alice, bob), (bob, alice)):
        for delay, accepted in ((MAX_MESSAGE_AGE_SECONDS - 1, True), (MAX_MESSAGE_AGE_SECONDS + 1, False)):
            message = b"held back for %d s" % delay
            held = hold_back(net, sender, receiver.address, message)
            net.run(delay)
            net.inject(sender.address, receiver.address, held)
            assert ((sender.address, message) in receiver.received) == accepted
            reasons = [reason for _, reason, _, data in receiver.refused if data == held]
            assert reasons == ([] if accepted else ["outside_window"])
        for skew, accepted in ((-59.0, True), (-61.0, False), (59.0, True), (61.0, False)):
            before = len(receiver.received)
            net.inject(sender.address, receiver.address, stamped(sender, receiver.address, skew))
            assert len(receiver.received) == before + accepted


def hold_back(net: FakeNet, sender: Host, address: Address, message: bytes) -> bytes:
    """Take the datagram with this message from the wire."""
    held: list[bytes] = []

    def hold(datagram: Datagram) -> Copies:
        held.append(datagram.data)
        return []

    net.hook = hold
    sender.send(address, message)
    net.hook = net.route
    (datagram,) = held
    return datagram


def stamped(sender: Host, address: Address, skew: float) -> bytes:
    """A datagram of the sender's, stamped `skew` seconds off its session clock."""
    pair = sender.peer(address).session.send
    assert pair is not None
    body = packet.make_payload_body(packet.store_frame(b"stamped"), 1393)
    return pair.seal([body], sender.node.local.session_time(sender.now) + skew)[0]


# -------------------------------------------------------------------------------------- forward secrecy


def held_by(host: Host) -> list[bytes]:
    """Every byte string that can be reached from the host's node, buffers of the C library included."""
    found: list[bytes] = []
    seen: set[int] = set()
    agenda: list[object] = [host.node]
    while agenda:
        thing = agenda.pop()
        if id(thing) in seen or isinstance(thing, (type, Host, FakeNet)):
            continue
        seen.add(id(thing))
        if isinstance(thing, (bytes, bytearray)):
            found.append(bytes(thing))
        elif type(thing).__name__ == "buffer":
            found.append(thing[:])  # type: ignore[index]
        elif hasattr(thing, "__code__"):
            agenda += [cell.cell_contents for cell in thing.__closure__ or ()]  # type: ignore[attr-defined]
        elif type(thing).__name__ != "module":
            agenda += gc.get_referents(thing)
    return found


def opens(recording: bytes, strings: list[bytes], publics: set[bytes], identities: set[bytes]) -> bool:
    """Whether a recording opens under any of the strings, as a key or as a private key with a public one."""
    secrets = {string for string in strings if len(string) == 32}
    keys = set(secrets)
    for secret in secrets:
        mine = crypto.enc_public_of(secret)
        for theirs in publics:
            try:
                shared = crypto.shared_key(secret, theirs)
            except crypto.CryptoError:
                continue
            keys.add(shared)
            for one, other in itertools.permutations(identities, 2):
                for text in (one + other + mine + theirs, one + other + theirs + mine):
                    keys.add(crypto.derive(shared, text, 40)[:32])
    return any(opens_under(key, recording) for key in keys)


def opens_under(key: bytes, recording: bytes) -> bool:
    try:
        crypto.open_sealed(key, recording)
    except crypto.DecryptionError:
        return False
    return True


def announced_keys(net: FakeNet) -> set[bytes]:
    """The session keys in the announcements that a listener has recorded."""
    clear = [datagram.data for datagram in net.sent if len(datagram.data) in (512, 1024)]
    blobs = [control_format.read_json(packet.read_body(data).control)["hello"] for data in clear]
    return {crypto.b64_str_to_bytes(str(blob))[70:102] for blob in blobs}


@pytest.mark.parametrize("afterwards", ["they talk on", "they fall silent", "one leaves", "one is lost"])
def test_a_recording_cannot_be_opened_after_two_rotations_of_both(afterwards: str) -> None:
    net = FakeNet(seed=1, delay=0.01)
    bob, alice = net.node(B, lifetime=7), net.node(A, B, lifetime=5)
    assert net.run_until(lambda: both_ready(alice, bob))
    recordings, identities = [], {alice.sign_public, bob.sign_public}
    for sender, address in ((alice, B), (bob, A)):
        sender.send(address, b"a secret of today")
        recordings.append(sender.data_sent[-1])
    net.run(0.1)
    publics = announced_keys(net)
    epochs = [host.node.local.current.epoch for host in (alice, bob)]
    for host, recording in itertools.product((alice, bob), recordings):
        assert opens(recording, held_by(host), publics, identities), "or this test does not look everywhere"

    if afterwards == "they talk on":
        net.every(0.5, lambda: exchange(alice, bob), until=30)
    elif afterwards == "one leaves":
        alice.remove_peer(B)
    elif afterwards == "one is lost":
        net.hook = lambda datagram: []
    assert net.run_until(
        lambda: all(host.node.local.current.epoch >= epoch + 2 for host, epoch in zip((alice, bob), epochs))
    )
    net.run(0.1)
    # Also with all that was announced on the wire, and with both memories together.
    held = held_by(alice) + held_by(bob)
    publics |= {string for string in held if len(string) == 32}
    for recording in recordings:
        assert not opens(recording, held, publics, identities)
    if afterwards == "they talk on":
        assert not any(b"a secret of today" in string for string in held)
