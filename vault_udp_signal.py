# SPDX-License-Identifier: Apache-2.0
"""Signals for callbacks: PySignal's interface, with slots that cannot harm each other.

PySignal 1.1.1 calls `partial` slots without the arguments, cannot connect callable objects, iterates over
a list that slots may change, lets one raising slot stop the others, and forgets local functions because it
holds plain functions weakly. `SafeSignal` is used in the same way and has none of that.

The slots are an immutable tuple that is replaced, under a lock, by whoever connects or disconnects; `emit`
reads it once. So an emit needs no lock, and a callback may connect, disconnect and emit as it likes.
"""

from __future__ import annotations

import inspect
import logging
import threading
import types
import weakref
from typing import Any, Callable, Iterable, Optional, Tuple

from PySignal import Signal

logger = logging.getLogger("vault_udp")

Slot = Callable[..., Any]
# A bound method is (weak reference to its instance, plain function); anything else is (None, the callable).
_Connection = Tuple[Optional["weakref.ref[Any]"], Slot]

# Python makes a new object at each look-up of such a method, so identity does not tell that it is the same.
_METHODS_OF_EXTENSIONS = (types.BuiltinMethodType, types.MethodWrapperType)


class SafeSignal(Signal):  # type: ignore[misc]  # PySignal has no type hints
    """A ``PySignal.Signal`` that may be used from any thread and isolates its slots.

    Bound methods are held weakly by their instance: connecting one does not keep its object alive.
    Functions, lambdas, partials, callable objects and methods of objects that cannot be weakly referenced
    (``list.append``) are held strongly, until they are disconnected.

    A slot that raises is logged with its traceback when it begins to fail, and again only after it has
    succeeded in between; the other slots are called all the same. `errors` counts what was raised.

    ``on_connect()`` is called after each `connect`; it may be taken away by setting it to None.
    """

    def __init__(self, on_connect: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.on_connect = on_connect
        self._slots: tuple[_Connection, ...] = ()
        # A handler of the system's signals may stop a socket, and so block this, while what it interrupted is
        # connecting a slot.
        self._lock = threading.RLock()
        # By id of the connection; holding the connection keeps its id from being used again.
        self._failing: dict[int, _Connection] = {}
        self.errors = 0

    @property
    def connected(self) -> bool:
        """Whether there is a slot that an emit would call now, `block` aside."""
        for reference, _ in self._slots:  # noqa: SIM110 - asked for every message, and `any` costs twice that
            if reference is None or reference() is not None:
                return True
        return False

    @property
    def lost_its_slots(self) -> bool:
        """Whether there were slots, and the objects of all of them are gone."""
        return bool(self._slots) and not self.connected

    def emit(self, *args: Any, **kwargs: Any) -> None:
        """Call every slot with the arguments; what a slot raises does not get out of here.

        That is all but `KeyboardInterrupt`, which is for the program: whatever else got out would end the
        thread and nothing else, and nobody would notice; ``asyncio.CancelledError`` is no `Exception`.

        A slot that is disconnected while an emit is under way may still be called by that emit, never later.
        """
        if self._block:
            return
        for connection in self._slots:
            reference, function = connection
            try:
                if reference is None:
                    function(*args, **kwargs)
                else:
                    instance = reference()
                    if instance is None:
                        self._replace_slots(without=connection)
                        continue
                    function(instance, *args, **kwargs)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._handle_error(connection, error)
            else:
                if self._failing:
                    self._failing.pop(id(connection), None)

    def emit_each(self, values: Iterable[Any], context: Any) -> None:
        """``emit(value, context)`` for each of `values`, in less time while there is one slot."""
        remaining = iter(values)
        while True:
            slots = self._slots
            call = None if self._block or len(slots) != 1 else _callable_of(slots[0])
            if call is None:
                for value in remaining:
                    self.emit(value, context)
                    break
                else:
                    return
                continue
            try:
                for value in remaining:
                    call(value, context)
                    if self._slots is not slots:
                        break  # the slot has changed what is to be called, or blocked it
                else:
                    self._failing.pop(id(slots[0]), None)
                    return
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._handle_error(slots[0], error)

    def connect(self, slot: Slot) -> None:
        """Call `slot` at each emit from now on; connecting it again changes nothing.

        Raises:
            ValueError: it is not callable, or is a coroutine function, which nobody would await.
        """
        if not callable(slot):
            raise ValueError(f"Connection to non-callable '{slot.__class__.__name__}' object failed")
        if inspect.iscoroutinefunction(slot) or inspect.iscoroutinefunction(type(slot).__call__):
            raise ValueError(
                f"{_name_of(slot)} is a coroutine function, slots are called and not awaited; connect a "
                "function that passes on to the event loop, with loop.call_soon_threadsafe"
            )
        connection = _connection_of(slot)

        def with_connection(slots: tuple[_Connection, ...]) -> tuple[_Connection, ...]:
            if any(_same(connection, other) for other in slots):
                return slots
            return (*(other for other in slots if _alive(other)), connection)

        self._change_slots(with_connection)
        if self.on_connect is not None:
            self.on_connect()

    def disconnect(self, slot: Slot) -> None:
        """Stop calling `slot`; nothing happens if it is not connected."""
        self._replace_slots(without=_connection_of(slot))

    def block(self, isBlocked: bool) -> None:  # noqa: N803  # PySignal's name
        """Call no slots, or call them again."""
        super().block(isBlocked)
        self._change_slots(lambda slots: (*slots,))  # another object, which an emit under way notices

    def clear(self) -> None:
        """Disconnect every slot."""
        self._change_slots(lambda slots: ())

    def abandon(self) -> None:
        """In a forked child: a thread that is not there may have held the lock."""
        self._lock = threading.RLock()

    def _replace_slots(self, without: _Connection) -> None:
        self._change_slots(lambda slots: tuple(other for other in slots if not _same(other, without)))

    def _change_slots(self, change: Callable[[tuple[_Connection, ...]], tuple[_Connection, ...]]) -> None:
        """Replace the slots by what `change` makes of them.

        It is called without the lock and may be repeated: while it runs, a finalizer or a handler of the
        system's signals may connect and disconnect, too.
        """
        while True:
            slots = self._slots
            changed = change(slots)
            with self._lock:
                if self._slots is not slots:
                    continue
                self._slots = changed
                for connection in slots:
                    if not any(connection is other for other in changed):
                        self._failing.pop(id(connection), None)
                return

    def _handle_error(self, connection: _Connection, error: BaseException) -> None:
        with self._lock:
            self.errors += 1
            is_news = id(connection) not in self._failing
            # A slot that disconnected itself before it raised must not be remembered.
            if is_news and any(connection is other for other in self._slots):
                self._failing[id(connection)] = connection
        if is_news:
            _, function = connection
            # The name only: the representation of a partial or of an object may show user data.
            name = _name_of(function)
            code = getattr(function, "__code__", None)
            place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
            logger.error("callback %s%s raised; it stays connected", name, place, exc_info=error)


def _name_of(slot: Slot) -> str:
    return str(getattr(slot, "__qualname__", type(slot).__qualname__))


def _connection_of(slot: Slot) -> _Connection:
    if inspect.ismethod(slot):
        try:
            return weakref.ref(slot.__self__), slot.__func__
        except TypeError:  # an instance with __slots__ and no __weakref__
            return None, slot
    return None, slot


def _callable_of(connection: _Connection) -> Slot | None:
    """What to call for a connection; None if its object is gone."""
    reference, function = connection
    if reference is None:
        return function
    instance = reference()
    return None if instance is None else types.MethodType(function, instance)


def _alive(connection: _Connection) -> bool:
    reference, _ = connection
    return reference is None or reference() is not None


def _same(one: _Connection, other: _Connection) -> bool:
    if one is other:
        return True
    (reference, function), (other_reference, other_function) = one, other
    if reference is None or other_reference is None:
        if reference is not other_reference:
            return False
        if isinstance(function, _METHODS_OF_EXTENSIONS) or inspect.ismethod(function):
            return type(function) is type(other_function) and function == other_function
        return function is other_function
    # Compared by identity, as the equality of weak references is that of the user's objects.
    instance = reference()
    return instance is not None and instance is other_reference() and function is other_function
