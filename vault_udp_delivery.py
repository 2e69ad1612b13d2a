# SPDX-License-Identifier: Apache-2.0
"""What becomes of messages that were accepted: the two signals, and what waits for their first slot.

Only for the receive thread, without the lock; connecting is for any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address
    from vault_udp_node import Node
    from vault_udp_signal import SafeSignal
else:
    from .vault_udp_address import Address
    from .vault_udp_node import Node
    from .vault_udp_signal import SafeSignal

logger = logging.getLogger("vault_udp")

MAX_EARLY_MESSAGES = 256
MAX_EARLY_BYTES = 4 << 20
"""Messages kept for the first slot to be connected, and their bytes; the oldest go first."""
WARNING_INTERVAL = 60.0
NOT_TEXT = "%s sends data that is not UTF-8; connect udp_recv_bytes for it"
NOBODY_CONNECTED = (
    "%s sends messages that nobody gets: connect udp_recv_data or udp_recv_bytes, and keep the object whose "
    "method is connected, for it is held weakly"
)


class Delivery:
    """Passes messages on.

    Args:
        node: counts what is lost here.
        lock: guards the node.
        on_connect: called, in any thread, when a slot has been connected: `deliver_all` is to be called then.

    Attributes:
        texts: signal (data: str, addr), for messages that are UTF-8 text.
        everything: signal (data: bytes, addr), for every message.
    """

    def __init__(self, node: Node, lock: threading.RLock, on_connect: Callable[[], None]) -> None:
        self.texts = SafeSignal(on_connect=on_connect)
        self.everything = SafeSignal(on_connect=on_connect)
        self._node = node
        self._lock = lock
        self._early: list[tuple[Address, bytes, bytes]] | None = []
        """(address, message, identity of its sender): what came before the first slot was connected; None
        from then on."""
        self._warned_at: dict[str, float] = {}

    def deliver_all(self, deliveries: Sequence[tuple[Address, Sequence[bytes]]]) -> None:
        """Call the slots for each message, those for bytes first; keep messages while there is none."""
        if self._early is not None:
            self._keep_early(self._early, deliveries)
            return
        for address, messages in deliveries:
            self._deliver(address, messages)

    def _keep_early(
        self,
        early: list[tuple[Address, bytes, bytes]],
        deliveries: Sequence[tuple[Address, Sequence[bytes]]],
    ) -> None:
        # Threads run before the constructor returns, so a peer may be faster than the line that connects.
        for address, messages in deliveries:
            identity = self._identity_at(address)
            early += [(address, message, identity) for message in messages]
        if self.texts.connected or self.everything.connected:
            self._early = None
            for address, message, identity in early:
                # Whoever asks who has sent it must not be told of somebody who has come since.
                if self._identity_at(address) in (b"", identity):
                    self._deliver(address, (message,))
                else:
                    self._count_undelivered("nobody_connected", address)
            return
        if deliveries and (self.texts.lost_its_slots or self.everything.lost_its_slots):
            self._warn(NOBODY_CONNECTED, deliveries[0][0])
        surplus = max(0, len(early) - MAX_EARLY_MESSAGES)
        size = sum(len(message) for _, message, _ in early[surplus:])
        while size > MAX_EARLY_BYTES:
            size -= len(early[surplus][1])
            surplus += 1
        for address, _, _ in early[:surplus]:
            self._count_undelivered("nobody_connected", address)
            self._warn(NOBODY_CONNECTED, address)
        del early[:surplus]

    def _identity_at(self, address: Address) -> bytes:
        with self._lock:
            peer = self._node.table.by_name.get(address)
            return peer.identity if peer is not None else b""

    @property
    def keeps_messages(self) -> bool:
        """Whether messages are kept now; for the thread that calls `deliver_all`."""
        return bool(self._early)

    def _count_undelivered(self, reason: str, address: Address, count: int = 1) -> None:
        with self._lock:
            self._node.count_undelivered(reason, address, count)

    def _warn(self, text: str, address: Address) -> None:
        """Say so of the first of each minute."""
        now = time.monotonic()
        if now - self._warned_at.get(text, float("-inf")) >= WARNING_INTERVAL:
            self._warned_at[text] = now
            logger.warning(text, address)

    def _deliver(self, address: Address, messages: Sequence[bytes]) -> None:
        if not (self.everything.connected or self.texts.connected):
            self._count_undelivered("nobody_connected", address, len(messages))
            self._warn(NOBODY_CONNECTED, address)
            return
        if len(messages) == 1:
            self.everything.emit(messages[0], address)
        else:
            self.everything.emit_each(messages, address)
        if self.texts.connected:
            self.texts.emit_each(self._texts(messages, address), address)

    def _texts(self, messages: Sequence[bytes], address: Address) -> Iterator[str]:
        for message in messages:
            try:
                yield message.decode()
            except UnicodeDecodeError:
                if not self.everything.connected:
                    self._count_undelivered("not_text_and_no_bytes_slot", address)
                    self._warn(NOT_TEXT, address)
