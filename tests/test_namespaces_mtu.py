# SPDX-License-Identifier: Apache-2.0
"""Hosts behind routers whose cables carry less than their own: messages arrive, and nothing is fragmented.

Routers and hosts are network namespaces. The narrow cable is the last one, so that the host there knows of
it and the other one does not, or the one between two routers, so that neither host does.
"""

from __future__ import annotations

import pytest
from namespaces import End, Network, Peer, messages_flow, needs_namespaces, network, peers, require_nft

pytestmark = needs_namespaces

NARROW = 1280  # the least that IPv6 allows (RFC 8200 section 5)

both_families = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
# The MTUs of the cables in a row; NARROW stands at the same place in each.
narrow_far = pytest.param((1500, NARROW), id="at-the-far-host")
narrow_between = pytest.param((1500, NARROW, 1500), id="between-routers")
both_places = pytest.mark.parametrize("mtus", [narrow_far, narrow_between])


def drop_icmp(net: Network) -> None:
    """Make the routers keep it to themselves when a packet is too large: a black hole (RFC 2923)."""
    for router in net.routers:
        require_nft(router)
        router.nft(
            "add table inet filter",
            "add chain inet filter out { type filter hook output priority filter; }",
            "add rule inet filter out icmp type destination-unreachable icmp code frag-needed drop",
            "add rule inet filter out icmpv6 type packet-too-big drop",
        )


def fragments(net: Network) -> dict[str, dict[str, int]]:
    """What each namespace has cut or put together; empty if none has."""
    counted = {namespace.name: namespace.fragments() for namespace in net.namespaces}
    return {name: counters for name, counters in counted.items() if counters}


def messages_flow_both_ways(
    one: Peer, other: Peer, b: End, family: int, *, size: int, seconds: float
) -> None:
    source = messages_flow(one, other, b.address(family), size, seconds)
    messages_flow(other, one, source, size, seconds)


@both_families
@both_places
def test_messages_arrive_through_a_router_with_a_smaller_mtu(mtus: tuple[int, ...], family: int) -> None:
    with network(*mtus) as net:
        a, b = net.hosts
        with peers(a, b) as (one, other):
            one.call("add_peer", b.address(family))
            assert one.call("wait_ready", b.address(family), 5.0)
            messages_flow_both_ways(one, other, b, family, size=1000, seconds=5)
        assert fragments(net) == {}


@both_families
@both_places
def test_messages_arrive_through_a_black_hole(mtus: tuple[int, ...], family: int) -> None:
    with network(*mtus) as net:
        drop_icmp(net)
        a, b = net.hosts
        with peers(a, b) as (one, other):
            one.call("add_peer", b.address(family))
            assert one.call("wait_ready", b.address(family), 5.0)
            messages_flow_both_ways(one, other, b, family, size=1000, seconds=5)
        assert fragments(net) == {}


@both_families
@both_places
@pytest.mark.parametrize("icmp", ["ICMP", "black-hole"])
def test_messages_arrive_again_when_the_path_shrinks(mtus: tuple[int, ...], family: int, icmp: str) -> None:
    with network(*[1500 for _ in mtus]) as net:
        if icmp == "black-hole":
            drop_icmp(net)
        a, b = net.hosts
        with peers(a, b) as (one, other):
            one.call("add_peer", b.address(family))
            assert one.call("wait_ready", b.address(family), 5.0)
            messages_flow_both_ways(one, other, b, family, size=1000, seconds=5)
            net.cables[mtus.index(NARROW)].set_mtu(NARROW)
            messages_flow_both_ways(one, other, b, family, size=1000, seconds=10)
        assert fragments(net) == {}


@both_families
def test_jumbo_hosts_behind_a_router_with_ordinary_frames(family: int) -> None:
    with network(9000, 1500, 9000) as net:
        a, b = net.hosts
        with peers(a, b) as (one, other):
            one.call("add_peer", b.address(family))
            assert one.call("wait_ready", b.address(family), 5.0)
            # Ordinary frames are filled: what is found is not merely what passes everywhere.
            messages_flow_both_ways(one, other, b, family, size=1300, seconds=5)
        assert fragments(net) == {}
