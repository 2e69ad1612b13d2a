# SPDX-License-Identifier: Apache-2.0
"""Bodies, frames, control and announcements: what goes in comes out, and junk is one named exception."""

from __future__ import annotations

import json
import threading
import tracemalloc
from typing import Any, Callable
from unittest import mock

import msgpack
import pytest
import pyzstd
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_control as control_format
import vault_udp_layout as layouts
import vault_udp_packet as packet
from vault_udp_packet import PacketError, TooLargeError

BODY_SIZE = 1393


def refused_as(read: Callable[..., object], *arguments: object) -> str:
    """The reason for which something is refused."""
    with pytest.raises(PacketError) as caught:
        read(*arguments)
    return caught.value.reason


def reason_of(read: Callable[..., object], *arguments: object) -> str:
    """The reason for which something is refused, empty if it is not."""
    try:
        read(*arguments)
    except PacketError as error:
        return error.reason
    return ""


# ----------------------------------------------------------------------------------------------------- frames


@given(st.binary(max_size=3000))
def test_a_stored_frame_is_zstd_to_everybody(message: bytes) -> None:
    frame = packet.store_frame(message)
    assert len(frame) <= len(message) + packet.STORED_OVERHEAD
    assert pyzstd.decompress(frame) == message
    assert packet.read_frame(frame) == message


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65535, 65536, 65791])
def test_stored_frames_at_the_edges_of_their_size_field(size: int) -> None:
    message = bytes(size)
    frame = packet.store_frame(message)
    assert pyzstd.decompress(frame) == packet.read_frame(frame) == message


@given(st.binary(max_size=2000), st.sampled_from([1, 3, 12, 22]), st.booleans(), st.booleans())
def test_frames_of_other_encoders_are_read(message: bytes, level: int, checksum: bool, sized: bool) -> None:
    option: dict[int, int] = {
        pyzstd.CParameter.compressionLevel: level,
        pyzstd.CParameter.checksumFlag: int(checksum),
        pyzstd.CParameter.contentSizeFlag: int(sized),
    }
    assert packet.read_frame(pyzstd.compress(message, option)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_packet_error(frame: bytes) -> None:
    for candidate in (frame, b"\x28\xb5\x2f\xfd" + frame):
        assert reason_of(packet.read_frame, candidate) in ("", "bad_frame", "message_over_limit")


@given(st.binary(min_size=1, max_size=300), st.data())
def test_an_altered_frame_is_another_message_or_a_packet_error(message: bytes, data: st.DataObject) -> None:
    for frame in (packet.store_frame(message), pyzstd.compress(message)):
        altered = bytearray(frame)
        altered[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
        assert reason_of(packet.read_frame, bytes(altered)) in ("", "bad_frame", "message_over_limit")


def test_a_bomb_is_refused_and_the_largest_message_is_not() -> None:
    assert packet.read_frame(pyzstd.compress(bytes(packet.MAX_MESSAGE_SIZE))) == bytes(
        packet.MAX_MESSAGE_SIZE
    )
    over = pyzstd.compress(bytes(packet.MAX_MESSAGE_SIZE + 1))
    assert refused_as(packet.read_frame, over) == "message_over_limit"
    assert refused_as(packet.read_frame, pyzstd.compress(bytes(1 << 26))) == "message_over_limit"


def test_a_frame_that_wants_a_huge_window_is_refused() -> None:
    option: dict[int, int] = {pyzstd.CParameter.windowLog: 27, pyzstd.CParameter.contentSizeFlag: 0}
    compressor = pyzstd.ZstdCompressor(option)
    frame = compressor.compress(b"x" * 1000) + compressor.flush()
    assert refused_as(packet.read_frame, frame) == "bad_frame"


def test_one_frame_only_and_a_whole_one() -> None:
    for frame in (packet.store_frame(b"message"), pyzstd.compress(b"message" * 50)):
        assert refused_as(packet.read_frame, frame + b"\0") == "bad_frame"
        assert refused_as(packet.read_frame, frame + frame) == "bad_frame"
        for size in range(len(frame)):
            assert refused_as(packet.read_frame, frame[:size]) == "bad_frame"


def test_a_kept_compressor_forgets_each_message() -> None:
    texts = [b"%d " % number * 300 for number in range(20)]
    frames = [bytes(packet.compress_frame(text, 1 << 16)) for text in texts]
    assert frames == [pyzstd.compress(text, 3) for text in texts]


def test_each_thread_has_its_own_compressor() -> None:
    compressors = [packet._kept.compressor]
    thread = threading.Thread(target=lambda: compressors.append(packet._kept.compressor))
    thread.start()
    thread.join()
    assert compressors[0] is packet._kept.compressor is not compressors[1]


def test_what_does_not_fit_is_compressed_harder_before_it_is_refused() -> None:
    text = json.dumps([{"number": number, "square": number * number} for number in range(400)]).encode()
    sizes = [len(pyzstd.compress(text, level)) for level in (3, 22)]
    assert sizes[1] < sizes[0]
    frame = packet.compress_frame(text, sizes[1])
    assert isinstance(frame, packet.CompressedFrame)
    assert packet.read_frame(frame) == text
    with pytest.raises(TooLargeError) as caught:
        packet.compress_frame(text, sizes[1] - 1)
    assert (caught.value.size, caught.value.limit) == (sizes[1], sizes[1] - 1)
    with pytest.raises(TooLargeError):
        packet.compress_frame(bytes(packet.MAX_MESSAGE_SIZE + 1), 1 << 30)


# ----------------------------------------------------------------------------------------------------- bodies


def test_every_size_from_the_smallest_to_2000_is_hit_exactly() -> None:
    frame, control, messages = packet.store_frame(b"x"), b"{}", [b"a", b"b"]
    makers: list[Callable[[int], bytes]] = [
        lambda size: packet.make_payload_body(frame, size),
        lambda size: packet.make_control_body(control, size),
        lambda size: layouts.make_coalesced_body(messages, size),
        lambda size: packet.make_v1_body(frame, size),
    ]
    meanings = [
        packet.Body(2, frame, b""),
        packet.Body(2, b"", control),
        packet.Body(2, b"", b"", messages),
        packet.Body(1, frame, b""),
    ]
    for make, meaning in zip(makers, meanings):
        smallest = next(size for size in range(200) if not _too_large(make, size))
        assert smallest < 60
        for size in range(smallest, 2001):
            body = make(size)
            assert len(body) == size
            read = packet.read_body(body)
            assert read[:3] == meaning[:3]
            assert list(read.messages) == list(meaning.messages)
        assert all(_too_large(make, size) for size in range(smallest))


def _too_large(make: Callable[[int], bytes], size: int) -> bool:
    try:
        make(size)
    except TooLargeError:
        return True
    return False


@given(st.binary(max_size=1400))
def test_a_payload_body_is_what_the_readme_draws(message: bytes) -> None:
    frame = packet.store_frame(message)
    if len(frame) > packet.payload_room(BODY_SIZE):
        with pytest.raises(TooLargeError):
            packet.make_payload_body(frame, BODY_SIZE)
        return
    body = packet.make_payload_body(frame, BODY_SIZE)
    assert len(body) == BODY_SIZE
    content = msgpack.unpackb(body)
    assert {key: content[key] for key in "vpc"} == {"v": 2, "p": frame, "c": b""}
    assert set(content) == {"v", "p", "c", "g"}


def test_a_message_of_the_room_fits_and_one_byte_more_does_not() -> None:
    room = packet.message_room(BODY_SIZE)
    assert len(layouts.make_bodies([bytes(room)], BODY_SIZE, coalesce=False)[0]) == BODY_SIZE
    with pytest.raises(TooLargeError):
        packet.make_payload_body(packet.store_frame(bytes(room + 1)), BODY_SIZE)


MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.integers(0, packet.message_room(BODY_SIZE)).map(bytes),
        st.binary(max_size=200).map(lambda message: packet.CompressedFrame(pyzstd.compress(message))),
    ),
    max_size=30,
)


@given(MESSAGES, st.booleans(), st.sampled_from([BODY_SIZE, 1373 + 20, 1500]))
def test_bodies_carry_all_messages_in_order(messages: list[bytes], coalesce: bool, size: int) -> None:
    arrived: list[bytes] = []
    for body in layouts.make_bodies(messages, size, coalesce):
        assert len(body) == size
        read = packet.read_body(body)
        assert (read.version, read.control) == (2, b"")
        arrived.extend(read.messages or [packet.read_frame(read.payload)])
    expected = [
        packet.read_frame(message) if isinstance(message, packet.CompressedFrame) else message
        for message in messages
    ]
    assert arrived == expected


def test_layouts_of_many_lengths_hold_little_memory() -> None:
    """A peer chooses the lengths of its bodies; what is kept of each must not be as long as they are."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for size in range(20000, 20200):
            assert layouts.read_messages(packet.make_payload_body(packet.store_frame(b""), size)) is not None
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 200 * 2000


def test_only_who_agreed_gets_several_messages_in_a_body() -> None:
    messages = [b"%d" % number for number in range(300)]
    assert len(layouts.make_bodies(messages, BODY_SIZE, coalesce=False)) == 300
    bodies = layouts.make_bodies(messages, BODY_SIZE, coalesce=True)
    assert len(bodies) < 10
    assert max(len(packet.read_body(body).messages) for body in bodies) <= packet.MAX_MESSAGES_PER_BODY
    # The smallest messages there are do not exceed the number that a reader takes.
    for body in layouts.make_bodies([b""] * 1000, BODY_SIZE, coalesce=True):
        assert len(packet.read_body(body).messages) <= packet.MAX_MESSAGES_PER_BODY


@given(st.binary(max_size=300))
def test_any_bytes_are_a_body_or_a_packet_error(body: bytes) -> None:
    for candidate in (body, b"\x84" + body, b"\x92" + body, b"\x84\xa1v\x02\xa1p" + body):
        assert reason_of(packet.read_body, candidate) in ("", "bad_body", "other_version", "mixed_body")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.one_of(JUNK, st.dictionaries(st.sampled_from("vpcgmx"), JUNK), st.lists(JUNK, max_size=3)))
def test_any_msgpack_is_a_body_or_a_packet_error(content: Any) -> None:
    try:
        body = packet.read_body(msgpack.packb(content))
    except PacketError:
        return
    assert type(body.payload) is type(body.control) is bytes
    assert all(type(message) is bytes for message in body.messages)


@given(st.binary(min_size=0, max_size=60), st.data())
def test_an_altered_body_is_another_body_or_a_packet_error(message: bytes, data: st.DataObject) -> None:
    body = bytearray(packet.make_payload_body(packet.store_frame(message), 120))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert reason_of(packet.read_body, bytes(body)) in ("", "bad_body", "other_version", "mixed_body")


def _content_or_reason(body: bytes) -> Any:
    try:
        version, payload, control, messages = packet.read_body(body)
    except PacketError as error:
        return error.reason
    return version, payload, control, list(messages)


def assert_parser_agrees(body: bytes) -> None:
    """What `read_body` says of it does not depend on what it reads without the parser."""
    read = _content_or_reason(body)
    with mock.patch.object(packet, "_usual_control", return_value=b""):
        assert read == _content_or_reason(body)


@given(st.binary(max_size=300), st.integers(0, 30), st.data())
def test_control_is_what_the_parser_reads(control: bytes, room: int, data: st.DataObject) -> None:
    body = bytearray(packet.make_control_body(control, 17 + len(control) + room))
    for _ in range(data.draw(st.integers(0, 2))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for changed in (bytes(body), bytes(body[: data.draw(st.integers(0, len(body)))]), bytes(body) + b"\0"):
        assert_parser_agrees(changed)


@pytest.mark.parametrize("control", [b"{}", b"x" * 16, b"\xff" * 16, b"\xff" * 256])
def test_each_byte_around_control_is_compared(control: bytes) -> None:
    body = packet.make_control_body(control, len(control) + 40)
    end = 13 + len(control)
    for position in (*range(13), *range(end, end + 5)):
        for value in range(256):
            assert_parser_agrees(body[:position] + bytes([value]) + body[position + 1 :])


@pytest.mark.parametrize("kind", [b"\xc4", b"\xc6", b"\xd9", b"\xda"])
def test_control_under_another_header_is_left_to_the_parser(kind: bytes) -> None:
    for size in (1, 16, 255):
        head = packet.BODY_HEAD + b"\xc4\0\xa1c" + kind + size.to_bytes(2, "big") + b"\xff" * size
        for room in (4, 5, 40):
            assert_parser_agrees(packet.padded(head, len(head) + room))


@pytest.mark.parametrize("between", [b"\0", b"\xc0", b"\xa1g", b"\xa1x\xc0", b"\xa1v\x02"])
def test_padding_begins_where_control_ends(between: bytes) -> None:
    head = packet.make_control_body(b"{}", 100)[:15]
    for room in range(len(between) + 5, 60):
        tail = between + packet.padding_head(room)
        assert_parser_agrees((head + tail).ljust(len(head) + room, b"\0"))


def test_control_in_more_than_a_datagram_holds_is_left_to_the_parser() -> None:
    head = packet.make_control_body(b"{}", 100)[:15]
    for header in (b"\xa1g\xc6%b" % (70_000).to_bytes(4, "big"), b"\xa1g\xc5\xff\xff"):
        assert_parser_agrees(head + header + bytes(70_000))


@pytest.mark.parametrize("room", [0, 1, 2, 255, 1000])
def test_our_own_control_needs_no_parser(room: int) -> None:
    control = b'{"type":"bye"}'
    body = packet.make_control_body(control, 17 + len(control) + room)
    with mock.patch.object(msgpack, "unpackb", side_effect=AssertionError):
        assert packet.read_body(body) == packet.Body(2, b"", control)


def test_our_own_layout_and_any_other_order_mean_the_same() -> None:
    frame = packet.store_frame(b"message")
    content = {"g": bytes(9), "c": b"", "p": frame, "v": 2, "later": [1, {"x": None}]}
    assert packet.read_body(msgpack.packb(content)) == packet.Body(2, frame, b"", [])
    assert packet.read_body(msgpack.packb({"v": 2, "c": "{}"})).control == b"{}"
    assert packet.read_body(msgpack.packb({"v": 2})) == packet.Body(2, b"", b"", [])


BAD_BODIES: dict[str, list[Any]] = {
    "bad_body": [
        {"p": b""}, {"v": "2"}, {"v": 2.0}, {"v": True}, {"v": None}, {"v": 2, "p": "text"},
        {"v": 2, "c": 1}, {"v": 2, "g": "text"}, {"v": 2, "m": b""}, {"v": 2, "m": ["text"]},
        {"v": 2, "m": [b""] * 257}, {"v": 2, 1: b""}, {str(key): 0 for key in range(40)},
        [b""], [b"", b"", b""], ["text", b""], [b"", "text"], b"", "", 2, None,
    ],
    "other_version": [{"v": 1, "p": b""}, {"v": 3}, {"v": -1}, {"v": 2**63}],
    "mixed_body": [
        {"v": 2, "p": b"x", "c": b"x"}, {"v": 2, "p": b"x", "m": [b"x"]}, {"v": 2, "c": b"x", "m": [b"x"]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "content"), [(r, c) for r, cs in BAD_BODIES.items() for c in cs])
def test_bodies_that_are_none(reason: str, content: Any) -> None:
    assert refused_as(packet.read_body, msgpack.packb(content)) == reason


def test_duplicates_depth_extensions_and_leftovers_are_no_body() -> None:
    duplicate = b"\x83\xa1v\x02\xa1p\xc4\x01x\xa1p\xc4\x01y"
    deep = b"\x82\xa1v\x02\xa1x" + b"\x91" * 5000 + b"\xc0"
    extension = msgpack.packb({"v": 2, "x": msgpack.ExtType(1, b"data")})
    time = msgpack.packb({"v": 2, "x": msgpack.Timestamp(1)})
    claims_too_much = b"\x82\xa1v\x02\xa1x\xdd\xff\xff\xff\xff"
    leftover = msgpack.packb({"v": 2}) + b"\0"
    for body in (duplicate, deep, extension, time, claims_too_much, leftover, b""):
        assert refused_as(packet.read_body, body) == "bad_body"


# ---------------------------------------------------------------------------------------------------- control

FLAT = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=30),
    ),
    max_size=8,
)


@given(FLAT)
def test_control_survives_the_journey(members: dict[str, Any]) -> None:
    text = control_format.write_json(members)
    if text.count(b"[") + text.count(b"{") <= control_format.MAX_CONTROL_BRACKETS:
        assert control_format.read_json(text) == members


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b'"text"', b"1", b"{", b'{"a":1,"a":1}', b'{"a":NaN}', b'{"a":Infinity}',
        b'{"a":-Infinity}', b'{"a":1}x', b"\xff", b'{"a":"\xff"}', b"\xef\xbb\xbf{}", b"{'a':1}",
        b'{"a":' + b"[" * 20 + b"]" * 20 + b"}", b"[" * 8000, b'{"a":' * 1000, b'{"a":' + b"9" * 9000 + b"}",
        b'{"a":"' + b"x" * 9000 + b'"}',
    ],
)  # fmt: skip
def test_control_that_is_none(text: bytes) -> None:
    assert refused_as(control_format.read_json, text) == "bad_control"


@given(st.binary(max_size=60), st.text(max_size=60))
def test_any_bytes_are_control_or_a_packet_error(junk: bytes, text: str) -> None:
    for candidate in (junk, b"{" + junk + b"}", text.encode("utf-8", "surrogatepass")):
        assert reason_of(control_format.read_json, candidate) in ("", "bad_control")


def test_members_have_exactly_the_type_asked_for() -> None:
    members = {"number": 1, "flag": True, "text": "x", "nothing": None}
    assert control_format.member(members, "number", int) == 1
    assert control_format.member(members, "missing", int) is None
    assert control_format.member(members, "nothing", int) is None
    assert refused_as(control_format.member, members, "flag", int) == "bad_control"
    assert refused_as(control_format.member, members, "number", bool) == "bad_control"
    assert refused_as(control_format.member, members, "text", int) == "bad_control"


# ---------------------------------------------------------------------------------------------- announcements

BASE = {"enc_key": "e", "sign_key": "s", "signature": "x", "port": 1}
HELLO = {"hello": "aGVsbG8=", "proof": "cHJvb2Y="}


def test_announcements_are_the_base_members_a_hello_or_both() -> None:
    both = control_format.read_announcement({**BASE, **HELLO, "later": "member"})
    assert both == control_format.Announcement("e", "s", "x", 1, b"hello", b"proof")
    assert control_format.read_announcement(dict(HELLO)).enc_key is None
    assert control_format.read_announcement(dict(BASE)).hello is None
    assert control_format.read_announcement({**BASE, "port": None}).port is None
    for nothing in ({"hello": None}, {"proof": None}, {"hello": None, "proof": None}):
        assert control_format.read_announcement({**BASE, **nothing}).hello is None


@pytest.mark.parametrize(
    "members",
    [
        {}, {"port": 1}, {"enc_key": "e"}, {"enc_key": "e", "sign_key": "s"}, {**HELLO, "enc_key": "e"},
        {"hello": "aGVsbG8="}, {"proof": "cHJvb2Y="}, {**BASE, "hello": "aGVsbG8="}, {**BASE, "enc_key": 1},
        {**BASE, "proof": "cHJvb2Y="}, {**BASE, "hello": ""}, {**BASE, "proof": ""},
        {**BASE, **HELLO, "hello": None},
        {**BASE, "port": 0}, {**BASE, "port": 65536}, {**BASE, "port": True}, {**BASE, "port": "1"},
        {**BASE, "port": 1.0}, {**HELLO, "hello": "junk!"}, {**HELLO, "hello": "aGVsbG9="},
        {**HELLO, "proof": "\ud800"}, {**HELLO, "hello": None}, {**HELLO, "hello": 5},
    ],
)  # fmt: skip
def test_announcements_that_are_none(members: dict[str, Any]) -> None:
    assert refused_as(control_format.read_announcement, members) == "bad_announcement"


@given(st.dictionaries(st.sampled_from([*BASE, *HELLO]), JUNK))
def test_any_members_are_an_announcement_or_a_packet_error(members: dict[str, Any]) -> None:
    assert reason_of(control_format.read_announcement, {**BASE, **members}) in ("", "bad_announcement")


def test_announcement_bodies_have_exactly_their_size_or_are_refused() -> None:
    members = {"hello": "x" * 264, "proof": "y" * 88}
    body = control_format.make_announcement_body(members, control_format.SHORT_ANNOUNCEMENT_SIZE)
    assert len(body) == 512
    assert control_format.read_json(packet.read_body(body).control) == members
    with pytest.raises(TooLargeError):
        control_format.make_announcement_body(members, 300)
    v1 = control_format.make_v1_announcement_body(members, 512)
    assert len(v1) == 512
    assert control_format.read_json(packet.read_frame(packet.read_body(v1).payload)) == members


# --------------------------------------------------------------------------------------------------------- v1


@given(st.text(max_size=300))
def test_v1_text_survives_the_journey(text: str) -> None:
    message = text.encode("utf-8", "replace")
    assert control_format.read_v1_text(control_format.make_v1_text(message)) == message


def test_what_a_v1_text_means() -> None:
    assert control_format.read_v1_text(b'{"data": "text"}') == b"text"
    assert control_format.read_v1_text(b'{"enc_key": "k"}') == {"enc_key": "k"}
    for text in (b"plain", b'{"other": 1}', b'{"data": 1}', b'{"data": "x", "more": 1}', b"{not json", b""):
        assert control_format.read_v1_text(text) == text


def test_v1_has_text_only() -> None:
    with pytest.raises(UnicodeDecodeError):
        control_format.make_v1_text(b"\xff")
