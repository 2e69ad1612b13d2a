# SPDX-License-Identifier: Apache-2.0
"""Deployed base peers meet a node, on the fake network and on loopback: keys, ports, clocks, attacks."""

from __future__ import annotations

import base64
import json
import queue
import random
import time
from typing import Any, Iterator

import msgpack
import nacl.public
import nacl.signing
import pytest
import pyzstd
from base_net import (
    ATTACKER,
    FORGETTING,
    OTHER_SOURCE_PORT,
    OURS,
    PORT_HABITS,
    THEIRS,
    VERSIONS,
    Address,
    BaseHost,
    Nets,
    both_know,
    connected,
    exchange,
    keys_tried_by,
    read_clear,
    sent_by,
    with_application_keys,
)
from base_peer import (
    BasePeer,
    BasePeerOnSockets,
    announcement_members,
    make_announcement_body,
    make_body,
    make_data_body,
    seal_body,
    to_b64,
)
from fakenet import EPOCH, SEALED_SIZE, FakeNet

from vault_udp_control import SHORT_ANNOUNCEMENT_SIZE
from vault_udp_socket import UDPSocketClass


@pytest.fixture(name="new_net")
def _new_net() -> Iterator[Nets]:
    nets = Nets()
    yield nets
    nets.check()


# ------------------------------------------------------------------------------------- who begins, and when


@VERSIONS
@PORT_HABITS
@pytest.mark.parametrize("who_adds", ["they", "both, we first", "both, they first"])
def test_keys_are_exchanged_within_a_second(
    new_net: Nets, version: int, source_port: int, who_adds: str
) -> None:
    net = new_net()
    us, them = net.node(OURS), BaseHost(net, version, source_port=source_port)
    if who_adds == "both, they first":
        them.add_peer(OURS)
        us.add_peer(THEIRS)
    elif who_adds == "both, we first":
        us.add_peer(THEIRS)
        net.run(0.005)  # the two announcements cross
        them.add_peer(OURS)
    else:
        them.add_peer(OURS)
    us.send(THEIRS, b"waits for the keys")
    assert net.run_until(lambda: both_know(us, them) and them.texts() == ["waits for the keys"], limit=1)
    exchange(net, us, them)


@PORT_HABITS
def test_a_v2_peer_that_only_we_have_added_is_reached_once_it_has_forgotten_us(
    new_net: Nets, source_port: int
) -> None:
    # It answers our first announcement sealed, with a key that we cannot know; then only silence helps.
    net = new_net()
    us, them = net.node(OURS, THEIRS), BaseHost(net, source_port=source_port)
    net.run(1)
    assert OURS in them.peer.keys
    assert not us.is_ready(THEIRS)
    assert net.run_until(lambda: both_know(us, them), limit=5 + FORGETTING + 1)
    net.run(1)
    exchange(net, us, them)


@VERSIONS
@PORT_HABITS
def test_an_echo_server_of_ours_answers_a_base_peer_that_nobody_added(
    new_net: Nets, version: int, source_port: int
) -> None:
    net = new_net()
    us, them = net.node(OURS), BaseHost(net, version, source_port=source_port)
    us.on_message = lambda address, message: us.send(address, b"Echo: " + message)
    them.add_peer(OURS)
    net.run(0.1)
    them.send("hello")
    assert net.run_until(lambda: them.texts() == ["Echo: hello"], limit=1)
    assert us.received == [(THEIRS, b"hello")]


@VERSIONS
@PORT_HABITS
def test_an_echo_server_on_a_base_peer_answers_to_the_port_that_we_listen_on(
    new_net: Nets, version: int, source_port: int
) -> None:
    net = new_net()
    us, them = connected(net, version, source_port=source_port)
    them.peer.echoes = True
    us.send(THEIRS, b"hello")
    net.run(0.1)
    assert us.messages_from(THEIRS)[-1:] == [b"Echo: hello"]


@VERSIONS
@PORT_HABITS
@pytest.mark.parametrize("they_start_first", [True, False])
def test_ten_seconds_between_the_two_starts(
    new_net: Nets, version: int, source_port: int, they_start_first: bool
) -> None:
    net = new_net()
    if they_start_first:
        them = BaseHost(net, version, source_port=source_port)
        them.add_peer(OURS)
        net.run(10)
        us = net.node(OURS, THEIRS)
    else:
        us = net.node(OURS, THEIRS)
        net.run(10)
        them = BaseHost(net, version, source_port=source_port)
        them.add_peer(OURS)
    # Who was there first and held no key has announced into the void; it does so again every 30 s.
    assert net.run_until(lambda: both_know(us, them), limit=5 + FORGETTING + 1)
    net.run(1)
    exchange(net, us, them)


# -------------------------------------------------------------------------------------------------- clocks


@VERSIONS
@pytest.mark.parametrize("clock_offset", [5.0, 0.05, -0.05, -5.0])
def test_clocks_that_differ(new_net: Nets, version: int, clock_offset: float) -> None:
    net = new_net()
    us, them = connected(net, version, clock_offset=clock_offset)
    for turn in range(10):
        net.run(20)
        exchange(net, us, them, str(turn))
    assert not {"ahead_of_clock", "too_old"} & set(them.peer.dropped)
    assert not us.node.counters["outside_window"]


@VERSIONS
def test_the_keys_are_kept_alive_for_ten_minutes(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = connected(net, version)
    net.run(600)
    assert not them.peer.keys_forgotten
    exchange(net, us, them)
    assert us.kinds_of_events(THEIRS) == ["ready"]


def test_our_refreshes_follow_a_short_lifetime(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net, lifetime=10)
    us.set_lifetime(10)
    net.run(100)
    assert not them.peer.keys_forgotten
    exchange(net, us, them)


def test_our_refreshes_do_not_wait_for_a_long_lifetime_of_ours(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS, THEIRS, lifetime=3600), BaseHost(net)
    them.add_peer(OURS)
    net.run(600)
    assert not them.peer.keys_forgotten
    exchange(net, us, them)


# ------------------------------------------------------------------------------------- restarts and silence


@VERSIONS
def test_a_silent_base_peer_is_lost_and_what_waits_for_it_is_kept(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = connected(net, version)
    them.kill()
    net.run(100)
    assert us.kinds_of_events(THEIRS) == ["ready", "lost"]
    assert not us.is_ready(THEIRS)
    us.send(THEIRS, b"queued")
    restarted = BaseHost(net, version)
    restarted.add_peer(OURS)
    net.run(2)
    assert restarted.texts() == ["queued"]


def test_a_base_stranger_that_falls_silent_is_forgotten(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS), BaseHost(net)
    them.add_peer(OURS)
    net.run(1)
    them.kill()
    net.run(100)
    assert us.mode(THEIRS) == "unknown"
    assert not us.encryption.peer_keys_exist(THEIRS)


@VERSIONS
def test_loss_delays_and_duplicates_do_not_keep_keys_from_being_exchanged(
    new_net: Nets, version: int
) -> None:
    net = new_net(seed=7, loss=0.2, duplication=0.2, jitter=0.05)
    us, them = net.node(OURS, THEIRS), BaseHost(net, version)
    them.add_peer(OURS)
    assert net.run_until(lambda: both_know(us, them), limit=300)
    net.run(2)
    for number in range(20):
        us.send(THEIRS, b"%d" % number)
        them.send(str(number))
        net.run(0.2)
    assert len(set(them.texts())) == len(them.texts()) > 10
    assert len(set(us.received)) == len(us.received) > 10


# ----------------------------------------------------------------------------------------------- versions


def test_a_v2_peer_is_never_spoken_to_in_v1_and_the_other_way_round(new_net: Nets) -> None:
    for version, dropped in ((2, "not_v1"), (1, "other_version")):
        net = new_net()
        us, them = connected(net, version)
        us.send(THEIRS, b"after the handshake")
        them.peer.dropped.clear()
        net.run(60)
        assert not them.peer.dropped[dropped]


def test_sealed_v1_bodies_of_a_v2_peer_are_refused(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net, 2)
    us.received.clear()
    them.send_body(make_data_body(1, "in v1"))
    net.run(0.1)
    assert us.node.counters["downgrade_refused"] == 1
    assert us.received == []
    exchange(net, us, them)


def test_a_v1_peer_that_is_updated_is_spoken_to_in_v2(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net, 1)
    them.peer.version = 2
    them.send("in v2 now")
    net.run(0.1)
    assert us.received[-1] == (THEIRS, b"in v2 now")
    exchange(net, us, them)


def test_a_session_identity_is_refused_in_base_mode(new_net: Nets) -> None:
    net = new_net()
    us, other = net.node(OURS, THEIRS), net.node(THEIRS, OURS)
    net.run(1)
    assert us.mode(THEIRS) == "session"
    members = other.encryption.base_members(ATTACKER[1])
    for version in (2, 1):
        us.arrive(ATTACKER, make_announcement_body(version, members))
    other.kill()
    members = {**members, "port": THEIRS[1]}
    us.arrive(THEIRS, make_announcement_body(2, members))
    net.run(30)
    us.arrive(THEIRS, make_announcement_body(2, members))
    assert us.node.counters["downgrade_refused"] == 4
    assert us.node.base.links == {}


def test_a_supplied_identity_is_never_spoken_to_in_base_mode(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS), BaseHost(net)
    us.add_peer(THEIRS, base64.b64decode(them.peer.sign_key))
    them.add_peer(OURS)
    net.run(40)
    assert us.node.counters["downgrade_refused"] == 2
    assert us.mode(THEIRS) == "waiting for keys"
    assert not any("enc_key" in (read_clear(data) or {}) for data in sent_by(net, OURS))


@VERSIONS
def test_without_legacy_peers_base_mode_is_refused(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = net.node(OURS, THEIRS, legacy_peers=False), BaseHost(net, version)
    them.add_peer(OURS)
    us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, them.peer.sign_key)
    net.run(100)
    assert us.node.counters["base_refused"] >= 2
    assert us.mode(THEIRS) == "waiting for keys"
    assert OURS not in them.peer.keys
    assert {len(data) for data in sent_by(net, OURS)} == {SHORT_ANNOUNCEMENT_SIZE}


@pytest.mark.parametrize("other_version", [3, 255, 0, -1])
def test_other_versions_are_counted_and_change_nothing(new_net: Nets, other_version: int) -> None:
    net = new_net()
    us, them = connected(net)
    us.received.clear()
    them.send_body(msgpack.packb({"v": other_version, "p": b"?", "c": b"", "g": bytes(1000)}))
    net.run(0.1)
    assert us.node.counters["other_version"] == 1
    assert us.received == []
    exchange(net, us, them)


# ------------------------------------------------------------------------------------ what is never accepted


def test_control_that_is_no_announcement_is_ignored(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net)
    us.received.clear()
    before = dict(us.node.counters)
    them.send_body(make_body(2, b"", b'{"future": true}'))
    net.run(0.1)
    assert us.received == []
    assert {**us.node.counters, "datagrams_received": 0} == {**before, "datagrams_received": 0}
    exchange(net, us, them)


def test_an_announcement_whose_signature_covers_something_else_is_refused(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS)
    them = BaseHost(net)
    good = announcement_members(them.peer.enc_private, them.peer.sign_private, THEIRS[1])
    other = BasePeer(2, 1, EPOCH)
    sign = other.sign_private
    own_enc_in_our_name = to_b64(bytes(sign.sign((other.enc_key + good["sign_key"]).encode())))
    for reason, changed in (
        ("bad_signature", {"enc_key": other.enc_key}),
        ("bad_signature", {"sign_key": other.sign_key}),
        ("bad_signature", {"enc_key": other.enc_key, "signature": own_enc_in_our_name}),
        ("bad_announcement", {"enc_key": good["enc_key"].rstrip("=")}),
        ("bad_announcement", {"enc_key": good["enc_key"] + "\n"}),
        ("bad_announcement", {"enc_key": to_b64(bytes(32))}),
        ("bad_announcement", {"enc_key": to_b64(bytes(31))}),
        ("bad_announcement", {"port": 0}),
        ("bad_announcement", {"port": 65536}),
        ("bad_announcement", {"port": "12000"}),
        ("bad_signature", {"signature": ""}),
    ):
        before = us.node.counters[reason]
        us.arrive(them.source, make_announcement_body(2, {**good, **changed}))
        assert us.node.counters[reason] == before + 1, (reason, changed)
    # Signed, but low order: a shared key that everybody knows.
    low: dict[str, Any] = {"enc_key": to_b64(bytes(32)), "sign_key": other.sign_key, "port": 1}
    low["signature"] = to_b64(bytes(sign.sign((low["enc_key"] + other.sign_key).encode())))
    us.arrive(them.source, make_announcement_body(2, low))
    assert us.node.counters["bad_announcement"] == 8
    assert us.node.base.links == {}
    assert sent_by(net, OURS) == []


def test_a_key_that_is_held_for_another_identity_is_refused(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net)
    thief = announcement_members(them.peer.enc_private, nacl.signing.SigningKey.generate(), ATTACKER[1])
    us.arrive(ATTACKER, make_announcement_body(2, thief))
    assert us.node.counters["key_of_another"] == 1
    assert list(us.node.base.links) == [THEIRS]


@VERSIONS
def test_spoofed_clear_announcements_never_displace_a_live_peer(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = connected(net, version)
    attacker = BasePeer(version, THEIRS[1], EPOCH)
    for number in range(1200):
        source = (THEIRS[0], (THEIRS[1], them.source[1], 1024 + number)[number % 3])
        us.arrive(source, attacker.announcement())
        if number % 100 == 0:
            exchange(net, us, them, str(number))
    assert us.node.counters["identity_refused"] > 100
    assert us.kinds_of_events(THEIRS) == ["ready", "rejected"]
    exchange(net, us, them)


def test_a_new_key_announced_under_the_old_one_is_taken(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net)
    box, new_private = them.peer._box(OURS), nacl.public.PrivateKey.generate()
    assert box is not None
    members = announcement_members(new_private, them.peer.sign_private, THEIRS[1])
    us.arrive(them.source, seal_body(box, make_announcement_body(2, members), them.clock))
    them.peer.enc_private = new_private
    exchange(net, us, them)
    stranger = BasePeer(2, THEIRS[1], EPOCH)
    them.send_body(stranger.announcement())
    net.run(0.1)
    assert us.node.counters["identity_refused"] == 1
    exchange(net, us, them)


@VERSIONS
@PORT_HABITS
def test_nothing_of_ours_that_is_reflected_is_accepted(new_net: Nets, version: int, source_port: int) -> None:
    net = new_net()
    us, them = connected(net, version, source_port=source_port)
    us.send(THEIRS, b"one", b"two", b"three")
    net.run(40)
    us.received.clear()
    sealed = [data for data in sent_by(net, OURS) if len(data) == SEALED_SIZE]
    assert len(sealed) >= 5
    before = us.node.counters["own_datagram"]
    for datagram in sealed:
        us.arrive(them.source, datagram)
    assert us.node.counters["own_datagram"] == before + len(sealed)
    for datagram in [data for data in sent_by(net, OURS) if len(data) < SEALED_SIZE]:
        us.arrive(them.source, datagram)
        us.arrive(ATTACKER, datagram)
    assert us.received == []
    exchange(net, us, them)


def test_reflection_before_the_source_port_is_learned_learns_nothing(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS, THEIRS), BasePeer(2, THEIRS[1], EPOCH)
    us.arrive((THEIRS[0], OTHER_SOURCE_PORT), them.announcement())
    net.run(2)
    sealed = [data for data in sent_by(net, OURS) if len(data) == SEALED_SIZE]
    assert sealed
    us.arrive((THEIRS[0], 999), sealed[0])
    assert us.node.counters["own_datagram"] == 1
    assert us.node.base.links[THEIRS].source is None
    them.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, EPOCH)
    them.send_data("still heard", OURS, EPOCH)
    us.arrive((THEIRS[0], OTHER_SOURCE_PORT), them.outgoing.pop()[1])
    assert us.received == [(THEIRS, b"still heard")]


# ------------------------------------------------------------------------------------------------- replay


def recorded(net: FakeNet, them: BaseHost, text: str) -> bytes:
    them.send(text)
    return sent_by(net, them.source)[-1]


@VERSIONS
def test_a_replay_is_refused_whatever_happened_meanwhile(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = connected(net, version)
    datagram = recorded(net, them, "once")
    net.run(0.1)
    us.received.clear()

    us.arrive(them.source, datagram)
    assert us.node.counters["replayed"] == 1
    us.arrive(them.source, them.peer.announcement())  # announced again
    us.arrive(them.source, datagram)
    assert us.node.counters["replayed"] == 2
    us.arrive(("10.0.0.3", 7), datagram)  # from an address where nobody is
    us.remove_peer(THEIRS)
    us.arrive(them.source, datagram)  # its key is gone
    us.arrive(them.source, them.peer.announcement())  # and back
    us.arrive(them.source, datagram)
    assert us.node.counters["replayed"] == 3
    us.arrive(("10.0.0.3", 7), them.peer.announcement())  # the same key at another address
    us.arrive(("10.0.0.3", 7), datagram)
    assert us.node.counters["replayed"] == 4
    net.run(61)
    us.arrive(("10.0.0.3", 7), them.peer.announcement())
    us.arrive(("10.0.0.3", 7), datagram)
    assert us.node.counters["outside_window"] == 1
    assert us.received == []


def test_a_replay_is_refused_after_its_nonce_was_evicted(
    new_net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vault_udp_encryption.NONCE_CACHE_SIZE", 10)
    net = new_net()
    us, them = connected(net)
    first = recorded(net, them, "first")
    for number in range(30):
        net.run(0.1)
        them.send(str(number))
    net.run(0.1)
    assert us.encryption.get_stats()["total_tracked_nonces"] == 10
    us.received.clear()
    us.arrive(them.source, first)
    assert us.received == []
    assert us.node.counters["replayed"] == 1


@pytest.mark.parametrize(("age", "accepted"), [(-61, False), (-59, True), (59, True), (61, False)])
def test_timestamps_are_judged_to_both_sides(new_net: Nets, age: float, accepted: bool) -> None:
    net = new_net()
    us, them = connected(net)
    us.received.clear()
    box = them.peer._box(OURS)
    assert box is not None
    us.arrive(them.source, seal_body(box, make_data_body(2, "aged"), them.clock - age))
    assert us.received == ([(THEIRS, b"aged")] if accepted else [])
    assert us.node.counters["outside_window"] == (not accepted)
    for stamp in (float("nan"), float("inf"), float("-inf")):
        us.arrive(them.source, seal_body(box, make_data_body(2, "never"), stamp))
    assert us.node.counters["outside_window"] == 3 + (not accepted)


def test_a_changed_window_takes_effect(new_net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault_udp_encryption.MAX_MESSAGE_AGE_SECONDS", 3)
    net = new_net()
    us, them = net.node(OURS), BaseHost(net, clock_offset=-4)
    them.add_peer(OURS)
    net.run(0.1)
    them.send("four seconds old")
    net.run(0.1)
    assert us.received == []
    them.clock_offset = -2
    them.send("two seconds old")
    net.run(0.1)
    assert us.messages_from(THEIRS) == [b"two seconds old"]


# -------------------------------------------------------------------------------------- what strangers cost


def test_an_announcement_is_never_answered_with_more_than_its_length(new_net: Nets) -> None:
    net = new_net()
    lengths: dict[int, int] = {}
    for size in (*range(420, 480, 4), *range(480, 1500, 60)):
        us = net.node(OURS)
        for version in (2, 1):
            them = BasePeer(version, THEIRS[1], EPOCH)
            members = announcement_members(them.enc_private, them.sign_private, THEIRS[1])
            text = json.dumps(members, separators=(",", ":")).encode()
            if version == 2:
                datagram = msgpack.packb({"v": 2, "p": b"", "c": text, "g": b""})
                datagram = msgpack.packb(
                    {"v": 2, "p": b"", "c": text, "g": bytes(max(0, size - 2 - len(datagram)))}
                )
            else:
                frame = pyzstd.compress(text)
                datagram = msgpack.packb([frame, bytes(max(0, size - 6 - len(frame)))])
            before = len(net.sent)
            us.arrive((THEIRS[0], 7), datagram)
            answers = [sent for sent in net.sent[before:] if sent.src == OURS]
            assert len(answers) <= 1
            for answer in answers:
                lengths[len(datagram)] = len(answer.data)
                assert len(answer.data) <= len(datagram)
                assert answer.dst == THEIRS
        us.kill()
    assert max(lengths.values()) == 1024
    assert len(lengths) > 20


def test_what_does_not_open_is_never_answered_with_more_than_its_length(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS, THEIRS)
    net.run(30)
    for size in range(64, 1500, 37):
        net.run(2)
        before = len(net.sent)
        us.arrive(ATTACKER, b"\xff" * size)
        answers = [sent for sent in net.sent[before:] if sent.dst == ATTACKER]
        assert sum(len(answer.data) for answer in answers) <= size
        assert bool(answers) == (size >= SHORT_ANNOUNCEMENT_SIZE)


def test_the_trial_of_source_ports_is_bounded(new_net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    net = new_net()
    us = net.node(OURS)
    for port in range(1, 41):
        us.arrive((THEIRS[0], port), BasePeer(2, port, EPOCH).announcement())
        net.run(1)
    assert len(us.node.base.links) == 40
    opened = keys_tried_by(us, monkeypatch)
    us.arrive((THEIRS[0], 999), b"\xff" * SEALED_SIZE)
    assert len(opened) == 32
    for _ in range(100):
        us.arrive((THEIRS[0], 999), b"\xff" * SEALED_SIZE)
    assert len(opened) == 64
    assert us.node.counters["trial_budget"] == 99
    opened.clear()
    us.arrive(("10.0.0.9", 999), b"\xff" * SEALED_SIZE)
    assert opened == []


def test_two_base_peers_behind_one_address_are_told_apart(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS)
    first = BaseHost(net, 2, source_port=40001)
    second = BaseHost(net, 1, (THEIRS[0], 12001), source_port=40002)
    for them in (first, second):
        them.add_peer(OURS)
    net.run(1)
    for them in (second, first):
        exchange(net, us, them)


# ------------------------------------------------------------------------------------- what v1 cannot carry


def test_what_a_v1_peer_cannot_carry_is_counted(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net, 1)
    us.send(THEIRS, b"\xff\xfe not text")
    assert us.node.counters["text_only_peer"] == 1
    # What fits into a v2 body as it is does not with v1's envelope, which writes a control character in six.
    noise = random.Random(1)
    fits, too_large = (bytes(noise.randrange(*span) for _ in range(1350)) for span in ((35, 91), (0, 128)))
    us.send(THEIRS, fits, too_large, b"after them")
    net.run(0.1)
    assert us.node.counters["too_large_for_peer"] == 1
    assert them.texts()[-2:] == [fits.decode(), "after them"]


@VERSIONS
@pytest.mark.parametrize(
    "text",
    ["", "x", "Grüße aus 東京 🔒", '{"data": "nested"}', '{"enc_key": 1}', "{", "null", "a\0b", "x" * 1300],
)
def test_every_text_arrives_as_it_was_sent(new_net: Nets, version: int, text: str) -> None:
    net = new_net()
    us, them = connected(net, version)
    us.send(THEIRS, text.encode())
    net.run(0.1)
    assert them.texts()[-1] == text


# ---------------------------------------------------------------------------------------- application's keys


@PORT_HABITS
def test_keys_that_the_applications_exchange_are_used(new_net: Nets, source_port: int) -> None:
    net = new_net()
    us, them = with_application_keys(net, source_port=source_port)
    us.send(THEIRS, b"with the application's keys")
    net.run(2)
    assert them.texts() == ["with the application's keys"]
    exchange(net, us, them)
    net.run(300)
    exchange(net, us, them)


def test_the_same_keys_again_change_nothing(new_net: Nets) -> None:
    net = new_net()
    us, them = with_application_keys(net)
    net.run(6)
    exchange(net, us, them)
    datagram = sent_by(net, them.source)[-1]
    private = to_b64(bytes(us.encryption._enc_private)), to_b64(us.encryption.sign_seed)
    announced = len(net.sent)
    for _ in range(50):
        us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, them.peer.sign_key)
        us.encryption.set_private_keys(*private)
    assert len(net.sent) == announced
    assert us.is_ready(THEIRS)
    us.received.clear()
    us.arrive(them.source, datagram)
    assert us.node.counters["replayed"] == 1
    assert us.received == []
    exchange(net, us, them)


def test_with_keys_of_the_applications_nothing_from_before_our_start_is_accepted(new_net: Nets) -> None:
    net = new_net()
    us, them = with_application_keys(net)
    net.run(2)
    exchange(net, us, them)
    datagram = sent_by(net, them.source)[-1]
    private = to_b64(bytes(us.encryption._enc_private)), to_b64(us.encryption.sign_seed)
    us.kill()
    net.run(1)
    us.restart()
    us.encryption.set_private_keys(*private)
    us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, them.peer.sign_key)
    us.received.clear()
    us.arrive(them.source, datagram)
    assert us.received == []
    assert us.node.counters["replayed"] == 1
    net.run(2)
    exchange(net, us, them)


# ------------------------------------------------------------------------------------------------ on loopback


@VERSIONS
@pytest.mark.parametrize("own_source_port", [True, False])
def test_a_base_peer_on_real_sockets(version: int, own_source_port: bool) -> None:
    inbox: queue.Queue[tuple[str, Address]] = queue.Queue()
    with UDPSocketClass(0) as us, BasePeerOnSockets(version, own_source_port=own_source_port) as them:
        us.udp_recv_data.connect(lambda text, address: inbox.put((text, address)))
        ours = ("127.0.0.1", us.recv_port)
        them.peer.add_peer(ours, time.time())
        them.run_until(lambda: ours in them.peer.keys)
        them.peer.send_data("from the base peer", ours, time.time())
        them.run_until(lambda: not inbox.empty())
        assert inbox.get() == ("from the base peer", them.address)
        us.send_data("from the library", them.address)
        them.run_until(lambda: them.peer.received)
        assert them.peer.received == [("from the library", ours)]
        assert us.get_stats()["peer_modes"][them.address] == f"base v{version}"
