# SPDX-License-Identifier: Apache-2.0
"""What every test gets: the same hypothesis examples each time, and a check that it cleans up."""

from __future__ import annotations

import socket
import threading
import time
from typing import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, settings

# How fast a machine draws examples must not decide a test: no deadline, no complaint about slowness.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

# Seconds that threads which were told to stop have for it; only a test that fails waits that long.
THREAD_GRACE = 5.0


def _open_sockets() -> set[tuple[int, str]]:
    connections = psutil.Process().net_connections(kind="inet")
    return {(connection.fd, str(connection.laddr)) for connection in connections}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a running thread or an open internet socket."""
    threads = set(threading.enumerate())
    sockets = _open_sockets()
    yield
    deadline = time.monotonic() + THREAD_GRACE
    left_threads = set(threading.enumerate()) - threads
    for thread in left_threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    running = sorted(thread.name for thread in left_threads if thread.is_alive())
    assert not running, f"the test left threads running: {running}"
    left_sockets = sorted(_open_sockets() - sockets)
    assert not left_sockets, f"the test left sockets open (descriptor, address): {left_sockets}"


@pytest.fixture
def free_port() -> int:
    """A UDP port that was free on 127.0.0.1 a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
