# SPDX-License-Identifier: Apache-2.0
"""Base mode where it is narrow: restarts, changed ports and keys, costs of strangers, forgeries."""

from __future__ import annotations

from typing import Iterator, Sequence

import nacl.public
import nacl.signing
import pytest
from base_net import (
    ATTACKER,
    FORGETTING,
    OTHER_SOURCE_PORT,
    OURS,
    PIN,
    PORT_HABITS,
    THEIRS,
    VERSIONS,
    Address,
    BaseHost,
    Nets,
    both_know,
    clear_announcement_of,
    connected,
    exchange,
    keys_tried_by,
    read_clear,
    sent_by,
    with_application_keys,
)
from base_peer import BasePeer, announcement_members, make_announcement_body, make_data_body, to_b64
from fakenet import EPOCH, SEALED_SIZE, FakeNet, Host, both_ready
from test_misbinding import asking

import vault_udp_control as control_format
import vault_udp_peer
from vault_udp_control import SHORT_ANNOUNCEMENT_SIZE
from vault_udp_encryption import VaultAsymmetricEncryption


@pytest.fixture(name="new_net")
def _new_net() -> Iterator[Nets]:
    nets = Nets()
    yield nets
    nets.check()


def announced(port: int, size: int = 600) -> bytes:
    """A base announcement of somebody new, of that many bytes."""
    return control_format.make_announcement_body(VaultAsymmetricEncryption().base_members(port), size)


def bytes_to(net: FakeNet, address: Address) -> int:
    return sum(len(sent.data) for sent in net.sent if sent.dst == address and sent.src == OURS)


# ------------------------------------------------------------------------------- who begins late, or anew


@pytest.mark.parametrize("delay", [10, 30, 60, 100])
def test_a_v2_peer_that_only_we_have_added_may_start_later(new_net: Nets, delay: float) -> None:
    # Only a full announcement makes us known to it: the next cycle has one, 120 s after the first.
    net = new_net()
    us = net.node(OURS, THEIRS)
    net.run(delay)
    them = BaseHost(net)
    assert net.run_until(lambda: both_know(us, them), limit=120 - delay + 5 + FORGETTING + 1)
    net.run(1)
    exchange(net, us, them)


def test_full_announcements_go_out_for_five_seconds_of_each_cycle_of_120(new_net: Nets) -> None:
    net = new_net()
    net.node(OURS, THEIRS)
    net.run(250)
    full = [sent for sent in net.sent if len(sent.data) == control_format.FULL_ANNOUNCEMENT_SIZE]
    short = [sent for sent in net.sent if len(sent.data) == SHORT_ANNOUNCEMENT_SIZE]
    assert len(full) + len(short) == len(net.sent)
    assert all(sent.time % 120 < 5 for sent in full)
    assert all(sent.time % 120 >= 5 for sent in short)
    assert {int(sent.time // 120) for sent in full} == {0, 1, 2}
    assert all("enc_key" in (read_clear(sent.data) or {}) for sent in full)
    assert not any("enc_key" in (read_clear(sent.data) or {}) for sent in short)


@VERSIONS
@PORT_HABITS
def test_a_restart_with_new_keys_recovers(new_net: Nets, version: int, source_port: int) -> None:
    net = new_net()
    us, them = connected(net, version, source_port=source_port)
    them.kill()
    restarted = BaseHost(net, version, source_port=source_port + (source_port != THEIRS[1]))
    restarted.add_peer(OURS)
    net.run(1)
    assert us.node.counters["identity_refused"] == 1
    assert "rejected" in us.kinds_of_events(THEIRS)
    interval = restarted.peer.lifetime / 2
    assert net.run_until(lambda: both_know(us, restarted), limit=PIN + interval + 1)
    net.run(1)
    exchange(net, us, restarted)


def restart_with_the_same_keys(net: FakeNet, them: BaseHost, source_port: int) -> BaseHost:
    them.kill()
    again = BaseHost(
        net,
        them.peer.version,
        source_port=source_port,
        enc_private=bytes(them.peer.enc_private),
        sign_private=bytes(them.peer.sign_private),
    )
    again.add_peer(OURS)
    return again


@VERSIONS
def test_a_restart_with_the_same_keys_recovers_at_once_from_its_port(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = connected(net, version, source_port=THEIRS[1])
    again = restart_with_the_same_keys(net, them, THEIRS[1])
    net.run(0.1)
    exchange(net, us, again)


@VERSIONS
def test_a_restart_with_the_same_keys_recovers_from_another_source_port(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = connected(net, version)
    again = restart_with_the_same_keys(net, them, OTHER_SOURCE_PORT + 1)
    net.run(1)
    exchange(net, us, again)


def test_a_peer_that_forgot_us_is_answered_at_the_port_that_it_sends_from(new_net: Nets) -> None:
    # Where it sends from is known: what it announces from there is no sealed datagram for all that.
    net = new_net()
    us, them = connected(net, source_port=THEIRS[1])
    before = len(sent_by(net, OURS))
    us.arrive(THEIRS, them.peer.announcement())
    (answer,) = sent_by(net, OURS)[before:]
    assert read_clear(answer)
    exchange(net, us, them)


# ------------------------------------------------------------------------------ our own port and our own keys


@VERSIONS
@PORT_HABITS
def test_base_peers_are_told_our_new_port(new_net: Nets, version: int, source_port: int) -> None:
    net = new_net()
    us, them = connected(net, version, source_port=source_port)
    new = (OURS[0], OURS[1] + 1)
    us.move(new)
    net.run(2)
    assert new in them.peer.keys
    us.send(THEIRS, b"from the new port")
    them.send("to the new port", new)
    net.run(1)
    assert them.texts()[-1] == "from the new port"
    assert us.messages_from(THEIRS)[-1] == b"to the new port"


def test_a_base_peer_that_came_by_itself_and_is_added_then_is_like_others(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS), BaseHost(net)
    them.add_peer(OURS)
    net.run(2)
    unasked = len(sent_by(net, OURS))
    us.add_peer(THEIRS)
    net.run(1)
    before = len(sent_by(net, OURS))
    assert before > unasked, "it is told at once"
    net.run(50)
    assert len(sent_by(net, OURS)) - before >= 2, "and every 20 s"
    new = (OURS[0], OURS[1] + 1)
    us.move(new)
    net.run(1)
    assert any(map(read_clear, sent_by(net, new)))


@pytest.mark.parametrize("identity_too", [True, False])
def test_base_peers_are_told_our_new_key(new_net: Nets, identity_too: bool) -> None:
    net = new_net()
    us, them = connected(net)
    enc, sign = to_b64(bytes(nacl.public.PrivateKey.generate())), to_b64(us.encryption.sign_seed)
    if identity_too:
        sign = to_b64(bytes(nacl.signing.SigningKey.generate()))
    with us._acting():
        us.encryption.set_private_keys(enc, sign)
    net.run(5)
    assert them.peer.keys[OURS][0] == us.encryption.enc_public_key
    exchange(net, us, them)


# ---------------------------------------------------------------------------------------- application's keys


@PORT_HABITS
def test_a_v1_peer_with_application_keys_is_heard(new_net: Nets, source_port: int) -> None:
    net = new_net()
    us, them = with_application_keys(net, version=1, source_port=source_port)
    net.run(2)
    them.send("v1, sealed with supplied keys")
    net.run(1)
    assert us.messages_from(THEIRS) == [b"v1, sealed with supplied keys"], dict(us.node.counters)
    exchange(net, us, them)


@pytest.mark.parametrize("by_application", [True, False])
def test_keys_that_the_application_removes_leave_messages_waiting(
    new_net: Nets, by_application: bool
) -> None:
    net = new_net()
    us, _ = with_application_keys(net) if by_application else connected(net)
    net.run(2)
    us.encryption.remove_peer_keys(THEIRS)
    assert not us.is_ready(THEIRS)
    us.send(THEIRS, b"waits")
    assert us.peer(THEIRS).queue
    net.run(5)


def test_announcing_ends_when_a_peer_with_application_keys_answers(new_net: Nets) -> None:
    net = new_net()
    us, them = with_application_keys(net)
    net.run(6)
    exchange(net, us, them)
    net.run(120)
    before = len(sent_by(net, OURS))
    net.run(100)
    assert {len(data) for data in sent_by(net, OURS)[before:]} == {SEALED_SIZE}


def test_strangers_do_not_push_out_keys_of_the_application(
    new_net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_udp_peer, "MAX_PENDING_STRANGERS", 20)
    monkeypatch.setattr(vault_udp_peer, "MAX_CONFIRMED_STRANGERS", 2)
    net = new_net()
    us, them = with_application_keys(net)
    for number in range(1, 41):
        net.inject((f"10.7.0.{number}", 9), OURS, announced(9))
    hosts = [BaseHost(net, 2, (f"10.8.0.{number}", 12000)) for number in range(1, 5)]
    for other in hosts:
        other.add_peer(OURS)
    net.run(1)
    for other in hosts:
        other.send("a confirmed stranger")
    net.run(1)
    assert us.node.table.evicted > 20
    us.send(THEIRS, b"still known")
    them.send("and heard")
    net.run(5)
    assert them.texts() == ["still known"]
    assert us.messages_from(THEIRS) == [b"and heard"]


def test_base_strangers_are_told_our_new_keys_and_stay(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS), BaseHost(net)
    them.add_peer(OURS)
    net.run(1)
    for number in range(40):
        if number == 20:  # its credit covers an announcement by then
            with us._acting():
                us.encryption.generate_keys()
            net.run(1)
        them.send(f"{number}")
        us.send(THEIRS, b"%d" % number)
        net.run(1)
    assert us.messages_from(THEIRS) == [b"%d" % number for number in range(40)]
    assert them.texts() == [f"{number}" for number in range(40)]


def test_keys_of_the_application_do_not_undo_a_supplied_identity(new_net: Nets) -> None:
    net = new_net()
    us, other = net.node(OURS), VaultAsymmetricEncryption()
    us.add_peer(THEIRS, b"\x07" * 32)
    with us._acting():
        us.encryption.update_peer_keys(THEIRS, other.enc_public_key, other.sign_public_key)
    net.run(3)
    assert not us.is_ready(THEIRS)
    assert us.mode(THEIRS) == "waiting for keys"


def test_keys_of_the_application_do_not_lead_a_session_identity_down(new_net: Nets) -> None:
    net = new_net()
    us, peer = net.node(OURS, THEIRS), net.node(THEIRS, OURS)
    assert net.run_until(lambda: both_ready(us, peer))
    peer.kill()
    net.run(1)
    us.send(THEIRS, b"x")
    net.run(10)
    with us._acting():
        us.encryption.update_peer_keys(
            THEIRS, peer.encryption.enc_public_key, peer.encryption.sign_public_key
        )
    net.run(3)
    assert us.mode(THEIRS) == "lost"


# --------------------------------------------------------------------------------- versions, keys, clear data


@pytest.mark.parametrize("silence", [0, 100])
def test_an_identity_seen_in_v2_is_refused_in_v1(new_net: Nets, silence: float) -> None:
    net = new_net()
    us, them = connected(net, 2)
    if silence:
        them.kill()
        net.run(silence)
    us.arrive(them.source, clear_announcement_of(them, 1))
    assert us.node.counters["downgrade_refused"] == 1
    assert us.mode(THEIRS) == ("waiting for keys" if silence else "base v2")


def test_a_live_session_s_identity_stays_out_of_base_mode_whatever_is_forgotten(new_net: Nets) -> None:
    net = new_net()
    us, peer = net.node(OURS, THEIRS), net.node(THEIRS, OURS)
    assert net.run_until(lambda: both_ready(us, peer))
    us.node.best_version.clear()  # as 32,768 other identities do to it
    us.arrive(THEIRS, make_announcement_body(2, peer.encryption.base_members(THEIRS[1])))
    assert us.node.counters["downgrade_refused"] == 1
    assert not us.node.base.links


@VERSIONS
def test_user_data_in_clear_is_never_accepted(new_net: Nets, version: int) -> None:
    net = new_net()
    us, them = net.node(OURS, THEIRS), BaseHost(net, version)
    them.send("in clear before any key")
    net.run(0.1)
    them.add_peer(OURS)
    net.run(1)
    us.arrive(them.source, make_data_body(version, "in clear from the known port"))
    us.arrive(THEIRS, make_data_body(version, "in clear from where it listens"))
    us.arrive(ATTACKER, make_data_body(version, "in clear from a stranger"))
    assert us.node.counters["clear_data"] == 4
    assert us.received == []


def test_an_old_announcement_of_the_same_identity_does_not_bring_its_old_key_back(new_net: Nets) -> None:
    net = new_net()
    us, them = connected(net)
    old = them.peer.announcement()
    them.peer.enc_private = nacl.public.PrivateKey.generate()
    fresh = them.peer.announcement()
    us.arrive(them.source, fresh)
    assert us.node.counters["live_key_kept"] == 1
    # In clear it changes nothing while the old key is live; after 45 s of silence it does.
    net.run(PIN + 1)
    us.arrive(them.source, fresh)
    us.arrive(them.source, old)
    assert us.node.counters["live_key_kept"] == 2
    net.run(1)
    exchange(net, us, them)


def test_a_key_that_was_only_announced_is_not_kept_from_its_owner(new_net: Nets) -> None:
    net = new_net()
    us, them = net.node(OURS), BasePeer(2, THEIRS[1], EPOCH)
    squatter = announcement_members(them.enc_private, nacl.signing.SigningKey.generate(), ATTACKER[1])
    us.arrive(ATTACKER, make_announcement_body(2, squatter))
    us.arrive(THEIRS, them.announcement())
    assert THEIRS in us.node.base.links
    assert not us.node.counters["key_of_another"]


# ---------------------------------------------------------------------------------------- ports and addresses


def test_an_added_peer_is_found_behind_32_spoofed_announcements(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS, THEIRS)
    for port in range(1, 33):
        us.arrive((THEIRS[0], port), BasePeer(2, port, EPOCH).announcement())
        net.run(1)
    them = BaseHost(net)
    them.add_peer(OURS)
    net.run(2)
    them.send("heard?")
    net.run(0.1)
    assert us.messages_from(THEIRS) == [b"heard?"], dict(us.node.counters)


def test_thirty_peers_behind_one_address_start_at_once(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS)
    hosts = [BaseHost(net, 2, (THEIRS[0], 12000 + n), source_port=40000 + n) for n in range(30)]
    for them in hosts:
        them.add_peer(OURS)
    net.run(1)
    assert len(us.node.base.links) == 30, dict(us.node.counters)


class OneAddress:
    """Base peers that listen on ports of one address, and send from one port of it."""

    def __init__(self, us: Host, ports: Sequence[int]) -> None:
        self.us = us
        self.source = (THEIRS[0], 40000)
        self.ends = [BasePeer(2, port, EPOCH) for port in ports]
        for end in self.ends:
            us.arrive((THEIRS[0], 50000 + end.port), end.announcement())
            end.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, EPOCH)

    def heard(self, index: int, text: str) -> bool:
        """Whether the peer with that index is heard when it sends."""
        end = self.ends[index]
        end.send_data(text, OURS, EPOCH + self.us.net.now)
        self.us.arrive(self.source, end.outgoing.pop()[1])
        return self.us.received[-1:] == [((THEIRS[0], end.port), text.encode())]


def test_a_source_port_that_another_peer_takes_over_is_that_peer_s(new_net: Nets) -> None:
    us = new_net().node(OURS)
    behind = OneAddress(us, (7001, 7002))
    assert behind.heard(0, "the first")
    assert behind.heard(1, "the second, from the same port")
    us.remove_peer((THEIRS[0], 7001))
    assert behind.heard(1, "the second again")


def test_peers_behind_one_address_stay_when_one_of_them_is_removed(new_net: Nets) -> None:
    us = new_net().node(OURS)
    behind = OneAddress(us, (7001, 7002, 7003))
    us.remove_peer((THEIRS[0], 7001))
    assert behind.heard(1, "whose port is not learned yet")
    assert behind.heard(2, "another one")


def test_what_comes_from_a_port_that_many_have_sent_from_is_tried_with_four_keys(
    new_net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    us = new_net().node(OURS)
    behind = OneAddress(us, range(7001, 7007))
    for index in range(6):
        assert behind.heard(index, f"of {index}")
    monkeypatch.setattr(us.node.base._trials, "allow", lambda *_: False)
    tried = keys_tried_by(us, monkeypatch)
    us.arrive(behind.source, b"\xff" * SEALED_SIZE)
    assert tried == [(THEIRS[0], port) for port in (7006, 7005, 7004, 7003)]
    monkeypatch.undo()
    assert behind.heard(0, "who is none of these four is looked for")


# ------------------------------------------------------------------------ announcements that nobody asked for


@pytest.mark.parametrize("size", [400, 420, 600, 1024])
def test_a_spoofed_announcement_is_not_amplified_however_long_we_wait(new_net: Nets, size: int) -> None:
    net = new_net()
    us, datagram = net.node(OURS), announced(ATTACKER[1], size)
    us.arrive(ATTACKER, datagram)
    net.run(200)
    assert bytes_to(net, ATTACKER) <= size


def test_a_stranger_is_sent_no_more_than_it_has_sent(new_net: Nets) -> None:
    net = new_net()
    us, spoofer = net.node(OURS), BasePeer(2, ATTACKER[1], EPOCH)
    spoofer.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, EPOCH)
    datagrams = [spoofer.announcement()]
    spoofer.send_data("a sealed datagram proves a key, not the address", OURS, EPOCH)
    datagrams.append(spoofer.outgoing.pop()[1])
    for datagram in datagrams:
        us.arrive(ATTACKER, datagram)
    us.move((OURS[0], OURS[1] + 1))
    net.run(60)
    sent = sum(len(sent.data) for sent in net.sent if sent.dst == ATTACKER)
    assert sent <= sum(len(datagram) for datagram in datagrams)


def test_a_spoofed_announcement_does_not_take_the_place_of_a_lost_session(new_net: Nets) -> None:
    net = new_net()
    us, peer = net.node(OURS, THEIRS), net.node(THEIRS, OURS)
    assert net.run_until(lambda: both_ready(us, peer))
    honest = us.peer(THEIRS).identity
    peer.kill()
    net.run(1)
    us.send(THEIRS, b"x")
    net.run(10)
    us.arrive(THEIRS, announced(THEIRS[1]))  # nobody has shown that he receives there
    net.run(2)
    assert us.peer(THEIRS).identity == honest
    assert us.mode(THEIRS) == "lost"


def test_a_spoofed_announcement_before_first_contact_does_not_keep_a_session_out(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS, THEIRS)
    us.arrive(THEIRS, announced(THEIRS[1]))
    net.run(0.5)
    peer = net.node(THEIRS, OURS)
    assert net.run_until(lambda: both_ready(us, peer), limit=10), (us.mode(THEIRS), dict(us.node.counters))


def test_junk_from_an_address_full_of_base_peers_keeps_no_session_out(new_net: Nets) -> None:
    net = new_net()
    us = net.node(OURS)
    for port in range(2000, 2032):
        us.arrive((THEIRS[0], port), announced(port))
    net.every(0.05, lambda: net.inject((THEIRS[0], 9), OURS, bytes(600)), 20)
    peer = net.node(THEIRS, OURS)
    assert net.run_until(lambda: us.mode(THEIRS) == "session" and both_ready(us, peer), limit=5)


def test_a_base_peer_at_the_second_address_of_a_lost_process_is_a_peer_of_its_own(new_net: Nets) -> None:
    net = new_net()
    second = (THEIRS[0], THEIRS[1] + 1)
    us, them = net.node(OURS, THEIRS), net.node(THEIRS)
    net.run(2)
    twin = net.outsider(second)
    twin.on_datagram = lambda source, datagram: them.arrive(source, datagram)
    send = net.send

    def send_from_both(src: Address, dst: Address, data: bytes) -> None:
        send(src, dst, data)
        if src == THEIRS:
            send(second, dst, data)

    net.send = send_from_both  # type: ignore[method-assign]
    us.add_peer(second)
    net.run(5)
    assert us.peer(THEIRS) is us.peer(second)
    net.send = send  # type: ignore[method-assign]
    them.kill()
    net.detach(second)
    us.send(THEIRS, b"is lost")
    net.run(10)
    base = BasePeer(2, second[1], EPOCH)
    us.arrive((THEIRS[0], 777), base.announcement())
    net.run(1)
    assert us.mode(second) == "base v2"
    assert us.peer(THEIRS) is not us.peer(second)
    us.remove_peer(second)
    base.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, EPOCH)
    base.send_data("of a peer that was removed", OURS, EPOCH + net.now)
    us.arrive((THEIRS[0], 777), base.outgoing.pop()[1])
    assert us.received == []


def test_a_base_peer_that_speaks_sessions_since_its_restart_is_found_although_it_adds_nobody() -> None:
    """What we seal for its former program makes it ask; our answer tells that we have met somebody there."""
    net = FakeNet(seed=1, delay=0.01)
    us, them = connected(net)
    seed = to_b64(bytes(them.peer.sign_private))
    them.kill()
    new = net.node(THEIRS, encryption=VaultAsymmetricEncryption(sign_private_key=seed))
    assert us.mode(THEIRS) == "base v2"
    us.send(THEIRS, b"asks")
    assert net.run_until(lambda: us.mode(THEIRS) == "session", limit=1)
    us.send(THEIRS, b"hello")
    net.run(1)
    assert new.messages_from(OURS) == [b"hello"]
    assert us.kinds_of_events(THEIRS) == ["ready"], "it has been ready all the time"


def test_a_base_peer_that_is_ready_is_told_so_once_whatever_keys_the_application_gives() -> None:
    net = FakeNet(seed=1, delay=0.01)
    us, them = connected(net)
    with us._acting():
        us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, them.peer.sign_key)
    exchange(net, us, them)
    net.run(5)
    with us._acting():
        us.encryption.set_private_keys(*(to_b64(bytes([number]) * 32) for number in (1, 2)))
    assert us.is_ready(THEIRS), "a base peer learns our keys, and goes on"
    assert us.kinds_of_events(THEIRS) == ["ready"]


def test_an_end_does_not_name_a_base_key_that_was_only_announced() -> None:
    """Somebody announces Alice's session key as his base key to Bob, and shows her Bob's answer."""
    net = FakeNet(seed=1, delay=0.01)
    alice, bob, evil = net.node(THEIRS), net.node(OURS), net.outsider(ATTACKER)
    key = alice.node.local.current.public
    sign = nacl.signing.SigningKey(bytes(32))
    texts = to_b64(key), to_b64(bytes(sign.verify_key))
    members = {"enc_key": texts[0], "sign_key": texts[1], "port": ATTACKER[1]}
    members["signature"] = to_b64(bytes(sign.sign("".join(texts).encode())))
    evil.send(OURS, make_announcement_body(2, members))
    net.run(0.1)
    assert bob.mode(ATTACKER) == "base v2"
    evil.received.clear()
    evil.send(OURS, asking(alice.node.local.nonce_for(ATTACKER, alice.now)))
    net.run(0.1)
    net.inject(ATTACKER, THEIRS, evil.received[0][1])
    assert alice.node.counters["unasked_answer"] == 1
    assert alice.node.table.by_name == {}
