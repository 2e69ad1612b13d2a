# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: the ways of the two threads, in one."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any, Callable, Sequence, cast

import pytest

import vault_udp_carrier
from vault_udp_address import Address
from vault_udp_carrier import (
    LANE_SIZE,
    LEAST_AT_EXIT,
    OLD_PORT_KEPT,
    SEND_TIMEOUT,
    SMALL_LANE_SIZE,
    SMALL_MESSAGE,
    Carrier,
)
from vault_udp_datagram import SocketClosed
from vault_udp_errors import StoppedError
from vault_udp_packet import CompressedFrame
from vault_udp_path import NEVER
from vault_udp_state import Event

NOW = 1000.0
SOON = NOW + 1
B, C = ("10.0.0.2", 1002), ("10.0.0.3", 1003)
READY = Event("ready", B)


class FakeNode:
    """What the carrier asks of a node; peers are ready as their flags say, messages are not sealed."""

    def __init__(self) -> None:
        self.outgoing: list[Any] = []
        self.events: list[Any] = []
        self.flushable: list[Any] = []
        self.deliveries: list[Any] = []
        self.between: list[Any] = []
        self.lookups: list[Any] = []
        self.local: Any = SimpleNamespace()
        self.table = SimpleNamespace(by_name={B: None}, added={})
        self.unpacked = 0
        self.wakes_at = NEVER
        self.decided: list[int] = []
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.calls.append((name, args))

    def deadline(self) -> float:
        return self.wakes_at

    def is_ready(self, peer: Any, now: float) -> bool:
        return bool(peer.ready)

    def awaits_keys(self, now: float) -> bool:
        return False

    def queue(self, peer: Any, message: bytes, now: float) -> None:
        peer.queue.append((now, message))

    def take_queue(self, peer: Any) -> list[bytes]:
        messages = [message for _, message in peer.queue]
        peer.queue.clear()
        return messages

    def take_flushable(self) -> list[Any]:
        taken, self.flushable = self.flushable, []
        return taken

    def seal_messages(self, peer: Any, messages: Sequence[bytes], now: float) -> tuple[Address, list[bytes]]:
        return peer.name, list(messages)

    def receive(self, datagrams: Sequence[bytes], source: Address, now: float, unpacked: int) -> int:
        self.calls.append(("receive", list(datagrams), source, unpacked))
        self.unpacked += 10
        return self.decided.pop(0) if self.decided else len(datagrams)

    def named(self, name: str) -> list[Any]:
        return [call for call in self.calls if call[0] == name]


class FakeDatagrams:
    """What the carrier asks of a socket; a receive that is not scripted finds it closed."""

    reachable_family = 0
    awaits_answer = False

    def __init__(self, *received: Any, port: int = 1) -> None:
        self.port = port
        self.on_too_long: Any = None
        self.on_refused: Any = None
        self.received = list(received)
        self.sent: list[tuple[Address, list[bytes]]] = []
        self.calls: list[str] = []
        self.until: list[float] = []
        self.on_send: Callable[[], object] = lambda: None
        self.on_closed: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.calls.append(name)

    def send(self, datagrams: Sequence[bytes], address: Address) -> int:
        self.sent.append((address, list(datagrams)))
        self.on_send()
        return len(datagrams)

    def receive(self, until: float) -> Any:
        self.until.append(until)
        if not self.received:
            self.on_closed()
            raise SocketClosed
        return self.received.pop(0)


class FakeCondition:
    """A condition that notes who is notified, and calls instead of waiting."""

    def __init__(self, *on_wait: Callable[[], object]) -> None:
        self.on_wait = list(on_wait)
        self.timeouts: list[float | None] = []
        self.notified = 0

    def wait(self, timeout: float | None = None) -> None:
        assert self.on_wait, "it waits, and nobody would ever end that"
        self.timeouts.append(timeout)
        self.on_wait.pop(0)()

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> None:
        assert condition()

    def notify_all(self) -> None:
        self.notified += 1


class Threadless(Carrier):
    """A carrier whose threads are not started, so that a test goes their ways itself."""

    def __init__(self, *received: Any) -> None:
        self.node, self.datagrams = FakeNode(), FakeDatagrams(*received)
        self.work, self.room, self.ready = FakeCondition(), FakeCondition(), FakeCondition()
        self.stopped_keys: list[str] = []
        encryption = SimpleNamespace(lock=threading.RLock(), stop=lambda: self.stopped_keys.append("stop"))
        super().__init__(cast(Any, encryption), cast(Any, self.datagrams), cast(Any, self.node))
        self._work, self._room, self._ready = (cast(Any, each) for each in (self.work, self.room, self.ready))
        self._sleeps_until = NEVER
        self.told: list[Any] = []
        self._delivery = cast(Any, SimpleNamespace(deliver_all=self.told.extend, keeps_messages=False))

    def _tell(self, event: Event) -> None:
        self.told.append(event)

    def submit(self, peer: Any, message: bytes) -> list[bytes]:
        """What leaves in the caller's thread."""
        direct: list[tuple[Address, Sequence[bytes]]] = []
        with self._lock:
            self._submit_locked(peer, message, NOW, direct)
        return [datagram for _, datagrams in direct for datagram in datagrams]


def new_peer(*lane: bytes, ready: bool = True, laned: bool = False, name: Address = B) -> Any:
    session = SimpleNamespace(coalesce=True)
    return SimpleNamespace(lane=list(lane), queue=[], laned=laned, ready=ready, name=name, session=session)


@pytest.fixture(autouse=True)
def at_one_moment(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(monotonic=lambda: NOW)
    monkeypatch.setattr(vault_udp_carrier, "time", clock)
    return clock


# ------------------------------------------------------------------------------------------------ the way out


def test_what_is_appended_while_the_lane_is_taken_stays_in_it() -> None:
    carrier = Threadless()

    class Lane(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            taken = super().__getitem__(index)
            if isinstance(index, slice):
                self.append(b"late")  # by a caller, who has no lock
            return taken

    peer = new_peer()
    peer.lane = Lane([b"early"])
    carrier._lane_locked(peer)
    assert carrier._take_batches_locked(NOW) == [(B, [b"early"])]
    assert list(peer.lane) == [b"late"]


def test_behind_what_is_on_its_way_to_the_send_thread_a_message_does_not_wait_in_the_queue() -> None:
    carrier, peer = Threadless(), new_peer(b"1", ready=False, laned=True)
    assert carrier.submit(peer, b"2") == []
    assert peer.lane == [b"1", b"2"]
    assert peer.queue == []


def test_nothing_is_sealed_for_who_is_not_ready() -> None:
    carrier, peer = Threadless(), new_peer(b"1", ready=False)
    assert carrier.submit(peer, b"2") == []
    assert peer.lane == [b"1", b"2"]


def test_while_the_send_thread_sends_nothing_overtakes_it() -> None:
    carrier, peer = Threadless(), new_peer()
    carrier._sending = True
    assert carrier.submit(peer, b"2") == []
    assert peer.lane == [b"2"]


def test_nothing_overtakes_what_has_waited_for_keys() -> None:
    carrier, peer = Threadless(), new_peer()
    peer.queue.append((NOW, b"1"))
    assert carrier.submit(peer, b"2") == []
    assert carrier._take_batches_locked(NOW) == [(B, [b"1", b"2"])]


def test_nothing_overtakes_what_is_in_the_lane() -> None:
    carrier, peer = Threadless(), new_peer(b"1", laned=True)
    assert carrier.submit(peer, b"2") == []
    assert peer.lane == [b"1", b"2"]


def test_in_a_full_lane_a_message_waits_until_there_is_room() -> None:
    carrier, peer = Threadless(), new_peer(b"1", b"2", laned=True)
    carrier._lane_size = 2
    carrier.room.on_wait = [lambda: None, lambda: peer.lane.clear()]
    carrier.submit(peer, b"3")
    assert peer.lane == [b"3"]
    assert carrier.room.on_wait == []


def test_who_waits_for_room_is_told_of_the_end() -> None:
    carrier, peer = Threadless(), new_peer(b"1", laned=True)
    carrier._lane_size = 1

    def stop() -> None:
        carrier._stopped = True
        peer.lane.clear()

    carrier.room.on_wait = [stop]
    with pytest.raises(StoppedError):
        carrier.submit(peer, b"2")
    assert peer.lane == []


def test_what_is_sealed_for_the_one_leaves_though_there_is_no_room_for_the_other() -> None:
    carrier, full = Threadless(), new_peer(b"1", laned=True, name=C)
    carrier._lane_size = 1

    def stop() -> None:
        carrier._stopped = True

    carrier.room.on_wait = [stop]
    with pytest.raises(StoppedError):
        carrier._send((new_peer(), full), b"2")
    assert carrier.datagrams.sent == [(B, [b"2"])]


def test_the_end_of_a_burst_is_noticed() -> None:
    carrier, peer = Threadless(), new_peer()
    carrier._quick, carrier._last_direct = vault_udp_carrier.BURST_LENGTH, NOW - 1
    carrier._send((peer,), b"1")
    assert carrier.datagrams.sent == [(B, [b"1"])]
    assert carrier._last_direct == NOW


def test_the_send_thread_learns_of_an_answer_that_is_due_sooner_than_it_looks() -> None:
    carrier = Threadless()
    carrier.node.wakes_at = SOON
    assert carrier.submit(new_peer(), b"1") == [b"1"]
    assert carrier.work.notified == 1


def test_a_peer_is_in_the_lanes_once() -> None:
    carrier, peer = Threadless(), new_peer(b"1")
    carrier._lane_locked(peer)
    carrier._lane_locked(peer)
    assert list(carrier._laned) == [peer]
    assert carrier.work.notified == 1


@pytest.mark.parametrize(
    ("first", "coalesce", "size"),
    [
        (bytes(SMALL_MESSAGE), True, SMALL_LANE_SIZE),
        (bytes(SMALL_MESSAGE + 1), True, LANE_SIZE),
        (b"", True, SMALL_LANE_SIZE),
        (b"x", False, LANE_SIZE),
        (CompressedFrame(b"x"), True, LANE_SIZE),
    ],
)
def test_more_messages_wait_if_they_share_datagrams(first: bytes, coalesce: bool, size: int) -> None:
    carrier, peer = Threadless(), new_peer(first)
    peer.session.coalesce = coalesce
    carrier._lane_locked(peer)
    assert carrier._lane_size == size


def test_many_peers_share_the_room_and_each_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_carrier, "LANES_SIZE", 7)
    carrier, sizes = Threadless(), []
    for _ in range(8):
        carrier._lane_locked(new_peer(b"1"))
        sizes.append(carrier._lane_size)
    assert sizes == [7, 3, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("left", ["outgoing", "events", "flushable"])
def test_whatever_the_node_has_left_wakes_the_send_thread_and_keeps_it_awake(left: str) -> None:
    carrier = Threadless()
    carrier._wake_sender_locked()
    assert carrier.work.notified == 0
    getattr(carrier.node, left).append(None)
    carrier._wake_sender_locked()
    assert carrier.work.notified == 1
    carrier._await_work_locked()
    assert carrier.work.timeouts == []
    assert carrier._sleeps_until == 0


@pytest.mark.parametrize(("known", "notified"), [(NOW, 0), (SOON, 0), (SOON + 1, 1), (0.0, 0)])
def test_a_deadline_sooner_than_it_knows_wakes_the_send_thread(known: float, notified: int) -> None:
    carrier = Threadless()
    carrier.node.wakes_at, carrier._sleeps_until = SOON, known
    carrier._wake_sender_locked()
    assert carrier.work.notified == notified


def test_the_send_thread_sleeps_until_the_deadline_and_tells_so() -> None:
    carrier, told = Threadless(), []
    carrier.node.wakes_at = SOON

    def sleep() -> None:
        told.append(carrier._sleeps_until)
        carrier.node.wakes_at = NOW

    carrier.work.on_wait = [sleep]
    carrier._await_work_locked()
    assert carrier.work.timeouts == [SOON - NOW]
    assert told == [SOON]
    assert carrier._sleeps_until == 0


def test_a_message_that_is_put_off_is_as_old_as_it_was() -> None:
    carrier, peer = Threadless(), new_peer(b"2", ready=False)
    peer.queue.append((NOW - 5, b"1"))
    carrier._lane_locked(peer)
    assert carrier._take_batches_locked(NOW) == []
    assert peer.queue == [(NOW - 5, b"1"), (NOW, b"2")]


def test_a_peer_with_no_message_has_no_batch_and_makes_room() -> None:
    carrier = Threadless()
    carrier._lane_locked(new_peer())
    assert carrier._take_batches_locked(NOW) == []
    assert carrier.room.notified == 1


def test_of_large_messages_some_are_taken_and_the_rest_remains_in_line() -> None:
    carrier, peer = Threadless(), new_peer(*[bytes(vault_udp_carrier.BYTES_PER_ROUND)] * 65)
    carrier._lane_locked(peer)
    ((_, sealed),) = carrier._take_batches_locked(NOW)
    assert (len(sealed), len(peer.lane), list(carrier._laned)) == (64, 1, [peer])
    assert carrier.room.notified == 0


def test_who_waits_while_keys_come_is_let_go() -> None:
    carrier, peer = Threadless(), new_peer()
    peer.queue.append((NOW, b"1"))
    carrier.node.flushable.append(peer)
    assert carrier._take_batches_locked(NOW) == [(B, [b"1"])]


def test_while_it_sends_the_send_thread_tells_so_and_no_longer() -> None:
    carrier, told = Threadless(), []
    carrier._lane_locked(new_peer(b"1"))
    carrier.datagrams.on_send = lambda: told.append(carrier._sending)

    def stop() -> None:
        told.append(carrier._sending)
        carrier._stopped = True

    carrier.work.on_wait = [stop]
    carrier._send_loop()
    assert told == [True, False]


def test_the_goodbyes_come_behind_the_last_message() -> None:
    carrier = Threadless()
    carrier._lane_locked(new_peer(b"1"))
    carrier.datagrams.on_send = lambda: carrier.node.calls.append("sent")
    carrier._stopped = True
    carrier._send_loop()
    assert [call for call in carrier.node.calls if call[0] != "run_timers"] == ["sent", ("close", (NOW,))]


def test_an_event_in_the_send_thread_wakes_the_one_that_tells_it() -> None:
    carrier = Threadless()
    carrier.node.events.append(READY)
    carrier._stopped = True
    carrier._send_loop()
    assert carrier.datagrams.calls == ["wake"]
    assert list(carrier._for_callbacks) == [READY]
    assert carrier.ready.notified == 1


def test_a_batch_leaves_by_the_port_that_was_ours_when_it_was_sealed() -> None:
    carrier, new = Threadless(), FakeDatagrams()

    def change_port() -> None:
        carrier._datagrams = cast(Any, new)

    for name in (B, C):
        carrier._lane_locked(new_peer(b"1", name=name))
    carrier.datagrams.on_send = change_port
    carrier._stopped = True
    carrier._send_loop()
    assert carrier.datagrams.sent == [(B, [b"1"]), (C, [b"1"])]


def test_what_was_too_long_is_left_to_the_send_thread() -> None:
    carrier = Threadless()
    carrier.node.outgoing.append((B, b"again"))
    carrier._too_long(B, b"x")
    assert carrier.work.notified == 1


# ------------------------------------------------------------------------------------------------- the way in


@pytest.mark.parametrize(("looks_at", "leave_at"), [(SOON, SOON + 1), (SOON + 1, SOON), (NEVER, SOON)])
def test_the_receive_thread_waits_until_the_first_of_its_deadlines(looks_at: float, leave_at: float) -> None:
    carrier = Threadless()
    carrier._receiver_looks_at, carrier._leave_old_port_at = looks_at, leave_at
    carrier._receive_loop()
    assert carrier.datagrams.until == [SOON]


def test_the_old_port_is_left_when_its_time_has_come_once() -> None:
    carrier = Threadless([], [], [])
    carrier._leave_old_port_at = NOW
    carrier._receive_loop()
    assert carrier.datagrams.until == [NOW, NEVER, NEVER, NEVER]
    assert carrier.datagrams.calls == ["leave_previous", "leave_previous"]


def test_a_port_that_was_changed_again_is_kept() -> None:
    carrier = Threadless([])
    carrier._leave_old_port_at = SOON
    carrier._receive_loop()
    assert carrier.datagrams.calls == ["leave_previous"]
    assert carrier._leave_old_port_at == SOON


def test_a_port_that_nobody_has_left_at_the_end_is_freed() -> None:
    carrier, former = Threadless(), FakeDatagrams()
    carrier.datagrams.on_closed = lambda: carrier._replaced.append(cast(Any, former))
    carrier._receive_loop()
    assert former.calls == ["close"]
    assert carrier.datagrams.calls == ["leave_previous"]


def test_what_is_left_is_taken_in_until_nothing_is() -> None:
    carrier = Threadless([([b"1", b"2", b"3"], B), ([b"4"], C)])
    carrier.node.decided = [1, 1, 1]
    carrier._receive_loop()
    assert [(datagrams, source) for _, datagrams, source, _ in carrier.node.named("receive")] == [
        ([b"1", b"2", b"3"], B),
        ([b"2", b"3"], B),
        ([b"3"], B),
        ([b"4"], C),
    ]


def test_what_was_unpacked_of_one_batch_counts_for_the_next() -> None:
    carrier = Threadless([([b"1"], B), ([b"2"], C)])
    carrier._receive_loop()
    assert [call[3] for call in carrier.node.named("receive")] == [0, 10]


@pytest.mark.parametrize("why", ["deliveries", "events", "kept", "outgoing", "flushable", "nothing"])
def test_who_has_no_time_leaves_the_deadline_to_the_send_thread(why: str) -> None:
    carrier = Threadless()
    carrier.node.wakes_at = SOON
    carrier._receiver_looks_at = SOON
    if why == "kept":
        carrier._delivery.keeps_messages = True  # type: ignore[misc]
    elif why != "nothing":
        getattr(carrier.node, why).extend([(B, b"1"), (B, b"2")])
    carrier._take_in(())
    assert carrier.work.notified == (why != "nothing")
    assert carrier._receiver_looks_at == (SOON if why == "nothing" else NEVER)


@pytest.mark.parametrize("known", [NOW, SOON])
def test_the_receive_thread_does_not_look_when_the_send_thread_does(known: float) -> None:
    carrier = Threadless()
    carrier.node.wakes_at, carrier._sleeps_until, carrier._receiver_looks_at = SOON, known, SOON
    carrier._take_in(())
    assert carrier._receiver_looks_at == NEVER
    assert carrier.work.notified == 0


def test_events_come_before_messages_or_where_they_belong_between_them() -> None:
    carrier = Threadless()
    carrier.node.events += [READY, "more"]
    carrier.node.deliveries += ["1", "2", "3"]
    carrier.node.between += [(1, "behind 1"), (1, "next"), (3, "behind 3")]
    carrier._take_in(())
    assert carrier.told == [READY, "more", "1", "behind 1", "next", "2", "3", "behind 3"]


def test_who_waits_for_a_peer_learns_of_an_event_between_messages() -> None:
    carrier = Threadless()
    carrier.node.deliveries.append("1")
    carrier.node.between.append((1, READY))
    carrier._take_in(())
    assert carrier.ready.notified == 1


def test_what_is_said_under_the_lock_is_logged_by_the_receive_thread_at_its_end_at_the_latest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    carrier = Threadless()
    carrier.node.local.log(logging.DEBUG, "nobody wants to know")
    assert carrier.datagrams.calls == []
    carrier.node.local.log(logging.WARNING, "%s is gone", "somebody")
    carrier._for_callbacks.append(READY)
    assert caplog.messages == []
    assert carrier.datagrams.calls == ["wake"]
    carrier._receive_loop()
    assert caplog.messages == ["somebody is gone"]
    assert carrier.told == [READY]


def test_a_handler_that_raises_does_not_end_the_receive_thread(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the handler's own")

    carrier, handler = Threadless(), Broken()
    for text in ("one", "two"):
        carrier.node.local.log(logging.WARNING, text)
    carrier._for_callbacks.append(READY)
    vault_udp_carrier.logger.addHandler(handler)
    try:
        carrier._take_in(())
    finally:
        vault_udp_carrier.logger.removeHandler(handler)
    assert carrier.told == [READY]
    assert capsys.readouterr().err.count("RuntimeError: the handler's own") == 2


def test_what_was_left_while_the_port_changed_is_told_at_once() -> None:
    carrier, new = Threadless(), FakeDatagrams(port=2)
    carrier._replace_socket(cast(Any, new))
    carrier._receive_loop()
    assert new.calls[:2] == ["take_over", "wake"]


def test_all_answers_leave_by_the_port_that_was_ours_when_they_were_made() -> None:
    carrier, new = Threadless(), FakeDatagrams()
    carrier.node.outgoing += [(B, b"1"), (B, b"2")]

    def change_port() -> None:
        carrier._datagrams = cast(Any, new)

    carrier.datagrams.on_send = change_port
    carrier._take_in(())
    assert carrier.datagrams.sent == [(B, [b"1"]), (B, [b"2"])]


# ---------------------------------------------------------------------------------------- changes, the end


def test_what_is_resolved_is_told_unless_it_comes_too_late() -> None:
    carrier = Threadless()
    carrier.node.outgoing.append((B, b"1"))
    carrier._resolved(("host.example", 1), [B], "")
    assert carrier.work.notified == 1
    carrier._stopped = True
    carrier._resolved(("host.example", 1), [B], "")
    assert len(carrier.node.named("resolved")) == 1


def test_a_new_port_is_seen_to_at_once_in_both_threads() -> None:
    carrier, new = Threadless(), FakeDatagrams(port=2)
    carrier.node.outgoing.append((B, b"moved"))
    carrier._replace_socket(cast(Any, new))
    assert carrier.work.notified == 1
    assert carrier.datagrams.calls == ["wake"]
    assert carrier._leave_old_port_at == NOW + OLD_PORT_KEPT
    assert (new.on_too_long, new.on_refused) == (carrier._too_long, carrier._refused)


def test_a_new_port_that_comes_too_late_is_freed() -> None:
    carrier, new = Threadless(), FakeDatagrams(port=2)
    carrier._stopped = True
    with pytest.raises(StoppedError):
        carrier._replace_socket(cast(Any, new))
    assert new.calls == ["close"]
    assert carrier._replaced == []


@pytest.mark.parametrize("change", ["_identity_changed_locked", "_keys_supplied_locked"])
def test_other_keys_are_announced_at_once(change: str) -> None:
    carrier = Threadless()
    carrier.node.outgoing.append((B, b"1"))
    getattr(carrier, change)(*[B] * (change == "_keys_supplied_locked"))
    assert carrier.work.notified == 1


class FakeThread:
    """A thread that takes so many seconds to end, of which others may wait some."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.waits: list[float] = []

    def join(self, timeout: float) -> None:
        assert timeout >= 0
        self.waits.append(timeout)
        waited = min(timeout, self.seconds)
        self.clock[0] += waited
        self.seconds -= waited

    def is_alive(self) -> bool:
        return self.seconds > 0


@pytest.mark.parametrize(
    ("sender", "receiver", "waits"),
    [(0.0, 0.0, (3.0, 3.0)), (2.0, 0.0, (3.0, 1.0)), (9.0, 9.0, (3.0, 0.0)), (0.0, 9.0, (3.0, 3.0))],
)
def test_the_end_takes_no_longer_than_it_may(
    sender: float,
    receiver: float,
    waits: tuple[float, float],
    at_one_moment: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [NOW]
    at_one_moment.monotonic = lambda: clock[0]
    carrier = Threadless()
    threads = FakeThread(clock, sender), FakeThread(clock, receiver)
    carrier._sender, carrier._receiver = (cast(Any, thread) for thread in threads)
    carrier._stop_threads(3.0)
    assert tuple(thread.waits[0] for thread in threads) == waits
    assert clock[0] <= NOW + 3.0
    assert len(caplog.records) == (receiver == 9.0)
    assert (carrier.work.notified, carrier.room.notified, carrier.ready.notified) == (1, 1, 1)
    assert carrier.node.named("close") == [("close", (clock[0],))]
    assert carrier.stopped_keys == ["stop"]
    assert carrier._by_name == {}
    assert carrier._encryption.on_identity_changed is None
    assert carrier._encryption.on_peer_keys_supplied is None


@pytest.mark.parametrize("timeout", [0.0, 0.5])
def test_what_is_ready_is_sent_however_little_time_callbacks_have(
    timeout: float, at_one_moment: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [NOW]
    at_one_moment.monotonic = lambda: clock[0]
    carrier = Threadless()
    sender, receiver = FakeThread(clock, 0.75), FakeThread(clock, 9.0)
    carrier._sender, carrier._receiver = cast(Any, sender), cast(Any, receiver)
    carrier._stop_threads(timeout)
    assert sender.waits == [SEND_TIMEOUT]
    assert not sender.is_alive()
    assert receiver.waits == [0.0]
    assert len(caplog.records) == (timeout > 0), "whoever gives them no time is not told that they need some"


@pytest.mark.parametrize("thread", ["_sender", "_receiver"])
def test_a_finalizer_may_stop_the_socket_in_either_thread(thread: str) -> None:
    carrier, other = Threadless(), FakeThread([NOW], 0.0)
    carrier._sender = carrier._receiver = cast(Any, other)
    setattr(carrier, thread, threading.current_thread())
    carrier._stop_threads(3.0)
    assert other.waits == [3.0]


def test_sockets_that_were_not_stopped_share_the_time_at_the_exit(
    monkeypatch: pytest.MonkeyPatch, at_one_moment: SimpleNamespace
) -> None:
    clock, waits = [NOW], []
    at_one_moment.monotonic = lambda: clock[0]

    def stop(timeout: float) -> None:
        waits.append(timeout)
        clock[0] += 0.75

    monkeypatch.setattr(vault_udp_carrier, "_open_sockets", [SimpleNamespace(stop=stop)] * 3)
    vault_udp_carrier._stop_what_is_open()
    assert waits == [1.0, 0.25, LEAST_AT_EXIT]


def test_in_a_forked_child_nothing_is_left_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    open_sockets: Any = [SimpleNamespace(_abandon=lambda: left.append("abandoned"))] * 2
    monkeypatch.setattr(vault_udp_carrier, "_open_sockets", open_sockets)
    vault_udp_carrier._abandon_in_forked_child()
    assert left == ["abandoned"] * 2
    assert open_sockets == []


def test_an_abandoned_socket_leaves_neither_keys_nor_descriptors_nor_locks() -> None:
    carrier, former = Threadless(), FakeDatagrams()
    wiped: list[str] = []
    carrier.node.local = SimpleNamespace(wipe=lambda: wiped.append("local"))
    carrier._resolver = cast(Any, SimpleNamespace(abandon=lambda: wiped.append("resolver")))
    carrier._replaced.append(cast(Any, former))
    lock = carrier._lock
    carrier._work = carrier._room = carrier._ready = threading.Condition(lock)
    carrier._abandon()
    assert carrier._lock is carrier._encryption.lock is not lock
    assert carrier._by_name == {}
    assert wiped == ["local", "resolver"]
    assert carrier.stopped_keys == ["stop"]
    assert carrier.datagrams.calls == former.calls == ["abandon"]
    with carrier._lock:
        for condition in (carrier._work, carrier._room, carrier._ready):
            condition.notify_all()
    with pytest.raises(StoppedError, match="fork"):
        carrier._check_running()
