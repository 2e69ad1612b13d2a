# SPDX-License-Identifier: Apache-2.0
"""Wire formats: bodies and zstd frames. No keys, no sockets, no clocks.

Whatever comes from the network passes through the functions here that start with ``read_``. They are fed
only what is bounded, and they raise one exception, ``PacketError``, whose ``reason`` is the name under which
the datagram is counted. Any other exception out of this module is a bug.

    body (v2)   msgpack map   {'v': 2, 'p': zstd frame, 'c': JSON, 'm': [message, ...], 'g': padding}
    body (v1)   msgpack array [zstd frame of a text, padding]

``p`` carries one message; ``m``, which only sessions that agreed on it use, carries several that waited
together; ``c`` carries control. A body has at most one of the three. Unknown members are ignored.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

import msgpack
import pyzstd

if TYPE_CHECKING or not __package__:
    from vault_udp_address import is_host
else:
    from .vault_udp_address import is_host

PROTOCOL_VERSION = 2


MAX_MESSAGE_SIZE = 1 << 20
"""Bytes of one message after decompression; caps what a peer can make us allocate."""
MAX_MESSAGES_PER_BODY = 256
MAX_CONTAINERS = 16
"""Maps and arrays in one body; ours have two. The limits of each alone let ten thousand into a datagram."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_LOG_MAX = 21
BODY_HEAD = b"\x84\xa1v\x02\xa1p"
CONTROL_KEY = b"\xa1c"
PADDING_KEY = b"\xa1g"
EMPTY_BIN = b"\xc4\x00"
_CONTROL_HEAD = BODY_HEAD + EMPTY_BIN + CONTROL_KEY + b"\xc5"

FRAME_START = len(BODY_HEAD) + 3
"""Where the frame begins in a v2 payload body."""
BODY_OVERHEAD = FRAME_START + len(CONTROL_KEY + EMPTY_BIN) + len(PADDING_KEY) + 2
"""Bytes of a v2 payload body that are neither frame nor padding."""
V1_BODY_OVERHEAD = 6
"""Bytes of a v1 body that are neither frame nor padding."""
STORED_OVERHEAD = 10
"""Bytes that a stored zstd frame of up to 65,791 bytes costs at most, beside its content."""


class PacketError(Exception):
    """Bytes from the network that are not what the protocol allows.

    Attributes:
        reason: the name under which ``get_stats()['counters']`` counts it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooLargeError(ValueError):
    """Something of our own does not fit: ``size`` bytes (the best we could do) into ``limit``."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"{size} bytes do not fit into {limit}")
        self.size = size
        self.limit = limit


class Body(NamedTuple):
    """What a body carried; the bytes are as the sender wrote them, not yet decompressed or parsed."""

    version: int
    payload: bytes
    control: bytes
    messages: Sequence[bytes] = ()


# ---------------------------------------------------------------------------------------------- zstd frames


class CompressedFrame(bytes):
    """A message that is already a zstd frame, because it did not fit raw."""


def store_frame(message: bytes) -> bytes:
    """The zstd frame that stores `message` (up to 65,791 bytes) as one raw block (RFC 8878, 3.1.1).

    Every datagram is padded to one length, so compressing what fits raw would gain nothing.
    """
    size = len(message)
    head = b" " + size.to_bytes(1, "little") if size < 256 else b"`" + (size - 256).to_bytes(2, "little")
    return _ZSTD_MAGIC + head + (size << 3 | 1).to_bytes(3, "little") + message


class _Kept(threading.local):
    """A compressor for each thread: to make one takes as long as to compress four kilobytes with it."""

    def __init__(self) -> None:
        self.compressor = pyzstd.ZstdCompressor(3)


_kept = _Kept()


def compress_frame(message: bytes, limit: int) -> CompressedFrame:
    """The zstd frame of `message` in at most `limit` bytes, compressed harder and harder until it fits.

    Raises:
        TooLargeError: it does not fit at the highest level either, or is over ``MAX_MESSAGE_SIZE``.
    """
    if len(message) > MAX_MESSAGE_SIZE:
        raise TooLargeError(len(message), MAX_MESSAGE_SIZE)
    frame = _kept.compressor.compress(message, pyzstd.ZstdCompressor.FLUSH_FRAME)
    sizes = [len(frame)]
    for level in (12, 22):
        if len(frame) <= limit:
            break
        frame = pyzstd.compress(message, level)
        sizes.append(len(frame))
    if len(frame) > limit:
        raise TooLargeError(min(sizes), limit)
    return CompressedFrame(frame)


def fit(message: bytes, body_size: int) -> bytes:
    """`message` as it is if it fits raw into a v2 body of `body_size` bytes, else compressed.

    Args:
        message: raw, or a `CompressedFrame`, which is returned as it is if it fits.

    Raises:
        TooLargeError: it does not fit, however hard it is compressed.
    """
    if isinstance(message, CompressedFrame):
        if len(message) <= payload_room(body_size):
            return message
        message = read_frame(message)
    if len(message) <= message_room(body_size):
        return message
    return compress_frame(message, payload_room(body_size))


def read_frame(frame: bytes, limit: int = MAX_MESSAGE_SIZE) -> bytes:
    """The content of one zstd frame, at most `limit` bytes; a stored frame is read directly.

    Raises:
        PacketError: ``bad_frame``, ``message_over_limit``.
    """
    if frame[:4] != _ZSTD_MAGIC or len(frame) < 9:
        raise PacketError("bad_frame")
    descriptor = frame[4]
    if descriptor == 0x20:
        start, size = 9, frame[5]
    elif descriptor == 0x60:
        start, size = 10, 256 + int.from_bytes(frame[5:7], "little")
    else:
        return _decompress(frame, limit)
    block = int.from_bytes(frame[start - 3 : start], "little")
    if block == (size << 3 | 1):
        if len(frame) != start + size:
            raise PacketError("bad_frame")
        return frame[start:]
    return _decompress(frame, limit)


def _decompress(frame: bytes, limit: int) -> bytes:
    # A decoder of its own for each frame: a kept one would carry the state of a hostile frame into the next.
    decoder = pyzstd.ZstdDecompressor(option={pyzstd.DParameter.windowLogMax: _ZSTD_WINDOW_LOG_MAX})
    try:
        content: bytes = decoder.decompress(frame, limit + 1)
    except (pyzstd.ZstdError, MemoryError) as error:
        raise PacketError("bad_frame") from error
    if len(content) > limit:
        raise PacketError("message_over_limit")
    if not decoder.eof or decoder.unused_data:
        raise PacketError("bad_frame")
    return content


# --------------------------------------------------------------------------------------------------- bodies


def body_size_for(ip: str, body_size: int) -> int:
    """Bytes of a body towards `ip`, if `body_size` is what they are over IPv4: IPv6 has a longer header.

    A host's name may turn out to be an IPv6 address.
    """
    return body_size - 20 if ":" in ip or is_host(ip) else body_size


def payload_room(body_size: int) -> int:
    """Bytes that a zstd frame may have in a v2 body of `body_size` bytes."""
    return body_size - BODY_OVERHEAD


def message_room(body_size: int) -> int:
    """Bytes that a message may have to fit uncompressed into a v2 body of `body_size` bytes."""
    return payload_room(body_size) - STORED_OVERHEAD


def make_payload_body(frame: bytes, body_size: int) -> bytes:
    """A v2 body of exactly `body_size` bytes around one zstd frame."""
    if len(frame) > payload_room(body_size):
        raise TooLargeError(len(frame), payload_room(body_size))
    head = b"%b\xc5%b%b\xa1c\xc4\x00" % (BODY_HEAD, len(frame).to_bytes(2, "big"), frame)
    return padded(head, body_size)


def make_control_body(control: bytes, body_size: int) -> bytes:
    """A v2 body of exactly `body_size` bytes around control JSON."""
    return padded(b"%b%b%b" % (_CONTROL_HEAD, len(control).to_bytes(2, "big"), control), body_size)


def make_v1_body(frame: bytes, body_size: int) -> bytes:
    """A v1 body of exactly `body_size` bytes around one zstd frame."""
    head = b"\x92\xc5%b%b" % (len(frame).to_bytes(2, "big"), frame)
    return padded(head, body_size, key=b"")


def padded(head: bytes, body_size: int, key: bytes = PADDING_KEY) -> bytes:
    """A body of exactly `body_size` bytes that begins with `head`; zeros are as good as random bytes there.

    Raises:
        TooLargeError: the padding's own key and header have no room.
    """
    room = body_size - len(head)
    if room < len(key) + len(EMPTY_BIN):
        raise TooLargeError(len(head) + len(key) + len(EMPTY_BIN), body_size)
    return (head + padding_head(room, key)).ljust(body_size, b"\0")


def padding_head(room: int, key: bytes = PADDING_KEY) -> bytes:
    """Key and header of a padding that fills `room` bytes together with them."""
    # The header has a fixed size whenever there is room for it (msgpack allows the longer form), so that
    # every length can be hit.
    size = room - len(key) - 3
    return key + EMPTY_BIN if size < 0 else b"%b\xc5%b" % (key, size.to_bytes(2, "big"))


def looks_clear(datagram: bytes) -> bool:
    """Whether this begins as a body in clear does, v2 or v1; of sealed datagrams, one in 2,000 does, too."""
    head = datagram[:2]
    return (head[0] & 0xF0 == 0x80 and head[1] == 0xA1) or head in (b"\x92\xc4", b"\x92\xc5")


def read_body(body: bytes) -> Body:
    """Parse a body, v2 or v1, checking every member's type; the version says which it was.

    Raises:
        PacketError: ``bad_body`` (not msgpack, wrong types, duplicate members, too many maps and arrays),
            ``other_version``, ``mixed_body`` (more than one of payload, control and messages).
    """
    control = _usual_control(body)
    if control:
        return Body(PROTOCOL_VERSION, b"", control)
    containers = _Containers()
    try:
        content = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=containers.read_map,
            list_hook=containers.read_array,
            max_map_len=32,
            max_array_len=MAX_MESSAGES_PER_BODY,
            max_ext_len=0,
        )
    except PacketError:
        raise
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
        msgpack.UnpackException,
    ) as error:
        raise PacketError("bad_body") from error
    if isinstance(content, dict):
        return _read_v2(content)
    if isinstance(content, list):
        return _read_v1(content)
    raise PacketError("bad_body")


def _usual_control(body: bytes) -> bytes:
    """The control of a body as `make_control_body` makes it, whatever its padding; none of any other body.

    It has nothing but what is compared here, so the parser would read the same. Control comes mostly to idle
    programs, where a parser has to be fetched from memory first.
    """
    if not body.startswith(_CONTROL_HEAD) or len(body) > 0xFFFF:  # there, padding has another header
        return b""
    start = len(_CONTROL_HEAD) + 2
    end = start + int.from_bytes(body[start - 2 : start], "big")
    return body[start:end] if body.startswith(padding_head(len(body) - end), end) else b""


class _Containers:
    """The maps and arrays of one body: few, or a stranger makes us build ten thousand with each datagram."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise PacketError("bad_body")

    def read_map(self, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
        """Also refuses members of one name."""
        self._count()
        members = dict(pairs)
        if len(members) != len(pairs):
            raise PacketError("bad_body")
        return members

    def read_array(self, items: list[Any]) -> list[Any]:
        self._count()
        return items


def _read_v2(content: dict[Any, Any]) -> Body:
    version = content.get("v")
    if type(version) is not int:
        raise PacketError("bad_body")
    if version != PROTOCOL_VERSION:
        raise PacketError("other_version")
    payload, control = content.get("p", b""), content.get("c", b"")
    messages, padding = content.get("m", []), content.get("g", b"")
    if isinstance(control, str):
        control = control.encode()
    if not (type(payload) is type(control) is type(padding) is bytes and type(messages) is list):
        raise PacketError("bad_body")
    try:
        b"".join(messages)  # the fastest way to find what is not bytes
    except TypeError as error:
        raise PacketError("bad_body") from error
    if bool(payload) + bool(control) + bool(messages) > 1:
        raise PacketError("mixed_body")
    return Body(PROTOCOL_VERSION, payload, control, messages)


def _read_v1(content: list[Any]) -> Body:
    if len(content) != 2 or type(content[0]) is not bytes or type(content[1]) is not bytes:
        raise PacketError("bad_body")
    return Body(1, content[0], b"")


def messages_of(body: Body) -> Sequence[bytes]:
    """The messages in a body, none in one with control.

    Raises:
        PacketError: ``bad_frame``, ``message_over_limit``.
    """
    return () if body.control else body.messages or (read_frame(body.payload),)
