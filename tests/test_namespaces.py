# SPDX-License-Identifier: Apache-2.0
"""Two hosts, which are two network namespaces joined by a cable, exchange messages both ways."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import uuid
from typing import Callable, Iterator, NamedTuple

import pytest
from test_two_processes import Program, programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")

PORT = 11000  # nobody else is there


class Host(NamedTuple):
    """A namespace with one interface."""

    name: str
    ipv4: str
    ipv6: str

    def fragments_sent(self) -> int:
        """How many pieces this host had to cut packets into."""
        files = ["/proc/net/snmp", "/proc/net/snmp6"]
        text = ip_tool("netns", "exec", self.name, "cat", *files)
        lines = [line.split() for line in text.splitlines()]
        names, values = (line for line in lines if line[0] == "Ip:")
        ipv4 = int(values[names.index("FragCreates")])
        return ipv4 + sum(int(line[1]) for line in lines if line[0] == "Ip6FragCreates")

    def run(self, *peers: tuple[str, int]) -> Program:
        return Program(PORT, *peers, prefix=["ip", "netns", "exec", self.name])


def ip_tool(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)
    return done.stdout


@contextlib.contextmanager
def two_hosts(mtu: int) -> Iterator[tuple[Host, Host]]:
    unique = uuid.uuid4().hex[:8]
    hosts = tuple(
        Host(f"vault-{unique}-{side}", f"10.77.0.{number}", f"fd77::{number}")
        for number, side in ((1, "a"), (2, "b"))
    )
    try:
        for host in hosts:
            ip_tool("netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        remove(hosts)
        pytest.skip(f"`ip netns add` is not permitted here: {error.stderr.strip()}")
    try:
        a, b = hosts
        ip_tool(
            *("link", "add", "vault0", "netns", a.name, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", "vault0", "netns", b.name, "mtu", str(mtu)),
        )
        for host in hosts:
            inside = ("-netns", host.name)
            ip_tool(*inside, "address", "add", f"{host.ipv4}/24", "dev", "vault0")
            # Without `nodad` the address could be used only after a second or two.
            ip_tool(*inside, "address", "add", f"{host.ipv6}/64", "dev", "vault0", "nodad")
            ip_tool(*inside, "link", "set", "lo", "up")
            ip_tool(*inside, "link", "set", "vault0", "up")
        yield a, b
    finally:
        remove(hosts)


def remove(hosts: tuple[Host, ...]) -> None:
    for host in hosts:
        subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, timeout=10, check=False)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command here")
    with two_hosts(mtu=1400) as pair:
        yield pair


ADDRESSES = [
    pytest.param(lambda host: host.ipv4, id="IPv4"),
    pytest.param(lambda host: host.ipv6, id="IPv6"),
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("who_adds", ["one", "both"])
def test_two_hosts_exchange_messages_both_ways(
    hosts: tuple[Host, Host], address: Callable[[Host], str], who_adds: str
) -> None:
    a, b = hosts
    with programs() as running:
        one = b.run(*[(address(a), PORT)] if who_adds == "both" else [])
        running.append(one)
        other = a.run((address(b), PORT))
        running.append(other)
        other.send("from a")
        assert one.wait_for("Received") == f"Received: from a from {address(a)} {PORT}"
        if who_adds == "both":
            one.send("from b")
            assert other.wait_for("Received") == f"Received: from b from {address(b)} {PORT}"
        one.finish()
        other.finish()


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_mtu_is_that_of_the_cable_and_the_largest_messages_pass(
    hosts: tuple[Host, Host], address: Callable[[Host], str]
) -> None:
    a, b = hosts
    before = a.fragments_sent(), b.fragments_sent()
    with programs() as running:
        receiver = b.run()
        running.append(receiver)
        sender = a.run((address(b), PORT))
        running.append(sender)
        assert sender.mtu == receiver.mtu == 1400 - 107
        # It fills the datagram: less a few bytes for msgpack, and 20 for the longer header of IPv6.
        text = "".join(
            chr(33 + (number * number * 7 + number // 3) % 90) for number in range(sender.mtu - 60)
        )
        sender.send(text)
        assert receiver.wait_for("Received") == f"Received: {text} from {address(a)} {PORT}"
        sender.finish()
        receiver.finish()
    assert (a.fragments_sent(), b.fragments_sent()) == before
