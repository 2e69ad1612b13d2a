# SPDX-License-Identifier: Apache-2.0
"""Announcements in clear: how strangers and peers become acquainted, in sessions and in base mode.

    hello without a valid echo   answered with our nonce; nothing is stored, nothing is verified
    hello with one               proof, identity, then the session takes it
    base announcement            signature, identity, then base mode takes it
    anything else in clear       dropped

Whoever is not authenticated works on a budget: one for each added peer, one for each other IP, one for all
strangers together.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING or not __package__:
    import vault_udp_packet as packet
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address, is_host
    from vault_udp_control import (
        FULL_ANNOUNCEMENT_SIZE,
        MAX_CONTROL_SIZE,
        SHORT_ANNOUNCEMENT_SIZE,
        Announcement,
        make_announcement_body,
        read_announcement,
        read_json,
        read_v1_text,
    )
    from vault_udp_hosts import Hosts
    from vault_udp_keys import NO_KEY, Hello, proof_is_good, read_hello_untrusted
    from vault_udp_packet import PacketError
    from vault_udp_path import NEVER
    from vault_udp_peer import Peer
    from vault_udp_session import MAX_RETIRED_PAIRS
    from vault_udp_state import NodeState
else:
    from . import vault_udp_packet as packet
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address, is_host
    from .vault_udp_control import (
        FULL_ANNOUNCEMENT_SIZE,
        MAX_CONTROL_SIZE,
        SHORT_ANNOUNCEMENT_SIZE,
        Announcement,
        make_announcement_body,
        read_announcement,
        read_json,
        read_v1_text,
    )
    from .vault_udp_hosts import Hosts
    from .vault_udp_keys import NO_KEY, Hello, proof_is_good, read_hello_untrusted
    from .vault_udp_packet import PacketError
    from .vault_udp_path import NEVER
    from .vault_udp_peer import Peer
    from .vault_udp_session import MAX_RETIRED_PAIRS
    from .vault_udp_state import NodeState

FULL_ANNOUNCEMENTS_FOR = 5.0
ANNOUNCEMENT_CYCLE = 120.0
"""Seconds: full announcements for the first 5 of them, the short form for the rest, and again."""
ANNOUNCEMENTS_BEFORE_DOUBT = 6
"""About 2 s of them."""
SUPPLIED_KEYS_AFTER = 1.0
"""Seconds without a hello after which keys that the application gave are used."""

STRANGERS_PER_SECOND = 1000
STRANGERS_PER_IP_PER_SECOND = 500
ADDED_PER_SECOND = 64
SEARCHED_AT_ONCE = 64
"""So many entries of one identity are searched for the price of a datagram."""
UNKNOWN_TAGS_ANSWERED_PER_SECOND = 200
"""To all together: junk looks like what lost peers send, and each answer takes a signature."""

SESSION = 3
"""Above the versions of base mode, in the order of what an identity has shown that it can do."""


def announce_delay(attempt: int, rng: random.Random) -> float:
    """Seconds until the next announcement: 0.1, 0.2, 0.4, 0.5 … for 5 s, then growing by half up to 15 s.

    The first of them follows `attempt` 0. Jitter of a tenth keeps many peers from speaking at once.
    """
    quick = 12
    delay = (
        min(0.1 * 2**attempt, 0.5) if attempt < quick else min(0.5 * 1.5 ** min(attempt - quick + 1, 9), 15.0)
    )
    return delay * (0.9 + 0.2 * rng.random())


class Introductions:
    """Decides about announcements, and makes ours."""

    def __init__(
        self, state: NodeState, hosts: Hosts, on_merged: Callable[[Peer, Address | None, float], None]
    ) -> None:
        self._state = state
        self._hosts = hosts
        self._on_merged = on_merged
        self._strangers = state.new_limiter(STRANGERS_PER_SECOND)
        self._strangers_of_ip = state.new_limiter(STRANGERS_PER_IP_PER_SECOND)
        self._added = state.new_limiter(ADDED_PER_SECOND)
        self._unknown_tags = state.new_limiter(1)
        self._unknown_tags_of_all = state.new_limiter(UNKNOWN_TAGS_ANSWERED_PER_SECOND)
        self._spent_until = -NEVER
        self._spent_ip, self._ip_spent_until = "", -NEVER

    def affordable(self, source: Address, now: float) -> bool:
        """Charge one unauthenticated datagram to the budgets of its source; False if they are spent."""
        peer = self._state.table.at(source)
        if peer is not None and peer.added:
            return bool(self._added.allow(source, 1, now))
        if not self._strangers_of_ip.allow(source[0], 1, now):
            self._spent_ip, self._ip_spent_until = source[0], now + 1 / STRANGERS_PER_IP_PER_SECOND
            return False
        if not self._strangers.allow(None, 1, now):
            self._spent_until = now + 1 / STRANGERS_PER_SECOND
            return False
        return True

    def is_hopeless(self, source: Address, now: float) -> bool:
        """Whether `affordable` is known to say no to who is at `source`: the cheap answer in a flood."""
        if now >= self._spent_until and (now >= self._ip_spent_until or source[0] != self._spent_ip):
            return False
        table, base = self._state.table, self._state.base
        # Mostly there are no names of hosts and no base peers; to look an address up costs more than to see.
        return (
            source not in table.by_name
            and not (table.by_place and source in table.by_place)
            and not (base.links and base.may_be_from(source))
        )

    def answer_unknown_tag(self, datagram: bytes, source: Address, now: float) -> None:
        """Say hello to whom may hold keys of a session that we have lost; the datagram is dropped.

        Raises:
            PacketError: ``unknown_tag``, always.
        """
        # Sealed for keys that we do not have: a peer of our past. One hello sets it right, if it listens.
        peer = self._state.table.at(source)
        has_session = peer is not None and peer.session.up
        if (
            not has_session
            and len(datagram) >= SHORT_ANNOUNCEMENT_SIZE
            and self._unknown_tags.allow(source, 1, now)
            and self._unknown_tags_of_all.allow(None, 1, now)
        ):
            self._send_hello(source, now)
        raise PacketError("unknown_tag")

    def receive_clear(self, datagram: bytes, source: Address, now: float) -> None:
        """Act on what is no sealed datagram: an announcement, or nothing that we accept.

        Raises:
            PacketError: with the reason for which it is dropped.
        """
        body = packet.read_body(datagram)
        if body.version == 1:
            text = read_v1_text(packet.read_frame(body.payload, MAX_CONTROL_SIZE))
            if isinstance(text, bytes):
                raise PacketError("clear_data")
            members = text
        elif body.control:
            members = read_json(body.control)
        else:
            raise PacketError("clear_data")
        announcement = read_announcement(members)
        if announcement.hello is not None and body.version == packet.PROTOCOL_VERSION:
            if len(datagram) < SHORT_ANNOUNCEMENT_SIZE:
                raise PacketError("bad_length")  # our answer would be longer than it
            self._receive_hello(announcement, source, now)
        else:
            self._receive_base_announcement(announcement, body.version, source, len(datagram), now)

    def _receive_hello(self, announcement: Announcement, source: Address, now: float) -> None:
        assert announcement.hello is not None
        assert announcement.proof is not None
        hello = read_hello_untrusted(announcement.hello)
        if hello.sign == self._state.local.sign_public:
            raise PacketError("own_datagram")
        if not self._state.local.is_own_nonce(hello.echo, source, now):
            self._state.counters["hello_without_echo"] += 1
            self._answer(hello, source, now)
            return
        if hello.to_sign not in (NO_KEY, self._state.local.sign_public):
            raise PacketError("misaddressed")
        if not (self._names_us(hello) or self._is_awaited(source)):
            # It only answers us, as does anybody whom a third party leads us to ask. Who has met somebody at
            # our address is to know that it is we who are there.
            if hello.holds != NO_KEY:
                self._answer(hello, source, now)
            raise PacketError("unasked_answer")
        if not proof_is_good(hello, announcement.hello, announcement.proof):
            raise PacketError("bad_proof")
        if crypto.is_low_order(hello.enc):
            raise PacketError("bad_announcement")
        self._charge_search(hello.sign, source, now)
        peer = self._peer_for_hello(hello, source, now)
        if peer is not None:
            self._check_room_for_pairs(peer)
            self._accept_hello(peer, hello, source, now)

    def _charge_search(self, sign: bytes, source: Address, now: float) -> None:
        # One may be at all ports of an address: each of its hellos is looked for in all its entries.
        price = len(self._state.table.with_identity(sign)) // SEARCHED_AT_ONCE
        if self._strangers_of_ip.allow(source[0], price, now) < price:
            raise PacketError("stranger_budget")

    def _answer(self, hello: Hello, source: Address, now: float) -> None:
        """Answer a hello that nobody has verified: only whom we know there already is answered by name."""
        peer = self._state.table.at(source)
        known = peer.expected_identity if peer is not None else b""
        holds = self._proven_key(peer) if peer is not None else b""
        to_sign = known if known == hello.sign else b""
        self._send_hello(source, now, echo=hello.nonce, holds=holds, to_sign=to_sign)

    def _proven_key(self, peer: Peer) -> bytes:
        """A key under which something of this peer has opened: one only announced may be another's."""
        if peer.session.send is not None:
            return peer.session.send.theirs
        link = self._state.link_of(peer)
        return self._live_enc(link.address) if link is not None and link.opened else b""

    def _names_us(self, hello: Hello) -> bool:
        """Whether its sender has met us: an end that only answers knows nobody."""
        local = self._state.local
        ours = (local.current, local.previous)
        return hello.to_sign == local.sign_public or any(key and hello.holds == key.public for key in ours)

    def _is_awaited(self, source: Address) -> bool:
        """Whether we want to hear of whoever is at `source`."""
        peer = self._state.table.at(source)
        return peer is not None and (peer.kept or peer.has_messages or peer.session.send is not None)

    def _check_room_for_pairs(self, peer: Peer) -> None:
        # Sessions that came and went leave their replay windows behind until two rotations have wiped our
        # keys of theirs. Forgetting one would let its datagrams in again: strangers wait, and we rotate soon.
        if len(self._state.retired) >= MAX_RETIRED_PAIRS * (2 if peer.added else 1):
            raise PacketError("too_many_sessions")

    def _peer_for_hello(self, hello: Hello, source: Address, now: float) -> Peer | None:
        """The entry for a verified hello; None if it showed a known peer at another address."""
        peer = self._state.table.at(source)
        if peer is not None and peer.identity != hello.sign:
            self._state.leave_former_address(source)
        peer = self._checked_peer_at(source, hello.sign, now, echoed=True)
        for other in self._state.table.with_identity(hello.sign):
            if other is peer or other.session.enc != hello.enc or not other.session.pairs:
                continue
            if other.session.send is None:
                # Nothing has opened there: somebody in between may have passed on what both ends said. It is
                # this address that has an answer now; but first who was added has time to show its keys.
                if other.kept and other.session.coming_up and (peer is None or not peer.kept):
                    raise PacketError("pair_of_another")
                other.session.close()
                if not other.added:
                    self._state.table.forget(other)
                continue
            # The same process at another of its addresses.
            if peer is None or not peer.added:
                other.session.validate(source, SHORT_ANNOUNCEMENT_SIZE, now)
                if peer is not None and peer.has_messages:
                    # A message for an address that nobody added leads to who is known by another already.
                    peer.hand_over_to(other)
                    self._state.table.forget(peer)
                    self._state.flushable.append(other)
                return None
            self._state.base.remove(other.listens_at)
            self._state.table.merge(peer, other)
            # It has answered here, which it need not have done where the session has met it so far.
            other.session.validate(source, SHORT_ANNOUNCEMENT_SIZE, now)
            self._on_merged(other, None, now)
            return None
        if peer is None:
            peer = self._state.new_peer(source)
            self._state.check_identity(
                peer, hello.sign, now, echoed=True
            )  # it may be known by the user's file
        return peer

    def _checked_peer_at(self, address: Address, sign: bytes, now: float, *, echoed: bool) -> Peer | None:
        """The entry for that address, if the identity is allowed there.

        Raises:
            PacketError: ``identity_refused``, ``downgrade_refused``.
        """
        checked, peer = None, self._state.table.at(address)
        while peer is not None and peer is not checked:
            if not echoed and peer.supplied is not None:
                raise PacketError("downgrade_refused")
            if peer.host is not None and self._state.known_key(address) not in (None, sign):
                # The user's file says who is at that address.
                self._state.reject(peer, sign, now, echoed=echoed)
            self._state.check_identity(peer, sign, now, echoed=echoed)
            # If a pin was released, the address may be another's now.
            checked, peer = peer, self._state.table.at(address)
        return peer

    def _accept_hello(self, peer: Peer, hello: Hello, source: Address, now: float) -> None:
        self._state.table.set_identity(peer, hello.sign)
        self._state.note_version(hello.sign, SESSION)
        if not peer.session.up:
            peer.session.move_to(source)
            if peer.host is not None:
                self._state.settle(peer, source)
        if hello.holds != self._state.local.current.public:
            # Before the confirm, which the peer cannot open without it.
            self._send_hello(source, now, echo=hello.nonce, holds=hello.enc, to_sign=hello.sign)
        peer.session.accept_hello(hello, source, now)
        self._state.schedule(peer)

    def _send_hello(self, address: Address, now: float, **fields: bytes) -> None:
        members = self._state.local.hello_members(address, now, **fields)
        body = make_announcement_body(members, SHORT_ANNOUNCEMENT_SIZE)
        self._state.outgoing.append((address, body))

    def _receive_base_announcement(
        self, announcement: Announcement, version: int, source: Address, size: int, now: float
    ) -> None:
        if not self._state.legacy_peers:
            raise PacketError("base_refused")
        enc, sign = self._state.encryption.verify_announcement(announcement)
        if crypto.bytes_to_b64_str(sign) == self._state.encryption.sign_public_key:
            raise PacketError("own_datagram")
        if version < self._best_version_of(sign) or announcement.answers:
            # Who says that it answers has sessions, and answers what was not ours, for ours have hellos.
            raise PacketError("downgrade_refused")
        address = (source[0], announcement.port or source[1])
        if self._state.known_key(address) is not None:
            raise PacketError("downgrade_refused")
        self._checked_peer_at(address, sign, now, echoed=False)
        link = self._state.base.links.get(address)
        live = link if link is not None and link.live(now) else None
        if live is None:
            self._enter_base(address, enc, sign, version, now)
        elif enc == self._live_enc(address):
            self._state.base.unlearn(live)
        else:
            raise PacketError("live_key_kept")
        # One that leaves no room to say that ours is an answer is of no deployed peer, and gets none.
        room = min(size, FULL_ANNOUNCEMENT_SIZE)
        answer = self._state.base.clear_announcement(version, self._state.port, room, answers=True)
        if answer is not None:
            self._state.outgoing.append((address, answer))

    def _best_version_of(self, sign: bytes) -> int:
        if any(peer.session.sign == sign for peer in self._state.table.with_identity(sign)):
            return SESSION
        return self._state.best_version.get(sign, 0)

    def _live_enc(self, address: Address) -> bytes:
        keys = self._state.encryption.peer_keys(address)
        return keys.enc if keys is not None else b""

    def _enter_base(self, address: Address, enc: bytes, sign: bytes, version: int, now: float) -> None:
        self._state.encryption.store_peer_keys(address, enc, sign, now)
        peer = self._state.own_entry(address)
        link = self._state.base.add(address, version, now)
        link.shown = version
        # Whom nobody named gets no more than the answer until a datagram of its own has opened.
        if peer.added:
            link.mark_added(now)
        peer.base_ready = False
        # What the identity can do is not noted: anybody may repeat its keys in a body of a higher version.
        self._state.table.set_identity(peer, sign)
        peer.announce_at = NEVER
        self._state.table.heard(peer)
        self._state.schedule(peer)

    def keys_supplied(self, address: Address, now: float) -> None:
        """The application has given base keys for `address`: use them unless a session comes up first."""
        keys = self._state.encryption.peer_keys(address)
        if keys is None or not self._state.legacy_peers:
            return
        if is_host(address[0]):
            self._state.log(
                logging.WARNING, "the keys given for %s are not used: give them for its IP address", address
            )
            self._state.encryption.remove_peer_keys(address)
            return
        peer = self._state.table.at(address)
        if (peer is not None and peer.supplied is not None) or self._state.known_key(address) is not None:
            self._state.encryption.remove_peer_keys(address)
            return
        if (peer is not None and peer.session.up) or self._best_version_of(keys.sign) == SESSION:
            return
        if peer is not None and peer.identity not in (b"", keys.sign):
            self._state.base.remove(address, keep_keys=True)
            self._state.release_pin(peer, "other keys were supplied", now)
            self.keys_supplied(address, now)  # the address may be another's now
            return
        peer = self._state.own_entry(address)
        link = self._state.base.add(address, packet.PROTOCOL_VERSION, now)
        link.ready_at = now + SUPPLIED_KEYS_AFTER
        link.mark_added(now)
        peer.base_ready = False
        self._state.table.keep(peer)
        self._state.table.set_identity(peer, keys.sign)
        peer.proven = True
        self._state.start_announcing(peer, now)

    def check_owner(self, peer: Peer, announcement: Announcement) -> tuple[bytes, bytes]:
        """The keys in an announcement that opened under the key of a base peer, if they are that peer's.

        Raises:
            PacketError: ``bad_announcement``, ``bad_signature``, ``identity_refused``.
        """
        enc, sign = self._state.encryption.verify_announcement(announcement)
        if sign != peer.identity:
            keys = self._state.encryption.peer_keys(peer.listens_at)
            if keys is not None and keys.enc == enc:
                port = announcement.port or peer.listens_at[1]
                self._correct_owners((peer.listens_at[0], port), enc, sign)
            raise PacketError("identity_refused")
        return enc, sign

    def take_announced_keys(self, peer: Peer, enc: bytes, sign: bytes, now: float) -> None:
        """A base peer that holds our key has announced itself again, perhaps with another key of its own.

        Raises:
            PacketError: ``bad_announcement``, ``key_of_another``.
        """
        keys = self._state.encryption.peer_keys(peer.listens_at)
        if keys is not None and keys.enc != enc:
            self._state.encryption.store_peer_keys(peer.listens_at, enc, sign, now, supplied=keys.supplied)

    def _correct_owners(self, listens_at: Address, enc: bytes, sign: bytes) -> None:
        """Who seals with a key says whose it is: that others have announced it as theirs was not true."""
        for keys in self._state.encryption.keys_with(enc):
            peer = self._state.table.settled_at(keys.address)
            if peer is None or keys.supplied:
                continue
            if keys.sign != sign and not peer.added and keys.address != listens_at:
                self._state.table.forget(peer)
                continue
            if keys.sign != sign:
                self._state.tell_lost(peer, "it has shown that it is another identity")
                peer.base_ready = False
            keys.sign, keys.proven = sign, True
            self._state.table.set_identity(peer, sign)

    def announce(self, peer: Peer, now: float) -> None:
        """Announce us to a peer without keys, and set the time for the next time."""
        if peer.host is not None and not self._hosts.may_announce(peer, now):
            return
        session = peer.session
        fields = {"echo": session.peer_nonce, "holds": session.enc, "to_sign": peer.expected_identity}
        if now >= peer.announced_since + ANNOUNCEMENT_CYCLE:
            if not peer.added and not peer.queue:
                peer.announce_at = NEVER  # a stranger is looked for through one cycle, or while data waits
                return
            peer.announced_since, peer.announcements = now, 0
            if peer.host is not None:
                peer.host.look_up_at = now
        places = self._where_to_look(peer)
        for address in places:
            self._announce_to(address, peer, fields, now)
        session.confirm_unopened(now)
        session.ask_if_lost(now)
        if peer.announcements == ANNOUNCEMENTS_BEFORE_DOUBT and peer.added and places:
            self._state.log(
                logging.INFO,
                "%s: no answer yet; is it running, are address and port right, and does it expect another "
                "key of ours?",
                peer.name,
            )
        delay = announce_delay(peer.announcements, self._state.rng)
        peer.announce_at = min(now + delay, peer.announced_since + ANNOUNCEMENT_CYCLE)
        peer.announcements += 1

    def _where_to_look(self, peer: Peer) -> list[Address]:
        """Where the peer was last, and where the user says that it is."""
        endpoint = peer.session.endpoint
        if peer.host is not None:
            return self._hosts.where_to_look(peer)
        return list(dict.fromkeys((endpoint, peer.name) if peer.added else (endpoint,)))

    def _announce_to(self, address: Address, peer: Peer, fields: dict[str, bytes], now: float) -> None:
        in_cycle = now - peer.announced_since
        if in_cycle < FULL_ANNOUNCEMENTS_FOR and self._state.legacy_peers and peer.supplied is None:
            members = self._state.encryption.base_members(self._state.port)
            members.update(self._state.local.hello_members(address, now, **fields))
            body = make_announcement_body(members, FULL_ANNOUNCEMENT_SIZE)
            self._state.outgoing.append((address, body))
        else:
            self._send_hello(address, now, **fields)
