# SPDX-License-Identifier: Apache-2.0
"""Encrypted datagrams between programs: import `UDPSocketClass`, add a peer, connect a callback, send.

How a message travels:

    send_data -> [queue until there are keys] -> seal -> socket ~~~ socket -> open -> rate limit -> callback

Here is what users see; below it, `vault_udp_carrier` has the threads, and `vault_udp_node` every decision.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Union

from PySignal import Signal

if TYPE_CHECKING or not __package__:
    import vault_ip
    import vault_udp_packet as packet
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address, canonical_host, is_host, resolve_literal
    from vault_udp_carrier import Carrier
    from vault_udp_datagram import DatagramSocket
    from vault_udp_encryption import VaultAsymmetricEncryption, check_lifetime
    from vault_udp_errors import (
        BindError,
        IdentityFileError,
        InvalidArgumentError,
        InvalidPortError,
        KnownPeersFileError,
        MessageTooLargeError,
        ProtocolVersionError,
        RateLimitExceededError,
        StoppedError,
        UDPSocketError,
        check_address,
        check_bind_address,
        check_data,
        check_files,
        check_identity,
        check_keepalive,
        check_mtu,
        check_port,
        check_rate_limit,
        check_timeout,
    )
    from vault_udp_identity import IdentityFile, KnownPeers, Path, fingerprint
    from vault_udp_node import Node, nobody_known
    from vault_udp_path import PACKET_OVERHEAD
    from vault_udp_peer import Peer
    from vault_udp_rate_limit import RateLimiter
    from vault_udp_signal import SafeSignal
    from vault_udp_state import Event
else:
    from . import vault_ip
    from . import vault_udp_packet as packet
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address, canonical_host, is_host, resolve_literal
    from .vault_udp_carrier import Carrier
    from .vault_udp_datagram import DatagramSocket
    from .vault_udp_encryption import VaultAsymmetricEncryption, check_lifetime
    from .vault_udp_errors import (
        BindError,
        IdentityFileError,
        InvalidArgumentError,
        InvalidPortError,
        KnownPeersFileError,
        MessageTooLargeError,
        ProtocolVersionError,
        RateLimitExceededError,
        StoppedError,
        UDPSocketError,
        check_address,
        check_bind_address,
        check_data,
        check_files,
        check_identity,
        check_keepalive,
        check_mtu,
        check_port,
        check_rate_limit,
        check_timeout,
    )
    from .vault_udp_identity import IdentityFile, KnownPeers, Path, fingerprint
    from .vault_udp_node import Node, nobody_known
    from .vault_udp_path import PACKET_OVERHEAD
    from .vault_udp_peer import Peer
    from .vault_udp_rate_limit import RateLimiter
    from .vault_udp_signal import SafeSignal
    from .vault_udp_state import Event

__all__ = [
    "DEFAULT_KEY_LIFETIME",
    "DEFAULT_RATE_LIMIT",
    "DEFAULT_RECV_PORT",
    "IP_HEADER_SIZE",
    "MSGPACK_OVERHEAD",
    "NACL_BOX_OVERHEAD",
    "PROTOCOL_VERSION",
    "REPLAY_PROTECTION_OVERHEAD",
    "UDP_HEADER_SIZE",
    "BindError",
    "IdentityFileError",
    "InvalidArgumentError",
    "InvalidPortError",
    "KnownPeersFileError",
    "MessageTooLargeError",
    "ProtocolVersionError",
    "RateLimitExceededError",
    "RateLimiter",
    "StoppedError",
    "UDPSocketClass",
    "UDPSocketError",
    "fingerprint",
]

logger = logging.getLogger("vault_udp")

Data = Union[str, bytes]

PROTOCOL_VERSION = packet.PROTOCOL_VERSION
DEFAULT_RECV_PORT = 11000
DEFAULT_RATE_LIMIT = 100
"""Messages per second accepted from one peer."""
DEFAULT_KEY_LIFETIME = 60
"""Seconds."""

IP_HEADER_SIZE = 20
UDP_HEADER_SIZE = 8
NACL_BOX_OVERHEAD = 40
MSGPACK_OVERHEAD = 15
REPLAY_PROTECTION_OVERHEAD = 24
"""Bytes; what they are in all is `vault_udp_path.PACKET_OVERHEAD`."""


class UDPSocketClass(Carrier):
    """Exchanges encrypted messages with peers over one UDP socket; thread-safe.

    Callbacks run in the receive thread, never under a lock; they may call any method but `wait_ready`. The
    address that they get is the one to reply to.

    Args:
        recv_port: port to listen on and to send from, 1-65535; 0 lets the system choose.
        rate_limit: messages per second accepted from one peer, a second's allowance in one burst; None for
            no limit.
        lifetime: seconds after which session keys are replaced, at least 5.
        legacy_peers: whether to speak base mode with peers that have no sessions; False refuses them.
        identity_file: where our identity is kept, made on first use; `own_public_key` is the same after a
            restart. Without it, each socket is somebody new.
        known_peers_file: where identities of added peers are kept that have identity files, a line each:
            ``ip port key``, or the host's name that it was added by for the ip. At an address that stands
            there no other identity is accepted.
        bind_address: the IP address of the one interface to use; all of them if omitted.
        mtu: bytes of an IP packet on the way to the peers, 576-65535, used as it is. If omitted, the smallest
            MTU of our interfaces is the limit; what each peer's path carries is found out (RFC 8899), and no
            datagram is divided into fragments. `get_stats()['mtu']` is what the limit leaves for a body,
            `get_peer_info(addr)['mtu']` what the path does.
        keepalive: seconds, at least 1, after which an idle session asks whether the peer is there, for NATs
            that forget.

    Attributes:
        udp_recv_data: signal (data: str, addr), for messages that are UTF-8 text.
        udp_recv_bytes: signal (data: bytes, addr), for every message.
        udp_send_data: signal (data) or (data, addr), connected to `send_data`.
        udp_peer_ready: signal (addr): what is sent to this peer leaves at once from now on.
        udp_peer_lost: signal (addr, reason: str).
        udp_peer_rejected: signal (addr, key: str): another identity than the known one came from there.

    Raises:
        InvalidPortError, InvalidArgumentError: an argument is not one.
        BindError: the port is in use or not permitted, or bind_address is no address of this machine.
        IdentityFileError, KnownPeersFileError: the file is not as it must be; see the message.
    """

    def __init__(
        self,
        recv_port: int = DEFAULT_RECV_PORT,
        rate_limit: float | None = DEFAULT_RATE_LIMIT,
        *,
        lifetime: float = DEFAULT_KEY_LIFETIME,
        legacy_peers: bool = True,
        identity_file: Path | None = None,
        known_peers_file: Path | None = None,
        bind_address: str | None = None,
        mtu: int | None = None,
        keepalive: float | None = None,
    ) -> None:
        check_port(recv_port, lowest=0)
        check_mtu(mtu)
        check_rate_limit(rate_limit)
        check_keepalive(keepalive)
        check_bind_address(bind_address)
        check_files(identity_file, known_peers_file)
        check_lifetime(lifetime)
        self.mtu = (vault_ip.get_min_mtu() if mtu is None else mtu) - PACKET_OVERHEAD
        self._bind_address = bind_address
        self._finds_sizes = mtu is None
        self.udp_send_data = Signal()
        self.udp_send_data.connect(self.send_data)
        self._known_peers = KnownPeers(known_peers_file) if known_peers_file is not None else None
        self._identity_file = IdentityFile(identity_file) if identity_file is not None else None
        keys = self._identity_file.take_identity() if self._identity_file is not None else (None, None)
        self._known_key = self._known_peers.key_of if self._known_peers is not None else nobody_known
        datagrams = None
        try:
            datagrams = _bind(recv_port, bind_address, fragments=not self._finds_sizes)
            encryption = VaultAsymmetricEncryption(lifetime, *keys)
            node = Node(
                encryption,
                port=datagrams.port,
                body_size=self.mtu,
                rate_limit=rate_limit,
                legacy_peers=legacy_peers,
                persistent=identity_file is not None,
                remember_peers=known_peers_file is not None,
                known_key=self._known_key,
                keepalive=keepalive,
                finds_sizes=self._finds_sizes,
                now=time.monotonic(),
                wall=time.time(),
            )
            super().__init__(encryption, datagrams, node)
            self.udp_recv_data, self.udp_recv_bytes = self._delivery.texts, self._delivery.everything
            self.udp_peer_ready = SafeSignal()
            self.udp_peer_lost = SafeSignal()
            self.udp_peer_rejected = SafeSignal()
            self._callback_signals = (
                self.udp_recv_data,
                self.udp_recv_bytes,
                self.udp_peer_ready,
                self.udp_peer_lost,
                self.udp_peer_rejected,
            )
            self._start()
        except BaseException:
            if datagrams is not None:
                datagrams.close()
            self._release_identity()
            raise

    # -------------------------------------------------------------------------------------------- peers

    def add_peer(self, addr: tuple[str, int] | tuple[str, int, str]) -> None:
        """Add a peer and begin the key exchange with it.

        Args:
            addr: (ip, port), or (ip, port, key) to accept only the identity `key`: the peer's
                `own_public_key`, learned by a way that you trust. A host's name may stand for the ip. It is
                looked up by another thread, now and whenever the peer is looked for again; up to 8 addresses
                are tried, as in RFC 8305. (name, port) stays what the peer is called here, in lower case.

        Raises:
            InvalidArgumentError: not such a tuple, no IP address or host's name, not a key; or our own key.
            InvalidPortError: the port is not one.
            StoppedError: after `stop`.
        """
        if not isinstance(addr, tuple) or len(addr) not in (2, 3):
            raise InvalidArgumentError(
                f"address is {addr!r}; it must be a tuple, (ip, port) or (ip, port, key)"
            )
        address = check_address(addr[:2])
        supplied = check_identity(addr[2]) if len(addr) == 3 else None
        if addr[2:] == (self.own_public_key,):
            raise InvalidArgumentError("the key given for the peer is our own")
        self._reload_known_peers()
        known = self._known_key(address)
        if known is not None:
            if supplied not in (None, known):
                raise InvalidArgumentError(
                    f"the key given for {address} is not the one in the known-peers file; "
                    "if the peer has changed its identity, remove the line there"
                )
            supplied = None  # it is there already, as for everybody who comes from that address
        with self._lock:
            self._check_running()
            self._node.add_peer(address, time.monotonic(), supplied)
            self._wake_sender_locked()

    def _reload_known_peers(self) -> None:
        # For lines that the user has removed. Of a file that is damaged by now, what was read before holds.
        if self._known_peers is not None:
            try:
                self._known_peers.reload()
            except KnownPeersFileError as error:
                logger.error("%s; what was read before holds", error)

    def remove_peer(self, addr: Address) -> None:
        """Say goodbye to a peer and forget it and its keys; nothing happens if it is not known.

        A peer with several names loses this one; it is said goodbye to under the last.

        Raises:
            InvalidArgumentError, InvalidPortError: addr is not an address.
            StoppedError: after `stop`.
        """
        address = check_address(addr)
        with self._lock:
            self._check_running()
            self._node.remove_peer(address, time.monotonic())
            self._wake_sender_locked()

    def get_peers(self) -> list[Address]:
        """The addresses of the added peers, in the order in which they were added."""
        with self._lock:
            return self._node.table.added_names()

    def get_peers_by_ip(self, ip: str) -> list[Address]:
        """The addresses of the added peers with this IP; a host's name counts as it is.

        Raises:
            InvalidArgumentError: ip is no text.
        """
        if not isinstance(ip, str):
            raise InvalidArgumentError(f"ip is {ip!r}, a {type(ip).__name__}; it must be a str")
        ip = resolve_literal(ip) or canonical_host(ip) or ip
        return [addr for addr in self.get_peers() if addr[0] == ip]

    def has_peer(self, addr: Address) -> bool:
        """Whether this address was added.

        Raises:
            InvalidArgumentError, InvalidPortError: addr is not an address.
        """
        address = check_address(addr)
        with self._lock:
            return self._node.table.is_added(address)

    def get_peer_key(self, addr: Address) -> str | None:
        """The identity (Base64) that the peer at `addr` has proved; None as long as it has not.

        Raises:
            InvalidArgumentError, InvalidPortError: addr is not an address.
        """
        address = check_address(addr)
        with self._lock:
            peer = self._node.table.settled_at(address)
            return crypto.bytes_to_b64_str(peer.proven_identity) or None if peer is not None else None

    def get_all_peer_keys(self) -> dict[Address, str]:
        """The proven identities (Base64) by address, of strangers too."""
        with self._lock:
            peers = self._node.table.by_name.items()
            proven = ((name, peer.proven_identity) for name, peer in peers)
            return {name: crypto.bytes_to_b64_str(identity) for name, identity in proven if identity}

    @property
    def own_public_key(self) -> str:
        """Our identity, the public signing key, Base64: what others give to `add_peer` as `key`."""
        return self._encryption.sign_public_key

    @property
    def encryption(self) -> VaultAsymmetricEncryption:
        """The keys: `set_private_keys` and `update_peer_keys` are for those that the application keeps."""
        return self._encryption

    def get_peer_info(self, addr: Address) -> dict[str, Any] | None:
        """What is known of a peer, added or not; None if nothing is.

        Returns:
            ``mode`` ("session", "base v1", "base v2", "waiting for keys", "lost"), ``names``, ``endpoint``
            (where it is sent to; None until its host's name is resolved), ``addresses`` (of its host),
            ``protocol_version``, ``identity`` (Base64), ``added``, ``persistent``, ``coalesce``, ``mtu``
            (bytes of a body now), ``max_message`` (bytes of a message that fits uncompressed; v1 takes less),
            ``clock_offset`` and ``round_trip`` (seconds), ``last_heard`` (seconds ago), ``waiting``, ``sent``
            and ``received`` (messages), ``counters`` (what was dropped of what it sent or was to get, by
            reason, as in `get_stats`).

        Raises:
            InvalidArgumentError, InvalidPortError: addr is not an address.
        """
        address = check_address(addr)
        with self._lock:
            peer = self._node.table.settled_at(address)
            return self._node.info(peer, time.monotonic()) if peer is not None else None

    def wait_ready(self, addr: Address, timeout: float) -> bool:
        """Wait until messages to `addr` leave at once; False if `timeout` seconds were not enough.

        Raises:
            InvalidArgumentError, InvalidPortError: addr is not an address, timeout not a number.
            StoppedError: after `stop`, also if that happens meanwhile.
            UDPSocketError: in a callback, where nothing could become ready meanwhile.
        """
        address = check_address(addr)
        check_timeout(timeout)
        if threading.current_thread() is self._receiver:
            raise UDPSocketError("wait_ready was called in a callback; connect udp_peer_ready instead")
        with self._lock:
            self._check_running()
            return self._ready.wait_for(
                lambda: self._is_ready_locked(address), min(timeout, threading.TIMEOUT_MAX)
            )

    def _is_ready_locked(self, address: Address) -> bool:
        self._check_running()
        peer = self._node.table.settled_at(address)
        return peer is not None and self._node.is_ready(peer, time.monotonic())

    # ------------------------------------------------------------------------------------------- sending

    def send_data(self, data: Data, addr: Address | None = None) -> None:
        """Send a message to one peer, or to every added one.

        Without keys it waits for them: at most 256 messages a peer, at most ``MAX_MESSAGE_AGE_SECONDS``.
        Waits for room when 4,096 messages are on their way out already, or 16,384 of at most 64 bytes.

        Args:
            data: text (sent as UTF-8) or bytes.
            addr: (ip, port); need not be added, a reply to a callback's address always works. A host's name
                must be.

        Raises:
            TypeError: data is neither str nor bytes.
            MessageTooLargeError: it does not fit into a datagram to this peer now (or to the one of all that
                takes the least), compressed as hard as can be.
            InvalidArgumentError, InvalidPortError: addr is not an address, or a name that was not added; or
                the text has half a character (a lone surrogate), which UTF-8 has not.
            StoppedError: after `stop`.
        """
        if data.__class__ is not bytes:
            data = check_data(data)
        try:
            peer = self._by_name[addr] if addr is not None else None
        except (KeyError, TypeError):  # TypeError: `check_address` says what cannot be looked up in it
            peer = None
        if peer is not None and len(data) <= peer.room:
            lane = peer.lane
            if peer.laned and len(lane) < self._lane_size:  # the way of a burst: see `vault_udp_carrier`
                lane.append(data)
                if not peer.laned:
                    self._lane_again(peer)
            else:
                self._send((peer,), data)
            return
        # `list` copies at once: without the lock, the table may change meanwhile.
        if addr is None and self._broadcast(list(self._added), data):
            return
        address = check_address(addr) if addr is not None else None
        message = self._fit(data, address)
        self._send(self._targets(address), message)

    def _fit(self, data: bytes, address: Address | None) -> bytes:
        """`data` if it fits raw, else compressed."""
        with self._lock:
            body_size = self._node.body_size_towards(address)
        if len(data) > packet.MAX_MESSAGE_SIZE:
            raise MessageTooLargeError(
                f"the message has {len(data)} bytes; the limit before compression is "
                f"{packet.MAX_MESSAGE_SIZE}; split it"
            )
        try:
            return packet.fit(data, body_size)
        except packet.TooLargeError as error:
            raise MessageTooLargeError(
                f"the message of {len(data)} bytes has {error.size} at best when compressed; the limit is "
                f"{error.limit}, or {packet.message_room(body_size)} for what cannot be compressed; "
                "split it or make it smaller"
            ) from error

    def _targets(self, address: Address | None) -> list[Peer]:
        with self._lock:
            self._check_running()
            if address is None:
                return list(self._node.table.added)
            if is_host(address[0]) and address not in self._node.table.by_name:
                raise InvalidArgumentError(f"{address} is a name that was not added; add_peer it first")
            return [self._node.contact(address, time.monotonic())]

    # ------------------------------------------------------------------------------------------- events

    def _tell(self, event: Event) -> None:
        if event.kind == "ready":
            self.udp_peer_ready.emit(event.address)
        elif event.kind == "lost":
            self.udp_peer_lost.emit(event.address, event.detail)
        elif event.kind == "met":
            self._remember(event.address, event.detail)
        else:
            self.udp_peer_rejected.emit(event.address, event.detail)

    def _remember(self, address: Address, key: str) -> None:
        assert self._known_peers is not None
        try:
            self._known_peers.remember(address, key)
        except KnownPeersFileError as error:
            with self._lock:
                self._node.counters["known_peer_not_written"] += 1
            logger.error("%s: its identity could not be written down: %s", address, error)

    # ------------------------------------------------------------------------------------- configuration

    @property
    def recv_port(self) -> int:
        """The port that we listen on and send from."""
        return self._datagrams.port

    def update_recv_port(self, recv_port: int) -> None:
        """Listen on another port; on failure nothing changes.

        Peers in a session follow at once; what they had sent to the old port by then still arrives, for that
        one is freed after half a second. Base peers are told, but their programs may go on sending to it.

        Raises:
            InvalidPortError: not a port.
            BindError: it is in use or not permitted.
            StoppedError: after `stop`.
        """
        check_port(recv_port, lowest=0)
        with self._lock:
            self._check_running()
            if recv_port == self.recv_port:
                return
        self._replace_socket(_bind(recv_port, self._bind_address, fragments=not self._finds_sizes))

    @property
    def lifetime(self) -> float:
        """Seconds after which session keys are replaced and unheard base keys expire; at least 5.

        Raises:
            InvalidArgumentError: set to anything but a number of seconds of at least 5 and below 1e9.
            StoppedError: set after `stop`.
        """
        return self._encryption.lifetime

    @lifetime.setter
    def lifetime(self, seconds: float) -> None:
        with self._lock:
            self._check_running()
            self._encryption.lifetime = seconds
            self._node.lifetime_changed(time.monotonic())
            self._wake_sender_locked()

    @property
    def rate_limit(self) -> float | None:
        """Messages per second accepted from one peer; None for no limit.

        Raises:
            InvalidArgumentError: set to what is no such number.
            StoppedError: set after `stop`.
        """
        with self._lock:
            limiter = self._node.rate_limiter
            return limiter.max_per_second if limiter is not None else None

    @rate_limit.setter
    def rate_limit(self, rate_limit: float | None) -> None:
        check_rate_limit(rate_limit)
        with self._lock:
            self._check_running()
            self._node.set_rate_limit(rate_limit)

    def update_lifetime(self, lifetime: float) -> None:
        """Set `lifetime`, which raises the same."""
        self.lifetime = lifetime

    def get_stats(self) -> dict[str, Any]:
        """Statistics for display: counts, modes, and keys cut short."""
        datagrams = self._datagrams
        datagrams.count_drops()
        with self._lock:
            stats = self._node.stats()
            counters = stats["counters"]
            counters.update({f"socket_{name}": count for name, count in dict(datagrams.errors).items()})
            counters["kernel_drops"] = datagrams.kernel_drops
            counters["callback_errors"] = sum(signal.errors for signal in self._callback_signals)
            return {
                **stats,
                "recv_port": datagrams.port,
                "mtu": self.mtu,
                "max_message": packet.message_room(self.mtu),
                "enc_public_key": self._encryption.enc_public_key[:16] + "…",
                "sign_public_key": self._encryption.sign_public_key[:16] + "…",
                "fingerprint": fingerprint(self._encryption.sign_public_key),
                "receive_buffer": datagrams.receive_buffer,
                "send_buffer": datagrams.send_buffer,
            }

    # ------------------------------------------------------------------------------------------ the end

    def stop(self, timeout: float = 5.0) -> None:
        """Send what is sealed or ready, say goodbye, end the threads and free the port.

        Any number of times, from any thread, from a callback too. In a handler of the system's signals, or a
        finalizer, that has interrupted one of our methods, it returns at once, and a thread sees to the rest.

        Args:
            timeout: seconds to wait for a callback that is running.

        Raises:
            InvalidArgumentError: timeout is not a number.
        """
        check_timeout(timeout)
        for signal in self._callback_signals:
            signal.block(True)  # what has been received, but not yet passed on, stays so
            signal.on_connect = None
        if self._holds_lock():
            # What was interrupted has it, and our threads cannot end without it.
            threading.Thread(target=self._end, args=(timeout,), name="vault-udp-stop").start()
        else:
            self._end(timeout)

    def _end(self, timeout: float) -> None:
        self._stop_threads(min(timeout, threading.TIMEOUT_MAX))
        self._release_identity()

    def _abandon(self) -> None:
        super()._abandon()
        for signal in self._callback_signals:
            signal.abandon()
        if self._identity_file is not None:
            self._identity_file.abandon()

    def _release_identity(self) -> None:
        if self._identity_file is not None:
            self._identity_file.close()

    def __enter__(self) -> UDPSocketClass:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else f"on port {self.recv_port}"
        return f"<UDPSocketClass {state}, {len(self.get_peers())} peers>"


def _bind(port: int, bind_address: str | None, *, fragments: bool) -> DatagramSocket:
    try:
        return DatagramSocket(port, bind_address, fragments=fragments)
    except OSError as error:
        if bind_address is not None and error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
            raise BindError(
                error.errno,
                f"bind_address {bind_address!r} is no address of this machine; use one of those that "
                "vault_ip.get_ip_addresses() tells",
            ) from error
        raise BindError(
            error.errno, f"cannot listen on port {port}: {error.strerror}; choose another recv_port, or 0"
        ) from error


def main() -> int:
    """Self-test and demonstration: two peers exchange messages on this machine; 1 if anything fails."""
    failed = 0

    def check(what: str, passed: bool) -> None:
        nonlocal failed
        failed += not passed
        print(("ok    " if passed else "FAIL  ") + what)

    answered, answers = threading.Event(), []

    def echo(data: str, addr: Address) -> None:
        print(f"      the server got {data!r} from {addr[0]}:{addr[1]}")
        server.send_data(f"Echo: {data}", addr)

    def on_answer(data: str, addr: Address) -> None:
        print(f"      the client got {data!r} from {addr[0]}:{addr[1]}")
        answers.append(data)
        if len(answers) == 2:
            answered.set()

    with UDPSocketClass(0) as server, UDPSocketClass(0) as client:
        server.udp_recv_data.connect(echo)
        client.udp_recv_data.connect(on_answer)
        server_addr = ("127.0.0.1", server.recv_port)
        print(f"a server listens on port {server.recv_port}, a client on port {client.recv_port}")
        client.add_peer((*server_addr, server.own_public_key))
        client.send_data("Hello, World!")
        client.send_data("Grüße aus 東京 🔒", server_addr)
        check("both messages were answered", answered.wait(5))
        check("in order", answers == ["Echo: Hello, World!", "Echo: Grüße aus 東京 🔒"])
        check("in a session", client.get_stats()["peer_modes"].get(server_addr) == "session")
        check(
            "with the server whose key was given", client.get_peer_key(server_addr) == server.own_public_key
        )
        stats = client.get_stats()
        check("protocol version 2", stats["protocol_version"] == 2)
        print(f"      effective MTU {stats['mtu']} bytes, counters {stats['counters']}")
        try:
            client.send_data(os.urandom(stats["mtu"] + 1))
            check("a message that does not fit is refused", False)
        except MessageTooLargeError as error:
            check(f"a message that does not fit is refused: {error}", True)
        try:
            UDPSocketClass(server.recv_port)
            check("a port in use is refused", False)
        except BindError as error:
            check(f"a port in use is refused: {error}", True)
    check("stop() ends the threads", not (client._receiver.is_alive() or client._sender.is_alive()))
    print("FAILED" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
