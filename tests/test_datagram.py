# SPDX-License-Identifier: Apache-2.0
"""The UDP socket, on real loopback sockets and on fakes that raise what other systems raise."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import logging
import math
import os
import select
import socket
import sys
import threading
import time
import tracemalloc
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import run_thread

import vault_udp_datagram as datagram
import vault_udp_platform
import vault_udp_transmitter as transmitter
from vault_udp_address import Address, normalize, resolve_literal
from vault_udp_datagram import DatagramSocket, SocketClosed
from vault_udp_segments import Segments

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="UDP segmentation is Linux's")
MakeSocket = Callable[..., DatagramSocket]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


LOOPBACKS = [
    "127.0.0.1",
    pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")),
]


class FakeSocket:
    """A real socket whose calls are counted and replaced, one after the other, by what the test scripts.

    A scripted exception is raised, a scripted function is called instead, None lets the call through.
    """

    def __init__(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> None:
        self.real = socket.socket(family, kind)
        self.calls: Counter[str] = Counter()
        self.script: dict[str, deque[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.real, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any) -> Any:
            self.calls[name] += 1
            step = self.script[name].popleft() if self.script.get(name) else None
            if isinstance(step, BaseException):
                raise step
            return attribute(*args) if step is None else step(*args)

        return call

    def recvmsg_into(self, buffers: Sequence[memoryview], *args: Any) -> Any:
        """As the script of ``recvmsg`` says."""
        data, *others = self.recvmsg(len(buffers[0]), *args)
        buffers[0][: len(data)] = data
        return (len(data), *others)

    def recvfrom_into(self, buffer: memoryview) -> Any:
        """As the script of ``recvfrom`` says."""
        data, sender = self.recvfrom(len(buffer))
        buffer[: len(data)] = data
        return len(data), sender

    def will(self, name: str, *steps: Any) -> None:
        self.script[name] = deque(steps)

    def system_calls(self) -> int:
        return sum(self.calls[name] for name in ("sendto", "sendmsg", "recvmsg", "recvfrom"))


class Factory:
    """Makes fakes; ``prepare`` scripts each before it is used."""

    def __init__(self, prepare: Callable[[FakeSocket], None] = lambda fake: None) -> None:
        self.prepare = prepare
        self.fakes: list[FakeSocket] = []

    def __call__(self, family: int, kind: int) -> Any:
        fake = FakeSocket(family, kind)
        self.fakes.append(fake)
        self.prepare(fake)
        return fake


@pytest.fixture
def make() -> Iterator[MakeSocket]:
    """Makes sockets that are closed after the test."""
    made: list[DatagramSocket] = []

    def make_socket(port: int = 0, *args: Any, **kwargs: Any) -> DatagramSocket:
        made.append(DatagramSocket(port, *args, **kwargs))
        return made[-1]

    yield make_socket
    for sock in made:
        sock.close()


@pytest.fixture
def faked(make: MakeSocket) -> tuple[DatagramSocket, FakeSocket]:
    factory = Factory()
    sock = make(0, None, factory)
    factory.fakes[-1].calls.clear()
    return sock, factory.fakes[-1]


def receive_all(sock: DatagramSocket, count: int) -> list[tuple[bytes, Address]]:
    """What ``count`` datagrams that were sent already contain; a watchdog wakes a socket that lost some."""
    received: list[tuple[bytes, Address]] = []
    watchdog = threading.Timer(10, sock.wake)
    watchdog.start()
    while len(received) < count:
        batches = sock.receive()
        if not batches:
            break
        received.extend((data, sender) for batch, sender in batches for data in batch)
    watchdog.cancel()
    watchdog.join()
    return received


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Start a function in a thread; the result waits for what it returns, or for the exception it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(10)
        assert outcome, "still blocked"
        return outcome[0]

    return result


def blocked_receiver(
    sock: DatagramSocket, monkeypatch: pytest.MonkeyPatch, until: float = math.inf
) -> tuple[threading.Event, Callable[[], Any]]:
    """A thread in ``receive``, and an event that is set when it is about to wait in the kernel."""
    waiting = threading.Event()
    wait = sock._wait_readable

    def signalled(seconds: float | None) -> bool:
        waiting.set()
        return wait(seconds)

    monkeypatch.setattr(sock, "_wait_readable", signalled)
    return waiting, in_thread(lambda: sock.receive(until))


# --- addresses ---


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (("192.0.2.1", 5), ("192.0.2.1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), ("192.0.2.1", 5)),
        (("2001:db8::1", 5, 0, 0), ("2001:db8::1", 5)),
        (("::ffff:0:1", 5, 0, 0), ("::ffff:0:1", 5)),
        (("fe80::1", 5, 0, 0), ("fe80::1", 5)),
        (("fe80::1%anything", 5, 0, 4_000_000), ("fe80::1%4000000", 5)),
    ],
)
def test_normalize(seen: Any, expected: Address) -> None:
    assert normalize(seen) == expected


def test_link_local_addresses_show_the_name_of_the_interface() -> None:
    index, name = socket.if_nameindex()[0]
    assert normalize(("fe80::1", 5, 0, index)) == (f"fe80::1%{name}", 5)
    assert normalize((f"fe80::1%{name}", 5, 0, index)) == (f"fe80::1%{name}", 5)
    assert resolve_literal(f"fe80::1%{index}") == f"fe80::1%{name}"
    assert resolve_literal(f"FE80:0::1%{name}") == f"fe80::1%{name}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::FFFF:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::", "::"),
        ("2001:db8::1%gone0", "2001:db8::1"),
        ("febf::1%gone0", "febf::1%gone0"),
        ("fec0::1%gone0", "fec0::1"),
        ("fe80::1%4000000", "fe80::1%4000000"),
        ("fe80::1%4294967295", "fe80::1%4294967295"),
        ("fe80::1%4294967296", None),
        ("fe80::1%\0", None),
        ("fe80::1%\ud800", None),
        ("fe80::1%", None),
        ("192.0.2.1%eth0", None),
        ("192.0.2", None),
        ("192.0.2.256", None),
        ("host.example", None),
        ("[::1]", None),
        ("1:2", None),
        ("", None),
        ("192.0.2.1\0", None),
        ("\ud800", None),
        ("::1\0", None),
        (":\ud800", None),
    ],
)
def test_resolve_literal(text: str, expected: str | None) -> None:
    assert resolve_literal(text) == expected


@given(st.ip_addresses())
def test_canonical_text_is_stable_and_means_the_same(ip: Any) -> None:
    text = resolve_literal(ip.exploded)
    assert text is not None
    assert resolve_literal(text) == text
    mapped = getattr(ip, "ipv4_mapped", None)
    assert ipaddress.ip_address(text) == (mapped or ip)


@given(st.text(alphabet=st.characters() | st.sampled_from("0123456789abcdef.:%")))
def test_any_text_is_an_address_or_is_not(text: str) -> None:
    literal = resolve_literal(text)
    assert literal is None or ipaddress.ip_address(literal.partition("%")[0])


# --- binding ---


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
def test_one_socket_serves_both_families(make: MakeSocket) -> None:
    here, there = make(), make()
    assert here.family == socket.AF_INET6
    assert there.send([b"four"], ("127.0.0.1", here.port)) == 1
    assert there.send([b"six"], ("::1", here.port)) == 1
    assert receive_all(here, 2) == [(b"four", ("127.0.0.1", there.port)), (b"six", ("::1", there.port))]


def without_ipv6(fake: FakeSocket) -> None:
    if fake.real.family == socket.AF_INET6:
        fake.will("setsockopt", OSError(errno.ENOPROTOOPT, "no dual stack"))


def no_ipv6_address(fake: FakeSocket) -> None:
    if fake.real.family == socket.AF_INET6:
        fake.will("bind", OSError(errno.EADDRNOTAVAIL, "IPv6 is switched off"))


@pytest.mark.parametrize("prepare", [without_ipv6, no_ipv6_address])
def test_ipv4_alone_where_there_is_no_dual_stack(
    make: MakeSocket, prepare: Callable[[FakeSocket], None]
) -> None:
    factory = Factory(prepare)
    sock = make(0, None, factory)
    assert sock.family == socket.AF_INET
    assert factory.fakes[0].real.fileno() == -1
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    assert receive_all(sock, 1) == [(b"data", ("127.0.0.1", sock.port))]
    assert sock.send([b"data", b"data"], ("2001:db8::1", 9)) == 0
    assert sock.errors == {"EAFNOSUPPORT": 2}


def test_ipv4_alone_where_the_kernel_has_no_ipv6(make: MakeSocket) -> None:
    def factory(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return socket.socket(family, kind)

    assert make(0, None, factory).family == socket.AF_INET


@pytest.mark.parametrize("address", [None, "0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("other", [None, "0.0.0.0"])
def test_a_port_in_use_is_an_error(make: MakeSocket, address: str | None, other: str | None) -> None:
    taken = make(0, other)
    with pytest.raises(OSError, match=r"in use|permi|access") as caught:
        make(taken.port, address)
    assert caught.value.errno == errno.EADDRINUSE or sys.platform == "win32"


def test_a_refused_socket_is_closed_and_no_other_family_is_tried() -> None:
    factory = Factory(lambda fake: fake.will("bind", OSError(errno.EACCES, "not permitted")))
    with pytest.raises(PermissionError):
        DatagramSocket(80, None, factory)
    assert [fake.real.fileno() for fake in factory.fakes] == [-1]


def test_no_waker_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    factory = Factory()
    monkeypatch.setattr(socket, "socketpair", refuse)
    with pytest.raises(OSError, match="too many"):
        DatagramSocket(0, None, factory)
    assert factory.fakes[0].real.fileno() == -1


@pytest.mark.parametrize("address", LOOPBACKS)
def test_bind_address(make: MakeSocket, address: str) -> None:
    sock = make(0, address)
    assert sock._socket.getsockname()[:2] == (address, sock.port)
    assert sock.send([b"data"], (address, sock.port)) == 1
    assert receive_all(sock, 1) == [(b"data", (address, sock.port))]


def test_bind_address_must_be_a_literal() -> None:
    with pytest.raises(ValueError, match=r"'host\.example'"):
        DatagramSocket(0, "host.example")


def test_buffers_are_asked_for_in_smaller_steps_where_the_wish_is_refused(make: MakeSocket) -> None:
    wishes: list[int] = []

    def prepare(fake: FakeSocket) -> None:
        real = fake.real.setsockopt

        def setsockopt(level: int, option: int, value: int) -> None:
            if level == socket.SOL_SOCKET and option == socket.SO_RCVBUF:
                wishes.append(value)
                if value > 1 << 20:
                    raise OSError(errno.ENOBUFS, "No buffer space available")
            real(level, option, value)

        fake.__dict__["setsockopt"] = setsockopt

    sock = make(0, None, Factory(prepare))
    assert wishes == [4 << 20, 2 << 20, 1 << 20]
    assert sock.receive_buffer == sock._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 0
    assert sock.send_buffer == sock._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 0


def test_nobody_frees_a_socket_while_another_still_wakes_it(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who closes holds the lock until the receiver is woken; who frees waits for it."""
    sock = make()
    was_held: list[bool] = []
    release = sock._release

    def noted() -> None:
        with ThreadPoolExecutor(1) as another:
            was_held.append(not another.submit(sock._lock.acquire, blocking=False).result())
        release()

    monkeypatch.setattr(sock, "_release", noted)
    sock.close()
    assert was_held == [True]


@pytest.mark.parametrize("interrupted", ["_wake_locked", "_release"])
def test_a_signal_handler_may_close_what_is_being_closed(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    sock = make()
    interrupted_call = getattr(sock, interrupted)

    def with_handler() -> None:
        sock.wake()
        sock.close()
        interrupted_call()

    monkeypatch.setattr(sock, interrupted, with_handler)
    run_thread(sock.close)
    assert sock._socket.fileno() == -1


def test_closing_frees_the_port(make: MakeSocket) -> None:
    first = make()
    first.close()
    first.close()
    assert make(first.port).port == first.port
    with pytest.raises(SocketClosed):
        first.receive()
    first.wake()
    assert first.send([b"a", b"b"], ("127.0.0.1", first.port)) == 0
    assert first.errors == {"EBADF": 2}


# --- what arrives is what was sent ---

MIXED = [
    [b"only"],
    [b""],
    [b"", b""],
    [b"aa", b"", b"bb"],
    [b"equal1", b"equal2", b"equal3"],
    [b"equal1", b"equal2", b"end"],
    [b"a", b"longer", b"longes", b"b", b"c", b"dd"],
    [bytes([number]) * 1400 for number in range(150)],
    [bytes([number]) * (1 + number % 3) for number in range(150)],
    [b"x" * 65_507, b"y" * 65_507],
    [b"x" * 40_000, b"y" * 40_000],
]


@pytest.mark.parametrize("segmented", [True, False])
@pytest.mark.parametrize("size", [1, 100, 1400, 40_000])
@pytest.mark.parametrize("length", [100, 40_000, 150_000])
def test_datagrams_end_to_end_arrive_as_others_do(
    make: MakeSocket, size: int, length: int, segmented: bool
) -> None:
    here, there = make(), make()
    here.gso = here.gso and segmented
    whole = bytes(index % 251 for index in range(min(length, 500 * size)))
    segments = Segments(whole, size)
    assert here.send(segments, ("127.0.0.1", there.port)) == len(segments)
    assert [data for data, _ in receive_all(there, len(segments))] == list(segments)
    assert here.errors == there.errors == {}


@pytest.mark.parametrize("segmented", [True, False])
@pytest.mark.parametrize("datagrams", MIXED, ids=lambda datagrams: f"{len(datagrams)}x{len(datagrams[0])}")
@pytest.mark.parametrize("address", LOOPBACKS)
def test_datagrams_arrive_whole_and_in_order(
    make: MakeSocket, address: str, datagrams: list[bytes], segmented: bool
) -> None:
    here, there = make(), make()
    here.gso = here.gso and segmented
    assert here.send(datagrams, (address, there.port)) == len(datagrams)
    received = receive_all(there, len(datagrams))
    assert received == [(data, (address, here.port)) for data in datagrams]
    assert here.errors == there.errors == {}
    assert there.kernel_drops == 0


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=200))
def test_runs_cover_everything_once_and_are_legal(lengths: list[int]) -> None:
    start = 0
    while start < len(lengths):
        end = transmitter._end_of_run(lengths, start)
        run = lengths[start:end]
        assert 1 <= len(run) <= transmitter.MAX_SEGMENTS
        assert len(run) == 1 or sum(run) <= transmitter.MAX_SEGMENTED_BYTES
        assert all(length == run[0] for length in run[:-1])
        assert len(run) == 1 or 0 < run[-1] <= run[0]
        start = end
    assert start == len(lengths)


def test_sending_nothing(make: MakeSocket) -> None:
    sock = make()
    assert sock.send([], ("127.0.0.1", sock.port)) == 0


@on_linux
def test_without_gro_and_drop_counts(make: MakeSocket) -> None:
    def prepare(fake: FakeSocket) -> None:
        real = fake.real.setsockopt

        def setsockopt(level: int, option: int, value: int) -> None:
            if level == vault_udp_platform.SOL_UDP or option == vault_udp_platform.SO_RXQ_OVFL:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            real(level, option, value)

        fake.__dict__["setsockopt"] = setsockopt

    factory = Factory(prepare)
    old, new = make(0, None, factory), make()
    assert not old.gso
    assert not old.gro
    datagrams = [bytes([number]) * 1400 for number in range(64)]
    assert new.send(datagrams, ("127.0.0.1", old.port)) == 64
    assert [data for data, _ in receive_all(old, 64)] == datagrams
    assert old.send(datagrams, ("127.0.0.1", new.port)) == 64
    assert [data for data, _ in receive_all(new, 64)] == datagrams
    assert factory.fakes[-1].calls["sendmsg"] == factory.fakes[-1].calls["recvmsg"] == 0


@on_linux
def test_kernel_drops_are_counted(make: MakeSocket) -> None:
    here, there = make(), make()
    here.gso = False
    there._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = here.send([bytes(1400)] * 100, ("127.0.0.1", there.port))
    received = len(there.receive()[0][0])
    while select.select([there._socket], [], [], 0)[0]:
        received += sum(len(batch) for batch, _ in there.receive())
    # The kernel tells with the next datagram that it takes.
    assert here.send([b"next"], ("127.0.0.1", there.port)) == 1
    assert receive_all(there, 1)[0][0] == b"next"
    assert sent == 100
    assert there.kernel_drops == 100 - received > 0


@on_linux
def test_kernel_drops_are_known_before_another_datagram_comes(
    make: MakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = make(), make()
    here.gso = False
    there._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert here.send([bytes(1400)] * 100, ("127.0.0.1", there.port)) == 100
    for _ in range(2):
        there.count_drops()
    dropped = there.kernel_drops
    assert 0 < dropped < 100
    # What lies in the buffer came when less had been dropped.
    assert sum(len(receive_all(there, 1)) for _ in range(100 - dropped)) == 100 - dropped
    assert there.kernel_drops == dropped
    assert ["receive buffer was full" in record.getMessage() for record in caplog.records] == [True]
    there.close()
    there.count_drops()
    assert there.kernel_drops == dropped


@pytest.mark.parametrize("told", [OSError(errno.ENOPROTOOPT, "not there"), b"\xff" * 35])
def test_systems_that_do_not_tell_of_drops(
    faked: tuple[DatagramSocket, FakeSocket], told: OSError | bytes
) -> None:
    sock, fake = faked

    def getsockopt(*_: int) -> bytes:
        if isinstance(told, OSError):
            raise told
        return told

    fake.__dict__["getsockopt"] = getsockopt
    sock.count_drops()
    assert sock.kernel_drops == 0


def test_drops_are_warned_of_once_a_minute(
    faked: tuple[DatagramSocket, FakeSocket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sock, _ = faked
    told = []
    for drops, now in ((1, 5.0), (2, 6.0), (3, 65.0), (3, 200.0), (4, 200.0), (3, 300.0)):
        clock = SimpleNamespace(monotonic=lambda now=now: now)
        monkeypatch.setattr(datagram, "time", clock)
        sock._note_drops(drops)
        told.append(len(caplog.records))
    assert told == [1, 1, 2, 2, 3, 3]
    assert sock.kernel_drops == 4, "a datagram may have come before the last drops that we know of"


def test_a_datagram_longer_than_udp_allows_is_dropped_and_counted(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    assert sock.send([b"long", b"data"], ("127.0.0.1", sock.port)) == 2
    sender = ("127.0.0.1", 9)
    fake.will("recvmsg", lambda *_: (bytes(65_535), [], socket.MSG_TRUNC, sender))
    assert [data for data, _ in receive_all(sock, 2)] == [b"long", b"data"]
    assert sock.errors == {"EMSGSIZE": 1}


def test_the_count_of_drops_may_wrap(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked

    def told(drops: int) -> Callable[..., Any]:
        value = drops.to_bytes(4, sys.byteorder)
        ancillary = [(socket.SOL_SOCKET, vault_udp_platform.SO_RXQ_OVFL, value)]
        return lambda *_: (b"data", ancillary, 0, ("127.0.0.1", 9))

    sock._drops_told = 0xFFFFFFFE
    fake.will("recvmsg", told(0xFFFFFFFF), told(2), told(2))
    for expected in (1, 4, 4):
        assert sock._receive_message() == ([b"data"], ("127.0.0.1", 9))
        assert sock.kernel_drops == expected


# --- system calls ---


@on_linux
def test_system_calls_per_1000_datagrams_segmented(make: MakeSocket) -> None:
    factory = Factory()
    here, there = make(0, None, factory), make(0, None, factory)
    sender, receiver = factory.fakes
    polls = count_polls(there)
    sender.calls.clear()
    assert here.send([bytes(1400)] * 1000, ("127.0.0.1", there.port)) == 1000
    assert sender.system_calls() == 22  # 46 datagrams of 1,400 bytes fit in 65,507
    assert len(receive_all(there, 1000)) == 1000
    assert receiver.system_calls() + len(polls) <= 25


def count_polls(sock: DatagramSocket, meanwhile: Callable[[], Any] = lambda: None) -> list[float | None]:
    """A list that grows with each wait for datagrams; ``meanwhile`` runs as soon as the socket waits."""
    polls: list[float | None] = []
    wait = sock._wait_readable

    def counted(seconds: float | None) -> bool:
        polls.append(seconds)
        meanwhile()
        return wait(seconds)

    sock._wait_readable = counted
    return polls


def test_system_calls_per_1000_datagrams_in_bursts(make: MakeSocket) -> None:
    factory = Factory()
    here, there = make(), make(0, None, factory)
    here.gso = False
    polls = count_polls(there, lambda: here.send([bytes(100)] * 50, ("127.0.0.1", there.port)))
    assert len(receive_all(there, 1000)) == 1000
    # For each burst one poll, and one call that finds that it is over.
    assert factory.fakes[0].system_calls() + len(polls) <= 1000 + 20 * 2


def test_system_calls_per_1000_datagrams_of_ping_pong(make: MakeSocket) -> None:
    factory = Factory()
    here, there = make(), make(0, None, factory)
    polls = count_polls(there, lambda: here.send([b"pong"], ("127.0.0.1", there.port)))
    for _ in range(1000):
        assert there.receive() == [([b"pong"], ("127.0.0.1", here.port))]
    # One poll and one receive each; now and then it is tried in vain whether more datagrams wait.
    assert factory.fakes[0].system_calls() + len(polls) <= 2100


def exchange(here: DatagramSocket, there: DatagramSocket) -> None:
    """``here`` sends something and is answered."""
    here.send([b"ping"], ("127.0.0.1", there.port))
    here.awaits_answer = True
    there.send([b"pong"], ("127.0.0.1", here.port))
    assert here.receive() == [([b"pong"], ("127.0.0.1", there.port))]


@pytest.fixture
def answered(make: MakeSocket, monkeypatch: pytest.MonkeyPatch) -> tuple[DatagramSocket, DatagramSocket]:
    """A socket that is answered fast, and the other that does so."""
    monkeypatch.setattr(datagram, "BUSY_WAIT", 60.0)  # no pause of this machine is long enough to matter
    here, there = make(), make()
    exchange(here, there)
    exchange(here, there)
    return here, there


def test_a_fast_answer_is_awaited_without_sleeping(answered: tuple[DatagramSocket, DatagramSocket]) -> None:
    here, there = answered
    polls = count_polls(here)
    for _ in range(10):
        exchange(here, there)
    assert not polls


def test_a_fast_answer_costs_one_call_each_way(make: MakeSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an answer nothing is looked for: who has answered waits for what it is sent now."""
    monkeypatch.setattr(datagram, "BUSY_WAIT", 60.0)
    factory = Factory()
    here, there = make(0, None, factory), make()
    for _ in range(2):
        exchange(here, there)
    factory.fakes[0].calls.clear()
    for _ in range(10):
        exchange(here, there)
    assert factory.fakes[0].system_calls() == 20


def test_who_is_awaited_gets_the_processor(
    answered: tuple[DatagramSocket, DatagramSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends on one processor: what was awaited could not be sent until the waiting was over."""
    here, there = answered
    monkeypatch.setattr(datagram, "BUSY_WAIT", 10.0)
    monkeypatch.setattr(datagram, "yield_processor", lambda: there.send([b"pong"], ("127.0.0.1", here.port)))
    here.wake()  # ends what would go on without an answer
    assert here.receive() == [([b"pong"], ("127.0.0.1", there.port))]


def test_a_stream_is_not_awaited_so(answered: tuple[DatagramSocket, DatagramSocket]) -> None:
    here, there = answered
    polls = count_polls(here)
    for _ in range(2):
        there.send([b"stream"], ("127.0.0.1", here.port))
        here.receive()
    assert len(polls) == 1


def test_an_answer_that_does_not_come_is_not_awaited_for_long(
    answered: tuple[DatagramSocket, DatagramSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = answered
    polls = count_polls(here)
    monkeypatch.setattr(datagram, "BUSY_WAIT", 0.0)
    here.wake()
    assert here.receive() == []
    assert len(polls) == 1


def test_a_flood_is_noticed(make: MakeSocket) -> None:
    here, there = make(), make()
    here.gso = False
    polls = count_polls(there)
    there._polls_until_probe = there._polls_between_probes = datagram._MAX_POLLS_BETWEEN_PROBES
    assert here.send([b"data"] * 200, ("127.0.0.1", there.port)) == 200
    assert len(receive_all(there, 200)) == 200
    assert len(polls) == datagram._MAX_POLLS_BETWEEN_PROBES


def test_a_shorter_last_datagram_shares_the_call(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    if not sock.gso:
        pytest.skip("no segmentation here")
    assert sock.send([b"equal"] * 3 + [b"end"], ("127.0.0.1", sock.port)) == 4
    assert fake.system_calls() == fake.calls["sendmsg"] == 1


def test_runs_are_bounded_in_number_and_bytes() -> None:
    assert transmitter._end_of_run([100] * 100, 0) == 64
    assert transmitter._end_of_run([1400] * 100, 50) == 96


def test_one_call_fetches_no_more_than_its_bounds(make: MakeSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = make(), make()
    here.gso = False
    monkeypatch.setattr(datagram, "MAX_DATAGRAMS_PER_RECEIVE", 10)
    for most in (datagram.MAX_BATCHES_PER_RECEIVE, 10, 7):
        monkeypatch.setattr(datagram, "MAX_BATCHES_PER_RECEIVE", most)
        assert here.send([b"data"] * 100, ("127.0.0.1", there.port)) == 100
        sizes: list[int] = []
        while sum(sizes) < 100:
            sizes.append(sum(len(datagrams) for datagrams, _ in there.receive()))
        assert max(sizes) == min(most, 10)


def test_datagrams_that_come_singly_are_handed_over_together(make: MakeSocket) -> None:
    here, there = make(), make()
    here.gso = False
    address = ("127.0.0.1", here.port)
    there._polls_until_probe = 0  # as in a flood
    assert here.send([b"data"] * 5 + [b"others"] * 3 + [b"", b""], ("127.0.0.1", there.port)) == 10
    batches = there.receive()
    assert [(list(datagrams), source) for datagrams, source in batches] == [
        ([b"data"] * 5, address),
        ([b"others"] * 3, address),
        ([b""], address),
        ([b""], address),
    ]
    assert [type(datagrams) for datagrams, _ in batches] == [Segments, Segments, list, list]


@given(
    st.lists(
        st.tuples(st.binary(max_size=40), st.integers(1, 9), st.sampled_from([("a", 1), ("b", 1)])),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 60),
)
def test_joined_batches_are_the_same_datagrams(
    received: list[tuple[bytes, int, Address]], most_joined: int
) -> None:
    batches: list[tuple[Sequence[bytes], Address]] = [
        (Segments(whole, size) if size < len(whole) else [whole], source) for whole, size, source in received
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datagram, "_MOST_JOINED", most_joined)
        joined = datagram._joined(batches)
    assert [(one, source) for datagrams, source in joined for one in datagrams] == [
        (one, source) for datagrams, source in batches for one in datagrams
    ]
    for datagrams, _ in joined:
        is_as_before = any(datagrams is batch for batch, _ in batches)
        assert is_as_before or sum(map(len, datagrams)) <= most_joined


# --- waking and closing ---


def test_wake_before_receive_returns_nothing_once(make: MakeSocket) -> None:
    sock = make()
    with pytest.raises(BlockingIOError):
        deque(iter(partial(sock._wake_sender.send, bytes(4096)), 0))
    sock.wake()
    assert sock.receive() == []
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    assert receive_all(sock, 1) == [(b"data", ("127.0.0.1", sock.port))]


@pytest.mark.parametrize("has_poll", [True, False])
def test_receive_ends_when_its_time_has_come(
    has_poll: bool, make: MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_poll:
        monkeypatch.delattr(select, "poll", raising=False)
    sock = make()
    until = time.monotonic() + 0.05
    assert sock.receive(until) == []
    assert time.monotonic() >= until
    assert sock.receive(until) == [], "also if it has come before"
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    assert receive_all(sock, 1) == [(b"data", ("127.0.0.1", sock.port))]


def test_a_time_so_far_away_that_the_system_cannot_wait_for_it(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = make()
    waiting, result = blocked_receiver(sock, monkeypatch, 1e12)
    assert waiting.wait(10)
    sock.wake()
    assert result() == []


def test_wake_from_another_thread(make: MakeSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = make()
    waiting, result = blocked_receiver(sock, monkeypatch)
    assert waiting.wait(10)
    sock.wake()
    assert result() == []


@pytest.mark.parametrize("with_poll", [True, False])
def test_closing_ends_a_blocked_receive(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch, with_poll: bool
) -> None:
    if not with_poll:
        monkeypatch.delattr(select, "poll", raising=False)
    sock = make()
    waiting, result = blocked_receiver(sock, monkeypatch)
    assert waiting.wait(10)
    sock.close()
    assert isinstance(result(), SocketClosed)
    assert make(sock.port).port == sock.port
    for own in (sock._socket, sock._wake_receiver, sock._wake_sender):
        assert own.fileno() == -1


def test_closing_inside_a_receive_frees_the_port_on_the_way_out(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked

    def close_meanwhile(*_: Any) -> Any:
        sock.close()
        assert fake.real.fileno() != -1
        return b"data", [], 0, ("127.0.0.1", 9)

    assert sock.send([b"x"], ("127.0.0.1", sock.port)) == 1
    fake.will("recvmsg" if sys.platform == "linux" else "recvfrom", close_meanwhile)
    assert sock.receive() == [([b"data"], ("127.0.0.1", 9))]
    assert fake.real.fileno() == -1
    with pytest.raises(SocketClosed):
        sock.receive()


def send_repeatedly(sock: DatagramSocket, datagrams: list[bytes], times: int) -> list[int]:
    return [sock.send(datagrams, ("127.0.0.1", sock.port)) for _ in range(times)]


def test_many_threads_send(make: MakeSocket) -> None:
    sock = make()
    results = [
        in_thread(partial(send_repeatedly, sock, [name * 8] * 5, 20)) for name in (b"a", b"b", b"c", b"d")
    ]
    received = Counter(data for data, _ in receive_all(sock, 400))
    assert [sum(result()) for result in results] == [100] * 4
    assert received == {name * 8: 100 for name in (b"a", b"b", b"c", b"d")}


# --- faults of the network and the system ---


def failing(name: str) -> OSError:
    return OSError(getattr(errno, name), name)


@pytest.mark.parametrize(
    "name", ["EMSGSIZE", "EPERM", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EADDRNOTAVAIL", "EINVAL"]
)
def test_a_refused_datagram_is_counted_and_the_others_go_on(
    faked: tuple[DatagramSocket, FakeSocket], name: str
) -> None:
    sock, fake = faked
    sock.gso = False
    fake.will("sendto", None, failing(name))
    assert sock.send([b"1", b"2", b"3"], ("127.0.0.1", sock.port)) == 2
    assert [data for data, _ in receive_all(sock, 2)] == [b"1", b"3"]
    assert sock.errors == {name: 1}


@on_linux
def test_a_segmented_batch_that_the_network_refuses_is_counted_datagram_by_datagram(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    fake.will("sendmsg", failing("ENETUNREACH"))
    assert sock.send([b"1", b"2", b"3"], ("127.0.0.1", sock.port)) == 0
    assert sock.errors == {"ENETUNREACH": 3}
    assert sock.gso


@pytest.mark.parametrize("name", ["EAGAIN", "ENOBUFS"])
@pytest.mark.parametrize("with_poll", [True, False])
@pytest.mark.parametrize("call", ["sendto", pytest.param("sendmsg", marks=on_linux)])
def test_no_room_is_waited_for(
    faked: tuple[DatagramSocket, FakeSocket],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    with_poll: bool,
    call: str,
) -> None:
    sock, fake = faked
    sock.gso = call == "sendmsg"
    if not with_poll:
        monkeypatch.delattr(select, "poll", raising=False)
    fake.will(call, failing(name), failing(name))
    assert sock.send([b"1", b"2"], ("127.0.0.1", sock.port)) == 2
    assert sock.errors == {}
    assert fake.calls[call] == (4 if call == "sendto" else 3)


@pytest.mark.parametrize("segmented", [True, False])
def test_waiting_for_room_is_bounded_for_the_whole_call(
    faked: tuple[DatagramSocket, FakeSocket], monkeypatch: pytest.MonkeyPatch, segmented: bool
) -> None:
    sock, fake = faked
    sock.gso = segmented
    waits: list[float] = []
    monkeypatch.setattr(transmitter, "time", SimpleNamespace(sleep=waits.append))
    fake.will("sendto", *[failing("ENOBUFS")] * 1000)
    growing = [bytes(length) for length in range(10)]  # no two of them can share a call
    assert sock.send(growing, ("127.0.0.1", sock.port)) == 0
    assert sock.errors == {"ENOBUFS": 10}
    assert 0.9 < sum(waits) < 1.1
    assert max(waits) <= 0.02  # so that close() is noticed soon


def test_closing_ends_the_wait_for_room(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked

    def close_meanwhile(*_: Any) -> Any:
        sock.close()
        raise BlockingIOError(errno.EAGAIN, "again")

    fake.will("sendto", close_meanwhile)
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 0
    assert sock.errors == {"EBADF": 1}


def test_the_refusal_of_an_earlier_datagram_is_not_held_against_this_one(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    sock.gso = False
    fake.will("sendto", failing("ECONNREFUSED"), None, failing("ECONNREFUSED"), failing("ECONNREFUSED"))
    assert sock.send([b"1", b"2", b"3"], ("127.0.0.1", sock.port)) == 2
    assert fake.calls["sendto"] == 5
    assert sock.errors == {"ECONNREFUSED": 1}


@on_linux
@pytest.mark.parametrize("end_to_end", [True, False])
@pytest.mark.parametrize("name", ["EIO", "EINVAL", "ENOPROTOOPT"])
def test_segmentation_refused_is_switched_off_once_and_nothing_is_lost(
    faked: tuple[DatagramSocket, FakeSocket], name: str, end_to_end: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sock, fake = faked
    fake.will("sendmsg", None, failing(name))
    cut = [bytes([number]) * 1400 for number in range(150)]
    datagrams = Segments(b"".join(cut), 1400) if end_to_end else cut
    assert sock.send(datagrams, ("127.0.0.1", sock.port)) == 150
    assert [data for data, _ in receive_all(sock, 150)] == cut
    assert not sock.gso
    assert sock.send(datagrams, ("127.0.0.1", sock.port)) == 150
    assert len(receive_all(sock, 150)) == 150
    assert (fake.calls["sendmsg"], fake.calls["sendto"]) == (2, 104 + 150)
    assert sock.errors == {}
    assert [name in record.getMessage() for record in caplog.records] == [True]


@on_linux
def test_a_batch_too_long_for_its_route_goes_singly_and_segmentation_stays(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    fake.will("sendmsg", failing("EMSGSIZE"))
    assert sock.send([b"1", b"2"], ("127.0.0.1", sock.port)) == 2
    assert [data for data, _ in receive_all(sock, 2)] == [b"1", b"2"]
    assert sock.gso


@on_linux
def test_an_address_that_cannot_work_does_not_switch_segmentation_off(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    fake.will("sendmsg", failing("EINVAL"))
    fake.will("sendto", failing("EINVAL"), failing("EINVAL"))
    assert sock.send([b"1", b"2"], ("fe80::1", 9)) == 0
    assert sock.gso
    assert sock.errors == {"EINVAL": 2}


@pytest.mark.parametrize(
    ("address", "message"),
    [(("host.example", 9), "host.example"), (("127.0.0.1", 0), "0"), (("127.0.0.1", 65_536), "65536")],
)
def test_what_is_no_address_is_refused(make: MakeSocket, address: Address, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().send([b"data"], address)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
def test_an_interface_that_is_gone_is_counted(make: MakeSocket) -> None:
    sock = make()
    assert sock.send([b"data"], ("fe80::1%gone0", 9)) == 0
    assert sock.errors == {"ENODEV": 1}
    with pytest.raises(OSError, match="gone0"):
        DatagramSocket(0, "fe80::1%gone0")


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
def test_scopes_are_looked_up_each_time(make: MakeSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = make()
    indexes = iter([7, 8])
    monkeypatch.setattr(socket, "if_nametoindex", lambda name: next(indexes))
    assert [sock._destination(("fe80::1%eth0", 9)) for _ in range(2)] == [
        ("fe80::1", 9, 0, 7),
        ("fe80::1", 9, 0, 8),
    ]
    assert sock._destinations == {}
    assert sock._destination(("fe80::1%5000000", 9)) == ("fe80::1", 9, 0, 5_000_000)


def test_the_cache_of_destinations_is_bounded(make: MakeSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmitter, "_MAX_CACHED_DESTINATIONS", 10)
    sock = make()
    for port in range(1, 100):
        sock._destination(("127.0.0.1", port))
        assert len(sock._destinations) <= 10


RECEIVE_CALL = "recvmsg" if sys.platform == "linux" else "recvfrom"


@pytest.mark.parametrize("name", ["ECONNREFUSED", "ENETDOWN", "EHOSTUNREACH"])
def test_an_error_of_a_receive_is_counted_and_datagrams_still_come(
    faked: tuple[DatagramSocket, FakeSocket], name: str
) -> None:
    sock, fake = faked
    fake.will(RECEIVE_CALL, failing(name))
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    assert receive_all(sock, 1) == [(b"data", ("127.0.0.1", sock.port))]
    assert sock.errors == {name: 1}
    assert sock._errors_in_a_row == 0


def test_a_lasting_error_does_not_spin(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    pauses: list[float] = []

    def pause(seconds: float | None) -> bool:
        assert seconds is not None
        pauses.append(seconds)
        if len(pauses) == 5:
            sock.wake()
        return False

    sock._wait_woken = pause
    fake.will(RECEIVE_CALL, *[failing("ENETDOWN")] * 1000)
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    assert sock.receive() == []
    assert min(pauses) >= 0.05
    assert sock.errors == {"ENETDOWN": 21}


def test_a_wake_ends_the_pause_after_errors(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    fake.will(RECEIVE_CALL, *[failing("ENETDOWN")] * 1000)
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    sock._errors_in_a_row = 1000
    result = in_thread(sock.receive)
    sock.wake()
    assert result() == []


def test_a_datagram_that_is_gone_when_it_is_fetched(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    fake.will(RECEIVE_CALL, BlockingIOError(errno.EAGAIN, "a bad checksum"))
    assert sock.send([b"data"], ("127.0.0.1", sock.port)) == 1
    assert receive_all(sock, 1) == [(b"data", ("127.0.0.1", sock.port))]
    assert sock.errors == {}


# --- other systems ---


def on_platform(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    for module in (datagram, transmitter, vault_udp_platform):
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform, byteorder=sys.byteorder))


def test_macos_without_local_network_permission_says_once_what_to_do(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_platform(monkeypatch, "darwin")
    factory = Factory()
    sock = make(0, None, factory)
    assert not sock.gso
    assert not sock.gro
    factory.fakes[0].will("sendto", *[failing("EHOSTUNREACH")] * 3)
    assert sock.send([b"1", b"2", b"3", b"4"], ("127.0.0.1", sock.port)) == 1
    assert sock.errors == {"EHOSTUNREACH": 3}
    assert len(caplog.records) == 1
    assert "Local Network" in caplog.text
    assert receive_all(sock, 1) == [(b"4", ("127.0.0.1", sock.port))]


def test_the_processor_is_left_to_others_on_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(os, "sched_yield", lambda: calls.append("sched_yield"), raising=False)
    monkeypatch.setattr(vault_udp_platform, "time", SimpleNamespace(sleep=calls.append))
    vault_udp_platform.yield_processor()
    monkeypatch.delattr(os, "sched_yield")
    vault_udp_platform.yield_processor()
    assert calls == ["sched_yield", 0]


@pytest.mark.parametrize("refused", [0, -1])
def test_windows(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: int
) -> None:
    caplog.set_level(logging.INFO)
    on_platform(monkeypatch, "win32")
    monkeypatch.delattr(select, "poll", raising=False)
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    monkeypatch.setitem(errno.errorcode, 10054, "WSAECONNRESET")
    options: list[tuple[int, int, int]] = []
    controls: list[int] = []

    def control(handle: Any, command: Any, *rest: Any) -> int:
        controls.append(command.value)
        return refused

    monkeypatch.setattr(ctypes, "WinDLL", lambda _: SimpleNamespace(WSAIoctl=control), raising=False)

    def prepare(fake: FakeSocket) -> None:
        real = fake.real.setsockopt

        def setsockopt(level: int, option: int, value: int) -> None:
            options.append((level, option, value))
            if option != -5:
                real(level, option, value)

        fake.__dict__.update(setsockopt=setsockopt, recvmsg=None, sendmsg=None)

    factory = Factory(prepare)
    sock = make(0, None, factory)
    assert (socket.SOL_SOCKET, -5, 1) in options
    assert not any(option == socket.SO_REUSEADDR for _, option, _ in options)
    assert controls == [vault_udp_platform._SIO_UDP_CONNRESET]
    assert len(caplog.records) == (refused != 0)
    factory.fakes[0].will("recvfrom", OSError(10054, "forcibly closed by the remote host"))
    factory.fakes[0].will("sendto", OSError(10054, "forcibly closed by the remote host"))
    assert sock.send([b"same", b"size"], ("127.0.0.1", sock.port)) == 2
    assert [data for data, _ in receive_all(sock, 2)] == [b"same", b"size"]
    assert sock.errors == {"ECONNRESET": 1}


def test_receiving_allocates_no_more_than_what_has_come(make: MakeSocket) -> None:
    """Room for the longest datagram, anew each time, would leave holes in the allocator's memory."""
    sock = make()
    here = ("127.0.0.1", sock.port)
    for size in (100, 1400):
        assert sock.send([b"x" * size], here) == 1
        tracemalloc.start()
        try:
            received = sock.receive()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert received == [([b"x" * size], here)]
        assert peak < size + 4096


def test_the_count_of_drops_goes_on_when_the_port_changes(
    faked: tuple[DatagramSocket, FakeSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram, "drops_of", lambda _: 5)
    sock, fake = faked
    former = DatagramSocket(0)
    former.kernel_drops = 10
    sock.kernel_drops = 0
    sock.take_over(former)
    sock.leave_previous()
    ancillary = [(socket.SOL_SOCKET, vault_udp_platform.SO_RXQ_OVFL, (3).to_bytes(4, sys.byteorder))]
    fake.will("recvmsg", *[lambda *_: (b"data", ancillary, 0, ("127.0.0.1", 9))] * 2)
    for _ in range(2):
        sock._receive_message()
        assert sock.kernel_drops == 18


def test_what_came_to_former_ports_was_sent_before(make: MakeSocket) -> None:
    oldest, older, sock, sender = (make() for _ in range(4))
    sock.take_over(oldest)
    sock.take_over(older)
    for to in (sock, older, oldest):
        assert sender.send([b"%d" % to.port], ("127.0.0.1", to.port)) == 1
    batches = sock.receive()
    assert [datagrams for datagrams, _ in batches] == [[b"%d" % to.port] for to in (oldest, older, sock)]


def test_a_forked_child_lets_go_of_sockets_whose_locks_are_held(make: MakeSocket) -> None:
    sock, former = make(), make()
    sock.take_over(former)

    def in_child() -> None:
        sock.abandon()
        sock.close()

    with former._lock, sock._lock:
        run_thread(in_child)
    assert former._socket.fileno() == -1


def test_an_error_is_told_with_its_address_and_count(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    told: list[tuple[Any, str, int]] = []
    sock.on_refused = lambda *what: told.append(what)
    fake.will("sendto", failing("EPERM"), failing("EPERM"))
    here = ("127.0.0.1", sock.port)
    assert sock.send([b"data"], here) == 0
    assert told == [(here, "EPERM", 1)]
