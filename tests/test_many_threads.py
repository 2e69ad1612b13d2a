# SPDX-License-Identifier: Apache-2.0
"""Eight threads call every method at random against live traffic: nothing hangs, all messages are counted.

``MANY_THREADS_SECONDS`` sets for how long; it is the amount of work, nothing waits for it.
"""

from __future__ import annotations

import faulthandler
import os
import random
import threading
import time
from collections import Counter
from typing import Any, Callable

from loopback import PATIENCE, address_of, eventually

from vault_udp_socket import StoppedError, UDPSocketClass

SECONDS = float(os.environ.get("MANY_THREADS_SECONDS", "2"))
THREADS = 8
HANGS_AFTER = 60.0

NEVER_SEALED = {
    "queue_full",
    "expired_in_queue",
    "peer_removed",
    "queued_for_another_identity",
    "lost_at_stop",
}
"""Reasons, counted in messages, for which what was accepted from the caller did not leave."""
NO_LOSSES = {"datagrams_received", "sent", "received", "goodbyes", "hello_without_echo", "strangers_evicted"}
"""What is left of the counters are datagrams that were dropped; each carried one message of ours, or none."""


class Crowd:
    """Three sockets that stay, one that is stopped and replaced all the time, and who calls their methods."""

    def __init__(self) -> None:
        self.stayers = [UDPSocketClass(0, None) for _ in range(3)]
        self.guest = UDPSocketClass(0, None)
        self.past_guests: list[UDPSocketClass] = []
        self.offered: Counter[UDPSocketClass] = Counter()
        self.sent_bytes: set[bytes] = set()
        self.got: list[bytes] = []
        self.calls: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._moved_at = 0.0
        for sock in self.stayers:
            sock.udp_recv_bytes.connect(self._receive)
            for peer in self.stayers:
                if peer is not sock:
                    sock.add_peer(address_of(peer))

    def _receive(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append(data)

    def send(self, sock: UDPSocketClass, rng: random.Random, *, to_all: bool) -> None:
        """Send a few messages, each too long to share a datagram with another."""
        peer = address_of(rng.choice([other for other in self.stayers if other is not sock]))
        for _ in range(rng.randrange(1, 9)):
            message = rng.getrandbits(8 * 800).to_bytes(800, "big")
            with self._lock:
                self.sent_bytes.add(message)
            if to_all:
                targets = list(sock._added)
                sock._broadcast(targets, message)  # what `send_data` does; only so is it known to how many
            else:
                targets = [sock._node.table.by_name.get(peer)]  # type: ignore[list-item]
                sock.send_data(message, peer)
            with self._lock:
                self.offered[sock] += len(targets)

    def move(self, sock: UDPSocketClass) -> None:
        """Change the port, but leave each old port its time: what comes to a closed one is lost uncounted."""
        with self._lock:
            if sock is self.guest or time.monotonic() - self._moved_at < 1.5:
                return
            self._moved_at = time.monotonic()
        sock.update_recv_port(0)

    def replace_guest(self) -> None:
        with self._lock:
            guest, self.guest = self.guest, UDPSocketClass(0, None, lifetime=5)
            self.past_guests.append(guest)
        guest.stop()
        guest.stop()

    def call(self, rng: random.Random) -> None:
        """One call of one method of one of the sockets."""
        sock = rng.choice([*self.stayers, self.guest])
        peer = address_of(rng.choice([other for other in self.stayers if other is not sock]))

        def slot(*args: Any) -> None:
            pass

        def connect_and_disconnect() -> None:
            sock.udp_recv_data.connect(slot)
            sock.udp_recv_data.disconnect(slot)

        actions: dict[str, tuple[int, Callable[[], object]]] = {
            "send": (20, lambda: self.send(sock, rng, to_all=False)),
            "send to all": (10, lambda: self.send(sock, rng, to_all=True)),
            "add": (10, lambda: sock.add_peer(peer)),
            "remove": (1, lambda: sock.remove_peer(peer)),
            "peers": (2, sock.get_peers),
            "peers by ip": (2, lambda: sock.get_peers_by_ip("127.0.0.1")),
            "has": (2, lambda: sock.has_peer(peer)),
            "key": (2, lambda: sock.get_peer_key(peer)),
            "keys": (2, sock.get_all_peer_keys),
            "own key": (2, lambda: sock.own_public_key),
            "info": (2, lambda: sock.get_peer_info(peer)),
            "wait": (2, lambda: sock.wait_ready(peer, rng.random() / 50)),
            "port": (2, lambda: sock.recv_port),
            "move": (2, lambda: self.move(sock)),
            "lifetime": (2, lambda: sock.update_lifetime(rng.uniform(5, 60))),
            "get lifetime": (2, lambda: sock.lifetime),
            "stats": (2, sock.get_stats),
            "repr": (2, lambda: repr(sock)),
            "slots": (2, connect_and_disconnect),
            "guest": (1, self.replace_guest),
        }
        weights = [weight for weight, _ in actions.values()]
        [name] = rng.choices(list(actions), weights)
        self.calls[name] += 1
        try:
            actions[name][1]()
        except StoppedError:
            assert sock not in self.stayers, f"{name}: nobody has stopped this one"

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not self.done.wait(0.002):
                self.call(rng)
        except BaseException as error:
            self.failures.append(error)
            self.done.set()

    # --------------------------------------------------------------------------------------- the books

    def unaccounted_in(self, sock: UDPSocketClass) -> int:
        """Messages that callers have handed over, less those that left, that wait and that were dropped."""
        with sock._lock:
            counters = sock._node.counters
            waiting = sum(len(peer.queue) + len(peer.lane) for peer in sock._node.table.all())
            return self.offered[sock] - counters["sent"] - waiting - sum(counters[r] for r in NEVER_SEALED)

    def on_the_way(self) -> tuple[int, int]:
        """Messages that left and were not received, and the datagrams that were dropped and counted."""
        missing = drops = 0
        for sock in [*self.stayers, self.guest, *self.past_guests]:
            counters = sock.get_stats()["counters"]
            missing += counters["sent"] - counters["received"]
            drops += sum(n for name, n in counters.items() if name not in NO_LOSSES | NEVER_SEALED)
        return missing, drops

    def received(self) -> int:
        """Messages that the sockets with a slot have received."""
        return sum(sock.get_stats()["counters"]["received"] for sock in self.stayers)

    def stop(self) -> None:
        for sock in [*self.stayers, self.guest, *self.past_guests]:
            sock.stop()


def test_eight_threads_that_call_everything_at_random() -> None:
    faulthandler.dump_traceback_later(SECONDS + HANGS_AFTER, exit=False)
    crowd = Crowd()
    try:
        threads = [threading.Thread(target=crowd.run, args=(seed,), daemon=True) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        crowd.done.wait(SECONDS)
        crowd.done.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads), "a call hangs"
        assert not crowd.failures, crowd.failures
        for sock in crowd.stayers:
            eventually(lambda: crowd.unaccounted_in(sock) == 0, "every message accepted is counted")  # noqa: B023
        eventually(lambda: crowd.on_the_way()[0] <= crowd.on_the_way()[1], "every loss has a name")
        missing, _ = crowd.on_the_way()
        assert missing >= 0, "more was received than sent"
        # Some of what was on the way may still come: both sides of the equation are read anew each time.
        eventually(lambda: len(crowd.got) == crowd.received(), "the callbacks get what the counters say")
        assert set(crowd.got) <= crowd.sent_bytes
        assert len(crowd.got) > 100
    finally:
        crowd.done.set()
        crowd.stop()
        faulthandler.cancel_dump_traceback_later()
