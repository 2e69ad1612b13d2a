# SPDX-License-Identifier: Apache-2.0
"""Replay protection, consulted only after a datagram has authenticated. No I/O, no clocks.

Sessions count their datagrams, so a window over the counter decides (``CounterWindow``, RFC 6479). Base peers
send random nonces and wall-clock timestamps, so the nonces seen must be remembered (``NonceCache``).
"""

from __future__ import annotations

import heapq
import struct
from typing import Collection

WINDOW_SIZE = 8192
"""How far behind the highest counter a datagram may arrive and still be judged."""

MAX_NONCE_CACHES = 32768
"""Pairs of keys for which nonces are remembered; forgetting one early would let its datagrams in again."""
MAX_NONCES = 400_000
"""In all caches together, about 50 MB. One peer may fill it; when it is full, the largest caches give up
first."""

_TIMESTAMP = struct.Struct(">d")
_RING_BYTES = WINDOW_SIZE // 8 + 8


class CounterWindow:
    """Which counters of one direction of one pair have been accepted.

    A ring of bits, cleared byte by byte as the highest counter moves ahead. The ring is a little larger than
    the window, so what is cleared in advance always lies outside the window. It grows with the counters until
    it comes round for the first time: an idle session needs a few bytes of it.
    """

    __slots__ = ("_ring", "highest")

    def __init__(self) -> None:
        self.highest = -1
        self._ring = bytearray()

    def accept_next(self, count: int) -> None:
        """`accept` the `count` counters that follow the highest, a byte of the ring at a time."""
        ring, counter, end = self._ring, self.highest + 1, self.highest + 1 + count
        if len(ring) < _RING_BYTES:
            ring = self._ring_up_to((end - 1) >> 3)
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
            first, last = (highest >> 3) + 1, counter >> 3
            if len(ring) < _RING_BYTES:
                ring = self._ring_up_to(last)
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

    def _ring_up_to(self, last: int) -> bytearray:
        # As long as the ring is not whole, none has come round, so what is there stays where it is.
        size = len(self._ring)
        if last >= size:
            self._ring = self._ring + bytes(min(max(last + 1, 2 * size), _RING_BYTES) - size)
        return self._ring


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
        self.shrink(size)

    def shrink(self, size: int) -> None:
        """Keep at most `size`, the smallest timestamps out first."""
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


class NonceCaches:
    """The nonce cache of every base peer, by the key shared with it; bounded in number and in all."""

    def __init__(self) -> None:
        self._caches: dict[bytes, NonceCache] = {}
        self._total = 0

    def __len__(self) -> int:
        return len(self._caches)

    def sizes(self) -> list[int]:
        """How many nonces each cache holds."""
        return [len(cache) for cache in self._caches.values()]

    def has_room_for(self, shared: bytes) -> bool:
        """Whether nonces of this peer can be remembered."""
        return shared in self._caches or len(self._caches) < MAX_NONCE_CACHES

    def accept(self, shared: bytes, nonce: bytes, timestamp: float, size: int, floor: float) -> bool:
        """Remember a nonce, at most `size` of this peer; False if it may have been accepted before.

        Args:
            floor: Unix time, seconds: nothing up to then is accepted if this is the peer's first.
        """
        cache = self._caches.get(shared)
        if cache is None:
            cache = self._caches[shared] = NonceCache(floor)
        if not cache.is_fresh(nonce, timestamp):
            return False
        before = len(cache)
        cache.add(nonce, timestamp, size)
        self._total += len(cache) - before
        if self._total > MAX_NONCES:
            self._level(size)
        return True

    def _level(self, size: int) -> None:
        # A tenth below the limit, so that this is done once in many nonces.
        while self._total > 0.9 * MAX_NONCES:
            size = size * 3 // 4
            for cache in self._caches.values():
                cache.shrink(size)
            self._total = sum(self.sizes())

    def forget_before(self, timestamp: float, in_use: Collection[bytes]) -> None:
        """Forget what is stamped before `timestamp`, and empty caches but for those of the keys `in_use`."""
        for shared, cache in list(self._caches.items()):
            cache.forget_before(timestamp)
            if not len(cache) and shared not in in_use:
                del self._caches[shared]
        self._total = sum(self.sizes())

    def clear(self) -> None:
        """Forget everything."""
        self._caches.clear()
        self._total = 0
