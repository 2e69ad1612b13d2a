# SPDX-License-Identifier: Apache-2.0
"""One end of the protocol: what becomes of every datagram and every message. No sockets, threads or clocks.

The way in, cheapest check first, nothing believed before it has authenticated:

    tag of a session -> length -> clear announcement -> base peer of that address -> answer to an unknown tag

The way out: `queue` while there are no keys, `seal_messages` once there are.

Not thread-safe: the caller holds its lock. `now` is seconds of the monotonic clock.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Callable, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_encryption as encryption_module
    import vault_udp_packet as packet
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address, is_host
    from vault_udp_announce import FULL_ANNOUNCEMENTS_FOR, Introductions
    from vault_udp_control import SHORT_ANNOUNCEMENT_SIZE, Announcement
    from vault_udp_encryption import VaultAsymmetricEncryption
    from vault_udp_hosts import Hosts
    from vault_udp_keys import MIN_SEALED_SIZE, SEALED_OVERHEAD, TAG_SIZE, Pair
    from vault_udp_layout import make_bodies, read_messages
    from vault_udp_packet import PacketError, TooLargeError
    from vault_udp_path import NEVER, body_size_within
    from vault_udp_peer import Peer
    from vault_udp_rate_limit import Bucket, RateLimiter
    from vault_udp_segments import Segments
    from vault_udp_session import ACKNOWLEDGE_AFTER, SILENCE_BEFORE_PING, Session
    from vault_udp_state import UNPACKED_PER_ROUND, Event
    from vault_udp_upkeep import Upkeep
else:
    from . import vault_udp_encryption as encryption_module
    from . import vault_udp_packet as packet
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address, is_host
    from .vault_udp_announce import FULL_ANNOUNCEMENTS_FOR, Introductions
    from .vault_udp_control import SHORT_ANNOUNCEMENT_SIZE, Announcement
    from .vault_udp_encryption import VaultAsymmetricEncryption
    from .vault_udp_hosts import Hosts
    from .vault_udp_keys import MIN_SEALED_SIZE, SEALED_OVERHEAD, TAG_SIZE, Pair
    from .vault_udp_layout import make_bodies, read_messages
    from .vault_udp_packet import PacketError, TooLargeError
    from .vault_udp_path import NEVER, body_size_within
    from .vault_udp_peer import Peer
    from .vault_udp_rate_limit import Bucket, RateLimiter
    from .vault_udp_segments import Segments
    from .vault_udp_session import ACKNOWLEDGE_AFTER, SILENCE_BEFORE_PING, Session
    from .vault_udp_state import UNPACKED_PER_ROUND, Event
    from .vault_udp_upkeep import Upkeep


def nobody_known(address: Address) -> bytes | None:
    """For who has no file of known peers."""
    return None


class Node(Upkeep):
    """The peer table and the decisions.

    Args:
        encryption: identity and base keys; its `lifetime` is the rotation interval.
        port: where we listen, as announcements tell.
        body_size: bytes of a body towards IPv4 peers; IPv6 costs 20 more.
        rate_limit: messages a second accepted from one peer, None for no limit.
        legacy_peers: whether base mode is spoken at all.
        persistent: our identity outlives the process, as hellos tell.
        keepalive: seconds after which an idle session asks whether the peer is there, None for never.
        finds_sizes: whether the size of datagrams is found out for each peer; `body_size` is the limit.
        remember_peers: pin persistent identities met at added names for good, and tell so (event ``met``).
        known_key: the identity that was met at an address before; no other is accepted there.
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
        persistent: bool = False,
        remember_peers: bool = False,
        known_key: Callable[[Address], bytes | None] = nobody_known,
        keepalive: float | None = None,
        finds_sizes: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(
            encryption,
            port=port,
            body_size=body_size,
            rate_limit=rate_limit,
            now=now,
            wall=wall,
            legacy_peers=legacy_peers,
            persistent=persistent,
            known_key=known_key,
            rng=rng or random.Random(),
        )
        self.closed = False
        self._remember_peers = remember_peers
        if keepalive is not None:
            self.local.keepalive = keepalive
        self.local.finds_sizes = finds_sizes
        self._hosts = Hosts(self, self._merged)
        self._introductions = Introductions(self, self._hosts, self._merged)
        self.lifetime_changed(now)

    def add_peer(self, address: Address, now: float, supplied: bytes | None = None) -> Peer:
        """Put `address` on the list of those we talk to, bound to the identity `supplied` if given."""
        peer = self._named(address, supplied, now) or self.new_peer(address)
        self.table.mark_added(peer)
        if peer.met_at == address:
            peer.met_at = None
        if supplied is not None:
            bound_to = peer.identity or peer.supplied  # what waits may be for who has not shown himself yet
            if bound_to and bound_to != supplied:
                self.release_pin(peer, "another key was supplied", now)
                peer = self.table.by_name[address]  # an entry of its own now, if it had several names
            peer.supplied = supplied
            self.base.remove(peer.listens_at)
            if is_host(address[0]):
                self.host_keys[address] = supplied
        self._was_added(peer, now)
        if not self.is_ready(peer, now) and peer.announce_at == NEVER:
            self.start_announcing(peer, now)
        return peer

    def _was_added(self, peer: Peer, now: float) -> None:
        """The user has added a peer that may have been known as a stranger."""
        self._remember(peer)
        link = self.link_of(peer)
        if link is not None:
            link.mark_added(now)
            self.schedule(peer)

    def _named(self, address: Address, supplied: bytes | None, now: float) -> Peer | None:
        """The entry of that name; of somebody whose host's name led there, the address becomes a name."""
        peer = self.table.settled_at(address)
        if peer is None or address in peer.names:
            return peer
        bound = supplied or self.known_key(address)
        if bound not in (None, peer.identity):
            self.release_pin(peer, "another key was supplied for its address", now)
            return None
        self.table.add_name(peer, address)
        return peer

    def contact(self, address: Address, now: float) -> Peer:
        """The peer at `address`, announced to if it is new: data is waiting for it."""
        peer = self.table.settled_at(address) or self.new_peer(address)
        if not self.is_ready(peer, now) and peer.announce_at == NEVER:
            self.start_announcing(peer, now)
        return peer

    def remove_peer(self, address: Address, now: float) -> bool:
        """Say goodbye and forget the peer; False if there is none of that name."""
        peer = self.table.by_name.get(address)
        if peer is None:
            return False
        self.host_keys.pop(address, None)
        if len(peer.names) > 1 + (peer.met_at not in (None, address)):
            listened_at = peer.listens_at
            self.table.remove_name(peer, address)
            if peer.listens_at != listened_at:
                self.base.remove(listened_at)
        else:
            peer.session.say_goodbye(now)
            self.table.forget(peer)
        return True

    def receive(self, datagrams: Sequence[bytes], source: Address, now: float, unpacked: int = 0) -> int:
        """Decide about datagrams that arrived from `source`.

        Args:
            unpacked: bytes that were unpacked already and have still to be delivered.

        Returns:
            The index of the first that was not looked at, because there are `UNPACKED_PER_ROUND` bytes to
            deliver by then, or something of a peer that has lost its place; else how many there are.
        """
        index, count, self.unpacked = 0, len(datagrams), unpacked
        if self.closed:
            return count
        if not source[1]:
            # Nobody sends from there but who forges, and nothing can be sent there.
            self.counters["datagrams_received"] += count
            self.count_drop("no_source_port", source, now, count)
            return count
        is_usual = True
        """What was opened last; behind something unusual the next is likely to be so, too."""
        while index < count and self.unpacked < UNPACKED_PER_ROUND:
            datagram = datagrams[index]
            pair = self.tags.get(datagram[:TAG_SIZE])
            if pair is not None and is_usual and datagrams.__class__ is Segments:
                # As most of them are: opened and read without looking at each.
                following = self._receive_run(pair, datagrams, index, source, now)
                if following > index:
                    index = following
                    continue
            index += 1
            if pair is not None:
                is_usual = self._receive_sealed(pair, datagram, source, now)
            elif self._introductions.is_hopeless(source, now):
                self.counters["stranger_budget"] += 1
            else:
                try:
                    self._receive_untagged(datagram, source, now)
                except PacketError as error:
                    self.count_drop(error.reason, source, now)
        self.counters["datagrams_received"] += index
        return index

    def _receive_run(self, pair: Pair, segments: Segments, index: int, source: Address, now: float) -> int:
        """Take in what carries user data under `pair`, from `index` on, as long as each is what most are.

        Their messages are delivered together, in their order.

        Returns:
            The index of the first datagram that is left, which is as if nobody had looked at it.
        """
        session: Session = pair.owner
        if not session.up:
            return index
        newest, was_opened = pair.window.highest, pair.opened
        messages: list[bytes] = []
        earliest, latest = session.fresh_timestamps(now, encryption_module.MAX_MESSAGE_AGE_SECONDS)
        following = pair.open_usual(segments, index, earliest, latest, messages)
        if following > index:
            session.heard(pair, source, segments.size, pair.window.highest > newest, now)
            self._take_data(session.owner, messages, now, only_data=was_opened)
        return following

    def _receive_sealed(self, pair: Pair, datagram: bytes, source: Address, now: float) -> bool:
        """Open a datagram that bears the tag of `pair`, and act on it; returns whether it was a usual one."""
        session: Session = pair.owner
        peer: Peer = session.owner
        newest, was_up, was_opened = pair.window.highest, session.up, pair.opened
        try:
            timestamp, body = pair.open(datagram)
        except PacketError as error:
            self.count_drop(error.reason, source, now, peer=peer)
            return False
        is_newest = pair.window.highest > newest
        session.heard(pair, source, len(datagram), is_newest, now)
        earliest, latest = session.fresh_timestamps(now, encryption_module.MAX_MESSAGE_AGE_SECONDS)
        fresh = earliest <= timestamp <= latest
        read = read_messages(body) if fresh else None
        messages: Sequence[bytes] = ()
        try:
            if read is not None:
                messages = read[1]
            else:
                messages = self._read_body(peer, pair, body, source, fresh, is_newest, now)
        except PacketError as error:
            self.count_drop(error.reason, source, now, peer=peer)
        if not was_up and session.up:
            self._came_up(peer, now)
        self._take_data(peer, messages, now, only_data=read is not None and was_up and was_opened)
        return read is not None

    def _take_data(self, peer: Peer, messages: Sequence[bytes], now: float, *, only_data: bool) -> None:
        """Deliver what came in datagrams that opened; `only_data`: there is nothing more to do about them."""
        if not peer.added:
            self.table.heard(peer)
        if not only_data and peer.session.restarted:
            peer.session.restarted = False
            self.tell_lost(peer, "it has restarted")
            self.became_ready(peer)
        if messages:
            peer.session.note_data(now)
            self._deliver(peer, messages, now)
        if only_data:
            self.look_at(peer, now + ACKNOWLEDGE_AFTER)
        else:
            self.schedule(peer)

    def _read_body(
        self,
        peer: Peer,
        pair: Pair,
        body_bytes: bytes,
        source: Address,
        fresh: bool,
        is_newest: bool,
        now: float,
    ) -> Sequence[bytes]:
        """Act on a body that opened, if it is control; else return its messages."""
        session, body = peer.session, packet.read_body(body_bytes)
        if body.control:
            epoch = session.epoch
            if session.receive_control(pair, body.control, source, len(body_bytes), fresh, now):
                if not is_newest:
                    raise PacketError("stale_hello")  # the peer has come back since, with the same keys
                self._receive_goodbye(peer, now)
            elif session.epoch > epoch:
                self.follow_rotation(now)
            return ()
        if not fresh:
            session.outside_window(pair, now)
        if body.version != packet.PROTOCOL_VERSION:
            raise PacketError("downgrade_refused")
        if body.payload and not self._may_deliver(peer, now):
            # Before it is unpacked, which may cost a hundred times what the rest does.
            self.count_drop("rate_limited", source, now, peer=peer)
            return ()
        return self._counted(packet.messages_of(body))

    def _counted(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        self.unpacked += sum(map(len, messages))
        return messages

    def _deliver(self, peer: Peer, messages: Sequence[bytes], now: float) -> None:
        count = len(messages)
        if self.rate_limiter is not None:
            count = self.rate_limiter.charge(self._allowance(self.rate_limiter, peer, now), count, now)
            if count < len(messages):
                self.count_drop("rate_limited", peer.name, now, len(messages) - count, peer)
                messages = messages[:count]
        self.counters["received"] += count
        peer.received += count
        if count:
            self.deliveries.append((peer.name, messages))

    @staticmethod
    def _allowance(limiter: RateLimiter, peer: Peer, now: float) -> Bucket:
        # Kept with the peer, and not looked up by its name, which costs most where there are many peers.
        if peer.allowance is None:
            peer.allowance = limiter.take(peer.name, now)
        return peer.allowance

    def _may_deliver(self, peer: Peer, now: float) -> bool:
        """Whether the rate limit leaves a message of this peer's; nothing is charged."""
        limiter = self.rate_limiter
        return limiter is None or limiter.has_left(self._allowance(limiter, peer, now), now)

    def _merged(self, peer: Peer, name: Address | None, now: float) -> None:
        """An added entry, of that name, has turned out to be this peer, which was known already."""
        self._was_added(peer, now)
        if self.is_ready(peer, now):
            self.became_ready(peer, name)
        elif peer.has_messages:
            self.flushable.append(peer)  # what was on its way to the send thread waits for keys now

    def _remember(self, peer: Peer) -> None:
        if not (self._remember_peers and peer.added and peer.session.up and peer.session.persistent):
            return
        if peer.supplied is not None and not peer.remembered:
            return  # by the user, or met before
        peer.supplied = peer.identity
        key = crypto.bytes_to_b64_str(peer.identity)
        names = [name for name in peer.names if name not in (*peer.remembered, peer.met_at)]
        self.events += [Event("met", name, key) for name in names]
        peer.remembered += tuple(names)

    def _came_up(self, peer: Peer, now: float) -> None:
        peer.session.restarted = False
        peer.proven = True
        peer.announce_at = NEVER
        peer.probe_at = NEVER
        peer.rejected = ()
        self.base.remove(peer.listens_at)
        peer.resize(peer.session.largest_body_size)
        if peer.host is not None and self.table.settled_at(peer.session.endpoint) is None:
            self.settle(peer, peer.session.endpoint)
        self.table.heard(peer, confirmed=True)
        self._remember(peer)
        self.lead_rotations()
        self.became_ready(peer)

    def _receive_goodbye(self, peer: Peer, now: float) -> None:
        self.counters["goodbyes"] += 1
        peer.session.close()
        if not peer.session.persistent and peer.supplied is None:
            self.table.set_identity(peer, b"")
            self.drop_waiting(peer, "queued_for_another_identity")
        self.tell_lost(peer, "the peer said goodbye")
        if peer.added:
            self.start_announcing(peer, now)
        else:
            self.table.forget(peer)

    def _receive_untagged(self, datagram: bytes, source: Address, now: float) -> None:
        if len(datagram) < MIN_SEALED_SIZE:
            self._check_budget(source, now)
            raise PacketError("bad_length")
        if packet.looks_clear(datagram):
            self._check_budget(source, now)
            try:
                self._introductions.receive_clear(datagram, source, now)
                return
            except PacketError as error:
                if error.reason != "bad_body" or not self.base.may_be_from(source):
                    raise
        if self.base.may_be_from(source):
            opened = self.base.open(datagram, source, now)
            if opened is not None:
                self._receive_base(opened[0].address, opened[1], now)
                return
        self._check_budget(source, now)
        self._introductions.answer_unknown_tag(datagram, source, now)

    def _check_budget(self, source: Address, now: float) -> None:
        if not self._introductions.affordable(source, now):
            raise PacketError("stranger_budget")

    def _receive_base(self, address: Address, body_bytes: bytes, now: float) -> None:
        peer, link = self.table.settled_at(address), self.base.links[address]
        assert peer is not None
        version, content = self.base.read(body_bytes)
        if isinstance(content, Announcement):
            # First: all that is held for this peer may be what the thief of its key has announced.
            keys = self._introductions.check_owner(peer, content)
        if version < link.shown:
            raise PacketError("downgrade_refused")
        link.shown = link.version = version
        self.note_version(peer.identity, link.version)
        peer.proven = True
        peer.announce_at = NEVER
        self.table.heard(peer, confirmed=True)
        if not peer.base_ready:
            peer.base_ready = True
            self.became_ready(peer)
        if link.refresh_at == NEVER:
            link.refresh_at = now
        if isinstance(content, bytes):
            self._deliver(peer, self._counted((content,)), now)
        elif isinstance(content, Announcement):
            self._introductions.take_announced_keys(peer, *keys, now)
        self.schedule(peer)

    def seal_messages(
        self, peer: Peer, messages: Sequence[bytes], now: float
    ) -> tuple[Address, Sequence[bytes]]:
        """The datagrams that carry `messages` to a ready peer, and where to send them."""
        session = peer.session
        if session.up:
            try:
                datagrams = session.seal_messages(messages, now)
            except TooLargeError:  # accepted for a larger body than this peer has by now
                messages, bodies = self._fit_again(peer, messages, now)
                datagrams = session.seal(bodies, now)
            self.counters["sent"] += len(messages)
            peer.sent += len(messages)
            self.look_at(peer, now + SILENCE_BEFORE_PING)
            return session.endpoint, datagrams
        link = self.base.links[peer.listens_at]
        datagrams = []
        for message in messages:
            try:
                datagrams.append(self.base.seal_message(link, message))
                self.counters["sent"] += 1
                peer.sent += 1
            except PacketError as error:
                self.count_loss(error.reason, 1, peer, now)
        return link.address, datagrams

    def _fit_again(
        self, peer: Peer, messages: Sequence[bytes], now: float
    ) -> tuple[list[bytes], list[bytes]]:
        """The messages that can be sent, each in a body of its own; of the size in doubt if need be."""
        session = peer.session
        fitting: list[bytes] = []
        bodies: list[bytes] = []
        for message in messages:
            for size in dict.fromkeys((session.body_size, session.largest_body_size)):
                try:
                    bodies += make_bodies((packet.fit(message, size),), size, False)
                    fitting.append(message)
                    break
                except TooLargeError:
                    continue
            else:
                self.count_loss("too_large_for_peer", 1, peer, now)
        return fitting, bodies

    def refused(self, endpoint: Address, datagram: bytes, path_mtu: int | None, now: float) -> bool:
        """The system refuses a datagram of ours to `endpoint`: it is too long for the path.

        The size of what is sent there is lowered, and what was in it is sealed again into `outgoing`.

        Args:
            path_mtu: bytes of an IP packet that the path carries, None if the system does not tell.

        Returns:
            False if it is lost all the same: there is no smaller size, or nobody there any more.
        """
        peer = self._sent_to(endpoint)
        if peer is None or not self.local.finds_sizes:
            return False
        carried = body_size_within(path_mtu, endpoint[0]) if path_mtu is not None else None
        messages = self._take_back(peer, endpoint, datagram, carried, now)
        if messages:
            self._send_again(peer, messages, now)
        self.schedule(peer)
        return messages is not None

    def count_undelivered(self, reason: str, address: Address, count: int) -> None:
        """Messages that were accepted from the peer of that name reach nobody."""
        self.counters[reason] += count
        peer = self.table.by_name.get(address)
        if peer is not None:
            peer.count(reason, count)

    def note_refused(self, endpoint: Address, reason: str, count: int) -> None:
        """The system has refused datagrams of ours to `endpoint`, for another reason than their size."""
        peer = self.table.at(endpoint)  # not `_sent_to`: answers to strangers are nobody's, and many
        if peer is not None:
            peer.count(reason, count)

    def _sent_to(self, endpoint: Address) -> Peer | None:
        """The peer to which datagrams to this address belong: it rarely has another name."""
        peer = self.table.at(endpoint)
        if peer is not None and (peer.session.endpoint == endpoint or endpoint in self.base.links):
            return peer
        return next((other for other in self.table.all() if other.session.endpoint == endpoint), peer)

    def _take_back(
        self, peer: Peer, endpoint: Address, datagram: bytes, carried: int | None, now: float
    ) -> Sequence[bytes] | None:
        messages = peer.session.take_back(datagram, carried, now)
        link = self.base.links.get(endpoint)
        if messages is None and link is not None:
            messages = self.base.take_back(link, datagram, carried, now)
            peer.resize(self.body_size_of(peer))
        if messages is None and packet.looks_clear(datagram):
            # Our announcement with the members of both modes: the short form passes everywhere.
            if endpoint == peer.session.endpoint:
                peer.session.refused(len(datagram) - SEALED_OVERHEAD, carried, now)
            is_full = len(datagram) > SHORT_ANNOUNCEMENT_SIZE
            if is_full and peer.announce_at != NEVER:
                peer.announced_since = min(peer.announced_since, now - FULL_ANNOUNCEMENTS_FOR)
                peer.announce_at = now
                return ()
        return messages

    def _send_again(self, peer: Peer, messages: Sequence[bytes], now: float) -> None:
        self.counters["sent"] -= len(messages)
        peer.sent -= len(messages)
        if self.is_ready(peer, now):
            endpoint, datagrams = self.seal_messages(peer, messages, now)
            self.outgoing += [(endpoint, datagram) for datagram in datagrams]
        else:
            for message in messages:
                self.queue(peer, message, now)

    def resolved(self, name: Address, addresses: Sequence[Address], why: str, now: float) -> None:
        """A name of `lookups` stands for these addresses, the preferred one first; if for none, `why`."""
        self._hosts.resolved(name, addresses, why, now)

    def keys_supplied(self, address: Address, now: float) -> None:
        """The application has given base keys for `address`: use them unless a session comes up first."""
        self._introductions.keys_supplied(address, now)
