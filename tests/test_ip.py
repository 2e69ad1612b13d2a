# SPDX-License-Identifier: Apache-2.0
"""Interfaces, as psutil might report them on other machines, and what answers when it does not."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest

import vault_ip

MODULE = Path(vault_ip.__file__)
LINK = psutil.AF_LINK


def interface(*addresses: tuple[int, str], mtu: int = 1500, up: bool = True) -> tuple[Any, list[Any]]:
    entries = [SimpleNamespace(family=family, address=address) for family, address in addresses]
    return SimpleNamespace(isup=up, mtu=mtu), entries


LOOPBACK = interface((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), mtu=65536)
ETHERNET = interface(
    (socket.AF_INET, "192.0.2.10"),
    (socket.AF_INET6, "2001:db8::10"),
    (socket.AF_INET6, "fe80::10%eth0"),
    (LINK, "02:00:00:00:00:10"),
)
WLAN = interface((socket.AF_INET, "198.51.100.20"), mtu=1400)


class Machine:
    """Stands in for psutil and the routing table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.has()
        self.routes_from(None)

    def has(self, **interfaces: tuple[Any, list[Any]]) -> None:
        stats = {name: stats for name, (stats, _) in interfaces.items()}
        entries = {name: entries for name, (_, entries) in interfaces.items() if entries}
        self._monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
        self._monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)

    def fails(self, function: str, error: Exception) -> None:
        def fail() -> NoReturn:
            raise error

        self._monkeypatch.setattr(psutil, function, fail)

    def routes_from(self, address: str | None) -> None:
        class Probe:
            def __init__(self, family: int, kind: int) -> None:
                assert (family, kind) == (socket.AF_INET, socket.SOCK_DGRAM)

            def __enter__(self) -> Probe:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def connect(self, endpoint: tuple[str, int]) -> None:
                if address is None:
                    raise OSError("Network is unreachable")

            def getsockname(self) -> tuple[str | None, int]:
                return address, 40000

        self._monkeypatch.setattr(socket, "socket", Probe)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(vault_ip, "_failure_logged", False)
    return Machine(monkeypatch)


def test_constants() -> None:
    assert vault_ip.DEFAULT_MTU == 1500
    assert vault_ip.FALLBACK_IPV4 == "127.0.0.1"


def test_addresses_and_mtu_of_all_interfaces(machine: Machine) -> None:
    machine.has(lo=LOOPBACK, eth0=ETHERNET, wlan0=WLAN)
    assert vault_ip.get_min_mtu() == 1400
    assert vault_ip.get_ipv4_addresses() == ["192.0.2.10", "198.51.100.20"]
    assert vault_ip.get_ipv6_addresses() == ["2001:db8::10", "fe80::10%eth0"]
    assert vault_ip.get_ip_addresses() == (vault_ip.get_ipv4_addresses(), vault_ip.get_ipv6_addresses())
    assert vault_ip.get_all_interface_addresses() == {
        "eth0": ["192.0.2.10", "2001:db8::10", "fe80::10%eth0"],
        "wlan0": ["198.51.100.20"],
    }


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(interface((socket.AF_INET, "203.0.113.1"), mtu=600, up=False), id="down"),
        pytest.param(interface(mtu=16), id="CAN bus"),
        pytest.param(interface((socket.AF_INET, "203.0.113.1"), mtu=575), id="below 576"),
        pytest.param(interface((socket.AF_INET, "203.0.113.1"), mtu=0), id="MTU unknown"),
        pytest.param(interface((socket.AF_INET, "127.0.0.1"), mtu=600), id="loopback by IPv4"),
        pytest.param(interface((socket.AF_INET6, "::1"), mtu=600), id="loopback by IPv6"),
        pytest.param(
            interface((socket.AF_INET, "203.0.113.1"), (socket.AF_INET, "127.0.0.2"), mtu=600),
            id="loopback with another address",
        ),
    ],
)
def test_interfaces_that_do_not_count(machine: Machine, other: tuple[Any, list[Any]]) -> None:
    machine.has(other0=other, eth0=ETHERNET)
    assert vault_ip.get_min_mtu() == 1500
    assert vault_ip.get_ipv4_addresses() == ["192.0.2.10"]
    assert vault_ip.get_ipv6_addresses() == ["2001:db8::10", "fe80::10%eth0"]
    assert list(vault_ip.get_all_interface_addresses()) == ["eth0"]


def test_an_mtu_of_576_counts(machine: Machine) -> None:
    machine.has(eth0=ETHERNET, ppp0=interface((socket.AF_INET, "203.0.113.1"), mtu=576))
    assert vault_ip.get_min_mtu() == 576


def test_an_interface_without_addresses_limits_the_mtu_only(machine: Machine) -> None:
    machine.has(eth0=ETHERNET, bridge0=interface(mtu=1300))
    assert vault_ip.get_min_mtu() == 1300
    assert list(vault_ip.get_all_interface_addresses()) == ["eth0"]


def test_a_hardware_address_is_no_ipv6_address(machine: Machine) -> None:
    eui_64 = "02:00:00:00:00:00:00:10"
    assert vault_ip.is_ipv6_valid(eui_64), "by its text alone it would be one"
    machine.has(wpan0=interface((LINK, eui_64)))
    assert vault_ip.get_ipv6_addresses() == []
    assert vault_ip.get_all_interface_addresses() == {}


@pytest.mark.parametrize("interfaces", [{}, {"lo": LOOPBACK}], ids=["none", "loopback only"])
def test_fallbacks_answer_without_interfaces(
    machine: Machine, interfaces: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(**interfaces)
    assert_fallbacks()
    assert not caplog.records, "a machine without a network is no failure"


@pytest.mark.parametrize("function", ["net_if_stats", "net_if_addrs"])
@pytest.mark.parametrize(
    "error", [OSError(13, "denied"), psutil.AccessDenied(1), RuntimeError("odd"), KeyError("eth0")], ids=repr
)
def test_fallbacks_answer_when_psutil_fails_and_it_is_logged_once(
    machine: Machine, function: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(lo=LOOPBACK, eth0=ETHERNET)
    machine.fails(function, error)
    assert_fallbacks()
    assert_fallbacks()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert repr(error) in record.getMessage()


def assert_fallbacks() -> None:
    assert vault_ip.get_min_mtu() == 1500
    assert vault_ip.get_ipv4_addresses() == ["127.0.0.1"]
    assert vault_ip.get_ipv6_addresses() == []
    assert vault_ip.get_ip_addresses() == (["127.0.0.1"], [])
    assert vault_ip.get_all_interface_addresses() == {}
    info = vault_ip.get_network_info()
    del info["hostname"]
    assert info == {
        "mtu": 1500,
        "primary_ipv4": "127.0.0.1",
        "all_ipv4": ["127.0.0.1"],
        "all_ipv6": [],
        "interfaces": {},
    }


def test_network_info(machine: Machine) -> None:
    machine.has(lo=LOOPBACK, eth0=ETHERNET, wlan0=WLAN)
    machine.routes_from("198.51.100.20")
    assert vault_ip.get_network_info() == {
        "mtu": 1400,
        "primary_ipv4": "198.51.100.20",
        "all_ipv4": ["192.0.2.10", "198.51.100.20"],
        "all_ipv6": ["2001:db8::10", "fe80::10%eth0"],
        "interfaces": vault_ip.get_all_interface_addresses(),
        "hostname": socket.gethostname(),
    }


def test_primary_address_without_a_route_is_the_first(machine: Machine) -> None:
    machine.has(eth0=ETHERNET, wlan0=WLAN)
    machine.routes_from(None)
    assert vault_ip.get_network_info()["primary_ipv4"] == "192.0.2.10"


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "255.255.255.255", "192.0.2.10"])
def test_valid_ipv4(address: str) -> None:
    assert vault_ip.is_ipv4_valid(address)
    assert not vault_ip.is_ipv6_valid(address)


@pytest.mark.parametrize(
    "address", ["::", "::1", "2001:db8::10", "fe80::1%eth0", "fe80::1%3", "::ffff:192.0.2.1"]
)
def test_valid_ipv6(address: str) -> None:
    assert vault_ip.is_ipv6_valid(address)
    assert not vault_ip.is_ipv4_valid(address)


@pytest.mark.parametrize(
    "address",
    [
        "", "host", "256.0.0.1", "1.2.3", "1.2.3.4.5", "1.2.3.4 ", "1.2.3.4%eth0", "1.2.3.4/24", "::1/64",
        ":::", "fe80::1%", "fe80::1%a%b", "%eth0",
        "1::2::3", "[::1]", "02:00:00:00:00:10", None, 1, b"\x7f\0\0\1",
    ],
)  # fmt: skip
def test_what_is_no_address(address: Any) -> None:
    assert not vault_ip.is_ipv4_valid(address)
    assert not vault_ip.is_ipv6_valid(address)


def test_this_machine_as_it_is() -> None:
    info = vault_ip.get_network_info()
    assert info["mtu"] >= 576
    assert vault_ip.is_ipv4_valid(info["primary_ipv4"])
    assert all(map(vault_ip.is_ipv6_valid, info["all_ipv6"]))


def test_self_test_as_a_program() -> None:
    done = subprocess.run([sys.executable, str(MODULE)], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 8
    assert all(line.startswith("ok   ") for line in done.stdout.splitlines())


def test_self_test_says_what_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(eth0=ETHERNET)
    assert vault_ip.main() == 0
    monkeypatch.setattr(vault_ip, "is_ipv4_valid", lambda _: True)
    assert vault_ip.main() == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")]
    assert failed == ["FAIL malformed addresses are refused"]
