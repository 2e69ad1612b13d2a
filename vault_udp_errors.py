# SPDX-License-Identifier: Apache-2.0
"""The errors of `UDPSocketClass`, and the checks of what its users pass in.

Every error says what was wrong, the value, the limit, and what to do.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or not __package__:
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address, canonical_host, is_no_host, lacks_scope, resolve_literal
else:
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address, canonical_host, is_no_host, lacks_scope, resolve_literal


MAX_RATE_LIMIT = 10**9
"""Messages a second: beyond it the arithmetic of a limit says nothing any more."""


class UDPSocketError(Exception):
    """Base class of the errors of `UDPSocketClass`."""


class MessageTooLargeError(UDPSocketError):
    """A message does not fit into one datagram, however hard it is compressed."""


class InvalidPortError(UDPSocketError, ValueError):
    """A port is not a number from 1 to 65535 (0, for `recv_port`, lets the system choose)."""


class InvalidArgumentError(UDPSocketError, ValueError):
    """An address, a key, a path, a text or a number cannot be used; the message says which, and why."""


class BindError(UDPSocketError, OSError):
    """The port cannot be listened on: in use, or not permitted, or `bind_address` is none of this machine."""


class IdentityFileError(UDPSocketError):
    """The identity file is in use, readable by others, damaged, or cannot be written."""


class KnownPeersFileError(UDPSocketError):
    """The known-peers file has a line that is not `ip port key`, no folder, or cannot be read or written."""


class StoppedError(UDPSocketError):
    """The socket was stopped, or is that of the process that forked this one; make a new one."""


class RateLimitExceededError(UDPSocketError):
    """Kept for programs that name it; nothing raises it: what is too much is dropped and counted."""


class ProtocolVersionError(UDPSocketError):
    """Kept for programs that name it; nothing raises it: other versions are dropped and counted."""


def check_port(port: object, lowest: int) -> int:
    """`port` if it is an int from `lowest` to 65535.

    Raises:
        InvalidPortError: anything else.
    """
    if isinstance(port, bool) or not isinstance(port, int):
        raise InvalidPortError(
            f"port is {port!r}, a {type(port).__name__}; it must be an int, {lowest}-65535"
        )
    if not lowest <= port <= 65535:
        raise InvalidPortError(f"port is {port}; it must be {lowest}-65535")
    return port


def check_address(addr: object) -> Address:
    """The canonical form of (ip, port) or (host name, port).

    Raises:
        InvalidArgumentError: not such a tuple, or neither an IP address of one host nor a host's name.
        InvalidPortError: the port is not one.
    """
    if not isinstance(addr, tuple) or len(addr) != 2 or not isinstance(addr[0], str):
        raise InvalidArgumentError(f"address is {addr!r}; it must be a tuple (ip, port)")
    literal = resolve_literal(addr[0])
    host = literal or canonical_host(addr[0])
    if host is None:
        raise InvalidArgumentError(
            f"address has ip {addr[0]!r}; it must be an IPv4 or IPv6 address, or a host's name: letters, "
            "digits and hyphens, at most 63 between dots and 253 in all, the last part not a number"
        )
    _check_scope("address", host)
    if literal is not None and is_no_host(literal):
        raise InvalidArgumentError(
            f"address has ip {addr[0]!r}, which is no single host's: unspecified, multicast or broadcast"
        )
    return host, check_port(addr[1], lowest=1)


def _check_scope(name: str, ip: str) -> None:
    if lacks_scope(ip):
        raise InvalidArgumentError(
            f"{name} has the link-local ip {ip!r}; it needs its interface, as in {ip + '%eth0'!r}"
        )


def check_rate_limit(rate_limit: object) -> None:
    """Pass a number above 0 and up to 1,000,000,000, and None.

    Raises:
        InvalidArgumentError: anything else.
    """
    is_number = isinstance(rate_limit, (int, float)) and not isinstance(rate_limit, bool)
    if rate_limit is not None and not (is_number and 0 < rate_limit <= MAX_RATE_LIMIT):  # type: ignore[operator]
        raise InvalidArgumentError(
            f"rate_limit is {rate_limit!r}; it must be a number of messages per second, above 0 and at most "
            f"{MAX_RATE_LIMIT}, or None for no limit"
        )


def check_keepalive(keepalive: object) -> None:
    """Pass a number of seconds from 1 on, and None.

    Raises:
        InvalidArgumentError: anything else.
    """
    is_number = isinstance(keepalive, (int, float)) and not isinstance(keepalive, bool)
    if keepalive is not None and not (is_number and 1 <= keepalive < math.inf):  # type: ignore[operator]
        raise InvalidArgumentError(f"keepalive is {keepalive!r}; it must be at least 1 second, or None")


def check_timeout(timeout: object) -> None:
    """Pass a number of seconds; `math.inf` is for ever.

    Raises:
        InvalidArgumentError: anything else.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or timeout != timeout:  # not a number
        raise InvalidArgumentError(f"timeout is {timeout!r}; it must be a number of seconds")


def check_mtu(mtu: object) -> None:
    """Pass an int from 576 to 65535, and None.

    Raises:
        InvalidArgumentError: anything else.
    """
    if mtu is not None and not (type(mtu) is int and 576 <= mtu <= 65535):
        raise InvalidArgumentError(f"mtu is {mtu!r}; it must be an int, 576-65535, or None")


def check_bind_address(bind_address: object) -> None:
    """Pass the text of an IP address, and None.

    Raises:
        InvalidArgumentError: anything else.
    """
    if bind_address is None:
        return
    literal = resolve_literal(bind_address) if isinstance(bind_address, str) else None
    if literal is None:
        raise InvalidArgumentError(f"bind_address is {bind_address!r}; it must be an IPv4 or IPv6 address")
    _check_scope("bind_address", literal)
    if is_no_host(literal) and literal not in ("0.0.0.0", "::"):
        raise InvalidArgumentError(
            f"bind_address is {bind_address!r}, which is for many; it must be the address of one interface, "
            "or be left out for all"
        )


def check_files(identity_file: object, known_peers_file: object) -> None:
    """Pass the paths of two files, and None for either.

    Raises:
        InvalidArgumentError: no paths, or one for both.
    """
    paths = []
    for name, path in (("identity_file", identity_file), ("known_peers_file", known_peers_file)):
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        if path is not None and (not isinstance(text, str) or not text or "\0" in text):
            raise InvalidArgumentError(
                f"{name} is {path!r}; it must be the path of a file, a str or os.PathLike"
            )
        paths.append(text)
    identity, known_peers = paths
    if identity is None or known_peers is None:
        return
    if os.path.realpath(identity) == os.path.realpath(known_peers):
        raise InvalidArgumentError(
            f"identity_file and known_peers_file are both {identity!r}; give each its own"
        )


def check_data(data: object) -> bytes:
    """What the user sends, as bytes and nothing that is derived from them; a text as UTF-8.

    Raises:
        TypeError: it is neither str nor bytes.
        InvalidArgumentError: the text has half a character, which UTF-8 has not.
    """
    if isinstance(data, bytes):
        return bytes(data)
    if not isinstance(data, str):
        raise TypeError(f"data must be str or bytes, not {type(data).__name__}")
    try:
        return data.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the text has half a character (a lone surrogate) at {error.start}, which UTF-8 has not; "
            "send bytes"
        ) from None


def check_identity(key: object) -> bytes:
    """The 32 bytes of an identity given as Base64 text.

    Raises:
        InvalidArgumentError: it is not that.
    """
    try:
        identity = crypto.b64_str_to_bytes(key) if isinstance(key, str) else b""
    except crypto.EncodingError:
        identity = b""
    if len(identity) != crypto.KEY_SIZE:
        raise InvalidArgumentError(
            f"key is {key!r}; it must be the peer's own_public_key, Base64 of {crypto.KEY_SIZE} bytes"
        )
    return identity
