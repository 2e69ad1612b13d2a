# SPDX-License-Identifier: Apache-2.0
"""The forms of addresses: one canonical `(ip, port)` for users, whatever the socket module calls it.

A host's name may stand where the IP stands; it, too, has one canonical form.
"""

from __future__ import annotations

import errno
import re
import socket
from typing import Any, Tuple

Address = Tuple[str, int]
"""``(ip, port)``: dotted IPv4, or compressed IPv6 with ``%interface`` if it is link-local; or
(host name, port)."""

_IP_TEXT = re.compile(r"[0-9.]+|.*:.*")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def normalize(address: Any) -> Address:
    """The canonical ``(ip, port)`` of what the socket module calls an address: the form that users see.

    IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2) is shown as IPv4, link-local addresses have ``%interface``.
    """
    host, port = address[0], address[1]
    if host.startswith("::ffff:") and "." in host:
        return host[7:], port
    if len(address) == 4 and address[3]:
        return f"{host.partition('%')[0]}%{_interface_name(address[3])}", port
    return host, port


def resolve_literal(ip: str) -> str | None:
    """The canonical text of an IPv4 or IPv6 address, or None if `ip` is neither. Asks no name server.

    The scope of a link-local address is kept, as the name of the interface if there is such a one; other
    addresses need none, and the system shows them without.
    """
    literal, has_scope, scope = ip.partition("%")
    try:
        if ":" not in literal:
            return None if has_scope else socket.inet_ntoa(socket.inet_pton(socket.AF_INET, literal))
        packed = socket.inet_pton(socket.AF_INET6, literal)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the text
        return None
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return socket.inet_ntoa(packed[12:])
    text = socket.inet_ntop(socket.AF_INET6, packed)
    is_link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
    if not has_scope:
        return text
    if not scope or not scope.isprintable() or (scope.isdecimal() and int(scope) > 0xFFFFFFFF):
        return None
    if not is_link_local:
        return text
    return f"{text}%{_interface_name(int(scope)) if scope.isdecimal() else scope}"


def lacks_scope(ip: str) -> bool:
    """Whether an IP address, canonical, is a link-local one without its interface (RFC 4291, 2.5.6)."""
    return ip[:3] in ("fe8", "fe9", "fea", "feb") and ":" in ip and "%" not in ip


def is_no_host(ip: str) -> bool:
    """Whether an IP address, canonical, is no single host's: unspecified, multicast, limited broadcast."""
    if ":" in ip:
        return ip == "::" or ip.startswith("ff")
    return ip in ("0.0.0.0", "255.255.255.255") or 224 <= int(ip.partition(".")[0]) < 240


def canonical_host(text: str) -> str | None:
    """The canonical text of a host's name, None if it is not one (RFC 1123, 2.1). Asks no name server.

    Lower case, without a dot at the end; what is not ASCII as IDNA (RFC 3490) shows it. Underscores occur in
    names that people have. What ends in a number would be taken for an IPv4 address by some.
    """
    if len(text) > 254:  # 253 and a dot; the codec takes its time with long ones
        return None
    try:
        name = ascii_host(text)
        name = name[:-1] if name.endswith(".") else name
        shown = name if text.isascii() else name.encode("ascii").decode("idna")
    except UnicodeError:
        return None
    labels = name.split(".")
    is_name = len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) and not _NUMBER.fullmatch(labels[-1])
    return shown if is_name else None


def ascii_host(name: str) -> str:
    """A host's name as name servers know it.

    Raises:
        UnicodeError: IDNA has no form of it.
    """
    return (name if name.isascii() else name.encode("idna").decode("ascii")).lower()


def is_host(text: str) -> bool:
    """Whether a canonical text is a host's name, not an IP address."""
    return _IP_TEXT.fullmatch(text) is None


def _interface_name(scope_id: int) -> str:
    try:
        return socket.if_indextoname(scope_id)
    except OSError:  # it is gone, or never was: the number is as good a name
        return str(scope_id)


def scope_id(scope: str) -> int:
    """The number of an interface given by name or number; an empty text is 0.

    Raises:
        OSError: ENODEV, there is no such interface.
    """
    if not scope or scope.isdecimal():
        return int(scope or 0)
    try:
        return socket.if_nametoindex(scope)
    except OSError:  # which has no errno on most versions of Python
        raise OSError(errno.ENODEV, f"there is no interface {scope!r}") from None
