# SPDX-License-Identifier: Apache-2.0
"""Two processes on 127.0.0.1: a receiver that is started here, and the sender, which is the caller.

There are two kinds, and they do the same work: `vault` through the public API (`send_data` and a connected
slot, rate-limit accounting on), `raw` with a loop of `sendto` and one of `recvfrom`, one message a datagram.

A flood is sent as fast as the sender can. Its rate is counted by the receiver, from the first message to the
one byte that ends it; processor time is that of all threads of a process, user and system.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterator, NamedTuple, Tuple

from vault_udp_socket import UDPSocketClass

Address = Tuple[str, int]

HOST = "127.0.0.1"
END = b"E"
"""Ends a flood or an echo; repeated, for it may get lost. Measured messages are longer."""
NO_LIMIT = 10**9
"""Messages a second: the rate limit is counted, and never reached."""
BURST = 32
"""Messages between two looks at the clock."""
MAX_LOSS = 0.01
MAX_SLOWER = 4
"""Times that a flood is repeated more slowly, until no more than `MAX_LOSS` of it is lost."""
PACING_TICK = 0.002
"""Seconds that a paced sender may be ahead before it sleeps; shorter sleeps cost more than they await."""
PATIENCE = 20.0
RAW_BUFFER = 4 * 1024 * 1024


class Flood(NamedTuple):
    """One way, as fast as it goes. Rates are messages a second, processor times microseconds a message."""

    sent: int
    received: int
    rate: float
    send_cpu: float
    receive_cpu: float

    @property
    def loss(self) -> float:
        """Share of what was sent that did not arrive."""
        return 1 - self.received / self.sent


# --------------------------------------------------------------------------------------- the started process


@contextlib.contextmanager
def process(role: Callable[..., None], *args: object, processor: int | None = None) -> Iterator[Connection]:
    """Run ``role(link, *args)`` in a process of its own, on one processor if given.

    It ends when it is told "stop" through its link.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_play, args=(role, processor, theirs, *args), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
        ours.send("stop")
        child.join(PATIENCE)
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        ours.close()


def _play(role: Callable[..., None], processor: int | None, *args: object) -> None:
    with _staying_on(processor):
        role(*args)


@contextlib.contextmanager
def _staying_on(processor: int | None) -> Iterator[None]:
    """Keep this thread, and those that it starts, on one processor, where the system lets us choose."""
    if processor is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[processor % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def expect(link: Connection, work: float = 0.0) -> Any:
    """What the other process says next."""
    if not link.poll(work + PATIENCE):
        raise TimeoutError(f"the other process has said nothing for {PATIENCE} s")
    return link.recv()


class _Count:
    """Counts a flood as it arrives; `measured` once it has ended."""

    def __init__(self) -> None:
        self.received = 0
        self.measured = threading.Event()
        self.seconds = self.cpu = self._began = self._cpu_began = 0.0

    def add(self, message: bytes) -> bool:
        """Count a message; True if it is the last one."""
        if len(message) == len(END):
            if self.received and not self.measured.is_set():
                self.seconds = time.perf_counter() - self._began
                self.cpu = time.process_time() - self._cpu_began
                self.measured.set()
            return True
        if not self.received:
            self._began, self._cpu_began = time.perf_counter(), time.process_time()
        self.received += 1
        return False

    def result(self) -> tuple[int, float, float]:
        return self.received, self.seconds, self.cpu


def raw_receiver(link: Connection) -> None:
    """The `raw` role of the started process."""
    with raw_socket() as sock:
        link.send(sock.getsockname())
        for job in iter(link.recv, "stop"):
            if job == "flood":
                count = _Count()
                while not count.add(sock.recvfrom(65535)[0]) or not count.received:
                    pass
                link.send(count.result())
            elif job == "echo":
                message, source = sock.recvfrom(65535)
                while len(message) > len(END):
                    sock.sendto(message, source)
                    message, source = sock.recvfrom(65535)
                link.send("done")
            # Repeated ends of this job are not those of the next one.
            link.recv()
            _drain(sock)
            link.send("drained")


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(65535, socket.MSG_DONTWAIT)


def vault_receiver(link: Connection) -> None:
    """The `vault` role of the started process."""
    with UDPSocketClass(0, NO_LIMIT) as sock:
        count, finished, echoed = _Count(), threading.Event(), False

        def count_message(message: bytes, _: Address) -> None:
            count.add(message)

        def echo(message: bytes, source: Address) -> None:
            nonlocal echoed
            if len(message) > len(END):
                echoed = True
                sock.send_data(message, source)
            elif echoed:  # else it ended the job before
                finished.set()

        link.send((HOST, sock.recv_port))
        for job in iter(link.recv, "stop"):
            sock.udp_recv_bytes.clear()
            if job == "flood":
                count = _Count()
                sock.udp_recv_bytes.connect(count_message)
                link.send("ready")
                count.measured.wait()
                link.send(count.result())
            elif job == "echo":
                finished.clear()
                echoed = False
                sock.udp_recv_bytes.connect(echo)
                link.send("ready")
                finished.wait()
                link.send("done")


# ------------------------------------------------------------------------------------------------ the sender


def raw_socket() -> socket.socket:
    """A UDP socket with buffers as large as the library asks for."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, RAW_BUFFER)
    sock.bind((HOST, 0))
    return sock


class RawLink:
    """The sender of kind `raw`."""

    def __init__(self, link: Connection, address: Address, sock: socket.socket) -> None:
        self._link, self._address, self._sock = link, address, sock

    def flood(self, message: bytes, seconds: float, threads: int = 1) -> Flood:
        """Send `message` again and again for so many seconds."""
        self._link.send("flood")
        result = _flood(self._link, self._sock.sendto, self._address, message, seconds, threads)
        self._finish()
        return result

    def ping(self, message: bytes, rounds: int) -> list[float]:
        """Microseconds of each round trip."""
        self._link.send("echo")
        sock, times = self._sock, []
        for _ in range(rounds):
            began = time.perf_counter_ns()
            sock.sendto(message, self._address)
            sock.recvfrom(65535)
            times.append((time.perf_counter_ns() - began) / 1000)
        _end(self._link, sock.sendto, self._address)
        self._finish()
        return times

    def _finish(self) -> None:
        self._link.send("drain")
        expect(self._link)


class VaultLink:
    """The sender of kind `vault`."""

    def __init__(self, link: Connection, address: Address, sock: UDPSocketClass) -> None:
        self._link, self._address, self.sock = link, address, sock

    def flood(self, message: bytes, seconds: float, threads: int = 1, rate: float = 0) -> Flood:
        """Send `message` over and over for so many seconds from so many threads, `rate` a second at most."""
        self._link.send("flood")
        expect(self._link)
        return _flood(self._link, self.sock.send_data, self._address, message, seconds, threads, rate)

    def sustained_flood(self, message: bytes, seconds: float) -> Flood:
        """A flood that arrives: slower, as long as a hundredth of it is lost."""
        flood = self.flood(message, seconds)
        for _ in range(MAX_SLOWER):
            if flood.loss < MAX_LOSS:
                break
            flood = self.flood(message, seconds, rate=0.97 * flood.rate)
        return flood

    def ping(self, message: bytes, rounds: int) -> list[float]:
        """Microseconds of each round trip; the next message is sent in the slot that gets the answer."""
        self._link.send("echo")
        expect(self._link)
        times: list[float] = []
        finished = threading.Event()
        began = 0

        def answered(_: bytes, source: Address) -> None:
            nonlocal began
            times.append((time.perf_counter_ns() - began) / 1000)
            if len(times) >= rounds:
                finished.set()
                return
            began = time.perf_counter_ns()
            self.sock.send_data(message, source)

        self.sock.udp_recv_bytes.connect(answered)
        began = time.perf_counter_ns()
        self.sock.send_data(message, self._address)
        if not finished.wait(PATIENCE + rounds / 1000):
            raise TimeoutError(f"{len(times)} of {rounds} answers came")
        self.sock.udp_recv_bytes.disconnect(answered)
        _end(self._link, self.sock.send_data, self._address)
        return times


@contextlib.contextmanager
def raw_link(apart: bool = False) -> Iterator[RawLink]:
    """A sender with a receiver in another process.

    `apart` keeps each end on a processor of its own. Where the scheduler puts them decides a round trip more
    than what they do: plain sockets take 15 us on one processor and 60 us on two. In use, the ends are on
    different machines.
    """
    here, there = (0, 1) if apart else (None, None)
    with process(raw_receiver, processor=there) as link, _staying_on(here), raw_socket() as sock:
        yield RawLink(link, expect(link), sock)


@contextlib.contextmanager
def vault_link(apart: bool = False) -> Iterator[VaultLink]:
    """The same with a session."""
    here, there = (0, 1) if apart else (None, None)
    with process(vault_receiver, processor=there) as link, _staying_on(here), UDPSocketClass(
        0, NO_LIMIT
    ) as sock:
        address = expect(link)
        sock.add_peer(address)
        if not sock.wait_ready(address, PATIENCE):
            raise TimeoutError("no session with the other process")
        yield VaultLink(link, address, sock)


def _flood(
    link: Connection,
    send: Callable[[bytes, Address], object],
    address: Address,
    message: bytes,
    seconds: float,
    threads: int,
    rate: float = 0,
) -> Flood:
    counts = [0] * threads

    def run(index: int) -> None:
        began = now = time.perf_counter()
        while now < began + seconds:
            for _ in itertools.repeat(None, BURST):
                send(message, address)
            counts[index] += BURST
            now = time.perf_counter()
            ahead = began + counts[index] * threads / rate - now if rate else 0.0
            if ahead > PACING_TICK:
                time.sleep(ahead)

    cpu_began = time.process_time()
    if threads == 1:
        run(0)
    else:
        senders = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    sent, cpu = sum(counts), time.process_time() - cpu_began
    received, span, receive_cpu = _end(link, send, address)
    return Flood(sent, received, received / span, cpu / sent * 1e6, receive_cpu / received * 1e6)


def _end(link: Connection, send: Callable[[bytes, Address], object], address: Address) -> Any:
    """Send ends until the other process has seen one; return what it says."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        send(END, address)
        if link.poll(0.02):
            return link.recv()
    raise TimeoutError(f"the end of the messages has not arrived within {PATIENCE} s")
