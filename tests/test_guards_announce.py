# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: announcements."""

from __future__ import annotations

import nacl.public
import nacl.signing
import pytest
from base_net import OURS, THEIRS, BaseHost, connected
from base_peer import announcement_members, make_announcement_body, make_data_body, seal_body, to_b64
from fakenet import FakeNet
from test_protocol import A, B, two_in_session
from test_protocol_edges import C, D, rogue_and_host

import vault_udp_announce
import vault_udp_packet as packet


def new_keys() -> tuple[nacl.public.PrivateKey, nacl.signing.SigningKey]:
    return nacl.public.PrivateKey.generate(), nacl.signing.SigningKey.generate()


def test_a_lost_session_goes_on_where_its_peer_has_moved() -> None:
    net, alice, bob = two_in_session()
    net.hook = lambda datagram: []
    alice.send(B, b"unanswered")
    bob.send(A, b"unanswered")
    assert net.run_until(lambda: alice.mode(B) == bob.mode(A) == "lost", limit=10)
    bob.move(D, knowingly=False)
    # The hellos come through before anything under the keys does.
    net.hook = lambda datagram: net.route(datagram) if packet.looks_clear(datagram.data) else []
    net.run(2)
    net.hook = net.route
    net.run(5)
    alice.send(B, b"here")
    net.run(1)
    assert alice.mode(B) == "session"
    assert alice.mode(D) == "unknown"
    assert bob.messages_from(A) == [b"here"]


@pytest.mark.parametrize("added", [True, False])
def test_where_nothing_has_opened_makes_way_for_where_the_peer_is(added: bool) -> None:
    net, host, rogue = rogue_and_host()
    if added:
        host.add_peer(B)
    rogue.shake_hands(B)
    net.run(1 if added else 0)
    rogue.come_up(C)
    assert host.mode(B) == ("waiting for keys" if added else "unknown")


def test_a_forgotten_session_identity_is_refused_in_base_mode() -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    host.arrive(B, rogue.sealed(pair, {"type": "bye"}))
    assert host.mode(B) == "unknown"
    members = announcement_members(new_keys()[0], nacl.signing.SigningKey(rogue.local.sign_seed), B[1])
    host.arrive(B, make_announcement_body(2, members))
    assert host.node.counters["downgrade_refused"] == 1
    assert host.node.base.links == {}


def test_a_hello_from_where_a_peer_has_been_does_not_lead_it_back() -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    rogue.move(C, pair)
    assert host.peer(B).session.endpoint == C
    # Somebody who was between us and B passes on what was said there.
    rogue.shake_hands(B)
    assert host.peer(B).session.endpoint == C


def test_a_base_peer_that_announces_again_is_heard_from_its_new_port() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net)
    them.source = (THEIRS[0], 34567)
    them.peer.keys.clear()
    them.add_peer(OURS)
    net.run(0.1)
    them.send("from another port")
    net.run(0.1)
    assert us.received[-1] == (THEIRS, b"from another port")


def test_a_v2_peer_is_not_heard_in_v1_not_even_at_first() -> None:
    net = FakeNet(delay=0.01)
    us, them = net.node(OURS), BaseHost(net, 2)
    us.arrive(THEIRS, them.peer.announcement())
    them.peer.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, them.clock)
    box = them.peer._box(OURS)
    assert box is not None
    us.arrive(them.source, seal_body(box, make_data_body(1, "old"), them.clock))
    assert us.received == []
    assert us.node.counters["downgrade_refused"] == 1


def test_keys_of_the_application_do_not_undo_what_is_known() -> None:
    us = FakeNet().node(OURS, known={THEIRS: b"\1" * 32})
    private, signing = new_keys()
    us.encryption.update_peer_keys(
        THEIRS, to_b64(bytes(private.public_key)), to_b64(bytes(signing.verify_key))
    )
    assert us.node.base.links == {}
    assert not us.encryption.peer_keys_exist(THEIRS)


def test_keys_of_the_application_end_no_session() -> None:
    _, alice, bob = two_in_session()
    private, signing = new_keys()
    alice.encryption.update_peer_keys(B, to_b64(bytes(private.public_key)), to_b64(bytes(signing.verify_key)))
    assert alice.mode(B) == "session"
    assert alice.peer(B).identity == bob.sign_public


def test_what_waits_for_one_identity_is_not_sealed_under_keys_given_for_another() -> None:
    net = FakeNet(delay=0.01)
    us, _them = connected(net)
    us.encryption.remove_peer_keys(THEIRS)
    us.send(THEIRS, b"for them alone")
    assert us.peer(THEIRS).queue
    private, signing = new_keys()
    us.encryption.update_peer_keys(
        THEIRS, to_b64(bytes(private.public_key)), to_b64(bytes(signing.verify_key))
    )
    assert not us.peer(THEIRS).queue
    assert us.node.counters["queued_for_another_identity"] == 1


@pytest.mark.parametrize(("kept", "stranger", "added"), [(1, 0, 0), (2, 1, 0), (3, 1, 0), (4, 1, 1)])
def test_an_added_peer_has_twice_the_room_of_strangers(
    kept: int, stranger: int, added: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_udp_announce, "MAX_RETIRED_PAIRS", 2)
    _, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(D)
    host.remove_peer(D)
    host.node.retired.update((bytes([number]), pair) for number in range(kept))
    rogue.shake_hands(B)
    assert host.node.counters["too_many_sessions"] == stranger
    host.add_peer(C)
    rogue.shake_hands(C)
    assert host.node.counters["too_many_sessions"] == stranger + added
