# SPDX-License-Identifier: Apache-2.0
"""The peer table: who is known under which names and identities, and how many strangers may be.

Added peers (the user named them) are never evicted. Strangers (they came by themselves) are pending until a
datagram of theirs has opened, and confirmed afterwards; both tables are bounded, least recently heard out
first.

A peer that was added by the name of its host has places: the addresses that the name stands for. It is looked
for at all of them until a valid hello or announcement has come from one; then it has settled there, and the
others are nobody's.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Callable, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_packet as packet
    from vault_udp_address import Address, is_host
    from vault_udp_path import NEVER
    from vault_udp_rate_limit import Bucket
    from vault_udp_session import Session
else:
    from . import vault_udp_packet as packet
    from .vault_udp_address import Address, is_host
    from .vault_udp_path import NEVER
    from .vault_udp_rate_limit import Bucket
    from .vault_udp_session import Session


MAX_PENDING_STRANGERS = 1024
MAX_CONFIRMED_STRANGERS = 16384


class Host:
    """What there is to know of a peer because its name is that of a host."""

    __slots__ = ("asked", "failures", "held_until", "look_up_at", "place", "places", "reach")

    def __init__(self) -> None:
        self.places: list[Address] = []
        """What the name stands for, the preferred address first."""
        self.place: Address | None = None
        """The one where the peer has settled."""
        self.reach = 0
        """So many places are announced to: each gets a head start on the next."""
        self.look_up_at = NEVER
        self.held_until = -NEVER
        """Until then nothing is announced: the answer may be that the host is elsewhere now."""
        self.asked = False
        """The name is being looked up."""
        self.failures = 0
        """In a row."""


class Peer:
    """One entry of the table.

    `names` are the addresses that the user knows it by, none once it has left the table; `name`, the first of
    them, is the one that callbacks and statistics show.
    """

    __slots__ = (
        "added",
        "allowance",
        "announce_at",
        "announced_since",
        "announcements",
        "base_ready",
        "counters",
        "host",
        "identity",
        "kept",
        "lane",
        "laned",
        "met_at",
        "name",
        "names",
        "probe_at",
        "probe_pings",
        "probe_started",
        "proven",
        "queue",
        "received",
        "rejected",
        "remembered",
        "room",
        "scheduled",
        "sent",
        "session",
        "supplied",
        "told_ready",
    )

    def __init__(self, name: Address, session: Session) -> None:
        self.name = name
        self.names = [name]
        self.host = Host() if is_host(name[0]) else None
        """None if `name` has an IP address."""
        self.session = session
        self.added = False
        self.met_at: Address | None = None
        """The name that it had as a stranger, if the user has added it under others since."""
        self.kept = False
        """Whether it was added, or the application has given keys for it: it is never evicted."""
        self.supplied: bytes | None = None
        """The only identity accepted here: given with the address, or known by the file of known peers."""
        self.remembered: tuple[Address, ...] = ()
        """Names under which the identity was told to be remembered."""
        self.identity = b""
        """The identity that this address is pinned to, empty if none."""
        self.proven = False
        """Whether something has opened under its keys, or the application has given these: a hello alone may
        be shown by somebody who has only passed it on."""
        self.queue: list[tuple[float, bytes]] = []
        """(when it was queued, message): what waits for keys."""
        self.room = packet.message_room(session.body_size)
        """Bytes of a message that fits uncompressed."""
        self.lane: list[bytes] = []
        """Messages on their way to the send thread; who appends without the lock looks at `laned` then."""
        self.laned = False
        """The send thread has still to look at `lane` and `queue`."""
        self.sent = 0
        self.received = 0
        """Messages, as in the counters of the whole node."""
        self.allowance: Bucket | None = None
        """What the rate limit leaves of it, from the first message on."""
        self.counters: dict[str, int] | None = None
        """What was dropped of what it sent or was to get, by reason; made with the first of them."""
        self.told_ready = False
        """Users have been told that it is ready, and not yet that it is lost."""
        self.base_ready = False
        self.announce_at = NEVER
        self.announced_since = -NEVER
        self.announcements = 0
        self.probe_started = -NEVER
        self.probe_at = NEVER
        """When the next step of a running probe is due."""
        self.probe_pings = 0
        self.rejected: tuple[bytes, ...] = ()
        """Identities refused here, so that each is told once per episode."""
        self.scheduled = NEVER
        """The deadline under which the entry stands in the timer queue."""

    def resize(self, body_size: int) -> None:
        """Bodies towards this peer may have so many bytes from now on."""
        room = packet.message_room(body_size)
        if room != self.room:
            what = "%s: a datagram takes %d bytes of messages now, not %d"
            self.session.local.log(logging.INFO, what, self.name, room, self.room)
            self.room = room

    @property
    def has_messages(self) -> bool:
        """Something waits here to be sent."""
        return bool(self.queue or self.lane)

    def hand_over_to(self, other: Peer) -> None:
        """What waits here is for another entry."""
        other.queue += self.queue
        self.queue.clear()
        count = len(self.lane)  # callers without the lock may append meanwhile
        other.lane += self.lane[:count]
        del self.lane[:count]

    def count(self, reason: str, count: int) -> None:
        """Note what was dropped."""
        if self.counters is None:
            self.counters = {}
        self.counters[reason] = self.counters.get(reason, 0) + count

    @property
    def proven_identity(self) -> bytes:
        """The identity that users see: empty until the peer has shown that it holds its keys."""
        return self.identity if self.proven else b""

    @property
    def expected_identity(self) -> bytes:
        """Whom we speak to here: who was supplied, or whose session key we hold; empty for whoever it is."""
        return self.supplied or (self.session.sign if self.session.enc else b"")

    @property
    def listens_at(self) -> Address:
        """The address under which base mode knows the peer; its name, as long as its host is not found."""
        return self.host.place or self.name if self.host is not None else self.name


class PeerTable:
    """Peers by name and by identity.

    Args:
        on_forget: called with a peer that leaves the table, while its names still lead to it.
        on_release: called when a peer's identity is taken from it.
    """

    def __init__(self, on_forget: Callable[[Peer], None], on_release: Callable[[], None]) -> None:
        self.by_name: dict[Address, Peer] = {}
        """What users see."""
        self.by_place: dict[Address, list[Peer]] = {}
        """Whose hosts' names stand for an address, those that said so first before others."""
        self.added: dict[Peer, None] = {}
        """Those that the user has added, in that order."""
        self.evicted = 0
        self._on_forget = on_forget
        self._on_release = on_release
        self._by_identity: dict[bytes, list[Peer]] = {}
        self._pending: OrderedDict[Address, None] = OrderedDict()
        self._confirmed: OrderedDict[Address, None] = OrderedDict()

    def all(self) -> list[Peer]:
        """Every peer once, in the order in which they came."""
        return list(dict.fromkeys(self.by_name.values()))

    def added_names(self) -> list[Address]:
        """The names that the user added, in that order."""
        return [name for name in self.by_name if self.is_added(name)]

    def is_added(self, name: Address) -> bool:
        """Whether the user added a peer under that name."""
        peer = self.by_name.get(name)
        return peer is not None and peer.added and name != peer.met_at

    def settled_at(self, address: Address) -> Peer | None:
        """The peer of that name, or that has settled there: whom users mean by the address."""
        peer = self.by_name.get(address)
        if peer is None and address in self.by_place:
            peer = next((peer for peer in self.by_place[address] if peer.listens_at == address), None)
        return peer

    def at(self, source: Address) -> Peer | None:
        """Whose what comes from `source` is: as `settled_at`, or a peer that is looked for there."""
        peer = self.settled_at(source)
        if peer is None and source in self.by_place:
            peer = next((peer for peer in self.by_place[source] if peer.listens_at == peer.name), None)
        return peer

    def set_places(self, peer: Peer, places: Sequence[Address]) -> None:
        """The host's name stands for these addresses now; where the peer has settled stays one of them."""
        host = peer.host
        assert host is not None
        if host.place is not None and host.place not in places:
            places = [*places, host.place]
        for place in host.places:
            if place not in places:
                self.by_place[place].remove(peer)
                if not self.by_place[place]:
                    del self.by_place[place]
        for place in places:
            if place not in host.places:
                self.by_place.setdefault(place, []).append(peer)
        host.places = list(places)

    @property
    def strangers(self) -> int:
        """How many peers are there that nobody added."""
        return len(self._pending) + len(self._confirmed)

    def insert(self, peer: Peer) -> Peer:
        """Put a new peer into the table, as a pending stranger."""
        self.by_name[peer.name] = peer
        self.heard(peer)
        return peer

    def mark_added(self, peer: Peer) -> None:
        """The user has named this peer: it is no stranger any more."""
        peer.added = True
        self.added[peer] = None
        self.keep(peer)

    def keep(self, peer: Peer) -> None:
        """The application has named this peer, or given keys for it: no stranger takes its place."""
        peer.kept = True
        self._pending.pop(peer.name, None)
        self._confirmed.pop(peer.name, None)

    def heard(self, peer: Peer, *, confirmed: bool = False) -> None:
        """A stranger was heard, `confirmed` by a datagram that opened: it is the last to be evicted now."""
        name = peer.name
        if peer.kept or not peer.names:
            return
        if name in self._confirmed:
            self._confirmed.move_to_end(name)
            return
        table, limit = self._pending, MAX_PENDING_STRANGERS
        if confirmed:
            table, limit = self._confirmed, MAX_CONFIRMED_STRANGERS
            self._pending.pop(name, None)
        table[name] = None
        table.move_to_end(name)
        if len(table) > limit:
            self.evicted += 1
            self.forget(self.by_name[next(iter(table))])

    def forget(self, peer: Peer) -> None:
        """Take a peer out of the table under all its names."""
        self._on_forget(peer)
        self.set_identity(peer, b"")
        self._leave_places(peer)
        self.added.pop(peer, None)
        for name in peer.names:
            del self.by_name[name]
            self._pending.pop(name, None)
            self._confirmed.pop(name, None)
        peer.names = []

    def remove_name(self, peer: Peer, name: Address) -> None:
        """Take away one of several names."""
        peer.names.remove(name)
        del self.by_name[name]
        self._names_changed(peer)

    def _names_changed(self, peer: Peer) -> None:
        listened_at, peer.name = peer.listens_at, peer.names[0]
        if not is_host(peer.name[0]):
            self._leave_places(peer)
            peer.host = None
        elif peer.host is None:
            peer.host = Host()
            peer.host.place = listened_at
            self.set_places(peer, ())

    def _leave_places(self, peer: Peer) -> None:
        if peer.host is not None:
            peer.host.place = None
            self.set_places(peer, ())

    def add_name(self, peer: Peer, name: Address) -> None:
        """The user calls the peer this, too."""
        peer.names.append(name)
        self.by_name[name] = peer

    def rename(self, peer: Peer, name: Address) -> None:
        """A stranger is known by another address from now on, which is nobody's yet."""
        is_confirmed = peer.name in self._confirmed
        for table in (self.by_name, self._pending, self._confirmed):
            table.pop(peer.name, None)
        peer.name, peer.names = name, [name]
        self.by_name[name] = peer
        self.heard(peer, confirmed=is_confirmed)

    def merge(self, named: Peer, known: Peer) -> None:
        """Two entries are one process: `known` stays and takes names and queue of `named`, an added peer.

        The user's own names come before one that a stranger's entry had, or take its place if they are a
        host's.
        """
        places = named.host.places if named.host is not None else []
        names = list(named.names)
        named.hand_over_to(known)
        self.forget(named)
        was_added = known.added
        self.mark_added(known)
        if was_added:
            known.names = known.names + names
        elif named.host is None:
            known.met_at = known.name
            known.names = names + known.names
        else:
            del self.by_name[known.name]
            known.names = names
        self._names_changed(known)
        if known.host is not None and not was_added:
            self.set_places(known, places)
        known.supplied = known.supplied or named.supplied
        for name in names:
            self.by_name[name] = known

    def with_identity(self, sign: bytes) -> tuple[Peer, ...]:
        """The peers that are pinned to this identity."""
        return tuple(self._by_identity.get(sign, ()))

    def set_identity(self, peer: Peer, sign: bytes) -> None:
        """Pin a peer to an identity, or to none."""
        if peer.identity == sign:
            return
        peer.proven = False
        if peer.identity:
            self._on_release()
            holders = self._by_identity[peer.identity]
            holders.remove(peer)
            if not holders:
                del self._by_identity[peer.identity]
        peer.identity = sign
        if sign:
            self._by_identity.setdefault(sign, []).append(peer)
