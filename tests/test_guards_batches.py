# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: batches."""

from __future__ import annotations

import struct

import pytest
from fakenet import EPOCH
from test_protocol import B
from test_protocol_edges import rogue_and_host

import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_segments import Segments


def usual(count: int) -> list[bytes]:
    return [packet.make_payload_body(packet.store_frame(b"%d" % number), 1393) for number in range(count)]


@pytest.mark.parametrize("seconds", [-62, 62])
def test_what_is_stamped_outside_the_window_is_refused_in_a_run_too(seconds: float) -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    for age, received in ((0, 8), (seconds, 8)):
        sealed = [pair.seal([body], EPOCH + net.now + age)[0] for body in usual(8)]
        host.node.receive(Segments(b"".join(sealed), len(sealed[0])), B, host.now)
        assert host.node.counters["received"] == received
    assert host.node.counters["outside_window"] == 8


def test_a_nonce_with_another_counter_is_refused_in_a_run_too() -> None:
    net, host, rogue = rogue_and_host()
    pair = rogue.come_up(B)
    sealed = [pair.seal([body], EPOCH + net.now)[0] for body in usual(8)]
    host.node.receive(Segments(b"".join(sealed), len(sealed[0])), B, host.now)
    assert host.node.counters["received"] == 8
    random = crypto.random_bytes(8)
    (body,) = usual(1)
    alike = [
        crypto.seal(
            pair._seal_key,
            pair._seal_tag + random + struct.pack(">Q", counter + 100),
            random + struct.pack(">Qd", counter, EPOCH + net.now) + body,
        )
        for counter in (next(pair.counters) for _ in range(3))
    ]
    host.node.receive(Segments(b"".join(alike), len(alike[0])), B, host.now)
    assert host.node.counters["received"] == 8
    assert host.node.counters["forged"] == 3
