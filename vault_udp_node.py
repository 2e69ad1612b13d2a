# SPDX-License-Identifier: Apache-2.0
"""One end of the protocol: the peer table, and what becomes of every datagram. No sockets, threads or clocks.

The way in, cheapest check first, nothing believed before it has authenticated:

    length -> tag of a session -> base peer of that address -> clear announcement -> answer to an unknown tag

The way out: `queue` while there are no keys, `seal_messages` once there are. What is to be sent, delivered or
told is left in `outgoing`, `deliveries`, `events` and `flushable`, which the caller takes. Every datagram or
message that goes nowhere is counted in `counters` under its reason.

Not thread-safe: the caller holds its lock. `now` is seconds of the monotonic clock.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, NamedTuple, Sequence, Tuple

if TYPE_CHECKING or not __package__:
    import vault_udp_encryption as encryption_module
    import vault_udp_packet as packet
    import vault_udp_socket_helper as crypto
    from vault_udp_base import PIN_AFTER_SILENCE, BaseMode
    from vault_udp_encryption import VaultAsymmetricEncryption
    from vault_udp_keys import (
        MIN_SEALED_SIZE,
        NO_KEY,
        Hello,
        LocalKeys,
        Pair,
        proof_is_good,
        read_hello_untrusted,
    )
    from vault_udp_packet import Announcement, PacketError
    from vault_udp_peer import Peer, PeerTable
    from vault_udp_rate_limit import RateLimiter
    from vault_udp_session import NEVER, Session, announce_delay
else:
    from . import vault_udp_encryption as encryption_module
    from . import vault_udp_packet as packet
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_base import PIN_AFTER_SILENCE, BaseMode
    from .vault_udp_encryption import VaultAsymmetricEncryption
    from .vault_udp_keys import (
        MIN_SEALED_SIZE,
        NO_KEY,
        Hello,
        LocalKeys,
        Pair,
        proof_is_good,
        read_hello_untrusted,
    )
    from .vault_udp_packet import Announcement, PacketError
    from .vault_udp_peer import Peer, PeerTable
    from .vault_udp_rate_limit import RateLimiter
    from .vault_udp_session import NEVER, Session, announce_delay

logger = logging.getLogger(__name__)

Address = Tuple[str, int]

MAX_RETIRED_PAIRS = 16384
MAX_IDENTITIES = 32768
MAX_QUEUED = 256
FULL_ANNOUNCEMENTS_FOR = 5.0
ANNOUNCEMENT_CYCLE = 120.0
"""Seconds: full announcements for the first 5 of them, the short form for the rest, and again."""
PROBE_PINGS = (0.0, 0.4, 0.8)
PROBE_TIME = 2.0
SUPPLIED_KEYS_AFTER = 1.0
"""Seconds without a hello after which keys that the application gave are used."""
LOG_INTERVAL = 60.0

STRANGERS_PER_SECOND = 1000
STRANGERS_PER_IP_PER_SECOND = 500
ADDED_PER_SECOND = 64

SESSION, BASE_V2, BASE_V1 = 3, 2, 1


class Event(NamedTuple):
    """Something to tell the user: ``ready``, ``lost`` (detail: why) or ``rejected`` (detail: the key)."""

    kind: str
    address: Address
    detail: str = ""


class Node:
    """The peer table and the decisions.

    Args:
        encryption: identity and base keys; its `lifetime` is the rotation interval.
        port: where we listen, as announcements tell.
        body_size: bytes of a body towards IPv4 peers; IPv6 costs 20 more.
        rate_limit: messages a second accepted from one peer, None for no limit.
        legacy_peers: whether base mode is spoken at all.
        now, wall: seconds, monotonic, and Unix time.
        rng: for jitter.
    """

    def __init__(
        self,
        encryption: VaultAsymmetricEncryption,
        *,
        port: int,
        body_size: int,
        rate_limit: float | None,
        now: float,
        wall: float,
        legacy_peers: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        self.port = port
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.outgoing: list[tuple[Address, bytes]] = []
        self.deliveries: list[tuple[Address, Sequence[bytes]]] = []
        self.events: list[Event] = []
        self.flushable: list[Peer] = []
        self.table = PeerTable(self._forgotten)
        self.local = LocalKeys(encryption.sign_seed, now, wall)
        self.base = BaseMode(encryption, body_size)
        self._encryption = encryption
        self._body_size = body_size
        self._legacy_peers = legacy_peers
        self._rng = rng or random.Random()
        self._tags: dict[bytes, tuple[Session, Pair]] = {}
        self._retired: dict[bytes, Pair] = {}
        self._best_version: OrderedDict[bytes, int] = OrderedDict()
        self._rate_limiter = RateLimiter(rate_limit) if rate_limit is not None else None
        self._strangers = RateLimiter(STRANGERS_PER_SECOND)
        self._strangers_of_ip = RateLimiter(STRANGERS_PER_IP_PER_SECOND)
        self._added = RateLimiter(ADDED_PER_SECOND)
        self._unknown_tags = RateLimiter(1)
        self._logged_at: dict[str, float] = {}
        self._timers: list[tuple[float, int, Peer]] = []
        self._sequence = itertools.count()
        self._rotate_at = NEVER
        self.lifetime_changed(now)

    # ---------------------------------------------------------------------------------------- the table

    def add_peer(self, address: Address, now: float, supplied: bytes | None = None) -> Peer:
        """Put `address` on the list of those we talk to, bound to the identity `supplied` if given."""
        peer = self.table.by_name.get(address) or self._new_peer(address)
        self.table.mark_added(peer)
        if supplied is not None:
            if peer.identity not in (b"", supplied):
                self._release_pin(peer, "another key was supplied", now)
            peer.supplied = supplied
            self.base.remove(address)
        if not self.is_ready(peer, now) and peer.announce_at == NEVER:
            self._start_announcing(peer, now)
        return peer

    def contact(self, address: Address, now: float) -> Peer:
        """The peer at `address`, announced to if it is new: data is waiting for it."""
        peer = self.table.by_name.get(address)
        if peer is None:
            peer = self._new_peer(address)
            self._start_announcing(peer, now)
        return peer

    def remove_peer(self, address: Address, now: float) -> bool:
        """Say goodbye and forget the peer; False if there is none of that name."""
        peer = self.table.by_name.get(address)
        if peer is None:
            return False
        if len(peer.names) > 1:
            self.table.remove_name(peer, address)
        else:
            peer.session.say_goodbye(now)
            self.table.forget(peer)
        return True

    def _new_peer(self, address: Address) -> Peer:
        body_size = self._body_size - (20 if ":" in address[0] else 0)
        session = Session(self.local, self._tags, self._retired, self.outgoing, address, body_size)
        peer = session.owner = Peer(address, session)
        return self.table.insert(peer)

    def _forgotten(self, peer: Peer) -> None:
        peer.session.close()
        for name in peer.names:
            self.base.remove(name)
        self._drop_queue(peer, "peer_removed")

    def is_ready(self, peer: Peer, now: float) -> bool:
        """Whether data for this peer leaves at once."""
        if peer.session.up:
            return True
        link = self.base.links.get(peer.name)
        return link is not None and link.ready_at <= now

    def mode(self, peer: Peer) -> str:
        """How we talk to this peer, for display."""
        if peer.session.up:
            return "session"
        link = self.base.links.get(peer.name)
        if link is not None:
            return f"base v{link.version}"
        return "lost" if peer.session.lost else "waiting for keys"

    # ------------------------------------------------------------------------------------------- the way in

    def receive(self, datagrams: Sequence[bytes], source: Address, now: float) -> None:
        """Decide about datagrams that arrived from `source`."""
        self.local.max_age = encryption_module.MAX_MESSAGE_AGE_SECONDS
        self.counters["datagrams_received"] += len(datagrams)
        tags = self._tags
        for datagram in datagrams:
            try:
                known = tags.get(datagram[:8])
                if known is not None:
                    self._receive_sealed(known[0], known[1], datagram, source, now)
                else:
                    self._receive_untagged(datagram, source, now)
            except PacketError as error:
                self._count_drop(error.reason, source, now)

    def _count_drop(self, reason: str, source: Address, now: float) -> None:
        self.counters[reason] += 1
        if now - self._logged_at.get(reason, -NEVER) >= LOG_INTERVAL:
            self._logged_at[reason] = now
            logger.info("dropping datagrams (%s), the first of this minute from %s", reason, source)

    def _receive_sealed(
        self, session: Session, pair: Pair, datagram: bytes, source: Address, now: float
    ) -> None:
        peer: Peer = session.owner
        was_up = session.up
        body_bytes, fresh = session.open(pair, datagram, source, now)
        if not was_up:
            self._came_up(peer, now)
        try:
            body = packet.read_body(body_bytes)
            if body.control:
                if session.receive_control(pair, body.control, source, fresh, now):
                    self._receive_goodbye(peer, now)
                return
            if not fresh:
                session.outside_window(pair, now)
            if body.version != packet.PROTOCOL_VERSION:
                raise PacketError("downgrade_refused")
            session.note_data(now)
            self._deliver(peer, body.messages or (packet.read_frame(body.payload),), now)
        finally:
            self._schedule(peer)

    def _deliver(self, peer: Peer, messages: Sequence[bytes], now: float) -> None:
        if self._rate_limiter is not None:
            allowed = self._rate_limiter.allow(peer.name, len(messages), now)
            if allowed < len(messages):
                self._count_drop("rate_limited", peer.name, now)
                self.counters["rate_limited"] += len(messages) - allowed - 1
                messages = messages[:allowed]
        self.counters["received"] += len(messages)
        if messages:
            self.deliveries.append((peer.name, messages))
        self.table.heard(peer)

    def _came_up(self, peer: Peer, now: float) -> None:
        peer.announce_at = NEVER
        peer.probe_until = NEVER
        peer.rejected = b""
        self.base.remove(peer.name)
        self.table.heard(peer, confirmed=True)
        self._became_ready(peer)

    def _became_ready(self, peer: Peer) -> None:
        self.events.append(Event("ready", peer.name))
        if peer.queue:
            self.flushable.append(peer)

    def _receive_goodbye(self, peer: Peer, now: float) -> None:
        self.counters["goodbyes"] += 1
        peer.session.close()
        if not peer.session.persistent:
            self.table.set_identity(peer, b"")
        self.events.append(Event("lost", peer.name, "the peer said goodbye"))
        if peer.added:
            self._start_announcing(peer, now)
        else:
            self.table.forget(peer)

    def _receive_untagged(self, datagram: bytes, source: Address, now: float) -> None:
        if len(datagram) < MIN_SEALED_SIZE:
            raise PacketError("bad_length")
        if self.base.may_be_from(source):
            opened = self.base.open(datagram, source, now)
            if opened is not None:
                self._receive_base(opened[0].address, opened[1], now)
                return
        if not self._affordable(source, now):
            raise PacketError("stranger_budget")
        if datagram[0] & 0xF0 == 0x80 or datagram[0] == 0x92:
            self._receive_clear(datagram, source, now)
        else:
            self._answer_unknown_tag(datagram, source, now)

    def _affordable(self, source: Address, now: float) -> bool:
        peer = self.table.by_name.get(source)
        if peer is not None and peer.added:
            return bool(self._added.allow(source, 1, now))
        return bool(self._strangers_of_ip.allow(source[0], 1, now) and self._strangers.allow(None, 1, now))

    def _answer_unknown_tag(self, datagram: bytes, source: Address, now: float) -> None:
        # Sealed for keys that we do not have: a peer of our past. One hello sets it right, if it listens.
        peer = self.table.by_name.get(source)
        has_session = peer is not None and peer.session.up
        if (
            not has_session
            and len(datagram) >= packet.SHORT_ANNOUNCEMENT_SIZE
            and self._unknown_tags.allow(source, 1, now)
        ):
            self._send_hello(source, now)
        raise PacketError("unknown_tag")

    # ---------------------------------------------------------------------------------- clear announcements

    def _receive_clear(self, datagram: bytes, source: Address, now: float) -> None:
        body = packet.read_body(datagram)
        if body.version == 1:
            text = packet.read_v1_text(packet.read_frame(body.payload))
            if isinstance(text, bytes):
                raise PacketError("clear_data")
            members = text
        elif body.control:
            members = packet.read_json(body.control)
        else:
            raise PacketError("clear_data")
        announcement = packet.read_announcement(members)
        if announcement.hello is not None and body.version == packet.PROTOCOL_VERSION:
            if len(datagram) < packet.SHORT_ANNOUNCEMENT_SIZE:
                raise PacketError("bad_length")  # our answer would be longer than it
            self._receive_hello(announcement, source, now)
        else:
            self._receive_base_announcement(announcement, body.version, source, len(datagram), now)

    def _receive_hello(self, announcement: Announcement, source: Address, now: float) -> None:
        assert announcement.hello is not None
        assert announcement.proof is not None
        hello = read_hello_untrusted(announcement.hello)
        if hello.sign == self.local.sign_public:
            raise PacketError("own_datagram")
        if not self.local.is_own_nonce(hello.echo, source, now):
            self.counters["hello_without_echo"] += 1
            self._send_hello(source, now, echo=hello.nonce)
            return
        if hello.to_sign not in (NO_KEY, self.local.sign_public):
            raise PacketError("misaddressed")
        if not proof_is_good(hello, announcement.hello, announcement.proof):
            raise PacketError("bad_proof")
        peer = self._peer_for_hello(hello, source, now)
        if peer is not None:
            self._accept_hello(peer, hello, source, now)

    def _peer_for_hello(self, hello: Hello, source: Address, now: float) -> Peer | None:
        """The entry for a verified hello; None if it showed a known peer at another address."""
        peer = self.table.by_name.get(source)
        if peer is not None:
            self._check_identity(peer, hello.sign, now, echoed=True)
        for other in self.table.with_identity(hello.sign):
            if other is peer or other.session.enc != hello.enc or not other.session.pairs:
                continue
            # The same process at another of its addresses.
            if peer is None or not peer.added:
                other.session.validate(source, now)
                return None
            self.table.merge(peer, other)
            if other.session.up:
                self._became_ready(other)
            return None
        return peer or self._new_peer(source)

    def _accept_hello(self, peer: Peer, hello: Hello, source: Address, now: float) -> None:
        self.table.set_identity(peer, hello.sign)
        self._note_version(hello.sign, SESSION)
        peer.session.accept_hello(hello, now)
        if not peer.session.up:
            peer.session.endpoint = source
        if hello.holds != self.local.current.public:
            self._send_hello(source, now, echo=hello.nonce, holds=hello.enc, to_sign=hello.sign)
        self._schedule(peer)

    def _send_hello(self, address: Address, now: float, **fields: bytes) -> None:
        members = self.local.hello_members(address, now, **fields)
        body = packet.make_announcement_body(members, packet.SHORT_ANNOUNCEMENT_SIZE)
        self.outgoing.append((address, body))

    def _note_version(self, sign: bytes, version: int) -> None:
        best = max(version, self._best_version.pop(sign, 0))
        self._best_version[sign] = best
        if len(self._best_version) > MAX_IDENTITIES:
            self._best_version.popitem(last=False)

    # ------------------------------------------------------------------------------------------------ pins

    def _check_identity(self, peer: Peer, sign: bytes, now: float, *, echoed: bool) -> None:
        """Rule 3: an address whose peer is live stays with its identity.

        Raises:
            PacketError: ``identity_refused``.
        """
        if peer.supplied is not None:
            if not crypto.equal(peer.supplied, sign):
                self._reject(peer, sign)
            return
        if peer.identity in (b"", sign):
            return
        link = self.base.links.get(peer.name)
        if peer.session.persistent or (link is not None and link.live(now)):
            self._reject(peer, sign)
        if peer.session.up:
            if not echoed:
                peer.session.suspect(now)
            elif peer.probe_until == NEVER:
                peer.probe_started, peer.probe_pings, peer.probe_until = now, 0, now + PROBE_TIME
            self._schedule(peer)
            self._reject(peer, sign)
        self._release_pin(peer, "another identity took its place", now)

    def _reject(self, peer: Peer, sign: bytes) -> None:
        if peer.rejected != sign:
            peer.rejected = sign
            self.events.append(Event("rejected", peer.name, crypto.bytes_to_b64_str(sign)))
        raise PacketError("identity_refused")

    def _release_pin(self, peer: Peer, why: str, now: float) -> None:
        """Let the next identity have this address; what waited for the old one is not handed to it."""
        logger.warning("%s: the identity is released (%s)", peer.name, why)
        self.table.set_identity(peer, b"")
        peer.session.close()
        peer.probe_until = NEVER
        self.base.remove(peer.name)
        self._drop_queue(peer, "queued_for_another_identity")
        self.events.append(Event("lost", peer.name, why))
        if peer.added:
            self._start_announcing(peer, now)

    # ------------------------------------------------------------------------------------------- base mode

    def _receive_base_announcement(
        self, announcement: Announcement, version: int, source: Address, size: int, now: float
    ) -> None:
        if not self._legacy_peers:
            raise PacketError("base_refused")
        enc, sign = self._encryption.verify_announcement(announcement)
        if crypto.bytes_to_b64_str(sign) == self._encryption.sign_public_key:
            raise PacketError("own_datagram")
        if version < self._best_version.get(sign, 0):
            raise PacketError("downgrade_refused")
        address = (source[0], announcement.port or source[1])
        peer = self.table.by_name.get(address)
        if peer is not None:
            if peer.supplied is not None:
                raise PacketError("downgrade_refused")
            self._check_identity(peer, sign, now, echoed=False)
        link = self.base.links.get(address)
        if link is None or not link.live(now):
            self._enter_base(address, enc, sign, version, now)
        elif enc != self._live_enc(address):
            raise PacketError("live_key_kept")
        answer = self.base.clear_announcement(version, self.port, min(size, packet.FULL_ANNOUNCEMENT_SIZE))
        if answer is not None:
            self.outgoing.append((address, answer))

    def _live_enc(self, address: Address) -> bytes:
        keys = self._encryption.peer_keys(address)
        return keys.enc if keys is not None else b""

    def _enter_base(self, address: Address, enc: bytes, sign: bytes, version: int, now: float) -> None:
        self._encryption.store_peer_keys(address, enc, sign, now)
        peer = self.table.by_name.get(address) or self._new_peer(address)
        link = self.base.add(address, version, now)
        link.refresh_at = link.ready_at
        peer.base_ready = False
        self._note_version(sign, version)
        self.table.set_identity(peer, sign)
        peer.announce_at = NEVER
        self.table.heard(peer)
        self._schedule(peer)

    def keys_supplied(self, address: Address, now: float) -> None:
        """The application has given base keys for `address`: use them unless a session comes up first."""
        peer = self.table.by_name.get(address) or self._new_peer(address)
        keys = self._encryption.peer_keys(address)
        if keys is None or peer.session.up or not self._legacy_peers:
            return
        link = self.base.add(address, packet.PROTOCOL_VERSION, now)
        link.ready_at = link.refresh_at = now + SUPPLIED_KEYS_AFTER
        peer.base_ready = False
        self.table.set_identity(peer, keys.sign)
        self._start_announcing(peer, now)

    def _receive_base(self, address: Address, body_bytes: bytes, now: float) -> None:
        peer, link = self.table.by_name[address], self.base.links[address]
        content = self.base.read(link, body_bytes)
        self._note_version(peer.identity, link.version)
        self.table.heard(peer, confirmed=True)
        if not peer.base_ready:
            peer.base_ready = True
            self._became_ready(peer)
        if isinstance(content, bytes):
            self._deliver(peer, (content,), now)
        elif content is not None:
            self._receive_sealed_announcement(peer, content, now)
        self._schedule(peer)

    def _receive_sealed_announcement(self, peer: Peer, announcement: Announcement, now: float) -> None:
        enc, sign = self._encryption.verify_announcement(announcement)
        if sign != peer.identity:
            raise PacketError("identity_refused")
        keys = self._encryption.peer_keys(peer.name)
        if keys is not None and keys.enc != enc:
            self._encryption.store_peer_keys(peer.name, enc, sign, now)

    # ------------------------------------------------------------------------------------------ the way out

    def queue(self, peer: Peer, message: bytes, now: float) -> None:
        """Keep a message until the peer's keys are there: at most 256, the oldest go first."""
        if len(peer.queue) >= MAX_QUEUED:
            peer.queue.popleft()
            self._count_loss("queue_full", 1, peer, now)
        peer.queue.append((now, message))
        self._schedule(peer)

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

    def _drop_queue(self, peer: Peer, reason: str) -> None:
        if peer.queue:
            self.counters[reason] += len(peer.queue)
            logger.warning("%s: %d waiting messages dropped (%s)", peer.name, len(peer.queue), reason)
            peer.queue.clear()

    def _count_loss(self, reason: str, count: int, peer: Peer, now: float) -> None:
        self.counters[reason] += count
        if now - self._logged_at.get(reason, -NEVER) >= LOG_INTERVAL:
            self._logged_at[reason] = now
            logger.warning("%s: messages dropped (%s)", peer.name, reason)

    def seal_messages(self, peer: Peer, messages: Sequence[bytes], now: float) -> tuple[Address, list[bytes]]:
        """The datagrams that carry `messages` to a ready peer, and where to send them."""
        session = peer.session
        if session.up:
            datagrams = session.seal(packet.make_bodies(messages, session.body_size, session.coalesce), now)
            self.counters["sent"] += len(messages)
            self._schedule(peer)
            return session.endpoint, datagrams
        link = self.base.links[peer.name]
        datagrams = []
        for message in messages:
            try:
                datagrams.append(self.base.seal_message(link, message))
                self.counters["sent"] += 1
            except PacketError as error:
                self._count_loss(error.reason, 1, peer, now)
        return link.address, datagrams

    # ---------------------------------------------------------------------------------------------- timers

    def lifetime_changed(self, now: float) -> None:
        """The lifetime was set: it counts from now."""
        lifetime = self._encryption.lifetime
        self._rotate_at = min(self._rotate_at, now + lifetime * (0.95 + 0.1 * self._rng.random()))
        for address, link in self.base.links.items():
            link.refresh_at = min(link.refresh_at, now + lifetime / 2)
            self._schedule(self.table.by_name[address])

    def identity_changed(self, now: float) -> None:
        """Our own keys were replaced: every session is of an identity that is gone."""
        sign_seed = self._encryption.sign_seed
        if self.local.sign_public == crypto.sign_public_of(sign_seed):
            return  # only the base key is another: the next announcements tell
        for peer in self.table.all():
            peer.session.say_goodbye(now)
            peer.session.close()
        self._retired.clear()
        self.local.change_identity(sign_seed)
        for peer in self.table.all():
            if peer.added:
                self._start_announcing(peer, now)
            else:
                self.table.forget(peer)

    def moved(self, now: float) -> None:
        """We listen on another port: peers in a session follow a ping, base peers an announcement."""
        for peer in self.table.all():
            peer.session.ping(now)
        for link in self.base.links.values():
            link.refresh_at = now
            self._schedule(self.table.by_name[link.address])

    def deadline(self) -> float:
        """When `run_timers` has something to do next."""
        return min(self._rotate_at, self._timers[0][0] if self._timers else NEVER)

    def run_timers(self, now: float) -> None:
        """Do all that is due at `now`."""
        if self._rotate_at <= now:
            self._rotate(now)
        while self._timers and self._timers[0][0] <= now:
            due, _, peer = heapq.heappop(self._timers)
            if due != peer.scheduled or not peer.names:
                continue
            peer.scheduled = NEVER
            self._run_timers_of(peer, now)
            self._schedule(peer)

    def _schedule(self, peer: Peer) -> None:
        if not peer.names:
            return
        deadline = self._deadline_of(peer)
        if deadline < peer.scheduled:
            peer.scheduled = deadline
            heapq.heappush(self._timers, (deadline, next(self._sequence), peer))

    def _deadline_of(self, peer: Peer) -> float:
        deadline = min(peer.session.deadline(), peer.announce_at)
        if peer.queue:
            deadline = min(deadline, peer.queue[0][0] + encryption_module.MAX_MESSAGE_AGE_SECONDS)
        if peer.probe_until != NEVER:
            deadline = min(deadline, peer.probe_until, self._next_probe_ping(peer))
        link = self.base.links.get(peer.name)
        if link is not None:
            deadline = min(deadline, link.refresh_at, NEVER if peer.base_ready else link.ready_at)
        return deadline

    @staticmethod
    def _next_probe_ping(peer: Peer) -> float:
        if peer.probe_pings >= len(PROBE_PINGS):
            return NEVER
        return peer.probe_started + PROBE_PINGS[peer.probe_pings]

    def _run_timers_of(self, peer: Peer, now: float) -> None:
        was_up = peer.session.up
        peer.session.run_timers(now)
        if was_up and not peer.session.up:
            self.events.append(Event("lost", peer.name, "the peer is silent"))
            self._start_announcing(peer, now)
        if peer.probe_until != NEVER:
            self._run_probe(peer, now)
        if self.base.links.get(peer.name) is not None:
            self._run_base_timers(peer, now)
        if peer.announce_at <= now:
            self._announce(peer, now)
        expired = 0
        while peer.queue and peer.queue[0][0] + encryption_module.MAX_MESSAGE_AGE_SECONDS <= now:
            peer.queue.popleft()
            expired += 1
        if expired:
            self._count_loss("expired_in_queue", expired, peer, now)
            if not peer.added and not peer.queue and not peer.identity:
                self.table.forget(peer)

    def _run_probe(self, peer: Peer, now: float) -> None:
        if peer.session.last_opened > peer.probe_started:
            peer.probe_until = NEVER
            return
        while self._next_probe_ping(peer) <= now:
            peer.probe_pings += 1
            peer.session.ping(now)
        if peer.probe_until <= now:
            self._release_pin(peer, "silent while another identity asked for its place", now)
            if not peer.added:
                self.table.forget(peer)

    def _run_base_timers(self, peer: Peer, now: float) -> None:
        link = self.base.links[peer.name]
        keys = self._encryption.peer_keys(peer.name)
        silent = now - link.opened_at > max(self._encryption.lifetime, PIN_AFTER_SILENCE)
        if keys is None or (silent and not keys.supplied):
            self.base.remove(peer.name)
            self.table.set_identity(peer, b"")
            peer.base_ready = False
            self.events.append(Event("lost", peer.name, "its key has expired"))
            if peer.added:
                self._start_announcing(peer, now)
            else:
                self.table.forget(peer)
            return
        if link.ready_at <= now and not peer.base_ready:
            peer.base_ready = True
            self._became_ready(peer)
        if link.refresh_at <= now:
            self.outgoing.append((link.address, self.base.sealed_announcement(link, self.port, now)))

    def _start_announcing(self, peer: Peer, now: float) -> None:
        peer.announce_at, peer.announced_since, peer.announcements = now, now, 0
        self._schedule(peer)

    def _announce(self, peer: Peer, now: float) -> None:
        session = peer.session
        fields = {"echo": session.peer_nonce, "holds": session.enc, "to_sign": peer.supplied or b""}
        in_cycle = (now - peer.announced_since) % ANNOUNCEMENT_CYCLE
        if in_cycle < FULL_ANNOUNCEMENTS_FOR and self._legacy_peers and peer.supplied is None:
            members = self._encryption.base_members(self.port)
            members.update(self.local.hello_members(session.endpoint, now, **fields))
            body = packet.make_announcement_body(members, packet.FULL_ANNOUNCEMENT_SIZE)
            self.outgoing.append((session.endpoint, body))
        else:
            self._send_hello(session.endpoint, now, **fields)
        session.confirm_unopened(now)
        peer.announce_at = now + announce_delay(peer.announcements, self._rng)
        peer.announcements += 1

    def _rotate(self, now: float) -> None:
        self.local.rotate()
        alive = (self.local.current, self.local.previous)
        for tag in [tag for tag, pair in self._retired.items() if pair.mine not in alive]:
            del self._retired[tag]
        for peer in self.table.all():
            had_pairs, was_up = bool(peer.session.pairs), peer.session.up
            peer.session.after_rotation(now)
            if was_up and not peer.session.up:
                self.events.append(Event("lost", peer.name, "it did not follow our rotation"))
            if had_pairs and peer.session.send is None:
                if peer.added:
                    self._start_announcing(peer, now)
                elif not peer.session.pairs:
                    self.table.forget(peer)
            self._schedule(peer)
        self._encryption.forget_old_nonces()
        self._rotate_at = NEVER
        self.lifetime_changed(now)
