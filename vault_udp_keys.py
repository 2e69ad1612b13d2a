# SPDX-License-Identifier: Apache-2.0
"""Session keys: hellos that prove who announces them, and the pairs of keys under which sessions speak.

    LocalKeys   our side: the identity, the current and the previous session key, the nonces we hand out
    Hello       what an announcement says, signed by the identity
    Pair        one of our session keys with one of the peer's: two directions, each with a key and a tag

Why the pieces hold together:

- A hello proves identity by its signature, and freshness by echoing a nonce that only we can have made, for
  the address it came from, at most 20 s ago. Nothing else about it is believed.
- A pair's keys come from X25519 and are bound to both identities and both session keys, so announcing
  another's session key as one's own opens nothing. Directions have different keys, so nothing of our own can
  be reflected at us.
- A pair carries data only after a datagram has opened under it: that proves the other end holds its keys now.

No sockets, threads or clocks. Times are seconds of the monotonic clock (`now`), addresses are (ip, port).
"""

from __future__ import annotations

import functools
import itertools
import logging
import struct
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address
    from vault_udp_layout import Layout, StoredBodies, bare_layout, no_layout, read_messages
    from vault_udp_packet import PacketError
    from vault_udp_replay import CounterWindow
    from vault_udp_segments import Segments
    from vault_udp_socket_helper import Buffer
else:
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address
    from .vault_udp_layout import Layout, StoredBodies, bare_layout, no_layout, read_messages
    from .vault_udp_packet import PacketError
    from .vault_udp_replay import CounterWindow
    from .vault_udp_segments import Segments


logger = logging.getLogger("vault_udp")

HELLO_LABEL = b"py-vault-udp/2 hello".ljust(24, b"\0")
FLAG_PERSISTENT = 1
FLAG_COALESCE = 2
_HELLO = struct.Struct(">24sHIQ32s32s32s32s16s16s")
NO_KEY = bytes(32)
_NO_NONCE = bytes(16)

TAG_SIZE = 8
SEALED_OVERHEAD = crypto.BOX_OVERHEAD + 24
"""Bytes of a sealed datagram beside its body, in either mode: 24 + 16 for the box, 16 + 8 inside it."""
MIN_SEALED_SIZE = SEALED_OVERHEAD + 4

MOST_OPENED_AT_ONCE = 64
"""Datagrams that are opened before the first is read; they are still in the processor's cache then."""
_RANDOM = struct.Struct("8s")
_BOX_NONCE = struct.Struct(">8s8sQ")
"""Tag, random bytes and counter; the plaintext begins with the last two again."""
_REPEATED_SIZE = crypto.NONCE_SIZE - TAG_SIZE
_COUNTER_AND_TIME = struct.Struct(">Qd")
_HEADER_SIZE = SEALED_OVERHEAD - crypto.BOX_OVERHEAD
"""Bytes of the plaintext before the body."""
COUNTERS_APART = 128
"""Between the first counters of two pairs of one key of ours: the same pair, made again after it was given up
without an answer, sends what the peer has not had. By then it has sent fewer."""
NONCE_SLOT = 10.0


@functools.lru_cache(maxsize=2048)
def _plaintext(body: str) -> struct.Struct:
    """Random bytes and counter of the nonce, timestamp, and a body of that format."""
    return struct.Struct(f">8sQd{body}")


@functools.lru_cache(maxsize=2048)
def _datagram(body: str) -> struct.Struct:
    """A datagram where it is sealed and opened in a run: nonce, room for the authenticator, plaintext."""
    return struct.Struct(f">8s8sQ{crypto.AUTHENTICATOR_SIZE}x8sQd{body}")


def _parts(nonce: Buffer, plain: Buffer) -> tuple[int, float, bytes] | None:
    """Counter, timestamp and body of an opened datagram; None if it is not under the nonce that it says."""
    if plain[:_REPEATED_SIZE] != nonce[TAG_SIZE:]:
        return None
    counter, timestamp = _COUNTER_AND_TIME.unpack_from(plain, _RANDOM.size)
    return counter, timestamp, bytes(plain[_HEADER_SIZE:])


def _opened(key: bytes, datagram: bytes) -> tuple[int, float, bytes]:
    """Counter, timestamp and body of a sealed datagram.

    Raises:
        PacketError: ``bad_length``, ``forged``.
    """
    if len(datagram) < MIN_SEALED_SIZE:
        raise PacketError("bad_length")
    try:
        parts = _parts(datagram[: crypto.NONCE_SIZE], crypto.open_sealed(key, datagram))
    except crypto.DecryptionError as error:
        raise PacketError("forged") from error
    if parts is None:
        raise PacketError("forged")
    return parts


class Hello(NamedTuple):
    """The hello blob's fields. Untrusted until `proof_is_good` has been asked about the whole blob."""

    flags: int
    epoch: int
    time: float
    """Seconds of the sender's session clock."""
    sign: bytes
    enc: bytes
    to_sign: bytes
    holds: bytes
    nonce: bytes
    echo: bytes

    def pack(self) -> bytes:
        """The blob as it travels and is signed."""
        return _HELLO.pack(HELLO_LABEL, self.flags, self.epoch, round(self.time * 1000), *self[3:])


def read_hello_untrusted(blob: bytes) -> Hello:
    """The fields of a hello blob; bytes behind the known ones are signed and otherwise ignored.

    Raises:
        PacketError: ``bad_announcement``: too short or another label.
    """
    if len(blob) < _HELLO.size:
        raise PacketError("bad_announcement")
    label, flags, epoch, milliseconds, *rest = _HELLO.unpack_from(blob)
    if label != HELLO_LABEL:
        raise PacketError("bad_announcement")
    return Hello(flags, epoch, milliseconds / 1000, *rest)


def proof_is_good(hello: Hello, blob: bytes, proof: bytes) -> bool:
    """Whether `proof` is the signature of the hello's own identity over the whole transported blob."""
    return crypto.verify_detached(hello.sign, blob, proof)


class SessionKey:
    """One of our session key pairs; `wipe` overwrites the private half."""

    __slots__ = ("epoch", "pairs_made", "private", "public")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.pairs_made = itertools.count()
        self.private = bytearray(crypto.new_enc_private())
        self.public = crypto.enc_public_of(self.private)

    def wipe(self) -> None:
        """Overwrite the private key."""
        crypto.wipe(self.private)


class LocalKeys:
    """What all sessions share: our identity and session keys, and the nonces that prove freshness.

    Args:
        sign_seed: Ed25519 seed, 32 bytes: the identity.
        now: seconds, monotonic; wall: Unix time, seconds. Together they make the session clock, which runs
            with the monotonic clock and never jumps with the wall clock.
        flags: of our hello.
    """

    def __init__(self, sign_seed: bytes, now: float, wall: float, flags: int = FLAG_COALESCE) -> None:
        self.sign_seed = sign_seed
        self.sign_public = crypto.sign_public_of(sign_seed)
        self.flags = flags
        self.keepalive = float("inf")
        """Seconds without sending after which a peer is sent something, to keep a NAT's mapping open."""
        self.finds_sizes = True
        """Whether the size of datagrams is found out for each peer, or fixed."""
        self.log: Callable[..., None] = logger.log
        """(level, text, *args): says what happens; who guards us with a lock lets it wait for its release."""
        self.current = SessionKey(0)
        self.previous: SessionKey | None = None
        self.workspaces = crypto.Workspaces()
        """For every pair of ours."""
        self.clock_offset = wall - now
        """Seconds between the monotonic clock and our session clock."""
        self._nonce_secret = crypto.random_bytes(32)

    def change_identity(self, sign_seed: bytes) -> None:
        """Become another identity, with session keys that the old one never announced."""
        self.sign_seed = sign_seed
        self.sign_public = crypto.sign_public_of(sign_seed)
        self.rotate()
        self.rotate()

    def wipe(self) -> None:
        """Overwrite the session keys, forget the rest: nothing can be made with these any more."""
        self.workspaces.wipe()
        self.current.wipe()
        if self.previous is not None:
            self.previous.wipe()
        self.sign_seed = b""

    def session_time(self, now: float) -> float:
        """Seconds of our session clock."""
        return now + self.clock_offset

    def rotate(self) -> None:
        """Make a new current key; the previous one is overwritten, the current one becomes the previous."""
        if self.previous is not None:
            self.previous.wipe()
        self.previous = self.current
        self.current = SessionKey(self.current.epoch + 1)

    def nonce_for(self, address: Address, now: float) -> bytes:
        """The nonce that an announcement to `address` carries now; recomputed, never stored."""
        return self._slot_nonce(address, int(now // NONCE_SLOT))

    def is_own_nonce(self, echo: bytes, address: Address, now: float) -> bool:
        """Whether `echo` is a nonce of ours for that address, of this slot or the one before."""
        slot = int(now // NONCE_SLOT)
        return crypto.equal(echo, self._slot_nonce(address, slot)) or crypto.equal(
            echo, self._slot_nonce(address, slot - 1)
        )

    def _slot_nonce(self, address: Address, slot: int) -> bytes:
        text = f"{address[0]}|{address[1]}|{slot}".encode()
        return crypto.derive(self._nonce_secret, text, 16)

    def hello_members(
        self, address: Address, now: float, *, to_sign: bytes = b"", holds: bytes = b"", echo: bytes = b""
    ) -> dict[str, str]:
        """The announcement members ``hello`` and ``proof`` for `address`."""
        blob = Hello(
            self.flags,
            self.current.epoch,
            self.session_time(now),
            self.sign_public,
            self.current.public,
            to_sign or NO_KEY,
            holds or NO_KEY,
            self.nonce_for(address, now),
            echo or _NO_NONCE,
        ).pack()
        return {
            "hello": crypto.bytes_to_b64_str(blob),
            "proof": crypto.bytes_to_b64_str(crypto.sign_detached(self.sign_seed, blob, self.sign_public)),
        }


class Pair:
    """One of our session keys with one of the peer's: a key and a tag for each direction.

    Raises:
        CryptoError: from the constructor: `theirs` is no usable X25519 key.
    """

    __slots__ = (
        "_open_key",
        "_seal_key",
        "_seal_tag",
        "_usual",
        "_workspaces",
        "confirm_at",
        "confirms",
        "counters",
        "from_hello",
        "layout",
        "mine",
        "needs_pong",
        "open_tag",
        "opened",
        "order",
        "outdated",
        "owner",
        "rekey_nonce",
        "theirs",
        "window",
    )

    def __init__(self, local: LocalKeys, sign: bytes, mine: SessionKey, theirs: bytes) -> None:
        shared = crypto.shared_key(mine.private, theirs)
        outward = crypto.derive(shared, local.sign_public + sign + mine.public + theirs, 40)
        inward = crypto.derive(shared, sign + local.sign_public + theirs + mine.public, 40)
        self._seal_key, self._seal_tag = outward[:32], outward[32:]
        self._open_key, self.open_tag = inward[:32], inward[32:]
        self._workspaces = local.workspaces
        self._usual = 0
        """Datagrams that `open_usual` took without a failure."""
        self.layout: Layout | None = None
        """That of the last bodies of one message each which `open_usual` took. Those of coalesced bodies
        are not kept: they are large, many peers could make us keep many, and a wrong first guess costs
        little there."""
        self.owner: Any = None
        """The session that has this pair now."""
        self.mine = mine
        self.theirs = theirs
        self.order = 0
        self.from_hello = False
        self.opened = False
        self.needs_pong = False
        self.rekey_nonce = b""
        """Of the last REKEY that asked for this pair."""
        self.outdated = False
        self.window = CounterWindow()
        self.counters = itertools.count(next(mine.pairs_made) * COUNTERS_APART)
        self.confirms = 0
        self.confirm_at = float("inf")

    def seal(self, bodies: Sequence[bytes], timestamp: float) -> Sequence[bytes]:
        """The sealed datagrams around `bodies`; each uses up one counter."""
        if bodies.__class__ is StoredBodies:
            layout, middles = bodies.layout, bodies.messages
        elif len(set(map(len, bodies))) == 1:
            layout, middles = bare_layout(len(bodies[0])), bodies
        else:
            return [datagram for body in bodies for datagram in self.seal((body,), timestamp)]
        if len(middles) == 1:
            return (self.seal_one(layout, middles[0], timestamp),)
        return self._seal_alike(layout, middles, timestamp)

    def seal_one(self, layout: Layout, middle: bytes, timestamp: float) -> bytes:
        """`seal` for the body of that layout around `middle`."""
        # The counter alone makes the nonce unique under this key, also for a signal handler that seals right
        # now: `next` is one step. The random bytes are there because whoever learns one nonce must not know
        # the message nonce of another datagram, and for copies of this process.
        random, counter = crypto.random_bytes(_RANDOM.size), next(self.counters)
        plain = _plaintext(layout.fields).pack(random, counter, timestamp, layout.head, middle, layout.tail)
        return crypto.seal(self._seal_key, _BOX_NONCE.pack(self._seal_tag, random, counter), plain)

    def _seal_alike(self, layout: Layout, middles: Sequence[bytes], timestamp: float) -> Segments:
        """`seal_one` for each of many, in memory that is used again."""
        form, head, tail, tag = _datagram(layout.fields), layout.head, layout.tail, self._seal_tag
        workspace = self._workspaces.take()
        size, pack, run = form.size, form.pack_into, workspace.run
        most, runs = crypto.RUN_SIZE // size, []
        for first in range(0, len(middles), most):
            part, at = middles[first : first + most], 0
            randoms = _RANDOM.iter_unpack(crypto.random_bytes(_RANDOM.size * len(part)))
            for middle, (random,), counter in zip(part, randoms, self.counters):
                pack(run, at, tag, random, counter, random, counter, timestamp, head, middle, tail)
                at += size
            runs.append(workspace.seal_run(self._seal_key, size, len(part)))
        self._workspaces.give_back(workspace)
        return Segments(b"".join(runs), size)

    def open(self, datagram: bytes) -> tuple[float, bytes]:
        """Authenticate a datagram with our tag and return its timestamp and body, once.

        Raises:
            PacketError: ``bad_length``, ``forged`` (does not open), ``replayed`` (its counter was accepted,
                or is too old).
        """
        counter, timestamp, body = _opened(self._open_key, datagram)
        if not self.window.accept(counter):
            raise PacketError("replayed")
        return timestamp, body

    def has_sealed(self, datagram: bytes) -> bool:
        """Whether the datagram bears the tag of what we seal."""
        return datagram.startswith(self._seal_tag)

    def reopen(self, datagram: bytes) -> bytes:
        """The body of a datagram that we have sealed ourselves.

        Raises:
            PacketError: ``bad_length``, ``forged``: it is not one.
        """
        return _opened(self._seal_key, datagram)[2]

    def open_usual(
        self,
        segments: Segments,
        index: int,
        earliest: float,
        latest: float,
        messages: list[bytes],
    ) -> int:
        """Open `segments` from `index` on, as long as each is what most are.

        That is: authentic, with our tag and a counter that was not accepted before, stamped from `earliest`
        to `latest`, with a usual body (`read_messages`). The first that is not is left to `open` and to
        whoever judges its body; nothing of it is kept here. So this may decline what they accept, but accepts
        nothing that they decline.

        The first go opens one datagram, each later one a datagram more than were usual since the last go
        that was cut short, and in it. So no more is opened in vain than was opened with success before.
        What begins with another pair's tag is not tried at all.

        Args:
            messages: takes what is in them.

        Returns:
            The index of the first that is left.
        """
        size, whole = segments.size, memoryview(segments.whole)
        is_ours = whole[index * size : index * size + TAG_SIZE] == self.open_tag
        if not is_ours or size < MIN_SEALED_SIZE:
            return index
        layout = self.layout
        if layout is None or size != layout.body_size + SEALED_OVERHEAD:
            layout = no_layout(size - SEALED_OVERHEAD)
        end = len(whole) // size  # a shorter last one is not like these
        while index < end:
            count = min(end - index, self._usual + 1, MOST_OPENED_AT_ONCE, crypto.RUN_SIZE // size)
            part = whole[index * size : (index + count) * size]
            taken, layout = self._open_next(part, size, layout, earliest, latest, messages)
            index += taken
            if taken and layout.split is None:
                self.layout = layout
            if taken < count:
                self._usual = taken
                break
            self._usual += taken
        return index

    def _open_next(
        self,
        datagrams: memoryview,
        size: int,
        layout: Layout,
        earliest: float,
        latest: float,
        messages: list[bytes],
    ) -> tuple[int, Layout]:
        """`open_usual` in one go; returns how many were usual, and the layout of the last of them."""
        workspace = self._workspaces.take()
        workspace.run[: len(datagrams)] = datagrams
        opened = workspace.open_run(self._open_key, size, len(datagrams) // size)
        taken = 0
        while taken < opened:
            left = workspace.run[taken * size : opened * size]
            taken += self._read_alike(left, layout, earliest, latest, messages)
            if taken < opened:
                read = self._read_other(workspace.run[taken * size : (taken + 1) * size], earliest, latest)
                if read is None:
                    break
                layout, found = read
                messages += found
                taken += 1
        self._workspaces.give_back(workspace)
        return taken, layout

    def _read_alike(
        self, opened: memoryview, layout: Layout, earliest: float, latest: float, messages: list[bytes]
    ) -> int:
        """Read opened datagrams as long as each has the next counter and a body of this layout: how many.

        This is `_read_other` without the calls and copies.
        """
        tag, head, tail = self.open_tag, layout.head, layout.tail
        messages_of = layout.messages_of if layout.split is not None else None
        first = expected = self.window.highest + 1
        for row in _datagram(layout.fields).iter_unpack(opened):
            its_tag, outer_random, outer_counter, random, counter, timestamp, its_head, middle, its_tail = row
            if not (
                outer_counter == counter == expected
                and outer_random == random
                and its_tag == tag
                and earliest <= timestamp <= latest
                and its_head == head
                and its_tail == tail
            ):
                break
            if messages_of is None:
                messages.append(middle)
            else:
                found = messages_of(middle)
                if found is None:
                    break
                messages += found
            expected += 1
        self.window.accept_next(expected - first)
        return expected - first

    def _read_other(
        self, opened: memoryview, earliest: float, latest: float
    ) -> tuple[Layout, Sequence[bytes]] | None:
        """The layout and the messages of an opened datagram, once; None if it is not usual."""
        if opened[:TAG_SIZE] != self.open_tag:
            return None
        parts = _parts(opened[: crypto.NONCE_SIZE], opened[crypto.BOX_OVERHEAD :])
        if parts is None or not earliest <= parts[1] <= latest:
            return None
        read = read_messages(parts[2])
        return read if read is not None and self.window.accept(parts[0]) else None
