# SPDX-License-Identifier: Apache-2.0
"""Datagrams as the kernel takes and gives many at once: end to end in one string, cut only when looked at."""

from __future__ import annotations

from typing import Sequence, overload


class Segments(Sequence[bytes]):
    """Datagrams of `size` bytes each that lie end to end in `whole`; the last one may be shorter.

    Cutting a datagram out copies it, which costs a tenth of what opening it does; whoever works on many in a
    row reads them where they are. Some that follow each other are `Segments` again, of the same string.
    """

    __slots__ = ("size", "whole")

    def __init__(self, whole: bytes | memoryview, size: int) -> None:
        self.whole = whole
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.whole) // self.size)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            positions = range(*index.indices(len(self)))
            if positions.step != 1:
                return [self[position] for position in positions]
            part = memoryview(self.whole)[positions.start * self.size : positions.stop * self.size]
            return Segments(part, self.size)
        start = index * self.size
        if not 0 <= start < len(self.whole):
            start = range(len(self))[index] * self.size
        return bytes(self.whole[start : start + self.size])

    def lengths(self) -> list[int]:
        """The length of each of them."""
        last = len(self.whole) % self.size
        return [self.size] * (len(self.whole) // self.size) + ([last] if last else [])
