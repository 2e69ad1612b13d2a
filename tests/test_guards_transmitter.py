# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: sending, and what the system says about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Iterator

import pytest
from test_datagram import Factory, FakeSocket, failing, on_platform

import vault_udp_transmitter as transmitter
from vault_udp_datagram import DatagramSocket


@pytest.fixture
def faked() -> Iterator[tuple[DatagramSocket, FakeSocket]]:
    """A socket for IPv4, and what it is made of."""
    factory = Factory()
    sock = DatagramSocket(0, "127.0.0.1", factory)
    yield sock, factory.fakes[-1]
    sock.close()


HERE = ("127.0.0.1", 65535)


def taken(datagram: bytes, destination: Any) -> int:
    """A `sendto` whose datagram goes nowhere."""
    return len(datagram)


def test_the_highest_port_is_one(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    fake.will("sendto", taken)
    assert sock.send([b"x"], HERE) == 1
    with pytest.raises(ValueError, match="ports are 1 to 65535"):
        sock.send([b"x"], ("127.0.0.1", 65536))


def test_an_address_is_worked_out_once(
    faked: tuple[DatagramSocket, FakeSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, fake = faked
    fake.will("sendto", taken, taken)
    assert sock.send([b"x"], HERE) == 1
    monkeypatch.setattr(transmitter, "resolve_literal", None)
    assert sock.send([b"x"], HERE) == 1


def test_all_that_is_refused_together_is_told_with_its_count(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, _ = faked
    told: list[tuple[Any, str, int]] = []
    sock.on_refused = lambda *what: told.append(what)
    assert sock.send([b"1", b"2", b"3"], ("::1", 1)) == 0
    assert told == [(("::1", 1), "EAFNOSUPPORT", 3)]
    assert sock.errors == {"EAFNOSUPPORT": 3}


@pytest.mark.parametrize(("platform", "error"), [("linux", "EHOSTUNREACH"), ("darwin", "ENETUNREACH")])
def test_other_errors_and_other_systems_are_no_matter_of_a_permission_of_macos(
    faked: tuple[DatagramSocket, FakeSocket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    platform: str,
    error: str,
) -> None:
    sock, fake = faked
    on_platform(monkeypatch, platform)
    fake.will("sendto", failing(error), failing(error))
    assert sock.send([b"x"], HERE) == 0
    assert sock.errors == {error: 1}
    assert caplog.records == []


def test_room_is_waited_for_in_milliseconds(
    faked: tuple[DatagramSocket, FakeSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, fake = faked
    waited: list[tuple[int, int, float]] = []

    class Poll:
        def register(self, descriptor: int, events: int) -> None:
            self.what = descriptor, events

        def poll(self, milliseconds: float) -> None:
            waited.append((*self.what, milliseconds))

    monkeypatch.setattr(transmitter, "select", SimpleNamespace(poll=Poll, POLLIN=1, POLLOUT=4))
    fake.will("sendto", *[failing("EAGAIN")] * 3, taken)
    assert sock.send([b"x"], HERE) == 1
    assert waited == [(fake.real.fileno(), 4, milliseconds) for milliseconds in (1, 2, 4)]


def test_a_run_has_no_more_bytes_than_one_datagram_may_have() -> None:
    assert transmitter._end_of_run([1024] * 64, 0) == 63
    assert transmitter._end_of_run([65_507] * 2, 0) == 1
    assert transmitter._end_of_run([70_000] * 2, 0) == 1, "which the system refuses"
    assert transmitter._end_of_run([100, 70_000, 70_000], 1) == 2
