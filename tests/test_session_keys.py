# SPDX-License-Identifier: Apache-2.0
"""Hellos, nonces and pairs: who can prove what to whom."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_socket_helper as crypto
from vault_udp_keys import (
    FLAG_COALESCE,
    HELLO_LABEL,
    MIN_SEALED_SIZE,
    Hello,
    LocalKeys,
    Pair,
    proof_is_good,
    read_hello_untrusted,
)
from vault_udp_layout import Layout, make_bodies, read_messages, stored_layout
from vault_udp_packet import PacketError
from vault_udp_segments import Segments

ADDRESS = ("10.0.0.1", 1001)


def local_keys(now: float = 1000.0, wall: float = 5e8) -> LocalKeys:
    return LocalKeys(crypto.new_sign_seed(), now, wall)


def hello_of(keys: LocalKeys, now: float = 1000.0, **fields: bytes) -> tuple[bytes, bytes]:
    members = keys.hello_members(ADDRESS, now, **fields)
    return crypto.b64_str_to_bytes(members["hello"]), crypto.b64_str_to_bytes(members["proof"])


def pair_of_two() -> tuple[Pair, Pair]:
    alice, bob = local_keys(), local_keys()
    return (
        Pair(alice, bob.sign_public, alice.current, bob.current.public),
        Pair(bob, alice.sign_public, bob.current, alice.current.public),
    )


# ------------------------------------------------------------------------------------------------------ hello


def test_the_blob_has_the_layout_of_the_design() -> None:
    keys = local_keys(now=1000.0, wall=1_700_000_000.5)
    keys.rotate()
    echo, holds, to_sign = b"e" * 16, b"h" * 32, b"t" * 32
    blob, _ = hello_of(keys, echo=echo, holds=holds, to_sign=to_sign)
    assert len(blob) == 198
    assert blob[:24] == b"py-vault-udp/2 hello" + bytes(4)
    assert int.from_bytes(blob[24:26], "big") == FLAG_COALESCE
    assert int.from_bytes(blob[26:30], "big") == 1
    assert int.from_bytes(blob[30:38], "big") == 1_700_000_000_500
    assert blob[38:70] == keys.sign_public
    assert blob[70:102] == keys.current.public
    assert blob[102:134] == to_sign
    assert blob[134:166] == holds
    assert blob[166:182] == keys.nonce_for(ADDRESS, 1000.0)
    assert blob[182:198] == echo


@given(
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**40),
    st.lists(st.binary(min_size=32, max_size=32), min_size=4, max_size=4),
    st.lists(st.binary(min_size=16, max_size=16), min_size=2, max_size=2),
    st.binary(max_size=40),
)
def test_a_hello_survives_the_journey_and_later_bytes_are_ignored(
    flags: int, epoch: int, seconds: int, keys: list[bytes], nonces: list[bytes], later: bytes
) -> None:
    hello = Hello(flags, epoch, float(seconds), *keys, *nonces)
    assert read_hello_untrusted(hello.pack() + later) == hello


@given(st.binary(max_size=400))
def test_any_bytes_are_a_hello_or_a_packet_error(blob: bytes) -> None:
    for candidate in (blob, HELLO_LABEL + blob):
        if len(candidate) >= 198 and candidate.startswith(HELLO_LABEL):
            assert read_hello_untrusted(candidate).pack()[30:] == candidate[30:198]
        else:
            with pytest.raises(PacketError, match="bad_announcement"):
                read_hello_untrusted(candidate)


def test_the_proof_covers_every_byte_of_the_transported_blob() -> None:
    keys = local_keys()
    blob, proof = hello_of(keys)
    hello = read_hello_untrusted(blob)
    assert proof_is_good(hello, blob, proof)
    for index in range(len(blob)):
        altered = bytearray(blob)
        altered[index] ^= 1
        assert not proof_is_good(hello, bytes(altered), proof)
    assert not proof_is_good(hello, blob + b"\0", proof)
    for index in range(len(proof)):
        forged = bytearray(proof)
        forged[index] ^= 1
        assert not proof_is_good(hello, blob, bytes(forged))
    assert not proof_is_good(hello, blob, proof[:-1])


# ----------------------------------------------------------------------------------------------------- nonces


def test_a_nonce_counts_for_its_slot_and_the_next_and_for_its_address_alone() -> None:
    keys, now = local_keys(), 500.0
    nonce = keys.nonce_for(ADDRESS, now)
    assert keys.is_own_nonce(nonce, ADDRESS, now)
    assert keys.is_own_nonce(nonce, ADDRESS, now + 19.99)
    assert not keys.is_own_nonce(nonce, ADDRESS, now + 20.0)
    assert not keys.is_own_nonce(nonce, ADDRESS, now - 0.01), "of the future"
    assert not keys.is_own_nonce(nonce, ("10.0.0.1", 1002), now)
    assert not keys.is_own_nonce(nonce, ("10.0.0.2", 1001), now)
    assert not local_keys().is_own_nonce(nonce, ADDRESS, now), "of another process"
    assert not keys.is_own_nonce(bytes(16), ADDRESS, now)
    assert not keys.is_own_nonce(b"", ADDRESS, now)


# ------------------------------------------------------------------------------------------------------ pairs


@given(st.binary(min_size=4, max_size=1400), st.floats(allow_nan=False))
def test_what_one_seals_the_other_opens_once(body: bytes, timestamp: float) -> None:
    ours, theirs = pair_of_two()
    (datagram,) = ours.seal([body], timestamp)
    assert len(datagram) == 64 + len(body)
    assert theirs.open(datagram) == (timestamp, body)
    with pytest.raises(PacketError, match="replayed"):
        theirs.open(datagram)


@pytest.mark.parametrize("uses_cffi", [True, False])
@pytest.mark.parametrize("count", [2, 45, 400])
def test_bodies_of_one_length_are_sealed_as_any_others(
    monkeypatch: pytest.MonkeyPatch, uses_cffi: bool, count: int
) -> None:
    """Also those of more bytes than are sealed in one go."""
    monkeypatch.setattr(crypto, "_uses_cffi", uses_cffi and crypto._uses_cffi)
    ours, theirs = pair_of_two()
    bodies = [b"%d" % index + bytes(1000) for index in range(1000, 1000 + count)]
    assert 400 * len(bodies[0]) > crypto.RUN_SIZE
    datagrams = [*ours.seal(bodies, 7.0), *ours.seal([b"another", b"length"], 8.0)]
    assert [theirs.open(datagram) for datagram in datagrams[:count]] == [(7.0, body) for body in bodies]
    assert [theirs.open(datagram)[1] for datagram in datagrams[count:]] == [b"another", b"length"]
    assert [int.from_bytes(datagram[16:24], "big") for datagram in datagrams] == list(range(count + 2))
    assert len({datagram[8:16] for datagram in datagrams}) == count + 2
    assert next(ours.counters) == count + 2
    assert [ours.reopen(datagram) for datagram in datagrams[:count]] == bodies


def test_the_datagram_has_the_layout_of_the_design() -> None:
    ours, theirs = pair_of_two()
    for counter, datagram in enumerate([*ours.seal([b"body"] * 2, 1.0), *ours.seal([b"body"], 2.0)]):
        assert datagram[:8] == theirs.open_tag
        assert int.from_bytes(datagram[16:24], "big") == counter
        assert theirs.open(datagram) == (1.0 if counter < 2 else 2.0, b"body")


def test_every_altered_byte_is_noticed_and_moves_no_window() -> None:
    ours, theirs = pair_of_two()
    (datagram,) = ours.seal([b"some body"], 1.0)
    for index in range(len(datagram)):
        altered = bytearray(datagram)
        altered[index] ^= 0x80
        with pytest.raises(PacketError, match="forged"):
            theirs.open(bytes(altered))
    for size in range(len(datagram)):
        with pytest.raises(PacketError, match="forged" if size >= MIN_SEALED_SIZE else "bad_length"):
            theirs.open(datagram[:size])
    assert theirs.window.highest == -1
    assert theirs.open(datagram)[1] == b"some body"


@pytest.mark.parametrize("inside", [16, 23, 24, 27])
def test_what_has_no_room_for_timestamp_and_body_is_not_even_opened(inside: int) -> None:
    """An authentic one, of a peer who does as it pleases; in the workspace lies the one before it."""
    ours, theirs = pair_of_two()
    (before,) = ours.seal([b"the body before"], 1.0)
    theirs.open(before)
    tail = b"random.." + (1).to_bytes(8, "big")
    nonce = ours._seal_tag + tail
    short = crypto.seal(ours._seal_key, nonce, (tail + bytes(12))[:inside])
    assert len(short) == MIN_SEALED_SIZE - 28 + inside
    with pytest.raises(PacketError, match="bad_length"):
        theirs.open(short)
    assert theirs.window.highest == 0


def test_our_own_datagram_does_not_open() -> None:
    ours, _ = pair_of_two()
    (datagram,) = ours.seal([b"body"], 1.0)
    assert datagram[:8] != ours.open_tag
    for candidate in (datagram, ours.open_tag + datagram[8:]):
        with pytest.raises(PacketError, match="forged"):
            ours.open(candidate)


def test_a_pair_is_bound_to_both_identities() -> None:
    alice, bob, mallory = local_keys(), local_keys(), local_keys()
    honest = Pair(alice, bob.sign_public, alice.current, bob.current.public)
    # Mallory announces Bob's session key as its own: Bob, asked by Alice-for-Mallory, opens nothing.
    misled = Pair(alice, mallory.sign_public, alice.current, bob.current.public)
    bobs = Pair(bob, alice.sign_public, bob.current, alice.current.public)
    assert honest.seal([b"body"], 1.0)[0][:8] == bobs.open_tag
    (datagram,) = misled.seal([b"body"], 1.0)
    assert datagram[:8] != bobs.open_tag
    for candidate in (datagram, bobs.open_tag + datagram[8:]):
        with pytest.raises(PacketError, match="forged"):
            bobs.open(candidate)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"short"])
def test_a_key_that_shares_no_secret_is_refused(key: bytes) -> None:
    alice = local_keys()
    with pytest.raises(crypto.CryptoError):
        Pair(alice, bytes(32), alice.current, key)


# ---------------------------------------------------------------------------------------------- interruptions


def interrupted(work: Callable[[], Any], step: int, interruption: Callable[[], Any]) -> tuple[Any, bool]:
    """What `work` returns; in its course, the `step`-th of the library's byte codes waits for `interruption`.

    As for a signal handler or a finalizer, which the lock does not keep out: it lets its own thread in.
    """
    done = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal done
        if not Path(frame.f_code.co_filename).name.startswith("vault_udp_"):
            return None
        frame.f_trace_opcodes = True
        done += event == "opcode"
        if done == step and event == "opcode":
            sys.settrace(None)
            interruption()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it in `settrace` only
    sys.settrace(trace)
    try:
        return work(), done >= step
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("inner_count", [1, 2])
def test_who_seals_may_be_interrupted_by_another_who_seals(count: int, inner_count: int) -> None:
    """What were sealed twice in one place would be plaintext again."""
    ours, theirs = pair_of_two()
    outer = [b"the outer message %d" % number for number in range(count)]
    inner = [b"of the inner message %d" % number for number in range(inner_count)]
    nonces = set()
    for step in itertools.count(1):
        sealed: list[bytes] = []
        datagrams, was_interrupted = interrupted(
            partial(ours.seal, make_bodies(outer, 1000, False), 1.0),
            step,
            partial(seal_into, sealed, ours, make_bodies(inner, 1000, False)),
        )
        found = [read_messages(theirs.open(datagram)[1]) for datagram in (*datagrams, *sealed)]
        assert [message for read in found if read for message in read[1]] == outer + inner * was_interrupted
        assert not any(b"message" in datagram for datagram in (*datagrams, *sealed))
        nonces |= {datagram[:24] for datagram in (*datagrams, *sealed)}
        assert len(nonces) == step * (count + inner_count) - inner_count * (not was_interrupted)
        if not was_interrupted:
            assert step > 100
            return


def seal_into(sealed: list[bytes], pair: Pair, bodies: Sequence[bytes]) -> None:
    sealed += pair.seal(bodies, 2.0)


def test_who_opens_may_be_interrupted_by_another_who_seals_and_opens() -> None:
    ours, theirs = pair_of_two()
    messages = [b"message %d" % number for number in range(3)]

    def batch() -> Segments:
        sealed = ours.seal(make_bodies(messages, 300, False), 1.0)
        assert isinstance(sealed, Segments)
        return Segments(bytes(sealed.whole), sealed.size)

    def open_all(segments: Segments) -> list[bytes]:
        layout, first = read_messages(theirs.open(segments[0])[1]) or pytest.fail("not read")
        opened = [*first]
        theirs.layout = layout
        assert theirs.open_usual(segments, 1, 0.0, 2.0, opened) == len(opened)
        return opened

    def interruption() -> None:
        (answer,) = theirs.seal([b"an answer"], 1.0)
        assert ours.open(answer) == (1.0, b"an answer")

    for step in itertools.count(1, 3):  # all of them take 4 s, and there are 290 of these
        segments = batch()
        opened, was_interrupted = interrupted(partial(open_all, segments), step, interruption)
        assert opened == messages
        if not was_interrupted:
            assert step > 100
            return


@pytest.mark.parametrize(
    "layout", [None, stored_layout(3, 301), stored_layout(4, 300), stored_layout(3, 300)]
)
def test_another_layout_than_expected_is_found_out(layout: Layout | None) -> None:
    ours, theirs = pair_of_two()
    sealed = ours.seal(make_bodies([b"one", b"two"], 300, False), 1.0)
    assert isinstance(sealed, Segments)
    opened: list[bytes] = []
    theirs.layout = layout
    assert theirs.open_usual(sealed, 0, 0.0, 2.0, opened) == 2
    assert opened == [b"one", b"two"]
    assert theirs.layout == stored_layout(3, 300)


@pytest.mark.parametrize("layout", [None, stored_layout(3, 300)])
def test_what_bears_another_tag_is_not_ours_though_it_opens(layout: Layout | None) -> None:
    """Its peer can seal so; what comes alone with such a tag is not taken for this pair's either."""
    ours, theirs = pair_of_two()
    bodies = make_bodies([b"one"], 300, False)
    first = ours.seal(bodies, 1.0)[0]
    ours._seal_tag = b"another!"
    segments = Segments(first + ours.seal(bodies, 1.0)[0], len(first))
    theirs._usual = 1  # both are opened in one go
    theirs.layout = layout
    opened: list[bytes] = []
    assert theirs.open_usual(segments, 0, 0.0, 2.0, opened) == 1
    assert opened == [b"one"]
    assert theirs.window.highest == 0


def test_of_another_pair_none_is_opened() -> None:
    """Nor does it count as out of order: two pairs that are used in turns stay at full pace."""
    (_, theirs), (others, _) = pair_of_two(), pair_of_two()
    sealed = others.seal(make_bodies([b"one", b"two"], 300, False), 1.0)
    assert isinstance(sealed, Segments)
    theirs._usual, theirs.layout = 5, stored_layout(3, 300)
    assert theirs.open_usual(sealed, 0, 0.0, 2.0, []) == 0
    assert theirs._usual == 5


def test_runs_longer_than_the_memory_are_opened_in_parts() -> None:
    ours, theirs = pair_of_two()
    messages = [bytes([number]) * 60_000 for number in range(12)]
    sealed = ours.seal(make_bodies(messages, 65_000, False), 1.0)
    assert isinstance(sealed, Segments)
    assert len(sealed.whole) > 2 * crypto.RUN_SIZE
    opened: list[bytes] = []
    theirs.layout = stored_layout(60_000, 65_000)
    assert theirs.open_usual(sealed, 0, 0.0, 2.0, opened) == len(messages)
    assert opened == messages


def test_what_is_too_short_to_be_ours_is_not_opened_again() -> None:
    ours, _ = pair_of_two()
    (datagram,) = ours.seal([b"body"], 1.0)
    for size in range(MIN_SEALED_SIZE):
        with pytest.raises(PacketError, match="bad_length"):
            ours.reopen(datagram[:size])


def test_what_was_left_in_the_memory_is_overwritten_with_the_keys() -> None:
    alice, bob = local_keys(), local_keys()
    ours = Pair(alice, bob.sign_public, alice.current, bob.current.public)
    theirs = Pair(bob, alice.sign_public, bob.current, alice.current.public)
    sealed = ours.seal(make_bodies([b"another!", b"a secret"], 300, False), 1.0)
    assert isinstance(sealed, Segments)
    assert theirs.open_usual(sealed, 0, 0.0, 2.0, []) == 2
    workspace = bob.workspaces.take()
    bob.workspaces.give_back(workspace)
    assert b"a secret" in bytes(workspace.run)
    bob.wipe()
    assert not any(workspace.run)


# --------------------------------------------------------------------------------------------------- rotation


def test_rotation_keeps_one_previous_key_and_overwrites_the_one_before() -> None:
    keys = local_keys()
    first = keys.current
    keys.rotate()
    second = keys.current
    assert keys.previous is first
    assert bytes(first.private) != bytes(32)
    keys.rotate()
    assert keys.previous is second
    assert bytes(first.private) == bytes(32)
    assert [first.epoch, second.epoch, keys.current.epoch] == [0, 1, 2]
    assert len({first.public, second.public, keys.current.public}) == 3


def test_another_identity_has_session_keys_that_the_old_one_never_announced() -> None:
    keys = local_keys()
    old = {keys.current.public}
    before = keys.sign_public
    keys.change_identity(crypto.new_sign_seed())
    assert keys.sign_public != before
    assert keys.previous is not None
    assert not old & {keys.current.public, keys.previous.public}


def test_the_session_clock_runs_with_the_monotonic_clock() -> None:
    keys = local_keys(now=100.0, wall=1e9)
    assert keys.session_time(100.0) == 1e9
    assert keys.session_time(160.5) == 1e9 + 60.5
