# SPDX-License-Identifier: Apache-2.0
"""A client behind a router that translates its address and port, as every home has one.

Client, router and server are network namespaces; the kernel of the router translates (`Nat`).
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, NamedTuple

import pytest
from loopback import PATIENCE, eventually
from namespaces import Address, End, Peer, messages_flow, needs_namespaces, network, peers, require_nft

pytestmark = needs_namespaces

NAT_PORT, OTHER_NAT_PORT = 20000, 30000


class Nat:
    """Makes a router hide all that is on its near side behind its own address on the far side.

    A mapping from a port of the near side to one of `port` ends `timeout` seconds after the last datagram in
    either direction; what comes to a port without mapping is dropped, and counted.
    """

    def __init__(self, far: End, port: int, timeout: int) -> None:
        self._far = far
        router = self._router = far.namespace
        require_nft(router)
        router.nft(
            "add table ip nat",
            "add chain ip nat out { type nat hook postrouting priority srcnat; }",
            "add table inet filter",
            "add counter inet filter refused",
            "add counter inet filter outwards",
            "add chain inet filter in { type filter hook input priority filter; }",
            'add rule inet filter in meta l4proto udp counter name "refused" drop',
            "add chain inet filter through { type filter hook forward priority filter; }",
            f'add rule inet filter through oifname "{far.interface}" counter name "outwards"',
        )
        self.use_port(port)
        router.set(
            netfilter__nf_conntrack_udp_timeout=timeout, netfilter__nf_conntrack_udp_timeout_stream=timeout
        )

    def use_port(self, port: int) -> None:
        """Give this port to the mappings that are made from now on."""
        interface = self._far.interface
        self._router.nft(
            "flush chain ip nat out",
            f'add rule ip nat out oifname "{interface}" meta l4proto udp masquerade to :{port}',
        )

    def ports(self) -> list[int]:
        """The ports of the mappings that there are."""
        table = [line.split() for line in self._router.read("/proc/net/nf_conntrack").splitlines()]
        replies = [
            [field for field in entry if field.startswith("dport=")] for entry in table if "udp" in entry
        ]
        return [int(fields[1].partition("=")[2]) for fields in replies]

    def forget(self) -> None:
        """Drop every mapping: the kernel does so when the address goes that they are for."""
        self._far.take_away(self._far.ipv4)
        eventually(lambda: not self.ports(), "the mappings are dropped")
        self._far.assign(self._far.ipv4)

    @property
    def refused(self) -> int:
        """Datagrams that came from the far side and had no mapping."""
        return self._router.packets("refused")

    @property
    def outwards(self) -> int:
        """Packets that were passed on to the far side."""
        return self._router.packets("outwards")


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
