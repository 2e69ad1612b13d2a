# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: what becomes of messages that were accepted."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakenet import FakeNet, Host
from test_protocol import A, B

import vault_udp_delivery
from vault_udp_delivery import MAX_EARLY_BYTES, MAX_EARLY_MESSAGES, WARNING_INTERVAL, Delivery

NOBODY = ("192.0.2.1", 9)


class Slot:
    """What has been delivered here, with what it was told of its source."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, Any]] = []

    def __call__(self, data: Any, addr: Any) -> None:
        self.items.append((data, addr))

    @property
    def data(self) -> list[Any]:
        return [data for data, _ in self.items]


def in_session() -> tuple[Host, Host, Delivery]:
    """Alice, who has bob in a session, bob, and what delivers her messages."""
    net = FakeNet()
    alice, bob = net.node(A, B), net.node(B)
    net.run(2)
    return alice, bob, Delivery(alice.node, threading.RLock(), lambda: None)


def lost(host: Host, reason: str = "nobody_connected") -> int:
    return host.node.counters[reason]


@pytest.mark.parametrize("signal", ["texts", "everything"])
def test_the_first_slot_of_either_signal_gets_what_came_before_it(signal: str) -> None:
    _, _, delivery = in_session()
    slot = Slot()
    delivery.deliver_all([(B, [b"one", b"two"])])
    assert delivery.keeps_messages
    getattr(delivery, signal).connect(slot)
    delivery.deliver_all([(B, [b"three"])])
    assert [bytes(data, "ascii") if isinstance(data, str) else data for data in slot.data] == [
        b"one", b"two", b"three",
    ]  # fmt: skip
    assert not delivery.keeps_messages
    delivery.deliver_all([(B, [b"four"])])
    assert len(slot.items) == 4


def test_before_anything_has_come_nothing_is_kept() -> None:
    _, _, delivery = in_session()
    assert not delivery.keeps_messages
    delivery.deliver_all([])
    assert not delivery.keeps_messages


def test_what_came_from_one_identity_is_not_delivered_as_from_the_next() -> None:
    alice, bob, delivery = in_session()
    slot = Slot()
    assert alice.peer(B).identity == bob.sign_public
    delivery.deliver_all([(B, [b"of bob"]), (NOBODY, [b"of nobody"])])
    alice.node.table.set_identity(alice.peer(B), b"\1" * 32)
    delivery.deliver_all([(B, [b"of the next"])])
    delivery.everything.connect(slot)
    delivery.deliver_all([])
    assert slot.items == [(b"of nobody", NOBODY), (b"of the next", B)]
    assert lost(alice) == 1
    assert alice.peer(B).counters == {"nobody_connected": 1}


def test_what_came_from_who_has_left_since_is_delivered() -> None:
    alice, _, delivery = in_session()
    slot = Slot()
    delivery.deliver_all([(B, [b"early"])])
    alice.remove_peer(B)
    delivery.everything.connect(slot)
    delivery.deliver_all([])
    assert slot.items == [(b"early", B)]


@pytest.mark.parametrize("surplus", [0, 1, 7])
def test_so_many_messages_are_kept_the_oldest_go_first(surplus: int) -> None:
    alice, _, delivery = in_session()
    slot = Slot()
    messages = [b"%d" % number for number in range(MAX_EARLY_MESSAGES + surplus)]
    delivery.deliver_all([(B, messages)])
    assert lost(alice) == surplus
    delivery.everything.connect(slot)
    delivery.deliver_all([])
    assert slot.data == messages[surplus:]
    assert lost(alice) == surplus


@pytest.mark.parametrize(("more", "dropped"), [(0, 0), (1, 1), (1000, 1), (1001, 2), (2500, 2)])
def test_so_many_bytes_are_kept_the_oldest_go_first(more: int, dropped: int) -> None:
    alice, _, delivery = in_session()
    slot = Slot()
    messages = [b"a" * 1000, b"b" * 2000, b"c" * (MAX_EARLY_BYTES - 3000)]
    delivery.deliver_all([(B, messages)])
    assert lost(alice) == 0
    messages += [b"d" * more] if more else []
    delivery.deliver_all([(B, messages[3:])])
    assert lost(alice) == dropped
    delivery.everything.connect(slot)
    delivery.deliver_all([])
    assert slot.data == messages[dropped:]


def test_bytes_of_messages_that_are_too_many_anyway_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_delivery, "MAX_EARLY_MESSAGES", 2)
    alice, _, delivery = in_session()
    delivery.deliver_all([(B, [bytes(MAX_EARLY_BYTES), bytes(MAX_EARLY_BYTES - 1), b"x"])])
    assert lost(alice) == 1


def test_the_slots_for_bytes_come_first_and_those_for_texts_get_texts_only() -> None:
    alice, _, delivery = in_session()
    order: list[Any] = []
    delivery.texts.connect(lambda data, addr: order.append(data))
    delivery.everything.connect(lambda data, addr: order.append(data))
    delivery.deliver_all([])
    for messages in ([b"one"], [b"two", b"\xff", b"three"], [b"\xff"]):
        delivery.deliver_all([(B, messages)])
    assert order == [b"one", "one", b"two", b"\xff", b"three", "two", "three", b"\xff"]
    assert lost(alice, "not_text_and_no_bytes_slot") == 0


def test_messages_that_nobody_hears_any_more_are_all_counted() -> None:
    alice, _, delivery = in_session()
    slot = Slot()
    delivery.texts.connect(slot)
    delivery.deliver_all([])
    delivery.texts.disconnect(slot)
    delivery.deliver_all([(B, [b"1", b"2", b"3"]), (B, [b"4"])])
    assert lost(alice) == 4
    assert alice.peer(B).counters == {"nobody_connected": 4}


def test_what_is_no_text_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice, _, delivery = in_session()
    now = [0.0]
    monkeypatch.setattr(vault_udp_delivery, "time", SimpleNamespace(monotonic=lambda: now[0]))
    delivery.texts.connect(Slot())
    caplog.clear()
    told = []
    for now[0] in (5.0, 6.0, 5.0 + WARNING_INTERVAL, 6.0 + WARNING_INTERVAL):
        delivery.deliver_all([(B, [b"\xff"])])
        told.append(len(caplog.records))
    assert told == [1, 1, 2, 2]
    assert lost(alice, "not_text_and_no_bytes_slot") == 4


def test_no_bound_applies_once_a_slot_is_connected() -> None:
    alice, _, delivery = in_session()
    slot = Slot()
    delivery.everything.connect(slot)
    delivery.deliver_all([(B, [b"x"] * (MAX_EARLY_MESSAGES + 10))])
    assert len(slot.items) == MAX_EARLY_MESSAGES + 10
    assert lost(alice) == 0


class NotingLock:
    """A lock that knows whether it is held."""

    def __init__(self) -> None:
        self.held = False

    def __enter__(self) -> None:
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False


def test_the_node_is_only_touched_under_its_lock() -> None:
    lock, touched = NotingLock(), []

    class NotingNode:
        @property
        def table(self) -> Any:
            touched.append(("table", lock.held))
            return SimpleNamespace(by_name={})

        def count_undelivered(self, *_: object) -> None:
            touched.append(("count", lock.held))

    delivery, slot = Delivery(cast(Any, NotingNode()), cast(Any, lock), lambda: None), Slot()
    delivery.deliver_all([(B, [b"early"])])
    delivery.texts.connect(slot)
    delivery.deliver_all([(B, [b"\xff"])])
    delivery.texts.disconnect(slot)
    delivery.deliver_all([(B, [b"late"])])
    assert {what for what, _ in touched} == {"table", "count"}
    assert all(held for _, held in touched)


class Handler:
    def on_data(self, _: Any, __: Any) -> None:
        raise AssertionError("nobody keeps it")


@pytest.mark.parametrize("when", ["no texts", "no bytes", "it is gone by now", "disconnected", "too many"])
def test_messages_that_nobody_gets_are_warned_of_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    _, _, delivery = in_session()
    now = [0.0]
    monkeypatch.setattr(vault_udp_delivery, "time", SimpleNamespace(monotonic=lambda: now[0]))
    messages = [b"x"]
    if when.startswith("no "):
        (delivery.texts if when == "no texts" else delivery.everything).connect(Handler().on_data)
    elif when == "too many":
        messages *= MAX_EARLY_MESSAGES + 1
    else:
        slot = Slot()
        delivery.everything.connect(slot)
        delivery.deliver_all([(B, [b"first"])])
        delivery.everything.disconnect(slot)
        if when == "it is gone by now":
            delivery.texts.connect(Handler().on_data)
    caplog.clear()
    told = []
    for now[0] in (5.0, 6.0, 5.0 + WARNING_INTERVAL, 6.0 + WARNING_INTERVAL):
        delivery.deliver_all([(B, messages)])
        told.append(len(caplog.records))
    assert told == [1, 1, 2, 2]
    assert "keep the object" in caplog.text


def test_who_has_not_connected_yet_is_not_warned(caplog: pytest.LogCaptureFixture) -> None:
    _, _, delivery = in_session()
    caplog.clear()
    delivery.deliver_all([(B, [b"x"])])
    delivery.everything.connect(Slot())
    delivery.deliver_all([])
    assert not caplog.records


def test_no_message_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    _, _, delivery = in_session()
    delivery.texts.connect(Handler().on_data)
    caplog.clear()
    delivery.deliver_all([])
    assert not caplog.records
