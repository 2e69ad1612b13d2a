# SPDX-License-Identifier: Apache-2.0
"""Thin wrapper around NaCl (PyNaCl, that is libsodium): keys, signatures, sealing.

From top to bottom: exceptions, the raw-bytes layer that the protocol modules use, the public layer whose
keys are Base64 text, the self-test (``python vault_udp_socket_helper.py``). No nacl exception leaves this
module: what a caller can provoke becomes a `CryptoError`, a message of the wrong type a `TypeError`.

Keys, all 32 bytes: X25519 private and public keys (RFC 7748), Ed25519 seeds (what is called the private
signing key here) and public keys (RFC 8032), and the symmetric keys of XSalsa20-Poly1305.

What may look alarming, and why it is safe:

- `seal` and `open_sealed`, and for many datagrams those of a `Workspace`, are on the way of everything that
  is sent, so they call libsodium through PyNaCl's cffi handles instead of `nacl.bindings`, which checks
  more slowly what is checked here. The handles are private to PyNaCl: at import their results are compared
  with those of `nacl.bindings`, which is used instead should they be missing or differ. C reads fixed
  lengths from the pointers it gets, so key and nonce are measured before each call.
- cffi releases the GIL while libsodium runs. Hence each call has an output buffer of its own, or its caller
  has taken a `Workspace` that nobody else has. The input is not copied: who passes a bytearray or memoryview
  to `open_sealed` must not write to it during the call, for what is written between authentication and
  decryption would be decrypted unauthenticated.
- Symmetric keys must be immutable bytes, because a key wiped by one thread while another seals would seal
  under zeros, which anybody can open. Private keys may live in a bytearray that its owner wipes; one that is
  all zeros has been wiped and is refused. Wiping is best effort: Python and libsodium copy keys on the way.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import logging
import os
import sys
from typing import Any, Callable, Union

import nacl.exceptions
from nacl import bindings

logger = logging.getLogger("vault_udp")

KEY_SIZE = 32
NONCE_SIZE = 24
SIGNATURE_SIZE = 64
AUTHENTICATOR_SIZE = 16
PERSON = b"py-vault-udp/2"
BOX_OVERHEAD = NONCE_SIZE + AUTHENTICATOR_SIZE

PrivateKey = Union[bytes, bytearray]
Buffer = Union[bytes, bytearray, memoryview]
Seal = Callable[[bytes, bytes, bytes], bytes]
OpenSealed = Callable[[bytes, Buffer], bytes]
SealRun = Callable[[bytes, int, int], bytes]
OpenRun = Callable[[bytes, int, int], int]


class CryptoError(Exception):
    """Base of every error of this module that is not a `TypeError`."""


class KeyGenerationError(CryptoError):
    """No key could be made or derived, because the private key is malformed."""


class EncryptionError(CryptoError):
    """A message could not be sealed, because a key or the nonce is malformed."""


class DecryptionError(CryptoError):
    """A sealed message does not open: wrong key, or not what the sender sealed."""


class EncodingError(CryptoError, ValueError):
    """A text is not canonical Base64 (RFC 4648, section 4)."""


class SignatureError(CryptoError):
    """A message could not be signed, or a signature does not verify."""


# --- raw bytes: keys ---------------------------------------------------------------------------------------


def random_bytes(size: int) -> bytes:
    """Return `size` bytes of the system's cryptographic random generator."""
    return os.urandom(size)


def new_enc_private() -> bytes:
    """Return a new X25519 private key."""
    return random_bytes(KEY_SIZE)


def enc_public_of(private: PrivateKey) -> bytes:
    """Return the X25519 public key of `private`; `KeyGenerationError` if that is no private key."""
    return bindings.crypto_scalarmult_base(_checked_private(private, KeyGenerationError))


def new_sign_seed() -> bytes:
    """Return a new Ed25519 seed."""
    return random_bytes(KEY_SIZE)


def sign_public_of(seed: PrivateKey) -> bytes:
    """Return the Ed25519 public key of `seed`; `KeyGenerationError` if that is no seed."""
    return bindings.crypto_sign_seed_keypair(_checked_private(seed, KeyGenerationError))[0]


def shared_key(private: PrivateKey, public: bytes) -> bytes:
    """Return the symmetric key that two X25519 key pairs share (NaCl's crypto_box_beforenm).

    Raises `CryptoError` if a key is malformed or `public` is of low order.
    """
    secret = _checked_private(private, CryptoError)
    _check_size("public key", public, KEY_SIZE, CryptoError)
    try:
        return bindings.crypto_box_beforenm(public, secret)
    except nacl.exceptions.RuntimeError as error:
        raise CryptoError("the public key is of low order: everybody would know the shared key") from error


_FIELD_PRIME = 2**255 - 19
# The u coordinates of the points whose order divides 8, on the curve and its twist: the list that
# https://cr.yp.to/ecdh.html#validate gives, reduced to the values below the prime.
_LOW_ORDER_U = {
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    _FIELD_PRIME - 1,
}


def is_low_order(public: bytes) -> bool:
    """Whether X25519 with this 32-byte public key gives zero for every private key."""
    # RFC 7748 section 5: the top bit is ignored, and non-canonical values are reduced.
    u = int.from_bytes(public, "little") & (2**255 - 1)
    return u % _FIELD_PRIME in _LOW_ORDER_U


def _checked_private(private: PrivateKey, error: type[CryptoError]) -> bytes:
    _check_size("private key", private, KEY_SIZE, error)
    if not any(private):
        raise error("the private key is all zeros: it was wiped, use a new one")
    return bytes(private)


def _check_size(name: str, value: Buffer, size: int, error: type[CryptoError]) -> None:
    if len(value) != size:
        raise error(f"the {name} has {len(value)} bytes, it must have {size}")


# --- raw bytes: signatures, hashes, memory -----------------------------------------------------------------


def sign_detached(seed: PrivateKey, message: bytes, public: bytes = b"") -> bytes:
    """Return the 64-byte Ed25519 signature (RFC 8032); `SignatureError` if `seed` is malformed.

    `public` is what `sign_public_of(seed)` returned, where it is at hand: making it takes as long as
    signing. It must be that and no other, or two signatures give the seed away.
    """
    secret = _checked_private(seed, SignatureError) + (public or sign_public_of(seed))
    return bindings.crypto_sign(message, secret)[:SIGNATURE_SIZE]


def verify_detached(sign_public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message`; false as well for whatever has the wrong length.

    libsodium refuses low-order and non-canonical keys and signatures, so each is valid in one form only.
    """
    if len(sign_public) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        bindings.crypto_sign_open(signature + message, sign_public)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def derive(key: bytes, message: bytes, size: int, person: bytes = PERSON) -> bytes:
    """Return `size` (1 to 64) bytes of keyed BLAKE2b (RFC 7693); `person`, up to 16 bytes, names the use."""
    return hashlib.blake2b(message, digest_size=size, key=key, person=person).digest()


def equal(a: bytes, b: bytes) -> bool:
    """Whether both are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(a, b)


def wipe(buffer: bytearray) -> None:
    """Overwrite a private key with zeros."""
    buffer[:] = bytes(len(buffer))


# --- raw bytes: sealing ------------------------------------------------------------------------------------


def _bindings_functions() -> tuple[Seal, OpenSealed]:
    def seal(key: bytes, nonce: bytes, plain: bytes) -> bytes:
        _check_size("key", key, KEY_SIZE, EncryptionError)
        _check_size("nonce", nonce, NONCE_SIZE, EncryptionError)
        return nonce + bindings.crypto_box_easy_afternm(plain, nonce, key)

    def open_sealed(key: bytes, datagram: Buffer) -> bytes:
        _check_sealed(key, datagram)
        nonce, box = bytes(datagram[:NONCE_SIZE]), bytes(datagram[NONCE_SIZE:])
        try:
            return bindings.crypto_box_open_easy_afternm(box, nonce, key)
        except nacl.exceptions.CryptoError as error:
            raise _not_authentic() from error

    return seal, open_sealed


def _cffi_functions(ffi: Any, lib: Any) -> tuple[Seal, OpenSealed]:
    new, view, from_buffer = ffi.new, ffi.buffer, ffi.from_buffer
    unsigned_chars = ffi.typeof("unsigned char[]")
    box_easy, box_open_easy = lib.crypto_box_easy_afternm, lib.crypto_box_open_easy_afternm

    def seal(key: bytes, nonce: bytes, plain: bytes) -> bytes:
        if len(key) != KEY_SIZE or len(nonce) != NONCE_SIZE:
            _check_size("key", key, KEY_SIZE, EncryptionError)
            _check_size("nonce", nonce, NONCE_SIZE, EncryptionError)
        size = len(plain)
        box = new(unsigned_chars, size + AUTHENTICATOR_SIZE)
        if box_easy(box, plain, size, nonce, key) != 0:
            raise EncryptionError(f"libsodium refused to seal {size} bytes")
        sealed: bytes = nonce + view(box)[:]
        return sealed

    def open_sealed(key: bytes, datagram: Buffer) -> bytes:
        _check_sealed(key, datagram)
        size = len(datagram) - BOX_OVERHEAD
        nonce = from_buffer(datagram)
        plain = new(unsigned_chars, size)
        if box_open_easy(plain, nonce + NONCE_SIZE, size + AUTHENTICATOR_SIZE, nonce, key) != 0:
            raise _not_authentic()
        opened: bytes = view(plain)[:]
        return opened

    return seal, open_sealed


def _check_sealed(key: bytes, datagram: Buffer) -> None:
    if len(key) != KEY_SIZE or len(datagram) < BOX_OVERHEAD:
        _check_size("key", key, KEY_SIZE, DecryptionError)
        raise DecryptionError(
            f"{len(datagram)} bytes are too few: a sealed message has {BOX_OVERHEAD} or more"
        )


def _not_authentic() -> DecryptionError:
    return DecryptionError("the message is not authentic: sealed with another key, or changed on the way")


RUN_SIZE = 262_144
"""Bytes of datagrams that are sealed or opened in one go; the processor's cache holds them."""


def _choose_functions() -> tuple[Seal, OpenSealed, bool]:
    """`seal`, `open_sealed`, and whether they call libsodium through PyNaCl's cffi handles."""
    by_bindings = seal, open_sealed = _bindings_functions()
    key, nonce, plain = b"k" * KEY_SIZE, b"n" * NONCE_SIZE, b"plain text of odd length"
    sealed = seal(key, nonce, plain)
    try:
        from nacl._sodium import ffi, lib

        by_cffi = seal, open_sealed = _cffi_functions(ffi, lib)
        if seal(key, nonce, plain) == sealed and open_sealed(key, sealed) == plain:
            return (*by_cffi, True)
    except (ImportError, AttributeError, TypeError, CryptoError) as error:
        logger.info("PyNaCl's cffi handles are not usable (%s): sealing by nacl.bindings", error)
    return (*by_bindings, False)


seal, open_sealed, _uses_cffi = _choose_functions()
"""Sealing and opening in memory of their own, by XSalsa20-Poly1305 with a key of `shared_key` or `derive`:

`seal(key, nonce, plain)` returns `nonce[24] ‖ ciphertext`, `BOX_OVERHEAD` longer than `plain`; raises
`EncryptionError` if `key` or `nonce` has the wrong length. A nonce must never be used twice under one key.
`open_sealed(key, datagram)` returns the plaintext of what `seal` returned, else raises `DecryptionError`;
a datagram that is no bytes object must not change during the call.
"""


class Workspace:
    """Seals and opens where the bytes lie, in memory that is used again, which saves a fifth of `seal`.

    In it lies a run: datagrams of one size, end to end from the start. Sealed, each is a nonce and a box;
    unsealed it is the nonce, `AUTHENTICATOR_SIZE` bytes that mean nothing, and the plaintext.

    Not for two at a time, be they threads or a signal handler and what it has interrupted: what is sealed
    twice is plaintext again. Who has taken one out of `Workspaces` has it for himself.

    Attributes:
        run: `RUN_SIZE` bytes to write into and read from.
        seal_run: `seal_run(key, size, count)` seals the first `count` datagrams of `size` bytes in `run` and
            returns them. Raises `EncryptionError` if the key has the wrong length, or if so many do not fit.
        open_run: `open_run(key, size, count)` opens them, up to the first that is not authentic, and returns
            how many it has opened. Raises `DecryptionError` as `seal_run` does.
    """

    __slots__ = ("open_run", "run", "seal_run")

    def __init__(self) -> None:
        functions = _run_functions_of_cffi() if _uses_cffi else _run_functions_of_bindings()
        self.run, self.seal_run, self.open_run = functions


class Workspaces:
    """Workspaces that nobody is using. There are more than one only if somebody was interrupted in using it.

    Attributes:
        give_back: `give_back(workspace)` is for whoever has taken one and uses it no more. Not in a
            `finally`: one that was left in the middle of its work is not used again.
    """

    __slots__ = ("_idle", "give_back")

    def __init__(self) -> None:
        self._idle = [Workspace()]
        self.give_back = self._idle.append

    def take(self) -> Workspace:
        """One that nobody else has until it is given back."""
        return self._idle.pop() if self._idle else Workspace()

    def wipe(self) -> None:
        """Overwrite the plaintexts that are left in them."""
        for workspace in self._idle:
            workspace.run[:] = bytes(RUN_SIZE)


def _run_functions_of_cffi() -> tuple[memoryview, SealRun, OpenRun]:
    from nacl._sodium import ffi, lib

    box_easy, box_open_easy = lib.crypto_box_easy_afternm, lib.crypto_box_open_easy_afternm
    memory = ffi.new("unsigned char[]", RUN_SIZE)
    view = ffi.buffer(memory)
    # To nonce, box and plaintext of each datagram, within `memory`. Making a pointer costs a tenth of sealing
    # a datagram, and nearly all runs have the size of the last one.
    pointers: list[tuple[Any, Any, Any]] = []
    size_of_pointers = 0

    def make_pointers(size: int, count: int) -> None:
        nonlocal pointers, size_of_pointers
        if size != size_of_pointers:
            pointers, size_of_pointers = [], size
        for at in range(size * len(pointers), size * count, size):
            pointers.append((memory + at, memory + at + NONCE_SIZE, memory + at + BOX_OVERHEAD))

    # In place: the ciphertext comes where the plaintext is, and the other way round, which libsodium allows.
    # Sizes are checked first, for C reads and writes wherever it is told to.

    def seal_run(key: bytes, size: int, count: int) -> bytes:
        _check_run(key, size, count, EncryptionError)
        if size != size_of_pointers or count > len(pointers):
            make_pointers(size, count)
        plain_size = size - BOX_OVERHEAD
        for nonce, box, plain in pointers[:count]:
            if box_easy(box, plain, plain_size, nonce, key) != 0:
                raise EncryptionError(f"libsodium refused to seal {plain_size} bytes")
        sealed: bytes = view[: size * count]
        return sealed

    def open_run(key: bytes, size: int, count: int) -> int:
        _check_run(key, size, count, DecryptionError)
        if size != size_of_pointers or count > len(pointers):
            make_pointers(size, count)
        box_size, opened = size - NONCE_SIZE, 0
        for nonce, box, plain in pointers[:count]:
            if box_open_easy(plain, box, box_size, nonce, key) != 0:
                break
            opened += 1
        return opened

    return memoryview(view), seal_run, open_run


def _run_functions_of_bindings() -> tuple[memoryview, SealRun, OpenRun]:
    run = memoryview(bytearray(RUN_SIZE))

    def seal_run(key: bytes, size: int, count: int) -> bytes:
        _check_run(key, size, count, EncryptionError)
        for at in range(0, size * count, size):
            nonce, plain = run[at : at + NONCE_SIZE], run[at + BOX_OVERHEAD : at + size]
            run[at : at + size] = seal(key, bytes(nonce), bytes(plain))
        return bytes(run[: size * count])

    def open_run(key: bytes, size: int, count: int) -> int:
        _check_run(key, size, count, DecryptionError)
        for index in range(count):
            sealed = run[index * size : (index + 1) * size]
            try:
                sealed[BOX_OVERHEAD:] = open_sealed(key, sealed)
            except DecryptionError:
                return index
        return count

    return run, seal_run, open_run


def _check_run(key: bytes, size: int, count: int, error: type[CryptoError]) -> None:
    _check_size("key", key, KEY_SIZE, error)
    if size < BOX_OVERHEAD or not 0 <= size * count <= RUN_SIZE:
        raise error(
            f"no run: {count} datagrams of {size} bytes; each has {BOX_OVERHEAD} or more, "
            f"all {RUN_SIZE} or less"
        )


def _workspace_agrees() -> bool:
    """Whether a workspace does what `seal` and `open_sealed` do."""
    key, nonce, plain = b"k" * KEY_SIZE, b"n" * NONCE_SIZE, b"plain text of odd length"
    sealed, unsealed, workspace = (
        seal(key, nonce, plain),
        nonce + bytes(AUTHENTICATOR_SIZE) + plain,
        Workspace(),
    )
    size = len(sealed)
    workspace.run[: 2 * size] = unsealed * 2
    seals = workspace.seal_run(key, size, 2) == sealed * 2
    opens = workspace.open_run(key, size, 2) == 2
    return seals and opens and workspace.run[2 * size - len(plain) : 2 * size] == plain


_uses_cffi = _uses_cffi and _workspace_agrees()


# --- public layer: keys as Base64 text ---------------------------------------------------------------------


def bytes_to_b64_str(data: bytes | bytearray) -> str:
    """Return `data` as Base64 text (RFC 4648, section 4: with padding, without line breaks)."""
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data must be bytes, not {type(data).__name__}")
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def b64_str_to_bytes(text: str) -> bytes:
    """Return the bytes of a Base64 text in its one canonical form.

    Raises `EncodingError` for junk, white space, wrong padding and stray bits in the last character, and
    `TypeError` if `text` is no str. The error does not quote the text, which may be a private key.
    """
    if not isinstance(text, str):
        raise TypeError(f"Base64 text must be str, not {type(text).__name__}")
    try:
        data = binascii.a2b_base64(text)
    except ValueError as error:
        raise EncodingError(f"a text of {len(text)} characters is not Base64: {error}") from error
    if bytes_to_b64_str(data) != text:  # it skips junk
        raise EncodingError(f"a text of {len(text)} characters is not canonical Base64")
    return data


def generate_keys_asym() -> tuple[str, str, str, str]:
    """Return new keys as `(enc_public, enc_private, sign_public, sign_private)`, Base64 text.

    The first two are an X25519 key pair, the last two an Ed25519 public key and its seed.
    """
    enc_private, sign_seed = new_enc_private(), new_sign_seed()
    keys = enc_public_of(enc_private), enc_private, sign_public_of(sign_seed), sign_seed
    enc_public_text, enc_private_text, sign_public_text, sign_private_text = map(bytes_to_b64_str, keys)
    return enc_public_text, enc_private_text, sign_public_text, sign_private_text


def generate_public_key(enc_private: str) -> str:
    """Return the X25519 public key of `enc_private`; `KeyGenerationError` if that is malformed."""
    return bytes_to_b64_str(enc_public_of(_key("private key", enc_private, KeyGenerationError)))


def verify_key_pair(enc_public: str, enc_private: str) -> bool:
    """Whether `enc_public` is the X25519 public key of `enc_private`; false as well if one is malformed."""
    try:
        expected = enc_public_of(_key("private key", enc_private, KeyGenerationError))
        return equal(expected, b64_str_to_bytes(enc_public))
    except CryptoError:
        return False


def sign_message(sign_private: str, message: bytes) -> bytes:
    """Return `signature[64] ‖ message` (Ed25519); `SignatureError` if the key is malformed."""
    _check_message(message)
    return sign_detached(_key("private signing key", sign_private, SignatureError), message) + message


def verify_signature(sign_public: str, signed: bytes) -> bytes:
    """Return the message of what `sign_message` returned.

    Raises `SignatureError` if the key is malformed, or if the owner of that key did not sign the message.
    """
    _check_message(signed)
    key = _key("public signing key", sign_public, SignatureError)
    signature, message = signed[:SIGNATURE_SIZE], signed[SIGNATURE_SIZE:]
    if not verify_detached(key, message, signature):
        raise SignatureError(f"the signature of {len(signed)} signed bytes does not verify")
    return message


def encrypt_asym(sender_private: str, recipient_public: str, message: bytes) -> bytes:
    """Return `nonce[24] ‖ box` (NaCl Box, random nonce); `EncryptionError` if a key is malformed."""
    _check_message(message)
    key = _box_key(sender_private, recipient_public, EncryptionError)
    return seal(key, random_bytes(NONCE_SIZE), message)


def decrypt_asym(recipient_private: str, sender_public: str, message: bytes) -> bytes:
    """Return the message of what `encrypt_asym` returned.

    Raises `DecryptionError` if a key is malformed, or if this sender did not seal it for this recipient.
    """
    _check_message(message)
    key = _box_key(recipient_private, sender_public, DecryptionError)
    return open_sealed(key, message)


def _box_key(private: str, public: str, error: type[CryptoError]) -> bytes:
    try:
        return shared_key(b64_str_to_bytes(private), b64_str_to_bytes(public))
    except CryptoError as reason:
        raise error(f"the keys cannot be used: {reason}") from reason


def _key(name: str, text: str, error: type[CryptoError]) -> bytes:
    try:
        key = b64_str_to_bytes(text)
    except EncodingError as reason:
        raise error(f"the {name} is no Base64 text: {reason}") from reason
    _check_size(name, key, KEY_SIZE, error)
    return key


def _check_message(message: bytes) -> None:
    if not isinstance(message, bytes):
        raise TypeError(f"a message must be bytes, not {type(message).__name__}")


# --- self-test ---------------------------------------------------------------------------------------------


def _raises(error: type[Exception], function: Callable[..., object], *arguments: object) -> bool:
    try:
        function(*arguments)
    except error:
        return True
    return False


def _self_test_checks() -> list[tuple[str, Callable[[], bool]]]:
    public, private, sign_public, sign_private = generate_keys_asym()
    other_public, other_private, _, _ = generate_keys_asym()
    text, key, nonce = b"The quick brown fox", random_bytes(KEY_SIZE), random_bytes(NONCE_SIZE)
    signed, sealed = sign_message(sign_private, text), encrypt_asym(private, other_public, text)
    changed, spoilt = signed + b"!", sealed[:-1] + bytes([sealed[-1] ^ 1])
    shut, reference_seal = DecryptionError, _bindings_functions()[0]
    return [
        ("Base64 text gives the bytes back", lambda: b64_str_to_bytes(bytes_to_b64_str(key)) == key),
        ("Base64 with junk is refused", lambda: _raises(EncodingError, b64_str_to_bytes, "AA*A")),
        ("the public key follows from the private one", lambda: generate_public_key(private) == public),
        ("a key pair is recognised", lambda: verify_key_pair(public, private)),
        ("keys of different pairs are told apart", lambda: not verify_key_pair(other_public, private)),
        ("a signature verifies", lambda: verify_signature(sign_public, signed) == text),
        ("changed text is refused", lambda: _raises(SignatureError, verify_signature, sign_public, changed)),
        ("the recipient opens what was sealed", lambda: decrypt_asym(other_private, public, sealed) == text),
        ("a changed box is refused", lambda: _raises(shut, decrypt_asym, other_private, public, spoilt)),
        ("another key does not open it", lambda: _raises(shut, decrypt_asym, private, public, sealed)),
        ("low-order public keys are refused", lambda: _raises(CryptoError, shared_key, key, bytes(KEY_SIZE))),
        ("a message must be bytes", lambda: _raises(TypeError, sign_message, sign_private, "text")),
        ("nacl.bindings seals the same", lambda: seal(key, nonce, text) == reference_seal(key, nonce, text)),
    ]


def main() -> int:
    """Check the primitives, print a line for each, and return the number of failures."""
    failures = 0
    for what, holds in _self_test_checks():
        try:
            passed = holds()
        except Exception as error:  # whatever a check raises is its failure, said and counted
            passed, what = False, f"{what}: {error!r}"
        print("ok  " if passed else "FAIL", what)
        failures += not passed
    return failures


if __name__ == "__main__":
    sys.exit(main())
