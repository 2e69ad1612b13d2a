# SPDX-License-Identifier: Apache-2.0
"""Datagrams as the kernel hands over many at once: end to end in one string, cut only when looked at."""

from __future__ import annotations

from typing import Sequence, overload


class Segments(Sequence[bytes]):
    """Datagrams of `size` bytes each that lie end to end in `whole`; the last one may be shorter.

    Cutting a datagram out copies it, which costs a tenth of what opening it does; whoever works on many in a
    row reads them where they are.
    """

    __slots__ = ("size", "whole")

    def __init__(self, whole: bytes, size: int) -> None:
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
            return [self[position] for position in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self.size
        return self.whole[start : start + self.size]
