# SPDX-License-Identifier: Apache-2.0
"""Sockets at their beginning and end, and while they change ports: what is on its way then is not lost."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from types import SimpleNamespace
from typing import Any, Dict, List, Sequence

import pytest
from loopback import (
    LOOPBACKS,
    PATIENCE,
    Collector,
    Inbox,
    address_of,
    assert_free,
    eventually,
    pair,
    plain_socket,
    run_thread,
)

import vault_udp_carrier
import vault_udp_delivery
from vault_udp_datagram import DatagramSocket
from vault_udp_encryption import KeyNotFoundError
from vault_udp_node import Node
from vault_udp_peer import PeerTable
from vault_udp_session import retry_delay
from vault_udp_socket import InvalidArgumentError, StoppedError, UDPSocketClass
from vault_udp_state import Event


def test_stats_count_base_keys_and_sessions() -> None:
    with pair() as (a, _):
        assert a.get_stats()["encryption_stats"]["active_peer_keys"] == 1


# ------------------------------------------------------------------------------------------------ beginnings


def test_what_arrives_before_a_slot_is_connected_is_kept() -> None:
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        a.add_peer(address_of(b))
        a.send_data("early")
        eventually(lambda: b.get_stats()["counters"]["received"] == 1, "it arrives")
        inbox = Inbox(b)
        a.send_data("late")
        assert inbox.wait_for_texts(2) == ["early", "late"]


def test_what_is_kept_for_the_first_slot_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_udp_delivery, "MAX_EARLY_MESSAGES", 3)
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        a.add_peer(address_of(b))
        for number in range(5):
            a.send_data(str(number))
        eventually(lambda: b.get_stats()["counters"].get("nobody_connected") == 2, "the oldest are counted")
        assert Inbox(b).wait_for_texts(3) == ["2", "3", "4"]


def test_what_comes_when_no_slot_is_left_is_counted() -> None:
    with pair() as (a, b):
        texts, everything = Inbox(b), Collector[Any]()
        b.udp_recv_bytes.connect(everything)

        def send(number: int) -> None:
            a.send_data(str(number), address_of(b))
            eventually(lambda: b.get_stats()["counters"]["received"] == number, "it has come")

        def lost() -> int:
            info = b.get_peer_info(address_of(a))
            assert info is not None
            return int(info["counters"].get("nobody_connected", 0))

        send(1)
        everything.wait_for(1)
        texts.wait_for(1)
        b.udp_recv_data.clear()
        send(2)
        everything.wait_for(2)
        assert lost() == 0
        b.udp_recv_bytes.clear()
        send(3)
        eventually(lambda: lost() == 1, "it is counted as the peer's")
        b.udp_recv_data.connect(texts)
        send(4)
        assert texts.wait_for_texts(2) == ["1", "4"]
        assert b.get_stats()["counters"]["nobody_connected"] == lost() == 1


@pytest.mark.parametrize("to_all", [False, True])
def test_a_message_for_a_lane_that_was_just_taken_does_not_stay_behind(to_all: bool) -> None:
    """The send thread takes what is in a lane when a caller has just seen that it is still to be taken."""

    class Taken(List[bytes]):
        def append(self, message: bytes) -> None:
            super().append(message)
            peer.laned = False

    with pair() as (a, b):
        inbox = Inbox(b)
        peer = a._node.table.by_name[address_of(b)]
        with a._lock:  # the send thread waits
            peer.lane, peer.laned = Taken(), True
            a.send_data(b"behind it", None if to_all else address_of(b))
        inbox.wait_for_text("behind it")


def test_a_message_for_a_lane_that_is_just_being_taken_is_not_taken_away_unseen() -> None:
    """The interpreter may let a caller go on between any two steps of the send thread."""
    going, appended = threading.Event(), threading.Event()

    class Taken(List[bytes]):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            if isinstance(index, slice) and not going.is_set():
                going.set()
                assert appended.wait(PATIENCE)
            return found

    with pair() as (a, b):
        inbox = Inbox(b)
        peer = a._node.table.by_name[address_of(b)]
        with a._lock:
            peer.lane = Taken([b"first"])
            a._lane_locked(peer)
        assert going.wait(PATIENCE)
        peer.lane.append(b"second")  # as `send_data` does, which has seen that the lane is still to be taken
        appended.set()
        a.send_data(b"third", address_of(b))
        assert inbox.wait_for_texts(3) == ["first", "second", "third"]


class Text(str):
    """As some libraries' texts are."""

    __slots__ = ()


class Bytes(bytes):
    __slots__ = ()


@pytest.mark.parametrize(
    "data", ["é", "é".encode(), Text("é"), Bytes("é".encode())], ids=lambda data: type(data).__name__
)
@pytest.mark.parametrize("to_all", [False, True])
def test_a_message_of_a_burst_needs_no_lock_whatever_its_type(data: str | bytes, to_all: bool) -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        peer = a._node.table.by_name[address_of(b)]
        with a._lock:
            peer.laned = True
            run_thread(lambda: a.send_data(data, None if to_all else address_of(b)))
            assert [(type(message), message) for message in peer.lane] == [(bytes, "é".encode())]
            peer.laned = False
            a._lane_locked(peer)
        inbox.wait_for_text("é")


@pytest.mark.parametrize("full", [False, True])
def test_a_broadcast_reaches_peers_with_and_without_a_lane_once(full: bool) -> None:
    with pair() as (a, b), UDPSocketClass(0, None) as c:
        a.add_peer(address_of(c))
        assert a.wait_ready(address_of(c), PATIENCE)
        inboxes = [Inbox(b), Inbox(c)]
        peer = a._node.table.by_name[address_of(b)]
        with a._lock:
            a._lane_locked(peer)
            peer.lane.append(b"first")
            a._lane_size = 1 if full else 2
            if not full:
                a.send_data("to both")
        if full:
            a.send_data("to both")  # waits for room
        a.send_data("last")
        assert inboxes[0].wait_for_texts(3) == ["first", "to both", "last"]
        assert inboxes[1].wait_for_texts(2) == ["to both", "last"]


@pytest.mark.parametrize(("peers", "quick"), [(1, 0), (2, 1)])
def test_a_broadcast_to_many_peers_is_quick_for_longer(
    monkeypatch: pytest.MonkeyPatch, peers: int, quick: int
) -> None:
    monkeypatch.setattr(vault_udp_carrier, "BURST_GAP", 100.0)
    with pair() as (a, _), UDPSocketClass(0) as c:
        if peers > 1:
            a.add_peer(address_of(c))
            assert a.wait_ready(address_of(c), PATIENCE)
        a._last_direct = time.monotonic() - 150
        a._quick = 0
        a.send_data("to all")
        assert a._quick == quick


def test_a_broadcast_does_not_look_for_its_peers_among_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        with monkeypatch.context() as patch:
            patch.delattr(PeerTable, "all")
            a.send_data("to all")
        inbox.wait_for_text("to all")


# ------------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize("attempt", range(20))
def test_what_waited_for_keys_leaves_although_stop_follows_at_once(attempt: int) -> None:
    with UDPSocketClass(0) as b:
        inbox = Inbox(b)
        with UDPSocketClass(0) as a:
            a.add_peer(address_of(b))
            a.send_data("queued")
            assert a.wait_ready(address_of(b), PATIENCE)
        inbox.wait_for_text("queued")


def test_stop_waits_a_moment_for_keys_that_messages_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's page: add a peer, send, and leave the context."""
    monkeypatch.setattr(vault_udp_carrier, "LINGER", 1000.0)
    with UDPSocketClass(0) as b:
        inbox = Inbox(b)
        a = UDPSocketClass(0)
        a.add_peer(address_of(b))
        a.send_data("Hello!")
        run_thread(lambda: a.stop(1000.0))
        inbox.wait_for_text("Hello!")


def test_stop_sends_what_is_ready_though_callbacks_have_no_time() -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        sent = [str(number) for number in range(3000)]
        for text in sent:
            a.send_data(text, address_of(b))
        a.stop(0.0)
        assert inbox.wait_for_texts(3000) == sent


@pytest.mark.parametrize("why", ["no message waits", "no time", "in a callback"])
def test_stop_waits_for_no_keys_in_vain(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(vault_udp_carrier, "LINGER", 1000.0)
    with plain_socket() as silent, pair() as (a, b):
        a.add_peer(silent.getsockname())
        if why != "no message waits":
            a.send_data("in vain", silent.getsockname())
        if why == "in a callback":
            a.udp_recv_data.connect(lambda *_: a.stop(1000.0))
            b.send_data("stop", address_of(a))
            eventually(lambda: not a._sender.is_alive(), "it has stopped")
        else:
            run_thread(lambda: a.stop(0.0 if why == "no time" else 1000.0))


@pytest.mark.parametrize("first", [True, False])
def test_a_socket_whose_threads_cannot_start_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    real = threading.Thread.start
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        real(thread)
        started.append(thread)
        if first or thread.name == "vault-udp-send":
            raise KeyboardInterrupt  # in the wait for the thread to have begun

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        UDPSocketClass(0)
    assert len(started) == (1 if first else 2)
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_get_stats_may_meet_a_new_error_of_the_system() -> None:
    class Errors(Dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    with UDPSocketClass(0) as sock:
        sock._datagrams.errors = Errors(ENETDOWN=1)
        assert sock.get_stats()["counters"]["socket_ENETDOWN"] == 1


def test_stop_overwrites_session_keys() -> None:
    sock = UDPSocketClass(0)
    keys = sock._node.local.current
    assert any(keys.private)
    sock.stop()
    assert not any(keys.private)


def test_stop_that_gives_up_on_a_thread_breaks_nothing_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow receive thread goes on after `stop` has wiped its keys; pytest would see it raise."""
    entered, go_on = threading.Event(), threading.Event()
    with pair() as (a, _), plain_socket() as outsider:
        real = Node.receive

        def slow(self: Node, *args: Any) -> int:
            if threading.current_thread() is a._receiver:
                entered.set()
                go_on.wait(PATIENCE)
            return real(self, *args)

        monkeypatch.setattr(Node, "receive", slow)
        outsider.sendto(b"\x01" * 1357, address_of(a))
        assert entered.wait(PATIENCE)
        stopper = threading.Thread(target=a.stop, args=(0.01,))
        stopper.start()
        go_on.set()
        stopper.join(PATIENCE)
        a._receiver.join(PATIENCE)
        assert not a._receiver.is_alive()


def test_stop_frees_those_who_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    held, opened = threading.Event(), threading.Event()
    with pair() as (a, b):
        send, taken, raised = DatagramSocket.send, Collector[Any](), Collector[Any]()

        def hold_the_send_thread(self: DatagramSocket, *args: Any) -> int:
            if threading.current_thread() is a._sender:
                held.set()
                assert opened.wait(2 * PATIENCE)
            return send(self, *args)

        def send_for_ever() -> None:
            try:
                while True:
                    a.send_data("more", address_of(b))
                    taken(None)
            except StoppedError as error:
                raised(error)

        monkeypatch.setattr(DatagramSocket, "send", hold_the_send_thread)
        a.add_peer(("127.0.0.1", 9))
        assert held.wait(PATIENCE)
        senders = [threading.Thread(target=send_for_ever) for _ in range(2)]
        for sender in senders:
            sender.start()
        try:
            taken.wait_for(4000)
            a.stop(timeout=0.05)
            raised.wait_for(2)
        finally:
            opened.set()
        for sender in senders:
            sender.join(PATIENCE)


# ----------------------------------------------------------------------------------------------------- ports


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError):
        assert_free(port)
        return True
    return False


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_a_new_port_is_followed_before_the_old_one_is_given_up(ip: str, free_port: int) -> None:
    with pair(ip) as (a, b):
        inbox_a, inbox_b, old = Inbox(a), Inbox(b), address_of(b, ip)
        b.update_recv_port(free_port)
        assert b.recv_port == free_port == b.get_stats()["recv_port"]
        eventually(lambda: is_free(old[1]), "the old port is free")
        b.send_data("moved")
        reply_to = inbox_a.wait_for_text("moved")
        a.send_data("to the address of the callback", reply_to)
        a.send_data("to the address that was added", old)
        a.send_data("to all")
        inbox_b.wait_for_text("to the address of the callback")
        inbox_b.wait_for_text("to the address that was added")
        inbox_b.wait_for_text("to all")


def test_peers_follow_a_new_port_without_being_sent_data(free_port: int) -> None:
    with pair() as (a, b):
        inbox, old = Inbox(b), address_of(b)
        b.update_recv_port(free_port)
        a.send_data("follow", old)
        inbox.wait_for_text("follow")


def test_the_send_thread_looks_in_time_whether_what_was_sent_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It slept until the next rotation, so a peer that died while both were quiet was missed for as long."""
    with pair() as (a, b):
        inbox, woken = Inbox(b), threading.Event()

        def asks_in_time() -> bool:
            with a._lock:  # its threads hold still: what is late of the handshake would be an answer
                if a._sleeps_until < time.monotonic() + 5:
                    return False
                with monkeypatch.context() as patch:
                    patch.setattr(a._work, "notify_all", woken.set)
                    a.send_data("hello", address_of(b))
                assert a._node.deadline() < time.monotonic() + 3.1
                return True

        eventually(asks_in_time, "all timers of the handshake are past")
        assert woken.is_set()
        inbox.wait_for_text("hello")


def test_the_receive_thread_keeps_watch_while_it_has_nobody_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation of the peer's wakes the send thread only if its answer is not answered in turn."""
    with pair() as (a, b):
        eventually(lambda: a._sleeps_until > time.monotonic() + 5, "all timers of the handshake are past")
        known = len(a._node.table.all()[0].session.pairs)
        told: list[float] = []
        looks = threading.Event()
        run_timers, notify, send = a._node.run_timers, a._work.notify_all, b._datagrams.send

        def has_rekey() -> bool:
            return len(a._node.table.all()[0].session.pairs) > known

        def run_and_note(now: float) -> None:
            run_timers(now)
            if has_rekey():
                looks.set()

        def notify_and_note() -> None:
            if has_rekey():
                told.append(time.monotonic())
            notify()

        def send_until_rekey(datagrams: Sequence[bytes], address: tuple[str, int]) -> int:
            return len(datagrams) if has_rekey() else send(datagrams, address)

        monkeypatch.setattr(a._node, "run_timers", run_and_note)
        monkeypatch.setattr(a._work, "notify_all", notify_and_note)
        monkeypatch.setattr(b._datagrams, "send", send_until_rekey)
        with b._lock:
            b._node.rotate_at = began = time.monotonic()
            b._work.notify()
        assert looks.wait(PATIENCE), "the CONFIRM is repeated though nothing comes any more"
        assert told[0] >= began + retry_delay(0), "not for the datagram, but for the deadline"


@pytest.mark.parametrize(
    ("has_time", "in_seconds", "flushable"), [(False, 60.0, []), (True, -0.001, []), (True, 60.0, ["a peer"])]
)
def test_the_send_thread_keeps_watch_while_the_receive_thread_may_not_have_time(
    has_time: bool, in_seconds: float, flushable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with UDPSocketClass(0) as sock, sock._lock, monkeypatch.context() as patch:
        told: list[bool] = []
        patch.setattr(sock._work, "notify_all", lambda: told.append(True))
        now = time.monotonic()
        sock._sleeps_until, sock._node.rotate_at = now + 120, now + in_seconds
        sock._receiver_looks_at = now  # of the round before
        patch.setattr(sock._node, "flushable", flushable)
        sock._share_deadlines_locked(now, has_time)
        assert told
        assert sock._receiver_looks_at == math.inf


def test_answers_are_awaited_to_messages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation is many datagrams that follow each other fast; to wait awake for each would burn a core."""
    noted: dict[int, list[bool]] = {}

    def note(sock: DatagramSocket, awaits: bool) -> None:
        noted.setdefault(id(sock), []).append(awaits)

    with pair() as (a, b):
        monkeypatch.setattr(DatagramSocket, "awaits_answer", property(lambda _: False, note), raising=False)
        inbox, epoch = Inbox(b), b._node.local.current.epoch
        with b._lock:
            b._node.rotate_at = time.monotonic()
            b._work.notify()
        session = a._node.table.by_name[address_of(b)].session
        eventually(lambda: session.epoch == epoch + 1, "a has the new key")
        eventually(lambda: all(one.opened for one in session.pairs), "the exchange is over")
        assert not any(noted[id(a._datagrams)] + noted[id(b._datagrams)])
        a.send_data("alone")
        assert any(noted[id(a._datagrams)])
        noted.clear()
        with a._lock:
            a._quick = 10**6  # as in a burst: the send thread takes over
            a._last_direct = time.monotonic() + 60
        a.send_data("in a burst")
        assert inbox.wait_for_texts(2) == ["alone", "in a burst"]
        assert any(noted[id(a._datagrams)])


def test_a_deadline_for_which_the_send_thread_wakes_is_not_watched_twice() -> None:
    with UDPSocketClass(0) as sock, sock._lock:
        now = time.monotonic()
        sock._node.rotate_at, sock._sleeps_until = now + 60, now + 30
        sock._share_deadlines_locked(now, has_time=True)
        assert sock._receiver_looks_at == math.inf


@pytest.mark.parametrize("busy_with", ["a message", "an event", "kept messages", "many sends", "nothing"])
def test_what_the_receive_thread_may_be_busy_with(busy_with: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ("192.0.2.1", 9)
    with UDPSocketClass(0) as sock, sock._lock, monkeypatch.context() as patch:
        asked: list[bool] = []

        def receive(*_: object) -> int:
            node = sock._node
            if busy_with == "a message":
                node.deliveries.append((source, [b"text"]))
            elif busy_with == "an event":
                node.events.append(Event("ready", source))
            elif busy_with == "many sends":
                node.outgoing += [(source, b"1"), (source, b"2")]
            return 1

        patch.setattr(sock, "_share_deadlines_locked", lambda _, has_time: asked.append(has_time))
        patch.setattr(sock, "_send_each", lambda *_: None)
        patch.setattr(sock._node, "receive", receive)
        if busy_with == "kept messages":
            sock._delivery.deliver_all([(source, [b"text"])])
        sock._take_in([([b"datagram"], source)])
        assert asked == [busy_with == "nothing"]


def test_a_forked_child_lets_go_of_a_former_port_that_was_still_to_be_taken_over() -> None:
    former = DatagramSocket(0)
    with UDPSocketClass(0) as sock:
        sock.stop()
        sock._replaced.append(former)
        sock._abandon()
    assert former._socket.fileno() == -1


def test_the_send_thread_wakes_up_although_a_notification_was_cut_short() -> None:
    with pair() as (a, b):
        inbox, peer = Inbox(b), a._node.table.by_name[address_of(b)]
        woken_before = threading.Lock()
        woken_before.acquire()
        waiters: Any = a._work._waiters  # type: ignore[attr-defined]
        eventually(lambda: waiters, "the send thread waits")
        with a._lock:
            waiters.appendleft(woken_before)  # as an exception in `notify` leaves it
            peer.lane.append(b"in a burst")
            a._lane_locked(peer)
            assert not waiters
        inbox.wait_for_text("in a burst")


def test_what_interrupts_a_method_may_stop_the_socket() -> None:
    with pair() as (a, b):
        port = a.recv_port

        def interrupted() -> None:
            with a._lock:  # as `send_data` has it when a handler of a signal is called
                a.stop(timeout=3600)

        run_thread(interrupted)
        eventually(lambda: not a._receiver.is_alive() and not a._sender.is_alive(), "the threads end")
        eventually(lambda: b.get_stats()["counters"].get("goodbyes") == 1, "it has said goodbye")
        a.stop()
        assert_free(port)


@pytest.mark.parametrize("timeout", [None, "5", float("nan"), True])
def test_a_timeout_is_a_number(timeout: Any) -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        for method in (b.stop, lambda seconds: b.wait_ready(address_of(a), seconds)):
            with pytest.raises(InvalidArgumentError, match=r"timeout is .* number of seconds"):
                method(timeout)
        a.send_data("nothing has happened", address_of(b))
        inbox.wait_for_text("nothing has happened")


def test_a_forked_child_lets_go_of_the_locks_of_signals() -> None:
    sock = UDPSocketClass(0)
    sock.stop()
    for signal in sock._callback_signals:
        run_thread(signal._lock.acquire)  # as after a fork in which another thread was connecting a slot
    sock._abandon()
    for signal in sock._callback_signals:
        assert signal._lock.acquire(blocking=False)
    sock.stop()


def test_a_forked_child_has_no_keys_of_its_parent() -> None:
    with pair() as (a, b):
        local, work = a._node.local, a._work
        a._abandon()
        with work:
            work.notify_all()  # to the send thread, which a child would not have; nobody else wakes it now
        stats = a.encryption.get_stats()
        assert (stats["has_enc_private_key"], stats["has_sign_private_key"]) == (False, False)
        assert (local.sign_seed, not any(local.current.private)) == (b"", True)
        with pytest.raises(KeyNotFoundError):
            a.encryption.encrypt(b"", address_of(b))


def test_what_nobody_hears_is_counted_also_of_a_peer_that_is_forgotten_by_then() -> None:
    with pair() as (a, b):
        collector = Collector[Any]()
        b.udp_recv_data.connect(collector)  # texts only
        b._delivery.deliver_all([(address_of(a), [b"\xff"]), (("192.0.2.1", 9), [b"\xff", b"text"])])
        assert collector.items == [("text", ("192.0.2.1", 9))]
        counters = b.get_stats()["counters"]
        assert (counters["not_text_and_no_bytes_slot"], counters["callback_errors"]) == (2, 0)
        info = b.get_peer_info(address_of(a))
        assert info is not None
        assert info["counters"]["not_text_and_no_bytes_slot"] == 1


def test_messages_that_come_together_are_each_delivered() -> None:
    source = ("192.0.2.1", 9)
    with UDPSocketClass(0) as sock:
        texts, everything = Collector[Any](), Collector[Any]()
        sock.udp_recv_data.connect(texts)
        sock.udp_recv_bytes.connect(everything)
        sock._delivery.deliver_all([(source, [b"0"])])  # what comes before a slot is connected is kept apart
        sock._delivery.deliver_all([(source, [b"1", b"2"]), (source, (b"3",))])
        assert everything.items == [(b"%d" % number, source) for number in range(4)]
        assert texts.items == [(str(number), source) for number in range(4)]


def test_all_that_is_to_be_sent_is_sent() -> None:
    outgoing = [(("192.0.2.1", 9), b"1"), (("192.0.2.2", 9), b"2")]
    sent: list[tuple[Any, ...]] = []
    datagrams: Any = SimpleNamespace(send=lambda datagrams, endpoint: sent.append((endpoint, *datagrams)))
    UDPSocketClass._send_each(outgoing, datagrams)
    assert sent == outgoing


def test_what_a_timer_has_to_tell_is_told_although_nothing_comes() -> None:
    told = Collector[Any]()
    with UDPSocketClass(0) as sock:
        sock.udp_peer_lost.connect(told)
        with sock._lock:
            sock._node.events.append(Event("lost", ("192.0.2.1", 9), "a timer says so"))
            sock._wake_sender_locked()
        assert told.wait_for(1) == [(("192.0.2.1", 9), "a timer says so")]


def test_events_are_told_in_the_order_in_which_they_came_to_be() -> None:
    with pair() as (a, _):
        with a._lock:
            a._node.events.append(Event("lost", ("192.0.2.1", 1), "first"))
            a._take_outgoing_locked()
            assert not a._node.events
            a._node.events.append(Event("ready", ("192.0.2.1", 1)))
            a._take_outgoing_locked()
            waiting = [event.kind for event in a._for_callbacks]
        assert waiting[-2:] == ["lost", "ready"]
