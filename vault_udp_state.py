# SPDX-License-Identifier: Apache-2.0
"""What the parts of a node share: peer table, pins, queues, timers, and what has been decided.

`Node` decides about datagrams and data, `Introductions` about announcements, `Hosts` about names, `Upkeep`
about time; all work on one `NodeState`. What is to be sent, delivered, told or looked up is left in
`outgoing`, `deliveries`, `between`, `events`, `flushable` and `lookups`, which the caller of the node takes.
Every datagram or message that goes nowhere is counted in `counters` by its reason.

No sockets, threads or clocks; not thread-safe. `now` is seconds of the monotonic clock.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_encryption as encryption_module
    import vault_udp_packet as packet
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address, is_host
    from vault_udp_base import BaseLink, BaseMode
    from vault_udp_encryption import VaultAsymmetricEncryption
    from vault_udp_keys import FLAG_COALESCE, FLAG_PERSISTENT, LocalKeys, Pair
    from vault_udp_packet import PacketError
    from vault_udp_path import NEVER
    from vault_udp_peer import Peer, PeerTable
    from vault_udp_rate_limit import RateLimiter
    from vault_udp_session import Session
else:
    from . import vault_udp_encryption as encryption_module
    from . import vault_udp_packet as packet
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address, is_host
    from .vault_udp_base import BaseLink, BaseMode
    from .vault_udp_encryption import VaultAsymmetricEncryption
    from .vault_udp_keys import FLAG_COALESCE, FLAG_PERSISTENT, LocalKeys, Pair
    from .vault_udp_packet import PacketError
    from .vault_udp_path import NEVER
    from .vault_udp_peer import Peer, PeerTable
    from .vault_udp_rate_limit import RateLimiter
    from .vault_udp_session import Session

UNPACKED_PER_ROUND = 1 << 20
"""Bytes of compressed messages after which no more are unpacked before these have been delivered."""
MAX_IDENTITIES = 32768
MAX_QUEUED = 256
MAX_REJECTED = 8
PROBE_PINGS = 16
PROBE_INTERVAL = 0.2
"""Seconds between them. With 30 % loss each way, a live peer answers none once in 50,000 times."""
MAX_STALE_TIMERS = 64
"""Beside two for each peer, that nobody needs any more and that have not come round yet."""
LOG_INTERVAL = 60.0
RESOLVE_FIRST = 1.0
"""Seconds for which a host whose peer is gone is not looked for at its old addresses: it may have moved."""


class Event(NamedTuple):
    """Something to tell: ``ready``, ``lost`` (detail: why), ``rejected`` or ``met`` (detail: the key)."""

    kind: str
    address: Address
    detail: str = ""


class NodeState:
    """See the module's text; the arguments are `Node`'s."""

    def __init__(
        self,
        encryption: VaultAsymmetricEncryption,
        *,
        port: int,
        body_size: int,
        rate_limit: float | None,
        now: float,
        wall: float,
        legacy_peers: bool,
        persistent: bool,
        known_key: Callable[[Address], bytes | None],
        rng: random.Random,
    ) -> None:
        self.port = port
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.outgoing: list[tuple[Address, bytes]] = []
        self.deliveries: list[tuple[Address, Sequence[bytes]]] = []
        self.events: list[Event] = []
        self.between: list[tuple[int, Event]] = []
        """Events that come between `deliveries`: behind how many of them, and the event."""
        self.flushable: list[Peer] = []
        self.lookups: list[Address] = []
        """Names of hosts whose addresses are to be looked up; filled by timers only."""
        self.table = PeerTable(self.forgotten, self._deliver_first)
        self.local = LocalKeys(
            encryption.sign_seed, now, wall, FLAG_COALESCE | (FLAG_PERSISTENT if persistent else 0)
        )
        self.base = BaseMode(encryption, body_size)
        self.encryption = encryption
        self.known_key = known_key
        self.unpacked = 0
        """Bytes of messages that may be far longer than their datagrams, up to the last call of `receive`."""
        self.host_keys: dict[Address, bytes] = {}
        """The keys that the user gave with names of hosts: they hold for no other name of the same peer."""
        self.body_size = body_size
        self.legacy_peers = legacy_peers
        self.rng = rng
        self.tags: dict[bytes, Pair] = {}
        self.retired: dict[bytes, Pair] = {}
        self.best_version: OrderedDict[bytes, int] = OrderedDict()
        self.logged_at: dict[str, float] = {}
        self.timers: list[tuple[float, int, Peer]] = []
        self.sequence = itertools.count()
        self._limiters: list[RateLimiter] = []
        self.rate_limiter: RateLimiter | None = None
        self.set_rate_limit(rate_limit)
        self.rotate_at = self.lead_at = self.may_rotate_at = NEVER
        """When our keys rotate next; when at the latest if we know several peers, and at the earliest."""
        self.rekeyed_at = now
        """When all peers will have been told of our last rotation."""

    def _deliver_first(self) -> None:
        # Who is called back for a message asks us who its sender is: nobody else may be there by then. And a
        # loss is told after what came before it.
        if self.deliveries:
            self.unpacked = UNPACKED_PER_ROUND

    def set_rate_limit(self, max_per_second: float | None) -> None:
        """Accept so many messages a second from each peer from now on, None for no limit."""
        if self.rate_limiter is not None:
            self._limiters.remove(self.rate_limiter)
        self.rate_limiter = self.new_limiter(max_per_second) if max_per_second is not None else None
        for peer in self.table.all():
            peer.allowance = None

    def new_limiter(self, max_per_second: float) -> RateLimiter:
        """A limiter that forgets, once a rotation, whom it need not remember."""
        self._limiters.append(RateLimiter(max_per_second))
        return self._limiters[-1]

    def forget_whole_allowances(self, now: float) -> None:
        """Forget who has not spent anything of late."""
        for limiter in self._limiters:
            limiter.forget_whole(now)

    def is_ready(self, peer: Peer, now: float) -> bool:
        """Whether data for this peer leaves at once."""
        if peer.session.up:
            return True
        link = self.link_of(peer)
        return link is not None and self.encryption.peer_keys_exist(link.address) and link.ready_at <= now

    def link_of(self, peer: Peer) -> BaseLink | None:
        """How base mode reaches this peer; None if it does not."""
        return self.base.links.get(peer.listens_at)

    def mode(self, peer: Peer) -> str:
        """How we talk to this peer, for display."""
        if peer.session.up:
            return "session"
        link = self.link_of(peer)
        if link is not None:
            return f"base v{link.version}"
        return "lost" if peer.session.lost else "waiting for keys"

    def info(self, peer: Peer, now: float) -> dict[str, Any]:
        """What is known of a peer, for display; see `UDPSocketClass.get_peer_info`."""
        session, link = peer.session, self.link_of(peer)
        endpoint = link.address if link is not None else session.endpoint
        heard_at = link.opened_at if link is not None and link.opened else session.last_opened
        in_session = session.send is not None
        return {
            "mode": self.mode(peer),
            "names": list(peer.names),
            "endpoint": endpoint if not is_host(endpoint[0]) else None,
            "addresses": list(peer.host.places) if peer.host is not None else [peer.name],
            "protocol_version": link.version if link is not None else packet.PROTOCOL_VERSION,
            "identity": crypto.bytes_to_b64_str(peer.proven_identity) or None,
            "added": peer.added,
            "persistent": in_session and session.persistent,
            "coalesce": in_session and session.coalesce,
            "mtu": self.body_size_of(peer),
            "max_message": packet.message_room(self.body_size_of(peer)),
            "clock_offset": session.clock_offset if in_session else None,
            "round_trip": session.round_trip,
            "last_heard": now - heard_at if heard_at > -NEVER else None,
            "waiting": len(peer.queue) + len(peer.lane),
            "sent": peer.sent,
            "received": peer.received,
            "counters": dict(peer.counters or ()),
        }

    def stats(self) -> dict[str, Any]:
        """What users see of all peers together, as `UDPSocketClass.get_stats` tells it."""
        peers = self.table.added_names()
        by_ip: dict[str, list[Address]] = {}
        for address in peers:
            by_ip.setdefault(address[0], []).append(address)
        counters = {"sent": 0, "received": 0, **self.counters}
        counters["strangers_evicted"] = self.table.evicted
        encryption_stats = self.encryption.get_stats()
        encryption_stats["active_peer_keys"] += sum(
            peer.session.send is not None for peer in self.table.all()
        )
        return {
            "protocol_version": packet.PROTOCOL_VERSION,
            "peer_count": len(peers),
            "unique_ips": len(by_ip),
            "peers": peers,
            "peers_by_ip": by_ip,
            "peer_modes": {name: self.mode(peer) for name, peer in self.table.by_name.items()},
            "strangers": self.table.strangers,
            "lifetime": self.encryption.lifetime,
            "encryption_stats": encryption_stats,
            "counters": counters,
        }

    def body_size_of(self, peer: Peer) -> int:
        """Bytes that a body towards this peer may have now."""
        link = None if peer.session.up else self.link_of(peer)
        return peer.session.largest_body_size if link is None else link.body_size

    def body_size_towards(self, address: Address | None) -> int:
        """The same by address, known or not; None is every added peer, and the smallest of theirs."""
        if address is None:
            return min(map(self.body_size_of, self.table.added), default=self.body_size)
        peer = self.table.by_name.get(address)
        return self.body_size_of(peer) if peer else packet.body_size_for(address[0], self.body_size)

    def new_peer(self, address: Address) -> Peer:
        """An entry for an address that has none, as a pending stranger."""
        session = Session(self.local, self.tags, self.retired, self.outgoing, address, self.body_size)
        peer = session.owner = Peer(address, session)
        peer.supplied = self._key_for(address)
        return self.table.insert(peer)

    def own_entry(self, address: Address) -> Peer:
        """The entry that listens at `address`, made if need be: base mode knows no second names."""
        peer = self.table.at(address)
        if peer is not None and peer.listens_at != address:
            if address not in peer.names:
                self.settle(peer, address)
                return peer
            self.table.remove_name(peer, address)
            peer = self.new_peer(address)
            self.table.mark_added(peer)
        return peer or self.new_peer(address)

    def settle(self, peer: Peer, address: Address) -> None:
        """The peer was found at this address of its host; what comes from others of them is not its."""
        assert peer.host is not None
        if peer.listens_at != address:
            self.base.remove(peer.listens_at)
        peer.host.place = address
        self.table.set_places(peer, peer.host.places)

    def forgotten(self, peer: Peer) -> None:
        """A peer leaves the table: its pairs, its base link and what waits for it go with it."""
        peer.session.close()
        if self.rate_limiter is not None and peer.allowance is not None:
            self.rate_limiter.put_back(peer.name, peer.allowance)  # who comes back has no new one
        for address in (*peer.names, peer.listens_at):
            self.base.remove(address)
        self.drop_waiting(peer, "peer_removed")

    def count_drop(
        self, reason: str, source: Address, now: float, count: int = 1, peer: Peer | None = None
    ) -> None:
        """Count what is dropped of what came from `source`; log the first of each minute and reason.

        It is the peer's too: `peer` if something of it has opened, else whose address it is by what it says.
        """
        self.counters[reason] += count
        peer = peer or self.table.at(source)
        if peer is not None:
            peer.count(reason, count)
        if reason == "too_many_sessions":
            # Two rotations wipe the keys, and with them what had to be remembered of sessions long gone.
            self.rotate_at = min(self.rotate_at, self.rekeyed_at + encryption_module.MIN_LIFETIME)
        if self._is_news(reason, now):
            if reason == "rate_limited" and self.rate_limiter is not None:
                # Who is limited is no stranger, and may be an honest one whose messages get lost.
                limit = self.rate_limiter.max_per_second
                self.log(
                    logging.WARNING,
                    "%s: more than %s messages a second are dropped (rate_limited)",
                    source,
                    limit,
                )
                return
            level = logging.WARNING if reason == "other_version" else logging.INFO
            self.log(level, "dropping datagrams (%s), the first of this minute from %s", reason, source)

    def count_loss(self, reason: str, count: int, peer: Peer, now: float) -> None:
        """Count messages of ours that are dropped; log the first of each minute and reason."""
        self.counters[reason] += count
        peer.count(reason, count)
        if self._is_news(reason, now):
            self.log(logging.WARNING, "%s: messages dropped (%s)", peer.name, reason)

    def _is_news(self, reason: str, now: float) -> bool:
        """Whether this reason has not been logged in the last minute."""
        if now - self.logged_at.get(reason, -NEVER) < LOG_INTERVAL:
            return False
        self.logged_at[reason] = now
        return True

    def awaits_keys(self, now: float) -> bool:
        """Whether there are messages that cannot leave yet."""
        return any(peer.queue and not self.is_ready(peer, now) for peer in self.table.all())

    def became_ready(self, peer: Peer, name: Address | None = None) -> None:
        """Tell that data for it leaves at once, once per loss or for a new name; let go what waits for it."""
        if name is not None or not peer.told_ready:
            self._tell_in_order(Event("ready", name or peer.name))
            self._log_of(peer, "ready, %s", self.mode(peer))
        peer.told_ready = True
        if peer.has_messages:
            self.flushable.append(peer)

    def tell_lost(self, peer: Peer, why: str) -> None:
        """Tell that what is sent to the peer waits from now on, if it was told ready: once per loss."""
        if peer.told_ready:
            peer.told_ready = False
            self._tell_in_order(Event("lost", peer.name, why))
            self._log_of(peer, "lost: %s", why)
            self._deliver_first()

    def _tell_in_order(self, event: Event) -> None:
        if self.deliveries:
            self.between.append((len(self.deliveries), event))
        else:
            self.events.append(event)

    def log(self, level: int, text: str, *args: object) -> None:
        """Say what happens."""
        self.local.log(level, text, *args)

    def _log_of(self, peer: Peer, what: str, *details: object) -> None:
        # Anybody can be a stranger, as often as he likes.
        self.log(logging.INFO if peer.added else logging.DEBUG, "%s: " + what, peer.name, *details)

    def queue(self, peer: Peer, message: bytes, now: float) -> None:
        """Keep a message until the keys are there: at most 256 a peer, the oldest go first."""
        if not peer.names:
            self.count_loss("peer_removed", 1, peer, now)
            return
        if len(peer.queue) >= MAX_QUEUED:
            peer.queue.pop(0)
            self.count_loss("queue_full", 1, peer, now)
        peer.queue.append((now, message))
        self.schedule(peer)

    def take_queue(self, peer: Peer) -> list[bytes]:
        """What waits in the peer's queue, in order; the queue is empty afterwards."""
        messages = [message for _, message in peer.queue]
        peer.queue.clear()
        return messages

    def take_flushable(self) -> list[Peer]:
        """The peers that have become ready while something waited for them."""
        peers = [peer for peer in self.flushable if peer.names]
        self.flushable.clear()
        return peers

    def drop_waiting(self, peer: Peer, reason: str) -> None:
        """Drop what waits for this peer, for keys or for the send thread."""
        lane_size = len(peer.lane)
        del peer.lane[:lane_size]
        count = len(peer.queue) + lane_size
        peer.queue.clear()
        if count:
            self.counters[reason] += count
            peer.count(reason, count)
            self.log(
                logging.WARNING, "%s: messages dropped that were waiting: %d (%s)", peer.name, count, reason
            )

    def note_version(self, sign: bytes, version: int) -> None:
        """Remember the best that an identity has shown: nothing below it is accepted from it."""
        best = max(version, self.best_version.pop(sign, 0))
        self.best_version[sign] = best
        if len(self.best_version) > MAX_IDENTITIES:
            self.best_version.popitem(last=False)

    def leave_former_address(self, address: Address) -> None:
        """A stranger with that name has moved, and somebody else is there now: it is known by where it is."""
        peer = self.table.by_name.get(address)
        if peer is None or peer.kept or self.table.at(peer.session.endpoint) is not None:
            return
        endpoint, was_ready = peer.session.endpoint, peer.told_ready
        self.tell_lost(peer, f"it has moved to {endpoint}, and somebody else is there")
        self.table.rename(peer, endpoint)
        if was_ready:
            self.became_ready(peer)

    def check_identity(self, peer: Peer, sign: bytes, now: float, *, echoed: bool) -> None:
        """An address whose peer is live stays with its identity.

        Raises:
            PacketError: ``identity_refused``.
        """
        if peer.supplied is not None:
            if not crypto.equal(peer.supplied, sign):
                self.reject(peer, sign, now, echoed=echoed)
            return
        if peer.identity in (b"", sign):
            return
        link = self.link_of(peer)
        # A base peer cannot show that it receives here: one from which nothing has opened gives way.
        base_holds = link is not None and link.live(now) and (link.opened or not echoed)
        if peer.session.persistent or base_holds:
            self.reject(peer, sign, now, echoed=echoed)
        if not echoed and peer.session.pairs:
            peer.session.suspect(now)
            self.schedule(peer)
            self.reject(peer, sign, now, echoed=echoed)
        if peer.session.send is not None:
            # Also one that counts as lost: three pings are few, where they are lost one in three times.
            if peer.probe_at == NEVER:
                peer.probe_started, peer.probe_pings, peer.probe_at = now, 0, now
            self.schedule(peer)
            self.reject(peer, sign, now, echoed=echoed)
        self.release_pin(peer, "another identity took its place", now)

    def reject(self, peer: Peer, sign: bytes, now: float, *, echoed: bool) -> None:
        """Refuse an identity, and tell so once per episode: of those whose address may be forged, the first.

        Raises:
            PacketError: ``identity_refused``, always.
        """
        if peer.supplied is not None and self._is_news("identity refused", now):
            self.log(
                logging.WARNING,
                "%s: an identity is refused that is not the one given for it, or in the known-peers file; if "
                "the peer has a new one, change it there",
                peer.name,
            )
        is_news = sign not in peer.rejected and len(peer.rejected) < MAX_REJECTED
        if is_news and (echoed or not peer.rejected):
            peer.rejected += (sign,)
            self.events.append(Event("rejected", peer.name, crypto.bytes_to_b64_str(sign)))
            self._log_of(peer, "another identity is refused; udp_peer_rejected tells which")
        raise PacketError("identity_refused")

    def release_pin(self, peer: Peer, why: str, now: float) -> None:
        """Let the next identity have this address; what waited for the old one is not handed to it."""
        if self._is_news("identity released", now):
            self.log(logging.WARNING, "%s: the identity is released (%s)", peer.name, why)
        self.table.set_identity(peer, b"")
        peer.session.close()
        peer.session.flags = 0
        peer.probe_at = NEVER
        self.base.remove(peer.listens_at)
        self.drop_waiting(peer, "queued_for_another_identity")
        self.tell_lost(peer, why)
        if peer.added:
            self.start_announcing(peer, now)

    def start_announcing(self, peer: Peer, now: float) -> None:
        """Look for the peer anew, at each of its names: what was one process need not be one again."""
        self.log(logging.DEBUG, "%s: looking for it", peer.name)
        supplied = peer.supplied
        if len(peer.names) > 1 and not self._shares_key(peer, peer.name):
            peer.supplied = self._key_for(peer.name)
        for name in peer.names[1:]:
            if name == peer.listens_at:
                self.base.remove(name)
            self.table.remove_name(peer, name)
            if name == peer.met_at:
                peer.met_at = None
                continue
            other = self.new_peer(name)
            if self._shares_key(peer, name):
                other.supplied = supplied
            self.table.mark_added(other)
            self.start_announcing(other, now)
        peer.announce_at, peer.announced_since, peer.announcements = now, now, 0
        if peer.host is not None:
            peer.host.reach, peer.host.look_up_at, peer.host.held_until = 0, now, now + RESOLVE_FIRST
            if self.link_of(peer) is None:
                peer.host.place = None
        self.schedule(peer)

    def _key_for(self, name: Address) -> bytes | None:
        return self.host_keys.get(name) or self.known_key(name)

    def _shares_key(self, peer: Peer, name: Address) -> bool:
        """Whether the key that the peer is bound to is for this name of it, too.

        A host's name may stand for another machine the next time, which has a key of its own.
        """
        return not is_host(name[0]) or name in peer.remembered

    def schedule(self, peer: Peer) -> None:
        """See to the peer's timers when the first of them is due."""
        if peer.names:
            deadline = self.deadline_of(peer)
            if peer.scheduled < deadline and self.timers[0][2] is peer:
                self._take_first_timer()  # an answer has come: nobody has to wake up for that any more
            self.look_at(peer, deadline)

    def look_at(self, peer: Peer, deadline: float) -> None:
        """See to the peer's timers at `deadline` at the latest; looking too early does no harm."""
        if deadline < peer.scheduled and peer.names:
            peer.scheduled = deadline
            heapq.heappush(self.timers, (deadline, next(self.sequence), peer))
            if len(self.timers) > 2 * len(self.table.by_name) + MAX_STALE_TIMERS:
                self._drop_stale_timers()

    def _take_first_timer(self) -> Peer | None:
        """Take it out of the heap; returns its peer if that has no earlier one and is still there."""
        due, _, peer = heapq.heappop(self.timers)
        if due != peer.scheduled or not peer.names:
            return None
        peer.scheduled = NEVER
        return peer

    def _drop_stale_timers(self) -> None:
        # Each peer has one that holds; others were overtaken by an earlier one, or by an answer.
        holding = {entry[2]: entry for entry in self.timers if entry[0] == entry[2].scheduled}
        self.timers[:] = [entry for peer, entry in holding.items() if peer.names]
        heapq.heapify(self.timers)

    def deadline_of(self, peer: Peer) -> float:
        """When the first of the peer's timers is due."""
        deadline = min(peer.session.deadline(), peer.announce_at)
        if peer.queue:
            deadline = min(deadline, peer.queue[0][0] + encryption_module.MAX_MESSAGE_AGE_SECONDS)
        deadline = min(deadline, peer.probe_at, peer.host.look_up_at if peer.host is not None else NEVER)
        link = self.link_of(peer)
        if link is not None:
            deadline = min(deadline, link.refresh_at, NEVER if peer.base_ready else link.ready_at)
        return deadline
