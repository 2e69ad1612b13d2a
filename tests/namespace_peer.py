# SPDX-License-Identifier: Apache-2.0
"""A socket in a process of its own, which is told what to do and tells what happens, in lines of JSON.

Started with the arguments of `UDPSocketClass` as a JSON object; `namespaces.Peer` is the other side. In:
``[method, argument …]``; arrays among the arguments become tuples, ``{"hex": …}`` becomes bytes. Out:
``{"returned": …}`` or ``{"raised": …}`` for each, and between them ``{"event": kind, "values": […]}``. When
its input ends, it stops.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from vault_udp_socket import UDPSocketClass

_writing = threading.Lock()


def _write(**members: Any) -> None:
    with _writing:
        sys.stdout.write(json.dumps(members) + "\n")
        sys.stdout.flush()


def _event(kind: str, *values: Any) -> None:
    _write(event=kind, values=values)


def _decoded(argument: Any) -> Any:
    if isinstance(argument, list):
        return tuple(argument)
    return bytes.fromhex(argument["hex"]) if isinstance(argument, dict) else argument


def _call(sock: UDPSocketClass, method: str, arguments: list[Any]) -> Any:
    if method == "threads":
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("vault-udp"))
    if method == "stat":
        return sock.get_stats()[arguments[0]]
    return getattr(sock, method)(*map(_decoded, arguments))


def main() -> None:
    with UDPSocketClass(**json.loads(sys.argv[1])) as sock:
        sock.udp_recv_bytes.connect(lambda data, addr: _event("received", data.hex(), addr))
        sock.udp_peer_ready.connect(lambda addr: _event("ready", addr))
        sock.udp_peer_lost.connect(lambda addr, reason: _event("lost", addr, reason))
        sock.udp_peer_rejected.connect(lambda addr, key: _event("rejected", addr, key))
        _event("started")
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            try:
                returned = _call(sock, method, arguments)
            except Exception as error:  # the test says which ones may be
                _write(raised=f"{type(error).__name__}: {error}")
            else:
                _write(returned=returned)


if __name__ == "__main__":
    main()
