# SPDX-License-Identifier: Apache-2.0
"""What a node does as time goes by: timers of peers, rotation of our keys, moving, and the end.

No sockets, threads or clocks; not thread-safe. `now` is seconds of the monotonic clock.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING or not __package__:
    import vault_udp_encryption as encryption_module
    import vault_udp_socket_helper as crypto
    from vault_udp_announce import Introductions
    from vault_udp_base import PIN_AFTER_SILENCE
    from vault_udp_control import FULL_ANNOUNCEMENT_SIZE
    from vault_udp_hosts import Hosts
    from vault_udp_keys import SEALED_OVERHEAD
    from vault_udp_path import NEVER
    from vault_udp_peer import Peer
    from vault_udp_state import MAX_REJECTED, PROBE_INTERVAL, PROBE_PINGS, NodeState
else:
    from . import vault_udp_encryption as encryption_module
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_announce import Introductions
    from .vault_udp_base import PIN_AFTER_SILENCE
    from .vault_udp_control import FULL_ANNOUNCEMENT_SIZE
    from .vault_udp_hosts import Hosts
    from .vault_udp_keys import SEALED_OVERHEAD
    from .vault_udp_path import NEVER
    from .vault_udp_peer import Peer
    from .vault_udp_state import MAX_REJECTED, PROBE_INTERVAL, PROBE_PINGS, NodeState

REKEYS_AT_ONCE = 10
REKEYS_PER_SECOND = 1000
"""After a rotation, so that many sessions do not hold up the messages of all."""
LEADING_ROTATION = (0.97, 1.0)
ROTATION = (1.0, 1.05)
"""When we rotate, in lifetimes since the last time: by chance within the first range if we know several
peers, else within the second."""
EARLIEST_IN_STEP = 0.95
"""From then on the rotation of our only peer takes ours with it: earlier, so that one REKEY that comes late
leaves nobody behind."""


class Upkeep(NodeState):
    """The part of a `Node` that nobody asks for."""

    closed: bool
    _hosts: Hosts
    _introductions: Introductions

    def close(self, now: float) -> None:
        """Say goodbye to everybody and wipe our session keys; what still waits is lost, and counted."""
        if self.closed:
            return
        for peer in self.table.all():
            peer.session.say_goodbye(now)
            self.drop_waiting(peer, "lost_at_stop")
            self.table.forget(peer)
        self.retired.clear()
        self.local.wipe()
        self.closed = True

    def lifetime_changed(self, now: float) -> None:
        """The lifetime was set: it counts from now."""
        lifetime, chance = self.encryption.lifetime, self.rng.random()
        leading, own = (low + (high - low) * chance for low, high in (LEADING_ROTATION, ROTATION))
        self.may_rotate_at = min(self.may_rotate_at, now + lifetime * EARLIEST_IN_STEP)
        self.lead_at = min(self.lead_at, now + lifetime * leading)
        self.rotate_at = min(self.rotate_at, now + lifetime * own)
        self.lead_rotations()
        for address, link in self.base.links.items():
            link.refresh_at = min(link.refresh_at, now + lifetime / 2)
            peer = self.table.settled_at(address)
            assert peer is not None
            self.schedule(peer)

    def identity_changed(self, now: float) -> None:
        """Our own keys were replaced: every session is of an identity that is gone."""
        self._tell_base_peers()
        sign_seed = self.encryption.sign_seed
        if self.local.sign_public == crypto.sign_public_of(sign_seed):
            return  # only the base key is another: the next announcements tell
        for peer in self.table.all():
            peer.session.say_goodbye(now)
            if peer.session.up:
                self.tell_lost(peer, "our own identity was replaced")
            peer.session.close()
        self.retired.clear()
        self.local.change_identity(sign_seed)
        for peer in self.table.all():
            if peer.added:
                self.start_announcing(peer, now)
            elif self.link_of(peer) is None:
                self.table.forget(peer)

    def moved(self, now: float) -> None:
        """We listen on another port: peers in a session follow a ping, base peers an announcement."""
        for peer in self.table.all():
            peer.session.moved(now)
            self.schedule(peer)
        self._tell_base_peers()

    def _tell_base_peers(self) -> None:
        # In clear, for what they hold of us does not open what we seal now, or is not found for our new port.
        for link in self.base.links.values():
            if not link.affords(FULL_ANNOUNCEMENT_SIZE):
                continue
            announcement = self.base.clear_announcement(link.version, self.port, FULL_ANNOUNCEMENT_SIZE)
            if announcement is not None:
                self.outgoing.append((link.address, announcement))

    def deadline(self) -> float:
        """When `run_timers` has something to do next."""
        return min(self.rotate_at, self.timers[0][0] if self.timers else NEVER)

    def run_timers(self, now: float) -> None:
        """Do all that is due at `now`."""
        if self.closed:
            return
        if self.rotate_at <= now:
            self._rotate(now)
        if not self.timers or self.timers[0][0] > now:
            return
        while self.timers and self.timers[0][0] <= now:
            peer = self._take_first_timer()
            if peer is not None:
                self._run_timers_of(peer, now)
                self.schedule(peer)
        self._put_off_needless_timers()

    def _put_off_needless_timers(self) -> None:
        # What was answered meanwhile needs no looking at: after a rotation that is a timer for each session.
        # To ask here costs less than to wake up again for it, but too much for each message.
        while self.timers:
            due = self.timers[0][0]
            peer = self._take_first_timer()
            if peer is not None:
                self.schedule(peer)
                if peer.scheduled <= due:
                    break

    def _run_timers_of(self, peer: Peer, now: float) -> None:
        was_up = peer.session.up
        peer.session.run_timers(now)
        if was_up and not peer.session.up:
            self.tell_lost(peer, "the peer is silent")
            self.start_announcing(peer, now)
        if peer.probe_at <= now:
            self._run_probe(peer, now)
        if self.link_of(peer) is not None:
            self._run_base_timers(peer, now)
        if peer.announce_at <= now:
            self._introductions.announce(peer, now)
        if peer.host is not None and peer.host.look_up_at <= now and peer.names:
            self._hosts.look_up(peer)
        expired = 0
        while peer.queue and peer.queue[0][0] + encryption_module.MAX_MESSAGE_AGE_SECONDS <= now:
            peer.queue.pop(0)
            expired += 1
        if expired:
            self.count_loss("expired_in_queue", expired, peer, now)
            if not peer.added and not peer.queue and not peer.identity:
                self.table.forget(peer)

    def _run_probe(self, peer: Peer, now: float) -> None:
        # A step at a time, however late: after a pause of our own the answers must be read before we judge.
        if peer.session.last_opened > peer.probe_started:
            peer.probe_at = NEVER
        elif peer.probe_pings < PROBE_PINGS:
            peer.probe_pings += 1
            peer.probe_at = now + PROBE_INTERVAL
            peer.session.ping(now)
        else:
            self.release_pin(peer, "silent while another identity asked for its place", now)
            if not peer.added:
                self.table.forget(peer)

    def _run_base_timers(self, peer: Peer, now: float) -> None:
        link = self.base.links[peer.listens_at]
        keys = self.encryption.peer_keys(link.address)
        silent = now - link.opened_at > max(self.encryption.lifetime, PIN_AFTER_SILENCE)
        if keys is None or (silent and not keys.supplied):
            self.base.remove(link.address)
            self.table.set_identity(peer, b"")
            peer.base_ready = False
            self.tell_lost(peer, "its key has expired")
            if peer.added:
                self.start_announcing(peer, now)
            else:
                self.table.forget(peer)
            return
        if link.ready_at <= now and not peer.base_ready:
            peer.base_ready = True
            self.became_ready(peer)
        if link.refresh_at <= now and not link.affords(link.body_size + SEALED_OVERHEAD):
            link.refresh_at = NEVER
        if link.refresh_at <= now:
            self.outgoing.append((link.address, self.base.sealed_announcement(link, self.port, now)))

    # A key exchange that comes alone costs an idle program five times what it costs among others. So who has
    # one peer rotates with it, and who has several rotates before they do. It does not follow any of them:
    # when it rotates would tell the others whom it talks to.

    def lead_rotations(self) -> None:
        """Rotate before those who know nobody but us, if we know several peers."""
        if len(self.table.by_name) > 1:
            self.rotate_at = min(self.rotate_at, self.lead_at)

    def follow_rotation(self, now: float) -> None:
        """A peer has rotated: do so now if it is the only one, and nearly time for us, too."""
        if len(self.table.by_name) == 1 and now >= self.may_rotate_at:
            self.rotate_at = min(self.rotate_at, now)

    def _rotate(self, now: float) -> None:
        self.local.rotate()
        self.log(logging.DEBUG, "our session keys are replaced, for the %d. time", self.local.current.epoch)
        alive = (self.local.current, self.local.previous)
        for tag in [tag for tag, pair in self.retired.items() if pair.mine not in alive]:
            del self.retired[tag]
        # Who has no session is told nothing, and keeps nobody waiting.
        peers = sorted(self.table.all(), key=lambda peer: peer.session.send is None)
        # All within a quarter of a lifetime: who hears of none of two keys of ours has lost us.
        spread = min(1 / REKEYS_PER_SECOND, self.encryption.lifetime / 4 / max(1, len(peers)))
        self.rekeyed_at = now + len(peers) * spread
        for index, peer in enumerate(peers):
            if len(peer.rejected) >= MAX_REJECTED:
                peer.rejected = ()  # so many are told between two rotations, however many come
            had_pairs, was_up = bool(peer.session.pairs), peer.session.up
            peer.session.after_rotation(now + index // REKEYS_AT_ONCE * REKEYS_AT_ONCE * spread)
            if was_up and not peer.session.up:
                self.tell_lost(peer, "it did not follow our rotation")
            if had_pairs and peer.session.send is None:
                if peer.added:
                    self.start_announcing(peer, now)
                elif not peer.session.pairs:
                    self.table.forget(peer)
            self.schedule(peer)
        self.encryption.forget_old_nonces()
        self.forget_whole_allowances(now)
        self.rotate_at = self.lead_at = self.may_rotate_at = NEVER
        self.lifetime_changed(now)
