# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: receiving, and former ports."""

from __future__ import annotations

import errno
import socket
import sys
import time
from typing import Any, Callable, Iterator

import pytest
from test_datagram import Factory, FakeSocket, failing, on_linux

import vault_udp_datagram as datagram
import vault_udp_platform
from vault_udp_datagram import MAX_PREVIOUS, Batch, DatagramSocket
from vault_udp_segments import Segments

LOOPBACK = "127.0.0.1"
MakeSocket = Callable[..., DatagramSocket]


@pytest.fixture
def make() -> Iterator[MakeSocket]:
    """Makes sockets that are closed after the test."""
    made: list[DatagramSocket] = []

    def make_socket(*args: Any) -> DatagramSocket:
        made.append(DatagramSocket(0, LOOPBACK, *args))
        return made[-1]

    yield make_socket
    for sock in made:
        sock.close()


@pytest.fixture
def faked(make: MakeSocket) -> tuple[DatagramSocket, FakeSocket]:
    factory = Factory()
    return make(factory), factory.fakes[-1]


def is_closed(sock: DatagramSocket) -> bool:
    return bool(sock._socket.fileno() == -1)


def soon() -> float:
    """An end for a `receive` that should return at once."""
    return time.monotonic() + 5


def contents(sock: DatagramSocket) -> list[bytes]:
    return [data for datagrams, _ in sock.receive(soon()) for data in datagrams]


# ------------------------------------------------------------------------------------------- former ports


def test_a_port_of_long_ago_is_still_received_from(make: MakeSocket) -> None:
    oldest, older, sock, sender = (make() for _ in range(4))
    older.take_over(oldest)
    sock.take_over(older)
    assert sender.send([b"x"], (LOOPBACK, oldest.port)) == 1
    assert contents(sock) == [b"x"]
    sock.leave_previous()
    assert is_closed(oldest)
    assert is_closed(older)


def test_a_socket_that_is_closed_takes_nothing_over(make: MakeSocket) -> None:
    sock, former = make(), make()
    sock.close()
    sock.take_over(former)
    assert is_closed(former)


def test_of_many_former_ports_the_newest_are_kept(make: MakeSocket) -> None:
    sock, sender = make(), make()
    former = [make() for _ in range(MAX_PREVIOUS + 2)]
    for previous in former:
        sock.take_over(previous)
    assert [is_closed(previous) for previous in former] == [True] * 2 + [False] * MAX_PREVIOUS
    assert sender.send([b"x"], (LOOPBACK, former[2].port)) == 1
    assert contents(sock) == [b"x"]
    assert sock.errors == {}


def test_datagrams_are_waited_for_at_all_ports_and_no_longer_at_those_left(
    make: MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, former = make(), make()
    awaited: list[tuple[object, ...]] = []
    actual = datagram._readable_waiter

    def recorded(*sockets: socket.socket) -> Callable[[float | None], bool]:
        awaited.append(sockets)
        return actual(*sockets)

    monkeypatch.setattr(datagram, "_readable_waiter", recorded)
    sock.take_over(former)
    sock.leave_previous()
    assert awaited == [
        (sock._socket, former._socket, sock._wake_receiver),
        (sock._socket, sock._wake_receiver),
    ]


def test_ports_that_were_left_are_not_received_from_and_their_errors_are_ours(make: MakeSocket) -> None:
    sock, former, sender = make(), make(), make()
    sock.errors = {"EPERM": 1}
    former.errors = {"EPERM": 2, "ENETDOWN": 1}
    sock.take_over(former)
    sock.leave_previous()
    assert sender.send([b"x"], (LOOPBACK, sock.port)) == 1
    assert contents(sock) == [b"x"]
    assert sock.errors == {"EPERM": 3, "ENETDOWN": 1}


@pytest.mark.parametrize("pace", ["usual", "datagrams keep coming", "answers come fast"])
def test_what_came_to_a_former_port_comes_first_at_any_pace(make: MakeSocket, pace: str) -> None:
    sock, former, sender = make(), make(), make()
    sock.take_over(former)
    sock._answers_come_fast = pace == "answers come fast"
    sock._polls_until_probe = 0 if pace == "datagrams keep coming" else 1
    for to in (sock, former):
        assert sender.send([b"%d" % to.port], (LOOPBACK, to.port)) == 1
    assert contents(sock) == [b"%d" % former.port, b"%d" % sock.port]


# ---------------------------------------------------------------------------------------------- receiving


def test_errors_with_pauses_in_between_are_not_in_a_row(faked: tuple[DatagramSocket, FakeSocket]) -> None:
    sock, fake = faked
    name = "recvmsg" if sock._receive_one == sock._receive_message else "recvfrom"
    fake.will(name, failing("ENETDOWN"), failing("ENETDOWN"), BlockingIOError(errno.EAGAIN, "again"))
    counts = []
    for _ in range(3):
        assert sock._fetch(1) == []
        counts.append(sock._errors_in_a_row)
    assert counts == [1, 2, 0]


def test_what_comes_along_from_elsewhere_is_neither_a_length_nor_a_count_of_drops(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    one = (1).to_bytes(4, sys.byteorder)
    ancillary = [
        (0, vault_udp_platform.UDP_GRO, one),
        (0, vault_udp_platform.SO_RXQ_OVFL, one),
        (socket.SOL_SOCKET, 9999, one),
        (vault_udp_platform.SOL_UDP, 9999, one),
    ]
    fake.will("recvmsg", lambda *_: (b"data", ancillary, 0, (LOOPBACK, 9)))
    assert sock._receive_message() == ([b"data"], (LOOPBACK, 9))
    assert sock.kernel_drops == 0


@on_linux
def test_drops_are_counted_also_where_datagrams_come_one_by_one(make: MakeSocket) -> None:
    def refuse_segments(fake: FakeSocket) -> None:
        actual = fake.real.setsockopt

        def set_option(level: int, option: int, value: Any) -> None:
            if (level, option) == (vault_udp_platform.SOL_UDP, vault_udp_platform.UDP_GRO):
                raise failing("ENOPROTOOPT")
            actual(level, option, value)

        fake.will("setsockopt", *[set_option] * 20)

    sock = make(Factory(refuse_segments))
    assert not sock.gro
    assert sock._receive_one == sock._receive_message


def test_closing_closes_former_ports_too(make: MakeSocket) -> None:
    sock, former = make(), make()
    sock.take_over(former)
    sock.close()
    assert is_closed(former)


ONE, OTHER = (LOOPBACK, 1), (LOOPBACK, 2)


@pytest.mark.parametrize(
    ("batches", "joined"),
    [
        ([([b"aa"], ONE), ([b"bb"], ONE)], [([b"aa", b"bb"], ONE)]),
        ([([b"aa"], ONE), ([b"bb"], OTHER)], [([b"aa"], ONE), ([b"bb"], OTHER)]),
        ([([b"aa"], ONE), ([b"b"], ONE)], [([b"aa"], ONE), ([b"b"], ONE)]),
        ([(Segments(b"aab", 2), ONE), ([b"cc"], ONE)], [([b"aa", b"b"], ONE), ([b"cc"], ONE)]),
        ([(Segments(b"aabb", 2), ONE), ([b"cc"], ONE)], [([b"aa", b"bb", b"cc"], ONE)]),
        ([([b""], ONE), ([b""], ONE)], [([b""], ONE), ([b""], ONE)]),
    ],
)
def test_only_whole_datagrams_of_one_source_and_length_are_joined(
    batches: list[Batch], joined: list[tuple[list[bytes], object]]
) -> None:
    assert [(list(datagrams), source) for datagrams, source in datagram._joined(batches)] == joined


def test_no_more_is_joined_than_is_worth_the_copy() -> None:
    batches: list[Batch] = [([bytes(1024)], ONE)] * 33
    assert [len(datagrams) for datagrams, _ in datagram._joined(batches)] == [16, 16, 1]


# --------------------------------------------------------------------------------------------------- pace


@on_linux
def test_datagrams_that_come_together_are_followed_without_asking(
    faked: tuple[DatagramSocket, FakeSocket],
) -> None:
    sock, fake = faked
    sock._polls_until_probe = 5
    sock._wait_readable = lambda seconds: False
    two = [(vault_udp_platform.SOL_UDP, vault_udp_platform.UDP_GRO, (2).to_bytes(4, sys.byteorder))]
    fake.will("recvmsg", *[lambda *_: (b"aa", [], 0, ONE), lambda *_: (b"aabb", two, 0, ONE)])
    left = []
    for _ in range(2):
        sock.receive(soon())
        left.append(sock._polls_until_probe)
    assert left == [4, 0]


def test_where_nothing_comes_it_is_still_tried_now_and_then(make: MakeSocket) -> None:
    sock, tries = make(), []
    for _ in range(6):
        sock._polls_until_probe = 0
        assert sock.receive(0.0) == []
        tries.append(sock._polls_until_probe)
    assert tries == [2, 4, 8, 16, 16, 16]


def test_an_answer_that_has_not_come_is_not_awaited_again(make: MakeSocket) -> None:
    sock = make()
    sock._answers_come_fast = True
    assert sock.receive(0.0) == []
    assert not sock._answers_come_fast
