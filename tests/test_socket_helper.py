# SPDX-License-Identifier: Apache-2.0
"""The NaCl wrapper: known answers with their provenance, and everything that must fail."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import nacl._sodium
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_socket_helper as crypto

MODULE = Path(crypto.__file__)
SEALERS = {
    "chosen at import": (crypto.seal, crypto.open_sealed),
    "nacl.bindings": crypto._bindings_functions(),
    "cffi": crypto._cffi_functions(nacl._sodium.ffi, nacl._sodium.lib),
}
both_paths = pytest.mark.parametrize(("seal", "open_sealed"), SEALERS.values(), ids=SEALERS.keys())

# X25519 keys of RFC 7748, section 6.1, which are those of the NaCl distribution's tests (tests/box.c) too.
BOB_PRIVATE = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
# What tests/box.c of the NaCl distribution seals from Alice to Bob; "firstkey" is in "Cryptography in NaCl".
NACL_FIRSTKEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
NACL_NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
NACL_PLAIN = bytes.fromhex(
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc"
    "e5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb31"
    "0e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde"
    "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f93776384864"
    "5e0705"
)
NACL_BOX = bytes.fromhex(
    "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce"
    "48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c972"
    "71d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae"
    "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b3"
    "7973f622a43d14a6599b1f654cb45a74e355a5"
)
# RFC 8032, section 7.1, TEST 1 to 3: seed, public key, message, signature.
ED25519_VECTORS = [
    tuple(map(bytes.fromhex, vector))
    for vector in (
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    )
]
SEED, SIGN_PUBLIC, SIGNED_TEXT, SIGNATURE = ED25519_VECTORS[2]
# RFC 8032, section 5.1: the order of the base point.
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
# https://cr.yp.to/ecdh.html#validate, little-endian; the last two are 0 and 1 plus the prime, not reduced.
LOW_ORDER = [
    bytes.fromhex(u)
    for u in (
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
]
LOW_ORDER += [u[:31] + bytes([u[31] | 0x80]) for u in LOW_ORDER]  # X25519 ignores the top bit


def text_of(key: bytes) -> str:
    return crypto.bytes_to_b64_str(key)


def flips(data: bytes) -> list[bytes]:
    return [data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :] for i in range(len(data))]


# --- known answers -----------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_wire() -> None:
    sizes = crypto.KEY_SIZE, crypto.NONCE_SIZE, crypto.SIGNATURE_SIZE, crypto.BOX_OVERHEAD
    assert sizes == (32, 24, 64, 40)
    assert crypto.AUTHENTICATOR_SIZE == 16


def test_x25519_public_key_is_that_of_rfc_7748() -> None:
    assert crypto.enc_public_of(BOB_PRIVATE) == BOB_PUBLIC
    assert crypto.enc_public_of(bytearray(BOB_PRIVATE)) == BOB_PUBLIC
    assert crypto.generate_public_key(text_of(BOB_PRIVATE)) == text_of(BOB_PUBLIC)


def test_shared_key_is_that_of_nacl() -> None:
    assert crypto.shared_key(BOB_PRIVATE, ALICE_PUBLIC) == NACL_FIRSTKEY
    assert crypto.shared_key(bytearray(BOB_PRIVATE), ALICE_PUBLIC) == NACL_FIRSTKEY


@both_paths
def test_box_is_that_of_nacl(seal: crypto.Seal, open_sealed: crypto.OpenSealed) -> None:
    assert seal(NACL_FIRSTKEY, NACL_NONCE, NACL_PLAIN) == NACL_NONCE + NACL_BOX
    for kind in (bytes, bytearray, memoryview):
        assert open_sealed(NACL_FIRSTKEY, kind(NACL_NONCE + NACL_BOX)) == NACL_PLAIN


def test_box_of_nacl_opens_with_text_keys() -> None:
    sealed = NACL_NONCE + NACL_BOX
    assert crypto.decrypt_asym(text_of(BOB_PRIVATE), text_of(ALICE_PUBLIC), sealed) == NACL_PLAIN


@pytest.mark.parametrize(("seed", "public", "message", "signature"), ED25519_VECTORS)
def test_ed25519_is_that_of_rfc_8032(seed: bytes, public: bytes, message: bytes, signature: bytes) -> None:
    assert crypto.sign_public_of(seed) == crypto.sign_public_of(bytearray(seed)) == public
    assert crypto.sign_detached(seed, message) == crypto.sign_detached(bytearray(seed), message) == signature
    assert crypto.verify_detached(public, message, signature)
    signed = crypto.sign_message(text_of(seed), message)
    assert signed == signature + message
    assert crypto.verify_signature(text_of(public), signed) == message


def test_derive_is_blake2b_of_rfc_7693() -> None:
    # RFC 7693, appendix A: BLAKE2b-512("abc"), which has neither key nor personalisation.
    assert crypto.derive(b"", b"abc", 64, b"").hex() == (
        "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
        "7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"
    )


def test_derive_depends_on_every_argument() -> None:
    variants = [
        crypto.derive(b"key", b"message", 40, b"person"),
        crypto.derive(b"kez", b"message", 40, b"person"),
        crypto.derive(b"key", b"messagf", 40, b"person"),
        crypto.derive(b"key", b"message", 40, b"persoo"),
        crypto.derive(b"key", b"message", 41, b"person"),
    ]
    assert [len(variant) for variant in variants] == [40, 40, 40, 40, 41]
    assert len({variant[:40] for variant in variants}) == 5


# --- raw keys ----------------------------------------------------------------------------------------------


def test_new_secrets_differ_and_have_their_size() -> None:
    secrets = [
        crypto.new_enc_private(),
        crypto.new_enc_private(),
        crypto.new_sign_seed(),
        crypto.new_sign_seed(),
    ]
    assert {len(secret) for secret in secrets} == {crypto.KEY_SIZE}
    assert len(set(secrets)) == 4
    assert len(crypto.random_bytes(5)) == 5


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_of_wrong_length_are_refused(size: int) -> None:
    wrong = b"\x07" * size
    for function in (crypto.enc_public_of, crypto.sign_public_of):
        with pytest.raises(crypto.KeyGenerationError, match=f"has {size} bytes, it must have 32"):
            function(wrong)
    with pytest.raises(crypto.SignatureError, match="private key"):
        crypto.sign_detached(wrong, b"")
    with pytest.raises(crypto.CryptoError, match="private key"):
        crypto.shared_key(wrong, ALICE_PUBLIC)
    with pytest.raises(crypto.CryptoError, match="public key"):
        crypto.shared_key(BOB_PRIVATE, wrong)


def test_a_wiped_private_key_is_refused() -> None:
    private = bytearray(BOB_PRIVATE)
    crypto.wipe(private)
    assert private == bytes(crypto.KEY_SIZE)
    uses: list[Callable[[], bytes]] = [
        lambda: crypto.enc_public_of(private),
        lambda: crypto.sign_public_of(private),
        lambda: crypto.sign_detached(private, b""),
        lambda: crypto.shared_key(private, ALICE_PUBLIC),
    ]
    for use in uses:
        with pytest.raises(crypto.CryptoError, match="wiped"):
            use()


@pytest.mark.parametrize("public", LOW_ORDER, ids=bytes.hex)
def test_low_order_public_keys_are_refused(public: bytes) -> None:
    assert crypto.is_low_order(public)
    for private in (BOB_PRIVATE, SEED):
        with pytest.raises(crypto.CryptoError, match="low order"):
            crypto.shared_key(private, public)
    with pytest.raises(crypto.EncryptionError, match="low order"):
        crypto.encrypt_asym(text_of(BOB_PRIVATE), text_of(public), b"")
    with pytest.raises(crypto.DecryptionError, match="low order"):
        crypto.decrypt_asym(text_of(BOB_PRIVATE), text_of(public), NACL_NONCE + NACL_BOX)


@given(
    st.one_of(
        st.binary(min_size=32, max_size=32),
        st.sampled_from(LOW_ORDER).flatmap(lambda public: st.sampled_from(flips(public))),
    )
)
def test_low_order_is_what_libsodium_refuses(public: bytes) -> None:
    try:
        crypto.shared_key(BOB_PRIVATE, public)
    except crypto.CryptoError:
        assert crypto.is_low_order(public)
    else:
        assert not crypto.is_low_order(public)


def test_equal() -> None:
    assert crypto.equal(b"same", b"same")
    assert not crypto.equal(b"same", b"sane")
    assert not crypto.equal(b"same", b"same+")


# --- signatures that must fail -----------------------------------------------------------------------------


def test_every_changed_byte_breaks_a_signature() -> None:
    signed = SIGNATURE + SIGNED_TEXT
    assert len(flips(signed)) == 66
    for changed in flips(signed):
        assert not crypto.verify_detached(SIGN_PUBLIC, changed[64:], changed[:64])
        with pytest.raises(crypto.SignatureError):
            crypto.verify_signature(text_of(SIGN_PUBLIC), changed)
    for changed in flips(SIGN_PUBLIC):
        assert not crypto.verify_detached(changed, SIGNED_TEXT, SIGNATURE)


@pytest.mark.parametrize("length", [0, 1, 63])
def test_truncated_signatures_do_not_verify(length: int) -> None:
    assert not crypto.verify_detached(SIGN_PUBLIC, SIGNED_TEXT, SIGNATURE[:length])
    with pytest.raises(crypto.SignatureError, match=f"{length} signed bytes"):
        crypto.verify_signature(text_of(SIGN_PUBLIC), SIGNATURE[:length])


def test_a_signature_must_not_reach_into_the_message() -> None:
    # Shifted by a byte, signature + message is the same string: the length check alone tells them apart.
    assert not crypto.verify_detached(SIGN_PUBLIC, SIGNED_TEXT[1:], SIGNATURE + SIGNED_TEXT[:1])
    assert not crypto.verify_detached(SIGN_PUBLIC, SIGNATURE[63:] + SIGNED_TEXT, SIGNATURE[:63])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_signing_key_of_wrong_length_verifies_nothing(length: int) -> None:
    assert not crypto.verify_detached((SIGN_PUBLIC * 2)[:length], SIGNED_TEXT, SIGNATURE)


def test_malleated_signature_does_not_verify() -> None:
    s = int.from_bytes(SIGNATURE[32:], "little") + ED25519_ORDER
    assert not crypto.verify_detached(SIGN_PUBLIC, SIGNED_TEXT, SIGNATURE[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("top_bit", [0, 0x80])
def test_low_order_signing_key_verifies_nothing(top_bit: int) -> None:
    # Under the neutral element, R = neutral and S = 0 satisfy Ed25519's equation for every message.
    neutral = b"\x01" + bytes(30) + bytes([top_bit])
    assert not crypto.verify_detached(neutral, b"any message", b"\x01" + bytes(63))


# --- sealing -----------------------------------------------------------------------------------------------


@both_paths
@pytest.mark.parametrize("size", [0, 1, 15, 1433, 65000])
def test_sealed_opens_to_the_same(seal: crypto.Seal, open_sealed: crypto.OpenSealed, size: int) -> None:
    plain = bytes(i * 7 % 256 for i in range(size))
    sealed = seal(NACL_FIRSTKEY, NACL_NONCE, plain)
    assert type(sealed) is bytes
    assert len(sealed) == size + crypto.BOX_OVERHEAD
    for kind in (bytes, bytearray, memoryview):
        opened = open_sealed(NACL_FIRSTKEY, kind(sealed))
        assert type(opened) is bytes
        assert opened == plain


@both_paths
def test_every_changed_byte_breaks_a_sealed_message(
    seal: crypto.Seal, open_sealed: crypto.OpenSealed
) -> None:
    sealed = seal(NACL_FIRSTKEY, NACL_NONCE, b"a short text")
    assert len(flips(sealed)) == 52
    for changed in flips(sealed):
        with pytest.raises(crypto.DecryptionError, match="not authentic"):
            open_sealed(NACL_FIRSTKEY, changed)
    for wrong_key in flips(NACL_FIRSTKEY):
        with pytest.raises(crypto.DecryptionError, match="not authentic"):
            open_sealed(wrong_key, sealed)


@both_paths
def test_truncated_sealed_messages_do_not_open(seal: crypto.Seal, open_sealed: crypto.OpenSealed) -> None:
    sealed = seal(NACL_FIRSTKEY, NACL_NONCE, b"a short text")
    for length in range(len(sealed)):
        reason = "too few" if length < crypto.BOX_OVERHEAD else "not authentic"
        with pytest.raises(crypto.DecryptionError, match=reason):
            open_sealed(NACL_FIRSTKEY, sealed[:length])


@both_paths
@pytest.mark.parametrize("size", [0, 31, 33])
def test_symmetric_keys_of_wrong_length(seal: crypto.Seal, open_sealed: crypto.OpenSealed, size: int) -> None:
    with pytest.raises(crypto.EncryptionError, match=f"key has {size} bytes, it must have 32"):
        seal(b"k" * size, NACL_NONCE, b"")
    with pytest.raises(crypto.DecryptionError, match=f"key has {size} bytes, it must have 32"):
        open_sealed(b"k" * size, NACL_NONCE + NACL_BOX)


@both_paths
@pytest.mark.parametrize("size", [0, 23, 25])
def test_nonces_of_wrong_length(seal: crypto.Seal, open_sealed: crypto.OpenSealed, size: int) -> None:
    with pytest.raises(crypto.EncryptionError, match=f"nonce has {size} bytes, it must have 24"):
        seal(NACL_FIRSTKEY, b"n" * size, b"")


@both_paths
def test_a_symmetric_key_that_could_be_wiped_is_refused(
    seal: crypto.Seal, open_sealed: crypto.OpenSealed
) -> None:
    mutable: Any = bytearray(NACL_FIRSTKEY)
    with pytest.raises(TypeError):
        seal(mutable, NACL_NONCE, b"")
    with pytest.raises(TypeError):
        open_sealed(mutable, NACL_NONCE + NACL_BOX)


def test_calls_that_overlap_do_not_share_a_buffer() -> None:
    # libsodium runs without the GIL, so another thread's call may begin before this one has read its output.
    # A library whose calls run another one before they return does the same, but always.
    ffi, lib = nacl._sodium.ffi, nacl._sodium.lib
    overlapping: list[Callable[[], object]] = []

    def then_overlap(function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            status = function(*arguments)
            if overlapping:
                overlapping.pop()()
            return status

        return call

    seal, open_sealed = crypto._cffi_functions(
        ffi,
        SimpleNamespace(
            crypto_box_easy_afternm=then_overlap(lib.crypto_box_easy_afternm),
            crypto_box_open_easy_afternm=then_overlap(lib.crypto_box_open_easy_afternm),
        ),
    )
    other = bytes(len(NACL_PLAIN))
    overlapping.append(lambda: seal(NACL_FIRSTKEY, NACL_NONCE, other))
    assert seal(NACL_FIRSTKEY, NACL_NONCE, NACL_PLAIN) == NACL_NONCE + NACL_BOX
    other_sealed = seal(NACL_FIRSTKEY, NACL_NONCE, other)
    overlapping.append(lambda: open_sealed(NACL_FIRSTKEY, other_sealed))
    assert open_sealed(NACL_FIRSTKEY, NACL_NONCE + NACL_BOX) == NACL_PLAIN
    assert not overlapping


def _library(**replaced: object) -> SimpleNamespace:
    lib = nacl._sodium.lib
    functions = {
        "crypto_box_easy_afternm": lib.crypto_box_easy_afternm,
        "crypto_box_open_easy_afternm": lib.crypto_box_open_easy_afternm,
        **replaced,
    }
    return SimpleNamespace(ffi=nacl._sodium.ffi, lib=SimpleNamespace(**functions))


@pytest.mark.parametrize(
    ("sodium", "path"),
    [
        (_library(), "_cffi_functions"),
        (None, "_bindings_functions"),
        (SimpleNamespace(ffi=nacl._sodium.ffi, lib=SimpleNamespace()), "_bindings_functions"),
        (_library(crypto_box_easy_afternm=lambda *_: 0), "_bindings_functions"),
        (_library(crypto_box_easy_afternm=lambda *_: -1), "_bindings_functions"),
        (_library(crypto_box_easy_afternm=lambda: 0), "_bindings_functions"),
        (_library(crypto_box_open_easy_afternm=lambda *_: 0), "_bindings_functions"),
        (_library(crypto_box_open_easy_afternm=lambda *_: -1), "_bindings_functions"),
    ],
    ids=[
        "usable",
        "no module",
        "no functions",
        "seals wrongly",
        "seals not",
        "other signature",
        "opens wrongly",
        "opens not",
    ],
)
def test_cffi_is_used_only_if_it_does_what_the_bindings_do(
    monkeypatch: pytest.MonkeyPatch, sodium: object, path: str
) -> None:
    monkeypatch.setitem(sys.modules, "nacl._sodium", sodium)
    seal, open_sealed, _ = crypto._choose_functions()
    assert seal.__qualname__.startswith(path)
    assert open_sealed.__qualname__.startswith(path)


def test_installed_pynacl_gives_the_fast_path() -> None:
    assert crypto.seal.__qualname__.startswith("_cffi_functions")


# --- Base64 ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_base64_gives_the_bytes_back(data: bytes) -> None:
    text = crypto.bytes_to_b64_str(data)
    assert text == base64.b64encode(data).decode()
    assert crypto.b64_str_to_bytes(text) == data
    assert crypto.bytes_to_b64_str(bytearray(data)) == text


@pytest.mark.parametrize(
    "text",
    [
        "A", "AA", "AAA", "AA=", "AAA==", "AAAA=", "AA==AA==", "AA==A", "=", "====", "=AAA",
        "AAAA\n", " AAAA", "AA AA", "AA\n==", "AA*A", "AAA-", "AAA_", "AAA\0", "AAA\u00e9", "\uff21AAA",
        "AB==", "AAB=",
    ],
)  # fmt: skip
def test_base64_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(crypto.EncodingError) as raised:
        crypto.b64_str_to_bytes(text)
    assert isinstance(raised.value, ValueError)


def test_errors_do_not_quote_what_may_be_a_private_key() -> None:
    secret = text_of(SEED)[:-2] + "*="
    with pytest.raises(crypto.SignatureError) as raised:
        crypto.sign_message(secret, b"")
    assert secret[:8] not in str(raised.value)
    assert "44 characters" in str(raised.value)


# --- the layer with keys as text ---------------------------------------------------------------------------


def test_generated_keys_work_and_differ() -> None:
    keys = crypto.generate_keys_asym()
    enc_public, enc_private, sign_public, sign_private = keys
    assert len({*keys, *crypto.generate_keys_asym()}) == 8
    assert {len(crypto.b64_str_to_bytes(key)) for key in keys} == {crypto.KEY_SIZE}
    assert crypto.generate_public_key(enc_private) == enc_public
    assert crypto.verify_signature(sign_public, crypto.sign_message(sign_private, b"text")) == b"text"


def test_key_pairs_are_verified() -> None:
    public, private = text_of(BOB_PUBLIC), text_of(BOB_PRIVATE)
    assert crypto.verify_key_pair(public, private)
    assert not crypto.verify_key_pair(text_of(ALICE_PUBLIC), private)
    for wrong in ("", "junk!", text_of(BOB_PUBLIC[:31]), text_of(BOB_PUBLIC + b"\0"), public[:-1]):
        assert not crypto.verify_key_pair(wrong, private)
        assert not crypto.verify_key_pair(public, wrong)


def test_only_the_two_ends_open_a_box() -> None:
    public, private, _, _ = crypto.generate_keys_asym()
    _, stranger, _, _ = crypto.generate_keys_asym()
    sealed = crypto.encrypt_asym(private, text_of(BOB_PUBLIC), b"text")
    assert len(sealed) == 4 + crypto.BOX_OVERHEAD
    assert crypto.decrypt_asym(text_of(BOB_PRIVATE), public, sealed) == b"text"
    assert crypto.encrypt_asym(private, text_of(BOB_PUBLIC), b"text") != sealed, "the nonce must be new"
    with pytest.raises(crypto.DecryptionError, match="not authentic"):
        crypto.decrypt_asym(stranger, public, sealed)
    with pytest.raises(crypto.DecryptionError, match="not authentic"):
        crypto.decrypt_asym(text_of(BOB_PRIVATE), text_of(ALICE_PUBLIC), sealed)
    for changed in flips(sealed):
        with pytest.raises(crypto.DecryptionError, match="not authentic"):
            crypto.decrypt_asym(text_of(BOB_PRIVATE), public, changed)


@pytest.mark.parametrize("wrong", ["", "junk!", "AAAA", text_of(bytes(31) + b"x")[:-1], text_of(b"x" * 33)])
def test_malformed_text_keys_give_the_error_of_the_operation(wrong: str) -> None:
    good = text_of(BOB_PRIVATE)
    with pytest.raises(crypto.KeyGenerationError):
        crypto.generate_public_key(wrong)
    with pytest.raises(crypto.SignatureError):
        crypto.sign_message(wrong, b"")
    with pytest.raises(crypto.SignatureError, match="public signing key"):
        crypto.verify_signature(wrong, SIGNATURE)
    for pair in ((wrong, good), (good, wrong)):
        with pytest.raises(crypto.EncryptionError):
            crypto.encrypt_asym(*pair, b"")
        with pytest.raises(crypto.DecryptionError):
            crypto.decrypt_asym(*pair, NACL_NONCE + NACL_BOX)


@pytest.mark.parametrize("message", ["text", None, bytearray(b"text"), 5])
def test_a_message_that_is_not_bytes_is_a_type_error(message: Any) -> None:
    key = text_of(BOB_PRIVATE)
    with pytest.raises(TypeError, match=type(message).__name__):
        crypto.sign_message(key, message)
    with pytest.raises(TypeError, match=type(message).__name__):
        crypto.verify_signature(key, message)
    with pytest.raises(TypeError, match=type(message).__name__):
        crypto.encrypt_asym(key, key, message)
    with pytest.raises(TypeError, match=type(message).__name__):
        crypto.decrypt_asym(key, key, message)


def test_text_and_bytes_must_not_be_mixed_up() -> None:
    not_text: Any = b"AAAA"
    not_bytes: Any = "AAAA"
    with pytest.raises(TypeError, match="must be str, not bytes"):
        crypto.b64_str_to_bytes(not_text)
    with pytest.raises(TypeError, match="must be bytes, not str"):
        crypto.bytes_to_b64_str(not_bytes)


def test_every_error_is_a_crypto_error() -> None:
    names = ("KeyGenerationError", "EncryptionError", "DecryptionError", "EncodingError", "SignatureError")
    for name in names:
        assert issubclass(getattr(crypto, name), crypto.CryptoError)


# --- self-test ---------------------------------------------------------------------------------------------


def test_self_test_as_a_program() -> None:
    done = subprocess.run([sys.executable, str(MODULE)], stdout=subprocess.PIPE, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) == len(crypto._self_test_checks())
    assert all(line.startswith("ok   ") for line in lines)


def test_self_test_says_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crypto, "verify_key_pair", lambda *_: True)
    monkeypatch.setattr(crypto, "generate_public_key", lambda _: 1 // 0)
    monkeypatch.setattr(crypto, "verify_signature", lambda *_: b"The quick brown fox")
    assert crypto.main() == 3
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")]
    assert len(failed) == 3
    assert "ZeroDivisionError" in failed[0]
    assert "told apart" in failed[1]
    assert "changed text" in failed[2]
