# SPDX-License-Identifier: Apache-2.0
"""The UDP socket: binding, batches of datagrams in, waking up, and the end. No protocol.

A `DatagramSocket` speaks IPv6 and IPv4 through one dual-stack socket where the system has IPv6, and
IPv4 alone where it has not. Addresses are ``(ip, port)`` in one canonical form, see `normalize`.

Why it is fast: a system call costs several times what a datagram costs in it. On Linux, datagrams of one
length from one address come in together (`UDP_GRO`, see udp(7) of the Linux manual pages), as they go out
(`Transmitter`). Why that is safe: the kernel tells their length, and divides nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import sys
import threading
import time
from math import inf
from typing import TYPE_CHECKING, Any, Callable, Sequence, Tuple

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address, normalize
    from vault_udp_platform import (
        SO_RXQ_OVFL,
        SOL_UDP,
        UDP_GRO,
        bind,
        drops_of,
        enlarge,
        forbid_fragments,
        name_of,
        receive_memory,
        set_option,
        yield_processor,
    )
    from vault_udp_segments import Segments
    from vault_udp_transmitter import Transmitter
else:
    from .vault_udp_address import Address, normalize
    from .vault_udp_platform import (
        SO_RXQ_OVFL,
        SOL_UDP,
        UDP_GRO,
        bind,
        drops_of,
        enlarge,
        forbid_fragments,
        name_of,
        receive_memory,
        set_option,
        yield_processor,
    )
    from .vault_udp_segments import Segments
    from .vault_udp_transmitter import Transmitter

Batch = Tuple[Sequence[bytes], Address]
"""Datagrams that came in one system call, oldest first, and the one address that they came from."""

logger = logging.getLogger("vault_udp")

DROPS_WARNING_INTERVAL = 60.0
MAX_BATCHES_PER_RECEIVE = 16
MAX_DATAGRAMS_PER_RECEIVE = 160
"""After so many, a quarter of a megabyte at a usual MTU, no further batch is fetched: when they are opened
they are still in the processor's cache."""
BUSY_WAIT = 300e-6
"""Seconds: where datagrams follow ours as fast as this, the next is awaited as long without sleeping."""
MAX_PREVIOUS = 8
"""Sockets of former ports that are received from, if the port changes faster than they are left."""
_ANCILLARY_SIZE = 64  # bytes: room for the segment size and the count of drops

# A socket that reports so many errors in a row, and nothing else, is left alone for so many seconds each:
# an interface may be down for long. Short, as errors may also be the answers to what we sent to others.
_ERRORS_WITHOUT_PAUSE = 16
_PAUSE_AFTER_ERRORS = 0.05
_MAX_POLLS_BETWEEN_PROBES = 16
_MOST_JOINED = 16_384  # bytes: beyond, the copy costs more than it saves
_LONGEST_WAIT = 86400.0  # seconds: as long as `poll` and `select` surely take


class SocketClosed(Exception):
    """`receive` was called on a socket that is closed, or it was closed while that call waited."""


class DatagramSocket(Transmitter):
    """A bound `Transmitter` that receives, too: in one thread; any thread may send, wake and close.

    Args:
        port: the port to bind; 0 lets the system choose.
        bind_address: an IP literal, which restricts the socket to one interface; all of them if omitted.
        socket_factory: stands in for `socket.socket`.
        fragments: whether the system may divide what is too long for the path; if not, it is asked to refuse.

    Attributes:
        port: the one that is bound.
        receive_buffer: bytes granted by the system.
        gro: whether datagrams come in segmented.
        kernel_drops: how often that buffer had no room, where the system tells, as of the last datagram or
            `count_drops`. Datagrams that would have come together count as one.
        awaits_answer: set by whoever sends what may be answered at once: while answers come fast, `receive`
            does not go to sleep immediately.

    Raises:
        OSError: the port cannot be bound: not permitted, or in use, be it for IPv4 only.
        ValueError: `bind_address` is not an IP literal.
    """

    def __init__(
        self,
        port: int,
        bind_address: str | None = None,
        socket_factory: Callable[[int, int], socket.socket] = socket.socket,
        *,
        fragments: bool = True,
    ) -> None:
        sock = bind(port, bind_address, socket_factory)
        try:
            self._wake_receiver, self._wake_sender = socket.socketpair()
        except OSError:
            sock.close()
            raise
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        sock.setblocking(False)
        super().__init__(sock, socket_factory)
        self.port: int = sock.getsockname()[1]
        self.receive_buffer = enlarge(sock, socket.SO_RCVBUF)
        if not fragments:
            forbid_fragments(sock)
        on_linux = sys.platform == "linux"
        self.gro = on_linux and set_option(sock, SOL_UDP, UDP_GRO, 1)
        counts_drops = on_linux and set_option(sock, socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self._receive_one = self._receive_message if self.gro or counts_drops else self._receive_plain
        self.kernel_drops = 0
        self._drops_told = 0
        """What the kernel said last; ours has also what former sockets lost."""
        self._warn_of_drops_at = 0.0
        self._in_use = threading.Lock()
        """Held while a thread receives; once the socket is closed, by whoever frees it, for good."""
        self._closed = False
        self._previous: list[DatagramSocket] = []
        self._wait_readable = _readable_waiter(sock, self._wake_receiver)
        self._wait_woken = _readable_waiter(self._wake_receiver)
        self._memory = receive_memory()
        self._last_sender: Any = None
        self._last_address: Address = ("", 0)
        self._errors_in_a_row = 0
        self._polls_until_probe = 1
        self._polls_between_probes = 1
        self.awaits_answer = False
        self._answers_come_fast = False
        self._is_drained = True
        self._received_at = 0.0

    @property
    def reachable_family(self) -> int:
        """The family of the addresses that can be reached from here, for `socket.getaddrinfo`."""
        if self.family == socket.AF_INET6 and self._socket.getsockname()[0] == "::":
            return socket.AF_UNSPEC
        return self.family

    def take_over(self, previous: DatagramSocket) -> None:
        """Receive also what still comes to `previous`, from which nobody else receives any more.

        And what comes to those that it has taken over; of all of them, the newest `MAX_PREVIOUS`. Only for
        the thread that receives; it ends with `leave_previous`, or with `close`.
        """
        with self._lock:
            previous._previous, older = [], [*previous._previous, previous]
            self._previous += older
            surplus = self._previous[:] if self._closed else self._previous[:-MAX_PREVIOUS]
            del self._previous[: len(surplus)]
            self._listen_locked()
        self._close_all(surplus)

    def leave_previous(self) -> None:
        """Close the sockets that were taken over. Only for the thread that receives."""
        with self._lock:
            left, self._previous = self._previous, []
            self._listen_locked()
        self._close_all(left)

    def _close_all(self, sockets: Sequence[DatagramSocket]) -> None:
        for sock in sockets:
            sock.count_drops()
            sock.close()
            self.kernel_drops += sock.kernel_drops
            for name, count in dict(sock.errors).items():
                self._count(name, count)

    def _listen_locked(self) -> None:
        if not self._closed:
            others = [previous._socket for previous in self._previous]
            self._wait_readable = _readable_waiter(self._socket, *others, self._wake_receiver)

    def receive(self, until: float = inf) -> list[Batch]:
        """Wait for datagrams and return them, a few batches at most; an empty list after `wake`.

        So does it at `until`, seconds of the monotonic clock. While datagrams keep coming, a wake or the
        end of the time may be noticed only when they cease.

        Raises:
            SocketClosed: it is, or another thread receives; nothing that the network causes is raised.
        """
        if not self._in_use.acquire(blocking=False):
            raise SocketClosed
        try:
            if self._closed:
                raise SocketClosed
            batches = self._receive(until)
            if batches:
                self._note_pace()
            return batches
        finally:
            self._in_use.release()
            if self._closed:
                self._free()

    def _receive(self, until: float) -> list[Batch]:
        if self._answers_come_fast and not self._previous:
            batches = self._fetch_soon()
            if batches:
                return batches
        # Asking for a datagram when there is none costs a system call. While datagrams keep coming they are
        # fetched without `poll`; once there was none, `poll` comes first, and whether they keep coming again
        # is tried only after 1, 2, 4 … 16 polls.
        if self._polls_until_probe == 0 and not self._previous:
            batches = self._fetch(MAX_BATCHES_PER_RECEIVE)
            if batches:
                if self._is_drained:
                    self._polls_until_probe = self._polls_between_probes = 1
                return batches
            self._polls_between_probes = min(2 * self._polls_between_probes, _MAX_POLLS_BETWEEN_PROBES)
            self._polls_until_probe = self._polls_between_probes
        while True:
            woken = self._wait_readable(None if until == inf else _seconds_until(until))
            if self._closed:
                raise SocketClosed
            if woken:
                self._forget_wakes()
                return []
            # What came to former ports was sent before.
            batches = self._fetch_from_previous() if self._previous else []
            batches += self._fetch(1)
            if batches:
                is_flood = len(batches[0][0]) > 1
                self._polls_until_probe = 0 if is_flood else max(0, self._polls_until_probe - 1)
                return batches
            if self._errors_in_a_row > _ERRORS_WITHOUT_PAUSE:
                self._wait_woken(_PAUSE_AFTER_ERRORS)
            if time.monotonic() >= until:
                return []

    def _fetch_soon(self) -> list[Batch]:
        """Ask for datagrams for `BUSY_WAIT` seconds without sleeping: waking up would cost as much."""
        until = time.monotonic() + BUSY_WAIT
        while time.monotonic() < until:
            batches = self._fetch(1)  # behind an answer there is mostly nothing
            if batches:
                return batches
            yield_processor()  # whoever is to answer may wait for this very one
        self._answers_come_fast = False
        return []

    def _note_pace(self) -> None:
        now = time.monotonic()
        self._answers_come_fast = self.awaits_answer and now - self._received_at < BUSY_WAIT
        self._received_at, self.awaits_answer = now, False

    def _fetch_from_previous(self) -> list[Batch]:
        return [batch for previous in self._previous for batch in previous._fetch(MAX_BATCHES_PER_RECEIVE)]

    def _fetch(self, limit: int) -> list[Batch]:
        """The batches that are there now, at most `limit`; errors are counted."""
        batches: list[Batch] = []
        receive_one, room = self._receive_one, MAX_DATAGRAMS_PER_RECEIVE
        self._is_drained = False
        try:
            while len(batches) < limit and room > 0:
                batches.append(receive_one())
                room -= len(batches[-1][0])
            self._errors_in_a_row = 0
        except BlockingIOError:
            self._is_drained = True
            self._errors_in_a_row = 0
        except OSError as error:
            self._count(name_of(error))
            self._errors_in_a_row += 1
        return _joined(batches) if len(batches) > 1 else batches

    def _receive_message(self) -> Batch:
        length, ancillary, flags, sender = self._socket.recvmsg_into((self._memory,), _ANCILLARY_SIZE)
        data = bytes(self._memory[:length])
        if sender != self._last_sender:
            self._last_sender, self._last_address = sender, normalize(sender)
        if not ancillary and not flags:
            return [data], self._last_address
        size = length
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO:
                size = int.from_bytes(value[:4], sys.byteorder)
            elif level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL:
                self._note_drops(int.from_bytes(value[:4], sys.byteorder))
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "a datagram longer than UDP allows")
        if size >= length:
            return [data], self._last_address
        return Segments(data, size), self._last_address

    def count_drops(self) -> None:
        """Bring `kernel_drops` up to date: by itself, the kernel tells only with the next datagram."""
        told = drops_of(self._socket)
        if told is not None:
            self._note_drops(told)

    def _note_drops(self, told: int) -> None:
        with self._lock:
            # The kernel counts with 32 bits. A datagram bears the count of when it came: we may know more.
            new = (told - self._drops_told) & 0xFFFFFFFF
            if not 0 < new < 1 << 31:
                return
            self.kernel_drops, self._drops_told = self.kernel_drops + new, told
            now = time.monotonic()
            is_news = now >= self._warn_of_drops_at
            if is_news:
                self._warn_of_drops_at = now + DROPS_WARNING_INTERVAL
        if is_news:
            logger.warning(
                "the receive buffer was full, datagrams are lost (kernel_drops): a callback takes too long, "
                "or too much is sent to us"
            )

    def _receive_plain(self) -> Batch:
        length, sender = self._socket.recvfrom_into(self._memory)
        return [bytes(self._memory[:length])], normalize(sender)

    def wake(self) -> None:
        """Make `receive` return, now or when it next waits. Nothing happens on a closed socket."""
        with self._lock:
            if not self._closed:
                self._wake_locked()

    def _wake_locked(self) -> None:
        # BlockingIOError: so many wakes wait already that one more tells nothing.
        with contextlib.suppress(BlockingIOError):
            self._wake_sender.send(b"\0")

    def _forget_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(self._wake_receiver.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Free the port; a `receive` that waits raises `SocketClosed` at once. May be repeated.

        If another thread is receiving, it is that thread which frees the port on its way out: closing a
        descriptor that is in use might let it act on whatever file gets the same number next.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake_locked()
        self._free()

    def _free(self) -> None:
        # A thread that is receiving looks at `_closed` after it has released `_in_use`, so either it or who
        # closes gets the lock here.
        if self._in_use.acquire(blocking=False):
            with self._lock:  # who closes may still be waking the receiver
                self._release()

    def abandon(self) -> None:
        """Close the descriptors in a forked child, without a lock that another thread may have held."""
        self._lock = threading.RLock()
        self._closed = True
        previous, self._previous = self._previous, []
        for sock in previous:
            sock.abandon()
        self._release()

    def _release(self) -> None:
        for previous in self._previous:
            previous.close()
        self._socket.close()
        self._wake_sender.close()
        self._wake_receiver.close()
        self.on_too_long = self.on_refused = None  # whom it told can be freed


def _joined(batches: Sequence[Batch]) -> list[Batch]:
    """The same datagrams; small batches in a row, of one source and of one length, are one.

    What is done once for each batch costs more than to copy so few bytes.
    """
    groups: list[tuple[Batch, list[Segments]]] = []
    size, room = 0, -1
    for batch in batches:
        datagrams, source = batch
        run = datagrams if isinstance(datagrams, Segments) else Segments(datagrams[0], len(datagrams[0]))
        length = len(run.whole)
        if length > room or run.size != size or source != groups[-1][0][1]:
            groups.append((batch, []))
            size, room = run.size, _MOST_JOINED
        groups[-1][1].append(run)
        # A shorter last one, or one without a byte, has none behind it.
        room = room - length if size and length % size == 0 else -1
    return [
        (Segments(b"".join([run.whole for run in runs]), runs[0].size), first[1]) if len(runs) > 1 else first
        for first, runs in groups
    ]


def _seconds_until(when: float) -> float:
    return min(max(0.0, when - time.monotonic()), _LONGEST_WAIT)


def _readable_waiter(*sockets: socket.socket) -> Callable[[float | None], bool]:
    """A function that waits, at most the seconds given, and tells whether the last socket is readable."""
    last = sockets[-1]
    if hasattr(select, "poll"):
        poll = select.poll()
        for sock in sockets:
            poll.register(sock, select.POLLIN)
        descriptor = last.fileno()

        def wait(seconds: float | None) -> bool:
            for ready, _ in poll.poll(None if seconds is None else seconds * 1000):
                if ready == descriptor:
                    return True
            return False

        return wait
    return lambda seconds: last in select.select(sockets, (), (), seconds)[0]
