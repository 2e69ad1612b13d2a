# SPDX-License-Identifier: Apache-2.0
"""Replay protection, consulted only after a datagram has authenticated. No I/O, no clocks.

Sessions count their datagrams, so a window over the counter decides (``CounterWindow``, RFC 6479). Base peers
send random nonces and wall-clock timestamps, so the nonces seen must be remembered (``NonceCache``).
"""

from __future__ import annotations

import heapq
import struct

WINDOW_SIZE = 8192
"""How far behind the highest counter a datagram may arrive and still be judged."""

_TIMESTAMP = struct.Struct(">d")
_RING_BYTES = WINDOW_SIZE // 8 + 8


class CounterWindow:
    """Which counters of one direction of one pair have been accepted.

    A ring of bits, cleared byte by byte as the highest counter moves ahead. The ring is a little larger than
    the window, so what is cleared in advance always lies outside the window. It is made at the first use: an
    idle session costs nothing.
    """

    __slots__ = ("_ring", "highest")

    def __init__(self) -> None:
        self.highest = -1
        self._ring = bytearray()

    def accept_next(self, count: int) -> None:
        """`accept` the `count` counters that follow the highest, a byte of the ring at a time."""
        if not self._ring:
            self._ring = bytearray(_RING_BYTES)
        ring, counter, end = self._ring, self.highest + 1, self.highest + 1 + count
        while counter < end:
            shift = counter & 7
            bits = min(8 - shift, end - counter)
            kept = ring[(counter >> 3) % _RING_BYTES] if shift else 0
            ring[(counter >> 3) % _RING_BYTES] = kept | ((1 << bits) - 1) << shift
            counter += bits
        self.highest = end - 1

    def accept(self, counter: int) -> bool:
        """Remember `counter`; False if it was accepted before or is too old to tell."""
        highest, ring = self.highest, self._ring
        if counter == highest + 1 and counter & 7:
            # The usual case, and the next bit of the same byte: nothing to clear, nothing to compare.
            self.highest = counter
            ring[(counter >> 3) % _RING_BYTES] |= 1 << (counter & 7)
            return True
        if counter > highest:
            if not ring:
                ring = self._ring = bytearray(_RING_BYTES)
            first, last = (highest >> 3) + 1, counter >> 3
            if last >= first:
                if last - first >= _RING_BYTES:
                    first = last - _RING_BYTES + 1
                for index in range(first, last + 1):
                    ring[index % _RING_BYTES] = 0
            self.highest = counter
        elif counter <= highest - WINDOW_SIZE:
            return False
        index, bit = (counter >> 3) % _RING_BYTES, 1 << (counter & 7)
        if ring[index] & bit:
            return False
        ring[index] |= bit
        return True


class NonceCache:
    """The message nonces accepted from one base peer, at most `size` of them (README, "Replay Protection").

    When the cache is full the smallest timestamp goes first, and nothing stamped at or below one that went is
    accepted any more: forgetting a nonce never opens a gap through which its datagram could come again.
    """

    __slots__ = ("_heap", "_seen", "floor")

    def __init__(self, floor: float = 0.0) -> None:
        self.floor = max(floor, 0.0)
        """Unix time, seconds: only datagrams stamped later than this are accepted, none before 1970."""
        # Timestamp, big-endian, and nonce in one string, the same in both: what comes again comes with the
        # timestamp that it was sealed with, positive doubles sort as their bytes do, and ten thousand strings
        # take a third of the room of as many tuples.
        self._seen: set[bytes] = set()
        self._heap: list[bytes] = []

    def __len__(self) -> int:
        return len(self._seen)

    def is_fresh(self, nonce: bytes, timestamp: float) -> bool:
        """Whether this nonce at this timestamp (Unix, seconds) has not been accepted and may still be."""
        return timestamp > self.floor and _TIMESTAMP.pack(timestamp) + nonce not in self._seen

    def add(self, nonce: bytes, timestamp: float, size: int) -> None:
        """Remember an accepted nonce; keep at most `size`, the smallest timestamps out first."""
        entry = _TIMESTAMP.pack(timestamp) + nonce
        self._seen.add(entry)
        heapq.heappush(self._heap, entry)
        while len(self._heap) > size:
            self._forget_smallest()

    def forget_before(self, timestamp: float) -> None:
        """Forget what is stamped before `timestamp` (Unix, seconds): too old to be accepted anyway."""
        oldest_kept = _TIMESTAMP.pack(max(timestamp, 0.0))
        while self._heap and self._heap[0] < oldest_kept:
            self._forget_smallest()

    def _forget_smallest(self) -> None:
        entry = heapq.heappop(self._heap)
        self._seen.discard(entry)
        self.floor = max(self.floor, _TIMESTAMP.unpack_from(entry)[0])
