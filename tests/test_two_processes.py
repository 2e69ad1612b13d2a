# SPDX-License-Identifier: Apache-2.0
"""Two processes on one machine exchange messages, each started as the quick start of the README shows."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Iterator, Sequence

import pytest
from loopback import LOOPBACKS, PATIENCE

TOP = Path(__file__).resolve().parent.parent

# The quick start, with addresses and messages from outside, and with lines that tell how far it is.
PROGRAM = """
import sys
from vault_udp_socket import UDPSocketClass

socket = UDPSocketClass(recv_port=int(sys.argv[1]))

def on_data(data, addr):
    print(f"Received: {data} from {addr[0]} {addr[1]}", flush=True)

socket.udp_recv_data.connect(on_data)
for ip, port in zip(sys.argv[2::2], sys.argv[3::2]):
    socket.add_peer((ip, int(port)))
print("started", socket.recv_port, socket.get_stats()["mtu"], flush=True)

for line in sys.stdin:
    socket.send_data(line.rstrip("\\n"))

socket.stop()
print("stopped", flush=True)
"""


class Program:
    """The program above in a process of its own; `prefix` is what runs it elsewhere."""

    def __init__(self, port: int, *peers: tuple[str, int], prefix: Sequence[str] = ()) -> None:
        arguments = [str(part) for peer in peers for part in peer]
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM, str(port), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=TOP,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        _, started_on, mtu = self.wait_for("started").split()
        self.port, self.mtu = int(started_on), int(mtu)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def send(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def wait_for(self, beginning: str) -> str:
        """The next line of output that begins so; what comes before it is passed over."""
        while True:
            try:
                line = self._lines.get(timeout=2 * PATIENCE)
            except queue.Empty:
                pytest.fail(f"no line {beginning!r}; there were {self._seen[-10:]}")
            self._seen.append(line)
            if line.startswith(beginning):
                return line

    def finish(self) -> None:
        """Close its input, upon which it stops, and check that it ends well and that nothing raised."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.wait_for("stopped")
        assert self._process.wait(PATIENCE) == 0
        assert not [line for line in self._seen if "Traceback" in line]

    def kill(self) -> None:
        """End it at once, as a crash does; nothing happens if it has ended."""
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def programs() -> Iterator[list[Program]]:
    """A list whose programs are killed at the end, whatever happens."""
    running: list[Program] = []
    try:
        yield running
    finally:
        for program in running:
            program.kill()


class Relay:
    """Carries datagrams between two ports of this machine and keeps a copy of each.

    The first program talks to `ports[0]`, behind which it finds the second one, and the other way round.
    """

    def __init__(self, ip: str) -> None:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._ip = ip
        self._sockets = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in self._sockets:
            sock.bind((ip, 0))
        self.ports = [sock.getsockname()[1] for sock in self._sockets]
        self.targets: list[int] = []
        self.copies: list[bytes] = []
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready = select.select([*self._sockets, self._wake], [], [])[0]
            if self._wake in ready:
                return
            for sock in ready:
                datagram = sock.recv(65_535)
                side = self._sockets.index(sock)
                self.copies.append(datagram)
                if len(self.targets) == 2:
                    self._sockets[1 - side].sendto(datagram, (self._ip, self.targets[1 - side]))

    def close(self) -> None:
        self._waker.send(b"\0")
        self._thread.join(PATIENCE)
        for sock in (*self._sockets, self._wake, self._waker):
            sock.close()


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_two_processes_exchange_messages_both_ways(ip: str) -> None:
    with programs() as running:
        running.append(Program(0))
        server = running[0]
        running.append(Program(0, (ip, server.port)))
        client = running[1]
        client.send("Hello, World!")
        assert server.wait_for("Received") == f"Received: Hello, World! from {ip} {client.port}"
        # The server has added nobody, so nobody gets its broadcast; a third one has added both.
        running.append(Program(0, (ip, server.port), (ip, client.port)))
        third = running[2]
        third.send("to both, ünïcode 😀")
        for program in (server, client):
            expected = f"Received: to both, ünïcode 😀 from {ip} {third.port}"
            assert program.wait_for("Received") == expected
        for program in running:
            program.finish()


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_two_processes_that_add_each_other_exchange_messages_sealed(ip: str) -> None:
    relay = Relay(ip)
    try:
        with programs() as running:
            one = Program(0, (ip, relay.ports[0]))
            running.append(one)
            two = Program(0, (ip, relay.ports[1]))
            running.append(two)
            relay.targets = [one.port, two.port]
            one.send("a secret from one")
            assert two.wait_for("Received") == f"Received: a secret from one from {ip} {relay.ports[1]}"
            two.send("a secret from two")
            assert one.wait_for("Received") == f"Received: a secret from two from {ip} {relay.ports[0]}"
            one.finish()
            two.finish()
    finally:
        relay.close()
    assert len(relay.copies) > 4
    assert not [datagram for datagram in relay.copies if b"secret" in datagram]


def test_a_killed_process_that_is_started_again_is_talked_to_again(free_port: int) -> None:
    with programs() as running:
        server = Program(free_port)
        running.append(server)
        client = Program(0, ("127.0.0.1", free_port))
        running.append(client)
        client.send("before")
        server.wait_for("Received: before")
        server.kill()
        reborn = Program(free_port, ("127.0.0.1", client.port))
        running.append(reborn)
        # A process that was killed has said no goodbye: what is sent until that is noticed may be lost.
        reborn.send("I am back")
        client.wait_for("Received: I am back")
        client.send("welcome")
        reborn.wait_for("Received: welcome")
        client.finish()
        reborn.finish()


def test_a_process_ends_after_an_error_without_stop() -> None:
    """Threads of the library keep no program alive that forgot to call stop."""
    program = (
        "from vault_udp_socket import UDPSocketClass\n"
        "sock = UDPSocketClass(0)\n"
        "sock.add_peer(('127.0.0.1', 9))\n"
        "raise SystemExit(3)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=TOP, capture_output=True, timeout=2 * PATIENCE
    )
    assert ended.returncode == 3
    assert ended.stderr == b""
