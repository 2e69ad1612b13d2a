# SPDX-License-Identifier: Apache-2.0
"""Two hosts, which are two network namespaces joined by a cable, exchange messages both ways."""

from __future__ import annotations

from typing import Iterator

import pytest
from namespaces import PORT, End, messages_flow, needs_namespaces, network, peers, random_bytes
from test_two_processes import Program, programs

pytestmark = needs_namespaces


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[End, End]]:
    with network(1400) as net:
        yield net.hosts


def start(host: End, *added: tuple[str, int]) -> Program:
    """The quick start of the README."""
    return Program(PORT, *added, prefix=host.namespace.prefix)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("who_adds", ["one", "both"])
def test_two_hosts_exchange_messages_both_ways(hosts: tuple[End, End], family: int, who_adds: str) -> None:
    a, b = hosts
    with programs() as running:
        one = start(b, *[a.address(family)] if who_adds == "both" else [])
        running.append(one)
        other = start(a, b.address(family))
        running.append(other)
        other.send("from a")
        assert one.wait_for("Received") == f"Received: from a from {a.ip(family)} {PORT}"
        if who_adds == "both":
            one.send("from b")
            assert other.wait_for("Received") == f"Received: from b from {b.ip(family)} {PORT}"
        one.finish()
        other.finish()


@pytest.mark.parametrize("family", [4, 6])
def test_the_mtu_is_that_of_the_cable_and_the_largest_messages_pass(
    hosts: tuple[End, End], family: int
) -> None:
    a, b = hosts
    with programs() as running:
        receiver = start(b)
        running.append(receiver)
        sender = start(a, b.address(family))
        running.append(sender)
        assert sender.mtu == receiver.mtu == 1400 - 107
        # It fills the datagram: less a few bytes for msgpack, and 20 for the longer header of IPv6.
        text = "".join(
            chr(33 + (number * number * 7 + number // 3) % 90) for number in range(sender.mtu - 60)
        )
        sender.send(text)
        assert receiver.wait_for("Received") == f"Received: {text} from {a.ip(family)} {PORT}"
        sender.finish()
        receiver.finish()
    assert a.namespace.fragments() == b.namespace.fragments() == {}


@pytest.mark.parametrize("family", [4, 6])
def test_jumbo_frames_are_filled(family: int) -> None:
    with network(9000) as net:
        a, b = net.hosts
        with peers(a, b) as (one, other):
            assert one.stat("mtu") == other.stat("mtu") == 9000 - 107
            one.call("add_peer", b.address(family))
            assert one.call("wait_ready", b.address(family), 5.0)
            message = random_bytes(8000)
            one.send(message, b.address(family))
            source = other.wait_for_message(message)
            assert source == a.address(family)
            messages_flow(other, one, source, size=8000)
        assert a.namespace.fragments() == b.namespace.fragments() == {}
