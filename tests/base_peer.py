# SPDX-License-Identifier: Apache-2.0
"""A deployed base peer, v2 or v1, written from the user's page and from what is seen on the wire.

Nothing of the library is imported: a mistake that the library made on both of its ends would show here.
What no reader of the user's page would expect of a deployed peer has a comment.

`BasePeer` is a state machine: bytes and the peer's own clock in, what it sends and what its user gets out.
`BasePeerOnSockets` is the same one on real sockets of 127.0.0.1.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import struct
import time
from collections import Counter
from typing import Any, Callable, Tuple

import msgpack
import nacl.exceptions
import nacl.public
import nacl.signing
import pyzstd

Address = Tuple[str, int]
Keys = Tuple[str, str]

MAX_AGE = 60.0
LIFETIME = 60.0
EFFECTIVE_MTU = {1: 1398, 2: 1393}
_HEADER = struct.Struct(">16sd")


def to_b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_body(version: int, payload: bytes, control: bytes = b"") -> bytes:
    """The padded body; misses the effective MTU by the growth of the padding's header, as the releases do."""

    def pack(padding: bytes) -> bytes:
        if version == 1:
            packed: bytes = msgpack.packb([payload, padding])
        else:
            packed = msgpack.packb({"v": 2, "p": payload, "c": control, "g": padding})
        return packed

    return pack(os.urandom(max(0, EFFECTIVE_MTU[version] - len(pack(b"")))))


def make_data_body(version: int, text: str) -> bytes:
    return make_body(version, pyzstd.compress(text.encode()))


def make_announcement_body(version: int, members: dict[str, Any]) -> bytes:
    text = json.dumps(members).encode()
    return make_body(1, pyzstd.compress(text)) if version == 1 else make_body(2, b"", text)


def announcement_members(
    enc_private: nacl.public.PrivateKey, sign_private: nacl.signing.SigningKey, port: int
) -> dict[str, Any]:
    enc_key, sign_key = to_b64(bytes(enc_private.public_key)), to_b64(bytes(sign_private.verify_key))
    signature = to_b64(bytes(sign_private.sign((enc_key + sign_key).encode())))
    return {"enc_key": enc_key, "sign_key": sign_key, "signature": signature, "port": port}


def seal_body(box: nacl.public.Box, body: bytes, stamp: float) -> bytes:
    return bytes(box.encrypt(_HEADER.pack(os.urandom(16), stamp) + body))


class BasePeer:
    """One deployed peer.

    Times (`now`) are its own wall clock, Unix seconds.

    Args:
        version: 2 or 1.
        port: where it listens, as its announcements tell.
        now: when it starts.
        enc_private, sign_private: 32 raw bytes; made if omitted.
        lifetime: seconds after which it forgets a key; it announces every half of it.
    """

    def __init__(
        self,
        version: int,
        port: int,
        now: float,
        *,
        enc_private: bytes | None = None,
        sign_private: bytes | None = None,
        lifetime: float = LIFETIME,
    ) -> None:
        self.version = version
        self.port = port
        self.lifetime = lifetime
        self.enc_private = nacl.public.PrivateKey(enc_private or os.urandom(32))
        self.sign_private = nacl.signing.SigningKey(sign_private or os.urandom(32))
        self.peers: dict[Address, None] = {}
        self.keys: dict[Address, tuple[str, str, float]] = {}
        """By address: (enc_key, sign_key, when they were last announced)."""
        self.outgoing: list[tuple[Address, bytes]] = []
        self.received: list[tuple[str, Address]] = []
        self.dropped: Counter[str] = Counter()
        self.keys_forgotten = 0
        self.echoes = False
        """Whether it answers every message with ``Echo: …``, like the user's page's server."""
        self._nonces: dict[bytes, float] = {}
        self._tick_at = now + lifetime / 2

    @property
    def enc_key(self) -> str:
        return to_b64(bytes(self.enc_private.public_key))

    @property
    def sign_key(self) -> str:
        return to_b64(bytes(self.sign_private.verify_key))

    def add_peer(self, address: Address, now: float) -> None:
        self.peers[address] = None
        self._announce(address, now)

    def set_peer_keys(self, address: Address, enc_key: str, sign_key: str, now: float) -> None:
        """Keys that its application learned in ways of its own."""
        self.peers[address] = None
        self.keys[address] = (enc_key, sign_key, now)

    def send_data(self, text: str, address: Address, now: float) -> None:
        """Seal and send; without a key the releases leave it in clear, and so does this one."""
        self._send(make_data_body(self.version, text), address, now)

    def send_body(self, body: bytes, address: Address, now: float) -> None:
        """Send any body, sealed if there is a key."""
        self._send(body, address, now)

    def _send(self, body: bytes, address: Address, now: float) -> None:
        box = self._box(address)
        self.outgoing.append((address, body if box is None else seal_body(box, body, now)))

    def _box(self, address: Address) -> nacl.public.Box | None:
        keys = self.keys.get(address)
        if keys is None:
            return None
        return nacl.public.Box(self.enc_private, nacl.public.PublicKey(base64.b64decode(keys[0])))

    def announcement(self) -> bytes:
        members = announcement_members(self.enc_private, self.sign_private, self.port)
        return make_announcement_body(self.version, members)

    def _announce(self, address: Address, now: float) -> None:
        # In clear only as long as it holds no key of that address.
        self._send(self.announcement(), address, now)

    # ------------------------------------------------------------------------------------------- receiving

    def receive(self, datagram: bytes, source: Address, now: float) -> None:
        """`source` is where the datagram came from; keys are looked up by it, port included."""
        box = self._box(source)
        sealed = False
        body = datagram
        if box is not None:
            try:
                plain = box.decrypt(datagram)
            except (nacl.exceptions.CryptoError, ValueError):
                pass  # an announcement of a peer that has lost our key, perhaps
            else:
                if not self._is_fresh(plain, now):
                    return
                body, sealed = plain[_HEADER.size :], True
        try:
            self._receive_body(body, source, sealed, now)
        except (ValueError, TypeError, KeyError, pyzstd.ZstdError, msgpack.UnpackException):
            self.dropped["unreadable"] += 1

    def _is_fresh(self, plain: bytes, now: float) -> bool:
        nonce, stamp = _HEADER.unpack_from(plain)
        if stamp > now:
            self.dropped["ahead_of_clock"] += 1
        elif now - stamp > MAX_AGE:
            self.dropped["too_old"] += 1
        elif nonce in self._nonces:
            self.dropped["replayed"] += 1
        else:
            self._nonces[nonce] = stamp
            return True
        return False

    def _receive_body(self, body: bytes, source: Address, sealed: bool, now: float) -> None:
        content = msgpack.unpackb(body, raw=False)
        if isinstance(content, list):
            self._receive_text(pyzstd.decompress(content[0]).decode(), source, sealed, now)
        elif self.version == 1:
            self.dropped["not_v1"] += 1
        elif content["v"] != 2:
            self.dropped["other_version"] += 1
        elif content["c"]:
            self._receive_control(json.loads(content["c"]), source, sealed, now)
        else:
            self._receive_user_data(pyzstd.decompress(content["p"]).decode(), source, sealed, now)

    def _receive_text(self, text: str, source: Address, sealed: bool, now: float) -> None:
        # v1 has one channel for announcements and data.
        try:
            members = json.loads(text)
        except ValueError:
            members = None
        if isinstance(members, dict) and "enc_key" in members:
            self._receive_control(members, source, sealed, now)
        elif isinstance(members, dict) and "data" in members:
            self._receive_user_data(members["data"], source, sealed, now)
        else:
            self._receive_user_data(text, source, sealed, now)

    def _receive_user_data(self, text: str, source: Address, sealed: bool, now: float) -> None:
        if not sealed:
            # The releases take it; a library that seals must never make them.
            self.dropped["clear_data"] += 1
            return
        self.received.append((text, source))
        if self.echoes:
            self.send_data(f"Echo: {text}", source, now)

    def _receive_control(self, members: dict[str, Any], source: Address, sealed: bool, now: float) -> None:
        if "enc_key" not in members:
            self.dropped["control_without_key"] += 1
            return
        signed = base64.b64decode(members["signature"])
        verify_key = nacl.signing.VerifyKey(base64.b64decode(members["sign_key"]))
        try:
            text = verify_key.verify(signed)
        except nacl.exceptions.BadSignatureError:
            self.dropped["bad_signature"] += 1
            return
        if text != (members["enc_key"] + members["sign_key"]).encode():
            self.dropped["bad_signature"] += 1
            return
        first = source not in self.keys
        self.keys[source] = (members["enc_key"], members["sign_key"], now)
        self.peers[source] = None
        if first:
            # Sealed, with a key that its receiver cannot know yet.
            self._announce(source, now)

    # ---------------------------------------------------------------------------------------------- timers

    def deadline(self) -> float:
        return self._tick_at

    def run_timers(self, now: float) -> None:
        if now < self._tick_at:
            return
        self._tick_at = now + self.lifetime / 2
        for address, (_, _, announced_at) in list(self.keys.items()):
            if now - announced_at > self.lifetime:
                del self.keys[address]
                self.keys_forgotten += 1
        for nonce in [nonce for nonce, stamp in self._nonces.items() if now - stamp > MAX_AGE]:
            del self._nonces[nonce]
        for address in self.peers:
            self._announce(address, now)


class BasePeerOnSockets:
    """A `BasePeer` on 127.0.0.1; it runs only inside `run_until`, in the thread of the test.

    Args:
        version: 2 or 1.
        own_source_port: whether it sends from an unbound socket, as the releases do.
    """

    def __init__(self, version: int, *, own_source_port: bool = True) -> None:
        self._listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._listening.bind(("127.0.0.1", 0))
        self._sending = self._listening
        if own_source_port:
            self._sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address: Address = self._listening.getsockname()
        self.peer = BasePeer(version, self.address[1], time.time())

    def run_until(self, reached: Callable[[], object], timeout: float = 10.0) -> None:
        """Receive, send and run timers until `reached()`; fails after `timeout` seconds."""
        until = time.monotonic() + timeout
        while True:
            self._send_outgoing()
            if reached():
                return
            assert time.monotonic() < until, f"not reached in {timeout} s; dropped: {dict(self.peer.dropped)}"
            if select.select([self._listening], [], [], 0.005)[0]:
                datagram, source = self._listening.recvfrom(65535)
                self.peer.receive(datagram, source, time.time())
            self.peer.run_timers(time.time())

    def _send_outgoing(self) -> None:
        for address, datagram in self.peer.outgoing:
            self._sending.sendto(datagram, address)
        self.peer.outgoing.clear()

    def __enter__(self) -> BasePeerOnSockets:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._sending.close()
