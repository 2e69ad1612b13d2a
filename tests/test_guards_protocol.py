# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: the way of a peer."""

from __future__ import annotations

import pytest
from base_net import OURS, THEIRS, connected
from base_peer import to_b64
from fakenet import EPOCH, FakeNet, both_ready
from test_protocol import A, B
from test_protocol_edges import GOT, rogue_and_host

import vault_udp_socket_helper as crypto
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_keys import SessionKey


def test_what_waits_for_somebody_unknown_is_for_the_key_that_is_given_next() -> None:
    net = FakeNet()
    alice, bob = net.node(A), net.node(B)
    alice.send(B, b"before the key was given")
    alice.add_peer(B, supplied=bob.sign_public)
    net.run(1)
    assert bob.received == [(A, b"before the key was given")]


def test_a_peer_that_is_added_again_and_again_is_not_announced_to_more_often() -> None:
    net = FakeNet()
    alice = net.node(A, B)
    net.run(10)
    sent = len(net.sent)
    for _ in range(50):
        alice.add_peer(B)
        net.run(0.001)
    assert len(net.sent) <= sent + 1


def test_a_base_peer_whose_identity_is_given_is_not_spoken_to_in_base_mode_any_more() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net)
    us.add_peer(THEIRS, crypto.b64_str_to_bytes(them.peer.sign_key))
    us.send(THEIRS, b"in a session only")
    net.run(5)
    assert us.mode(THEIRS) == "waiting for keys"
    assert "in a session only" not in them.texts()


def test_a_rekey_to_a_key_that_shares_no_secret_is_refused() -> None:
    _, host, rogue = rogue_and_host()
    pair, key = rogue.come_up(B), SessionKey(1)
    key.public = bytes(32)
    host.arrive(
        B, rogue.sealed(pair, {"type": "rekey", **rogue.signed(rogue.hello(key, to_sign=rogue.theirs))})
    )
    assert host.node.counters["bad_announcement"] == 1
    assert host.peer(B).session.enc == rogue.local.current.public


@pytest.mark.parametrize("member", ["nonce", "echo"])
@pytest.mark.parametrize("text", ["!", "AAAA", crypto.bytes_to_b64_str(bytes(17)), ""])
def test_a_nonce_that_is_no_base64_is_refused(member: str, text: str) -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    host.arrive(B, rogue.sealed(pair, {**GOT, "got": member == "echo", member: text}))
    assert host.node.counters["bad_control"] == 1


def test_a_base_peer_that_comes_back_with_sessions_is_not_sent_to_in_base_mode_when_it_is_lost() -> None:
    net = FakeNet(delay=0.01)
    us, them = connected(net)
    them.kill()
    updated = net.node(
        THEIRS,
        OURS,
        encryption=VaultAsymmetricEncryption(
            enc_private_key=to_b64(bytes(them.peer.enc_private)),
            sign_private_key=to_b64(bytes(them.peer.sign_private)),
            monotonic=lambda: net.now,
            wall=lambda: EPOCH + net.now,
        ),
    )
    assert net.run_until(lambda: both_ready(us, updated), limit=10)
    assert not us.node.base.links
    net.run(1)
    updated.kill()
    us.send(THEIRS, b"unanswered")
    assert net.run_until(lambda: us.mode(THEIRS) != "session", limit=15)
    assert not us.is_ready(THEIRS)
