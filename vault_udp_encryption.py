# SPDX-License-Identifier: Apache-2.0
"""Identity and base mode: NaCl Box between two announced keys, with replay protection.

Base mode is what every deployed peer speaks (PROTOCOL.md, section 8): static keys, random message nonces,
wall-clock timestamps. What it cannot give - forward secrecy, a window that clocks do not move - sessions do
(`vault_udp_session`). Both live under the identity that this module holds: the Ed25519 signing key.

    sealed  box nonce[24] | box( message nonce[16] | Unix time, big-endian double[8] | data )
"""

from __future__ import annotations

import contextlib
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING or not __package__:
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address
    from vault_udp_control import Announcement
    from vault_udp_errors import InvalidArgumentError, check_address
    from vault_udp_packet import PacketError
    from vault_udp_replay import NonceCaches
else:
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address
    from .vault_udp_control import Announcement
    from .vault_udp_errors import InvalidArgumentError, check_address
    from .vault_udp_packet import PacketError
    from .vault_udp_replay import NonceCaches


MAX_MESSAGE_AGE_SECONDS = 60
"""Seconds, to both sides, that a message's timestamp may lie away from the clock it is judged by."""
NONCE_CACHE_SIZE = 10000
"""Message nonces remembered for each base peer; beyond it the smallest timestamps are given up."""
MIN_LIFETIME = 5
_TIMESTAMP = struct.Struct(">d")
_HEADER_SIZE = 16 + _TIMESTAMP.size


class EncryptionError(Exception):
    """Something could not be sealed or opened. Base class of this module's errors."""


class DecryptionError(EncryptionError):
    """The datagram does not open: another key, or altered on the way."""


class KeyNotFoundError(EncryptionError):
    """There is no key for this address."""


class ReplayAttackError(EncryptionError):
    """The datagram is authentic, but was accepted before, is too old, too new, or one of our own."""


class InvalidKeyError(EncryptionError, ValueError):
    """A key is not 32 bytes in strict Base64, or not one that may be used."""


class InvalidLifetimeError(EncryptionError, InvalidArgumentError):
    """A key lifetime is not a number of seconds of at least 5."""


class PeerKeys:
    """What base mode knows of one address."""

    __slots__ = ("address", "enc", "proven", "refreshed_at", "shared", "sign", "supplied")

    def __init__(
        self, address: Address, enc: bytes, sign: bytes, shared: bytes, supplied: bool, now: float
    ) -> None:
        self.address = address
        self.enc = enc
        self.sign = sign
        self.shared = shared
        self.supplied = supplied
        """Set by the application, not learned from the network: never expires."""
        self.proven = supplied
        """Something has opened under them, or the application vouches for them."""
        self.refreshed_at = now


def check_lifetime(lifetime: float) -> float:
    """`lifetime` if it is a number of seconds, at least 5 and less than 1,000,000,000.

    Raises:
        InvalidLifetimeError: anything else.
    """
    if (
        isinstance(lifetime, bool)
        or not isinstance(lifetime, (int, float))
        or not MIN_LIFETIME <= lifetime < 1e9
    ):
        raise InvalidLifetimeError(
            f"lifetime is {lifetime!r}; it must be a number of seconds, at least {MIN_LIFETIME} and below 1e9"
        )
    return lifetime


def _no_key(addr: Address) -> KeyNotFoundError:
    return KeyNotFoundError(f"no key for {addr}; exchange keys or call update_peer_keys first")


def _key_bytes(text: str, what: str) -> bytes:
    try:
        key = crypto.b64_str_to_bytes(text)
    except (crypto.CryptoError, TypeError) as error:
        raise InvalidKeyError(f"{what} is not Base64 text: {error}") from error
    if len(key) != crypto.KEY_SIZE:
        raise InvalidKeyError(f"{what} has {len(key)} bytes; a key has {crypto.KEY_SIZE}")
    return key


class VaultAsymmetricEncryption:
    """Seals and opens for the addresses whose keys it holds; thread-safe.

    Args:
        lifetime: seconds for which a learned key is kept without being heard of, at least 5.
        enc_private_key: Base64 X25519 private key; made if omitted.
        sign_private_key: Base64 Ed25519 seed, the identity; made if omitted.
        monotonic, wall: clocks, in seconds.

    Raises:
        InvalidKeyError: a key given is not one.
        InvalidLifetimeError: the lifetime is not a number of at least 5.
    """

    def __init__(
        self,
        lifetime: float = 60,
        enc_private_key: str | None = None,
        sign_private_key: str | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.lock = threading.RLock()
        self.on_identity_changed: Callable[[], None] | None = None
        """Called under the lock when our own keys have changed."""
        self.on_peer_keys_supplied: Callable[[Address], None] | None = None
        """Called under the lock when the application has given keys for an address."""
        self._monotonic = monotonic
        self._wall = wall
        self._lifetime = check_lifetime(lifetime)
        self._started_at = wall()
        self._enc_private = bytearray()
        self._sign_seed = bytearray()
        self._own_keys_supplied = False
        self._peers: dict[Address, PeerKeys] = {}
        self._addresses_of: dict[bytes, set[Address]] = {}
        # By shared key, not by address: a datagram stays known when its sender's address changes, when its
        # key is announced again, and when the application changes our keys and changes them back.
        self._nonces = NonceCaches()
        self.enc_public_key = ""
        self.sign_public_key = ""
        enc = _key_bytes(enc_private_key, "enc_private_key") if enc_private_key is not None else None
        sign = _key_bytes(sign_private_key, "sign_private_key") if sign_private_key is not None else None
        self._take_own_keys(enc or crypto.new_enc_private(), sign or crypto.new_sign_seed())
        self._own_keys_supplied = enc is not None

    # ----------------------------------------------------------------------------------------- own keys

    def generate_keys(self) -> tuple[str, str]:
        """Replace our keys by new ones.

        Returns:
            (enc_public, sign_public), Base64.
        """
        with self.lock:
            self._take_own_keys(crypto.new_enc_private(), crypto.new_sign_seed())
            self._own_keys_supplied = False
            self._announce_identity()
            return self.enc_public_key, self.sign_public_key

    def set_private_keys(self, enc_private_key: str, sign_private_key: str) -> None:
        """Use keys of the application's; the same ones again change nothing.

        Raises:
            InvalidKeyError: not Base64 of 32 bytes.
        """
        enc = _key_bytes(enc_private_key, "enc_private_key")
        sign = _key_bytes(sign_private_key, "sign_private_key")
        with self.lock:
            if crypto.equal(enc, bytes(self._enc_private)) and crypto.equal(sign, bytes(self._sign_seed)):
                return
            self._take_own_keys(enc, sign)
            self._own_keys_supplied = True
            self._announce_identity()

    def _take_own_keys(self, enc_private: bytes, sign_seed: bytes) -> None:
        enc_public = crypto.enc_public_of(enc_private)
        sign_public = crypto.sign_public_of(sign_seed)
        crypto.wipe(self._enc_private)
        crypto.wipe(self._sign_seed)
        self._enc_private, self._sign_seed = bytearray(enc_private), bytearray(sign_seed)
        # Our message nonces begin with it: a Box is the same in both directions, so without it a datagram of
        # ours that comes back would open.
        self._nonce_prefix = crypto.derive(enc_private, b"message nonce prefix", 8)
        self.enc_public_key = crypto.bytes_to_b64_str(enc_public)
        self.sign_public_key = crypto.bytes_to_b64_str(sign_public)
        for keys in self._peers.values():
            keys.shared = crypto.shared_key(self._enc_private, keys.enc)

    def _announce_identity(self) -> None:
        if self.on_identity_changed is not None:
            self.on_identity_changed()

    @property
    def sign_seed(self) -> bytes:
        """The identity's secret, for the session layer."""
        return bytes(self._sign_seed)

    def base_members(self, port: int) -> dict[str, Any]:
        """The announcement members that base peers read: our keys, signed, and where we listen."""
        with self.lock:
            text = (self.enc_public_key + self.sign_public_key).encode()
            signed = crypto.sign_detached(bytes(self._sign_seed), text) + text
            return {
                "enc_key": self.enc_public_key,
                "sign_key": self.sign_public_key,
                "signature": crypto.bytes_to_b64_str(signed),
                "port": port,
            }

    @property
    def lifetime(self) -> float:
        """Seconds for which a learned key is kept without being heard of; at least 5."""
        return self._lifetime

    @lifetime.setter
    def lifetime(self, seconds: float) -> None:
        self._lifetime = check_lifetime(seconds)

    # ---------------------------------------------------------------------------------------- peer keys

    def update_peer_keys(self, addr: Address, enc_key: str, sign_key: str) -> None:
        """Give the keys of a base peer that the application learned by ways of its own.

        The same keys again are a no-op. They do not expire.

        Raises:
            InvalidArgumentError, InvalidPortError: addr is not an address (both are `ValueError` too).
            InvalidKeyError: not Base64 of 32 bytes, an enc_key that gives no secret (low order), or one that
                another identity has shown that it holds; or our own keys were overwritten by `stop`.
        """
        addr = check_address(addr)
        enc, sign = _key_bytes(enc_key, "enc_key"), _key_bytes(sign_key, "sign_key")
        with self.lock:
            known = self._peers.get(addr)
            if known is not None and (known.enc, known.sign, known.supplied) == (enc, sign, True):
                return
            try:
                self.store_peer_keys(addr, enc, sign, self._monotonic(), supplied=True)
            except PacketError as error:
                raise InvalidKeyError(
                    "another identity has shown that it holds this enc_key"
                    if error.reason == "key_of_another"
                    else "enc_key is a low-order point, which shares no secret, or our own keys are gone"
                ) from error
            if self.on_peer_keys_supplied is not None:
                self.on_peer_keys_supplied(addr)

    def store_peer_keys(
        self, addr: Address, enc: bytes, sign: bytes, now: float, *, supplied: bool = False
    ) -> None:
        """Keep verified keys for an address; replay state outlives it.

        Raises:
            PacketError: ``bad_announcement`` (unusable), ``key_of_another`` (held for another identity).
        """
        with self.lock:
            try:
                shared = crypto.shared_key(self._enc_private, enc)
            except crypto.CryptoError as error:
                raise PacketError("bad_announcement") from error
            # Who only announced a key does not keep its owner from using it.
            holders = (self._peers[other] for other in self._addresses_of.get(enc, ()) if other != addr)
            if any(keys.sign != sign and keys.proven for keys in holders):
                raise PacketError("key_of_another")
            self.remove_peer_keys(addr)
            self._peers[addr] = PeerKeys(addr, enc, sign, shared, supplied, now)
            self._addresses_of.setdefault(enc, set()).add(addr)

    def remove_peer_keys(self, addr: Address) -> None:
        """Forget the keys of an address; nothing happens if there are none."""
        with self.lock:
            keys = self.peer_keys(addr)
            if keys is not None:
                del self._peers[keys.address]
                addresses = self._addresses_of[keys.enc]
                addresses.discard(keys.address)
                if not addresses:
                    del self._addresses_of[keys.enc]

    def peer_keys_exist(self, addr: Address) -> bool:
        """Whether there are base keys for this address."""
        return self.peer_keys(addr) is not None

    def peer_keys(self, addr: Address) -> PeerKeys | None:
        """The base keys held for an address, whatever form of it is given; None if there are none."""
        keys = self._peers.get(addr)
        if keys is None:
            with contextlib.suppress(ValueError):  # what is no address has no keys
                keys = self._peers.get(check_address(addr))
        return keys

    def keys_with(self, enc: bytes) -> list[PeerKeys]:
        """The keys of all addresses for which that encryption key was announced, or given."""
        return [self._peers[address] for address in self._addresses_of.get(enc, ())]

    def cleanup_expired_keys(self) -> int:
        """Forget learned keys not heard of for a lifetime, and nonces too old to matter.

        Returns:
            How many addresses lost their keys.
        """
        with self.lock:
            now = self._monotonic()
            expired = [
                addr
                for addr, keys in self._peers.items()
                if not keys.supplied and now - keys.refreshed_at > self._lifetime
            ]
            for addr in expired:
                self.remove_peer_keys(addr)
            self.forget_old_nonces()
            return len(expired)

    def forget_old_nonces(self) -> None:
        """Drop the nonces whose datagrams would be refused by their age."""
        with self.lock:
            in_use = {keys.shared for keys in self._peers.values()}
            self._nonces.forget_before(self._wall() - 2 * MAX_MESSAGE_AGE_SECONDS, in_use)

    def verify_announcement(self, announcement: Announcement) -> tuple[bytes, bytes]:
        """(enc, sign) of a base announcement whose signature covers exactly the announced keys.

        A self-signed key proves that the keys belong together, not whose they are: trust on first use.

        Raises:
            PacketError: ``bad_announcement`` (junk or unusable keys), ``bad_signature``.
        """
        enc_key, sign_key, signature = announcement.enc_key, announcement.sign_key, announcement.signature
        if enc_key is None or sign_key is None or signature is None:
            raise PacketError("bad_announcement")
        try:
            enc, sign = _key_bytes(enc_key, "enc_key"), _key_bytes(sign_key, "sign_key")
            signed = crypto.b64_str_to_bytes(signature)
        except (InvalidKeyError, crypto.CryptoError) as error:
            raise PacketError("bad_announcement") from error
        if crypto.is_low_order(enc):
            raise PacketError("bad_announcement")
        detached, text = signed[: crypto.SIGNATURE_SIZE], signed[crypto.SIGNATURE_SIZE :]
        if text != (enc_key + sign_key).encode() or not crypto.verify_detached(sign, text, detached):
            raise PacketError("bad_signature")
        return enc, sign

    # ------------------------------------------------------------------------------------ seal and open

    def encrypt(self, data: bytes, addr: Address, *, lag: float = 0.0) -> bytes:
        """Seal `data` for the peer at `addr`, with a message nonce and the time, `lag` seconds early.

        Raises:
            TypeError: data is not bytes.
            KeyNotFoundError: no key for this address, or none of our own after `stop`.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        with self.lock:
            if not self._enc_private:
                raise KeyNotFoundError(
                    "our own keys are gone since stop; make a new VaultAsymmetricEncryption"
                )
            keys = self.peer_keys(addr)
            if keys is None:
                raise _no_key(addr)
            nonce = self._nonce_prefix + crypto.random_bytes(8)
            stamp = _TIMESTAMP.pack(self._wall() - lag)
            return crypto.seal(keys.shared, crypto.random_bytes(crypto.NONCE_SIZE), nonce + stamp + data)

    def reopen(self, datagram: bytes, addr: Address) -> bytes | None:
        """What `encrypt` has sealed for `addr`; None if that was under other keys."""
        with self.lock:
            keys = self.peer_keys(addr)
            try:
                return crypto.open_sealed(keys.shared, datagram)[_HEADER_SIZE:] if keys is not None else None
            except crypto.DecryptionError:
                return None

    def decrypt(self, data: bytes, addr: Address) -> bytes:
        """Open what the peer at `addr` sealed for us, once.

        Raises:
            TypeError: data is not bytes.
            KeyNotFoundError: no key for this address.
            DecryptionError: it does not open.
            ReplayAttackError: accepted before, more than ``MAX_MESSAGE_AGE_SECONDS`` away from our clock,
                sealed by ourselves, or of so many peers that its nonce cannot be remembered.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        try:
            return self.open(data, addr)
        except PacketError as error:
            if error.reason == "no_key":
                raise _no_key(addr) from None
            if error.reason == "forged":
                raise DecryptionError(f"{len(data)} bytes from {addr} do not open with its key") from None
            why = error.reason
            if why == "outside_window":
                why += (
                    f" (MAX_MESSAGE_AGE_SECONDS: {MAX_MESSAGE_AGE_SECONDS}); compare the clocks of both ends"
                )
            raise ReplayAttackError(f"message from {addr} refused: {why}") from None

    def open(self, datagram: bytes, addr: Address) -> bytes:
        """Open what the peer at `addr` sealed for us, once; the reason of a refusal is for the counters.

        Raises:
            PacketError: ``no_key``, ``forged``, ``own_datagram``, ``outside_window``, ``replayed``,
                ``too_many_base_peers``.
        """
        with self.lock:
            keys = self.peer_keys(addr)
            if keys is None:
                raise PacketError("no_key")
            try:
                plain = crypto.open_sealed(keys.shared, datagram)
            except crypto.DecryptionError as error:
                raise PacketError("forged") from error
            if len(plain) < _HEADER_SIZE:
                raise PacketError("forged")
            self._check_replay(keys, plain[:16], _TIMESTAMP.unpack_from(plain, 16)[0])
            keys.refreshed_at, keys.proven = self._monotonic(), True
            return plain[_HEADER_SIZE:]

    def _check_replay(self, keys: PeerKeys, nonce: bytes, timestamp: float) -> None:
        if crypto.equal(nonce[:8], self._nonce_prefix):
            raise PacketError("own_datagram")
        # "not <=" so that a NaN is refused, too.
        if not abs(timestamp - self._wall()) <= MAX_MESSAGE_AGE_SECONDS:
            raise PacketError("outside_window")
        if not self._nonces.has_room_for(keys.shared):
            raise PacketError("too_many_base_peers")
        # Our own keys outlive our memory of nonces when the application sets them again after a restart.
        floor = self._started_at if self._own_keys_supplied else 0.0
        if not self._nonces.accept(keys.shared, nonce, timestamp, NONCE_CACHE_SIZE, floor):
            raise PacketError("replayed")

    # ------------------------------------------------------------------------------------------ the rest

    def get_stats(self) -> dict[str, Any]:
        """Counts for display; no keys."""
        with self.lock:
            tracked = self._nonces.sizes()
            return {
                "active_peer_keys": len(self._peers),
                "key_lifetime_seconds": self._lifetime,
                "has_enc_private_key": bool(self._enc_private),
                "has_sign_private_key": bool(self._sign_seed),
                "total_tracked_nonces": sum(tracked),
                "peers_with_nonces": sum(1 for count in tracked if count),
            }

    def stop(self) -> None:
        """Overwrite our private keys and forget the peers'; any number of times."""
        with self.lock:
            for secret in (self._enc_private, self._sign_seed):
                crypto.wipe(secret)
                secret.clear()
            self._peers.clear()
            self._addresses_of.clear()
            self._nonces.clear()

    def __enter__(self) -> VaultAsymmetricEncryption:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<VaultAsymmetricEncryption {self.sign_public_key[:8]}… with {len(self._peers)} peer keys>"


def main() -> int:
    """Self-test: say what is checked, line by line; 1 if anything fails."""
    failed = 0

    def check(what: str, passed: bool) -> None:
        nonlocal failed
        failed += not passed
        print(("ok    " if passed else "FAIL  ") + what)

    def refused(error: type[Exception], call: Callable[[], object]) -> bool:
        try:
            call()
        except error:
            return True
        return False

    a, b = ("192.0.2.1", 11000), ("192.0.2.2", 11000)
    with VaultAsymmetricEncryption() as alice, VaultAsymmetricEncryption() as bob:
        alice.update_peer_keys(b, bob.enc_public_key, bob.sign_public_key)
        bob.update_peer_keys(a, alice.enc_public_key, alice.sign_public_key)
        sealed = alice.encrypt(b"secret", b)
        check("sealed data does not contain its plain text", b"secret" not in sealed)
        check("the peer opens it", bob.decrypt(sealed, a) == b"secret")
        check(
            "the same datagram again is refused", refused(ReplayAttackError, lambda: bob.decrypt(sealed, a))
        )
        check("our own datagram is refused", refused(ReplayAttackError, lambda: alice.decrypt(sealed, b)))
        altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
        check("an altered datagram is refused", refused(DecryptionError, lambda: bob.decrypt(altered, a)))
        stranger = ("192.0.2.3", 1)
        check("no key, no encryption", refused(KeyNotFoundError, lambda: alice.encrypt(b"x", stranger)))
        check(
            "a junk key is refused", refused(InvalidKeyError, lambda: alice.update_peer_keys(b, "junk!", "x"))
        )
    check("stop() leaves no private keys", not alice.get_stats()["has_sign_private_key"])
    print("FAILED" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
