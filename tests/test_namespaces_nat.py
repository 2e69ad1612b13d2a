# SPDX-License-Identifier: Apache-2.0
"""A client behind a router that translates its address and port, as every home has one.

Client, router and server are network namespaces; the kernel of the router translates (`Nat`).
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, NamedTuple

import pytest
from loopback import PATIENCE, eventually
from namespaces import Address, Nat, Peer, messages_flow, needs_namespaces, network, peers

pytestmark = needs_namespaces

NAT_PORT, OTHER_NAT_PORT = 20000, 30000


class Site(NamedTuple):
    client: Peer
    server: Peer
    nat: Nat
    name: Address
    """What the server knows the client by: the address of the router and the port that it has given."""
    server_address: Address


@contextlib.contextmanager
def site(timeout: int, **options_of_client: Any) -> Iterator[Site]:
    """A client that has added a server, and has sent it a message; mappings end after `timeout` seconds."""
    with network(1500, 1500) as net:
        near, far = net.cables
        nat = Nat(far.a, NAT_PORT, timeout)
        server_address = far.b.address(4)
        with peers(far.b) as (server,), peers(near.a, **options_of_client) as (client,):
            client.call("add_peer", server_address)
            client.send(b"hello", server_address)
            name = server.wait_for_message(b"hello")
            assert name == (far.a.ipv4, NAT_PORT)
            yield Site(client, server, nat, name, server_address)


def test_a_server_answers_a_client_behind_a_nat() -> None:
    with site(timeout=30) as (client, server, nat, name, server_address):
        assert messages_flow(server, client, name) == server_address
        assert messages_flow(client, server, server_address) == name
        assert nat.ports() == [NAT_PORT]
        assert nat.refused == 0


def test_without_keepalive_the_nat_forgets_an_idle_client() -> None:
    with site(timeout=3) as (client, server, nat, name, server_address):
        messages_flow(server, client, name)
        eventually(lambda: not nat.ports(), "the mapping has ended")
        refused = nat.refused
        server.send(b"too late", name)
        eventually(lambda: nat.refused > refused, "the NAT has refused what the server sent")
        # The client speaks, which makes a mapping anew; what comes afterwards shows that nothing is kept.
        client.send(b"still there", server_address)
        assert server.wait_for_message(b"still there") == name
        server.send(b"in time", name)
        assert client.wait_for_message(b"in time") == server_address
        assert b"too late" not in client.received


def test_with_keepalive_the_nat_remembers_an_idle_client() -> None:
    timeout = 3
    with site(timeout, keepalive=1) as (client, server, nat, name, server_address):
        messages_flow(server, client, name)
        before = nat.outwards
        # At most one packet a second: so many take longer than the mapping would live without them.
        eventually(lambda: nat.outwards >= before + timeout + 2, "the client keeps alive", 2 * PATIENCE)
        server.send(b"after a while", name)
        assert client.wait_for_message(b"after a while") == server_address
        assert nat.refused == 0


@pytest.mark.parametrize("who_speaks_first", ["client", "server"])
def test_a_session_survives_a_nat_that_gives_the_client_another_port(who_speaks_first: str) -> None:
    with site(timeout=30) as (client, server, nat, name, server_address):
        messages_flow(server, client, name)
        ready = server.events("ready")
        nat.use_port(OTHER_NAT_PORT)
        nat.forget()
        if who_speaks_first == "server":
            refused = nat.refused
            server.send(b"to the old port", name)
            eventually(lambda: nat.refused > refused, "the NAT has refused what the server sent")
        client.send(b"from another port", server_address)
        # The name stays; the port changes once the server has seen that the client answers there.
        assert server.wait_for_message(b"from another port") == name
        assert nat.ports() == [OTHER_NAT_PORT]
        eventually(lambda: server.endpoint(name) == (name[0], OTHER_NAT_PORT), "the server follows")
        server.send(b"to the other port", name)
        assert client.wait_for_message(b"to the other port") == server_address
        assert messages_flow(client, server, server_address) == name
        assert messages_flow(server, client, name) == server_address
        assert (server.events("ready"), server.events("lost")) == (ready, [])
        assert client.events("lost") == []
