# SPDX-License-Identifier: Apache-2.0
"""The UDP socket: binding, batches of datagrams in and out, and the forms of addresses.  No protocol.

A :class:`DatagramSocket` speaks IPv6 and IPv4 through one dual-stack socket where the system has IPv6, and
IPv4 alone where it has not.  Addresses are ``(ip, port)`` in one canonical form, see :func:`normalize`.

Why it is fast: a system call costs several times what a datagram costs in it.  On Linux, datagrams of one
length to one address go out in one call (UDP generic segmentation, ``UDP_SEGMENT``) and come in so
(``UDP_GRO``).  Why that is safe: the kernel cuts at the length that is given with each call and only between
datagrams, so what travels is the same as without it; it takes such a batch as a whole or refuses it, and a
refused batch is sent again one by one.  See udp(7) of the Linux manual pages.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import struct
import sys
import threading
import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, Tuple

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address, normalize, resolve_literal, scope_id
    from vault_udp_platform import (
        SO_RXQ_OVFL,
        SOL_UDP,
        UDP_GRO,
        UDP_SEGMENT,
        SocketAddress,
        bind,
        enlarge,
        forbid_fragments,
        name_of,
        path_mtu,
        receive_memory,
        set_option,
        yield_processor,
    )
    from vault_udp_segments import Segments
else:
    from .vault_udp_address import Address, normalize, resolve_literal, scope_id
    from .vault_udp_platform import (
        SO_RXQ_OVFL,
        SOL_UDP,
        UDP_GRO,
        UDP_SEGMENT,
        SocketAddress,
        bind,
        enlarge,
        forbid_fragments,
        name_of,
        path_mtu,
        receive_memory,
        set_option,
        yield_processor,
    )
    from .vault_udp_segments import Segments

_logger = logging.getLogger(__name__)

Batch = Tuple[Sequence[bytes], Address]
"""Datagrams that came in one system call, oldest first, and the one address that they came from."""


MAX_BATCHES_PER_RECEIVE = 16
MAX_DATAGRAMS_PER_RECEIVE = 160
"""After so many, a quarter of a megabyte at a usual MTU, no further batch is fetched: when they are opened
they are still in the processor's cache."""
BUSY_WAIT = 300e-6
"""Seconds: where datagrams follow ours as fast as this, the next is awaited as long without sleeping."""
MAX_PREVIOUS = 8
"""Sockets of former ports that are received from, if the port changes faster than they are left."""
MAX_SEGMENTS = 64  # Linux: UDP_MAX_SEGMENTS of the first kernels with segmentation
MAX_SEGMENTED_BYTES = 65_507  # 65,535 less the headers of UDP and IPv4

_ANCILLARY_SIZE = 64  # bytes: room for the segment size and the count of drops

_CAN_WAIT = ("EAGAIN", "EWOULDBLOCK", "ENOBUFS")
# The answer to an earlier datagram, reported at this one: the socket is fine, so is this datagram.
_STALE = ("ECONNREFUSED", "ECONNRESET")
_SEGMENTATION_REFUSED = ("EIO", "EINVAL", "ENOPROTOOPT", "EMSGSIZE")
# Seconds between attempts to send while the system has no room: about 1 s in all, for one call of `send`.
_WAITS_FOR_ROOM = (0.001, 0.002, 0.004, 0.008, 0.016) + 48 * (0.02,)
# A socket that reports so many errors in a row, and nothing else, is left alone for so many seconds each:
# an interface may be down for long. Short, as errors may also be the answers to what we sent to others.
_ERRORS_WITHOUT_PAUSE = 16
_PAUSE_AFTER_ERRORS = 0.05
_MAX_POLLS_BETWEEN_PROBES = 16
_MAX_CACHED_DESTINATIONS = 32_768
_MOST_JOINED = 16_384  # bytes: beyond, the copy costs more than it saves
_LONGEST_WAIT = 86400.0  # seconds: as long as `poll` and `select` surely take


class SocketClosed(Exception):
    """``receive`` was called on a socket that is closed, or it was closed while that call waited."""


class DatagramSocket:
    """A bound UDP socket.  One thread may receive; any thread may send, wake and close.

    ``port`` is the port to bind; 0 lets the system choose.  ``bind_address``, an IP literal, restricts the
    socket to one interface; the default is all of them.  ``socket_factory`` stands in for ``socket.socket``.
    Without ``fragments`` the system is asked to refuse what is too long for the path, instead of dividing it.

    Raises ``OSError`` if the port cannot be bound: not permitted, or in use, be it for IPv4 only.
    Raises ``ValueError`` if ``bind_address`` is not an IP literal.

    Attributes: ``port``, ``family``; ``receive_buffer`` and ``send_buffer``, the bytes granted by the system
    (Linux shows twice what was asked, for its own overhead); ``gso`` and ``gro``, whether datagrams go out
    and come in segmented; ``kernel_drops``, the datagrams lost because the receive buffer was full, where the
    system tells; ``errors``, how many datagrams or receives the system refused, by the name of its error;
    ``on_too_long``, called in the thread that sends, with an address and a datagram that is too long for the
    path to it: if it returns True, somebody else sees to that datagram, and it is not counted;
    ``on_refused``, called there with an address, the name of an error, and how many datagrams to it have it.
    """

    def __init__(
        self,
        port: int,
        bind_address: str | None = None,
        socket_factory: Callable[[int, int], socket.socket] = socket.socket,
        *,
        fragments: bool = True,
    ) -> None:
        self._socket_factory = socket_factory
        self._socket = bind(port, bind_address, socket_factory)
        try:
            self._wake_receiver, self._wake_sender = socket.socketpair()
        except OSError:
            self._socket.close()
            raise
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._socket.setblocking(False)
        self.family = self._socket.family
        self.port: int = self._socket.getsockname()[1]
        self.receive_buffer = enlarge(self._socket, socket.SO_RCVBUF)
        self.send_buffer = enlarge(self._socket, socket.SO_SNDBUF)
        if not fragments:
            forbid_fragments(self._socket)
        self.on_too_long: Callable[[Address, bytes], bool] | None = None
        self.on_refused: Callable[[Address, str, int], None] | None = None
        on_linux = sys.platform == "linux"
        self.gso = on_linux and set_option(self._socket, SOL_UDP, UDP_SEGMENT, 0)
        self.gro = on_linux and set_option(self._socket, SOL_UDP, UDP_GRO, 1)
        counts_drops = on_linux and set_option(self._socket, socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self._receive_one = self._receive_message if self.gro or counts_drops else self._receive_plain
        self.kernel_drops = 0
        self._drops_told = 0
        """What the kernel said last; ours has also what former sockets lost."""
        self.errors: dict[str, int] = {}

        self._lock = threading.Lock()  # counters and flags; never held in a call that may block
        self._receiving = False
        self._closed = False
        self._warned_of_permission = False
        self._destinations: dict[Address, SocketAddress] = {}
        self._previous: list[DatagramSocket] = []
        self._wait_readable = _readable_waiter(self._socket, self._wake_receiver)
        self._wait_woken = _readable_waiter(self._wake_receiver)
        self._memory = receive_memory()
        self._last_sender: Any = None
        self._last_address: Address = ("", 0)
        self._errors_in_a_row = 0
        self._polls_until_probe = 1
        self._polls_between_probes = 1
        self._answers_come_fast = False
        self._has_sent = False
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
            sock.close()
            self.kernel_drops += sock.kernel_drops
            for name, count in sock.errors.items():
                self._count(name, count)

    def _listen_locked(self) -> None:
        if not self._closed:
            others = [previous._socket for previous in self._previous]
            self._wait_readable = _readable_waiter(self._socket, *others, self._wake_receiver)

    def receive(self, until: float = inf) -> list[Batch]:
        """Wait for datagrams and return them, a few batches at most; or an empty list after ``wake``.

        So it is when `until` has come, seconds of the monotonic clock. A wake that comes while datagrams keep
        coming may show only when they cease, and so may the end of the time.

        Raises :class:`SocketClosed`, and nothing that the network causes.
        """
        with self._lock:
            if self._closed:
                raise SocketClosed
            self._receiving = True
        try:
            batches = self._receive(until)
            if batches:
                self._note_pace()
            return batches
        finally:
            with self._lock:
                self._receiving = False
                closed = self._closed
            if closed:
                self._release()

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
            earlier = [
                batch for previous in self._previous for batch in previous._fetch(MAX_BATCHES_PER_RECEIVE)
            ]
            batches = earlier + self._fetch(1)
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
            batches = self._fetch(MAX_BATCHES_PER_RECEIVE)
            if batches:
                return batches
            yield_processor()  # whoever is to answer may wait for this very one
        self._answers_come_fast = False
        return []

    def _note_pace(self) -> None:
        now = time.monotonic()
        self._answers_come_fast = self._has_sent and now - self._received_at < BUSY_WAIT
        self._received_at, self._has_sent = now, False

    def _fetch(self, limit: int) -> list[Batch]:
        """The batches that are there now, at most ``limit``; errors are counted."""
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
                # The kernel counts with 32 bits.
                drops = int.from_bytes(value[:4], sys.byteorder)
                self.kernel_drops += (drops - self._drops_told) & 0xFFFFFFFF
                self._drops_told = drops
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "a datagram longer than UDP allows")
        if size >= length:
            return [data], self._last_address
        return Segments(data, size), self._last_address

    def _receive_plain(self) -> Batch:
        length, sender = self._socket.recvfrom_into(self._memory)
        return [bytes(self._memory[:length])], normalize(sender)

    def send(self, datagrams: Sequence[bytes], address: Address) -> int:
        """Send datagrams to one address, in order; return how many the system took.

        Waits while the system has no room, for about 1 s at most.  What is refused is counted in ``errors``
        under the name of the error; nothing that the network causes is raised.

        Raises ``ValueError`` if the address is not an IP literal and a port from 1 to 65535.
        """
        try:
            destination = self._destinations.get(address) or self._destination(address)
        except OSError as error:
            self._refused(address, name_of(error), len(datagrams))
            return 0
        self._has_sent = True
        if len(datagrams) == 1:
            try:
                self._socket.sendto(datagrams[0], destination)
                return 1
            except OSError as error:
                return self._send_again(datagrams[0], address, destination, iter(_WAITS_FOR_ROOM), error)
        waits = iter(_WAITS_FOR_ROOM)
        if not self.gso:
            return self._send_singly(datagrams, address, destination, waits)
        sent = start = 0
        lengths = datagrams.lengths() if isinstance(datagrams, Segments) else list(map(len, datagrams))
        while start < len(datagrams):
            end = _end_of_run(lengths, start)
            if self.gso and end - start > 1:
                sent += self._send_segmented(datagrams[start:end], address, destination, waits)
            else:
                sent += self._send_singly(datagrams[start:end], address, destination, waits)
            start = end
        return sent

    def path_mtu(self, address: Address) -> int | None:
        """Bytes of an IP packet that the path to ``address`` carries; None if the system does not tell."""
        return path_mtu(address, self._socket_factory)

    def _send_segmented(
        self,
        run: Sequence[bytes],
        address: Address,
        destination: SocketAddress,
        waits: Iterator[float],
    ) -> int:
        ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(run[0])))]
        buffers = (run.whole,) if isinstance(run, Segments) else run
        send = partial(self._socket.sendmsg, buffers, ancillary, 0, destination)
        failure = self._attempt(send, waits)
        if failure is None:
            return len(run)
        if failure not in _SEGMENTATION_REFUSED:
            self._refused(address, failure, len(run))
            return 0
        sent = self._send_singly(run, address, destination, waits)
        # If single datagrams are refused too, the fault is in the address or its route. EMSGSIZE is about the
        # size for this route, which the kernel can divide into fragments only if it is not divided already;
        # older kernels say EINVAL, and EMSGSIZE to the single ones, of which a shorter last one may pass.
        if sent == len(run) and failure != "EMSGSIZE":
            self.gso = False
            _logger.info("UDP segmentation refused (%s); datagrams are sent one by one from now on", failure)
        return sent

    def _send_singly(
        self,
        datagrams: Sequence[bytes],
        address: Address,
        destination: SocketAddress,
        waits: Iterator[float],
    ) -> int:
        sent = 0
        sendto = self._socket.sendto
        for datagram in datagrams:
            try:
                sendto(datagram, destination)
                sent += 1
            except OSError as error:
                sent += self._send_again(datagram, address, destination, waits, error)
        return sent

    def _send_again(
        self,
        datagram: bytes,
        address: Address,
        destination: SocketAddress,
        waits: Iterator[float],
        error: OSError,
    ) -> int:
        failure = self._attempt(partial(self._socket.sendto, datagram, destination), waits, error)
        on_too_long = self.on_too_long if failure == "EMSGSIZE" else None
        if failure is not None and (on_too_long is None or not on_too_long(address, datagram)):
            self._refused(address, failure, 1)
        return int(failure is None)

    def _attempt(
        self, send: Callable[[], int], waits: Iterator[float], error: OSError | None = None
    ) -> str | None:
        """Call ``send``, again where that helps; return the name of the error that remained, or None.

        ``error`` is what a first attempt has raised already.
        """
        was_stale = False
        while True:
            try:
                if error is not None:
                    name = name_of(error)
                    seconds = next(waits, None) if name in _CAN_WAIT else None
                    if seconds is not None:
                        self._wait_for_room(name, seconds)
                    elif name in _STALE and not was_stale:
                        was_stale = True
                    else:
                        return name
                send()
                return None
            except OSError as again:
                error = again

    def _wait_for_room(self, name: str, seconds: float) -> None:
        descriptor = self._socket.fileno()
        if name == "ENOBUFS" or descriptor < 0:
            # The queue of the interface is full, not that of the socket, which counts as writable.
            time.sleep(seconds)
        elif hasattr(select, "poll"):
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll(seconds * 1000)
        else:
            select.select((), (descriptor,), (), seconds)

    def _refused(self, address: Address, name: str, times: int) -> None:
        self._count(name, times)
        on_refused = self.on_refused  # it may be taken away meanwhile
        if on_refused is not None:
            on_refused(address, name, times)

    def _count(self, name: str, times: int = 1) -> None:
        with self._lock:
            self.errors[name] = self.errors.get(name, 0) + times
            warn = name == "EHOSTUNREACH" and sys.platform == "darwin" and not self._warned_of_permission
            self._warned_of_permission = self._warned_of_permission or warn
        if warn:
            _logger.warning(
                "no route to host: macOS may be withholding the local network from this program; allow it in "
                "System Settings > Privacy & Security > Local Network, for the terminal if it runs in one"
            )

    def _destination(self, address: Address) -> SocketAddress:
        """The address as this socket takes it.  Raises ``OSError`` if it cannot be reached from here."""
        host, port = address
        ip = resolve_literal(host)
        if ip is None:
            raise ValueError(f"cannot send to {host!r}: it is not an IPv4 or IPv6 address; resolve it first")
        if not 0 < port <= 65_535:
            raise ValueError(f"cannot send to port {port} of {ip}: ports are 1 to 65535")
        if self.family == socket.AF_INET:
            if ":" in ip:
                raise OSError(errno.EAFNOSUPPORT, f"this socket has IPv4 only, {ip} is IPv6")
            destination: SocketAddress = (ip, port)
        elif ":" not in ip:
            destination = ("::ffff:" + ip, port, 0, 0)
        else:
            literal, _, scope = ip.partition("%")
            destination = (literal, port, 0, scope_id(scope))
            if scope:
                # Not cached: an interface that goes and comes back has another number.
                return destination
        if len(self._destinations) >= _MAX_CACHED_DESTINATIONS:
            self._destinations.clear()
        self._destinations[address] = destination
        return destination

    def wake(self) -> None:
        """Make ``receive`` return, now or when it next waits.  Nothing happens on a closed socket."""
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
        """Free the port; a ``receive`` that waits raises :class:`SocketClosed` at once.  May be repeated.

        If another thread is receiving, it is that thread which frees the port on its way out: closing a
        descriptor that is in use might let it act on whatever file gets the same number next.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            receiving = self._receiving
            if receiving:
                self._wake_locked()
        if not receiving:
            self._release()

    def abandon(self) -> None:
        """Close the descriptors in a forked child, without a lock that another thread may have held."""
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


def _end_of_run(lengths: Sequence[int], start: int) -> int:
    """The end of the longest run of datagrams from ``start`` that one segmented call can carry."""
    size = lengths[start]
    limit = start + min(MAX_SEGMENTS, max(1, MAX_SEGMENTED_BYTES // max(1, size)))
    run = lengths[start:limit]
    if size == 0:
        return start + 1
    if run.count(size) == len(run):
        return start + len(run)
    end = start + next(index for index, length in enumerate(run) if length != size)
    is_short_tail = 0 < lengths[end] < size
    return end + is_short_tail


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
