# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: the table of peers."""

from __future__ import annotations

import pytest
from fakenet import FakeNet
from test_names import B2, NAME, OTHER_NAME, A, B, check_table

from vault_udp_peer import Peer


@pytest.fixture
def net() -> FakeNet:
    return FakeNet()


def test_who_has_left_the_table_is_not_found_by_its_identity(net: FakeNet) -> None:
    alice, bob = net.node(A, B), net.node(B)
    net.run(1)
    table = alice.node.table
    assert table.with_identity(bob.sign_public) == (alice.peer(B),)
    alice.remove_peer(B)
    assert table.with_identity(bob.sign_public) == ()


def test_who_has_left_the_table_gets_no_broadcasts(net: FakeNet) -> None:
    alice = net.node(A, B, NAME)
    alice.remove_peer(B)
    assert list(alice.node.table.added) == [alice.peer(NAME)]


def test_a_peer_that_loses_one_of_its_hosts_names_leaves_no_place_behind(net: FakeNet) -> None:
    net.names["host.example"] = net.names["other.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, _bob = net.node(A, NAME, OTHER_NAME), net.node(B)
    net.run(2)
    table, peer = alice.node.table, alice.peer(NAME)
    assert peer is alice.peer(OTHER_NAME)
    alice.remove_peer(NAME)
    check_table(alice)
    assert table.by_place == {B: [peer], B2: [peer]}
    alice.remove_peer(OTHER_NAME)
    assert table.by_place == {}


def test_what_waited_for_who_is_known_already_is_not_counted_as_lost(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, B), net.node(B)
    net.run(1)
    alice.add_peer(NAME)
    alice.send(NAME, b"waits for the name")
    net.run(1)
    assert alice.peer(NAME) is alice.peer(B)
    assert bob.received == [(A, b"waits for the name")]
    assert alice.node.counters["peer_removed"] == 0
    assert alice.peer(B).counters is None


def places_of(peer: Peer) -> list[tuple[str, int]]:
    assert peer.host is not None
    return peer.host.places


def test_a_stranger_that_gets_the_name_of_a_host_gets_all_its_places(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.3", "10.0.0.2"]
    alice, _bob = net.node(A), net.node(B, A)
    net.run(1)
    alice.add_peer(NAME)
    net.run(2)
    assert alice.node.table.added_names() == [NAME]
    assert alice.is_ready(NAME)
    assert places_of(alice.peer(NAME)) == [B2, B]
    check_table(alice)


def test_a_second_name_takes_no_places_from_the_first(net: FakeNet) -> None:
    net.names.update({"host.example": ["10.0.0.2", "10.0.0.3"], "other.example": ["10.0.0.2"]})
    alice, _bob = net.node(A, NAME), net.node(B)
    net.run(1)
    alice.add_peer(OTHER_NAME)
    net.run(1)
    assert alice.peer(OTHER_NAME) is alice.peer(NAME)
    assert places_of(alice.peer(NAME)) == [B, B2]
    check_table(alice)
