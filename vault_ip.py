# SPDX-License-Identifier: Apache-2.0
"""What this machine's network interfaces offer: their smallest MTU and their addresses.

Only interfaces that could carry a datagram to another machine count: those that are up, have an MTU that is
plausible for IP, and are not the loopback. The operating system is asked through psutil; whatever psutil
raises, the constants below answer instead, so that a socket can be opened on any machine.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from typing import Any, NamedTuple

import psutil

logger = logging.getLogger("vault_udp")

DEFAULT_MTU = 1500
"""Bytes; what Ethernet carries, assumed when no interface says otherwise."""
FALLBACK_IPV4 = "127.0.0.1"
"""The address that answers when no interface has one."""

# RFC 791: every host accepts datagrams of 576 bytes. What carries less (a CAN bus reports 16) is no IP link.
_MIN_PLAUSIBLE_MTU = 576
# RFC 5737: addresses for documentation, which no host has. Port 9 is "discard" (RFC 863).
_DOCUMENTATION_ENDPOINT = ("192.0.2.1", 9)

_failure_logged = False


class _Interface(NamedTuple):
    mtu: int
    ipv4: list[str]
    ipv6: list[str]


def get_min_mtu() -> int:
    """Return the smallest MTU, in bytes, of the interfaces that count; `DEFAULT_MTU` if none does."""
    return _min_mtu(_interfaces())


def get_ipv4_addresses() -> list[str]:
    """Return the IPv4 addresses of the interfaces that count, `[FALLBACK_IPV4]` if they have none."""
    return _all_ipv4(_interfaces())


def get_ipv6_addresses() -> list[str]:
    """Return the IPv6 addresses of the interfaces that count, link-local ones with their `%scope`."""
    return _all_ipv6(_interfaces())


def get_ip_addresses() -> tuple[list[str], list[str]]:
    """Return the answers of `get_ipv4_addresses` and `get_ipv6_addresses`."""
    interfaces = _interfaces()
    return _all_ipv4(interfaces), _all_ipv6(interfaces)


def get_all_interface_addresses() -> dict[str, list[str]]:
    """Return the addresses, IPv4 before IPv6, of each interface that counts and has any, by its name."""
    return _addresses_by_name(_interfaces())


def is_ipv4_valid(address: str) -> bool:
    """Whether `address` is an IPv4 address in dotted-decimal form."""
    return isinstance(address, str) and _parses(ipaddress.IPv4Address, address)


def is_ipv6_valid(address: str) -> bool:
    """Whether `address` is an IPv6 address (RFC 4291), with or without a `%scope` (RFC 4007)."""
    if not isinstance(address, str):
        return False
    # Split here, because the ipaddress module knows scopes only from Python 3.9 on.
    unscoped, percent, scope = address.partition("%")
    scope_is_valid = bool(scope) and "%" not in scope if percent else True
    return scope_is_valid and _parses(ipaddress.IPv6Address, unscoped)


def get_network_info() -> dict[str, Any]:
    """Return all of the above in one dict.

    Its members are `mtu` (bytes), `primary_ipv4` (the address that datagrams to other networks are sent from,
    else the first one), `all_ipv4`, `all_ipv6`, `interfaces` (lists of addresses by name) and `hostname`.
    """
    interfaces = _interfaces()
    all_ipv4 = _all_ipv4(interfaces)
    return {
        "mtu": _min_mtu(interfaces),
        "primary_ipv4": _default_route_ipv4() or all_ipv4[0],
        "all_ipv4": all_ipv4,
        "all_ipv6": _all_ipv6(interfaces),
        "interfaces": _addresses_by_name(interfaces),
        "hostname": socket.gethostname(),
    }


def _min_mtu(interfaces: dict[str, _Interface]) -> int:
    return min((interface.mtu for interface in interfaces.values()), default=DEFAULT_MTU)


def _all_ipv4(interfaces: dict[str, _Interface]) -> list[str]:
    return [address for interface in interfaces.values() for address in interface.ipv4] or [FALLBACK_IPV4]


def _all_ipv6(interfaces: dict[str, _Interface]) -> list[str]:
    return [address for interface in interfaces.values() for address in interface.ipv6]


def _addresses_by_name(interfaces: dict[str, _Interface]) -> dict[str, list[str]]:
    by_name = {name: interface.ipv4 + interface.ipv6 for name, interface in interfaces.items()}
    return {name: addresses for name, addresses in by_name.items() if addresses}


def _interfaces() -> dict[str, _Interface]:
    """Return the interfaces that count by name, none if psutil fails."""
    global _failure_logged
    try:
        stats_by_name, entries_by_name = psutil.net_if_stats(), psutil.net_if_addrs()
    except Exception as error:  # psutil passes on what each platform's calls raise
        if not _failure_logged:
            _failure_logged = True
            logger.warning(
                "psutil cannot list the network interfaces (%r): assuming MTU %d and address %s",
                error,
                DEFAULT_MTU,
                FALLBACK_IPV4,
            )
        return {}
    interfaces = {}
    for name, stats in stats_by_name.items():
        # The family decides, not the text: an 8-byte hardware address reads like an IPv6 address.
        entries = entries_by_name.get(name, [])
        ipv4 = [e.address for e in entries if e.family == socket.AF_INET and is_ipv4_valid(e.address)]
        ipv6 = [e.address for e in entries if e.family == socket.AF_INET6 and is_ipv6_valid(e.address)]
        if stats.isup and stats.mtu >= _MIN_PLAUSIBLE_MTU and not any(map(_is_loopback, ipv4 + ipv6)):
            interfaces[name] = _Interface(stats.mtu, ipv4, ipv6)
    return interfaces


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _default_route_ipv4() -> str | None:
    """Return the address that datagrams to other networks are sent from, None if there is no route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_DOCUMENTATION_ENDPOINT)  # chooses a route and an address, sends nothing
            address: str = probe.getsockname()[0]
            return address
    except OSError:
        return None


def _parses(kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address], address: str) -> bool:
    try:
        kind(address)
    except ValueError:
        return False
    return True


def main() -> int:
    """Check the answers for this machine, print a line for each, and return the number of failures."""
    info = get_network_info()
    all_ipv4, all_ipv6 = info["all_ipv4"], info["all_ipv6"]
    listed = sorted(address for addresses in info["interfaces"].values() for address in addresses)
    own = [address for address in all_ipv4 + all_ipv6 if address != FALLBACK_IPV4]
    checks = [
        (f"the smallest MTU is plausible: {info['mtu']}", info["mtu"] >= _MIN_PLAUSIBLE_MTU),
        (
            f"there are IPv4 addresses, all valid: {all_ipv4}",
            bool(all_ipv4) and all(map(is_ipv4_valid, all_ipv4)),
        ),
        (f"all IPv6 addresses are valid: {all_ipv6}", all(map(is_ipv6_valid, all_ipv6))),
        (f"the primary IPv4 address is valid: {info['primary_ipv4']}", is_ipv4_valid(info["primary_ipv4"])),
        (f"no interface is the loopback: {sorted(info['interfaces'])}", not any(map(_is_loopback, listed))),
        ("the interfaces have the addresses listed", sorted(own) == listed),
        (f"the host has a name: {info['hostname']}", bool(info["hostname"])),
        ("malformed addresses are refused", not (is_ipv4_valid("256.1.1.1") or is_ipv6_valid("fe80::1::2"))),
    ]
    for what, holds in checks:
        print("ok  " if holds else "FAIL", what)
    return sum(not holds for _, holds in checks)


if __name__ == "__main__":
    sys.exit(main())
