# SPDX-License-Identifier: Apache-2.0
"""The guard of conftest.py catches what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAKY_TESTS = """
import socket, threading

kept = []
finish = threading.Event()

def test_clean():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

def test_thread():
    threading.Thread(target=finish.wait, name="left running", daemon=True).start()

def test_socket():
    finish.set()
    kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    kept[0].bind(("127.0.0.1", 0))

def test_clean_again():
    kept[0].close()
"""


def test_guard_names_the_thread_and_the_socket_left_behind(pytester: pytest.Pytester) -> None:
    source = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    pytester.makeconftest(source.replace("THREAD_GRACE = 5.0", "THREAD_GRACE = 0.1"))
    pytester.makepyfile(LEAKY_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*the test left threads running: *'left running'*",
            "*the test left sockets open*127.0.0.1*",
        ]
    )
