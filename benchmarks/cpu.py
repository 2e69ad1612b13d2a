# SPDX-License-Identifier: Apache-2.0
"""Processor time: of a quiet program, of many peers, of strangers, and of starting."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Callable, Iterator

import vault_udp_socket_helper as crypto
from vault_udp_packet import looks_clear
from vault_udp_socket import UDPSocketClass

from . import nodes
from .ends import HOST, NO_LIMIT, PATIENCE, Address, expect, process, raw_socket
from .nodes import SERVER, Clock, End
from .report import Row

ROOT = Path(__file__).resolve().parent.parent
PACE = 0.01
"""Seconds between two messages at 100 a second."""
PACED_SIZE = 100
SEALED_PLAIN_SIZE = 1417
"""Bytes of plaintext in each datagram where the interface carries 1500."""
BIG = 1200
IDLE_PEERS = 100
WHOLE = "a whole announcement"
AT_ONCE = 32
"""Datagrams that wait when the receive thread looks."""
IN_CACHE = 512
"""Datagrams of full size that fit into the second cache of nearly every processor."""
BURST_OVER = 50e-6
"""Seconds of silence, for each peer, after which a message to all of them is no part of a burst any more."""


def measure(quick: bool) -> tuple[list[Row], dict[str, list[tuple[int, float]]]]:
    """All rows of this module, and (peers, microseconds a datagram) for the plot."""
    broadcasts, by_peers = _broadcast_rows(quick)
    receive, receive_by_peers = _many_known_peers_row(quick)
    rows = [
        _paced_row(4, 1) if quick else _paced_row(8, 5),
        _idle_row(4 if quick else 66),
        *broadcasts,
        receive,
        _start_row(5 if quick else 15),
        _garbage_row(10_000 if quick else 100_000, 1 if quick else 3),
    ]
    return rows, {**by_peers, "receive": receive_by_peers}


# ------------------------------------------------------------------- 100 messages a second in each direction


def _paced_row(seconds: float, repetitions: int) -> Row:
    roles = (paced_vault, paced_raw, paced_sealed)
    runs = [[_paced(role, seconds) for role in roles] for _ in range(repetitions)]
    ours, plain, sealed = (median(side) for side in zip(*runs))
    details = {"raw %": plain, "sealed %": sealed, "seconds": seconds, "repetitions": repetitions}
    return Row("processor, 100 messages/s each way", ours, "% of core", 0.5, 0.2, details=details)


def _paced(role: Callable[[Connection, float], None], seconds: float) -> float:
    """Percent of a core, of the end that takes more."""
    with process(role, seconds) as one, process(role, seconds) as other:
        addresses = expect(one), expect(other)
        one.send(addresses[1])
        other.send(addresses[0])
        results = [expect(one, seconds), expect(other, seconds)]
        for received, _ in results:
            if received < 0.9 * seconds / PACE:
                raise RuntimeError(f"only {received} messages came in {seconds} s")
        return max(100 * float(cpu) / seconds for _, cpu in results)


def paced_vault(link: Connection, seconds: float) -> None:
    """One end, through the public API."""
    received = 0

    def count(_: bytes, __: Address) -> None:
        nonlocal received
        received += 1

    with UDPSocketClass(0) as sock:
        sock.udp_recv_bytes.connect(count)
        link.send((HOST, sock.recv_port))
        address = link.recv()
        sock.add_peer(address)
        sock.wait_ready(address, PATIENCE)
        cpu = _send_paced(sock.send_data, address, seconds)
        link.send((received, cpu))
        link.recv()


def paced_raw(link: Connection, seconds: float) -> None:
    """One end, with plain sockets."""
    _paced_plain(link, seconds, lambda message: message, lambda datagram: datagram)


def paced_sealed(link: Connection, seconds: float) -> None:
    """One end, with plain sockets and libsodium, and nothing of the library's: what such a program must pay.

    A datagram has the length of ours; both ends have one key, and nobody looks whether a nonce was there.
    """
    key = bytes(crypto.KEY_SIZE)

    def seal(message: bytes) -> bytes:
        return crypto.seal(key, os.urandom(crypto.NONCE_SIZE), message.ljust(SEALED_PLAIN_SIZE, b"\0"))

    _paced_plain(link, seconds, seal, lambda datagram: crypto.open_sealed(key, datagram))


def _paced_plain(
    link: Connection, seconds: float, seal: Callable[[bytes], bytes], opened: Callable[[bytes], bytes]
) -> None:
    received = 0

    def receive() -> None:
        nonlocal received
        while len(datagram := sock.recvfrom(65535)[0]) > 1:
            opened(datagram)
            received += 1

    with raw_socket() as sock:
        receiver = threading.Thread(target=receive)
        receiver.start()
        link.send(sock.getsockname())
        cpu = _send_paced(lambda data, to: sock.sendto(seal(data), to), link.recv(), seconds)
        link.send((received, cpu))
        link.recv()
        sock.sendto(b"E", sock.getsockname())
        receiver.join()


def _send_paced(send: Callable[[bytes, Address], object], address: Address, seconds: float) -> float:
    message = os.urandom(PACED_SIZE)
    began, cpu_began = time.perf_counter(), time.process_time()
    for index in range(round(seconds / PACE)):
        send(message, address)
        time.sleep(max(0.0, began + (index + 1) * PACE - time.perf_counter()))
    return time.process_time() - cpu_began


# ------------------------------------------------------------------------------------------- idle with peers


def _idle_row(seconds: float) -> Row:
    """Over 66 s there is a rotation of each end, which is the larger part of the cost."""
    with process(many_nodes, IDLE_PEERS) as link, UDPSocketClass(0) as sock:
        for address in expect(link):
            sock.add_peer(address)
        _await_sessions(sock, IDLE_PEERS)
        time.sleep(1)  # what confirms the sessions is not idleness
        began = time.process_time()
        time.sleep(seconds)
        cpu = 100 * (time.process_time() - began) / seconds
        if len(_sessions(sock)) != IDLE_PEERS:
            raise RuntimeError("sessions were lost while idle")
    details = {"seconds": seconds, "with rotations": seconds > 63}
    return Row(f"processor, idle with {IDLE_PEERS} peers", cpu, "% of core", 0.1, details=details)


def _sessions(sock: UDPSocketClass) -> list[Address]:
    return [address for address, mode in sock.get_stats()["peer_modes"].items() if mode == "session"]


def _await_sessions(sock: UDPSocketClass, count: int) -> None:
    until = time.monotonic() + 3 * PATIENCE
    while len(_sessions(sock)) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(_sessions(sock))} of {count} sessions")
        time.sleep(0.05)


class _SocketNode:
    """A node behind a plain socket: a peer that needs no thread."""

    def __init__(self, clock: Clock) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((HOST, 0))
        self.sock.setblocking(False)
        self.end = End(clock, self.sock.getsockname())

    def readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram, source = self.sock.recvfrom(65535)
                self.end.receive((datagram,), source)

    def send_outgoing(self) -> None:
        for address, datagram in self.end.take_outgoing():
            self.sock.sendto(datagram, address)


def many_nodes(link: Connection, count: int) -> None:
    """A process with so many peers, each at its own port; they answer whatever comes."""
    clock = Clock()
    offset = clock.now - time.monotonic()
    peers = [_SocketNode(clock) for _ in range(count)]
    by_descriptor = {peer.sock.fileno(): peer for peer in peers}
    selector = selectors.DefaultSelector()
    selector.register(link.fileno(), selectors.EVENT_READ)
    for descriptor in by_descriptor:
        selector.register(descriptor, selectors.EVENT_READ)
    link.send([peer.sock.getsockname() for peer in peers])
    while True:
        deadline = min(peer.end.node.deadline() for peer in peers)
        ready = selector.select(max(0.0, min(deadline - clock.now, 1.0)))
        clock.now = time.monotonic() + offset
        for key, _ in ready:
            if key.fd == link.fileno():
                selector.close()
                for peer in peers:
                    peer.sock.close()
                return
            by_descriptor[key.fd].readable()
        for peer in peers:
            peer.send_outgoing()


# ------------------------------------------------------------------------------------------------ broadcasts


def _broadcast_rows(quick: bool) -> tuple[list[Row], dict[str, list[tuple[int, float]]]]:
    """One broadcast at a time, so that each datagram is sealed and sent by itself, to an address of its own.

    It is the time of the calling thread, in which such datagrams leave. Broadcasts one right after the other
    go through the send thread; their cost is of the whole process, and shown beside it.
    """
    counts = (1, 10, 100) if quick else (1, 10, 100, 1000)
    datagrams = 2_000 if quick else 10_000
    single, burst = [], []
    for count in counts:
        one, many = _broadcast(count, datagrams)
        single.append((count, one))
        burst.append((count, many))
    rows = [
        _broadcast_row("broadcast, cost a datagram, worst of all counts", single, 1.3, 1.1),
        # How many datagrams to a peer share a system call depends on the pace: shown without a limit.
        _broadcast_row("broadcast in a burst, the same", burst, None, None),
    ]
    return rows, {"broadcast": single, "broadcast in a burst": burst}


def _broadcast_row(name: str, costs: list[tuple[int, float]], must: float | None, aims: float | None) -> Row:
    details = {f"{count} peers us": cost for count, cost in costs}
    return Row(name, max(cost for _, cost in costs) / costs[0][1], "x of 1", must, aims, details=details)


def _broadcast(peers: int, datagrams: int) -> tuple[float, float]:
    """Microseconds a datagram: one broadcast at a time, and in a burst."""
    message = os.urandom(BIG)
    with process(many_nodes, peers) as link, UDPSocketClass(0, NO_LIMIT) as sock:
        for address in expect(link):
            sock.add_peer(address)
        _await_sessions(sock, peers)
        rounds = max(1, datagrams // peers)
        spent = 0
        for index in range(rounds + 1):
            _let_burst_pass(peers)
            began = time.thread_time_ns()
            sock.send_data(message)
            if index:  # the first one fills caches
                spent += time.thread_time_ns() - began
        sent_before = sock.get_stats()["counters"]["sent"]
        cpu_began = time.process_time()
        for _ in range(rounds):
            sock.send_data(message)
        _await_sent(sock, sent_before + rounds * peers)
        cpu = time.process_time() - cpu_began
    return spent / (rounds * peers) / 1000, cpu / (rounds * peers) * 1e6


def _let_burst_pass(peers: int) -> None:
    until = time.perf_counter() + peers * BURST_OVER
    while time.perf_counter() < until:
        pass


def _await_sent(sock: UDPSocketClass, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while sock.get_stats()["counters"]["sent"] < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{sock.get_stats()['counters']} and not {count} sent")
        time.sleep(0.01)


# --------------------------------------------------------------------------------- many peers, and strangers


def _many_known_peers_row(quick: bool) -> tuple[Row, list[tuple[int, float]]]:
    """`Node.receive` called with one datagram at a time, the peers in turns, each not for the first time."""
    total = 2_000 if quick else 10_000
    costs = []
    for peers in sorted({1, 100, total}):
        costs.append((peers, median(_receive_cost(peers, total) for _ in range(1 if quick else 3))))
    details = {f"{peers} peers us": cost for peers, cost in costs}
    worst = costs[-1][1] / costs[0][1]
    return Row(f"receive, cost a datagram, {total} known peers", worst, "x of 1", 1.3, details=details), costs


def _receive_cost(peers: int, datagrams: int) -> float:
    """Microseconds a datagram."""
    clock = Clock()
    server = End(clock, SERVER)
    sealed: list[list[bytes]] = []
    with process(sealing_peers, 1 + datagrams // peers) as link:
        for index in range(peers):
            address = nodes.address_of(index)
            server.node.add_peer(address, clock.now)
            incoming: list[bytes] = []
            while incoming or not server.is_ready(address):
                if clock.now > nodes.START + nodes.MAX_STEPS * nodes.STEP:
                    raise TimeoutError(f"no session with {address}")
                link.send((index, clock.now, [datagram for _, datagram in server.take_outgoing()]))
                incoming = expect(link)
                for datagram in incoming:
                    server.receive((datagram,), address)
                clock.now += nodes.STEP
            clock.now = nodes.START
            link.send((index, clock.now, None))
            sealed.append(expect(link))
            server.receive((sealed[index].pop(0),), address)
    in_turns = [(its[turn], peer) for turn in range(datagrams // peers) for peer, its in enumerate(sealed)]
    receive, before, spent = server.receive, server.received, 0.0
    with _no_collector():
        for first in range(0, len(in_turns), AT_ONCE):
            # Copies: what the kernel hands over is new, in the cache, and lies together.
            batch = [
                (bytes(bytearray(datagram)), nodes.address_of(peer))
                for datagram, peer in in_turns[first : first + AT_ONCE]
            ]
            began = time.process_time()
            for datagram, source in batch:
                receive((datagram,), source)
            spent += time.process_time() - began
    if server.received - before != len(in_turns):
        raise RuntimeError(f"dropped: {dict(server.node.counters)}")
    return spent / len(in_turns) * 1e6


def sealing_peers(link: Connection, count: int) -> None:
    """Peers of `SERVER`, one after the other, in a process of their own: they shall not share its caches.

    Told (index, now, datagrams for that peer) it answers with what that one sends; without datagrams, with
    `count` sealed messages.
    """
    peers: dict[int, End] = {}
    clock, message = Clock(), os.urandom(BIG)
    while (order := link.recv()) != "stop":
        index, clock.now, datagrams = order
        if index not in peers:
            peers = {index: End(clock, nodes.address_of(index))}
            peers[index].node.add_peer(SERVER, clock.now)
        if datagrams is None:
            link.send([peers[index].seal(SERVER, (message,))[0] for _ in range(count)])
            continue
        for datagram in datagrams:
            peers[index].receive((datagram,), SERVER)
        link.send([datagram for _, datagram in peers[index].take_outgoing()])


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    # A pass of the collector over all that this program keeps would be charged to whoever is measured.
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _garbage_row(count: int, repetitions: int) -> Row:
    """The most expensive kind decides. Datagrams of one source come 32 in a call, as the kernel does it.

    A whole announcement is no garbage, as some are answered; what that costs is shown only.
    """
    clear = _announcement()
    kinds = {
        "random, full size": os.urandom(1457),
        "random, 200 bytes": os.urandom(200),
        "too short": os.urandom(40),
        "announcement cut short": clear[: len(clear) // 2],
        "announcement, bytes changed": clear[:300] + os.urandom(100) + clear[400:],
        WHOLE: clear,
    }
    cases = [(kind, kinds[kind], False) for kind in kinds]
    cases += [(f"{kind}, 1000 sources", kinds[kind], True) for kind in ("random, full size", WHOLE)]
    costs = {
        kind: median(_garbage_cost(datagram, count, spread) for _ in range(repetitions))
        for kind, datagram, spread in cases
    }
    details = {f"{kind} us": cost for kind, cost in costs.items()}
    worst = max(cost for kind, cost in costs.items() if not kind.startswith(WHOLE))
    return Row("a stranger's garbage dropped, worst kind", worst, "us", 1.0, 0.4, details=details)


def _announcement() -> bytes:
    """A clear announcement as it leaves a node."""
    end = End(Clock(), ("10.9.9.8", 9))
    end.node.add_peer(("10.9.9.7", 9), end.clock.now)
    return end.take_outgoing()[0][1]


def _garbage_cost(datagram: bytes, count: int, spread: bool) -> float:
    """Microseconds of `Node.receive` a datagram, at 100,000 of them a second."""
    clock = Clock()
    server = End(clock, SERVER)
    known = End(clock, ("10.0.0.1", 9))
    nodes.connect(server, known)
    sources = [nodes.address_of(index) for index in range(1000 if spread else 1)]
    # Other tags each time, as a stranger would send them; an announcement begins as announcements do. No more
    # of them than the processor's cache holds, where the kernel puts what has just come.
    batch_size, keep = 1 if spread else 32, looks_clear(datagram)
    batches = [
        [datagram if keep else os.urandom(8) + datagram[8:] for _ in range(batch_size)]
        for _ in range(IN_CACHE // batch_size)
    ]
    receive, outgoing, calls = server.node.receive, server.node.outgoing, count // batch_size
    times = itertools.count(clock.now, 1e-5 * batch_size)
    with _no_collector():
        began = time.process_time()
        for batch, source, now, _ in zip(
            itertools.cycle(batches), itertools.cycle(sources), times, range(calls)
        ):
            receive(batch, source, now)
            outgoing.clear()
        cpu = time.process_time() - began
    return cpu / (calls * batch_size) * 1e6


# -------------------------------------------------------------------------------------------------- starting


def _start_row(runs: int) -> Row:
    """Import, first socket, stop; beyond what the interpreter takes by itself."""
    bare = "pass"
    whole = "from vault_udp_socket import UDPSocketClass; UDPSocketClass(0).stop()"
    imports = "import vault_udp_socket"
    times: dict[str, list[float]] = {bare: [], whole: [], imports: []}
    with tempfile.TemporaryDirectory() as compiled:
        _run_seconds(whole, compiled)  # writes what is compiled, as the second start of a program finds it
        for _ in range(runs):
            for code, found in times.items():
                found.append(_run_seconds(code, compiled))
    interpreter = median(times[bare])
    details = {
        "interpreter ms": interpreter * 1000,
        "import alone ms": (median(times[imports]) - interpreter) * 1000,
    }
    beyond = (median(times[whole]) - interpreter) * 1000
    return Row("import, first socket, stop", beyond, "ms", 150, 100, details=details)


def _run_seconds(code: str, compiled: str) -> float:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - began
