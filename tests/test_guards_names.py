# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: keys given with names, peers with several."""

from __future__ import annotations

import pytest
from base_net import BaseHost
from fakenet import FakeNet, Host
from test_names import B2, NAME, OTHER_NAME, A, B, check_table


@pytest.fixture
def net() -> FakeNet:
    return FakeNet()


def test_a_key_given_with_a_name_still_binds_it_when_its_second_name_is_split_off(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B)
    alice.add_peer(NAME, bob.sign_public)
    alice.add_peer(B)
    net.run(1)
    assert alice.peer(NAME) is alice.peer(B)
    # The name leads to somebody else now.
    net.names["host.example"] = ["10.0.0.3"]
    bob.stop()
    thief = net.node(B2)
    net.run(2)
    assert alice.peer(NAME) is not alice.peer(B)
    alice.send(NAME, b"for bob alone")
    net.run(5)
    assert alice.peer(NAME).supplied == bob.sign_public
    assert thief.received == []


def test_a_removed_name_is_bound_to_no_key_when_it_is_added_again(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B)
    alice.add_peer(NAME, b"\1" * 32)
    net.run(1)
    assert not alice.is_ready(NAME)
    alice.remove_peer(NAME)
    alice.add_peer(NAME)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)
    assert bob.mode(A) == "session"


def test_an_ip_with_a_known_key_does_not_become_the_second_name_of_somebody_else(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    known: dict[tuple[str, int], bytes] = {}
    alice, bob = net.node(A, known=known), net.node(B)
    alice.add_peer(NAME)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)
    known[B] = b"\1" * 32  # the user has written it into the file meanwhile
    alice.add_peer(B)
    alice.send(B, b"for somebody else")
    net.run(5)
    assert alice.peer(B) is not alice.peer(NAME)
    assert not alice.is_ready(B)
    assert bob.received == []


def test_a_key_given_for_the_second_name_of_a_peer_binds_that_name_alone(net: FakeNet) -> None:
    net.names["host.example"] = net.names["other.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME, OTHER_NAME), net.node(B)
    net.run(5)
    assert alice.peer(NAME) is alice.peer(OTHER_NAME)
    alice.add_peer(OTHER_NAME, b"\1" * 32)
    alice.send(OTHER_NAME, b"for somebody else")
    net.run(5)
    assert alice.peer(OTHER_NAME).supplied == b"\1" * 32
    assert alice.peer(NAME).supplied is None
    assert alice.is_ready(NAME)
    assert bob.received == []


def test_a_base_peer_that_loses_one_of_two_names_is_still_reached(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), BaseHost(net, address=B)
    bob.add_peer(A)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)
    alice.add_peer(B)
    assert alice.peer(B) is alice.peer(NAME)
    alice.remove_peer(NAME)
    alice.send(B, b"still there")
    net.run(1)
    assert bob.texts() == ["still there"]


def moved_lost_and_back(net: FakeNet, *added: tuple[str, int]) -> tuple[Host, Host]:
    """Alice, who has met bob by name at B; he has moved to B2, was lost, and speaks from there."""
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME, *added), net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=5)
    net.run(1)
    bob.move(B2, knowingly=False)
    bob.send(A, b"from elsewhere")
    net.run(1)
    assert alice.peer(NAME).session.endpoint == B2
    net.hook = lambda datagram: []
    alice.send(NAME, b"unanswered")
    assert net.run_until(lambda: alice.mode(NAME) == "lost", limit=20)
    net.hook = net.route
    bob.send(A, b"back")
    assert net.run_until(lambda: alice.mode(NAME) == "session", limit=0.01)
    return alice, bob


def test_who_is_back_at_another_address_has_settled_there(net: FakeNet) -> None:
    alice, _bob = moved_lost_and_back(net)
    check_table(alice)
    # Where the name leads is for others now.
    carol = net.node(B, A)
    net.run(5)
    assert carol.mode(A) == alice.mode(B) == alice.mode(NAME) == "session"
    assert alice.node.counters["identity_refused"] == 0


def test_who_is_back_at_the_address_of_another_entry_has_not_settled_there(net: FakeNet) -> None:
    alice, _ = moved_lost_and_back(net, B2)
    check_table(alice)
    assert alice.peer(B2) is not alice.peer(NAME)
