# SPDX-License-Identifier: Apache-2.0
"""Where a session speaks to, what it says for itself there, and what the answers tell: clock, delay, size.

    ping    CONFIRM(got=false) with a nonce; whoever answers with it has received it, and tells its time
    pong    CONFIRM(got=true); unasked, it acknowledges data

No sockets, threads or clocks. Times are seconds of the monotonic clock (`now`), addresses are (ip, port).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_packet as packet
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address
    from vault_udp_control import read_json, write_json
    from vault_udp_keys import SEALED_OVERHEAD, LocalKeys, Pair
    from vault_udp_layout import bare_layout
    from vault_udp_path import NEVER, Path
else:
    from . import vault_udp_packet as packet
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address
    from .vault_udp_control import read_json, write_json
    from .vault_udp_keys import SEALED_OVERHEAD, LocalKeys, Pair
    from .vault_udp_layout import bare_layout
    from .vault_udp_path import NEVER, Path

MAX_PINGS_KEPT = 48
MIN_PING_BODY = 128
"""Bytes of a body that has room for a ping."""
PING_VALID = 20.0
VALIDATION_INTERVAL = 0.5
VALIDATIONS_AT_ONCE = 8
"""Of different addresses, before the interval counts: a peer may move again before it has arrived."""


class Ping(NamedTuple):
    """A CONFIRM(got=false) of ours that may still be answered."""

    sent_at: float
    address: Address
    size: int
    """Bytes of its body."""


class Channel:
    """The part of a `Session` that speaks; see there for the arguments."""

    __slots__ = (
        "_acknowledge_at",
        "_ipv4_body_size",
        "_offset_at",
        "_offset_error",
        "_outgoing",
        "_path",
        "_pings",
        "_sent_at",
        "_validated",
        "_validated_at",
        "_validations_until",
        "body_size",
        "clock_offset",
        "endpoint",
        "local",
        "lost",
        "owner",
        "pairs",
        "round_trip",
        "send",
    )

    def __init__(
        self, local: LocalKeys, outgoing: list[tuple[Address, bytes]], endpoint: Address, body_size: int
    ) -> None:
        self.local = local
        self.owner: Any = None
        """What the caller knows this session by; its method `resize` is told how long bodies may be."""
        self.pairs: list[Pair] = []
        self.send: Pair | None = None
        """The pair that our data is sealed under; None until a datagram has opened."""
        self.lost = False
        """Nothing has come from there for so long that the peer is taken to be gone."""
        self._outgoing = outgoing
        self._ipv4_body_size = body_size
        self.endpoint = endpoint
        self.body_size = self._size_limit
        """Bytes of the body of every datagram now."""
        self._path: Path | None = None
        """What is known of the path; None as long as it is taken to carry the limit."""
        self.clock_offset = 0.0
        self.round_trip: float | None = None
        self._offset_error = NEVER
        self._offset_at = -NEVER
        self._pings: dict[bytes, Ping] = {}
        self._acknowledge_at = NEVER
        self._sent_at = NEVER
        self._validated: Address | None = None
        self._validated_at = -NEVER
        """The address that was last asked, and when; again after `VALIDATION_INTERVAL`, others sooner."""
        self._validations_until = -NEVER
        """When the intervals of all that were asked have passed."""

    # ------------------------------------------------------------------------------------ control messages

    def _confirm(
        self,
        pair: Pair,
        got: bool,
        now: float,
        echo: bytes = b"",
        body_size: int | None = None,
        to: Address | None = None,
        silent: bool = False,
    ) -> None:
        address, size = to or self.endpoint, body_size or self.body_size
        members: dict[str, object] = {"type": "confirm", "got": got}
        if echo:
            members["echo"] = crypto.bytes_to_b64_str(echo)
        if not got:
            members["nonce"] = crypto.bytes_to_b64_str(self._new_ping(address, size, now))
        members["time"] = round(self.local.session_time(now) * 1000)
        if silent:
            members["silent"] = True
        self._control(pair, members, now, address, size)

    def _ask(self, pair: Pair, now: float) -> None:
        """Ping the peer under a pair; if it asked for that with a REKEY, this is also the answer."""
        self._confirm(pair, False, now, pair.rekey_nonce)

    def _new_ping(self, address: Address, size: int, now: float) -> bytes:
        """The nonce of a ping that leaves for `address` now in a body of `size` bytes."""
        while self._pings:
            oldest = next(iter(self._pings))
            if len(self._pings) < MAX_PINGS_KEPT and now - self._pings[oldest].sent_at <= PING_VALID:
                break
            del self._pings[oldest]
        nonce = crypto.random_bytes(16)
        self._pings[nonce] = Ping(now, address, size)
        return nonce

    def _control(
        self,
        pair: Pair,
        members: dict[str, object],
        now: float,
        to: Address | None = None,
        body_size: int | None = None,
    ) -> None:
        self._acknowledge_at, self._sent_at = NEVER, now
        body = packet.make_control_body(write_json(members), body_size or self.body_size)
        datagram = pair.seal_one(bare_layout(len(body)), body, self.local.session_time(now))
        self._outgoing.append((to or self.endpoint, datagram))

    def validate(self, address: Address, size: int, now: float, pair: Pair | None = None) -> None:
        """The peer has moved there, or somebody copies what it sent. A ping there tells which.

        It is no longer than the `size` bytes that came from there.
        """
        pair = pair or self.send
        body_size = min(self.body_size, size - SEALED_OVERHEAD)
        earliest = max(self._validations_until, now)
        too_many = earliest - now > (VALIDATIONS_AT_ONCE - 1) * VALIDATION_INTERVAL
        too_soon = address == self._validated and now < self._validated_at + VALIDATION_INTERVAL
        if pair is None or body_size < MIN_PING_BODY or too_many or too_soon:
            return
        self._validated, self._validated_at = address, now
        self._validations_until = earliest + VALIDATION_INTERVAL
        self._confirm(pair, False, now, body_size=body_size, to=address)

    def move_to(self, endpoint: Address) -> None:
        """Send there from now on; nothing is known of the path to another endpoint."""
        if endpoint != self.endpoint:
            self.local.log(logging.DEBUG, "who was at %s is at %s now", self.endpoint, endpoint)
            self.endpoint = endpoint
            self._path = None
            self._resize(self._size_limit, self._size_limit)

    # --------------------------------------------------------------------------------- clocks and delays

    def fresh_timestamps(self, now: float, max_age: float) -> tuple[float, float]:
        """The earliest and the latest timestamp that a datagram of this peer may bear now.

        Args:
            max_age: seconds that it may lie away from the peer's clock.
        """
        peer_time = self.local.session_time(now) + self.clock_offset
        return peer_time - max_age, peer_time + max_age

    def _measure(self, peer_time: float, sent_at: float, now: float) -> None:
        # Cristian's algorithm: the peer read its clock between our two readings, so the offset is known to
        # within half the round trip. A better or a contradicting sample replaces the one that we have.
        self.round_trip = now - sent_at
        error = (now - sent_at) / 2
        offset = peer_time - self.local.session_time((sent_at + now) / 2)
        contradicts = abs(offset - self.clock_offset) > error + self._offset_error
        if error <= self._offset_error or contradicts or now - self._offset_at > 60:
            self.clock_offset, self._offset_error, self._offset_at = offset, error, now

    # ------------------------------------------------------------------------------- the size of datagrams

    @property
    def largest_body_size(self) -> int:
        """Bytes of a body for a message that fits into nothing less: more than of others in doubt."""
        return self.body_size if self._path is None else self._path.largest

    @property
    def _size_limit(self) -> int:
        return packet.body_size_for(self.endpoint[0], self._ipv4_body_size)

    def _known_path(self) -> Path:
        if self._path is None:
            self._path = Path(self.endpoint[0], self._size_limit)
        return self._path

    def _doubt_size(self, pair: Pair, now: float) -> None:
        """What has our size is not answered: ask in smaller ones, too, and let the peer see about its own."""
        if not self.local.finds_sizes:
            return
        path = self._known_path()
        for size in path.doubt(now):
            self._ask_silent(pair, size, now)

    def ask_if_lost(self, now: float) -> None:
        """Ask a lost peer in the smallest size: no other may come through by now, and no more is needed."""
        if self.lost and self.send is not None and self.local.finds_sizes:
            for size in self._known_path().doubt(now)[-1:]:
                self._ask_silent(self.send, size, now)

    def _ask_silent(self, pair: Pair, size: int, now: float) -> None:
        """Ping a peer that we do not hear, and tell it so: it may be that what it sends is too long."""
        self._confirm(pair, False, now, pair.rekey_nonce, size, silent=True)

    def _question_size(self, heard: int, now: float) -> None:
        if self.local.finds_sizes:
            path = self._known_path()
            path.question(heard, self.round_trip or 0.0, now)
            self._follow(path)

    def _follow(self, path: Path) -> None:
        self._resize(path.size, path.largest)
        if path.is_default:
            self._path = None

    def _resize(self, size: int, largest: int) -> None:
        self.body_size = size
        self.owner.resize(largest)

    def refused(self, size: int, carried: int | None, now: float) -> None:
        """The system refuses datagrams to the endpoint with bodies of `size` bytes: too long for the path.

        Args:
            carried: the bytes of a body that the path carries, None if the system does not tell.
        """
        path = self._known_path()
        path.refused(size, carried, now)
        self._follow(path)
        # What is still answered to such pings tells how the path was before.
        self._pings = {nonce: ping for nonce, ping in self._pings.items() if ping.size < size}

    def take_back(self, datagram: bytes, carried: int | None, now: float) -> Sequence[bytes] | None:
        """What the user is to send again, after the system has refused a datagram of ours for its size.

        Control is sent again by ourselves; pings that asked whether such a size passes have their answer.

        Returns:
            The messages that were in it, none if there were none; None if it is not ours any more, or there
            is no smaller size.
        """
        pair = next((pair for pair in self.pairs if pair.has_sealed(datagram)), None)
        if pair is None:
            return None
        size, largest = len(datagram) - SEALED_OVERHEAD, self.largest_body_size
        self.refused(size, carried, now)
        body = packet.read_body(pair.reopen(datagram))
        members = read_json(body.control) if body.control else {}
        is_ping = "nonce" in members
        if self.body_size >= size:
            return None
        if not is_ping and members:
            self._control(pair, members, now)
        elif is_ping and size <= largest:
            self._confirm(pair, False, now)
        return packet.messages_of(body)

    def _run_path(self, path: Path, now: float) -> None:
        for size in path.run(now):
            if self.send is not None:
                self._confirm(self.send, False, now, body_size=size)
        self._follow(path)
