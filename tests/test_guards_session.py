# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: sessions."""

from __future__ import annotations

import pytest
from fakenet import EPOCH, both_ready
from test_protocol import A, B, two_in_session
from test_protocol_edges import GOT, C, Rogue, rogue_and_host

import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_session
from vault_udp_keys import NO_KEY, SessionKey, read_hello_untrusted


def test_a_session_with_another_identity_keeps_no_pair_of_the_one_before() -> None:
    net, host, rogue = rogue_and_host()
    rogue.come_up(B)
    session, other = host.peer(B).session, Rogue(net, host)
    before = list(session.pairs)
    session.accept_hello(other.hello(other.local.current), session.endpoint, host.now)
    assert not set(before) & set(session.pairs)
    assert session.send is None


def test_a_hello_that_is_repeated_at_once_is_answered_each_time() -> None:
    _, host, rogue = rogue_and_host()
    host.add_peer(B)
    pair = rogue.come_up(B)
    for _ in range(3):
        rogue.shake_hands(B)
        assert any(data.startswith(pair.open_tag) for _, data in rogue._ends[B].received)
    assert host.node.counters["too_many_keys"] == 0


def test_who_is_lost_is_announced_to_with_an_echo() -> None:
    net, alice, bob = two_in_session()
    net.hook = lambda datagram: []
    alice.send(B, b"unanswered")
    assert net.run_until(lambda: alice.mode(B) == "lost", limit=10)
    without = bob.node.counters["hello_without_echo"]
    net.hook = net.route
    assert net.run_until(lambda: alice.mode(B) == "session", limit=5)
    assert bob.node.counters["hello_without_echo"] == without


def test_a_hello_that_comes_late_does_not_move_a_clock_that_was_measured() -> None:
    _, alice, bob = two_in_session()
    session = alice.peer(B).session
    measured, key = session.clock_offset, bob.node.local.current
    hello = Rogue(bob.net, alice).hello(key, sign=bob.sign_public)
    hello = hello._replace(time=bob.node.local.session_time(bob.now) - 15)
    session.accept_hello(hello, session.endpoint, alice.now)
    assert session.clock_offset == measured


def test_a_pair_that_nothing_has_opened_under_is_not_remembered() -> None:
    net, host, rogue = rogue_and_host()
    rogue.shake_hands(B)
    assert host.peer(B).session.pairs
    net.run(30)
    assert not host.peer(B).session.pairs
    assert not host.node.retired


@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_was_accepted_is_not_accepted_after_a_pair_has_come_back_twice(times: int) -> None:
    net, host, rogue = rogue_and_host()
    host.add_peer(B)
    pair = rogue.come_up(B)
    body = packet.make_payload_body(packet.store_frame(b"once"), 1393)
    (recorded,) = pair.seal([body], EPOCH + net.now)
    host.arrive(B, recorded)
    host.arrive(B, rogue.sealed(pair, {"type": "bye"}))
    for _ in range(times):
        rogue.shake_hands(B)
        (back,) = host.peer(B).session.pairs
        host.peer(B).session._drop(back)  # nobody has confirmed it
    rogue.shake_hands(B)
    host.arrive(B, recorded)
    assert host.received == [(B, b"once")]
    assert host.node.counters["replayed"] == 1


def test_an_answer_to_a_ping_of_before_a_goodbye_opens_no_pair() -> None:
    _, host, rogue = rogue_and_host()
    host.add_peer(B)
    pair = rogue.come_up(B)
    ours = [data for _, data in rogue._ends[B].received if data.startswith(pair.open_tag)]
    members = [control_format.read_json(packet.read_body(pair.open(data)[1]).control) for data in ours]
    nonce = next(member["nonce"] for member in members if not member["got"])
    answer = {**GOT, "echo": nonce, "time": round(EPOCH * 1000)}
    held_back = rogue.sealed(pair, answer)
    host.arrive(B, rogue.sealed(pair, {"type": "bye"}))
    rogue.shake_hands(B)
    host.arrive(B, held_back)
    assert host.mode(B) == "waiting for keys"


def test_a_rekey_that_was_due_ends_with_its_session() -> None:
    net, alice, bob = two_in_session()
    net.hook = lambda datagram: net.route(datagram) if datagram.src == B else []
    alice.set_lifetime(5)
    assert net.run_until(lambda: alice.node.local.current.epoch == 1, limit=10)
    bob.stop()
    net.run(10)
    assert alice.mode(B) == "waiting for keys"


def test_the_last_eight_keys_with_which_sessions_ended_are_remembered() -> None:
    net, host, rogue = rogue_and_host()
    host.add_peer(B)
    keys = [SessionKey(0) for _ in range(10)]
    for key in keys[:9]:
        pair = rogue.come_up(B, key)
        host.arrive(B, rogue.sealed(pair, {"type": "bye"}))
        net.run(1)
    rogue.come_up(B, keys[9])
    for key, refused in ((keys[1], 1), (keys[8], 2), (keys[0], 2)):
        net.run(1)
        rogue.shake_hands(B, key)
        assert host.node.counters["stale_hello"] == refused


def test_who_has_said_goodbye_and_begins_anew_is_not_told_that_its_key_is_held() -> None:
    net, alice, bob = two_in_session()
    before = len(net.sent)
    bob.remove_peer(A)
    bob.add_peer(A)
    assert net.run_until(lambda: both_ready(alice, bob), limit=5)
    full = [sent.data for sent in net.sent[before:] if sent.src == A and len(sent.data) == 1024]
    assert {holds_of(announcement) for announcement in full} == {NO_KEY}


def test_who_has_lost_all_pairs_to_rotations_is_not_told_that_its_key_is_held() -> None:
    net, alice, bob = two_in_session()
    bob.kill()
    alice.set_lifetime(5)
    assert net.run_until(lambda: alice.node.local.current.epoch == 3, limit=20)
    before = len(net.sent)
    net.run(1)
    hellos = [holds_of(sent.data) for sent in net.sent[before:] if packet.looks_clear(sent.data)]
    assert set(hellos) == {NO_KEY}


def holds_of(announcement: bytes) -> bytes:
    members = control_format.read_json(packet.read_body(announcement).control)
    hello = control_format.read_announcement(members).hello
    assert hello is not None
    return read_hello_untrusted(hello).holds


def test_the_first_key_that_opens_is_the_peers_whatever_hello_came_meanwhile() -> None:
    net, host, rogue = rogue_and_host()
    first, other = SessionKey(0), SessionKey(0)
    pair = rogue.shake_hands(B, first)
    rogue.shake_hands(B, other)
    host.arrive(B, rogue.sealed(pair, GOT))
    session = host.peer(B).session
    assert session.enc == first.public
    # The one may announce itself again, the other not.
    net.run(1)
    rogue.shake_hands(B, first)
    assert host.node.counters["stale_hello"] == 0
    rogue.shake_hands(B, other)
    assert host.node.counters["stale_hello"] == 1


def test_the_first_key_that_opens_can_be_rotated_whatever_hello_came_meanwhile() -> None:
    _net, host, rogue = rogue_and_host()
    pair, second = rogue.shake_hands(B, SessionKey(0)), SessionKey(1)
    rogue.shake_hands(B, SessionKey(5))
    host.arrive(B, rogue.sealed(pair, GOT))
    rogue.rekey(B, pair, second)
    assert host.peer(B).session.enc == second.public
    assert host.node.counters["stale_hello"] == 0


def test_nothing_of_a_former_process_opens_when_the_new_one_has_shown_its_keys() -> None:
    net, host, rogue = rogue_and_host()
    former = rogue.come_up(B)
    body = packet.make_payload_body(packet.store_frame(b"late"), 1393)
    net.run(1)
    rogue.come_up(B, SessionKey(0))
    host.arrive(B, former.seal([body], EPOCH + net.now)[0])
    assert host.received == []
    assert host.node.counters["unknown_tag"] == 1


def test_what_is_on_its_way_under_the_pair_of_before_a_rotation_opens_after_another_hello() -> None:
    net, host, rogue = rogue_and_host()
    before = rogue.come_up(B)
    body = packet.make_payload_body(packet.store_frame(b"on its way"), 1393)
    host.node.local.rotate()
    after = rogue.shake_hands(B)
    host.arrive(B, rogue.sealed(after, GOT))
    send = host.peer(B).session.send
    assert send is not None
    assert send.mine is host.node.local.current
    host.arrive(B, before.seal([body], EPOCH + net.now)[0])
    assert host.received == [(B, b"on its way")]


def test_pings_that_were_answered_late_do_not_count_the_next_time() -> None:
    net, alice, _bob = two_in_session()
    for _ in range(3):
        net.hook = lambda datagram: []
        alice.send(B, b"unanswered")
        net.run(4.5)
        net.hook = net.route
        net.run(5)
        assert alice.mode(B) == "session"
    assert alice.kinds_of_events(B) == ["ready"]


def test_a_goodbye_of_long_ago_ends_nothing() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    body = packet.make_control_body(b'{"type":"bye"}', 1393)
    host.arrive(B, pair.seal([body], EPOCH + net.now - 61)[0])
    assert host.node.counters["outside_window"] == 1
    assert host.mode(B) == "session"


def test_control_of_an_unknown_type_is_ignored() -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    for members in ({"type": "later"}, {}, {"type": "BYE", "got": True}):
        host.arrive(B, rogue.sealed(pair, members))
    assert host.mode(B) == "session"
    assert host.refused == []


def test_a_confirm_that_neither_asks_nor_tells_is_refused() -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    host.arrive(B, rogue.sealed(pair, {"type": "confirm"}))
    assert host.node.counters["bad_control"] == 1


def test_a_pair_that_has_come_back_is_asked_for_until_an_answer_comes() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    host.arrive(B, rogue.sealed(pair, {"type": "bye"}))
    rogue.shake_hands(B)
    host.arrive(B, rogue.sealed(pair, {"type": "confirm", "got": False}))
    net.run(0.1)
    end = rogue.end(B)
    net.run(0.5)
    assert any(data.startswith(pair.open_tag) for _, data in end.received)


@pytest.mark.parametrize(
    ("asked", "answered"), [(48, 128), (127, 128), (300, 300), (1393, 1393), (4000, 1393)]
)
def test_an_answer_to_a_ping_has_room_and_is_no_longer_than_we_send(asked: int, answered: int) -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    net.run(1)
    end = rogue.end(B)
    host.arrive(B, rogue.sealed(pair, {"type": "confirm", "got": False}, asked))
    net.run(0.01)
    assert [len(data) - 64 for _, data in end.received] == [answered]


def test_who_does_not_hear_us_elsewhere_says_nothing_about_the_path() -> None:
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    host.arrive(C, rogue.sealed(pair, {"type": "confirm", "got": False, "silent": True}, 500))
    assert host.peer(B).session.body_size == 1393
    host.arrive(B, rogue.sealed(pair, {"type": "confirm", "got": False, "silent": True}, 500))
    assert host.peer(B).session.body_size < 500


def test_an_answer_that_was_held_back_measures_nothing() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    nonce = rogue.pings(B, pair)[0]
    net.run(21)
    answer = {**GOT, "echo": nonce, "time": round((EPOCH + net.now - 21) * 1000)}
    before = host.peer(B).session.clock_offset
    host.arrive(B, rogue.sealed(pair, answer))
    assert host.peer(B).session.clock_offset == before
    assert host.peer(B).session.round_trip is None


def test_an_answer_from_elsewhere_than_the_ping_went_moves_nobody() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    nonce = rogue.pings(B, pair)[0]
    answer = {**GOT, "echo": nonce, "time": round((EPOCH + net.now) * 1000)}
    host.arrive(C, rogue.sealed(pair, answer))
    assert host.peer(B).session.endpoint == B


def test_a_rekey_for_somebody_else_is_refused() -> None:
    net, host, rogue = rogue_and_host()
    pair, key = rogue.come_up(B), SessionKey(1)
    for fields in ({"to_sign": NO_KEY}, {"to_sign": rogue.local.sign_public}):
        members = rogue.signed(rogue.hello(key, **fields))
        host.arrive(B, rogue.sealed(pair, {"type": "rekey", **members}))
    other = Rogue(net, host)
    members = other.signed(other.hello(key, to_sign=host.sign_public))
    host.arrive(B, rogue.sealed(pair, {"type": "rekey", **members}))
    assert host.node.counters["bad_announcement"] == 3
    assert host.peer(B).session.enc == rogue.local.current.public


def test_a_rekey_whose_proof_is_bad_is_refused() -> None:
    _, host, rogue = rogue_and_host()
    pair, key = rogue.come_up(B), SessionKey(1)
    members = rogue.signed(rogue.hello(key, to_sign=rogue.theirs))
    members["proof"] = rogue.signed(rogue.hello(SessionKey(1), to_sign=rogue.theirs))["proof"]
    host.arrive(B, rogue.sealed(pair, {"type": "rekey", **members}))
    assert host.node.counters["bad_proof"] == 1
    assert host.peer(B).session.enc == rogue.local.current.public


def test_proofs_are_looked_at_as_often_as_keys_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature costs ten times what the rest of a datagram does."""
    _, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    looked: list[object] = []
    monkeypatch.setattr(vault_udp_session, "proof_is_good", lambda *args: looked.append(args))
    for key in (rogue.local.current, SessionKey(1), SessionKey(2), SessionKey(0)):
        members = rogue.signed(rogue.hello(key, to_sign=rogue.theirs))
        members["proof"] = "A" * 86 + "=="
        for _ in range(5):
            host.arrive(B, rogue.sealed(pair, {"type": "rekey", **members}))
    assert len(looked) == 1
    assert host.peer(B).session.enc == rogue.local.current.public


@pytest.mark.parametrize(("epoch", "taken"), [(4, False), (5, False), (6, True)])
def test_a_rekey_with_no_higher_epoch_is_ignored(epoch: int, taken: bool) -> None:
    _, host, rogue = rogue_and_host()
    pair, key = rogue.come_up(B, SessionKey(5)), SessionKey(epoch)
    rogue.rekey(B, pair, key)
    assert (host.peer(B).session.enc == key.public) == taken


def test_who_alone_has_seen_the_session_begin_is_told_that_it_is_over() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.shake_hands(B)
    end = rogue.end(B)
    host.remove_peer(B)
    net.run(0.01)
    (data,) = [data for _, data in end.received]
    assert control_format.read_json(packet.read_body(pair.open(data)[1]).control) == {"type": "bye"}
