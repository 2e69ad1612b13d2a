# SPDX-License-Identifier: Apache-2.0
"""What systems differ in about UDP sockets: binding, options, the names of errors, what is known of a path.

Constants that the socket module does not have everywhere are from ip(7), ipv6(7), socket(7) and udp(7) of the
Linux manual pages, Apple's netinet headers, and ws2ipdef.h and mstcpip.h of Windows.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Callable, Tuple, Union

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address, resolve_literal, scope_id
else:
    from .vault_udp_address import Address, resolve_literal, scope_id

logger = logging.getLogger("vault_udp")

SocketAddress = Union[Tuple[str, int], Tuple[str, int, int, int]]
SocketFactory = Callable[[int, int], socket.socket]

BUFFER_SIZE = 4 * 1024 * 1024  # bytes asked of the system for each direction
MAX_DATAGRAM = 65_535  # the length field of UDP has 16 bits (RFC 768), so nothing longer is legal

# Linux constants that the socket module does not have on every supported Python.
SO_RXQ_OVFL = 40
SO_MEMINFO = 55
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
_SIO_UDP_CONNRESET = 0x9800000C  # Windows
_IP_MTU = 14
_IPV6_MTU = 24
# (level, option, value) that forbid fragments, by platform: for IPv4, also on a socket of both families, and
# for IPv6.
_FORBID_FRAGMENTS = {
    "linux": ((socket.IPPROTO_IP, 10, 2), (socket.IPPROTO_IPV6, 23, 2)),
    "darwin": ((socket.IPPROTO_IP, 28, 1), (socket.IPPROTO_IPV6, 62, 1)),
    "win32": ((socket.IPPROTO_IP, 14, 1), (socket.IPPROTO_IPV6, 14, 1)),
}
_NO_IPV6 = ("EAFNOSUPPORT", "EPROTONOSUPPORT", "EADDRNOTAVAIL", "ENOPROTOOPT", "EINVAL")


def bind(port: int, bind_address: str | None, socket_factory: SocketFactory) -> socket.socket:
    """A UDP socket bound to the port: for IPv6 and IPv4 where there is IPv6, else for IPv4 alone.

    Raises:
        OSError: the port cannot be bound.
        ValueError: `bind_address` is not an IP literal.
    """
    if bind_address is None:
        try:
            return _bind_family(socket.AF_INET6, ("::", port), socket_factory)
        except OSError as error:
            if name_of(error) not in _NO_IPV6:
                raise
        return _bind_family(socket.AF_INET, ("0.0.0.0", port), socket_factory)
    ip = resolve_literal(bind_address)
    if ip is None:
        raise ValueError(f"bind_address must be an IPv4 or IPv6 address, not {bind_address!r}")
    if ":" not in ip:
        return _bind_family(socket.AF_INET, (ip, port), socket_factory)
    literal, _, scope = ip.partition("%")
    return _bind_family(socket.AF_INET6, (literal, port, 0, scope_id(scope)), socket_factory)


def _bind_family(family: int, address: SocketAddress, socket_factory: SocketFactory) -> socket.socket:
    # No SO_REUSEADDR or SO_REUSEPORT: two sockets on one port would share its datagrams at random.
    sock = socket_factory(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if sys.platform == "win32":
            # There, others may take over a port that is bound without it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            _disable_connection_reset(sock)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _disable_connection_reset(sock: socket.socket) -> None:
    """Keep Windows from reporting, at each receive, that an earlier datagram found no one (error 10054)."""
    if sys.platform == "win32":
        import ctypes

        no, returned = ctypes.c_ulong(0), ctypes.c_ulong(0)
        # socket.ioctl() knows three commands, and this is none of them.
        if ctypes.WinDLL("ws2_32").WSAIoctl(
            ctypes.c_size_t(sock.fileno()),
            ctypes.c_ulong(_SIO_UDP_CONNRESET),
            ctypes.byref(no),
            ctypes.sizeof(no),
            None,
            0,
            ctypes.byref(returned),
            None,
            None,
        ):
            logger.info("SIO_UDP_CONNRESET refused; error 10054 will be counted instead")


def set_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    """Set an option that not every system has; whether it has it."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def receive_memory() -> memoryview:
    """Room for the longest datagram, or batch of them, of which only what is used takes memory.

    It comes from the system and goes back there. In the allocator's memory, 64 KB that come and go, in a
    thread for each socket, leave holes that nothing else fits into: the process grows for hours.
    """
    if sys.platform == "win32":
        return memoryview(mmap.mmap(-1, MAX_DATAGRAM))
    return memoryview(mmap.mmap(-1, MAX_DATAGRAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def enlarge(sock: socket.socket, option: int) -> int:
    """Ask for large buffers, for less if that is refused; return the bytes granted."""
    size = BUFFER_SIZE
    while size >= MAX_DATAGRAM and not set_option(sock, socket.SOL_SOCKET, option, size):
        size //= 2
    return sock.getsockopt(socket.SOL_SOCKET, option)


def drops_of(sock: socket.socket) -> int | None:
    """How often the kernel has had no room in the socket's buffer, with 32 bits; None if it does not tell."""
    if sys.platform != "linux":
        return None
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
    except OSError:
        return None
    return int.from_bytes(told[32:36], sys.byteorder) if len(told) == 36 else None  # the ninth number


def forbid_fragments(sock: socket.socket) -> None:
    """Have the system refuse what is too long for a path; where it declines, it goes on to divide it."""
    for level, option, value in _FORBID_FRAGMENTS.get(sys.platform, ()):
        set_option(sock, level, option, value)


def path_mtu(address: Address, socket_factory: SocketFactory = socket.socket) -> int | None:
    """Bytes of an IP packet that the path to `address` carries, as far as the system knows.

    None where it does not tell. It knows more after it has refused a datagram for its size.
    """
    if sys.platform != "linux":
        return None
    ip, port = address
    literal, _, scope = ip.partition("%")
    is_ipv6 = ":" in ip
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if is_ipv6 else (socket.IPPROTO_IP, _IP_MTU)
    try:
        # Only a connected socket has a path to ask about; connecting sends nothing.
        with contextlib.closing(socket_factory(family, socket.SOCK_DGRAM)) as asked:
            asked.connect((literal, port, 0, scope_id(scope)) if is_ipv6 else address)
            return asked.getsockopt(level, option)
    except OSError:
        return None


def name_of(error: OSError) -> str:
    """The POSIX name of an error: `ECONNRESET` for Windows' 10054 (`WSAECONNRESET`) too."""
    name = errno.errorcode.get(error.errno or 0, f"E{error.errno}")
    return name[3:] if name.startswith("WSA") else name


def yield_processor() -> None:
    """Let others run who wait for this processor, if there are any."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)  # Windows
