# SPDX-License-Identifier: Apache-2.0
"""Datagrams recorded from deployed peers open here, and what is sealed here opens as they would open it."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import nacl.public
import nacl.signing
import pytest
import pyzstd
from fakenet import flip_bit

import vault_udp_control as control_format
import vault_udp_packet as packet
from vault_udp_encryption import DecryptionError, ReplayAttackError, VaultAsymmetricEncryption
from vault_udp_node import Node

RECORDINGS = {
    name: json.loads((Path(__file__).parent / "interop" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("v1", "v2")
}
CASES = [(name, case["name"]) for name, recording in RECORDINGS.items() for case in recording["cases"]]
DATA_CASES = [case for case in CASES if case[1].startswith("data")]
HOST = "203.0.113.7"
SOURCE = (HOST, 49152)
"""Where their datagrams come from; they listen at another port."""


def case_of(version: str, name: str) -> dict[str, Any]:
    case: dict[str, Any] = next(case for case in RECORDINGS[version]["cases"] if case["name"] == name)
    return case


def datagram_of(version: str, name: str) -> bytes:
    return base64.b64decode(case_of(version, name)["datagram_b64"])


class Receiver:
    """The recipient of the recordings, with its clock `late` seconds behind the time of the recording."""

    def __init__(self, version: str, late: float = 0.0) -> None:
        self.recording = RECORDINGS[version]
        keys = self.recording["recipient"]
        # It has started a little earlier: with the application's keys, nothing older is accepted.
        self.wall = self.recording["clock"] - 100
        self.encryption = VaultAsymmetricEncryption(
            60, keys["enc_private"], keys["sign_private"], monotonic=lambda: 1000.0, wall=lambda: self.wall
        )
        self.wall = self.recording["clock"] + late
        self.peer = (HOST, self.recording["sender"]["recv_port"])
        self.node = Node(
            self.encryption,
            port=11001,
            body_size=RECORDINGS["v2"]["effective_mtu"],
            rate_limit=None,
            now=1000.0,
            wall=self.wall,
        )

    def supply_keys(self) -> None:
        sender = self.recording["sender"]
        self.encryption.update_peer_keys(self.peer, sender["enc_public"], sender["sign_public"])

    def receive(self, name: str) -> None:
        self.node.receive([datagram_of(self.recording["protocol"], name)], SOURCE, 1000.0)


def open_as_deployed(recording: dict[str, Any], datagram: bytes) -> tuple[float, Any]:
    """The recorded sender opens what its recipient has sealed: (timestamp, unpacked body)."""
    box = nacl.public.Box(
        nacl.public.PrivateKey(base64.b64decode(recording["sender"]["enc_private"])),
        nacl.public.PublicKey(base64.b64decode(recording["recipient"]["enc_public"])),
    )
    plain = box.decrypt(datagram)
    return struct.unpack(">d", plain[16:24])[0], msgpack.unpackb(plain[24:], raw=False)


def test_the_recordings_are_all_there() -> None:
    assert len(CASES) == 18
    assert {name for version, name in CASES if version == "v1"} == {name for _, name in CASES}
    for version, name in CASES:
        assert len(datagram_of(version, name)) == case_of(version, name)["length"]


@pytest.mark.parametrize(("version", "name"), DATA_CASES)
def test_recorded_data_opens_and_reads_as_the_user_wrote_it(version: str, name: str) -> None:
    receiver = Receiver(version)
    receiver.supply_keys()
    body = packet.read_body(receiver.encryption.decrypt(datagram_of(version, name), receiver.peer))
    content: Any = packet.read_frame(body.payload)
    if version == "v1":
        content = control_format.read_v1_text(content)
    assert f"v{body.version}" == version
    assert content.decode() == case_of(version, name)["expected"]


@pytest.mark.parametrize(("version", "name"), [case for case in CASES if case[1].startswith("announcement")])
def test_recorded_announcements_verify(version: str, name: str) -> None:
    receiver = Receiver(version)
    datagram = datagram_of(version, name)
    if name == "announcement_sealed":
        receiver.supply_keys()
        datagram = receiver.encryption.decrypt(datagram, receiver.peer)
    body = packet.read_body(datagram)
    members = (
        control_format.read_json(body.control)
        if version == "v2"
        else control_format.read_v1_text(packet.read_frame(body.payload))
    )
    assert isinstance(members, dict)
    announcement = control_format.read_announcement(members)
    expected = case_of(version, name)["expected"]
    enc, sign = receiver.encryption.verify_announcement(announcement)
    assert base64.b64encode(enc).decode() == expected["enc_key"]
    assert base64.b64encode(sign).decode() == expected["sign_key"]
    assert announcement.port == expected["port"]


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("late", [-50, 0, 50])
def test_a_node_takes_the_whole_recording(version: str, late: float) -> None:
    receiver = Receiver(version, late)
    names = [case["name"] for case in receiver.recording["cases"]]
    for name in names:
        receiver.receive(name)
    delivered = [(address, bytes(text)) for address, texts in receiver.node.deliveries for text in texts]
    expected = [case_of(version, name)["expected"] for name in names if name.startswith("data")]
    assert delivered == [(receiver.peer, text.encode()) for text in expected]
    # The clear announcement is answered in its version, to where its sender listens, with keys that verify.
    assert [address for address, _ in receiver.node.outgoing] == [receiver.peer]
    answer = msgpack.unpackb(receiver.node.outgoing[0][1])
    text = pyzstd.decompress(answer[0]) if version == "v1" else answer["c"]
    members = json.loads(text)
    signed = base64.b64decode(members["signature"])
    verified = nacl.signing.VerifyKey(base64.b64decode(members["sign_key"])).verify(signed)
    assert verified == (members["enc_key"] + members["sign_key"]).encode()
    assert members["enc_key"] == receiver.recording["recipient"]["enc_public"]
    assert members["port"] == 11001


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_recorded_datagrams_are_accepted_once(version: str) -> None:
    receiver = Receiver(version)
    for name in ("announcement_plaintext", "data_hello", "data_hello", "announcement_sealed", "data_hello"):
        receiver.receive(name)
    assert len(receiver.node.deliveries) == 1
    assert receiver.node.counters["replayed"] == 2


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("late", [-61, 61])
def test_recorded_datagrams_are_refused_outside_the_window(version: str, late: float) -> None:
    receiver = Receiver(version, late)
    receiver.supply_keys()
    with pytest.raises(ReplayAttackError, match="outside_window"):
        receiver.encryption.decrypt(datagram_of(version, "data_hello"), receiver.peer)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_no_altered_byte_of_a_sealed_datagram_is_accepted(version: str) -> None:
    receiver = Receiver(version)
    receiver.supply_keys()
    datagram = datagram_of(version, "data_hello")
    for index in range(len(datagram)):
        with pytest.raises(DecryptionError):
            receiver.encryption.decrypt(flip_bit(datagram, 8 * index + index % 8), receiver.peer)
    receiver.encryption.decrypt(datagram, receiver.peer)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_no_altered_byte_of_a_clear_announcement_brings_in_another_key(version: str) -> None:
    datagram = datagram_of(version, "announcement_plaintext")
    sender = RECORDINGS[version]["sender"]
    refused = 0
    for index in range(0, len(datagram), 3):
        receiver = Receiver(version)
        receiver.node.receive([flip_bit(datagram, 8 * index + index % 8)], SOURCE, 1000.0)
        for address in receiver.node.base.links:
            keys = receiver.encryption.peer_keys(address)
            assert keys is not None
            assert base64.b64encode(keys.enc).decode() == sender["enc_public"]
            assert base64.b64encode(keys.sign).decode() == sender["sign_public"]
        refused += not receiver.node.base.links
    assert refused > 100  # the rest of it is padding


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("text", ["", "Hello, World!", "Grüße aus 東京 🔒", "x" * 1300, "All work " * 500])
def test_what_we_seal_opens_as_deployed_peers_open_it(version: str, text: str) -> None:
    receiver = Receiver(version)
    receiver.receive("announcement_plaintext")
    message = text.encode()
    if len(message) > packet.message_room(1393):
        message = packet.compress_frame(message, packet.payload_room(1393))
    address, datagrams = receiver.node.seal_messages(
        receiver.node.table.by_name[receiver.peer], [message], 1001.0
    )
    assert address == receiver.peer
    assert len(datagrams) == 1
    assert len(datagrams[0]) == 1393 + 64
    stamp, body = open_as_deployed(receiver.recording, datagrams[0])
    clock = receiver.recording["clock"]
    assert clock - 60 < stamp < clock - 1  # early enough for a clock that is behind ours
    if version == "v2":
        assert body["v"] == 2
        assert body["c"] == b""
        assert pyzstd.decompress(body["p"]).decode() == text
    else:
        assert json.loads(pyzstd.decompress(body[0])) == {"data": text}
        assert len(body) == 2


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_sealed_announcement_reads_as_deployed_peers_read_it(version: str) -> None:
    receiver = Receiver(version)
    receiver.node.add_peer(receiver.peer, 1000.0)
    receiver.receive("announcement_plaintext")
    receiver.node.outgoing.clear()
    receiver.node.run_timers(1001.0)
    ((address, datagram),) = receiver.node.outgoing
    assert address == receiver.peer
    _, body = open_as_deployed(receiver.recording, datagram)
    members = json.loads(pyzstd.decompress(body[0]) if version == "v1" else body["c"])
    signed = base64.b64decode(members["signature"], validate=True)
    text = nacl.signing.VerifyKey(base64.b64decode(members["sign_key"])).verify(signed)
    assert text.decode() == members["enc_key"] + members["sign_key"]
    assert members["enc_key"] == receiver.recording["recipient"]["enc_public"]
    assert members["port"] == 11001


def test_message_nonces_and_box_nonces_never_repeat() -> None:
    receiver = Receiver("v2")
    receiver.supply_keys()
    sealed = [receiver.encryption.encrypt(b"", receiver.peer) for _ in range(1000)]
    assert len({datagram[:24] for datagram in sealed}) == 1000
    plains = {datagram[40:] for datagram in sealed}
    assert len(plains) == 1000
