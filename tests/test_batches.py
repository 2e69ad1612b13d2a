# SPDX-License-Identifier: Apache-2.0
"""Datagrams that come together mean what they mean one by one, in the loop for what follows in order too."""

from __future__ import annotations

import struct
from typing import Iterator, NamedTuple, Sequence, Tuple

import pytest
from fakenet import FakeNet, both_ready, flip_bit
from hypothesis import given
from hypothesis import strategies as st

import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_address import Address
from vault_udp_keys import Pair
from vault_udp_layout import make_bodies, make_coalesced_body
from vault_udp_segments import Segments
from vault_udp_session import ACKNOWLEDGE_AFTER

A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)
BODY_SIZE = 1393
STALE = 120.0
NONCE = b"A" * 22 + b"=="

Step = Tuple[str, int]
"""What the sender or the network does, and a number that tells which message or bit."""
KINDS = ["message"] * 3 + ["longer", "coalesced", "uneven", "control", "smaller", "stale", "compressed"]
KINDS += ["ping", "lost", "again", "swapped", "forged", "other nonce", "other counter", "truncated"]
KINDS += ["other version", "mixed"]
READABLE = {"message", "longer", "coalesced", "uneven", "compressed"}
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=25
)


class Outcome(NamedTuple):
    """All that is left of a batch at the receiver."""

    messages: list[bytes]
    counters: dict[str, int]
    highest: int
    accepted: list[bool]
    outgoing: int
    sent_to: list[Address]
    """Where something was sent, also later, when nothing more has come for a while."""


def sealed(pair: Pair, step: Step, time: float) -> bytes:
    kind, number = step
    size = BODY_SIZE - 100 if kind == "smaller" else BODY_SIZE
    unusual: dict[str, list[bytes]] = {
        "longer": [b"%d" % number * (number + 2)],
        "coalesced": [b"%d" % number] * (number + 2),
        "compressed": [packet.compress_frame(b"%d" % number * 5000, 1000)],
    }
    bodies = make_bodies(unusual.get(kind, [b"message %d" % number]), size, True)
    if kind == "uneven":
        bodies = [make_coalesced_body([b"3", b"33", b"", b"3", b"3"], size)]
    elif kind == "control":
        bodies = [packet.make_control_body(b'{"type":"confirm","got":true}', size)]
    elif kind == "ping":
        bodies = [packet.make_control_body(b'{"type":"confirm","got":false,"nonce":"%s"}' % NONCE, size)]
    elif kind == "truncated":
        bodies = [bodies[0][:30]]  # what follows is left in the buffer from the datagram before
    elif kind == "other version":
        bodies = [bodies[0].replace(b"\xa1v\x02", b"\xa1v\x03")]
    elif kind == "mixed":
        bodies = [bodies[0].replace(b"\xa1c\xc4\x00", b"\xa1c\xc4\x02{}", 1)[:size]]
    if kind.startswith("other ") and kind != "other version":
        return with_other_nonce(pair, bodies[0], time, other_counter=kind == "other counter")
    return pair.seal(bodies[:1], time - STALE if kind == "stale" else time)[0]


def with_other_nonce(pair: Pair, body: bytes, time: float, other_counter: bool) -> bytes:
    """Sealed by one who has the key, with other random bytes or another counter than it repeats inside."""
    (datagram,) = pair.seal([body], time)
    plain = pair.reopen(datagram)
    random, counter = datagram[8:16], int.from_bytes(datagram[16:24], "big")
    inner = struct.pack(">8sQd", random if other_counter else bytes(8), counter + 50 * other_counter, time)
    assert plain == body
    return crypto.seal(pair._seal_key, datagram[:24], inner + body)


def datagrams_of(pair: Pair, steps: list[Step], time: float) -> list[bytes]:
    datagrams: list[bytes] = []
    for kind, number in steps:
        if kind == "again" and datagrams:
            datagrams.append(datagrams[number % len(datagrams)])
        elif kind == "swapped" and len(datagrams) > 1:
            datagrams[-1], datagrams[-2] = datagrams[-2], datagrams[-1]
        else:
            datagram = sealed(pair, (kind, number), time)
            if kind == "forged":
                datagram = flip_bit(datagram, 64 + number * 1000)
            if kind != "lost":
                datagrams.append(datagram)
    return datagrams


def as_the_kernel_does(datagrams: list[bytes]) -> Iterator[Sequence[bytes]]:
    """Those of one size together; a shorter one ends what it follows. What is alone is nothing cut out."""
    run: list[bytes] = []
    for datagram in datagrams:
        if run and (len(datagram) > len(run[0]) or len(run[-1]) < len(run[0])):
            yield Segments(b"".join(run), len(run[0])) if len(run) > 1 else run
            run = []
        run.append(datagram)
    if run:
        yield Segments(b"".join(run), len(run[0])) if len(run) > 1 else run


def outcome(steps: list[Step], batch_size: int) -> Outcome:
    """What the receiver makes of it, so many datagrams at a time; the rest is the same each time."""
    net = FakeNet(0)
    bob = net.node(B)
    alice = net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    session = alice.peer(B).session
    assert session.send is not None
    datagrams = datagrams_of(session.send, steps, session.local.session_time(alice.now))
    node, pair = bob.node, bob.node.tags[datagrams[0][:8]] if datagrams else None
    with net.seeded_keys():
        for start in range(0, len(datagrams), batch_size):
            for batch in as_the_kernel_does(datagrams[start : start + batch_size]):
                node.receive(batch, A, bob.now)
    messages = [bytes(message) for _, delivered in node.deliveries for message in delivered]
    highest = pair.window.highest if pair is not None else -1
    accepted = [pair.window.accept(highest - back) for back in range(min(40, highest))] if pair else []
    counters, outgoing = dict(node.counters), len(node.outgoing)
    node.run_timers(bob.now + 1.5 * ACKNOWLEDGE_AFTER)
    sent_to = [address for address, _ in node.outgoing]
    return Outcome(messages, counters, highest, accepted, outgoing, sent_to)


@given(STEPS, st.integers(2, 30))
def test_a_batch_leaves_what_its_datagrams_leave_one_by_one(steps: list[Step], batch_size: int) -> None:
    assert outcome(steps, batch_size) == outcome(steps, 1)


@pytest.mark.parametrize("usual", [("message", 1), ("coalesced", 5)])
@pytest.mark.parametrize("kind", sorted({*KINDS} - READABLE))
def test_what_does_not_follow_is_judged_by_itself(kind: str, usual: tuple[str, int]) -> None:
    """Each kind in the middle of what does follow; what it may not do is delivered to nobody."""
    what, messages = usual
    before: list[Step] = [(what, messages - 2 if what == "coalesced" else number) for number in range(5)]
    steps = [*before, (kind, 4), *before]
    together = outcome(steps, 30)
    assert together == outcome(steps, 1)
    assert len(together.messages) == len(before) * 2 * messages + (kind == "smaller")
    reason = {
        "again": "replayed",
        "forged": "forged",
        "stale": "outside_window",
        "other nonce": "forged",
        "other counter": "forged",
        "truncated": "bad_body",
        "other version": "other_version",
        "mixed": "bad_body",
    }.get(kind)
    assert reason is None or together.counters[reason] == 1


def test_messages_that_only_together_are_as_long_as_the_usual_ones_are_told_apart() -> None:
    steps: list[Step] = [("coalesced", 3), ("coalesced", 3), ("uneven", 3), ("coalesced", 3)]
    together = outcome(steps, 30)
    assert together == outcome(steps, 1)
    assert together.messages == [b"3"] * 10 + [b"3", b"33", b"", b"3", b"3"] + [b"3"] * 5
