# SPDX-License-Identifier: Apache-2.0
"""Peers that come, go, move and are removed: ``python -m benchmarks.soak --minutes 30``.

One hub and many peers in one process, real sockets on 127.0.0.1, keys rotated every 5 s. Once a second one
peer stops and comes back as somebody new (at its port or another), or moves to another port, or is removed by
the hub and added again. Every message has a number, and each of them is accounted for:

    sent = delivered + lost while its peer was changing + lost for a named reason + unexplained

Ends with 1 if anything is unexplained or came twice, if a callback raised, or if threads, descriptors or
memory are not what so many sockets need.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from statistics import median

import psutil

from vault_udp_socket import BindError, StoppedError, UDPSocketClass

from .ends import HOST, PATIENCE, Address

LIFETIME = 5
TICK = 0.02
CHANGE_EVERY = 1.0
CHANGE_MARGIN = 0.5
"""Seconds around a change in which a message may meet nobody; nobody sees that, so it has no name."""
SETTLED_AFTER = 70.0
"""Seconds after which a message that has not come will not come: it waits for keys 60 s at most."""
THREADS_PER_SOCKET = 2
DESCRIPTORS_PER_SOCKET = 3
SIZES = (20, 200, 1200)
MAX_GROWTH = 0.05
"""Share of the memory that may be gained from the first part of the run to the last."""
MIN_SAMPLES = 20
"""Rows below which memory is not judged."""
LOSSES = (
    "expired_in_queue",
    "queue_full",
    "queued_for_another_identity",
    "peer_removed",
    "lost_at_stop",
    "too_large_for_peer",
    "rate_limited",
    "nobody_connected",
    "unknown_tag",
    "outside_window",
    "forged",
    "replayed",
    "kernel_drops",
)
"""Counters of messages, and of datagrams that may have carried some. Errors of the socket are added."""
_NUMBER = struct.Struct(">Q")


class Ledger:
    """Every message that was sent and has not come yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[float, Station]] = {}
        self._numbers = 0
        self.refused = self.delivered = self.twice = self.lost = self.lost_in_change = 0

    @property
    def sent(self) -> int:
        return self._numbers - self.refused

    @property
    def pending(self) -> int:
        return len(self._pending)

    def new_message(self, station: Station, size: int) -> bytes:
        """A message to or from this peer."""
        with self._lock:
            self._numbers += 1
            self._pending[self._numbers] = (time.monotonic(), station)
            return _NUMBER.pack(self._numbers) + os.urandom(size - _NUMBER.size)

    def take_back(self, message: bytes) -> None:
        """The sender was told that it is not sent."""
        with self._lock:
            del self._pending[_NUMBER.unpack_from(message)[0]]
            self.refused += 1

    def receive(self, message: bytes, _: Address) -> None:
        """The slot of every socket."""
        with self._lock:
            if self._pending.pop(_NUMBER.unpack_from(message)[0], None) is None:
                self.twice += 1
            else:
                self.delivered += 1

    def settle(self, older_than: float) -> None:
        """Give up what was sent so many seconds ago."""
        limit = time.monotonic() - older_than
        with self._lock:
            for number, (sent_at, station) in list(self._pending.items()):
                if sent_at > limit:
                    break
                del self._pending[number]
                self.lost += 1
                self.lost_in_change += station.was_changing(sent_at)


class Station:
    """A peer's place: the socket that is there now, and when it changed."""

    def __init__(self, hub: UDPSocketClass, ledger: Ledger) -> None:
        self._hub, self._ledger = hub, ledger
        self._changes: list[tuple[float, float]] = []
        self.counters: Counter[str] = Counter()
        self._open(self._new_port())

    def _new_port(self) -> int:
        """A free port by which the hub knows nobody: a peer that has moved on keeps its name."""
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((HOST, 0))
                port: int = probe.getsockname()[1]
            if not self._hub.has_peer((HOST, port)):
                return port

    def _open(self, port: int) -> None:
        try:
            self.sock = UDPSocketClass(port, lifetime=LIFETIME)
        except BindError:  # somebody else took the port meanwhile
            self._open(self._new_port())
            return
        self.sock.udp_recv_bytes.connect(self._ledger.receive)
        self.name: Address = (HOST, self.sock.recv_port)
        self._hub.add_peer(self.name)
        self.sock.add_peer((HOST, self._hub.recv_port))

    def close(self) -> None:
        """Stop, and keep what was counted."""
        self.sock.stop()
        self.counters.update(self.sock.get_stats()["counters"])

    def was_changing(self, moment: float) -> bool:
        """Whether the peer came, went or moved about then."""
        return any(began - CHANGE_MARGIN <= moment <= ended + CHANGE_MARGIN for began, ended in self._changes)

    def change(self, kind: str) -> None:
        """Do one of `CHANGES`."""
        began = time.monotonic()
        self._changes = [times for times in self._changes if times[1] > began - 2 * SETTLED_AFTER]
        if kind == "move":
            self.sock.update_recv_port(self._new_port())
            return  # nothing may be lost
        if kind == "be removed":
            self._hub.remove_peer(self.name)
            self.name = (HOST, self.sock.recv_port)
            self._hub.add_peer(self.name)
        else:
            old, port = self.name, self.sock.recv_port
            self.close()
            self._open(port if kind == "restart here" else self._new_port())
            if old != self.name:
                self._hub.remove_peer(old)
        self._changes.append((began, time.monotonic()))


CHANGES = ("restart here", "restart elsewhere", "move", "be removed")


class Soak:
    """The run."""

    def __init__(self, peers: int, rate: float, seed: int) -> None:
        self._rng = random.Random(seed)
        self._process = psutil.Process()
        self._ledger = Ledger()
        self._threads_before = threading.active_count()
        self._descriptors_before = _descriptors(self._process)
        self._per_tick = rate * TICK
        self._samples: list[int] = []
        self.faults: list[str] = []
        self._ending = threading.Event()
        self._changing = threading.Lock()
        """Held while there may be more or fewer sockets than peers."""
        self._hub = UDPSocketClass(0, lifetime=LIFETIME)
        self._hub.udp_recv_bytes.connect(self._ledger.receive)
        self._stations = [Station(self._hub, self._ledger) for _ in range(peers)]

    def run(self, seconds: float, report_every: float) -> None:
        """Traffic and changes for so many seconds, then wait for what is on its way, and account."""
        print(
            "  time s  RSS MiB  threads  descriptors       sent  delivered  pending     lost"
            "  in change  twice  counted by name",
            flush=True,
        )
        began = time.monotonic()
        changer = threading.Thread(target=self._change_peers)
        changer.start()
        next_report, owed = began + report_every, 0.0
        while True:
            now = time.monotonic()
            if now >= next_report:
                self._ledger.settle(SETTLED_AFTER)
                self._report(now - began)
                next_report += report_every
            if now - began >= seconds:
                break
            owed += self._per_tick
            while owed >= 1:
                owed -= 1
                self._send_one()
            time.sleep(max(0.0, now + TICK - time.monotonic()))
        self._ending.set()
        changer.join()
        self._finish(began)

    def _change_peers(self) -> None:
        rng = random.Random(self._rng.random())
        while not self._ending.wait(CHANGE_EVERY):
            with self._changing:
                rng.choice(self._stations).change(rng.choice(CHANGES))

    def _send_one(self) -> None:
        station = self._rng.choice(self._stations)
        message = self._ledger.new_message(station, self._rng.choice(SIZES))
        try:
            if self._rng.random() < 0.5:
                self._hub.send_data(message, station.name)
            else:
                station.sock.send_data(message, (HOST, self._hub.recv_port))
        except StoppedError:  # a peer on its way out
            self._ledger.take_back(message)

    def _finish(self, began: float) -> None:
        until = time.monotonic() + PATIENCE
        pending, quiet_since = -1, time.monotonic()
        while time.monotonic() < until and time.monotonic() - quiet_since < 3:
            if self._ledger.pending != pending:
                pending, quiet_since = self._ledger.pending, time.monotonic()
            time.sleep(0.1)
        self._report(time.monotonic() - began)
        for station in self._stations:
            station.close()
        self._hub.stop()
        self._ledger.settle(0)
        self._judge()

    def counters(self) -> Counter[str]:
        """The counters of every socket there ever was."""
        total: Counter[str] = Counter(self._hub.get_stats()["counters"])
        for station in self._stations:
            total.update(station.counters)
            if not station.sock._stopped:
                total.update(station.sock.get_stats()["counters"])
        return total

    def _report(self, seconds: float) -> None:
        with self._changing:
            ledger, counters = self._ledger, self.counters()
            threads, descriptors = threading.active_count(), _descriptors(self._process)
        named = {name: count for name, count in counters.items() if count and _is_loss(name)}
        sockets = len(self._stations) + 1
        gc.collect()  # a stopped socket is a cycle: what awaits the collector is no growth
        self._samples.append(self._process.memory_info().rss)
        print(
            f"{seconds:8.0f} {self._samples[-1] / 2**20:8.1f} {threads:8} {descriptors:12} {ledger.sent:10}"
            f" {ledger.delivered:10} {ledger.pending:8} {ledger.lost:8} {ledger.lost_in_change:10}"
            f" {ledger.twice:6}  {named}",
            flush=True,
        )
        others = 0 if self._ending.is_set() else 1  # the thread that changes peers
        self._expect(threads - self._threads_before - others, THREADS_PER_SOCKET * sockets, 0, "threads")
        # A socket that has moved keeps its old port for half a second.
        spare = 2 * DESCRIPTORS_PER_SOCKET
        self._expect(
            descriptors - self._descriptors_before, DESCRIPTORS_PER_SOCKET * sockets, spare, "descriptors"
        )

    def _expect(self, found: int, expected: int, spare: int, what: str) -> None:
        if not expected <= found <= expected + spare:
            self.faults.append(f"{found} {what} where {expected} are needed")

    def _judge(self) -> None:
        ledger, counters = self._ledger, self.counters()
        print("\nevery counter:", dict(sorted(counters.items())))
        named = sum(count for name, count in counters.items() if _is_loss(name))
        unexplained = max(0, ledger.lost - ledger.lost_in_change - named)
        print(
            f"sent {ledger.sent} = delivered {ledger.delivered} + in a change {ledger.lost_in_change} + "
            f"named or unexplained {ledger.lost - ledger.lost_in_change} (named {named}); "
            f"unexplained {unexplained}, twice {ledger.twice}"
        )
        if unexplained:
            self.faults.append(f"{unexplained} messages were lost without a reason")
        if ledger.twice:
            self.faults.append(f"{ledger.twice} messages came twice, or were never sent")
        if counters["callback_errors"]:
            self.faults.append(f"{counters['callback_errors']} callbacks raised")
        if len(self._samples) >= MIN_SAMPLES:
            fifth = len(self._samples) // 5
            early, late = median(self._samples[fifth : 2 * fifth]), median(self._samples[-fifth:])
            print(f"memory: {early / 2**20:.1f} MiB early, {late / 2**20:.1f} MiB late")
            if late > early * (1 + MAX_GROWTH):
                self.faults.append(f"memory grew from {early:.0f} to {late:.0f} bytes")


def _is_loss(name: str) -> bool:
    return name in LOSSES or name.startswith("socket_")


def _descriptors(process: psutil.Process) -> int:
    return process.num_fds()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--rate", type=float, default=1000, help="messages a second, all together")
    parser.add_argument("--report-every", type=float, default=10, help="seconds between two rows")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    soak = Soak(arguments.peers, arguments.rate, arguments.seed)
    soak.run(60 * arguments.minutes, arguments.report_every)
    for fault in soak.faults:
        print("FAULT:", fault)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
