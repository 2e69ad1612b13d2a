# SPDX-License-Identifier: Apache-2.0
"""Two hosts, which are two network namespaces, keep their session while addresses and cables come and go."""

from __future__ import annotations

from typing import Callable

import pytest
from loopback import eventually
from namespaces import Address, Cable, End, Peer, messages_flow, needs_namespaces, network, peers

pytestmark = needs_namespaces

THREADS = ["vault-udp-receive", "vault-udp-send"]

both_families = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


def become_peers(one: Peer, other: Peer, a: Address, b: Address) -> None:
    """Both add each other and are ready; messages flow."""
    one.call("add_peer", b)
    other.call("add_peer", a)
    assert one.call("wait_ready", b, 5.0)
    assert other.call("wait_ready", a, 5.0)
    assert messages_flow(one, other, b) == a
    assert messages_flow(other, one, a) == b


def assert_one_session(peer: Peer, name: Address) -> None:
    """There was one session all the time, with one peer, which has the name that it was added with."""
    assert peer.events("lost") == []
    assert peer.events("ready") == [[list(name)]]
    assert peer.call("get_peers") == [list(name)]


def network_errors(peer: Peer) -> dict[str, int]:
    counters = peer.stat("counters").items()
    return {name: count for name, count in counters if name.startswith("socket_E") and count}


def other_address(of: End, family: int) -> Address:
    """Another address in the same network."""
    ip, port = of.address(family)
    return ip[: ip.rindex("." if family == 4 else ":") + 1] + "77", port


@both_families
def test_a_session_survives_a_change_of_address(family: int) -> None:
    with network(1500) as net:
        a, b = net.hosts
        name, new = a.address(family), other_address(a, family)
        with peers(a, b) as (client, server):
            become_peers(client, server, name, b.address(family))
            a.take_away(name[0])
            client.send(b"from nowhere", b.address(family))
            a.assign(new[0])
            client.send(b"from the new address", b.address(family))
            assert server.wait_for_message(b"from the new address") == name
            eventually(lambda: server.endpoint(name) == new, "the server sends to the new address")
            server.send(b"to the new address", name)
            assert client.wait_for_message(b"to the new address") == b.address(family)
            assert messages_flow(client, server, b.address(family)) == name
            assert messages_flow(server, client, name) == b.address(family)
            assert_one_session(server, name)
            assert_one_session(client, b.address(family))


def down_and_up(cable: Cable, meanwhile: Callable[[], object]) -> None:
    cable.a.namespace.ip("link", "set", cable.a.interface, "down")
    meanwhile()
    cable.a.namespace.ip("link", "set", cable.a.interface, "up")


def gone_and_back(cable: Cable, meanwhile: Callable[[], object]) -> None:
    cable.remove()
    meanwhile()
    cable.lay(1500)


@both_families
@pytest.mark.parametrize("happening", [down_and_up, gone_and_back])
def test_a_session_survives_an_interface_that_goes_and_comes(
    happening: Callable[[Cable, Callable[[], object]], None], family: int
) -> None:
    with network(1500) as net:
        (cable,) = net.cables
        a, b = cable
        with peers(a, b) as (one, other):
            become_peers(one, other, a.address(family), b.address(family))
            assert network_errors(one) == {}

            def send_in_vain() -> None:
                for number in range(3):
                    one.send(b"in vain %d" % number, b.address(family))
                    other.send(b"in vain %d" % number, a.address(family))

            happening(cable, send_in_vain)
            assert messages_flow(one, other, b.address(family), seconds=10) == a.address(family)
            assert messages_flow(other, one, a.address(family), seconds=10) == b.address(family)
            errors = network_errors(one)
            assert errors.keys() <= {"socket_ENETUNREACH", "socket_EADDRNOTAVAIL", "socket_EHOSTUNREACH"}
            assert sum(errors.values()) >= 3
            for peer, name in ((one, b.address(family)), (other, a.address(family))):
                assert_one_session(peer, name)
                assert peer.call("threads") == THREADS
                assert peer.stat("counters")["callback_errors"] == 0


def test_peers_find_each_other_again_after_an_interface_was_down_for_long() -> None:
    with network(1500) as net:
        a, b = net.hosts
        with peers(a, b) as (one, other):
            become_peers(one, other, a.address(4), b.address(4))

            def until_both_are_lost() -> None:
                one.send(b"in vain", b.address(4))
                other.send(b"in vain", a.address(4))
                assert one.wait_for("lost")[0] == list(b.address(4))
                assert other.wait_for("lost")[0] == list(a.address(4))
                one.send(b"kept for later", b.address(4))
                other.send(b"kept for later", a.address(4))

            down_and_up(net.cables[0], until_both_are_lost)
            assert other.wait_for_message(b"kept for later") == a.address(4)
            assert one.wait_for_message(b"kept for later") == b.address(4)
            assert network_errors(one)
            for peer in (one, other):
                assert peer.call("threads") == THREADS
                assert peer.stat("counters")["callback_errors"] == 0
