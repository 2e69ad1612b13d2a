# SPDX-License-Identifier: Apache-2.0
"""What the tests on real sockets share: waiting without sleeping, and collecting what callbacks get."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from typing import Any, Callable, Generic, Iterator, TypeVar

import pytest

from vault_udp_socket import UDPSocketClass

T = TypeVar("T")

# Seconds after which a test gives up: only one that fails waits that long.
PATIENCE = 10.0


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
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")


class Collector(Generic[T]):
    """A slot that keeps what it is called with, and lets a test wait for it.

    One argument is kept as it is, several as a tuple.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[T] = []

    def __call__(self, *args: Any) -> None:
        with self._changed:
            self._items.append(args[0] if len(args) == 1 else args)  # type: ignore[arg-type]
            self._changed.notify_all()

    @property
    def items(self) -> list[T]:
        with self._changed:
            return list(self._items)

    def wait_for(self, count: int, seconds: float = PATIENCE) -> list[T]:
        """The first ``count`` items, as soon as they are there."""
        with self._changed:
            complete = self._changed.wait_for(lambda: len(self._items) >= count, seconds)
            assert complete, f"{len(self._items)} of {count} came within {seconds} s"
            return self._items[:count]


class Inbox(Collector["tuple[str, tuple[str, int]]"]):
    """The texts that a socket receives, with their addresses."""

    def __init__(self, sock: UDPSocketClass) -> None:
        super().__init__()
        sock.udp_recv_data.connect(self)

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.items]

    def wait_for_texts(self, count: int) -> list[str]:
        return [text for text, _ in self.wait_for(count)]

    def contains(self, text: str, seconds: float) -> bool:
        """Whether ``text`` is there within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: text in (item for item, _ in self._items), seconds)

    def wait_for_text(self, text: str) -> tuple[str, int]:
        """The address that ``text`` came from, as soon as it is there."""
        assert self.contains(text, PATIENCE), f"{text!r} did not come; these did: {self.texts[-5:]!r}"
        return next(address for item, address in self.items if item == text)


def eventually(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for something that no callback tells."""
    deadline = time.monotonic() + seconds
    while True:
        looked_at = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"not within {seconds} s: {what}"
        # To look may mean to start a program, which is not to take all of a processor's time.
        time.sleep(max(0.002, 9 * (now - looked_at)))


def run_thread(target: Callable[[], object]) -> None:
    """Run ``target`` in a thread of its own and wait for it; fail if it raises or does not return."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            target()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="run_thread", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"it did not return within {PATIENCE} s"
    if failures:
        raise failures[0]


def address_of(sock: UDPSocketClass, ip: str = "127.0.0.1") -> tuple[str, int]:
    return ip, sock.recv_port


@contextlib.contextmanager
def pair(
    ip: str = "127.0.0.1", rate_limit: float | None = None
) -> Iterator[tuple[UDPSocketClass, UDPSocketClass]]:
    """Two sockets that have added each other and hold each other's keys."""
    with UDPSocketClass(0, rate_limit) as a, UDPSocketClass(0, rate_limit) as b:
        a.add_peer(address_of(b, ip))
        b.add_peer(address_of(a, ip))
        assert a.wait_ready(address_of(b, ip), PATIENCE)
        assert b.wait_ready(address_of(a, ip), PATIENCE)
        yield a, b


@contextlib.contextmanager
def plain_socket(ip: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """A UDP socket of the system, without this library."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind((ip, port))
        yield sock


def assert_free(port: int) -> None:
    """Fail unless a UDP port can be bound for every address."""
    if has_ipv6():
        with plain_socket("::", port):
            pass
    else:
        with plain_socket("0.0.0.0", port):
            pass
