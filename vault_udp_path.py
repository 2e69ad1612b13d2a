# SPDX-License-Identifier: Apache-2.0
"""How long datagrams to one peer may be: the size that its path carries, found by what is answered.

Nobody is asked: routers' messages about paths are often lost (RFC 2923), and then datagrams of full size
vanish while small ones pass. So a size counts as carried once a ping of that size was answered, and is given
up when pings of it stay silent while smaller ones are answered (RFC 8899, with a table instead of a search;
in the table are the sizes that networks have).

    sure      `size` is used. While it is below the limit, larger sizes are asked for from time to time
    in doubt  `doubted` stays silent. Smaller sizes are asked for; as soon as one is answered it is used for
              whatever fits, and all larger ones are asked for again, several times: loss is no small path

Sizes are bytes of a datagram's body; `now` is seconds of the monotonic clock. No sockets, threads or clocks.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_packet as packet
    from vault_udp_keys import SEALED_OVERHEAD
else:
    from . import vault_udp_packet as packet
    from .vault_udp_keys import SEALED_OVERHEAD

NEVER = float("inf")

PACKET_SIZES = (1500, 1450, 1420, 1400, 1280, 576)
"""Bytes of IP packets: Ethernet, VXLAN, WireGuard, IPsec and mobile ones, the least of IPv6, of IPv4.

PPPoE's 1492 is not there: what is made for 1500 passes, for it has 15 bytes less (`PACKET_OVERHEAD`).
"""
MIN_IPV6_PACKET = 1280
"""Bytes of an IP packet that every path carries (RFC 8200, section 5)."""
PACKET_OVERHEAD = 20 + 8 + SEALED_OVERHEAD + 15
"""Bytes of an IPv4 packet that are not body: IP, UDP, sealing, and msgpack's in reserve."""
CHECK_ROUNDS = 8
"""With 30 % loss each way, all answers of a size that passes are lost once in 200 times."""
CHECK_INTERVAL = 0.25
"""Seconds from one round to the next; a round trip if that is more, but a second at most."""
RAISE_ROUNDS = 3
"""RFC 8899's MAX_PROBES."""
CHECK_PATIENCE = 1.0
"""Seconds after the last round for answers to come; two round trips if that is more."""
DOUBT_LASTS = 20.0
RAISE_AFTER = 10.0
MAX_RAISE_AFTER = 600.0
"""Seconds between attempts to raise the size: RFC 8899's PMTU_RAISE_TIMER."""


def body_size_within(packet_size: int, ip: str) -> int:
    """Bytes of a body so that the IP packet to `ip` has at most `packet_size`."""
    return packet.body_size_for(ip, packet_size - PACKET_OVERHEAD)


@functools.lru_cache(maxsize=64)
def _steps_below(limit: int, is_ipv6: bool) -> tuple[int, ...]:
    ip = "::" if is_ipv6 else "0.0.0.0"
    sizes = [size for size in PACKET_SIZES if size >= MIN_IPV6_PACKET or not is_ipv6]
    return tuple(step for step in (body_size_within(size, ip) for size in sizes) if step < limit)


class Path:
    """The sizes of one path.

    Args:
        ip: where it leads.
        limit: the size to begin with; it is never exceeded.
    """

    __slots__ = (
        "_answered",
        "_limit",
        "_raise_after",
        "_round_trip",
        "_rounds",
        "_steps",
        "doubted",
        "due_at",
        "size",
    )

    def __init__(self, ip: str, limit: int) -> None:
        self.size = limit
        """What datagrams have now."""
        self.doubted = 0
        """The size that stays silent, 0 if none does."""
        self.due_at = NEVER
        self._limit = limit
        self._steps = _steps_below(limit, ":" in ip)
        self._answered = 0
        """The largest size that was answered in this doubt."""
        self._rounds: int | None = None
        """How many rounds are left of those in which larger sizes are asked for; None before the first."""
        self._round_trip = 0.0
        self._raise_after = RAISE_AFTER

    @property
    def largest(self) -> int:
        """What a body may have if it must: the size in doubt, or what all have."""
        return self.doubted or self.size

    @property
    def is_default(self) -> bool:
        """Nothing is known that a new `Path` would not say."""
        return self.size == self._limit and not self.doubted

    def doubt(self, now: float) -> Sequence[int]:
        """Datagrams of our size are not answered: the smaller sizes to ask for beside it, largest first."""
        if not self.doubted:
            self._begin_doubt()
        if self._rounds is None:
            self.due_at = now + DOUBT_LASTS
        return self._steps_between(self._answered, self.doubted)

    def question(self, heard: int, round_trip: float, now: float) -> None:
        """The peer hears nothing of us, though `heard` bytes of its own came through: see about our size.

        The answer has as many bytes, so it shows nothing about larger ones. Until it is known what passes,
        what came through is used: the way back is most likely the same.
        """
        if self.doubted and self._rounds is not None:
            return  # as we do already
        smaller = self._steps_between(0, self.largest)
        if smaller and heard < self.largest:
            self._begin_doubt()
            self.size = next((step for step in smaller if step <= heard), smaller[-1])
            self._rounds, self.due_at, self._round_trip = CHECK_ROUNDS, now, round_trip

    def _begin_doubt(self) -> None:
        self.doubted, self._answered, self._rounds = self.largest, 0, None

    def _steps_between(self, low: int, high: int) -> Sequence[int]:
        return [step for step in self._steps if low < step < high]

    def answered(self, size: int, round_trip: float, now: float) -> None:
        """A ping of that size was answered after so many seconds."""
        if size >= self.largest:
            if self.doubted or size > self.size:
                self._settle(min(size, self._limit), now)
        elif self.doubted and size > self._answered:
            self._answered = self.size = size
            self._round_trip = round_trip
            if self._rounds is None:
                self._rounds, self.due_at = CHECK_ROUNDS, now

    def refused(self, size: int, carried: int | None, now: float) -> None:
        """The system refuses datagrams of that size; `carried` is what the path carries, None if unknown."""
        floor = self._steps[-1] if self._steps else self._limit
        if carried is not None and carried < size:
            lower = max(carried, floor)
        else:
            lower = next((step for step in self._steps if step < size), floor)
        if lower < self.largest:
            self._settle(lower, now)

    def run(self, now: float) -> Sequence[int]:
        """Do what is due: the sizes to ask for, largest first."""
        if not self.doubted:
            self._rounds = (self._rounds or RAISE_ROUNDS) - 1
            if self._rounds:
                self.due_at = now + self._interval
            else:
                self._raise_after = min(2 * self._raise_after, MAX_RAISE_AFTER)
                self.due_at = now + self._raise_after
            return [self._limit, *self._steps_between(self.size, self._limit)]
        if self._rounds:
            self._rounds -= 1
            self.due_at = now + (
                self._interval if self._rounds else max(CHECK_PATIENCE, 2 * self._round_trip)
            )
            return [self.doubted, *self._steps_between(self._answered, self.doubted)]
        self._settle(self._answered or self.doubted, now)
        return ()

    @property
    def _interval(self) -> float:
        return min(max(CHECK_INTERVAL, self._round_trip), 1.0)

    def _settle(self, size: int, now: float) -> None:
        if size < self.largest:
            self._raise_after = RAISE_AFTER
        self.size, self.doubted, self._rounds = size, 0, None
        self.due_at = now + self._raise_after if size < self._limit else NEVER
