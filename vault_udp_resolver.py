# SPDX-License-Identifier: Apache-2.0
"""Host names to addresses, in threads of their own: the system's resolver may take minutes, whatever happens.

The threads are there only while there are names to look up. Nobody waits for them: what they find is handed
to a function, or to nobody once the resolver is stopped.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterable, List

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address, ascii_host, is_no_host, normalize
else:
    from .vault_udp_address import Address, ascii_host, is_no_host, normalize

MAX_THREADS = 4
"""Names that are looked up at a time; more wait."""

Answer = Callable[[Address, List[Address], str], None]
"""Called with a name, its addresses in the order of preference (RFC 6724), and if there are none, why."""


class Resolver:
    """Looks up names; thread-safe.

    Args:
        answer: gets what was found, in one of the threads.
        family: `socket.AF_INET`, `AF_INET6`, or `AF_UNSPEC` for both: addresses of others are left out.
        getaddrinfo: stands in for `socket.getaddrinfo`.
    """

    def __init__(self, answer: Answer, family: int, getaddrinfo: Callable[..., Any] | None = None) -> None:
        self._answer: Answer | None = answer
        self._family = family
        self._getaddrinfo = getaddrinfo or socket.getaddrinfo
        self._lock = threading.RLock()  # a handler of the system's signals may stop what is being stopped
        self._waiting: dict[Address, None] = {}
        self._threads = 0

    def look_up(self, names: Iterable[Address]) -> None:
        """Look up (host name, port) each; returns at once. Nothing happens after `stop`."""
        with self._lock:
            if self._answer is None:
                return
            self._waiting.update(dict.fromkeys(names))
            count = min(MAX_THREADS - self._threads, len(self._waiting))
            self._threads += count
        for _ in range(count):
            try:
                threading.Thread(target=self._run, name="vault-udp-resolve", daemon=True).start()
            except RuntimeError as error:  # the system has no more threads
                self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        with self._lock:
            self._threads -= 1
            names = list(self._waiting) if not self._threads else []
            self._waiting = {name: None for name in self._waiting if name not in names}
        for name in names:
            self._tell(name, [], why)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                name = next(iter(self._waiting))
                del self._waiting[name]
            self._tell(name, *self._resolve(name))

    def _resolve(self, name: Address) -> tuple[list[Address], str]:
        try:
            host = ascii_host(name[0])
            found = self._getaddrinfo(host, name[1], self._family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        except (OSError, ValueError) as error:
            return [], getattr(error, "strerror", None) or str(error)
        places = dict.fromkeys(normalize(entry[4]) for entry in found)
        # Whoever runs the name server must not make us speak to everybody in our network.
        addresses = [place for place in places if not is_no_host(place[0])]
        return addresses, "" if addresses else "no address that this socket can reach"

    def _tell(self, name: Address, addresses: list[Address], why: str) -> None:
        answer = self._answer
        if answer is not None:
            answer(name, addresses, why)

    def stop(self) -> None:
        """Forget what waits, and tell nobody what is still found; does not wait."""
        with self._lock:
            self._waiting.clear()
            self._answer = None

    def abandon(self) -> None:
        """In a forked child: the threads are not there, and one of them may have held the lock."""
        self._lock = threading.RLock()
        self.stop()
