# SPDX-License-Identifier: Apache-2.0
"""Peers added by the names of their hosts: forms of names, places, re-resolution, and who waits for whom."""

from __future__ import annotations

import gc
import logging
import random
import socket
import threading
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from base_net import PORT_HABITS, VERSIONS, BaseHost, Nets
from fakenet import FakeNet, Host
from loopback import PATIENCE, Inbox, address_of, eventually, has_ipv6, on_posix, run_thread

import vault_udp_socket_helper as crypto
from vault_udp_address import canonical_host, is_host
from vault_udp_control import read_announcement, read_json
from vault_udp_keys import read_hello_untrusted
from vault_udp_packet import looks_clear, read_body
from vault_udp_resolver import MAX_THREADS, Resolver
from vault_udp_socket import InvalidArgumentError, UDPSocketClass

A = ("10.0.0.1", 1001)
B = ("10.0.0.2", 1002)
B2 = ("10.0.0.3", 1002)
V6 = ("fd00::2", 1002)
NAME = ("host.example", 1002)
OTHER_NAME = ("other.example", 1002)
KEY = crypto.bytes_to_b64_str(b"\1" * 32)
DEAD = [(f"10.0.9.{number}", 1002) for number in range(9)]


# ------------------------------------------------------------------------------------------ forms of names


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("host.example", "host.example"),
        ("Host.Example.", "host.example"),
        ("localhost", "localhost"),
        ("3com.example", "3com.example"),
        ("a.x1", "a.x1"),
        ("my_service", "my_service"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("Bücher.Example", "bücher.example"),
        ("bu\u0308cher.example", "bücher.example"),
        ("例え。テスト。", "例え.テスト"),
        ("x" * 63 + ".example", "x" * 63 + ".example"),
        ("a." * 126 + "b", "a." * 126 + "b"),
        ("a." * 126 + "b.", "a." * 126 + "b"),
    ],
)
def test_a_name_has_one_form(given: str, canonical: str) -> None:
    assert canonical_host(given) == canonical
    assert canonical_host(canonical) == canonical
    assert is_host(canonical)


BAD_NAMES = [
    "",
    ".",
    "a..b",
    ".a",
    "a b",
    " a",
    "a\n",
    "a\0",
    "-a.example",
    "a-.example",
    "a,b",
    "a/b",
    "a%eth0",
    "256.1.1.1",
    "1.2.3",
    "1.2.3.4.5",
    "host.1",
    "0x7f000001",
    "host.0x1",
    "１.２.３",
    "fe80::1::2",
    "[::1]",
    "x" * 64 + ".example",
    "a." * 126 + "bc",
    "ü" * 64 + ".example",
    "\ud800.example",
    "x" * 100_000,
    "ü" * 100_000,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused_and_not_looked_up(name: str) -> None:
    asked: list[object] = []
    with UDPSocketClass(0) as sock:
        sock._resolver._getaddrinfo = lambda *args: asked.append(args)
        with pytest.raises(InvalidArgumentError) as caught:
            sock.add_peer((name, 8000))
        assert repr(name) in str(caught.value)
        assert "host's name" in str(caught.value)
        assert sock.get_peers() == []
    assert asked == []


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "fe80::1%lo"])
def test_an_ip_is_no_name(ip: str) -> None:
    assert not is_host(ip)


# --------------------------------------------------------------------------------------- on the fake network


def announced_to(net: FakeNet, source: tuple[str, int] = A) -> dict[tuple[str, int], list[float]]:
    """When announcements in clear went where."""
    times: dict[tuple[str, int], list[float]] = {}
    for sent in net.sent:
        if sent.src == source and len(sent.data) in (512, 1024):
            times.setdefault(sent.dst, []).append(sent.time)
    return times


def check_table(host: Host) -> None:
    """What holds for every table: each place leads to who has it, and a peer that has settled is found."""
    table = host.node.table
    for place, peers in table.by_place.items():
        assert peers
        assert all(peer.host is not None and place in peer.host.places and peer.names for peer in peers)
    for peer in table.all():
        assert (peer.host is not None) == is_host(peer.name[0])
        if peer.host is not None:
            assert all(peer in table.by_place[place] for place in peer.host.places)
            if peer.host.place is not None:
                assert table.settled_at(peer.host.place) is peer
    for address in host.node.base.links:
        settled = table.settled_at(address)
        assert settled is not None
        assert settled.listens_at == address


@pytest.fixture(name="net")
def _net() -> Iterator[FakeNet]:
    net = FakeNet(delay=0.01)
    yield net
    for end in set(net._ends.values()):
        if isinstance(end, Host):
            check_table(end)


def test_the_name_is_the_peers_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B)
    alice.add_peer(NAME)
    assert alice.node.info(alice.peer(NAME), alice.now)["endpoint"] is None
    alice.send(NAME, b"waits")
    assert net.run_until(lambda: bob.received == [(A, b"waits")], limit=0.2)
    bob.send(A, b"answer")
    net.run(0.1)
    assert alice.received == [(NAME, b"answer")]
    assert alice.kinds_of_events(NAME) == ["ready"]
    assert alice.node.table.added_names() == [NAME]
    assert set(alice.node.table.by_name) == {NAME}
    info = alice.node.info(alice.peer(NAME), alice.now)
    assert (info["endpoint"], info["addresses"], info["names"]) == (B, [B], [NAME])
    assert info["identity"] == crypto.bytes_to_b64_str(bob.sign_public)
    assert len(net.lookups) == 1
    bob.stop()
    net.run(0.1)
    assert alice.kinds_of_events(NAME) == ["ready", "lost"]
    assert alice.remove_peer(NAME)
    assert not alice.node.table.by_name
    assert not alice.node.table.by_place


def test_who_is_called_by_its_ip_is_the_peer_that_lives_there(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    alice.send(B, b"by its address")
    net.run(0.1)
    assert bob.received == [(A, b"by its address")]
    assert set(alice.node.table.by_name) == {NAME}


def test_before_the_peer_is_found_an_ip_is_nobody_but_itself(net: FakeNet) -> None:
    # Else the message would go to whichever of the host's addresses answers.
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, _ = net.node(A, NAME), net.node(B2)
    net.run(0.1)
    alice.send(B, b"for this address only")
    net.run(10)
    assert alice.mode(NAME) == "session"
    assert alice.peer(B).queue
    bob = net.node(B)
    assert net.run_until(lambda: bob.received == [(A, b"for this address only")], limit=20)


def test_a_failed_resolution_is_tried_again_counted_and_logged_once(
    net: FakeNet, caplog: pytest.LogCaptureFixture
) -> None:
    alice = net.node(A, NAME)
    alice.send(NAME, b"expires")
    with caplog.at_level(logging.WARNING):
        net.run(70)
    assert [round(asked) for asked, _ in net.lookups] == [0, 1, 3, 7, 15, 31, 63]
    assert alice.node.counters["name_not_resolved"] == 7
    assert alice.node.counters["expired_in_queue"] == 1
    told = [record.getMessage() for record in caplog.records if "resolved" in record.getMessage()]
    assert len(told) == 1
    assert "no such name" in told[0]
    assert announced_to(net) == {}
    net.run(1000)
    times = [asked for asked, _ in net.lookups]
    assert max(b - a for a, b in zip(times, times[1:])) < 61
    assert alice.kinds_of_events(NAME) == []
    # A new episode is told again.
    net.names["host.example"] = ["10.0.0.2"]
    bob = net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=62)
    net.run(0.1)
    del net.names["host.example"]
    bob.kill()
    with caplog.at_level(logging.WARNING):
        alice.send(NAME, b"lost")
        net.run(30)
    assert sum("resolved" in record.getMessage() for record in caplog.records) == 2


def test_a_name_that_is_resolved_late_gets_the_whole_schedule(net: FakeNet) -> None:
    alice = net.node(A, NAME)
    net.run(20)
    net.names["host.example"] = ["10.0.0.2"]
    bob = net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=17)
    sizes = [len(sent.data) for sent in net.sent if sent.src == A]
    assert sizes[0] == 1024, "the long form, which base peers understand, comes first"
    assert bob.node.table.all()


def test_failures_by_the_thousand_overflow_nothing(net: FakeNet) -> None:
    alice = net.node(A, NAME)
    for _ in range(3000):
        alice.node.resolved(NAME, [], "no", alice.now)
    host = alice.peer(NAME).host
    assert host is not None
    assert host.look_up_at == alice.now + 60


def test_the_second_address_is_tried_when_the_first_is_dead(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.9.0", "10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    alice.send(NAME, b"for whoever answers")
    assert net.run_until(lambda: bob.received == [(A, b"for whoever answers")], limit=0.5)
    times = announced_to(net)
    assert times[DEAD[0]][0] == pytest.approx(0.02)
    assert times[B][0] == pytest.approx(0.32, abs=0.05)
    net.run(5)
    assert len(announced_to(net)[DEAD[0]]) == 3, "nobody is announced to once the peer is up"
    assert alice.node.table.by_place == {B: [alice.peer(NAME)], DEAD[0]: [alice.peer(NAME)]}


def test_each_further_address_joins_two_announcements_later_and_eight_at_most(net: FakeNet) -> None:
    net.names["host.example"] = [ip for ip, _ in DEAD]
    net.node(A, NAME)
    net.run(200)
    times = announced_to(net)
    assert list(times) == DEAD[:8]
    firsts = [round(times[place][0] - times[DEAD[0]][0], 2) for place in DEAD[:4]]
    assert firsts == pytest.approx([0, 0.3, 1.2, 2.2], rel=0.11)
    assert times[DEAD[7]][0] < 20
    again = [time for time in times[DEAD[7]] if 120 < time < 121]
    assert again, "in later cycles every place is known to have been tried, and none waits"


def test_a_fast_first_address_is_left_alone_by_the_others(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, _, second = net.node(A, NAME), net.node(B), net.node(B2)
    net.run(10)
    assert alice.mode(NAME) == "session"
    assert B2 not in announced_to(net)
    assert second.node.table.all() == []


def test_another_server_that_answers_later_disturbs_nothing(net: FakeNet) -> None:
    # Two machines behind one name, both slow: the second is asked while the first is still answering.
    net.delay = 0.2
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, bob, second = net.node(A, NAME), net.node(B), net.node(B2)
    alice.send(NAME, b"once")
    net.run(30)
    assert bob.messages_from(A) == [b"once"]
    assert second.messages_from(A) == []
    assert alice.kinds_of_events(NAME) == ["ready"]
    assert alice.node.counters["queued_for_another_identity"] == 0
    info = alice.node.info(alice.peer(NAME), alice.now)
    assert info["identity"] == crypto.bytes_to_b64_str(bob.sign_public)


def test_who_answers_and_then_falls_silent_does_not_keep_the_others_out(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, first, second = net.node(A, NAME), net.node(B), net.node(B2)
    hellos: list[bytes] = []

    def only_hellos(datagram: Any) -> Any:
        if datagram.dst == A and datagram.src == B:
            hellos.append(datagram.data)
            return net.route(datagram) if len(datagram.data) == 512 else []
        return net.route(datagram) if B not in (datagram.src, datagram.dst) or len(hellos) < 3 else []

    net.hook = only_hellos
    assert net.run_until(lambda: alice.is_ready(NAME), limit=60)
    net.run(1)
    identity = alice.node.info(alice.peer(NAME), alice.now)["identity"]
    assert identity == crypto.bytes_to_b64_str(second.sign_public)
    assert first.alive


def test_all_addresses_are_dead_until_one_of_them_is_not(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.9.0", "10.0.0.2", "10.0.9.1"]
    alice = net.node(A, NAME)
    net.run(100)
    assert not alice.is_ready(NAME)
    bob = net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=17)
    alice.send(NAME, b"there you are")
    net.run(0.1)
    assert bob.received == [(A, b"there you are")]


def test_while_nothing_is_up_the_name_is_asked_for_every_cycle(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.9.0"]
    alice = net.node(A, NAME)
    net.run(250)
    assert [round(asked) for asked, _ in net.lookups] == [0, 120, 240]
    net.names["host.example"] = ["10.0.0.2"]
    net.node(B)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=121)
    net.run(0.1)
    there = len(announced_to(net)[DEAD[0]])
    net.run(60)
    assert len(announced_to(net)[DEAD[0]]) == there
    assert B in alice.node.table.by_place
    assert DEAD[0] not in alice.node.table.by_place


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_peer_that_moved_is_found_where_the_name_leads_now(net: FakeNet, says_goodbye: bool) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    assert alice.mode(NAME) == "session"
    assert len(net.lookups) == 1
    if says_goodbye:
        bob.stop()
    else:
        bob.kill()
    bob.address = B2
    net.names["host.example"] = ["10.0.0.3"]
    bob.restart()
    alice.send(NAME, b"lost unless it said goodbye")
    assert net.run_until(
        lambda: alice.kinds_of_events(NAME)[-1] == "ready" and bob.node.table.all() != [], 15
    )
    alice.send(NAME, b"hello again")
    net.run(0.1)
    assert bob.received[-1] == (A, b"hello again")
    assert alice.peer(NAME).session.endpoint == B2
    assert alice.node.table.by_place == {B2: [alice.peer(NAME)]}
    sent = len(announced_to(net)[B])
    net.run(30)
    assert len(announced_to(net)[B]) == sent


def test_a_name_that_changes_while_the_session_is_up_disturbs_nothing(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    assert alice.mode(NAME) == "session"
    alice.node.resolved(NAME, [B2], "", alice.now)  # an answer that took its time
    net.run(60)
    alice.send(NAME, b"still you")
    net.run(0.1)
    assert bob.received == [(A, b"still you")]
    assert B2 not in announced_to(net)
    assert net.lookups == [(0.0, NAME)]


def test_a_peer_that_roams_keeps_its_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    bob.move(("10.0.0.77", 7777))
    bob.send(A, b"from elsewhere")
    net.run(1)
    assert alice.received == [(NAME, b"from elsewhere")]
    assert alice.peer(NAME).session.endpoint == ("10.0.0.77", 7777)


def test_an_ipv6_address_has_its_own_size(net: FakeNet) -> None:
    net.names["host.example"] = ["fd00::2"]
    alice = net.node(A, alias=("fd00::1", 1001))
    alice.add_peer(NAME)
    room = alice.peer(NAME).session.body_size
    net.node(B, alias=V6)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=1)
    assert alice.peer(NAME).session.body_size == room == 1373


def test_an_ipv4_address_has_its_own_size(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, _ = net.node(A, NAME), net.node(B)
    net.run(1)
    assert alice.peer(NAME).session.body_size == 1393


# ------------------------------------------------------------------------------------------------ identities


def test_a_supplied_key_holds_at_every_address(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, wrong, right = net.node(A), net.node(B), net.node(B2)
    alice.add_peer(NAME, right.sign_public)
    alice.send(NAME, b"for the owner of the key")
    net.run(5)
    assert right.received == [(A, b"for the owner of the key")]
    assert wrong.received == []
    assert "rejected" in alice.kinds_of_events(NAME)


def test_a_name_is_met_and_remembered_as_a_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    known: dict[tuple[str, int], bytes] = {}
    alice = net.node(A, known=known)
    bob = net.node(B, persistent=True)
    alice.add_peer(NAME)
    net.run(1)
    met = [(event.address, event.detail) for _, event in alice.events if event.kind == "met"]
    assert met == [(NAME, crypto.bytes_to_b64_str(bob.sign_public))]
    # Elsewhere under the same name, it must be the same.
    net.names["host.example"] = ["10.0.0.3"]
    bob.stop()
    impostor = net.node(B2)
    net.run(30)
    assert not alice.is_ready(NAME)
    assert impostor.node.table.all() == [] or impostor.received == []
    # After a restart of ours, too: the file has the line.
    known[NAME] = bob.sign_public
    carol = net.node(("10.0.0.5", 1005), known=known)
    carol.add_peer(NAME)
    net.run(30)
    assert not carol.is_ready(NAME)


def test_what_the_file_says_of_an_address_holds_for_names_that_lead_there(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, _ = net.node(A, known={B: b"\1" * 32}), net.node(B)
    alice.add_peer(NAME)
    net.run(10)
    assert not alice.is_ready(NAME)
    assert "rejected" in alice.kinds_of_events(NAME)


# -------------------------------------------------------------------------------------- one of many names


def test_a_name_that_leads_to_an_added_peer_becomes_its_second_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, B), net.node(B)
    alice.add_peer(NAME)
    alice.send(NAME, b"one")
    alice.send(B, b"two")
    assert net.run_until(lambda: len(bob.received) == 2, limit=1)
    assert sorted(bob.messages_from(A)) == [b"one", b"two"]
    assert alice.peer(NAME) is alice.peer(B)
    assert alice.peer(B).names == [B, NAME]
    assert alice.kinds_of_events(NAME) == ["ready"]
    assert alice.node.table.added_names() == [B, NAME]
    alice.remove_peer(B)
    assert alice.node.table.added_names() == [NAME]
    check_table(alice)
    bob.send(A, b"still there")
    alice.send(NAME, b"and you")
    net.run(0.1)
    assert alice.received == [(NAME, b"still there")]
    assert bob.received[-1] == (A, b"and you")


def test_an_ip_added_after_the_name_becomes_its_second_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    alice.add_peer(B)
    assert alice.peer(B) is alice.peer(NAME)
    assert alice.node.table.added_names() == [NAME, B]
    alice.remove_peer(NAME)
    check_table(alice)
    assert alice.node.table.added_names() == [B]
    bob.send(A, b"hello")
    net.run(0.1)
    assert alice.received == [(B, b"hello")]


def test_both_names_of_a_peer_are_looked_for_when_it_is_gone(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, B, NAME), net.node(B)
    net.run(1)
    assert alice.peer(NAME) is alice.peer(B)
    # The name leads to another machine now, which is somebody else.
    net.names["host.example"] = ["10.0.0.3"]
    bob.stop()
    carol = net.node(B2)
    net.run(1)
    assert alice.peer(NAME) is not alice.peer(B)
    alice.send(NAME, b"for the name")
    net.run(1)
    assert carol.received == [(A, b"for the name")]
    bob.restart()
    assert net.run_until(lambda: alice.is_ready(B), limit=16)


def test_a_key_given_with_the_ip_does_not_bind_the_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob, carol = net.node(A), net.node(B), net.node(B2)
    alice.add_peer(B, bob.sign_public)
    alice.add_peer(NAME)
    net.run(1)
    assert alice.peer(NAME) is alice.peer(B)
    net.names["host.example"] = ["10.0.0.3"]
    bob.stop()
    net.run(2)
    alice.send(NAME, b"somebody new")
    net.run(1)
    assert carol.received == [(A, b"somebody new")]
    assert alice.peer(B).supplied == bob.sign_public
    assert alice.peer(NAME).supplied is None


def test_a_name_whose_key_contradicts_is_kept_apart(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, B), net.node(B)
    alice.add_peer(NAME, b"\1" * 32)
    alice.send(NAME, b"not for bob")
    net.run(30)
    assert alice.mode(B) == "session"
    assert not alice.is_ready(NAME)
    assert bob.received == []
    # What a name server says binds nobody else.
    assert alice.peer(B).supplied is None
    assert alice.kinds_of_events(B) == ["ready"]


def test_a_name_server_cannot_send_an_ips_messages_elsewhere(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    alice, thief = net.node(A, B, NAME), net.node(B2)
    alice.send(B, b"for 10.0.0.2 only")
    net.run(10)
    assert alice.mode(NAME) == "session"
    assert thief.received == []
    assert not alice.is_ready(B)


def test_two_names_of_one_machine_become_one_peer(net: FakeNet) -> None:
    net.names["host.example"] = net.names["other.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME, OTHER_NAME), net.node(B)
    alice.send(NAME, b"one")
    alice.send(OTHER_NAME, b"two")
    assert net.run_until(lambda: len(bob.received) == 2, limit=2)
    assert alice.peer(NAME) is alice.peer(OTHER_NAME)
    alice.remove_peer(NAME)
    check_table(alice)
    assert alice.is_ready(OTHER_NAME)


def test_a_stranger_in_a_session_gets_the_users_name(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B, A)
    assert net.run_until(lambda: alice.is_ready(B), limit=2)
    alice.add_peer(NAME)
    alice.send(NAME, b"hello")
    net.run(1)
    assert bob.received == [(A, b"hello")]
    assert set(alice.node.table.by_name) == {NAME}
    assert alice.node.table.strangers == 0
    assert alice.kinds_of_events(NAME) == ["ready"]
    bob.send(A, b"under its name")
    net.run(0.1)
    assert alice.received == [(NAME, b"under its name")]


def test_a_stranger_with_another_key_stays_one(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B, A)
    net.run(1)
    alice.add_peer(NAME, b"\1" * 32)
    alice.send(NAME, b"not for bob")
    net.run(10)
    assert bob.received == []
    assert alice.mode(B) == "session"
    assert not alice.is_ready(NAME)


def test_a_stranger_without_a_session_makes_way(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B)
    net.hook = lambda datagram: net.route(datagram) if looks_clear(datagram.data) else []
    bob.add_peer(A)
    net.run(0.5)
    assert alice.node.table.strangers == 1
    net.hook = net.route
    alice.add_peer(NAME)
    assert net.run_until(lambda: alice.is_ready(NAME), limit=2)
    assert set(alice.node.table.by_name) == {NAME}
    assert bob.alive


def test_a_name_known_by_another_address_of_the_same_process(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice = net.node(A, V6, alias=("fd00::1", 1001))
    bob = net.node(B, alias=V6)
    net.run(1)
    alice.add_peer(NAME)
    alice.send(NAME, b"hello")
    net.run(2)
    assert bob.received == [(A, b"hello")] or bob.received == [(("fd00::1", 1001), b"hello")]
    assert alice.peer(NAME) is alice.peer(V6)


# ------------------------------------------------------------------------------------------- base mode


OURS, THEIRS = ("10.0.0.1", 11000), ("10.0.0.2", 12000)
BASE_NAME = ("host.example", 12000)


@pytest.fixture(name="base_net")
def _base_net() -> Iterator[FakeNet]:
    nets = Nets()
    net = nets()
    net.names["host.example"] = ["10.0.0.2"]
    yield net
    nets.check()
    for end in set(net._ends.values()):
        if isinstance(end, Host):
            check_table(end)


def talk(net: FakeNet, us: Host, them: BaseHost) -> None:
    us.send(BASE_NAME, b"from us")
    them.send("from them")
    net.run(0.1)
    assert them.texts()[-1:] == ["from us"], them.peer.dropped
    assert us.received[-1:] == [(BASE_NAME, b"from them")], dict(us.node.counters)
    assert us.mode(BASE_NAME) == f"base v{them.peer.version}"


@VERSIONS
@PORT_HABITS
def test_a_base_peer_is_reached_by_its_name(base_net: FakeNet, version: int, source_port: int) -> None:
    us, them = base_net.node(OURS), BaseHost(base_net, version, source_port=source_port)
    us.add_peer(BASE_NAME)
    us.send(BASE_NAME, b"waits")
    base_net.run(0.025)  # the two announcements cross
    them.add_peer(OURS)
    assert base_net.run_until(lambda: them.texts() == ["waits"], limit=2)
    talk(base_net, us, them)
    assert us.node.table.added_names() == [BASE_NAME]
    assert set(us.node.table.by_name) == {BASE_NAME}
    info = us.node.info(us.peer(BASE_NAME), us.now)
    assert info["endpoint"] == THEIRS
    base_net.run(200)
    talk(base_net, us, them)
    # It is found again where the name leads.
    them.kill()
    base_net.run(100)
    assert us.kinds_of_events(BASE_NAME)[-1] == "lost"
    assert not us.node.base.links
    base_net.names["host.example"] = ["10.0.0.3"]
    them = BaseHost(base_net, version, ("10.0.0.3", 12000), source_port=source_port)
    them.add_peer(OURS)
    base_net.run_until(lambda: us.is_ready(BASE_NAME), limit=150)
    base_net.run(1)
    talk(base_net, us, them)
    us.remove_peer(BASE_NAME)
    assert not us.node.base.links


@VERSIONS
def test_a_base_peer_that_came_as_a_stranger_gets_its_name(base_net: FakeNet, version: int) -> None:
    us, them = base_net.node(OURS), BaseHost(base_net, version)
    them.add_peer(OURS)
    base_net.run(0.1)
    us.add_peer(BASE_NAME)
    base_net.run(1)
    talk(base_net, us, them)
    assert set(us.node.table.by_name) == {BASE_NAME}


def test_a_forged_base_stranger_does_not_keep_a_name_with_a_key_out(base_net: FakeNet) -> None:
    us, them = base_net.node(OURS), base_net.node(THEIRS)
    forger = BaseHost(base_net, 2, ("10.0.0.66", 12000))
    base_net.run(0.1)
    us.arrive(THEIRS, forger.peer.announcement())
    assert us.node.table.strangers
    us.add_peer(BASE_NAME, them.sign_public)
    us.send(BASE_NAME, b"for the owner of the key")
    assert base_net.run_until(lambda: them.received == [(OURS, b"for the owner of the key")], limit=2)


def test_a_base_peer_at_the_second_address_does_not_disturb_the_first(base_net: FakeNet) -> None:
    base_net.names["host.example"] = ["10.0.0.2", "10.0.0.3"]
    us, them = base_net.node(OURS, BASE_NAME), BaseHost(base_net)
    them.add_peer(OURS)
    base_net.run(1)
    talk(base_net, us, them)
    other = BaseHost(base_net, 2, ("10.0.0.3", 12000))
    other.add_peer(OURS)
    base_net.run(1)
    talk(base_net, us, them)
    assert us.kinds_of_events(BASE_NAME) == ["ready"]


def test_a_base_peer_that_is_updated_goes_on_in_a_session(base_net: FakeNet) -> None:
    us, them = base_net.node(OURS, BASE_NAME), BaseHost(base_net)
    them.add_peer(OURS)
    base_net.run(1)
    talk(base_net, us, them)
    them.kill()
    base_net.run(100)
    new = base_net.node(THEIRS, OURS)
    new.send(OURS, b"new")
    base_net.run(10)
    assert us.mode(BASE_NAME) == "session"
    assert us.received[-1] == (BASE_NAME, b"new")
    assert not us.node.base.links


def test_keys_for_a_name_are_refused_and_for_its_address_taken(
    base_net: FakeNet, caplog: pytest.LogCaptureFixture
) -> None:
    us, them = base_net.node(OURS, BASE_NAME), BaseHost(base_net)
    base_net.run(0.1)
    us.encryption.update_peer_keys(BASE_NAME, them.peer.enc_key, them.peer.sign_key)
    assert not us.encryption.peer_keys_exist(BASE_NAME)
    assert "give them for its IP address" in caplog.text
    them.peer.set_peer_keys(OURS, us.encryption.enc_public_key, us.encryption.sign_public_key, them.clock)
    us.encryption.update_peer_keys(THEIRS, them.peer.enc_key, them.peer.sign_key)
    with us._acting():
        pass
    assert base_net.run_until(lambda: us.is_ready(BASE_NAME), limit=2)
    talk(base_net, us, them)


# --------------------------------------------------------------------------------------------- the threads


class Names:
    """A `getaddrinfo` of the test's: it answers when `go` is set."""

    def __init__(self, *ips: str, blocked: bool = False) -> None:
        self.ips = list(ips)
        self.asked: list[tuple[Any, ...]] = []
        self.at_once = self.most_at_once = 0
        self.go = threading.Event()
        self._lock = threading.Lock()
        if not blocked:
            self.go.set()

    def __call__(self, host: str, port: int, family: int, kind: int, protocol: int) -> list[Any]:
        with self._lock:
            self.asked.append((host, port, family))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.go.wait(PATIENCE)
        with self._lock:
            self.at_once -= 1
        if not self.ips:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = []
        for ip in self.ips:
            sockaddr = (ip, port, 0, 0) if ":" in ip else (ip, port)
            found.append((socket.AF_INET6 if ":" in ip else socket.AF_INET, kind, protocol, "", sockaddr))
        return found


def resolver_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vault-udp-resolve"]


def socket_with(names: Callable[..., Any], **options: Any) -> UDPSocketClass:
    sock = UDPSocketClass(0, **options)
    sock._resolver._getaddrinfo = names
    return sock


def test_two_sockets_meet_by_name() -> None:
    names = Names("127.0.0.1")
    with socket_with(names) as a, UDPSocketClass(0) as b:
        inbox, answers = Inbox(b), Inbox(a)
        name = ("host.example", b.recv_port)
        a.add_peer(("Host.Example.", b.recv_port, b.own_public_key))
        assert a.has_peer(name)
        assert a.has_peer(("HOST.EXAMPLE", b.recv_port))
        a.send_data("hello", name)
        text, address = inbox.wait_for(1)[0]
        assert text == "hello"
        b.send_data("answer", address)
        assert answers.wait_for(1) == [("answer", name)]
        assert a.wait_ready(name, PATIENCE)
        assert a.get_peers() == [name]
        assert a.get_peers_by_ip("Host.Example") == [name]
        assert a.get_peer_key(name) == a.get_peer_key(address_of(b)) == b.own_public_key
        assert a.get_stats()["peers_by_ip"] == {"host.example": [name]}
        assert a.get_stats()["peer_modes"] == {name: "session"}
        info = a.get_peer_info(name)
        assert info is not None
        assert info["endpoint"] == address_of(b)
        assert info["addresses"] == [address_of(b)]
        a.send_data(b"bytes", ("Host.Example", b.recv_port))
        a.send_data("to all")
        assert inbox.wait_for_texts(3)[1:] == ["bytes", "to all"]
        a.remove_peer(("host.example.", b.recv_port))
        assert a.get_peers() == []
        assert not a.has_peer(name)
        assert a.get_peer_info(name) is None
    eventually(lambda: not resolver_threads(), "the threads are gone")
    assert names.asked[0][:2] == ("host.example", b.recv_port)


def test_localhost_is_reached() -> None:
    # With the system's resolver; what it says of localhost, IPv4 or IPv6, is up to the machine.
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        inbox, answers = Inbox(b), Inbox(a)
        a.add_peer(("localhost", b.recv_port))
        a.send_data("hello", ("localhost", b.recv_port))
        text, address = inbox.wait_for(1)[0]
        assert text == "hello"
        b.send_data("answer", address)
        assert answers.wait_for(1) == [("answer", ("localhost", b.recv_port))]


def test_names_that_were_not_added_are_unknown() -> None:
    with socket_with(Names()) as sock:
        name = ("host.example", 8000)
        with pytest.raises(InvalidArgumentError, match=r"'host\.example', 8000.*add_peer it first"):
            sock.send_data("hello", name)
        assert sock.get_peer_info(name) is None
        assert sock.get_peer_key(name) is None
        assert not sock.has_peer(name)
        sock.remove_peer(name)
        assert not sock.wait_ready(name, 0.01)
        assert sock.get_stats()["peer_modes"] == {}


def test_idna_names_are_asked_for_in_their_idna_form() -> None:
    names = Names("127.0.0.1")
    with socket_with(names) as sock:
        sock.add_peer(("Bücher.example", 8000))
        eventually(lambda: names.asked, "it is asked for")
        assert sock.get_peers() == [("bücher.example", 8000)]
    assert names.asked[0][0] == "xn--bcher-kva.example"


def test_nobody_waits_for_a_resolver_that_hangs() -> None:
    names = Names("127.0.0.1", blocked=True)
    with UDPSocketClass(0) as other:
        sock = socket_with(names)
        inbox = Inbox(other)
        sock.add_peer(("host.example", 8000))
        eventually(lambda: names.asked, "it is asked for")
        sock.add_peer(address_of(other))
        sock.send_data("waits for its name", ("host.example", 8000))
        sock.send_data("goes at once", address_of(other))
        assert inbox.wait_for_texts(1) == ["goes at once"]
        assert sock.get_peer_info(("host.example", 8000))["waiting"] == 1  # type: ignore[index]
        sock.stop()
        assert not sock._sender.is_alive()
        assert not sock._receiver.is_alive()
        assert resolver_threads(), "it still hangs, and stop() has not waited for it"
        stopped, sock = weakref.ref(sock), None  # type: ignore[assignment]
        del inbox
        gc.collect()
        assert stopped() is None, "what hangs does not keep the socket"
    names.go.set()


def test_an_answer_after_removal_changes_nothing() -> None:
    names = Names("127.0.0.1", blocked=True)
    with socket_with(names) as sock:
        sock.add_peer(("host.example", 8000))
        eventually(lambda: names.asked, "it is asked for")
        sock.remove_peer(("host.example", 8000))
        names.go.set()
        eventually(lambda: not resolver_threads(), "it is answered")
        assert sock.get_stats()["peer_modes"] == {}
        assert sock._node.table.by_place == {}


def test_a_thousand_names_and_four_threads() -> None:
    names = Names(blocked=True)
    with socket_with(names) as sock:
        for number in range(1000):
            sock.add_peer((f"host{number}.example", 8000))
        eventually(lambda: names.at_once == MAX_THREADS, "all threads are busy")
        assert len(resolver_threads()) == MAX_THREADS
        names.go.set()
        eventually(
            lambda: sock.get_stats()["counters"].get("name_not_resolved", 0) >= 1000, "all are answered"
        )
        assert names.most_at_once <= MAX_THREADS
        assert {host for host, _, _ in names.asked} == {f"host{number}.example" for number in range(1000)}


def test_threads_end_when_nothing_is_left() -> None:
    answers: list[object] = []
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, Names("192.0.2.1"))
    for number in range(20):
        resolver.look_up([(f"host{number}.example", 1)])
    eventually(lambda: len(answers) == 20 and not resolver_threads(), "all is answered")
    resolver.look_up([("again.example", 1)])
    eventually(lambda: len(answers) == 21 and not resolver_threads(), "and answered again")
    assert answers[-1] == (("again.example", 1), [("192.0.2.1", 1)], "")


def test_a_name_that_waits_is_asked_for_once() -> None:
    names = Names("192.0.2.1", blocked=True)
    answers: list[object] = []
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, names)
    resolver.look_up([(f"busy{number}.example", 1) for number in range(4)])
    eventually(lambda: names.at_once == 4, "all threads are busy")
    for _ in range(10):
        resolver.look_up([("host.example", 1)])
    names.go.set()
    eventually(lambda: not resolver_threads(), "all is answered")
    assert len(answers) == 5


def test_a_resolver_that_is_stopped_asks_and_tells_no_more() -> None:
    names = Names("192.0.2.1", blocked=True)
    answers: list[object] = []
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, names)
    resolver.look_up([(f"host{number}.example", 1) for number in range(10)])
    eventually(lambda: names.at_once == 4, "all threads are busy")
    resolver.stop()
    names.go.set()
    eventually(lambda: not resolver_threads(), "the threads are gone")
    assert answers == []
    assert len(names.asked) == 4


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("no text"), "no text"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_why_a_name_was_not_resolved_is_told(error: Exception, why: str) -> None:
    def fails(*_: object) -> list[Any]:
        raise error

    answers: list[object] = []
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, fails)
    resolver.look_up([("host.example", 1)])
    eventually(lambda: answers and not resolver_threads(), "it is answered")
    assert answers == [(("host.example", 1), [], why)]


def test_without_threads_names_are_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    answers: list[Any] = []
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, Names("192.0.2.1"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        resolver.look_up([(f"host{number}.example", 1) for number in range(6)])
    assert sorted(answers) == [((f"host{n}.example", 1), [], "can't start new thread") for n in range(6)]
    resolver.look_up([("later.example", 1)])
    eventually(lambda: len(answers) == 7 and not resolver_threads(), "it goes on when there are threads")


def test_order_is_kept_and_doubles_are_not() -> None:
    answers: list[object] = []
    names = Names("fd00::2", "10.0.0.2", "fd00::2", "::ffff:10.0.0.2", "10.0.0.1")
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, names)
    resolver.look_up([("host.example", 7)])
    eventually(lambda: answers and not resolver_threads(), "it is answered")
    assert answers == [(("host.example", 7), [("fd00::2", 7), ("10.0.0.2", 7), ("10.0.0.1", 7)], "")]


def test_only_addresses_that_can_be_reached_are_asked_for() -> None:
    families = {"127.0.0.1": socket.AF_INET}
    if has_ipv6():
        families["::1"] = socket.AF_INET6
    for ip, family in families.items():
        names = Names(ip)
        with socket_with(names, bind_address=ip) as sock:
            sock.add_peer(("host.example", 8000))
            eventually(lambda names=names: names.asked, "it is asked for")  # type: ignore[misc]
        assert names.asked[0][2] == family
    names = Names("127.0.0.1")
    with socket_with(names) as sock:
        sock.add_peer(("host.example", 8000))
        eventually(lambda: names.asked, "it is asked for")
    assert names.asked[0][2] == (socket.AF_UNSPEC if has_ipv6() else socket.AF_INET)


def test_a_name_is_written_into_the_known_peers_file(tmp_path: Path) -> None:
    file, me = tmp_path / "known peers", tmp_path / "me"
    with socket_with(Names("127.0.0.1"), known_peers_file=file) as a, UDPSocketClass(
        0, identity_file=me
    ) as b:
        a.add_peer(("Host.Example", b.recv_port))
        assert a.wait_ready(("host.example", b.recv_port), PATIENCE)
        line = f"host.example {b.recv_port} {b.own_public_key}\n"
        eventually(lambda: file.exists() and file.read_text() == line, "it is written down")
    with socket_with(Names("127.0.0.1"), known_peers_file=file) as a:
        with pytest.raises(InvalidArgumentError, match="known-peers file"):
            a.add_peer(("HOST.example", b.recv_port, KEY))
        a.add_peer(("HOST.example", b.recv_port))


def test_a_message_for_a_name_is_measured_for_ipv6() -> None:
    with socket_with(Names("127.0.0.1")) as sock:
        sock.add_peer(("host.example", 8000))
        peer = sock._by_name[("host.example", 8000)]
        assert peer.room == sock.mtu - 20 - 27
        assert len(sock._fit(b"x" * (peer.room), ("host.example", 8000))) == peer.room


def test_a_name_server_cannot_make_us_speak_to_everybody() -> None:
    answers: list[Any] = []
    names = Names("224.0.0.1", "0.0.0.0", "255.255.255.255", "192.0.2.1")
    resolver = Resolver(lambda *answer: answers.append(answer), socket.AF_UNSPEC, names)
    resolver.look_up([("host.example", 8000)])
    eventually(lambda: answers, "it is answered")
    assert answers[0][1] == [("192.0.2.1", 8000)]
    resolver.stop()


def test_a_signal_handler_may_stop_what_is_being_stopped() -> None:
    class Interrupted(Dict[Any, None]):
        def clear(self) -> None:
            resolver._waiting = {}
            resolver.stop()

    resolver = Resolver(lambda *_: None, socket.AF_UNSPEC)
    resolver._waiting = Interrupted()
    run_thread(resolver.stop)
    assert resolver._answer is None


@on_posix
def test_a_forked_child_lets_go_of_a_resolver_whose_lock_is_held() -> None:
    names = Names("127.0.0.1", blocked=True)
    with socket_with(names) as sock:
        sock.add_peer(("host.example", 8000))
        eventually(lambda: names.asked, "it is asked for")
        run_thread(sock._resolver._lock.acquire)  # as after a fork in which another thread had the lock
        sock._resolver.abandon()
        names.go.set()
        eventually(lambda: not resolver_threads(), "the thread is gone")


def test_the_first_announcement_names_the_supplied_identity(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A), net.node(B)
    alice.add_peer(NAME, bob.sign_public)
    net.run(0.025)
    announcement = read_announcement(read_json(read_body(net.sent[0].data).control))
    assert announcement.hello is not None
    assert read_hello_untrusted(announcement.hello).to_sign == bob.sign_public
    assert net.sent[0].dst == B


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_table_stays_whole_and_in_the_end_all_is_found(seed: int) -> None:
    net = FakeNet(seed, delay=0.01, jitter=0.05, loss=0.1)
    rng = random.Random(seed)
    ips = [f"10.0.1.{number}" for number in range(5)]
    hosts = ["a.example", "b.example", "c.example"]
    alice = net.node(A, lifetime=10)
    there: dict[str, Host | BaseHost] = {}
    named: set[tuple[str, int]] = set()

    def put(ip: str) -> None:
        if rng.random() < 0.25:
            there[ip] = base = BaseHost(net, rng.choice((1, 2)), (ip, 1002))
            base.add_peer(A)
        else:
            there[ip] = net.node((ip, 1002), *([A] if rng.random() < 0.5 else []))

    def step() -> None:
        name = (rng.choice(hosts + ips[:3]), 1002)
        kind, ip = rng.randrange(8), rng.choice(ips)
        if kind <= 1:
            alice.add_peer(name)
            named.add(name)
        elif kind == 2 and name in named:
            alice.remove_peer(name)
            named.discard(name)
        elif kind == 3:
            net.names[rng.choice(hosts)] = rng.sample(ips, rng.randrange(4))
        elif kind == 4 and ip not in there:
            put(ip)
        elif kind == 5 and ip in there:
            end = there.pop(ip)
            if isinstance(end, Host) and rng.random() < 0.5:
                end.stop()
            else:
                end.kill()
        elif name in named or not is_host(name[0]):
            alice.send(name, b"message")

    for _ in range(300):
        step()
        check_table(alice)
        net.run(rng.choice((0.001, 0.05, 0.3, 2.0, 8.0)))
        check_table(alice)
    net.loss = 0.0
    for end in there.values():
        end.kill()
    for number, host in enumerate(hosts):
        net.names[host] = ["10.0.9.9", ips[number]]
    net.run(200)  # all are noticed to be gone, and all names asked for
    ends = {ip: net.node((ip, 1002), A) for ip in ips}
    assert net.run_until(lambda: all(alice.mode(name) == "session" for name in named), limit=17)
    check_table(alice)
    for name in named:
        alice.send(name, f"last to {name}".encode())
    net.run(0.2)
    for name in named:
        ip = ips[hosts.index(name[0])] if is_host(name[0]) else name[0]
        assert f"last to {name}".encode() in [message for _, message in ends[ip].received]


def test_keys_that_replace_those_of_a_live_base_peer_are_kept(base_net: FakeNet) -> None:
    us, them = base_net.node(OURS, BASE_NAME), BaseHost(base_net)
    them.add_peer(OURS)
    base_net.run(1)
    talk(base_net, us, them)
    other = BaseHost(base_net, 2, ("10.0.0.3", 12000))
    us.encryption.update_peer_keys(THEIRS, other.peer.enc_key, other.peer.sign_key)
    with us._acting():
        pass
    base_net.run(3)
    assert us.encryption.peer_keys_exist(THEIRS)
    check_table(us)


def test_a_stopped_resolver_starts_nothing() -> None:
    names = Names("192.0.2.1")
    resolver = Resolver(lambda *answer: None, socket.AF_UNSPEC, names)
    resolver.stop()
    resolver.look_up([("host.example", 1)])
    assert resolver_threads() == []
    assert names.asked == []


def test_the_old_address_is_not_tried_before_the_name_is_asked_for(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    net.names["host.example"], net.lookup_delay = ["10.0.0.3"], 0.3
    moved = net.node(B2)
    bob.stop()
    bob.restart(same_identity=False)  # somebody else has its old address
    net.run(2)
    alice.send(NAME, b"for the host")
    net.run(0.1)
    assert moved.received == [(A, b"for the host")]
    assert bob.received == []


def test_a_resolver_that_hangs_does_not_keep_the_peer_from_its_old_address(net: FakeNet) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    net.lookup_delay = 60.0
    bob.stop()
    net.run(0.1)
    bob.restart()
    assert net.run_until(lambda: alice.is_ready(NAME), limit=1.2)


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_an_address_that_the_name_has_left_is_not_announced_to(net: FakeNet, says_goodbye: bool) -> None:
    net.names["host.example"] = ["10.0.0.2"]
    alice, bob = net.node(A, NAME), net.node(B)
    net.run(1)
    there = len(announced_to(net)[B])
    net.names["host.example"] = ["10.0.9.0"]
    if says_goodbye:
        bob.stop()
    else:
        bob.kill()
    alice.send(NAME, b"nobody is there")
    net.run(30)
    assert alice.kinds_of_events(NAME) == ["ready", "lost"]
    assert len(announced_to(net)[DEAD[0]]) > 5
    assert len(announced_to(net)[B]) == there
