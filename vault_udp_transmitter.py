# SPDX-License-Identifier: Apache-2.0
"""The sending half of a UDP socket: batches of datagrams out, and what the system says about them.

Why it is fast: a system call costs several times what a datagram costs in it. On Linux, datagrams of one
length to one address go out in one call (UDP generic segmentation, `UDP_SEGMENT`; see udp(7) of the Linux
manual pages). Why that is safe: the kernel cuts at the length that is given with the call, so what travels
is the same as without it; it takes such a batch as a whole or refuses it, and a refused batch is sent again
one by one.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address, resolve_literal, scope_id
    from vault_udp_platform import (
        SOL_UDP,
        UDP_SEGMENT,
        SocketAddress,
        enlarge,
        name_of,
        path_mtu,
        set_option,
    )
    from vault_udp_segments import Segments
else:
    from .vault_udp_address import Address, resolve_literal, scope_id
    from .vault_udp_platform import (
        SOL_UDP,
        UDP_SEGMENT,
        SocketAddress,
        enlarge,
        name_of,
        path_mtu,
        set_option,
    )
    from .vault_udp_segments import Segments

logger = logging.getLogger("vault_udp")

MAX_SEGMENTS = 64  # Linux: UDP_MAX_SEGMENTS of the first kernels with segmentation
MAX_SEGMENTED_BYTES = 65_507  # 65,535 less the headers of UDP and IPv4

_CAN_WAIT = ("EAGAIN", "EWOULDBLOCK", "ENOBUFS")
# The answer to an earlier datagram, reported at this one: the socket is fine, so is this datagram.
_STALE = ("ECONNREFUSED", "ECONNRESET")
_SEGMENTATION_REFUSED = ("EIO", "EINVAL", "ENOPROTOOPT", "EMSGSIZE")
# Seconds between attempts to send while the system has no room: about 1 s in all, for one call of `send`.
_WAITS_FOR_ROOM = (0.001, 0.002, 0.004, 0.008, 0.016) + 48 * (0.02,)
_MAX_CACHED_DESTINATIONS = 32_768


class Transmitter:
    """Sends through a bound UDP socket that does not block; any thread may.

    Args:
        socket_factory: stands in for `socket.socket`.

    Attributes:
        family: of the socket.
        send_buffer: bytes granted by the system (Linux shows twice what was asked, for its own overhead).
        gso: whether datagrams go out segmented.
        errors: how many datagrams or receives the system refused, by the name of its error.
        on_too_long: called in the thread that sends, with an address and a datagram that is too long for the
            path to it: if it returns True, somebody else sees to that datagram, and it is not counted.
        on_refused: called there with an address, the name of an error, and how many datagrams to it have it.
    """

    def __init__(self, sock: socket.socket, socket_factory: Callable[[int, int], socket.socket]) -> None:
        self._socket = sock
        self._socket_factory = socket_factory
        self.family = sock.family
        self.send_buffer = enlarge(sock, socket.SO_SNDBUF)
        self.gso = sys.platform == "linux" and set_option(sock, SOL_UDP, UDP_SEGMENT, 0)
        self.on_too_long: Callable[[Address, bytes], bool] | None = None
        self.on_refused: Callable[[Address, str, int], None] | None = None
        self.errors: dict[str, int] = {}
        # Counters, flags, closing; never held in a call that may block. A signal handler may stop the socket
        # while what it has interrupted holds it.
        self._lock = threading.RLock()
        self._warned_of_permission = False
        self._destinations: dict[Address, SocketAddress] = {}

    def send(self, datagrams: Sequence[bytes], address: Address) -> int:
        """Send datagrams to one address, in order; return how many the system took.

        Waits while the system has no room, for about 1 s at most. What is refused is counted in `errors`
        under the name of the error; nothing that the network causes is raised.

        Raises:
            ValueError: the address is not an IP literal and a port from 1 to 65535.
        """
        try:
            destination = self._destinations.get(address) or self._destination(address)
        except OSError as error:
            self._refused(address, name_of(error), len(datagrams))
            return 0
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
        """Bytes of an IP packet that the path to `address` carries; None if the system does not tell."""
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
            logger.info("UDP segmentation refused (%s); datagrams are sent one by one from now on", failure)
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
        """Call `send`, again where that helps; return the name of the error that remained, or None.

        `error` is what a first attempt has raised already.
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
            logger.warning(
                "no route to host: macOS may be withholding the local network from this program; allow it in "
                "System Settings > Privacy & Security > Local Network, for the terminal if it runs in one"
            )

    def _destination(self, address: Address) -> SocketAddress:
        """The address as this socket takes it.

        Raises:
            OSError: it cannot be reached from here.
            ValueError: as `send`.
        """
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


def _end_of_run(lengths: Sequence[int], start: int) -> int:
    """The end of the longest run of datagrams from `start` that one segmented call can carry."""
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
