# SPDX-License-Identifier: Apache-2.0
"""VaultAsymmetricEncryption: keys, sealing, lifetimes, and what is accepted once and never again."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import threading
from pathlib import Path

import nacl.public
import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_encryption
import vault_udp_replay
from vault_udp_encryption import (
    DecryptionError,
    EncryptionError,
    InvalidKeyError,
    InvalidLifetimeError,
    KeyNotFoundError,
    ReplayAttackError,
    VaultAsymmetricEncryption,
)

ALICE, BOB = ("192.0.2.1", 11000), ("192.0.2.2", 11000)
JUNK_KEYS = ["", "junk!", "AAAA", "A" * 43, "A" * 43 + "=\n", base64.b64encode(bytes(33)).decode(), "Ä" * 44]
START = 1_700_000_000.0


class Clock:
    def __init__(self, time: float = START) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


class RawPeer:
    """Seals with raw NaCl, so that nonces and timestamps can be chosen."""

    def __init__(self) -> None:
        self.enc = nacl.public.PrivateKey.generate()
        self.sign = nacl.signing.SigningKey.generate()
        self.enc_key = base64.b64encode(bytes(self.enc.public_key)).decode()
        self.sign_key = base64.b64encode(bytes(self.sign.verify_key)).decode()

    def seal(self, to: VaultAsymmetricEncryption, nonce: bytes, stamp: float, data: bytes = b"data") -> bytes:
        box = nacl.public.Box(self.enc, nacl.public.PublicKey(base64.b64decode(to.enc_public_key)))
        return bytes(box.encrypt(struct.pack(">16sd", nonce, stamp) + data))


def introduced() -> tuple[VaultAsymmetricEncryption, VaultAsymmetricEncryption, Clock]:
    """Alice and Bob, who hold each other's keys, and their clock."""
    clock = Clock()
    alice, bob = (VaultAsymmetricEncryption(monotonic=clock, wall=clock) for _ in range(2))
    alice.update_peer_keys(BOB, bob.enc_public_key, bob.sign_public_key)
    bob.update_peer_keys(ALICE, alice.enc_public_key, alice.sign_public_key)
    return alice, bob, clock


def receiver_of(raw: RawPeer, clock: Clock) -> VaultAsymmetricEncryption:
    receiver = VaultAsymmetricEncryption(monotonic=clock, wall=clock)
    receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
    return receiver


def accepted(receiver: VaultAsymmetricEncryption, datagram: bytes) -> bool:
    try:
        receiver.decrypt(datagram, ALICE)
    except ReplayAttackError:
        return False
    return True


# ------------------------------------------------------------------------------------------- seal and open


@given(st.binary(max_size=2000))
def test_what_is_sealed_opens_and_shows_nothing(data: bytes) -> None:
    alice, bob, _ = introduced()
    sealed = alice.encrypt(data, BOB)
    assert len(sealed) == len(data) + 64
    assert len(data) < 4 or data not in sealed
    assert bob.decrypt(sealed, ALICE) == data


def test_the_same_data_is_never_sealed_to_the_same_bytes() -> None:
    alice, _, _ = introduced()
    assert len({alice.encrypt(b"same", BOB)[24:] for _ in range(100)}) == 100


def test_no_altered_or_shortened_datagram_opens() -> None:
    alice, bob, _ = introduced()
    sealed = alice.encrypt(b"data", BOB)
    for index in range(len(sealed)):
        altered = bytearray(sealed)
        altered[index] ^= 1 << index % 8
        with pytest.raises(DecryptionError):
            bob.decrypt(bytes(altered), ALICE)
        with pytest.raises(DecryptionError):
            bob.decrypt(sealed[:index], ALICE)
    assert bob.decrypt(sealed, ALICE) == b"data"


def test_what_opens_but_is_too_short_for_its_header_is_refused() -> None:
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    box = nacl.public.Box(raw.enc, nacl.public.PublicKey(base64.b64decode(receiver.enc_public_key)))
    with pytest.raises(DecryptionError):
        receiver.decrypt(bytes(box.encrypt(bytes(23))), ALICE)


def test_nothing_is_sealed_or_opened_without_a_key() -> None:
    alice, bob, _ = introduced()
    sealed = alice.encrypt(b"data", BOB)
    stranger = ("192.0.2.3", 1)
    with pytest.raises(KeyNotFoundError, match=r"192\.0\.2\.3.*update_peer_keys"):
        alice.encrypt(b"data", stranger)
    with pytest.raises(KeyNotFoundError, match=r"192\.0\.2\.3"):
        bob.decrypt(sealed, stranger)
    with pytest.raises(KeyNotFoundError):
        bob.decrypt(sealed, (ALICE[0], ALICE[1] + 1))


@pytest.mark.parametrize("data", ["text", None, 1, bytearray(b"x"), memoryview(b"x")])
def test_only_bytes_are_sealed_and_opened(data: object) -> None:
    alice, _, _ = introduced()
    for method in (alice.encrypt, alice.decrypt):
        with pytest.raises(TypeError, match=type(data).__name__):
            method(data, BOB)  # type: ignore[arg-type]


def test_the_errors_have_one_base_class() -> None:
    kinds = (DecryptionError, KeyNotFoundError, ReplayAttackError, InvalidKeyError, InvalidLifetimeError)
    assert all(issubclass(kind, EncryptionError) for kind in kinds)
    assert issubclass(InvalidKeyError, ValueError)
    assert issubclass(InvalidLifetimeError, ValueError)


# ------------------------------------------------------------------------------------------------- our keys


def test_generated_keys_are_new_and_announced_by_a_call() -> None:
    calls: list[str] = []
    encryption = VaultAsymmetricEncryption()
    encryption.on_identity_changed = lambda: calls.append(encryption.sign_public_key)
    before = encryption.enc_public_key, encryption.sign_public_key
    after = encryption.generate_keys()
    assert after == (encryption.enc_public_key, encryption.sign_public_key)
    assert not set(before) & set(after)
    assert calls == [after[1]]


def test_given_private_keys_make_the_known_public_keys() -> None:
    raw = RawPeer()
    private = base64.b64encode(bytes(raw.enc)).decode(), base64.b64encode(bytes(raw.sign)).decode()
    by_constructor, by_method = VaultAsymmetricEncryption(60, *private), VaultAsymmetricEncryption()
    by_method.set_private_keys(*private)
    for encryption in (by_constructor, by_method):
        assert (encryption.enc_public_key, encryption.sign_public_key) == (raw.enc_key, raw.sign_key)
        assert encryption.sign_seed == bytes(raw.sign)


def test_setting_our_keys_again_is_a_no_op_and_other_keys_reach_known_peers() -> None:
    alice, bob, clock = introduced()
    changes: list[None] = []
    alice.on_identity_changed = lambda: changes.append(None)
    raw = RawPeer()
    private = base64.b64encode(bytes(raw.enc)).decode(), base64.b64encode(bytes(raw.sign)).decode()
    for _ in range(3):
        alice.set_private_keys(*private)
    assert len(changes) == 1
    bob.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
    clock.time += 6  # with the application's keys, nothing that is stamped before our start is accepted
    assert bob.decrypt(alice.encrypt(b"data", BOB), ALICE) == b"data"
    assert alice.decrypt(bob.encrypt(b"data", ALICE), BOB) == b"data"


@pytest.mark.parametrize("junk", JUNK_KEYS)
def test_junk_keys_are_refused_and_change_nothing(junk: str) -> None:
    alice, bob, _ = introduced()
    good = base64.b64encode(bytes(range(32))).decode()
    before = alice.enc_public_key, alice.sign_public_key
    for enc, sign, name in ((junk, good, "enc"), (good, junk, "sign")):
        with pytest.raises(InvalidKeyError, match=name):
            VaultAsymmetricEncryption(60, enc, sign)
        with pytest.raises(InvalidKeyError, match=name):
            alice.set_private_keys(enc, sign)
        with pytest.raises(InvalidKeyError, match=name):
            alice.update_peer_keys(BOB, enc, sign)
    assert (alice.enc_public_key, alice.sign_public_key) == before
    assert bob.decrypt(alice.encrypt(b"still", BOB), ALICE) == b"still"


@pytest.mark.parametrize("low_order", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_low_order_peer_keys_are_refused(low_order: bytes) -> None:
    alice, _, _ = introduced()
    with pytest.raises(InvalidKeyError, match="low-order"):
        alice.update_peer_keys(ALICE, base64.b64encode(low_order).decode(), alice.sign_public_key)
    assert not alice.peer_keys_exist(ALICE)


# ------------------------------------------------------------------------------------- peer keys, lifetimes


def test_supplied_keys_are_told_once_never_expire_and_can_be_removed() -> None:
    alice, _, clock = introduced()
    told: list[tuple[str, int]] = []
    alice.on_peer_keys_supplied = told.append
    carol = RawPeer()
    for _ in range(3):
        alice.update_peer_keys(BOB, carol.enc_key, carol.sign_key)
    assert told == [BOB]
    clock.time += 1e6
    assert alice.cleanup_expired_keys() == 0
    alice.remove_peer_keys(BOB)
    alice.remove_peer_keys(BOB)
    assert not alice.peer_keys_exist(BOB)
    assert alice.peer_keys(BOB) is None
    with pytest.raises(KeyNotFoundError):
        alice.encrypt(b"", BOB)


@pytest.mark.parametrize(
    ("written", "again"),
    [
        ("192.0.2.2", "::ffff:192.0.2.2"),
        ("::FFFF:192.0.2.2", "192.0.2.2"),
        ("2001:DB8::0:2", "2001:DB8::0:2"),
        ("Bob.Example", "bob.example."),
    ],
)
def test_an_address_may_be_written_in_any_form(written: str, again: str) -> None:
    alice, bob, _ = introduced()
    alice.update_peer_keys((written, 9), bob.enc_public_key, bob.sign_public_key)
    assert alice.peer_keys_exist((again, 9))
    assert bob.decrypt(alice.encrypt(b"secret", (again, 9)), ALICE) == b"secret"
    assert alice.decrypt(bob.encrypt(b"answer", ALICE), (again, 9)) == b"answer"
    alice.remove_peer_keys((again, 9))
    assert not alice.peer_keys_exist((written, 9))


def test_what_is_no_address_has_no_keys() -> None:
    alice, _, _ = introduced()
    for junk in ("192.0.2.2", ("192.0.2.2", 0), ("", 9), None, ("192.0.2.2", 9, 0, 0)):
        with pytest.raises(KeyNotFoundError):
            alice.encrypt(b"", junk)  # type: ignore[arg-type]


def test_learned_keys_expire_a_lifetime_after_they_were_last_used() -> None:
    raw, clock = RawPeer(), Clock()
    encryption = VaultAsymmetricEncryption(10, monotonic=clock, wall=clock)
    encryption.store_peer_keys(ALICE, bytes(raw.enc.public_key), bytes(raw.sign.verify_key), clock())
    clock.time += 9
    assert encryption.cleanup_expired_keys() == 0
    encryption.decrypt(raw.seal(encryption, bytes(16), clock()), ALICE)
    clock.time += 9
    assert encryption.cleanup_expired_keys() == 0
    encryption.lifetime = 5
    assert encryption.cleanup_expired_keys() == 1
    assert encryption.cleanup_expired_keys() == 0
    assert not encryption.peer_keys_exist(ALICE)


@pytest.mark.parametrize("lifetime", [0, 4.99, -1, float("nan"), float("inf"), 1e9, "60", None, True, [60]])
def test_bad_lifetimes_are_refused(lifetime: object) -> None:
    with pytest.raises(InvalidLifetimeError, match="at least 5"):
        VaultAsymmetricEncryption(lifetime)  # type: ignore[arg-type]
    encryption = VaultAsymmetricEncryption(60)
    with pytest.raises(InvalidLifetimeError, match="at least 5"):
        encryption.lifetime = lifetime  # type: ignore[assignment]
    assert encryption.lifetime == 60


@pytest.mark.parametrize("lifetime", [5, 5.5, 86400])
def test_good_lifetimes_are_taken(lifetime: float) -> None:
    assert VaultAsymmetricEncryption(lifetime).lifetime == lifetime


def test_stats_say_what_is_held_and_nothing_secret() -> None:
    alice, bob, _ = introduced()
    for number in range(3):
        bob.decrypt(alice.encrypt(b"%d" % number, BOB), ALICE)
    stats = bob.get_stats()
    assert stats == {
        "active_peer_keys": 1,
        "key_lifetime_seconds": 60,
        "has_enc_private_key": True,
        "has_sign_private_key": True,
        "total_tracked_nonces": 3,
        "peers_with_nonces": 1,
    }
    assert alice.get_stats()["peers_with_nonces"] == 0
    assert base64.b64encode(bob.sign_seed).decode() not in repr(bob) + repr(stats)


def test_stop_forgets_every_key_any_number_of_times() -> None:
    alice, bob, _ = introduced()
    with bob:
        sealed = alice.encrypt(b"data", BOB)
    bob.stop()
    stats = bob.get_stats()
    assert (stats["has_enc_private_key"], stats["has_sign_private_key"]) == (False, False)
    assert (stats["active_peer_keys"], stats["total_tracked_nonces"]) == (0, 0)
    assert bob.sign_seed == b""
    with pytest.raises(KeyNotFoundError):
        bob.decrypt(sealed, ALICE)
    with pytest.raises(KeyNotFoundError, match="our own keys are gone since stop"):
        bob.encrypt(b"data", ALICE)


# --------------------------------------------------------------------------------------------------- replay


def test_a_datagram_opens_once() -> None:
    alice, bob, _ = introduced()
    sealed = alice.encrypt(b"data", BOB)
    bob.decrypt(sealed, ALICE)
    with pytest.raises(ReplayAttackError, match="replayed"):
        bob.decrypt(sealed, ALICE)


def test_our_own_datagram_is_refused() -> None:
    alice, _, _ = introduced()
    with pytest.raises(ReplayAttackError, match="own_datagram"):
        alice.decrypt(alice.encrypt(b"data", BOB), BOB)


def test_a_time_too_far_away_is_told_with_its_limit() -> None:
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    with pytest.raises(ReplayAttackError, match=r"outside_window.*MAX_MESSAGE_AGE_SECONDS: 60.*clocks"):
        receiver.decrypt(raw.seal(receiver, bytes(16), START - 61), ALICE)


def test_a_forgery_does_not_use_up_a_nonce() -> None:
    alice, bob, _ = introduced()
    sealed = alice.encrypt(b"data", BOB)
    with pytest.raises(DecryptionError):
        bob.decrypt(sealed[:-1] + bytes([sealed[-1] ^ 1]), ALICE)
    assert bob.get_stats()["total_tracked_nonces"] == 0
    bob.decrypt(sealed, ALICE)


@given(st.floats(allow_nan=True, allow_infinity=True) | st.floats(-130, 130).map(lambda age: START + age))
def test_only_timestamps_inside_the_window_are_accepted(stamp: float) -> None:
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    inside = accepted(receiver, raw.seal(receiver, bytes(16), stamp))
    assert inside == (abs(stamp - START) <= 60)


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(-65, 65)), max_size=60),
    st.integers(1, 12),
    st.integers(0, 40),
)
def test_nothing_is_ever_accepted_twice(sends: list[tuple[int, int]], size: int, step: int) -> None:
    # Whatever the order, the clock, a small cache, and keys given again: the same nonce never counts twice.
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    seen: set[tuple[int, float]] = set()
    history: list[tuple[int, float, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_udp_encryption, "NONCE_CACHE_SIZE", size)
        for number, age in sends:
            stamp = clock.time + age
            history.append((number, stamp, raw.seal(receiver, bytes([number] * 16), stamp)))
            for nonce, when, datagram in history[-8:]:
                if accepted(receiver, datagram):
                    assert (nonce, when) not in seen
                    assert abs(when - clock.time) <= 60
                    seen.add((nonce, when))
            assert receiver.get_stats()["total_tracked_nonces"] <= size
            clock.time += step / 10
            receiver.cleanup_expired_keys()
            receiver.remove_peer_keys(ALICE)
            receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)


@given(st.lists(st.integers(-59, 59), min_size=1, max_size=40, unique=True))
def test_everything_fresh_inside_the_window_is_accepted_in_any_order(ages: list[int]) -> None:
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    for number, age in enumerate(ages):
        assert accepted(receiver, raw.seal(receiver, number.to_bytes(16, "big"), START + age))


def test_the_smallest_timestamps_are_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_encryption, "NONCE_CACHE_SIZE", 2)
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    for number, age in enumerate((3, 1, 2)):
        assert accepted(receiver, raw.seal(receiver, bytes([number] * 16), START + age))
    assert not accepted(receiver, raw.seal(receiver, b"at the floor 16.", START + 1))
    assert accepted(receiver, raw.seal(receiver, b"above the floor.", START + 1.5))


def test_the_window_that_the_user_sets_takes_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    for limit in (5, 600):
        monkeypatch.setattr(vault_udp_encryption, "MAX_MESSAGE_AGE_SECONDS", limit)
        for side in (-1, 1):
            nonce = struct.pack(">dd", limit, side)
            assert not accepted(receiver, raw.seal(receiver, nonce, START + side * (limit + 1)))
            assert accepted(receiver, raw.seal(receiver, nonce, START + side * (limit - 1)))


def test_nonces_too_old_to_matter_are_forgotten_and_stay_refused() -> None:
    raw, clock = RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    datagram = raw.seal(receiver, bytes(16), START)
    assert accepted(receiver, datagram)
    clock.time += 121
    receiver.cleanup_expired_keys()
    assert receiver.get_stats()["total_tracked_nonces"] == 0
    clock.time = START  # somebody sets the clock back
    assert not accepted(receiver, datagram)


def test_memory_of_nonces_outlives_an_address_and_another_identity() -> None:
    raw, other, clock = RawPeer(), RawPeer(), Clock()
    receiver = receiver_of(raw, clock)
    datagram = raw.seal(receiver, bytes(16), START)
    assert accepted(receiver, datagram)
    receiver.update_peer_keys(ALICE, other.enc_key, other.sign_key)
    assert accepted(receiver, other.seal(receiver, bytes(16), START))
    receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
    assert not accepted(receiver, datagram)
    receiver.update_peer_keys(BOB, raw.enc_key, raw.sign_key)
    with pytest.raises(ReplayAttackError):
        receiver.decrypt(datagram, BOB)


def test_setting_our_keys_to_others_and_back_opens_no_gap() -> None:
    raw, own, clock = RawPeer(), RawPeer(), Clock()
    first = base64.b64encode(bytes(own.enc)).decode(), base64.b64encode(bytes(own.sign)).decode()
    second = base64.b64encode(bytes(range(32))).decode(), first[1]
    receiver = VaultAsymmetricEncryption(60, *first, monotonic=clock, wall=clock)
    receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
    datagram = raw.seal(receiver, bytes(16), START + 1)
    assert accepted(receiver, datagram)
    receiver.set_private_keys(*second)
    assert accepted(receiver, raw.seal(receiver, bytes(16), START + 1))
    receiver.set_private_keys(*first)
    assert not accepted(receiver, datagram)


def test_keys_of_the_applications_at_both_ends_are_enough_at_once() -> None:
    clock = Clock()
    alice, bob = (
        VaultAsymmetricEncryption(60, own, own, monotonic=clock, wall=clock)
        for own in (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
    )
    alice.update_peer_keys(BOB, bob.enc_public_key, bob.sign_public_key)
    bob.update_peer_keys(ALICE, alice.enc_public_key, alice.sign_public_key)
    clock.time += 1
    assert bob.decrypt(alice.encrypt(b"hello", BOB), ALICE) == b"hello"


def test_memory_of_nonces_is_bounded_and_nothing_is_forgotten_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_replay, "MAX_NONCE_CACHES", 3)
    clock, raws = Clock(), [RawPeer() for _ in range(4)]
    receiver = VaultAsymmetricEncryption(monotonic=clock, wall=clock)
    datagrams = []
    for raw in raws:
        receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
        datagrams.append(raw.seal(receiver, bytes(16), START))
        assert accepted(receiver, datagrams[-1]) == (raw is not raws[3])
    for raw, datagram in zip(raws, datagrams):
        receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
        assert not accepted(receiver, datagram)


def test_with_keys_of_the_application_nothing_older_than_our_start_is_accepted() -> None:
    raw, own, clock = RawPeer(), RawPeer(), Clock()
    private = base64.b64encode(bytes(own.enc)).decode(), base64.b64encode(bytes(own.sign)).decode()
    for keys_at_start in (True, False):
        receiver = VaultAsymmetricEncryption(
            60, *(private if keys_at_start else ()), monotonic=clock, wall=clock
        )
        receiver.set_private_keys(*private)
        receiver.update_peer_keys(ALICE, raw.enc_key, raw.sign_key)
        assert not accepted(receiver, raw.seal(receiver, bytes(16), START - 0.5))
        assert accepted(receiver, raw.seal(receiver, bytes(16), START + 0.5))


# ----------------------------------------------------------------------------------------------- the whole


def test_many_threads_may_seal_and_open_at_once() -> None:
    alice, bob, _ = introduced()
    opened: list[bytes] = []

    def work(name: int) -> None:
        for number in range(50):
            opened.append(bob.decrypt(alice.encrypt(b"%d %d" % (name, number), BOB), ALICE))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(opened)) == 200
    assert bob.get_stats()["total_tracked_nonces"] == 200


def test_the_self_test_passes_and_says_what_it_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert vault_udp_encryption.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all checks passed"
    assert len(lines) > 5
    assert all(line.startswith("ok ") for line in lines[:-1])


def test_the_self_test_fails_when_replays_are_not_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VaultAsymmetricEncryption, "_check_replay", lambda *_: None)
    assert vault_udp_encryption.main() == 1
    assert "FAIL" in capsys.readouterr().out


def test_the_module_runs_as_a_script() -> None:
    script = Path(__file__).parent.parent / "vault_udp_encryption.py"
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "all checks passed" in result.stdout
