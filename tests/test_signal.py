# SPDX-License-Identifier: Apache-2.0
"""SafeSignal: PySignal's interface, each of PySignal's faults cured."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from functools import partial
from typing import Any, Callable, Dict

import PySignal
import pytest
from loopback import run_thread

import vault_udp_signal
from vault_udp_signal import SafeSignal


class Recorder:
    """A callable object and a method to connect, which compare equal to every other one."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any) -> None:
        self.calls.append(args)

    def method(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((*args, kwargs) if kwargs else args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recorder)

    __hash__ = None  # type: ignore[assignment]


class Slotted:
    """Cannot be weakly referenced."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def method(self, *args: Any) -> None:
        self.calls.append(args)


def fail(*_: Any) -> None:
    raise RuntimeError("deliberate")


@pytest.fixture
def signal() -> SafeSignal:
    return SafeSignal()


def test_is_a_pysignal_signal(signal: SafeSignal) -> None:
    assert isinstance(signal, PySignal.Signal)


def function_slot(calls: list[Any]) -> Callable[..., None]:
    def slot(*args: Any) -> None:
        calls.append(args)

    return slot


SLOTS: dict[str, Callable[[list[Any]], Callable[..., Any]]] = {
    "function": function_slot,
    "lambda": lambda calls: lambda *args: calls.append(args),
    "partial": lambda calls: partial(function_slot(calls)),
}


@pytest.mark.parametrize("make", SLOTS.values(), ids=SLOTS)
def test_slots_without_another_owner_are_kept_and_get_the_arguments(
    signal: SafeSignal, make: Callable[[list[Any]], Callable[..., Any]]
) -> None:
    calls: list[Any] = []
    signal.connect(make(calls))
    gc.collect()
    signal.emit("data", ("127.0.0.1", 1))
    assert calls == [("data", ("127.0.0.1", 1))]


def test_partial_arguments_come_first(signal: SafeSignal) -> None:
    recorder = Recorder()
    signal.connect(partial(recorder.method, 1))
    signal.emit(2, key=3)
    assert recorder.calls == [(1, 2, {"key": 3})]


def test_callable_object_is_held_strongly(signal: SafeSignal) -> None:
    calls = Recorder().calls
    recorder = Recorder()
    recorder.calls = calls
    signal.connect(recorder)
    del recorder
    gc.collect()
    signal.emit(1)
    assert calls == [(1,)]


def test_bound_method_is_held_weakly_and_pruned(signal: SafeSignal) -> None:
    recorder = Recorder()
    calls = recorder.calls
    signal.connect(recorder.method)
    signal.emit(1)
    assert calls == [(1,)]
    assert signal.connected
    del recorder
    gc.collect()
    assert not signal.connected
    signal.emit(2)
    assert calls == [(1,)]
    assert len(signal._slots) == 0


def test_dead_methods_do_not_pile_up_without_an_emit(signal: SafeSignal) -> None:
    for _ in range(100):
        signal.connect(Recorder().method)
    gc.collect()
    signal.connect(print)
    assert len(signal._slots) == 1


def test_bound_method_of_an_object_without_weak_references_is_held_strongly(signal: SafeSignal) -> None:
    slotted = Slotted()
    calls = slotted.calls
    signal.connect(slotted.method)
    signal.connect(slotted.method)
    del slotted
    gc.collect()
    signal.emit(1)
    assert calls == [(1,)]


def test_builtin_method_is_connected_once_and_can_be_disconnected(signal: SafeSignal) -> None:
    one: list[int] = []
    other: list[int] = []
    signal.connect(one.append)
    signal.connect(one.append)
    signal.connect(other.append)
    signal.emit(1)
    assert (one, other) == ([1], [1])
    signal.disconnect(one.append)
    signal.emit(2)
    assert (one, other) == ([1], [1, 2])


@pytest.mark.parametrize("attribute", ["method", "__call__"])
def test_methods_of_equal_objects_are_different_slots(signal: SafeSignal, attribute: str) -> None:
    one, other = Recorder(), Recorder()
    for _ in range(2):
        signal.connect(getattr(one, attribute))
        signal.connect(getattr(other, attribute))
    signal.emit(1)
    assert (one.calls, other.calls) == ([(1,)], [(1,)])
    signal.disconnect(getattr(one, attribute))
    signal.emit(2)
    assert (one.calls, other.calls) == ([(1,)], [(1,), (2,)])


def test_equal_callable_objects_are_different_slots(signal: SafeSignal) -> None:
    one, other = Recorder(), Recorder()
    for slot in (one, one, other):
        signal.connect(slot)
    signal.emit(1)
    signal.disconnect(one)
    signal.emit(2)
    assert (one.calls, other.calls) == ([(1,)], [(1,), (2,)])


def test_slots_are_called_in_the_order_of_connection(signal: SafeSignal) -> None:
    calls: list[int] = []
    for number in range(5):
        signal.connect(partial(calls.append, number))
    signal.emit()
    assert calls == [0, 1, 2, 3, 4]


def test_a_raising_slot_stops_no_other_and_is_counted() -> None:
    signal, recorder = SafeSignal(), Recorder()
    signal.connect(fail)
    signal.connect(recorder.method)
    signal.emit(1)
    signal.emit(2)
    assert recorder.calls == [(1,), (2,)]
    assert signal.errors == 2


def test_keyboard_interrupt_passes(signal: SafeSignal) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    signal.connect(interrupt)
    with pytest.raises(KeyboardInterrupt):
        signal.emit()


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, SystemExit])
def test_what_is_no_exception_ends_no_thread_either(signal: SafeSignal, kind: type[BaseException]) -> None:
    recorder = Recorder()

    def fail_otherwise(*_: Any) -> None:
        raise kind

    signal.connect(fail_otherwise)
    signal.emit_each([1], "context")
    signal.connect(recorder)
    signal.emit(2)
    assert signal.errors == 2
    assert recorder.calls == [(2,)]


async def _coroutine(*_: Any) -> None:
    """Would be awaited by nobody."""


class AsyncCallable:
    async def __call__(self, *_: Any) -> None:
        """The same."""


@pytest.mark.parametrize(
    ("slot", "name"),
    [(_coroutine, "_coroutine"), (partial(_coroutine, 1), "partial"), (AsyncCallable(), "AsyncCallable")],
)
def test_nothing_is_connected_that_had_to_be_awaited(signal: SafeSignal, slot: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is a coroutine function"):
        signal.connect(slot)
    assert not signal.connected


def test_one_log_line_per_episode_and_no_user_data(
    signal: SafeSignal, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = False

    def sometimes(secret: str) -> None:
        if not healthy:
            raise RuntimeError("deliberate")

    signal.connect(sometimes)
    signal.connect(partial(fail, "private text"))
    for _ in range(3):
        signal.emit("secret text")
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert all(record.exc_info for record in caplog.records)
    healthy = True
    signal.emit("secret text")
    healthy = False
    signal.emit("secret text")
    assert len(caplog.records) == 3
    assert "sometimes" in caplog.records[2].getMessage()
    messages = [record.getMessage() for record in caplog.records]
    assert not any("secret" in message or "private" in message for message in messages)


def test_a_slot_that_disconnects_itself_and_raises_is_not_remembered(
    signal: SafeSignal, caplog: pytest.LogCaptureFixture
) -> None:
    def once() -> None:
        signal.disconnect(once)
        raise RuntimeError("deliberate")

    for _ in range(2):
        signal.connect(once)
        signal.emit()
    assert len(caplog.records) == 2
    assert not signal._failing


def test_disconnecting_a_failing_slot_ends_its_episode(
    signal: SafeSignal, caplog: pytest.LogCaptureFixture
) -> None:
    for forget in (partial(signal.disconnect, fail), signal.clear):
        signal.connect(fail)
        signal.emit()
        forget()
        assert not signal._failing
    assert len(caplog.records) == 2


def test_connecting_and_disconnecting_inside_a_slot(signal: SafeSignal) -> None:
    calls: list[str] = []

    def late() -> None:
        calls.append("late")

    def first() -> None:
        calls.append("first")
        signal.disconnect(first)
        signal.connect(late)

    def second() -> None:
        calls.append("second")

    signal.connect(first)
    signal.connect(second)
    signal.emit()
    assert calls == ["first", "second"]
    signal.emit()
    assert calls == ["first", "second", "second", "late"]


def test_a_slot_may_emit_again(signal: SafeSignal) -> None:
    calls: list[int] = []

    def slot(number: int) -> None:
        calls.append(number)
        if number:
            signal.emit(number - 1)

    signal.connect(slot)
    signal.emit(2)
    assert calls == [2, 1, 0]


def test_clear_and_block(signal: SafeSignal) -> None:
    recorder = Recorder()
    signal.connect(recorder)
    signal.block(True)
    signal.emit(1)
    signal.block(False)
    signal.emit(2)
    signal.clear()
    signal.emit(3)
    assert recorder.calls == [(2,)]
    assert not signal.connected


def test_what_cannot_be_called_is_refused_as_by_pysignal(signal: SafeSignal) -> None:
    with pytest.raises(ValueError, match="non-callable") as ours:
        signal.connect(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="non-callable") as theirs:
        PySignal.Signal().connect(3)
    assert str(ours.value) == str(theirs.value)
    signal.disconnect(3)  # type: ignore[arg-type]
    signal.disconnect(fail)


def test_threads_connect_and_disconnect_during_emits(signal: SafeSignal) -> None:
    count = 500
    always = Recorder()
    signal.connect(always)
    start = threading.Barrier(5)

    def churn() -> None:
        start.wait()
        for _ in range(count):
            recorder = Recorder()
            signal.connect(recorder)
            signal.connect(recorder.method)
            signal.disconnect(recorder)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    for number in range(count):
        signal.emit(number)
    for thread in threads:
        thread.join()
    assert always.calls == [(number,) for number in range(count)]
    assert signal.errors == 0
    gc.collect()
    signal.emit(count)
    assert len(signal._slots) == 1


def test_a_finalizer_may_disconnect_while_a_slot_is_connected(
    signal: SafeSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Recorder(), Recorder()
    signal.connect(old)
    same = vault_udp_signal._same

    def with_finalizer(*connections: Any) -> bool:
        monkeypatch.undo()
        signal.disconnect(old)
        return same(*connections)

    monkeypatch.setattr(vault_udp_signal, "_same", with_finalizer)
    run_thread(lambda: signal.connect(new))
    signal.emit(1)
    assert (old.calls, new.calls) == ([], [(1,)])


def test_a_signal_handler_may_block_what_is_being_connected(
    signal: SafeSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    signal.connect(recorder)

    def with_handler(*_: object) -> bool:
        monkeypatch.undo()
        signal.block(True)  # as `stop` does
        return False

    monkeypatch.setattr(vault_udp_signal, "_same", with_handler)
    run_thread(lambda: signal.connect(print))
    signal.emit(1)
    assert recorder.calls == []
    signal.block(False)
    signal.emit(2)
    assert recorder.calls == [(2,)]


def test_a_signal_handler_may_block_at_any_moment(signal: SafeSignal) -> None:
    class Interrupted(Dict[int, Any]):
        def pop(self, *_: Any) -> None:
            signal._failing = {}
            signal.block(True)

    recorder = Recorder()
    signal.connect(recorder)
    signal._failing = Interrupted()
    run_thread(lambda: signal.disconnect(recorder))
    signal.connect(recorder)
    signal.emit(1)
    assert recorder.calls == []
