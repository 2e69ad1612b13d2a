# SPDX-License-Identifier: Apache-2.0
"""Bodies that carry messages: made in as few datagrams as can be, the usual ones read without a parser.

Nearly every datagram has one of two layouts: one stored message, or several of one size. In either, every
byte that is neither message nor padding follows from a few of them.

Why reading them without a parser is safe: those few bytes say which layout it would have to be; all the other
bytes are then compared with what that layout has there. What is not equal is left to `vault_udp_packet`,
which judges every member. So this accepts nothing that the parser refuses, and reads it as the parser would
(tests/test_layout.py holds both side by side).
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, NamedTuple, Sequence, overload

import msgpack

if TYPE_CHECKING or not __package__:
    import vault_udp_packet as packet
    from vault_udp_packet import BODY_HEAD, EMPTY_BIN, FRAME_START, MAX_MESSAGES_PER_BODY, CompressedFrame
else:
    from . import vault_udp_packet as packet
    from .vault_udp_packet import BODY_HEAD, EMPTY_BIN, FRAME_START, MAX_MESSAGES_PER_BODY, CompressedFrame

_STORED_HEAD = BODY_HEAD + b"\xc5"
_COALESCED_HEAD = b"\x85\xa1v\x02\xa1p\xc4\x00\xa1c\xc4\x00\xa1m"
COALESCED_OVERHEAD = len(_COALESCED_HEAD) + 3 + len(packet.PADDING_KEY) + 2
"""Bytes of a coalesced body that are neither messages nor padding."""
MESSAGE_OVERHEAD = 3
"""Bytes that each message of a coalesced body costs at most, beside itself."""
_MIN_PADDING = len(packet.PADDING_KEY + EMPTY_BIN)
_ARRAY_AT = len(_COALESCED_HEAD)


# --------------------------------------------------------------------------------------------- the usual ones


class Layout(NamedTuple):
    """What all bodies of one size share that carry one number of messages of one size.

    `bare_layout` and `no_layout` are two for which nothing is known of the messages.
    """

    head: bytes
    """What precedes the first message."""
    header: bytes
    """What precedes each of the others."""
    end: int
    """Where the last message ends."""
    tail: bytes
    """What follows it, up to the padding."""
    body_size: int
    fields: str
    """In a format of `struct`: head, all messages with what is between them, tail; the padding is skipped."""
    columns: Sequence[tuple[int, bytes]]
    """Of each byte of a header: where it stands first behind `head`, and what every `step`-th byte from
    there is."""
    step: int
    """Bytes from one message to the next."""
    split: struct.Struct | None
    """The messages behind `head`; None if there is one only."""

    def make(self, messages: Sequence[bytes]) -> bytes:
        """The body around them."""
        return (b"%b%b%b" % (self.head, self.header.join(messages), self.tail)).ljust(self.body_size, b"\0")

    def messages_of(self, middle: bytes) -> Sequence[bytes] | None:
        """The messages in what lies between head and tail, which has the length that it must have.

        Returns:
            None if the headers between them are not those of this layout.
        """
        if self.split is None:
            return (middle,)
        for start, repeated in self.columns:
            if middle[start :: self.step] != repeated:
                return None
        return self.split.unpack(middle)


@functools.lru_cache(maxsize=2048)
def stored_layout(message_size: int, body_size: int) -> Layout:
    """That of `make_payload_body(store_frame(message))`; such a message must fit."""
    frame = packet.store_frame(bytes(message_size))
    body = packet.make_payload_body(frame, body_size)
    end = FRAME_START + len(frame)
    tail_end = end + len(packet.CONTROL_KEY + EMPTY_BIN + packet.PADDING_KEY) + 3
    return _layout(body[: end - message_size], b"", 1, message_size, body[end:tail_end], body_size)


@functools.lru_cache(maxsize=256)
def alike_layout(count: int, message_size: int, body_size: int) -> Layout | None:
    """That of `make_coalesced_body(messages)` for `count` messages of that size.

    Returns:
        None if they do not fit, or are fewer than 2.
    """
    header = b"\xc4%c" % message_size if message_size < 256 else b"\xc5%b" % message_size.to_bytes(2, "big")
    array = b"%c" % (0x90 | count) if count < 16 else b"\xdc%b" % count.to_bytes(2, "big")
    head = _COALESCED_HEAD + array + header
    end = len(head) - len(header) + count * (len(header) + message_size)
    if not 1 < count <= MAX_MESSAGES_PER_BODY or end + _MIN_PADDING > body_size:
        return None
    return _layout(head, header, count, message_size, packet.padding_head(body_size - end), body_size)


@functools.lru_cache(maxsize=2048)
def bare_layout(body_size: int) -> Layout:
    """One that any body of this size has: all of it stands where the messages would."""
    return Layout(b"", b"", body_size, b"", body_size, f"0s{body_size}s0s", (), 0, None)


@functools.lru_cache(maxsize=2048)
def no_layout(body_size: int) -> Layout:
    """One that no body has, to begin with where none is known."""
    return Layout(b"-", b"", 0, b"", body_size, f"0s0s0s{body_size}x", (), 0, None)


def _layout(head: bytes, header: bytes, count: int, message_size: int, tail: bytes, body_size: int) -> Layout:
    step = len(header) + message_size
    middle_size = count * step - len(header)
    end = len(head) + middle_size
    columns = [
        (message_size + offset, header[offset : offset + 1] * (count - 1)) for offset in range(len(header))
    ]
    further = f"{len(header)}x{message_size}s" * (count - 1)
    split = struct.Struct(f"{message_size}s{further}") if count > 1 else None
    fields = f"{len(head)}s{middle_size}s{len(tail)}s{body_size - end - len(tail)}x"
    return Layout(head, header, end, tail, body_size, fields, columns, step, split)


def _likely_layout(body: bytes) -> Layout | None:
    """The one such layout that this body may have; None if it can have none."""
    if body.startswith(_STORED_HEAD):
        # By the length of its payload.
        frame_size = int.from_bytes(body[FRAME_START - 2 : FRAME_START], "big")
        message_size = frame_size - (9 if frame_size < 265 else 10)
        if message_size < 0 or frame_size > len(body) - packet.BODY_OVERHEAD:
            return None
        return stored_layout(message_size, len(body))
    # By its number of messages, and the size of the first.
    if len(body) <= COALESCED_OVERHEAD or not body.startswith(_COALESCED_HEAD):
        return None
    count, at = body[_ARRAY_AT] & 0x0F, _ARRAY_AT + 1
    if body[_ARRAY_AT] == 0xDC:
        count, at = int.from_bytes(body[at : at + 2], "big"), at + 2
    size = body[at + 1] if body[at] == 0xC4 else int.from_bytes(body[at + 1 : at + 3], "big")
    return alike_layout(count, size, len(body))


def read_messages(body: bytes) -> tuple[Layout, Sequence[bytes]] | None:
    """The layout and the messages of a usual body, whatever its padding; None for any other body."""
    layout = _likely_layout(body)
    if layout is None or not (body.startswith(layout.head) and body.startswith(layout.tail, layout.end)):
        return None
    messages = layout.messages_of(body[len(layout.head) : layout.end])
    return (layout, messages) if messages is not None else None


class StoredBodies(Sequence[bytes]):
    """Bodies of one message each, made when looked at: a `Pair` writes their parts where it seals them."""

    __slots__ = ("layout", "messages")

    def __init__(self, messages: Sequence[bytes], body_size: int) -> None:
        self.messages = messages
        self.layout = stored_layout(len(messages[0]), body_size)

    def __len__(self) -> int:
        return len(self.messages)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self.layout.make((message,)) for message in self.messages[index]]
        return self.layout.make((self.messages[index],))


# ------------------------------------------------------------------------------------------------ any bodies


def make_coalesced_body(messages: Sequence[bytes], body_size: int) -> bytes:
    """A v2 body of exactly `body_size` bytes around several messages, which must fit."""
    return packet.padded(_COALESCED_HEAD + msgpack.packb(messages), body_size)


def make_bodies(messages: Sequence[bytes], body_size: int, coalesce: bool) -> Sequence[bytes]:
    """v2 bodies of exactly `body_size` bytes that carry `messages` in order.

    With `coalesce`, messages that wait together share a body, at most 256 of them.

    Args:
        messages: raw (at most `message_room` bytes), or a `CompressedFrame`.

    Raises:
        TooLargeError: one of them does not fit.
    """
    sizes, kinds = list(map(len, messages)), list(map(type, messages))
    if sizes and len(sizes) == sizes.count(sizes[0]) == kinds.count(bytes):
        return _make_bodies_alike(messages, body_size, coalesce)
    if len(messages) > 1 and coalesce:
        return _make_bodies_mixed(messages, body_size)
    return [_make_single(message, body_size) for message in messages]


def _make_single(message: bytes, body_size: int) -> bytes:
    if message.__class__ is CompressedFrame:
        return packet.make_payload_body(message, body_size)
    return stored_layout(len(message), body_size).make((message,))


def _make_bodies_alike(messages: Sequence[bytes], body_size: int, coalesce: bool) -> Sequence[bytes]:
    size = len(messages[0])
    cost = size + (2 if size < 256 else 3)
    count = min(MAX_MESSAGES_PER_BODY, (body_size - COALESCED_OVERHEAD) // cost)
    if not coalesce or count < 2:
        return StoredBodies(messages, body_size)
    bodies: list[bytes] = []
    for start in range(0, len(messages), count):
        part = messages[start : start + count]
        layout = alike_layout(len(part), size, body_size)
        bodies.append(_make_single(part[0], body_size) if layout is None else layout.make(part))
    return bodies


def _make_bodies_mixed(messages: Sequence[bytes], body_size: int) -> list[bytes]:
    bodies: list[bytes] = []
    count, start = len(messages), 0
    while start < count:
        end = start
        left = body_size - COALESCED_OVERHEAD
        last = min(count, start + MAX_MESSAGES_PER_BODY)
        while end < last and messages[end].__class__ is not CompressedFrame:
            left -= len(messages[end]) + MESSAGE_OVERHEAD
            if left < 0:
                break
            end += 1
        if end > start + 1:
            bodies.append(make_coalesced_body(messages[start:end], body_size))
        else:
            end = start + 1
            bodies.append(_make_single(messages[start], body_size))
        start = end
    return bodies
