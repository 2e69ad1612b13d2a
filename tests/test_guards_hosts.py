# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: peers that were added by the name of a host."""

from __future__ import annotations

import pytest
from base_net import BaseHost
from fakenet import FakeNet, Host
from test_names import B2, NAME, OTHER_NAME, A, B, announced_to, check_table
from test_protocol_edges import C, D, rogue_and_host

import vault_udp_socket_helper as crypto


@pytest.fixture
def net() -> FakeNet:
    return FakeNet()


def test_who_is_found_before_its_name_is_tried_again_is_not_looked_up(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice = net.node(A, NAME)
    net.run(5)
    net.names.clear()
    assert net.run_until(lambda: alice.node.counters["name_not_resolved"] == 1, limit=1000)
    net.node(B, A)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=0.9)
    before = list(net.lookups)
    net.run(100)
    assert net.lookups == before


def test_a_name_is_not_asked_for_again_before_the_answer_has_come(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    net.lookup_delay = 1000.0
    alice = net.node(A, NAME)
    net.run(999)
    assert len(net.lookups) == 1
    net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)


def test_a_late_answer_for_the_second_name_of_a_peer_moves_nothing(net: FakeNet) -> None:
    net.names["host.example"] = net.names["other.example"] = ["10.0.0.2"]
    alice, _bob = net.node(A, NAME, OTHER_NAME), net.node(B)
    net.run(2)
    first, second = alice.peer(NAME).names
    assert first != second
    alice.node.resolved(second, [B2], "", alice.now)
    check_table(alice)
    assert alice.node.table.by_place == {B: [alice.peer(NAME)]}


def test_an_address_that_a_name_server_tells_twice_is_one_place(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3", "10.0.0.2"]
    alice = net.node(A, NAME)
    net.run(1)
    peer = alice.peer(NAME)
    assert alice.node.table.by_place == {B: [peer], B2: [peer]}
    alice.remove_peer(NAME)
    assert alice.node.table.by_place == {}


def test_an_answer_that_comes_when_the_peer_is_found_does_not_announce_to_anybody(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, _bob = net.node(A, NAME), net.node(B)
    net.run(2)
    assert alice.is_ready(NAME)
    before = announced_to(net)
    with alice._acting():
        alice.node.resolved(NAME, [B, B2], "", alice.now)
    net.run(20)
    assert announced_to(net) == before


def test_where_the_peer_was_last_is_looked_at_first_as_long_as_its_name_leads_there(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, bob = net.node(A, NAME), net.node(B2)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)
    net.run(1)
    bob.stop()
    lookups = len(net.lookups)
    net.run(1)
    assert len(net.lookups) == lookups + 1
    assert alice.peer(NAME).session.endpoint == B2


def test_what_is_held_back_for_an_answer_leaves_with_it_although_it_is_the_same(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    _alice, bob = net.node(A, NAME), net.node(B)
    net.run(2)
    bob.stop()
    before = len(announced_to(net)[B])
    assert net.run_until(lambda: len(announced_to(net)[B]) > before, limit=5)
    asked_at, _ = net.lookups[-1]
    assert net.now == pytest.approx(asked_at + net.lookup_delay)


def looked_for(net: FakeNet, seconds: float) -> Host:
    """Alice, who looks for a peer that is at neither of its two addresses."""
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice = net.node(A, NAME)
    net.run(seconds)
    return alice


def schedule_of(host: Host) -> tuple[float, int, int]:
    peer = host.peer(NAME)
    assert peer.host is not None
    return peer.announced_since, peer.announcements, peer.host.reach


@pytest.mark.parametrize("answer", [[], [B2, B], [B, C]])
def test_an_answer_with_nothing_new_alone_does_not_begin_the_schedule_anew(
    net: FakeNet, answer: list[tuple[str, int]]
) -> None:
    alice = looked_for(net, 5)
    before = schedule_of(alice)
    assert min(before[1:]) >= 2
    alice.node.resolved(NAME, answer, "no such name", alice.now)
    assert schedule_of(alice) == before


def test_an_answer_with_new_addresses_alone_begins_the_schedule_anew(net: FakeNet) -> None:
    alice = looked_for(net, 5)
    alice.node.resolved(NAME, [C, D], "", alice.now)
    assert schedule_of(alice) == (alice.now, 0, 0)


def test_failures_do_not_begin_the_schedule_anew(net: FakeNet) -> None:
    alice = net.node(A, NAME)
    began_at = alice.now
    net.run(10)
    assert alice.node.counters["name_not_resolved"] >= 4
    assert schedule_of(alice)[0] == began_at


def test_where_the_peer_was_last_is_announced_to_once_at_a_time(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    _alice, bob = net.node(A, NAME), net.node(B)
    net.run(2)
    bob.stop()
    before = len(announced_to(net)[B])
    net.run(10)
    times = announced_to(net)[B][before:]
    assert len(times) == len(set(times)) > 5


def test_a_peer_that_has_moved_is_looked_for_where_it_was_last_too(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(2)
    bob.move(B2, knowingly=False)
    bob.send(A, b"from elsewhere")
    net.run(1)
    assert alice.peer(NAME).session.endpoint == B2
    bob.stop()
    net.run(5)
    assert len(announced_to(net)[B2]) > 2
    assert len(announced_to(net)[B]) > 2


def test_who_is_just_shaking_hands_stays_where_it_has_settled() -> None:
    net, alice, rogue = rogue_and_host()
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice.add_peer(NAME)
    net.run(0.1)
    rogue.shake_hands(B)
    peer = alice.peer(NAME)
    for _ in range(10):
        assert peer.session.pairs
        assert peer.host is not None
        assert peer.host.place == B
        net.run(0.1)


def test_an_added_base_peer_does_not_make_way_for_a_name_with_a_key(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, them = net.node(A, B), BaseHost(net, address=B)
    them.add_peer(A)
    assert net.run_until(lambda: alice.is_ready(B), limit=10)
    alice.add_peer(NAME, b"\1" * 32)
    net.run(5)
    assert alice.node.table.added_names() == [B, NAME]
    assert alice.mode(B) == "base v2"
    alice.send(B, b"still there")
    net.run(1)
    assert them.texts() == ["still there"]


def test_a_name_with_a_key_does_not_join_who_has_shown_that_key_in_base_mode_only(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, them = net.node(A, B), BaseHost(net, address=B)
    them.add_peer(A)
    assert net.run_until(lambda: alice.is_ready(B), limit=10)
    alice.add_peer(NAME, crypto.b64_str_to_bytes(them.peer.sign_key))
    net.run(5)
    assert alice.peer(NAME) is not alice.peer(B)
    assert not alice.is_ready(NAME)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_name_that_leads_to_somebody_else_joins_him_unless_the_first_one_lasts(
    net: FakeNet, persistent: bool
) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME, B2), net.node(B, persistent=persistent)
    carol = net.node(B2)
    net.run(2)
    assert alice.is_ready(NAME)
    assert alice.is_ready(B2)
    net.names["host.example"] = ["10.0.0.3"]
    bob.kill()
    alice.send(NAME, b"lost")
    assert net.run_until(lambda: not alice.is_ready(NAME), limit=20)
    alice.send(NAME, b"for bob alone")
    net.run(5)
    assert (alice.peer(NAME) is alice.peer(B2)) is not persistent
    assert alice.is_ready(NAME) is not persistent
    assert carol.received == []
    assert alice.node.counters["queued_for_another_identity"] == (0 if persistent else 1)


def test_nothing_is_announced_for_a_name_where_somebody_else_is(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, _bob = net.node(A, B), net.node(B)
    net.run(2)
    before = announced_to(net)
    alice.add_peer(NAME, b"\1" * 32)
    net.run(10)
    assert announced_to(net) == before
