# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: base mode."""

from __future__ import annotations

from base_net import OURS, THEIRS, VERSIONS, BaseHost
from fakenet import FakeNet


@VERSIONS
def test_a_base_announcement_from_where_somebody_is_known_is_refused(version: int) -> None:
    net = FakeNet(delay=0.01)
    us = net.node(OURS, known={THEIRS: b"\1" * 32})
    them = BaseHost(net, version)
    them.add_peer(OURS)
    net.run(1)
    assert us.node.base.links == {}
    assert us.node.counters["downgrade_refused"] >= 1
    assert us.mode(THEIRS) == "unknown"
