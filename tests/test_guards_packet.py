# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: bodies and frames."""

from __future__ import annotations

import random

import msgpack
import pytest
import pyzstd
from test_packet import reason_of

import vault_udp_packet as packet
from vault_udp_packet import TooLargeError


@pytest.mark.parametrize(
    ("sizes", "limit", "tried"),
    [
        ({12: 100, 22: 120}, 311, []),
        ({12: 100, 22: 120}, 310, []),
        ({12: 100, 22: 120}, 309, [12]),
        ({12: 100, 22: 120}, 100, [12]),
        ({12: 120, 22: 100}, 100, [12, 22]),
    ],
)
def test_nothing_is_compressed_harder_than_it_must(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[int, int], limit: int, tried: list[int]
) -> None:
    levels: list[int] = []

    def compress(message: bytes, level: int) -> bytes:
        levels.append(level)
        return bytes(sizes[level])

    monkeypatch.setattr(pyzstd, "compress", compress)
    message = bytes(random.Random(1).choices(range(256), k=300))
    assert len(packet.compress_frame(message, limit)) == (sizes[tried[-1]] if tried else 310)
    assert levels == tried


def test_the_best_that_could_be_done_is_told_if_the_hardest_was_not_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pyzstd, "compress", lambda message, level: bytes({12: 100, 22: 120}[level]))
    with pytest.raises(TooLargeError) as caught:
        packet.compress_frame(bytes(random.Random(1).choices(range(256), k=300)), 99)
    assert (caught.value.size, caught.value.limit) == (100, 99)


@pytest.mark.parametrize(("window", "reason"), [(21, ""), (22, "bad_frame")])
def test_a_frame_may_want_a_window_of_two_megabytes(window: int, reason: str) -> None:
    option: dict[int, int] = {pyzstd.CParameter.windowLog: window, pyzstd.CParameter.contentSizeFlag: 0}
    compressor = pyzstd.ZstdCompressor(option)
    frame = compressor.compress(b"x" * 1000) + compressor.flush()
    assert reason_of(packet.read_frame, frame) == reason


def test_a_frame_for_which_memory_is_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        def __init__(self, **_: object) -> None:
            pass

        def decompress(self, frame: bytes, limit: int) -> bytes:
            raise MemoryError

    monkeypatch.setattr(pyzstd, "ZstdDecompressor", Short)
    assert reason_of(packet.read_frame, pyzstd.compress(b"x" * 1000)) == "bad_frame"


@pytest.mark.parametrize("size", [packet.payload_room(1393) + 1, 70_000])
def test_a_frame_that_is_too_long_for_a_body_is_told_with_its_size(size: int) -> None:
    with pytest.raises(TooLargeError) as caught:
        packet.make_payload_body(bytes(size), 1393)
    assert (caught.value.size, caught.value.limit) == (size, packet.payload_room(1393))


def compressed(text: bytes, level: int) -> packet.CompressedFrame:
    return packet.CompressedFrame(pyzstd.compress(text, level))


SQUARES = b" ".join(b"%d" % (number * number) for number in range(450))


def test_a_frame_that_just_fits_is_left_as_it_is() -> None:
    frame = compressed(SQUARES, 3)
    body_size = len(frame) + packet.BODY_OVERHEAD
    assert packet.fit(frame, body_size) is frame


def test_a_frame_that_does_not_fit_any_more_is_compressed_harder_or_refused() -> None:
    frame = compressed(SQUARES, 1)
    room = len(frame) - 1
    harder = packet.fit(frame, room + packet.BODY_OVERHEAD)
    assert len(harder) <= room
    assert packet.read_frame(harder) == SQUARES
    with pytest.raises(TooLargeError):
        packet.fit(frame, 500)


@pytest.mark.parametrize(("count", "reason"), [(14, ""), (15, "bad_body"), (200, "bad_body")])
@pytest.mark.parametrize("container", [{}, []])
def test_containers_of_both_kinds_are_counted(count: int, reason: str, container: object) -> None:
    # The body itself, the list, and what is in it.
    body = msgpack.packb({"v": 2, "p": b"x", "later": [container] * count})
    assert reason_of(packet.read_body, body) == reason


@pytest.mark.parametrize(
    "error",
    [ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException],
)
def test_whatever_the_parser_raises_the_body_is_refused(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(msgpack, "unpackb", fail)
    assert reason_of(packet.read_body, b"\x81\xa1v\x02") == "bad_body"
