# SPDX-License-Identifier: Apache-2.0
"""Hosts and routers that are network namespaces of this machine, the cables between them, and peers there.

Networks lie in a row, host - router - … - host; the cable with the number `n` is the network 10.77.n.0/24 and
fd77:n+1::/64. All of it is made with `ip` of iproute2 and, for what routers drop and translate, `nft`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence, Tuple

import pytest
from loopback import PATIENCE, eventually

needs_namespaces = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")

Address = Tuple[str, int]
TESTS = Path(__file__).resolve().parent
PORT = 11000  # nobody else is there

# What tells that a packet was cut into fragments, or that fragments came to be put together.
FRAGMENT_COUNTERS = (
    *("Ip.FragOKs", "Ip.FragCreates", "Ip.ReasmReqds"),
    *("Ip6FragOKs", "Ip6FragCreates", "Ip6ReasmReqds"),
)


def run(*command: str, text: str = "") -> str:
    """Run a command, give it `text` to read, and return what it prints.

    Raises:
        RuntimeError: it failed; with what it says.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Namespace:
    """A host or a router."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def prefix(self) -> list[str]:
        """What makes a command run here."""
        return ["ip", "netns", "exec", self.name]

    def ip(self, *arguments: str) -> str:
        return run("ip", "-netns", self.name, *arguments)

    def set(self, **values: int) -> None:
        """Set variables of the kernel, ``ipv4__ip_forward=1`` for net.ipv4.ip_forward."""
        for name, value in values.items():
            run(*self.prefix, "tee", "/proc/sys/net/" + name.replace("__", "/"), text=str(value))

    def read(self, file: str) -> str:
        return run(*self.prefix, "cat", file)

    def nft(self, *rules: str) -> None:
        run(*self.prefix, "nft", "-f", "-", text="\n".join(rules) + "\n")

    def packets(self, counter: str) -> int:
        """What a counter shows that was made as ``inet filter NAME``."""
        shown = json.loads(run(*self.prefix, "nft", "-j", "list", "counter", "inet", "filter", counter))
        return sum(int(entry["counter"]["packets"]) for entry in shown["nftables"] if "counter" in entry)

    def fragments(self) -> dict[str, int]:
        """The counters of fragments that are not zero, since the namespace was made."""
        values: dict[str, int] = {}
        names: dict[str, list[str]] = {}
        for line in self.read("/proc/net/snmp").splitlines():
            kind, *fields = line.split()
            if kind in names:
                values.update((f"{kind[:-1]}.{name}", int(n)) for name, n in zip(names[kind], fields))
            names[kind] = fields
        for line in self.read("/proc/net/snmp6").splitlines():
            name, value = line.split()
            values[name] = int(value)
        return {name: values[name] for name in FRAGMENT_COUNTERS if values[name]}


class End(NamedTuple):
    """Where a cable is plugged in."""

    namespace: Namespace
    interface: str
    ipv4: str
    ipv6: str

    def ip(self, family: int) -> str:
        return self.ipv4 if family == 4 else self.ipv6

    def address(self, family: int) -> Address:
        return self.ip(family), PORT

    def plug(self) -> None:
        """Take up what a new interface needs."""
        self.assign(self.ipv4)
        self.assign(self.ipv6)
        self.namespace.set(**{f"ipv6__conf__{self.interface}__keep_addr_on_down": 1})
        self.namespace.ip("link", "set", self.interface, "up")

    def assign(self, ip: str) -> None:
        # Without `nodad` an IPv6 address could be used only after a second or two.
        rest = ("/64", "nodad") if ":" in ip else ("/24",)
        self.namespace.ip("address", "add", ip + rest[0], "dev", self.interface, *rest[1:])

    def take_away(self, ip: str) -> None:
        self.namespace.ip("address", "del", ip + ("/64" if ":" in ip else "/24"), "dev", self.interface)

    @property
    def running(self) -> bool:
        """Whether the system says so: it may take a second to notice that both ends are plugged in."""
        (link,) = json.loads(self.namespace.ip("-json", "link", "show", "dev", self.interface))
        return bool(link["operstate"] == "UP")

    def set_mtu(self, mtu: int) -> None:
        self.namespace.ip("link", "set", self.interface, "mtu", str(mtu))


class Cable(NamedTuple):
    a: End
    b: End

    def lay(self, mtu: int) -> None:
        a, b = self
        run(
            *("ip", "link", "add", a.interface, "netns", a.namespace.name, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", b.interface, "netns", b.namespace.name, "mtu", str(mtu)),
        )
        a.plug()
        b.plug()
        # An interface that does not run has no say in the MTU that a socket starts with.
        eventually(lambda: a.running and b.running, "the cable carries")

    def remove(self) -> None:
        self.a.namespace.ip("link", "del", self.a.interface)

    def set_mtu(self, mtu: int) -> None:
        self.a.set_mtu(mtu)
        self.b.set_mtu(mtu)


class Network:
    """A row of namespaces; those between the first and the last are routers."""

    def __init__(self, namespaces: Sequence[Namespace]) -> None:
        self.namespaces = namespaces
        pairs = zip(namespaces, namespaces[1:])
        self.cables = [
            Cable(
                End(left, f"next{n}", f"10.77.{n}.1", f"fd77:{n + 1}::1"),
                End(right, f"back{n}", f"10.77.{n}.2", f"fd77:{n + 1}::2"),
            )
            for n, (left, right) in enumerate(pairs)
        ]

    @property
    def hosts(self) -> tuple[End, End]:
        return self.cables[0].a, self.cables[-1].b

    @property
    def routers(self) -> Sequence[Namespace]:
        return self.namespaces[1:-1]

    def connect(self, mtus: Sequence[int]) -> None:
        for cable, mtu in zip(self.cables, mtus):
            cable.lay(mtu)
        for namespace in self.namespaces:
            namespace.ip("link", "set", "lo", "up")
        for number, namespace in enumerate(self.namespaces):
            namespace.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
            # What one has no cable for is farther on in the row: enough for two routers.
            onwards = number < len(self.namespaces) / 2
            via = self.cables[number].b if onwards else self.cables[number - 1].a
            if self.routers:
                namespace.ip("route", "add", "default", "via", via.ipv4)
                namespace.ip("-6", "route", "add", "default", "via", via.ipv6)


@contextlib.contextmanager
def network(*mtus: int) -> Iterator[Network]:
    """Namespaces joined by as many cables as there are MTUs; the test is skipped if none can be made here."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command here")
    unique = uuid.uuid4().hex[:8]
    namespaces = [Namespace(f"vault-{unique}-{number}") for number in range(len(mtus) + 1)]
    try:
        try:
            for namespace in namespaces:
                run("ip", "netns", "add", namespace.name)
                # Settings that need more rights than `ip netns add` in some containers.
                namespace.set(ipv6__conf__default__accept_dad=0)
        except RuntimeError as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        made = Network(namespaces)
        made.connect(mtus)
        yield made
    finally:
        for namespace in namespaces:
            with contextlib.suppress(RuntimeError):  # it was not made
                run("ip", "netns", "delete", namespace.name)


def require_nft(namespace: Namespace) -> None:
    """Skip the test if routers cannot be told here what to drop and what to translate."""
    if shutil.which("nft") is None:
        pytest.skip("there is no `nft` command here")
    try:
        namespace.nft("list ruleset")
    except RuntimeError as error:
        pytest.skip(f"nftables are not permitted here, or not in this kernel: {error}")


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that cannot be compressed, the same ones each time."""
    return bytes(random.Random(seed).choices(range(256), k=size))


class Raised(Exception):
    """What a peer's method has raised, as text."""


class Peer:
    """`UDPSocketClass` in a process in a namespace; see namespace_peer.py."""

    def __init__(self, namespace: Namespace, **options: Any) -> None:
        options = {"recv_port": PORT, "rate_limit": None, **options}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed in `kill`
        self._process = subprocess.Popen(
            [*namespace.prefix, sys.executable, "-m", "namespace_peer", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))},
            encoding="utf-8",
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._changed = threading.Condition()
        self._events: list[tuple[str, list[Any]]] = []
        self._taken: set[int] = set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("started")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "event" not in told:
                self._answers.put(told)
                continue
            with self._changed:
                self._events.append((told["event"], told["values"]))
                self._changed.notify_all()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the socket and return what it returns, as JSON has it.

        Raises:
            Raised: it has raised something.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=2 * PATIENCE)
        except queue.Empty:
            pytest.fail(f"{method}{arguments!r} did not return; {self._said()}")
        if "raised" in answer:
            raise Raised(answer["raised"])
        return answer["returned"]

    def send(self, message: bytes, to: Address) -> None:
        self.call("send_data", {"hex": message.hex()}, to)

    def endpoint(self, of: Address) -> Address:
        """Where it sends what is for this peer."""
        ip, port = self.call("get_peer_info", of)["endpoint"]
        return ip, port

    def stat(self, name: str) -> Any:
        return self.call("stat", name)

    def events(self, kind: str) -> list[list[Any]]:
        with self._changed:
            return [values for name, values in self._events if name == kind]

    @property
    def received(self) -> list[bytes]:
        return [bytes.fromhex(values[0]) for values in self.events("received")]

    def wait_for(self, kind: str, seconds: float = PATIENCE) -> list[Any]:
        """The values of the first event of this kind, as soon as it is there."""
        with self._changed:
            come = self._changed.wait_for(lambda: kind in (name for name, _ in self._events), seconds)
        assert come, f"no event {kind!r} within {seconds} s; {self._said()}"
        return self.events(kind)[0]

    def has_received(self, message: bytes, seconds: float) -> bool:
        """Whether a message is there within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: message in self.received, seconds)

    def wait_for_message(self, message: bytes, seconds: float = PATIENCE) -> Address:
        """The address that a message came from, as soon as it is there."""
        come = self.has_received(message, seconds)
        assert come, f"{message[:20]!r} did not come within {seconds} s; {self._said()}"
        ip, port = next(v[1] for v in self.events("received") if bytes.fromhex(v[0]) == message)
        return ip, port

    def _said(self) -> str:
        with self._changed:
            events = [(kind, [str(value)[:60] for value in values]) for kind, values in self._events[-10:]]
        self._errors.seek(0)
        return f"the last events: {events}; its logs: {self._errors.read()[-2000:]!r}"

    def finish(self) -> None:
        """Close its input, upon which it stops, and check that it ends well and that nothing raised."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0, self._said()
        assert "Traceback" not in self._said()

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def peers(*ends: End, **options: Any) -> Iterator[list[Peer]]:
    """A peer at each end; they must end well, unless the test has failed already."""
    running: list[Peer] = []
    try:
        for end in ends:
            running.append(Peer(end.namespace, **options))
        yield running
        for peer in running:
            peer.finish()
    finally:
        for peer in running:
            peer.kill()


def messages_flow(
    sender: Peer, receiver: Peer, to: Address, size: int = 1000, seconds: float = 5.0, then: int = 10
) -> Address:
    """Send until a message arrives, `seconds` at most; of those that follow each one must arrive.

    Returns the address that they come from.
    """
    unique = uuid.uuid4().hex.encode()

    def message(number: int) -> bytes:
        return (b"%s %d " % (unique, number)).ljust(64) + random_bytes(size - 64, number)

    deadline = time.monotonic() + seconds
    number = 0
    sender.send(message(number), to)
    while not receiver.has_received(message(number), 0.1):
        assert time.monotonic() < deadline, (
            f"of {number + 1} messages none arrived within {seconds} s; {sender._said()}; {receiver._said()}"
        )
        number += 1
        sender.send(message(number), to)
    for later in range(number + 1, number + 1 + then):
        sender.send(message(later), to)
    sources = [receiver.wait_for_message(message(later)) for later in range(number, number + 1 + then)]
    return sources[0]
