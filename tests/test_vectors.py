# SPDX-License-Identifier: Apache-2.0
"""The test vectors, and that PROTOCOL.md's tables say what the code does."""

from __future__ import annotations

import ast
import base64
import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import make_vectors
import pytest
from nacl.bindings import crypto_scalarmult_base

import vault_udp_layout as layouts
import vault_udp_packet as packet
from vault_udp_keys import Hello, LocalKeys, Pair, SessionKey

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "PROTOCOL.md").read_text(encoding="utf-8")
MODULES = (
    "control",
    "packet",
    "layout",
    "keys",
    "session",
    "channel",
    "path",
    "announce",
    "hosts",
    "node",
    "upkeep",
    "state",
    "peer",
    "base",
    "encryption",
    "replay",
)
MINIMUM = {"frames": 11, "bodies": 20, "keys": 3, "exchange": 20, "refusals": 60}


def vectors(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((make_vectors.FOLDER / f"{name}.json").read_bytes())["cases"]
    return cases


def of(case: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(case[name])


@pytest.mark.parametrize("name", make_vectors.FILES)
def test_the_files_are_what_the_code_makes(name: str) -> None:
    recorded = (make_vectors.FOLDER / f"{name}.json").read_bytes().decode()
    made = make_vectors.contents(name)
    # Not compared as a whole: pytest would need minutes to show how two such texts differ.
    for number, (old, new) in enumerate(zip(recorded.split("\n"), made.split("\n")), 1):
        assert old == new, f"{name}.json:{number}; if this is meant, run python tests/make_vectors.py"
    assert len(recorded) == len(made)


@pytest.mark.parametrize("name", make_vectors.FILES)
def test_no_file_is_empty_and_each_says_where_it_is_from(name: str) -> None:
    document = json.loads((make_vectors.FOLDER / f"{name}.json").read_bytes())
    assert len(document["cases"]) >= MINIMUM[name]
    assert "make_vectors.py" in document["provenance"]


def test_there_are_enough_vectors_of_each_kind() -> None:
    kinds = Counter(case["kind"] for case in vectors("exchange"))
    assert not Counter(announcement=4, confirm=8, rekey=2, data=3, bye=1) - kinds
    bodies = Counter(case["kind"] for case in vectors("bodies") if "reason" not in case)
    assert not Counter(payload=6, coalesced=1, control=1, v1=1) - bodies
    scenes = Counter(case["scene"] for case in vectors("refusals"))
    minimum = Counter({"alone": 25, "session": 15, "base": 10, "supplied": 2, "no legacy peers": 1})
    assert not minimum - scenes


def test_every_reason_that_a_datagram_can_provoke_has_a_vector() -> None:
    covered = {
        case["reason"]
        for name in ("refusals", "frames", "bodies")
        for case in vectors(name)
        if "reason" in case
    }
    # What needs a flood or two addresses, not a datagram, or what is about our own messages, has tests
    # elsewhere: test_protocol_edges.py, test_base_mode.py.
    floods = {"stranger_budget", "trial_budget", "too_many_sessions", "too_many_keys"}
    floods |= {"too_many_base_peers", "pair_of_another"}
    ours = {"no_key", "text_only_peer", "too_large_for_peer"}
    assert reasons() - floods - ours <= covered


def reasons(*functions: str) -> set[str]:
    """The reasons that the modules pass to `PacketError`, or to other functions, as a literal."""
    found: set[str] = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"vault_udp_{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in (functions or ("PacketError",)):
                    texts = [getattr(argument, "value", None) for argument in node.args]
                    found.update(text for text in texts if isinstance(text, str))
    return found


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("case", vectors("frames"), ids=lambda case: case["what"])
def test_frames(case: dict[str, Any]) -> None:
    frame = of(case, "frame")
    if "reason" in case:
        with pytest.raises(packet.PacketError, match=f"^{case['reason']}$"):
            packet.read_frame(frame)
        return
    assert packet.read_frame(frame) == of(case, "message")
    if not case.get("read_only"):
        assert packet.store_frame(of(case, "message")) == frame


@pytest.mark.parametrize("case", vectors("bodies"), ids=lambda case: case["kind"])
def test_bodies(case: dict[str, Any]) -> None:
    body = of(case, "body")
    if "reason" in case:
        with pytest.raises(packet.PacketError, match=f"^{case['reason']}$"):
            packet.read_body(body)
        return
    read = packet.read_body(body)
    assert len(body) == case["size"]
    assert read.version == (1 if case["kind"] == "v1" else 2)
    if case["kind"] == "control":
        assert read.control == case["control"].encode()
        assert packet.make_control_body(read.control, case["size"]) == body
        return
    messages = [base64.b64decode(message) for message in case["messages"]]
    assert list(read.messages or [packet.read_frame(read.payload)]) == messages
    if case["kind"] == "v1":
        assert packet.make_v1_body(packet.store_frame(messages[0]), case["size"]) == body
    else:
        assert list(layouts.make_bodies(messages, case["size"], coalesce=True)) == [body]


@pytest.mark.parametrize("case", vectors("keys"), ids=["alice-bob", "bob-alice", "alice-carol"])
def test_keys_of_a_pair(case: dict[str, Any]) -> None:
    local, key = LocalKeys(of(case, "sign_seed"), 0.0, 0.0), SessionKey(0)
    key.private = bytearray(of(case, "private"))
    key.public = crypto_scalarmult_base(of(case, "private"))
    pair = Pair(local, of(case, "peer_sign"), key, of(case, "peer_enc"))
    assert local.sign_public == of(case, "sign")
    (sealed,) = pair.seal([b"a body"], 12.5)
    assert sealed[:8] == of(case, "seal_tag")
    assert make_vectors.open_any(of(case, "seal_key"), sealed) == (12.5, b"a body")
    backward = {"seal_key": of(case, "open_key"), "seal_tag": of(case, "open_tag")}
    assert pair.open_tag == backward["seal_tag"]
    stamp, body = pair.open(make_vectors.seal(backward, 7, 12.5, b"a body" * 10))
    assert (stamp, bytes(body)) == (12.5, b"a body" * 10)


# -------------------------------------------------------------------------------------- the conversation


def test_the_exchange_delivers_what_was_sent() -> None:
    _, _, told = make_vectors.exchange()
    delivered = {
        name: [base64.b64decode(case["message"]) for case in told if case["at"] == name and "message" in case]
        for name in ("alice", "bob")
    }
    assert delivered["bob"] == [b"Hello, World!", b"one", b"two", b"", b"three", b"under the new keys"]
    assert delivered["alice"] == ["Grüße aus 東京".encode()]
    assert [case["event"] for case in told if case["at"] == "alice" and "event" in case][:2] == [
        "ready",
        "lost",
    ]


def test_every_sealed_datagram_of_the_exchange_has_one_length() -> None:
    sizes = {case["size"] for case in vectors("exchange") if "pair" in case}
    assert sizes == {make_vectors.BODY_SIZE + 64}
    assert {case["size"] for case in vectors("exchange") if "pair" not in case} == {512, 1024}


@pytest.mark.parametrize("case", vectors("refusals"), ids=lambda case: f"{case['scene']}: {case['what']}")
def test_refusals(case: dict[str, Any]) -> None:
    end, time = make_vectors.scene(case["scene"])
    node, source = end.node, (case["source"][0], case["source"][1])
    *before, refused = [base64.b64decode(datagram) for datagram in case["datagrams"]]
    for datagram in before:
        end.at(time, make_vectors.arrive(datagram, source))
    counters, peers, told = Counter(node.counters), len(node.table.all()), len(node.deliveries)
    answers = end.at(time, make_vectors.arrive(refused, source))
    changed = Counter(node.counters) - counters
    assert changed == {"datagrams_received": 1, case["reason"]: 1}
    assert len(node.table.all()) == peers
    assert len(node.deliveries) == told
    if case["scene"] == "alone":
        assert sum(len(datagram) for _, datagram in answers) <= len(refused)


# ------------------------------------------------------------------------------------------ PROTOCOL.md


def test_the_limits_table_has_every_constant_with_its_value() -> None:
    written = dict(re.findall(r"^\| `(\w+\.[A-Z0-9_]+)` \| ([^|]+?) \|", PAGE, re.M))
    defined = {}
    for short in (*MODULES, "rate_limit"):
        module = importlib.import_module(f"vault_udp_{short}")
        names = re.findall(
            r"^([A-Z][A-Z0-9_]*) = ", Path(str(module.__file__)).read_text(encoding="utf-8"), re.M
        )
        for name in names:
            value = getattr(module, name)
            if isinstance(value, (int, float, tuple)) and value != float("inf"):
                defined[f"{short}.{name}"] = value
    assert {
        name: ast.literal_eval(value.replace(",", "_") if value[0] != "(" else value)
        for name, value in written.items()
    } == defined


def test_the_table_of_the_hello_blob_has_the_offsets_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", PAGE, re.M)
    assert [int(offset) for offset, _, _ in rows] == [
        sum(int(size) for _, size, _ in rows[:n]) for n in range(len(rows))
    ]
    a, b, c, d = (bytes([n]) * 32 for n in range(1, 5))
    hello = Hello(0x0102, 0x03040506, 0x0708090A / 1000, a, b, c, d, b"n" * 16, b"e" * 16)
    blob = hello.pack()
    assert sum(int(size) for _, size, _ in rows) == len(blob)
    fields = {name: blob[int(offset) : int(offset) + int(size)] for offset, size, name in rows}
    assert fields.pop("label") == b"py-vault-udp/2 hello\0\0\0\0"
    integers = {"flags": 0x0102, "epoch": 0x03040506, "time": 0x0708090A}
    for name, value in integers.items():
        assert int.from_bytes(fields.pop(name), "big") == value
    assert fields == {name: getattr(hello, name) for name in fields}
    assert set(fields) == set(Hello._fields) - set(integers)


def test_every_reason_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## 9.")[2], re.M))
    assert reasons("PacketError", "count_drop", "count_loss", "drop_waiting") <= explained
