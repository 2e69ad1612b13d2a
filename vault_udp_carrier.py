# SPDX-License-Identifier: Apache-2.0
"""The threads: they carry between the socket, the node and the user, and decide nothing.

The receive thread blocks in the kernel, hands what comes to the node, and runs the callbacks. The send thread
sends what waits, in batches, and wakes for the node's next deadline; the receive thread keeps an eye on it
instead while it waits itself. One lock guards the node; it is never held while a callback runs, a datagram is
received or sent, a thread is joined, or a line is logged.

A message for a peer that is ready goes one of two ways. While nothing waits, it leaves in its caller's
thread. In a burst it goes into the peer's lane, a list from which the send thread takes it: sealing many at
once and sending them in few system calls makes it fast. While `laned` says that this thread has still to look
into the lane, callers append without the lock, and look at `laned` again behind that: this thread clears it
before it looks, so either it sees the message, or they see that it may not have.

Names of hosts are looked up by a `Resolver`, which has threads while there are any.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import traceback
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Sequence, Tuple, TypeVar

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address
    from vault_udp_datagram import Batch, DatagramSocket, SocketClosed
    from vault_udp_delivery import Delivery
    from vault_udp_encryption import VaultAsymmetricEncryption
    from vault_udp_errors import StoppedError
    from vault_udp_layout import MESSAGE_OVERHEAD
    from vault_udp_node import Node
    from vault_udp_path import NEVER
    from vault_udp_peer import Peer
    from vault_udp_resolver import Resolver
    from vault_udp_state import Event
else:
    from .vault_udp_address import Address
    from .vault_udp_datagram import Batch, DatagramSocket, SocketClosed
    from .vault_udp_delivery import Delivery
    from .vault_udp_encryption import VaultAsymmetricEncryption
    from .vault_udp_errors import StoppedError
    from .vault_udp_layout import MESSAGE_OVERHEAD
    from .vault_udp_node import Node
    from .vault_udp_path import NEVER
    from .vault_udp_peer import Peer
    from .vault_udp_resolver import Resolver
    from .vault_udp_state import Event

logger = logging.getLogger("vault_udp")

OLD_PORT_KEPT = 0.5
"""Seconds for which we still receive at the old port after `update_recv_port`."""
LANE_SIZE = 4096
"""Messages for one peer that may wait for the send thread; `send_data` waits when there are more."""
SMALL_LANE_SIZE = 16384
SMALL_MESSAGE = 64
"""`LANE_SIZE` of messages that share datagrams, if the first has at most so many bytes: they leave as soon,
and the two threads take turns less often."""
LANES_SIZE = 65536
"""Messages that may wait for all peers together, if there are many."""
BYTES_PER_ROUND = 131072
"""About as many bytes of one peer's messages does the send thread seal in one go."""
SLOW_CALLBACKS = 2.0
"""Seconds that callbacks may take for what came together; longer is warned of, at most once in
`SLOW_CALLBACKS_WARNING_INTERVAL`."""
SLOW_CALLBACKS_WARNING_INTERVAL = 60.0
LINGER = 0.02
"""Seconds for which `stop` waits for keys that messages wait for: a few round trips in a local network."""
SEND_TIMEOUT = 1.0
"""Seconds that the send thread has at least to send what is ready, however few callbacks have in `stop`."""
TIMEOUT_AT_EXIT = 1.0
LEAST_AT_EXIT = 0.1
"""Seconds that callbacks may hold up the end of a program that has not called `stop`; and those that each
socket has for its own, however long those of others took."""
BURST_GAP = 15e-6
BURST_LENGTH = 4
"""So many messages, each so many seconds (for each of its peers) after the one before, are a burst: the send
thread takes over."""


Outgoing = Tuple[Address, bytes]
"""A datagram and where to send it."""
Received = Tuple[Address, Sequence[bytes]]
"""What has come from somebody, in order."""

_open_sockets: weakref.WeakSet[Carrier] = weakref.WeakSet()


def _abandon_in_forked_child() -> None:
    for sock in list(_open_sockets):
        sock._abandon()
    _open_sockets.clear()  # they are the parent's to stop


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_forked_child)


@atexit.register
def _stop_what_is_open() -> None:
    """A program that ends without `stop` has sent what it wanted to send, and peers learn that it is gone."""
    deadline = time.monotonic() + TIMEOUT_AT_EXIT
    for sock in list(_open_sockets):
        sock.stop(max(LEAST_AT_EXIT, deadline - time.monotonic()))


_Item = TypeVar("_Item")


def _taken(items: list[_Item]) -> Sequence[_Item]:
    """What is in a list of the node's, which is empty afterwards and stays the same list."""
    if not items:
        return ()
    taken = items[:]
    items.clear()
    return taken


class Carrier:
    """A node with its socket, its lock and its two threads; `UDPSocketClass` is what users see of it."""

    def __init__(self, encryption: VaultAsymmetricEncryption, datagrams: DatagramSocket, node: Node) -> None:
        self._encryption = encryption
        self._datagrams = datagrams
        datagrams.on_too_long, datagrams.on_refused = self._too_long, self._refused
        self._node = node
        node.local.log = self._log_locked
        self._lock = encryption.lock
        self._encryption.on_identity_changed = self._identity_changed_locked
        self._encryption.on_peer_keys_supplied = self._keys_supplied_locked
        self._work = threading.Condition(self._lock)
        """Notified when the send thread has something to do: all, for an exception of a signal handler may
        have left a waiter in it that is none any more."""
        self._room = threading.Condition(self._lock)
        """Notified when the send thread has taken messages out of the lanes."""
        self._ready = threading.Condition(self._lock)
        """Notified when a peer has become ready."""
        self._laned: deque[Peer] = deque()
        self._replaced: list[DatagramSocket] = []
        """Sockets of former ports that the receive thread has still to leave."""
        self._by_name, self._added = node.table.by_name, node.table.added
        self._resolver = Resolver(self._resolved, datagrams.reachable_family)
        self._lane_size = LANE_SIZE
        self._sending = False
        self._last_direct = 0.0
        self._warn_of_slowness_at = 0.0
        self._quick = 0
        self._sleeps_until = 0.0
        self._leave_old_port_at = NEVER
        self._receiver_looks_at = NEVER
        """A deadline that the send thread does not know of, as the receive thread has time for it."""
        self._stopped = False
        self._why_stopped = "the socket was stopped; make a new UDPSocketClass"
        self._for_callbacks: deque[Event] = deque()
        self._lines: deque[tuple[Any, ...]] = deque()
        """What is to be logged; like the events it is the receive thread's to tell."""
        self._delivery = Delivery(node, self._lock, self._slot_connected)
        self._receiver = threading.Thread(target=self._receive_loop, name="vault-udp-receive", daemon=True)
        self._sender = threading.Thread(target=self._send_loop, name="vault-udp-send", daemon=True)

    def _start(self) -> None:
        """Start the threads; all attributes must be there."""
        logger.info("listening on port %d", self._datagrams.port)
        try:
            self._receiver.start()
            self._sender.start()
        except BaseException:  # a signal handler's, or the system has no more threads; the socket is closed
            with self._lock:
                self._stopped = True
                self._work.notify_all()
            raise
        _open_sockets.add(self)

    def stop(self, timeout: float = 5.0) -> None:
        """Send what is ready, say goodbye, and end; see `UDPSocketClass.stop`."""
        raise NotImplementedError

    def _tell(self, event: Event) -> None:
        """Pass an event on; in the receive thread, without the lock."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------- the way out

    def _send(self, peers: Sequence[Peer], message: bytes) -> None:
        """Send a message that fits to each of the peers, or let it wait: for keys, or for the send thread.

        Raises:
            StoppedError: after `stop`, also if that happens while there is no room.
        """
        direct: list[tuple[Address, Sequence[bytes]]] = []
        try:
            with self._lock:
                self._check_running()
                now = time.monotonic()
                is_quick = now - self._last_direct < BURST_GAP * len(peers)
                self._quick = self._quick + 1 if is_quick else 0
                for peer in peers:
                    self._submit_locked(peer, message, now, direct)
        finally:
            # Also if there was no room for one of the peers until `stop`: the others' is sealed and counted.
            if direct:
                datagrams = self._datagrams
                datagrams.awaits_answer = True
                for endpoint, sealed in direct:
                    datagrams.send(sealed, endpoint)
                self._last_direct = time.monotonic()

    def _broadcast(self, peers: Sequence[Peer], message: bytes) -> bool:
        """Send a message to all these peers; False if it does not fit into a datagram to each as it is."""
        if not peers or len(message) > min([peer.room for peer in peers]):
            return False
        others = []
        for peer in peers:
            if peer.laned and len(peer.lane) < self._lane_size:
                peer.lane.append(message)
                if not peer.laned:
                    self._lane_again(peer)
            else:
                others.append(peer)
        if others:
            self._send(others, message)
        return True

    def _lane_again(self, peer: Peer) -> None:
        """The send thread may not have seen what a caller has just added to the lane."""
        with self._lock:
            self._check_running()
            self._lane_locked(peer)

    def _submit_locked(
        self, peer: Peer, message: bytes, now: float, direct: list[tuple[Address, Sequence[bytes]]]
    ) -> None:
        ready = self._node.is_ready(peer, now)
        if not ready and not peer.lane:
            self._node.queue(peer, message, now)
            self._wake_sender_locked()
        elif not ready or self._sending or peer.laned or peer.queue or self._quick >= BURST_LENGTH:
            while len(peer.lane) >= self._lane_size:
                self._room.wait()
                self._check_running()
            peer.lane.append(message)
            self._lane_locked(peer)
        else:
            # Nothing waits: the message leaves in the caller's thread.
            direct.append(self._node.seal_messages(peer, (message,), now))
            self._wake_sender_locked()  # if the peer must now answer sooner than that thread would look

    def _lane_locked(self, peer: Peer) -> None:
        if not peer.laned:
            peer.laned = True
            self._laned.append(peer)
            first = peer.lane[0] if peer.lane else None
            # A CompressedFrame never shares a datagram.
            are_small = type(first) is bytes and len(first) <= SMALL_MESSAGE and peer.session.coalesce
            most = SMALL_LANE_SIZE if are_small else LANE_SIZE
            self._lane_size = max(1, min(most, LANES_SIZE // len(self._laned)))
            self._work.notify_all()

    def _wake_sender_locked(self) -> None:
        """Let the send thread see to what the node has left, or to a deadline earlier than it knows."""
        node = self._node
        if node.outgoing or node.events or node.flushable or node.deadline() < self._sleeps_until:
            self._work.notify_all()

    def _send_loop(self) -> None:
        while True:
            with self._lock:
                self._sending = False
                self._await_work_locked()
                now = time.monotonic()
                self._node.run_timers(now)
                stopped = self._stopped
                batches = self._take_batches_locked(now)
                if stopped and not batches:
                    self._node.close(now)
                has_events = bool(self._node.events)
                outgoing = self._take_outgoing_locked()
                lookups = _taken(self._node.lookups)
                self._sending = bool(batches)
                datagrams = self._datagrams
            if batches:
                datagrams.awaits_answer = True
            for endpoint, sealed in batches:
                datagrams.send(sealed, endpoint)
            self._send_each(outgoing, datagrams)
            if lookups:
                self._resolver.look_up(lookups)
            if has_events:
                datagrams.wake()
            if stopped and not batches:
                return

    def _await_work_locked(self) -> None:
        node = self._node
        while not (self._stopped or self._laned or node.outgoing or node.events or node.flushable):
            self._sleeps_until = node.deadline()
            timeout = self._sleeps_until - time.monotonic()
            if timeout <= 0:
                break
            self._work.wait(min(timeout, threading.TIMEOUT_MAX))
        self._sleeps_until = 0.0

    def _take_batches_locked(self, now: float) -> list[tuple[Address, Sequence[bytes]]]:
        """Seal what waits for ready peers, what waited for keys first; put off what cannot go now."""
        batches = []
        for peer in self._node.take_flushable():
            self._lane_locked(peer)
        for _ in range(len(self._laned)):
            peer = self._laned.popleft()
            peer.laned = False
            lane, ready = peer.lane, self._node.is_ready(peer, now)
            messages = self._node.take_queue(peer) if ready else []
            if lane:
                count = max(64, BYTES_PER_ROUND // (len(lane[0]) + MESSAGE_OVERHEAD))
                taken = lane[:count]
                del lane[: len(taken)]  # no more: callers without the lock may have appended meanwhile
                messages += taken
            if lane:
                self._lane_locked(peer)
            else:
                # Only now: who waits for room and runs beside this thread costs both of them their pace.
                self._room.notify_all()
            if ready and messages:
                batches.append(self._node.seal_messages(peer, messages, now))
            else:
                for message in messages:
                    self._node.queue(peer, message, now)
        return batches

    def _too_long(self, endpoint: Address, datagram: bytes) -> bool:
        """The system refuses a datagram for its size; what was in it is left to the send thread."""
        path_mtu = self._datagrams.path_mtu(endpoint)
        with self._lock:
            is_taken = self._node.refused(endpoint, datagram, path_mtu, time.monotonic())
            self._wake_sender_locked()
        return is_taken

    def _refused(self, endpoint: Address, error: str, count: int) -> None:
        """The system does not take datagrams to that address; the whole socket's counters have it already."""
        with self._lock:
            self._node.note_refused(endpoint, f"socket_{error}", count)

    # ----------------------------------------------------------------------------------------- the way in

    def _receive_loop(self) -> None:
        datagrams = self._datagrams
        while True:
            if self._replaced:
                with self._lock:
                    datagrams, replaced = self._datagrams, _taken(self._replaced)
                for former in replaced:
                    datagrams.take_over(former)
                datagrams.wake()  # whoever has woken a former one may have left something to tell
            try:
                batches = datagrams.receive(min(self._receiver_looks_at, self._leave_old_port_at))
            except SocketClosed:
                break  # by `stop`, which waited for the goodbyes
            if self._leave_old_port_at != NEVER and self._is_time_to_leave():
                datagrams.leave_previous()
            left = self._take_in(batches)
            while left:
                left = self._take_in(left)
        datagrams.leave_previous()
        for former in self._replaced:
            former.close()
        self._tell_what_waits()

    def _is_time_to_leave(self) -> bool:
        """Whether the former ports have been kept for long enough; nobody may have changed ours meanwhile."""
        with self._lock:
            is_time = time.monotonic() >= self._leave_old_port_at
            if is_time:
                self._leave_old_port_at = NEVER
            return is_time

    def _take_in(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Let the node decide about what has come, and call back; returns what is to be left until then."""
        node, now = self._node, time.monotonic()
        left: Sequence[Batch] = ()
        unpacked = 0
        with self._lock:
            for position, (received, source) in enumerate(batches):
                decided = node.receive(received, source, now, unpacked)
                unpacked = node.unpacked
                if decided < len(received):
                    left = [(received[decided:], source), *batches[position + 1 :]]
                    break
            outgoing, deliveries = self._take_outgoing_locked(), _taken(node.deliveries)
            between = _taken(node.between)
            calls_back = deliveries or self._for_callbacks or self._delivery.keeps_messages
            self._share_deadlines_locked(now, has_time=not calls_back and len(outgoing) < 2)
            sending = self._datagrams  # another one if a callback or another thread has changed the port
        self._send_each(outgoing, sending)
        self._call_back(deliveries, between)
        if deliveries:
            self._note_duration(now, time.monotonic())
        return left

    def _note_duration(self, began: float, now: float) -> None:
        if now - began > SLOW_CALLBACKS and now >= self._warn_of_slowness_at:
            self._warn_of_slowness_at = now + SLOW_CALLBACKS_WARNING_INTERVAL
            logger.warning(
                "callbacks took %.1f s: nothing is received meanwhile, and after about 6 s peers take us to "
                "be gone; hand long work to a thread of your own",
                now - began,
            )

    def _share_deadlines_locked(self, now: float, has_time: bool) -> None:
        """See to it that somebody looks when the node's next deadline has come."""
        # Who waits for datagrams can wait for a deadline, too, which the next datagram mostly makes needless;
        # to wake the send thread costs more. But in a flood nobody waits, nor while callbacks run or many
        # datagrams are sent.
        deadline = self._node.deadline() if has_time and not self._node.flushable else now
        if deadline > now:
            self._receiver_looks_at = deadline if deadline < self._sleeps_until else NEVER
        else:
            self._receiver_looks_at = NEVER
            self._wake_sender_locked()

    def _take_outgoing_locked(self) -> Sequence[Outgoing]:
        """What is to be sent, without the lock; events are left to the receive thread."""
        node = self._node
        if node.events or node.between:
            self._ready.notify_all()
            # Under the lock, so that they are told in the order in which they came to be.
            self._for_callbacks.extend(_taken(node.events))
        return _taken(node.outgoing)

    @staticmethod
    def _send_each(outgoing: Sequence[Outgoing], datagrams: DatagramSocket) -> None:
        for endpoint, datagram in outgoing:
            datagrams.send((datagram,), endpoint)

    def _call_back(self, deliveries: Sequence[Received], between: Sequence[tuple[int, Event]]) -> None:
        if self._lines or self._for_callbacks:
            self._tell_what_waits()
        delivered = 0
        for position, event in between:
            self._delivery.deliver_all(deliveries[delivered:position])
            self._tell(event)
            delivered = position
        self._delivery.deliver_all(deliveries[delivered:] if delivered else deliveries)

    def _tell_what_waits(self) -> None:
        while self._lines:
            line = self._lines.popleft()
            try:
                logger.log(*line)
            except Exception:  # a handler's own, which must not end this thread; where to log is nowhere left
                traceback.print_exc()
        while self._for_callbacks:
            self._tell(self._for_callbacks.popleft())

    def _log_locked(self, level: int, text: str, *args: object) -> None:
        """Let the receive thread log that: handlers may have locks, or send by this very socket."""
        if logger.isEnabledFor(level):
            self._lines.append((level, text, *args))
            self._datagrams.wake()

    def _slot_connected(self) -> None:
        """Let the receive thread deliver what was kept."""
        self._datagrams.wake()

    # --------------------------------------------------------------------------------- changes, the end

    def _resolved(self, name: Address, addresses: list[Address], why: str) -> None:
        with self._lock:
            if not self._stopped:
                self._node.resolved(name, addresses, why, time.monotonic())
                self._wake_sender_locked()

    def _replace_socket(self, new: DatagramSocket) -> None:
        """Send from and listen on another socket; the old one is listened to a little longer.

        Raises:
            StoppedError: meanwhile, or before.
        """
        with self._lock:
            if self._stopped:
                new.close()
            self._check_running()
            old, self._datagrams = self._datagrams, new
            new.on_too_long, new.on_refused = self._too_long, self._refused
            self._replaced.append(old)
            self._node.port = new.port
            now = time.monotonic()
            self._leave_old_port_at = now + OLD_PORT_KEPT
            self._node.moved(now)
            self._wake_sender_locked()
        old.wake()
        logger.info("listening on port %d, and for a moment still on %d", new.port, old.port)

    def _identity_changed_locked(self) -> None:
        self._node.identity_changed(time.monotonic())
        self._wake_sender_locked()

    def _keys_supplied_locked(self, address: Address) -> None:
        self._node.keys_supplied(address, time.monotonic())
        self._wake_sender_locked()

    def _await_keys(self, timeout: float) -> None:
        """A program that adds a peer, sends and stops at once: its message shall leave."""
        with self._lock:
            if threading.current_thread() is not self._receiver:
                self._ready.wait_for(lambda: not self._node.awaits_keys(time.monotonic()), timeout)

    def _stop_threads(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._await_keys(min(timeout, LINGER))
        self._resolver.stop()
        with self._lock:
            is_first, self._stopped = not self._stopped, True
            self._by_name, self._added = {}, {}  # no way past the check of `_stopped`
            self._work.notify_all()
            self._room.notify_all()
            self._ready.notify_all()
        if is_first:
            logger.info("stopping; port %d is free then", self._datagrams.port)
        current = threading.current_thread()
        if current is not self._sender:
            self._sender.join(max(SEND_TIMEOUT, deadline - time.monotonic()))
        self._datagrams.close()
        if current is not self._receiver:
            self._receiver.join(max(0.0, deadline - time.monotonic()))
            if timeout > 0 and self._receiver.is_alive():
                logger.warning(
                    "the receive thread is still at work after %.1f s, most likely in a callback; "
                    "the socket stops without it",
                    timeout,
                )
        with self._lock:
            self._node.close(time.monotonic())  # if the send thread still hangs in a system call
            self._encryption.stop()
        _open_sockets.discard(self)
        # Break the cycles through us, so that a stopped socket is freed at once and not by the collector.
        self._encryption.on_identity_changed = self._encryption.on_peer_keys_supplied = None
        self._node.local.log = logger.log

    def _holds_lock(self) -> bool:
        """Whether this very thread does."""
        try:
            self._work.notify(0)
        except RuntimeError:
            return False
        return True

    def _check_running(self) -> None:
        if self._stopped:
            raise StoppedError(self._why_stopped)

    def _abandon(self) -> None:
        # In a forked child: two processes must never seal under the same counters. The lock may be held by
        # a thread that does not exist here, so it is replaced.
        self._stopped = True
        self._why_stopped = "a socket does not survive a fork; make a new UDPSocketClass in the child process"
        self._lock = self._encryption.lock = threading.RLock()
        self._work = self._room = self._ready = threading.Condition(self._lock)
        self._by_name, self._added = {}, {}
        self._encryption.stop()
        self._node.local.wipe()
        self._resolver.abandon()
        for datagrams in (self._datagrams, *self._replaced):
            datagrams.abandon()
