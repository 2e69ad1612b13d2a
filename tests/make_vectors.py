# SPDX-License-Identifier: Apache-2.0
"""Write `tests/vectors/*.json`: every message of the protocol under fixed keys and a fixed clock.

    python tests/make_vectors.py

Two nodes talk through a fake wire with 10 ms of delay; what they send is recorded (`exchange.json`). What
is to be refused is made here, by `seal`, `hello_blob` and `pair_keys`, which follow PROTOCOL.md and share no
code with the library (`refusals.json`). The formats below the datagrams have files of their own. The same
code always writes the same files; `test_vectors.py` compares.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import itertools
import json
import random
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import msgpack
import nacl.bindings
import nacl.signing
import pyzstd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vault_udp_layout as layouts
import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_node import Node

FOLDER = Path(__file__).parent / "vectors"
NOW, WALL = 1000.0, 1763400000.0
"""Where the monotonic and the Unix clock stand when everything begins, seconds."""
BODY_SIZE = 1393
LIFETIME = 60
DELAY = 0.01
ALICE, BOB, CAROL, MALLORY = (
    ("192.0.2.1", 11000),
    ("192.0.2.2", 11000),
    ("192.0.2.3", 7000),
    ("192.0.2.4", 9),
)

Address = Tuple[str, int]
Case = Dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def secret(name: str) -> bytes:
    """A fixed secret of 32 bytes for each name."""
    return hashlib.sha256(f"py-vault-udp test vectors: {name}".encode()).digest()


# ------------------------------------------------------------------ the protocol, once more, from PROTOCOL.md


class Identity(NamedTuple):
    """The secrets of one end that the vectors need: Ed25519 seed, X25519 session key and base key."""

    seed: bytes
    session: bytes
    base: bytes

    @property
    def sign(self) -> bytes:
        return bytes(nacl.signing.SigningKey(self.seed).verify_key)

    @property
    def enc(self) -> bytes:
        return nacl.bindings.crypto_scalarmult_base(self.session)

    @property
    def base_enc(self) -> bytes:
        return nacl.bindings.crypto_scalarmult_base(self.base)


def identity(name: str) -> Identity:
    return Identity(secret(name + " sign"), secret(name + " session 0"), secret(name + " base"))


def pair_keys(private: bytes, theirs: bytes, sign: bytes, their_sign: bytes) -> dict[str, bytes]:
    """The keys and tags of both directions of a pair, as the end that has `private` sees them."""
    shared = nacl.bindings.crypto_box_beforenm(theirs, private)
    mine = nacl.bindings.crypto_scalarmult_base(private)
    names = (("seal", sign + their_sign + mine + theirs), ("open", their_sign + sign + theirs + mine))
    keys = {}
    for name, text in names:
        digest = hashlib.blake2b(text, digest_size=40, key=shared, person=b"py-vault-udp/2").digest()
        keys[name + "_key"], keys[name + "_tag"] = digest[:32], digest[32:]
    return keys


def seal(
    keys: dict[str, bytes], counter: int, stamp: float, body: bytes, inner: bytes | None = None
) -> bytes:
    """A sealed datagram of a session; `inner`, if given, takes the place of the repeated nonce."""
    tail = b"random.." + struct.pack(">Q", counter)
    plain = (inner or tail) + struct.pack(">d", stamp) + body
    nonce = keys["seal_tag"] + tail
    return nonce + nacl.bindings.crypto_box_easy_afternm(plain, nonce, keys["seal_key"])


def seal_base(
    sender: Identity, receiver: bytes, stamp: float, body: bytes, nonce: bytes = b"n" * 16
) -> bytes:
    """A sealed datagram of base mode."""
    shared = nacl.bindings.crypto_box_beforenm(receiver, sender.base)
    plain = nonce + struct.pack(">d", stamp) + body
    return b"N" * 24 + nacl.bindings.crypto_box_easy_afternm(plain, b"N" * 24, shared)


def open_any(key: bytes, datagram: bytes) -> tuple[float, bytes]:
    """The timestamp and the body of a sealed datagram."""
    plain = nacl.bindings.crypto_box_open_easy_afternm(datagram[24:], datagram[:24], key)
    return struct.unpack_from(">d", plain, 16)[0], plain[24:]


def hello_blob(end: Identity, echo: bytes, **other: Any) -> bytes:
    """A hello of `end`; `other` fields as in PROTOCOL.md."""
    fields = {
        "label": b"py-vault-udp/2 hello\0\0\0\0",
        "flags": 2,
        "epoch": 0,
        "time": int(WALL * 1000),
        "sign": end.sign,
        "enc": end.enc,
        "to_sign": bytes(32),
        "holds": bytes(32),
        "nonce": b"nonce of vectors",
        "echo": echo,
        **other,
    }
    return struct.pack(">24sHIQ32s32s32s32s16s16s", *fields.values())


def hello_members(end: Identity, blob: bytes) -> dict[str, Any]:
    return {"hello": b64(blob), "proof": b64(nacl.signing.SigningKey(end.seed).sign(blob).signature)}


def base_members(end: Identity, port: int) -> dict[str, Any]:
    text = (b64(end.base_enc) + b64(end.sign)).encode()
    signed = nacl.signing.SigningKey(end.seed).sign(text)
    return {"enc_key": b64(end.base_enc), "sign_key": b64(end.sign), "signature": b64(signed), "port": port}


def json_bytes(members: dict[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def body_of(size: int, **members: Any) -> bytes:
    """A v2 body of `size` bytes; bytes that msgpack would pack shorter are fine, too."""
    head: bytes = msgpack.packb({"v": 2, "p": b"", "c": b"", **members, "g": bytes(300)})[:-303]
    room = size - len(head) - 3
    return head + b"\xc5" + room.to_bytes(2, "big") + bytes(room)


def clear(members: dict[str, Any], size: int = 512) -> bytes:
    return body_of(size, c=json_bytes(members))


def clear_v1(text: bytes) -> bytes:
    # A stored frame: what zstd would make of the text depends on its version.
    packed: bytes = msgpack.packb([packet.store_frame(text), bytes(200)])
    return packed


def payload(message: bytes, size: int = BODY_SIZE) -> bytes:
    """A v2 body of `size` bytes as the library writes it."""
    frame = packet.store_frame(message)
    head = b"\x84\xa1v\x02\xa1p\xc5" + len(frame).to_bytes(2, "big") + frame + b"\xa1c\xc4\x00\xa1g\xc5"
    room = size - len(head) - 2
    return head + room.to_bytes(2, "big") + bytes(room)


# ------------------------------------------------------------------------------------ nodes without chance


class End:
    """A node whose random numbers are fixed; `now` is the time since the start, in seconds."""

    def __init__(self, name: str, address: Address, **options: Any) -> None:
        self.name, self.address, self.now = name, address, 0.0
        end = identity(name)
        stream = hashlib.shake_256(secret(name + " random numbers")).digest(1 << 16)
        self._random_bytes = iter(stream)
        self._session_keys = (secret(f"{name} session {number}") for number in itertools.count())
        self.encryption = VaultAsymmetricEncryption(
            LIFETIME,
            b64(end.base),
            b64(end.seed),
            monotonic=lambda: NOW + self.now,
            wall=lambda: WALL + self.now,
        )
        with self._fixed():
            self.node = Node(
                self.encryption,
                port=address[1],
                body_size=BODY_SIZE,
                rate_limit=None,
                now=NOW,
                wall=WALL,
                rng=random.Random(name),
                **options,
            )
        self.nonce_secret: bytes = self.node.local._nonce_secret

    @contextmanager
    def _fixed(self) -> Iterator[None]:
        original = crypto.random_bytes, crypto.new_enc_private
        crypto.random_bytes = lambda size: bytes(itertools.islice(self._random_bytes, size))
        crypto.new_enc_private = lambda: next(self._session_keys)
        try:
            yield
        finally:
            crypto.random_bytes, crypto.new_enc_private = original

    def at(self, time: float, action: Callable[[Node, float], object]) -> list[tuple[Address, bytes]]:
        """Do something at `time`, then what is due; returns what is to be sent."""
        self.now = time
        with self._fixed():
            action(self.node, NOW + time)
            self.node.run_timers(NOW + time)
            for peer in self.node.take_flushable():
                address, datagrams = self.node.seal_messages(peer, self.node.take_queue(peer), NOW + time)
                self.node.outgoing.extend((address, datagram) for datagram in datagrams)
        sent = self.node.outgoing[:]
        self.node.outgoing.clear()
        return sent

    def nonce_for(self, address: Address, time: float, slot: int = 0) -> bytes:
        """The nonce that an announcement to `address` carries, as PROTOCOL.md has it."""
        text = f"{address[0]}|{address[1]}|{int((NOW + time) // 10) - slot}".encode()
        return hashlib.blake2b(text, digest_size=16, key=self.nonce_secret, person=b"py-vault-udp/2").digest()


def send(address: Address, *messages: bytes) -> Callable[[Node, float], object]:
    """What a program does that sends messages."""

    def action(node: Node, now: float) -> None:
        peer = node.contact(address, now)
        if not node.is_ready(peer, now):
            for message in messages:
                node.queue(peer, message, now)
            return
        endpoint, datagrams = node.seal_messages(peer, messages, now)
        node.outgoing.extend((endpoint, datagram) for datagram in datagrams)

    return action


SCRIPT: list[tuple[float, str, Callable[[Node, float], object]]] = [
    (0.0, "alice", lambda node, now: node.add_peer(BOB, now)),
    (0.0, "alice", send(BOB, b"Hello, World!")),
    (1.0, "bob", send(ALICE, "Grüße aus 東京".encode())),
    (1.5, "alice", send(BOB, b"one", b"two", b"", b"three")),
    (75.0, "alice", send(BOB, b"under the new keys")),
    (80.0, "bob", lambda node, now: node.remove_peer(ALICE, now)),
]
"""What the two programs do, by time: one rotation of each comes between."""


class Sent(NamedTuple):
    time: float
    source: str
    datagram: bytes


def exchange(until: float = 81.0) -> tuple[dict[str, End], list[Sent], list[Case]]:
    """Let the script run; the ends, every datagram, and what was delivered or told."""
    ends = {"alice": End("alice", ALICE), "bob": End("bob", BOB)}
    by_address = {end.address: end for end in ends.values()}
    sequence = itertools.count()
    agenda = [(time, next(sequence), name, action) for time, name, action in SCRIPT]
    heapq.heapify(agenda)
    sent: list[Sent] = []
    told: list[Case] = []
    while True:
        name, due = min(((name, end.node.deadline() - NOW) for name, end in ends.items()), key=lambda x: x[1])
        action: Callable[[Node, float], object] = lambda node, now: None  # noqa: E731 - timers only
        if agenda and agenda[0][0] <= due:
            due, _, name, action = heapq.heappop(agenda)
        if due > until:
            return ends, sent, told
        end = ends[name]
        for address, datagram in end.at(due, action):
            sent.append(Sent(due, name, datagram))
            receiver, arrival = by_address[address], arrive(datagram, end.address)
            heapq.heappush(agenda, (due + DELAY, next(sequence), receiver.name, arrival))
        for _, messages in end.node.deliveries:
            told.extend(_case(due, name, message=b64(bytes(message))) for message in messages)
        told.extend(_case(due, name, event=event.kind) for event in end.node.events)
        end.node.deliveries.clear()
        end.node.events.clear()


def _case(time: float, name: str, **more: Any) -> Case:
    return {"time": round(time, 6), "at": name, **more}


def arrive(datagram: bytes, source: Address) -> Callable[[Node, float], object]:
    return lambda node, now: node.receive([datagram], source, now)


def exchange_cases() -> list[Case]:
    """The exchange's datagrams, each with what it says, read by the code above."""
    _, sent, _ = exchange()
    signs = {name: identity(name).sign for name in ("alice", "bob")}
    keys = {}
    for mine, theirs in itertools.product(range(4), repeat=2):
        for name, other in (("alice", "bob"), ("bob", "alice")):
            public = nacl.bindings.crypto_scalarmult_base(secret(f"{other} session {theirs}"))
            pair = pair_keys(secret(f"{name} session {mine}"), public, signs[name], signs[other])
            keys[pair["seal_tag"]] = (f"{name} {mine}, {other} {theirs}", pair["seal_key"])
    cases = []
    for time, source, datagram in sent:
        case: Case = {"time": round(time, 6), "from": source, "size": len(datagram)}
        body = datagram
        if datagram[:8] in keys:
            case["pair"], key = keys[datagram[:8]]
            case["counter"] = int.from_bytes(datagram[16:24], "big")
            case["timestamp"], body = open_any(key, datagram)
        content = msgpack.unpackb(body)
        if content["c"]:
            case["control"] = json.loads(content["c"])
        else:
            case["messages"] = [b64(item) for item in content.get("m") or [pyzstd.decompress(content["p"])]]
        case["kind"] = case.get("control", {}).get("type", "data" if "messages" in case else "announcement")
        case["datagram"] = b64(datagram)
        cases.append(case)
    return cases


# ---------------------------------------------------------------------------------------------- refusals


def scene(name: str) -> tuple[End, float]:
    """A node at a known point of its life, and the time; PROTOCOL.md says which scenes there are."""
    if name == "session":
        return exchange(10.0)[0]["alice"], 10.0
    options = {"legacy_peers": False} if name == "no legacy peers" else {}
    alice = End("alice", ALICE, **options)
    if name == "supplied":
        alice.at(0.0, lambda node, now: node.add_peer(BOB, now, identity("bob").sign))
    if name == "base":
        alice.at(0.0, arrive(clear(base_members(identity("carol"), CAROL[1])), CAROL))
        hello = seal_base(
            identity("carol"), identity("alice").base_enc, WALL + 1, payload(b"hi"), b"first message 16"
        )
        alice.at(1.0, arrive(hello, CAROL))
        assert alice.node.counters["received"] == 1
    return alice, 10.0


SCENES = ("alone", "no legacy peers", "supplied", "session", "base")

Refusal = Tuple[str, str, str, Address, List[bytes]]
"""scene, what it is, reason, source, datagrams of which the last is refused."""


def refusals() -> Iterator[Refusal]:
    yield from refused_in_clear()
    yield from refused_hellos()
    yield from refused_base_announcements()
    yield from refused_in_session()
    yield from refused_in_base_mode()


def refused_in_clear() -> Iterator[Refusal]:
    cases = [
        ("shorter than any sealed datagram", "bad_length", b"\x84" + bytes(66)),
        ("sealed with a tag that nobody has", "unknown_tag", b"\x00" * 600),
        ("not msgpack", "bad_body", b"\x84\xa1v" + b"\xc1" * 600),
        ("a duplicate member", "bad_body", b"\x83\xa1v\x02\xa1v\x02\xa1g\xc5\x02\x00" + bytes(512)),
        ("the version is a text", "bad_body", body_of(512, v="2", c=b"{}")),
        ("another version", "other_version", body_of(512, v=3, c=b"{}")),
        ("payload and control", "mixed_body", body_of(512, p=packet.store_frame(b"x"), c=b"{}")),
        ("user data in clear", "clear_data", payload(b"secret", 512)),
        ("user data in clear, v1", "clear_data", clear_v1(b'{"data":"secret"}')),
        (
            "a truncated frame, v1",
            "bad_frame",
            msgpack.packb([packet.store_frame(b"secret")[:-1], bytes(200)]),
        ),
        ("control is not JSON", "bad_control", body_of(512, c=b"{" * 9)),
        ("nested JSON", "bad_control", body_of(512, c=b'{"a":' + b"[" * 50 + b"]" * 50 + b"}")),
        ("a duplicate JSON member", "bad_control", body_of(512, c=b'{"port":1,"port":2}')),
        ("NaN in JSON", "bad_control", body_of(512, c=b'{"port":NaN}')),
        ("no announcement", "bad_announcement", body_of(512, c=b"{}")),
        ("a hello without its proof", "bad_announcement", clear({"hello": b64(bytes(198))})),
        ("junk Base64", "bad_announcement", clear({"hello": "AA*A", "proof": "AAAA"})),
        ("a port out of range", "bad_announcement", clear({**base_members(identity("carol"), 7), "port": 0})),
    ]
    for what, reason, datagram in cases:
        yield "alone", what, reason, MALLORY, [datagram]


def refused_hellos() -> Iterator[Refusal]:
    alice, time = scene("alone")
    mallory, bob, me = identity("mallory"), identity("bob"), identity("alice")
    echo = alice.nonce_for(MALLORY, time)

    def hello(end: Identity = mallory, size: int = 512, echo: bytes = echo, **fields: Any) -> bytes:
        fields.setdefault("to_sign", me.sign)
        return clear(hello_members(end, hello_blob(end, echo, **fields)), size)

    altered = hello_members(mallory, hello_blob(mallory, echo, to_sign=me.sign))
    altered["hello"] = b64(hello_blob(mallory, echo, epoch=1, to_sign=me.sign))
    cases = [
        ("no echo", "hello_without_echo", hello(echo=bytes(16))),
        ("the echo of another address", "hello_without_echo", hello(echo=alice.nonce_for(BOB, time))),
        ("an echo two slots old", "hello_without_echo", hello(echo=alice.nonce_for(MALLORY, time, 2))),
        ("a hello shorter than its answer", "bad_length", hello(size=511)),
        ("another label", "bad_announcement", hello(label=b"py-vault-udp/3 hello\0\0\0\0")),
        ("a low-order session key", "bad_announcement", hello(enc=bytes(32))),
        ("addressed to another identity", "misaddressed", hello(to_sign=bob.sign)),
        ("an answer to what we did not ask", "unasked_answer", hello(to_sign=bytes(32))),
        ("altered after signing", "bad_proof", clear(altered)),
        ("another's identity", "bad_proof", hello(sign=bob.sign)),
        ("our own identity", "own_datagram", hello(me)),
    ]
    for what, reason, datagram in cases:
        yield "alone", what, reason, MALLORY, [datagram]
    to_bob = alice.nonce_for(BOB, time)
    yield "supplied", "not the supplied identity", "identity_refused", BOB, [hello(echo=to_bob)]
    yield "session", "not the live identity", "identity_refused", BOB, [hello(echo=session_nonce())]


def session_nonce() -> bytes:
    alice, time = scene("session")
    return alice.nonce_for(BOB, time)


def refused_base_announcements() -> Iterator[Refusal]:
    carol, bob, mallory = identity("carol"), identity("bob"), identity("mallory")
    members = base_members(carol, CAROL[1])
    others = base_members(mallory, CAROL[1])
    yield "no legacy peers", "base mode is off", "base_refused", CAROL, [clear(members)]
    text = (b64(bytes(32)) + b64(carol.sign)).encode()
    low = {"enc_key": b64(bytes(32)), "signature": b64(nacl.signing.SigningKey(carol.seed).sign(text))}
    cases = [
        ("another's signature", "bad_signature", {"signature": others["signature"]}),
        ("another key than the signed one", "bad_signature", {"enc_key": others["enc_key"]}),
        ("a low-order key", "bad_announcement", low),
        ("our own identity", "own_datagram", base_members(identity("alice"), CAROL[1])),
    ]
    for what, reason, change in cases:
        yield "alone", what, reason, CAROL, [clear({**members, **change})]
    bobs = clear(base_members(bob, BOB[1]))
    yield "supplied", "base mode for a supplied identity", "downgrade_refused", BOB, [bobs]
    yield "session", "base mode for a session identity", "downgrade_refused", BOB, [bobs]
    # From another port: what comes from the port that it has shown is taken for sealed.
    elsewhere = (CAROL[0], 40000)
    new_key = Identity(carol.seed, carol.session, secret("carol base 1"))
    changed = clear(base_members(new_key, CAROL[1]))
    yield "base", "another key while the peer is live", "live_key_kept", elsewhere, [changed]
    stolen = Identity(mallory.seed, mallory.session, carol.base)
    claim = clear(base_members(stolen, MALLORY[1]))
    yield "base", "a key that is another's", "key_of_another", MALLORY, [claim]
    yield "base", "an identity seen in v2", "downgrade_refused", elsewhere, [clear_v1(json_bytes(members))]
    yield "base", "another identity while the peer is live", "identity_refused", elsewhere, [clear(others)]


def refused_in_session() -> Iterator[Refusal]:
    bob, alice, mallory = identity("bob"), identity("alice"), identity("mallory")
    keys = pair_keys(bob.session, alice.enc, bob.sign, alice.sign)
    stamp = WALL + 10.0

    def sealed(body: bytes, counter: int = 1000, stamp: float = stamp, inner: bytes | None = None) -> bytes:
        return seal(keys, counter, stamp, body, inner)

    def control(members: dict[str, Any]) -> bytes:
        return sealed(body_of(BODY_SIZE, c=json_bytes(members)))

    def rekey(end: Identity, **fields: Any) -> dict[str, Any]:
        blob = hello_blob(end, bytes(16), **{"epoch": 1, "to_sign": alice.sign, **fields})
        return {"type": "rekey", **hello_members(end, blob)}

    good = sealed(payload(b"once"))
    unsigned = {**rekey(bob, enc=mallory.enc), "proof": rekey(bob, epoch=2)["proof"]}
    many = body_of(BODY_SIZE, m=[b"x"] * 257)
    v1 = msgpack.packb([packet.store_frame(b"x"), bytes(1000)])
    cases = [
        ("altered", "forged", good[:-1] + bytes([good[-1] ^ 1])),
        ("the inner nonce is not the outer one", "forged", sealed(payload(b"x"), inner=b"another nonce 16")),
        ("too old", "outside_window", sealed(payload(b"x"), stamp=stamp - 61)),
        ("too new", "outside_window", sealed(payload(b"x"), stamp=stamp + 61)),
        ("the timestamp is no number", "outside_window", sealed(payload(b"x"), stamp=float("nan"))),
        (
            "a goodbye that is too old",
            "outside_window",
            sealed(body_of(99, c=b'{"type":"bye"}'), stamp=stamp - 61),
        ),
        ("a v1 body", "downgrade_refused", sealed(v1)),
        ("neither payload nor control", "bad_frame", sealed(body_of(BODY_SIZE))),
        ("257 messages", "bad_body", sealed(many)),
        ("payload and messages", "mixed_body", sealed(body_of(500, p=packet.store_frame(b"x"), m=[b"y"]))),
        ("a confirm that says nothing", "bad_control", control({"type": "confirm"})),
        (
            "a nonce of 15 bytes",
            "bad_control",
            control({"type": "confirm", "got": False, "nonce": b64(bytes(15))}),
        ),
        ("a rekey for somebody else", "bad_announcement", control(rekey(bob, to_sign=mallory.sign))),
        ("a rekey of another identity", "bad_announcement", control(rekey(mallory))),
        ("a rekey without hello", "bad_announcement", control({"type": "rekey"})),
        ("a rekey whose proof is of another", "bad_proof", control(unsigned)),
    ]
    for what, reason, datagram in cases:
        yield "session", what, reason, BOB, [datagram]
    yield "session", "the same datagram again", "replayed", BOB, [good, good]
    late, far = sealed(payload(b"x"), 1000), sealed(payload(b"x"), 1000 + 8192)
    yield "session", "behind the window", "replayed", BOB, [far, late]
    # Bob goes on to a new key; a hello with the old one comes late, or again.
    new_key = control(rekey(bob, enc=identity("carol").enc))
    old_hello = hello_blob(bob, session_nonce(), to_sign=alice.sign, holds=alice.enc)
    yield "session", "a key given up", "stale_hello", BOB, [new_key, clear(hello_members(bob, old_hello))]


def refused_in_base_mode() -> Iterator[Refusal]:
    carol, alice = identity("carol"), identity("alice")

    def sealed(body: bytes, stamp: float = WALL + 10.0, nonce: bytes = b"n" * 16) -> bytes:
        return seal_base(carol, alice.base_enc, stamp, body, nonce)

    prefix = hashlib.blake2b(
        b"message nonce prefix", digest_size=8, key=alice.base, person=b"py-vault-udp/2"
    ).digest()
    v1 = msgpack.packb([packet.store_frame(b"x"), bytes(1000)])
    good = sealed(payload(b"once"))
    cases = [
        ("altered", "unknown_tag", [good[:-1] + bytes([good[-1] ^ 1])]),
        ("the same datagram again", "replayed", [good, good]),
        ("too old", "outside_window", [sealed(payload(b"x"), WALL + 10 - 61)]),
        ("too new", "outside_window", [sealed(payload(b"x"), WALL + 10 + 61)]),
        ("stamped before our start", "replayed", [sealed(payload(b"x"), WALL - 1)]),
        ("sealed by ourselves", "own_datagram", [sealed(payload(b"x"), nonce=prefix + b"12345678")]),
        ("a v1 body of a v2 peer", "downgrade_refused", [sealed(v1)]),
        ("several messages", "mixed_body", [sealed(body_of(500, m=[b"x"]))]),
    ]
    for what, reason, datagrams in cases:
        yield "base", what, reason, CAROL, datagrams


def refusal_cases() -> list[Case]:
    return [
        {
            "scene": place,
            "what": what,
            "reason": reason,
            "source": list(source),
            "datagrams": [b64(datagram) for datagram in datagrams],
        }
        for place, what, reason, source, datagrams in refusals()
    ]


# ----------------------------------------------------------------------------------------------- formats


def frame_cases() -> list[Case]:
    good = [b"", b"Hello, World!", bytes(255), bytes(256), bytes(range(256)) * 5]
    cases: list[Case] = [
        {
            "what": f"{len(message)} bytes, stored",
            "frame": b64(packet.store_frame(message)),
            "message": b64(message),
        }
        for message in good
    ]
    compressed = base64.b64decode("KLUv/WAABE0AABBhYQEA+/wACw==")
    cases.append(
        {"what": "compressed", "frame": b64(compressed), "message": b64(b"a" * 1280), "read_only": True}
    )
    bomb = b"\x28\xb5\x2f\xfd\xa0" + (1 << 20 | 1).to_bytes(4, "little")
    bomb += b"".join((128 * 1024 << 3 | 2).to_bytes(3, "little") + b"x" for _ in range(8)) + b"\x0b\x00\x00x"
    frame = packet.store_frame(b"message")
    bad = [
        ("empty", "bad_frame", b""),
        ("another magic number", "bad_frame", b"PK\3\4" + frame[4:]),
        ("truncated", "bad_frame", frame[:-1]),
        ("something behind it", "bad_frame", frame + b"!"),
        ("two frames", "bad_frame", compressed + frame),
        ("over 1 MiB in a few bytes", "message_over_limit", bomb),
    ]
    return cases + [{"what": what, "frame": b64(data), "reason": reason} for what, reason, data in bad]


def body_cases() -> list[Case]:
    payloads = [b"", b"Hello, World!", bytes(1000)]
    cases: list[Case] = [
        {"kind": "payload", "messages": [b64(m)], "size": size, "body": b64(payload(m, size))}
        for m in payloads
        for size in (1100, BODY_SIZE)
    ]
    several = [b"one", b"", b"three"]
    coalesced = layouts.make_coalesced_body(several, 200)
    cases.append(
        {"kind": "coalesced", "messages": [b64(m) for m in several], "size": 200, "body": b64(coalesced)}
    )
    control = packet.make_control_body(b'{"type":"bye"}', 200)
    cases.append({"kind": "control", "control": '{"type":"bye"}', "size": 200, "body": b64(control)})
    v1 = packet.make_v1_body(packet.store_frame(b'{"data":"x"}'), 200)
    cases.append({"kind": "v1", "messages": [b64(b'{"data":"x"}')], "size": 200, "body": b64(v1)})
    bad = [
        ("empty", "bad_body", b""),
        ("a number", "bad_body", b"\x05"),
        ("an integer as key", "bad_body", msgpack.packb({1: 2})),
        ("no version", "bad_body", msgpack.packb({"p": b"x"})),
        ("True as version", "bad_body", msgpack.packb({"v": True})),
        ("something behind it", "bad_body", msgpack.packb({"v": 2}) + b"\x00"),
        ("a text as payload", "bad_body", msgpack.packb({"v": 2, "p": "x"})),
        ("a text among the messages", "bad_body", msgpack.packb({"v": 2, "m": ["x"]})),
        ("33 members", "bad_body", msgpack.packb({"v": 2, **{str(n): 0 for n in range(32)}})),
        ("an array of three", "bad_body", msgpack.packb([b"", b"", b""])),
        ("version 1 in a map", "other_version", msgpack.packb({"v": 1})),
        ("control and messages", "mixed_body", msgpack.packb({"v": 2, "c": b"{}", "m": [b"x"]})),
    ]
    return cases + [{"kind": what, "reason": reason, "body": b64(data)} for what, reason, data in bad]


def key_cases() -> list[Case]:
    cases = []
    for one, other in (("alice", "bob"), ("bob", "alice"), ("alice", "carol")):
        a, b = identity(one), identity(other)
        keys = pair_keys(a.session, b.enc, a.sign, b.sign)
        cases.append(
            {
                "sign_seed": b64(a.seed),
                "sign": b64(a.sign),
                "private": b64(a.session),
                "peer_sign": b64(b.sign),
                "peer_enc": b64(b.enc),
                **{name: b64(value) for name, value in keys.items()},
            }
        )
    return cases


FILES: dict[str, tuple[str, Callable[[], list[Case]]]] = {
    "frames": ("zstd frames of one message", frame_cases),
    "bodies": ("bodies, the plaintext of datagrams", body_cases),
    "keys": ("the keys and tags of a pair, derived from two identities and two session keys", key_cases),
    "exchange": ("a whole session: first contact, data, a rotation of each end, goodbye", exchange_cases),
    "refusals": ("datagrams that are refused, by scene, with the reason", refusal_cases),
}


def contents(name: str) -> str:
    """What belongs into the file `name`."""
    what, make = FILES[name]
    ends = {
        who: {key: b64(getattr(identity(who), key)) for key in ("seed", "session", "base")}
        for who in ("alice", "bob", "carol", "mallory")
    }
    document = {
        "provenance": f"{what}; made by tests/make_vectors.py, keys and clock fixed; see PROTOCOL.md",
        "monotonic": NOW,
        "unix_time": WALL,
        "ends": ends,
        "cases": make(),
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        text = contents(name)
        (FOLDER / f"{name}.json").write_bytes(text.encode())
        print(f"tests/vectors/{name}.json: {len(json.loads(text)['cases'])} cases")


if __name__ == "__main__":
    main()
