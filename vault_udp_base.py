# SPDX-License-Identifier: Apache-2.0
"""Base mode, towards peers of the old releases: their announcements, their ports, their versions.

Deployed peers listen on one port and send from another, which they do not tell; they look our key up by the
address that our datagrams come from; they announce in clear only while they do not hold our key. What follows
from that is all here; keys, sealing and replay protection are `VaultAsymmetricEncryption`'s.

No sockets, threads or clocks. Times are seconds of the monotonic clock (`now`), addresses (ip, port); a link
is found under the address where its peer listens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING or not __package__:
    import vault_udp_packet as packet
    from vault_udp_address import Address
    from vault_udp_control import (
        Announcement,
        make_announcement_body,
        make_v1_announcement_body,
        make_v1_text,
        read_announcement,
        read_json,
        read_v1_text,
    )
    from vault_udp_encryption import KeyNotFoundError, VaultAsymmetricEncryption
    from vault_udp_keys import SEALED_OVERHEAD
    from vault_udp_packet import PacketError, TooLargeError
    from vault_udp_path import NEVER, Path
    from vault_udp_rate_limit import RateLimiter
else:
    from . import vault_udp_packet as packet
    from .vault_udp_address import Address
    from .vault_udp_control import (
        Announcement,
        make_announcement_body,
        make_v1_announcement_body,
        make_v1_text,
        read_announcement,
        read_json,
        read_v1_text,
    )
    from .vault_udp_encryption import KeyNotFoundError, VaultAsymmetricEncryption
    from .vault_udp_keys import SEALED_OVERHEAD
    from .vault_udp_packet import PacketError, TooLargeError
    from .vault_udp_path import NEVER, Path
    from .vault_udp_rate_limit import RateLimiter

PIN_AFTER_SILENCE = 45.0
"""Seconds without anything opened after which another identity may take a base peer's address."""
REFRESH_INTERVAL = 20.0
"""Seconds between sealed announcements at most: deployed peers forget a key after 60."""
READY_AFTER = 0.5
"""Seconds after our answer when a peer that says nothing back is taken to hold our key."""
STAMP_LAG = 5.0
"""Seconds by which what we seal is stamped early, for clocks that are behind ours."""
MAX_TRIALS = 32
MAX_LINKS_OF_SOURCE = 4
"""Each costs an attempt to open for what comes from there, but no trial of those that strangers can spend."""
TRIALS_PER_SECOND = 64


class BaseLink:
    """One base peer: where it listens, the version it speaks, when it was heard."""

    __slots__ = (
        "added",
        "address",
        "body_size",
        "credit",
        "opened",
        "opened_at",
        "ready_at",
        "refresh_at",
        "shown",
        "source",
        "version",
    )

    def __init__(self, address: Address, version: int, body_size: int, now: float) -> None:
        self.address = address
        self.body_size = body_size
        self.added = False
        """The user named this peer: it is tried before strangers."""
        self.credit = 0
        """Bytes that came sealed, less those sent unasked, for a peer that nobody named: see `affords`."""
        self.version = version
        """What we speak to it."""
        self.shown = 0
        """The highest version that it has shown; nothing below is accepted."""
        self.source: Address | None = None
        """The address its datagrams come from, once one has opened."""
        self.opened = False
        self.opened_at = now
        """When something last opened, or when the link was made."""
        self.ready_at = now + READY_AFTER
        self.refresh_at = NEVER

    def mark_added(self, now: float) -> None:
        """The user has named this peer: what it is sent is not limited to what came from it any more."""
        if not self.added:
            self.added, self.refresh_at = True, max(now, self.ready_at)

    def affords(self, size: int) -> bool:
        """Take `size` bytes out of the credit: no more is sent to a stranger unasked than came from there."""
        if self.added:
            return True
        if self.credit < size:
            return False
        self.credit -= size
        return True

    def live(self, now: float) -> bool:
        """Whether the pin holds: something opened in the last 45 s."""
        return now - self.opened_at < PIN_AFTER_SILENCE


class BaseMode:
    """All base peers, found by the address where they listen or from which their datagrams come."""

    def __init__(self, encryption: VaultAsymmetricEncryption, body_size: int) -> None:
        self.encryption = encryption
        self._body_size = body_size
        self.links: dict[Address, BaseLink] = {}
        # By source: who has sent from there, the last one first. Sources are forged, or change hands.
        self._by_source: dict[Address, list[BaseLink]] = {}
        # By IP: links whose source port is not known yet, in the order they came.
        self._unlearned: dict[str, dict[Address, BaseLink]] = {}
        self._trials = RateLimiter(TRIALS_PER_SECOND)

    # ---------------------------------------------------------------------------------------- the links

    def add(self, address: Address, version: int, now: float) -> BaseLink:
        """Make the link to the peer that listens at `address`; its keys are with `encryption` already."""
        self.remove(address, keep_keys=True)
        link = BaseLink(address, version, packet.body_size_for(address[0], self._body_size), now)
        self.links[address] = link
        self._unlearned.setdefault(address[0], {})[address] = link
        return link

    def remove(self, address: Address, *, keep_keys: bool = False) -> None:
        """Forget a link, and its keys unless told otherwise; nothing happens if there is none."""
        link = self.links.pop(address, None)
        if link is None:
            return
        self._leave_source(link)
        unlearned = self._unlearned.get(address[0], {})
        unlearned.pop(address, None)
        if not unlearned:
            self._unlearned.pop(address[0], None)
        if not keep_keys:
            self.encryption.remove_peer_keys(address)

    def may_be_from(self, source: Address) -> bool:
        """Whether a sealed datagram from `source` could be a base peer's."""
        return source in self._by_source or source[0] in self._unlearned

    # -------------------------------------------------------------------------------------------- in

    def open(self, datagram: bytes, source: Address, now: float) -> tuple[BaseLink, bytes] | None:
        """Open a sealed datagram of the base peer at `source`: its link and the body; None: it is nobody's.

        A source port that no link has learned is tried against those of that IP that have learned none; the
        one under whose key it opens has sent it.

        Raises:
            PacketError: as `VaultAsymmetricEncryption.open`; it did open, but is not to be accepted.
        """
        for link in self._by_source.get(source, ()):
            body = self._try(link, datagram, now)
            if body is not None:
                return link, body
        # The likeliest first: who listens on that very port, who was added, who came last.
        candidates = list(self._unlearned.get(source[0], {}).values())[::-1]
        candidates.sort(key=lambda candidate: (candidate.address != source, not candidate.added))
        for candidate in candidates[:MAX_TRIALS]:
            if not self._trials.allow(source[0], 1, now):
                raise PacketError("trial_budget")
            body = self._try(candidate, datagram, now)
            if body is not None:
                self._learn(candidate, source)
                return candidate, body
        return None

    def _try(self, link: BaseLink, datagram: bytes, now: float) -> bytes | None:
        """The body if the datagram opens under the link's key, None if it does not.

        Raises:
            PacketError: it opens, but is not to be accepted.
        """
        try:
            body = self.encryption.open(datagram, link.address)
        except PacketError as error:
            if error.reason in ("forged", "no_key"):
                return None
            raise
        link.opened, link.opened_at = True, now
        link.ready_at = min(link.ready_at, now)
        link.credit += len(datagram)
        return body

    def _learn(self, link: BaseLink, source: Address) -> None:
        self._leave_source(link)
        link.source = source
        links = self._by_source.setdefault(source, [])
        links.insert(0, link)
        if len(links) > MAX_LINKS_OF_SOURCE:
            other = links.pop()
            other.source = None
            self.unlearn(other)
        unlearned = self._unlearned[source[0]]
        del unlearned[link.address]
        if not unlearned:
            del self._unlearned[source[0]]

    def _leave_source(self, link: BaseLink) -> None:
        if link.source is not None:
            links = self._by_source[link.source]
            links.remove(link)
            if not links:
                del self._by_source[link.source]
            link.source = None

    def unlearn(self, link: BaseLink) -> None:
        """The peer may have begun to send from another port: look for it again, and still at the old one."""
        self._unlearned.setdefault(link.address[0], {})[link.address] = link

    @staticmethod
    def read(body_bytes: bytes) -> tuple[int, bytes | Announcement | None]:
        """The version of an opened body, and what it says: a message, an announcement, or None for control
        that is not ours to know.

        Raises:
            PacketError: not a body.
        """
        body = packet.read_body(body_bytes)
        if body.version == 1:
            text = read_v1_text(packet.read_frame(body.payload))
            return 1, text if isinstance(text, bytes) else read_announcement(text)
        if body.messages:
            raise PacketError("mixed_body")
        if not body.control:
            return body.version, packet.read_frame(body.payload)
        members = read_json(body.control)
        return body.version, read_announcement(members) if "enc_key" in members else None

    # ------------------------------------------------------------------------------------------- out

    def clear_announcement(
        self, version: int, port: int, size: int, *, answers: bool = False
    ) -> bytes | None:
        """Our base announcement in clear, of exactly `size` bytes; None if it does not fit.

        Args:
            answers: whether it is the answer to one, and is not to be answered in turn.
        """
        members: dict[str, object] = {**self.encryption.base_members(port)}
        if answers:
            members["answers"] = True
        make = make_v1_announcement_body if version == 1 else make_announcement_body
        try:
            return make(members, size)
        except TooLargeError:
            return None

    def sealed_announcement(self, link: BaseLink, port: int, now: float) -> bytes:
        """Our announcement under the Box, which keeps a peer that holds our key from forgetting it."""
        link.refresh_at = now + min(self.encryption.lifetime / 2, REFRESH_INTERVAL)
        body = self.clear_announcement(link.version, port, link.body_size)
        assert body is not None
        return self._seal(body, link)

    def seal_message(self, link: BaseLink, message: bytes) -> bytes:
        """The sealed datagram that carries one message (raw bytes, or a `CompressedFrame`) in its version.

        Raises:
            PacketError: ``text_only_peer`` (v1 carries no binary data), ``too_large_for_peer``, ``no_key``
                (the application took it away).
        """
        try:
            body = (
                _v1_body(message, link.body_size) if link.version == 1 else _v2_body(message, link.body_size)
            )
        except TooLargeError as error:
            raise PacketError("too_large_for_peer") from error
        return self._seal(body, link)

    def take_back(
        self, link: BaseLink, datagram: bytes, carried: int | None, now: float
    ) -> list[bytes] | None:
        """What is to be sent again, after the system has refused a datagram of ours for its size.

        Such peers answer no pings: nothing but this lowers the size of a link, and nothing raises it.

        Args:
            carried: the bytes of a body that the path carries, None if the system does not tell.

        Returns:
            The message that was in it, none if it was an announcement; None if it is not ours any more, or
            there is no smaller size.
        """
        size, body_bytes = len(datagram) - SEALED_OVERHEAD, self.encryption.reopen(datagram, link.address)
        if body_bytes is None:
            return None
        path = Path(link.address[0], link.body_size)
        path.refused(size, carried, now)
        link.body_size = path.size
        if size <= link.body_size:
            return None
        body = packet.read_body(body_bytes)
        if body.control:
            link.refresh_at = now
            return []
        message = packet.read_frame(body.payload)
        content = read_v1_text(message) if body.version == 1 else message
        if isinstance(content, bytes):
            return [content]
        link.refresh_at = now
        return []

    def _seal(self, body: bytes, link: BaseLink) -> bytes:
        # Deployed peers refuse what is stamped ahead of their clock.
        try:
            return self.encryption.encrypt(body, link.address, lag=STAMP_LAG)
        except KeyNotFoundError as error:
            raise PacketError("no_key") from error


def _v2_body(message: bytes, body_size: int) -> bytes:
    message = packet.fit(message, body_size)
    frame = message if isinstance(message, packet.CompressedFrame) else packet.store_frame(message)
    return packet.make_payload_body(frame, body_size)


def _v1_body(message: bytes, body_size: int) -> bytes:
    if isinstance(message, packet.CompressedFrame):
        message = packet.read_frame(message)
    try:
        text = make_v1_text(message)
    except UnicodeDecodeError as error:
        raise PacketError("text_only_peer") from error
    room = body_size - packet.V1_BODY_OVERHEAD
    fits = len(text) + packet.STORED_OVERHEAD <= room
    frame = packet.store_frame(text) if fits else packet.compress_frame(text, room)
    return packet.make_v1_body(frame, body_size)
