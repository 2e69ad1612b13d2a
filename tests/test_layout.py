# SPDX-License-Identifier: Apache-2.0
"""Bodies read without a parser: never anything that the parser would not read so, too."""

from __future__ import annotations

import struct
from typing import Sequence

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_layout as layouts
import vault_udp_packet as packet
from vault_udp_packet import PacketError

BODY_SIZE = 1393
SIZES = st.integers(0, 700)
ALIKE = st.tuples(st.integers(1, 600), SIZES, st.sampled_from([200, BODY_SIZE, 9000]))


def as_parsed(body: bytes) -> list[bytes] | None:
    """What the parser reads; None for what is no body of messages."""
    try:
        content = packet.read_body(body)
        if content.version != packet.PROTOCOL_VERSION or content.control:
            return None
        return list(content.messages) or [packet.read_frame(content.payload)]
    except PacketError:
        return None


def messages_of(body: bytes) -> Sequence[bytes] | None:
    read = layouts.read_messages(body)
    return None if read is None else read[1]


def numbered(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "big").rjust(size, b"\xc4")[:size] for number in range(count)]


@given(ALIKE)
def test_messages_of_one_size_are_packed_as_msgpack_does_and_read_back(alike: tuple[int, int, int]) -> None:
    count, size, body_size = alike
    size = min(size, packet.message_room(body_size))
    messages = numbered(count, size)
    arrived: list[bytes] = []
    for body in layouts.make_bodies(messages, body_size, coalesce=True):
        read = messages_of(body)
        assert read is not None
        assert list(read) == as_parsed(body)
        if len(read) > 1:
            assert body == layouts.make_coalesced_body(list(read), body_size)
        arrived += read
    assert arrived == messages


@pytest.mark.parametrize("body_size", [BODY_SIZE, 300, 70])
def test_stored_bodies_of_all_sizes_are_what_their_parts_give(body_size: int) -> None:
    """Also where the padding has no room for its header's longer form."""
    for size in range(packet.message_room(body_size) + 1):
        messages = numbered(3, size)
        bodies = layouts.make_bodies(messages, body_size, coalesce=False)
        assert isinstance(bodies, layouts.StoredBodies)
        expected = [packet.make_payload_body(packet.store_frame(message), body_size) for message in messages]
        assert list(bodies) == bodies[:] == expected
        layout = bodies.layout
        parts = [struct.pack(layout.fields, layout.head, message, layout.tail) for message in messages]
        assert parts == expected


def test_as_many_small_messages_share_a_datagram_as_have_room() -> None:
    room = BODY_SIZE - layouts.COALESCED_OVERHEAD
    first, *_ = layouts.make_bodies(numbered(200, 20), BODY_SIZE, coalesce=True)
    assert len(messages_of(first) or ()) == room // 22 == 62
    first, *_ = layouts.make_bodies(numbered(20, 300), BODY_SIZE, coalesce=True)
    assert len(messages_of(first) or ()) == room // 303 == 4


@given(
    ALIKE,
    st.data(),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_changed_body_is_read_as_the_parser_reads_it_or_left_to_it(
    alike: tuple[int, int, int], data: st.DataObject, changes: list[tuple[int, int]]
) -> None:
    count, size, body_size = alike
    messages = numbered(count, min(size, packet.message_room(body_size)))
    body = bytearray(data.draw(st.sampled_from(layouts.make_bodies(messages, body_size, coalesce=True))))
    step = len(messages[0]) + 2
    for position, value in changes:
        # Mostly where structure is: in the head, in the headers of messages, in front of the padding.
        at = data.draw(st.sampled_from([position, position % 40, 17 + position % 60 * step, -position % 30]))
        body[at % len(body)] = value
    cut = data.draw(st.sampled_from([0, 0, 0, 1, body_size // 2, body_size - 10]))
    changed = bytes(body[: len(body) - cut])
    read = messages_of(changed)
    assert read is None or list(read) == as_parsed(changed)


@pytest.mark.parametrize("length", range(60))
def test_a_body_that_ends_early_is_left_to_the_parser(length: int) -> None:
    for count in (1, 3, 30):
        (body,) = layouts.make_bodies(numbered(count, 9), BODY_SIZE, coalesce=True)
        assert messages_of(body[:length]) is None


def test_what_looks_alike_but_is_not_is_left_to_the_parser() -> None:
    messages = numbered(20, 20)
    longer = [*messages[:9], messages[9][:-1], messages[10] + b"x", *messages[11:]]
    for several in (longer, [*messages, b""], messages[:1]):
        body = layouts.make_coalesced_body(several, BODY_SIZE)
        assert messages_of(body) is None
        assert as_parsed(body) == several
    # Headers of the other lengths that msgpack has.
    head = b"\x85\xa1v\x02\xa1p\xc4\x00\xa1c\xc4\x00\xa1m"
    for packed in (b"\xdc\x00\x02\xc5\x00\x01a\xc5\x00\x01b", b"\xdd\x00\x00\x00\x02\xc4\x01a\xc4\x01b"):
        body = packet.padded(head + packed, BODY_SIZE)
        assert as_parsed(body) == [b"a", b"b"]
        assert messages_of(body) in (None, (b"a", b"b"))


def test_a_body_of_too_many_messages_is_not_read() -> None:
    count = packet.MAX_MESSAGES_PER_BODY + 1
    body = packet.padded(
        b"\x85\xa1v\x02\xa1p\xc4\x00\xa1c\xc4\x00\xa1m" + msgpack.packb([b"x"] * count), 1393
    )
    assert as_parsed(body) is None
    assert messages_of(body) is None


def test_a_compressed_message_is_not_taken_for_one_that_is_stored() -> None:
    frame = packet.compress_frame(bytes(500), 100)
    messages = [bytes(len(frame)), frame, bytes(len(frame))]
    bodies = layouts.make_bodies(messages, BODY_SIZE, coalesce=True)
    assert [as_parsed(body) for body in bodies] == [[messages[0]], [bytes(500)], [messages[2]]]
