# SPDX-License-Identifier: Apache-2.0
"""What newcomers do, and what they are told then."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import pytest
from fakenet import FakeNet, both_ready
from loopback import PATIENCE, Collector, Inbox, address_of, eventually, on_posix, pair, plain_socket

import vault_udp_packet as packet
from vault_udp_socket import (
    BindError,
    InvalidArgumentError,
    InvalidPortError,
    MessageTooLargeError,
    StoppedError,
    UDPSocketClass,
)
from vault_udp_socket_helper import generate_keys_asym

ROOT = Path(__file__).resolve().parent.parent
A, B, C = ("10.0.0.1", 1001), ("10.0.0.2", 1002), ("10.0.0.3", 1003)
NO_HOSTS = ["0.0.0.0", "::", "224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1", "ff05::2%1"]


@pytest.mark.parametrize("ip", NO_HOSTS)
def test_addresses_of_no_single_host_are_refused(ip: str) -> None:
    with UDPSocketClass(0) as sock:
        for use in (sock.add_peer, lambda addr: sock.send_data("text", addr)):
            with pytest.raises(InvalidArgumentError, match=r"no single host's"):
                use((ip, 8000))
        assert sock.get_peers() == []


@pytest.mark.parametrize(
    "host", ["223.255.255.254", "127.0.0.1", "230.example.com", "ff.example", "fe80::1%1"]
)
def test_other_addresses_are_not(host: str) -> None:
    with UDPSocketClass(0) as sock:
        sock._resolver._getaddrinfo = lambda *_, **__: []  # no name server is asked
        sock.add_peer((host, 8000))
        assert len(sock.get_peers()) == 1


def test_a_link_local_address_needs_its_interface() -> None:
    with UDPSocketClass(0) as sock, pytest.raises(InvalidArgumentError, match=r"its interface.*fe80::1%eth0"):
        sock.add_peer(("fe80::1", 8000))


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(BindError, match=r"'192\.0\.2\.7' is no address of this machine"):
        UDPSocketClass(0, bind_address="192.0.2.7")


@pytest.mark.parametrize("bind_address", [5, b"127.0.0.1", "localhost"])
def test_a_bind_address_is_text(bind_address: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="must be an IPv4 or IPv6 address"):
        UDPSocketClass(0, bind_address=bind_address)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keepalive", float("inf")), ("keepalive", float("nan")), ("keepalive", 0.5),
        ("rate_limit", float("inf")), ("rate_limit", float("nan")), ("rate_limit", 10**400),
        ("identity_file", 5), ("identity_file", b"bytes"), ("identity_file", "a\0b"),
        ("known_peers_file", 5), ("known_peers_file", "a\0b"), ("bind_address", "fe80::1"),
        ("identity_file", ""), ("known_peers_file", ""), ("bind_address", "224.0.0.1"),
        ("bind_address", "255.255.255.255"), ("bind_address", "ff02::1"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_used_are_named(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgumentError, match=name):
        UDPSocketClass(0, **arguments)


def test_the_highest_rate_limit_limits_nothing() -> None:
    with UDPSocketClass(0, 10**9) as receiver, UDPSocketClass(0) as sender:
        got: list[bytes] = []
        receiver.udp_recv_bytes.connect(lambda data, addr: got.append(data))
        sender.add_peer(address_of(receiver))
        assert sender.wait_ready(address_of(receiver), PATIENCE)
        for _ in range(500):
            sender.send_data(b"text")
        eventually(lambda: len(got) == 500, "all have come")


def test_data_and_addresses_that_cannot_be_sent_are_named() -> None:
    with UDPSocketClass(0) as sock:
        sock.add_peer(("127.0.0.1", 9))
        with pytest.raises(InvalidArgumentError, match="half a character"):
            sock.send_data("\ud800")
        unhashable: Any = (["127.0.0.1"], 9)
        with pytest.raises(InvalidArgumentError, match="must be a tuple"):
            sock.send_data(b"text", unhashable)
        no_text: Any = 5
        with pytest.raises(InvalidArgumentError, match="must be a str"):
            sock.get_peers_by_ip(no_text)


@pytest.mark.parametrize("addr", [("127.0.0.1", 0), ("127.0.0.1", 70_000), ("127.0.0.1", "9"), "127.0.0.1"])
def test_keys_for_what_is_no_address_are_refused(addr: Any) -> None:
    enc_public, _, sign_public, _ = generate_keys_asym()
    with UDPSocketClass(0) as sock:
        with pytest.raises((InvalidArgumentError, InvalidPortError)):
            sock.encryption.update_peer_keys(addr, enc_public, sign_public)
        assert sock._sender.is_alive()
        assert sock.get_stats()["encryption_stats"]["active_peer_keys"] == 0


def test_a_callback_that_exits_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with UDPSocketClass(0) as receiver, UDPSocketClass(0) as sender:
        receiver.udp_recv_data.connect(lambda data, addr: sys.exit())
        got = Collector[Any]()
        receiver.udp_recv_bytes.connect(lambda data, addr: got(data))
        for _ in range(2):
            sender.send_data(b"text", address_of(receiver))
        assert got.wait_for(2) == [b"text"] * 2
        eventually(lambda: receiver.get_stats()["counters"]["callback_errors"] == 2, "both are counted")
    assert "raised; it stays connected" in caplog.text


@pytest.mark.parametrize("timeout", [float("inf"), 1e10])
def test_times_without_end_are_no_errors(timeout: float) -> None:
    sock, other = UDPSocketClass(0), UDPSocketClass(0)
    with other:
        sock.add_peer(address_of(other))
        assert sock.wait_ready(address_of(other), timeout)
        sock.stop(timeout)
    assert not sock._receiver.is_alive()


def test_what_waited_is_counted_for_the_peer_too() -> None:
    net = FakeNet()
    alice = net.node(A, B)
    alice.send(B, b"one", b"two")
    peer = alice.peer(B)
    alice.node.close(net.now)
    assert peer.counters == {"lost_at_stop": 2}


def test_one_file_cannot_be_both(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for other in ("file", "link"):
        with pytest.raises(InvalidArgumentError, match="give each its own"):
            UDPSocketClass(0, identity_file=tmp_path / "file", known_peers_file=tmp_path / other)
    assert not (tmp_path / "file").exists()


def test_coroutine_functions_are_no_slots() -> None:
    async def on_data(data: str, addr: tuple[str, int]) -> None:
        await asyncio.sleep(0)

    with UDPSocketClass(0) as sock, pytest.raises(
        ValueError, match=r"on_data is a coroutine.*call_soon_threadsafe"
    ):
        sock.udp_recv_data.connect(on_data)


def test_the_place_of_a_callback_that_raises_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with UDPSocketClass(0) as receiver, UDPSocketClass(0) as sender:
        receiver.udp_recv_data.connect(lambda data: None)  # one argument too few
        sender.send_data("text", address_of(receiver))
        eventually(lambda: receiver.get_stats()["counters"]["callback_errors"] == 1, "it has raised")
    (record,) = [record for record in caplog.records if "raised" in record.getMessage()]
    assert f"{__file__}:" in record.getMessage()


def test_what_is_too_large_is_told_with_what_would_not_be() -> None:
    with UDPSocketClass(0, mtu=1500) as sock:
        with pytest.raises(MessageTooLargeError) as raised:
            sock.send_data(os.urandom(1400), ("127.0.0.1", 9))
        room = int(str(raised.value).partition(", or ")[2].partition(" ")[0])
        sock.send_data(os.urandom(room), ("127.0.0.1", 9))
        with pytest.raises(MessageTooLargeError):
            sock.send_data(os.urandom(room + 1), ("127.0.0.1", 9))


def test_a_program_that_ends_without_stop_loses_nothing_and_says_goodbye() -> None:
    program = """
        import os, sys
        from vault_udp_socket import UDPSocketClass
        sock = UDPSocketClass(0)
        server = ("127.0.0.1", int(sys.argv[1]))
        sock.add_peer(server)
        assert sock.wait_ready(server, 10)
        for number in range(300):
            sock.send_data(os.urandom(1000), server)
        """
    with UDPSocketClass(0, None) as server:
        got, lost = Collector[Any](), Collector[Any]()
        server.udp_recv_bytes.connect(lambda data, addr: got(data))
        server.udp_peer_lost.connect(lambda addr, reason: lost(reason))
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(server.recv_port)],
            cwd=ROOT,
            check=True,
            timeout=60,
        )
        assert len(got.wait_for(300)) == 300
        assert lost.wait_for(1) == ["the peer said goodbye"]


@on_posix
def test_the_end_of_a_forked_child_leaves_the_parents_sockets_alone() -> None:
    """Its atexit functions run, too, with locks that a thread of the parent's may have held."""
    program = """
        import os, sys
        from vault_udp_datagram import DatagramSocket
        from vault_udp_socket import UDPSocketClass
        sock, server = UDPSocketClass(0), ("127.0.0.1", int(sys.argv[1]))
        sock.add_peer(server)
        assert sock.wait_ready(server, 10)
        child = os.fork()
        if not child:
            sock._datagrams._lock.acquire()
            sys.exit(7)
        assert os.waitpid(child, 0)[1] >> 8 == 7
        sock.send_data("still there", server)
        """
    with UDPSocketClass(0) as server:
        got, lost = Collector[Any](), Collector[Any]()
        server.udp_recv_data.connect(lambda data, addr: got((data, len(lost.items))))
        server.udp_peer_lost.connect(lambda addr, reason: lost(reason))
        code = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), str(server.recv_port)]
        subprocess.run(code, cwd=ROOT, check=True, timeout=30)
        assert got.wait_for(1) == [("still there", 0)]


def test_a_callback_that_hangs_does_not_hold_up_the_end_for_long() -> None:
    program = """
        import threading
        import vault_udp_carrier
        from vault_udp_socket import UDPSocketClass
        vault_udp_carrier.TIMEOUT_AT_EXIT = 0.1
        stop = UDPSocketClass.stop
        UDPSocketClass.stop = lambda self, timeout: print(timeout) or stop(self, timeout)
        one, other = UDPSocketClass(0), UDPSocketClass(0)
        entered = threading.Event()
        def hang(data, addr):
            entered.set()
            threading.Event().wait()
        one.udp_recv_data.connect(hang)
        other.send_data("text", ("127.0.0.1", one.recv_port))
        assert entered.wait(10)
        """
    code = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(code, cwd=ROOT, check=True, timeout=30, stdout=subprocess.PIPE, text=True)
    timeouts = [float(text) for text in done.stdout.split()]
    assert len(timeouts) == 2
    assert max(timeouts) <= 0.1, "both share it"
    assert min(timeouts) > 0.05, "but the second has time to send what it has, too"


def test_messages_above_the_rate_limit_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet()
    alice, bob = net.node(A, B), net.node(B, A, rate_limit=10)
    assert net.run_until(lambda: both_ready(alice, bob))
    with caplog.at_level(logging.WARNING):
        alice.send(B, *[b"text"] * 50)
        net.run(1)
        alice.send(B, *[b"text"] * 50)
        net.run(1)
    assert bob.node.counters["rate_limited"] > 50
    assert [record.getMessage() for record in caplog.records].count(
        f"{A}: more than 10 messages a second are dropped (rate_limited)"
    ) == 1


def test_what_happens_to_an_added_peer_is_told_and_to_strangers_only_who_debugs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "vault_udp")
    net = FakeNet()
    _, bob = net.node(A, B, lifetime=60), net.node(B, lifetime=1000)
    net.run(1)
    bob.move(C)
    net.run(70)
    bob.stop()
    net.run(1)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("DEBUG", f"{B}: looking for it"),
        ("DEBUG", f"{A}: ready, session"),
        ("INFO", f"{B}: ready, session"),
        ("DEBUG", f"who was at {B} is at {C} now"),
        ("DEBUG", "our session keys are replaced, for the 1. time"),
        ("INFO", f"{B}: lost: the peer said goodbye"),
        ("DEBUG", f"{B}: looking for it"),
    ]


def test_nothing_is_logged_under_the_lock() -> None:
    """A handler that sends has a lock of its own, which who logs may hold while it waits for ours."""

    class Remote(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.getMessage(), a._holds_lock()))
            with contextlib.suppress(StoppedError):
                a.send_data(record.getMessage(), address_of(b))

    lines: list[tuple[str, bool]] = []
    library = logging.getLogger("vault_udp")
    handler, level = Remote(), library.level
    with pair() as (a, b):
        inbox, port = Inbox(b), a.recv_port
        library.addHandler(handler)
        library.setLevel(logging.DEBUG)
        try:
            with plain_socket() as silent:
                other = silent.getsockname()
                a.send_data("in vain", other)
                a.remove_peer(other)
            inbox.wait_for_text(f"{other}: messages dropped that were waiting: 1 (peer_removed)")
            a.update_recv_port(0)
            a.get_stats()
            inbox.wait_for_text(f"listening on port {a.recv_port}, and for a moment still on {port}")
        finally:
            library.removeHandler(handler)
            library.setLevel(level)
        assert not any(is_locked for _, is_locked in lines)


def test_a_socket_tells_where_it_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vault_udp")
    with UDPSocketClass(0) as sock:
        first = sock.recv_port
        sock.update_recv_port(0)
        second = sock.recv_port
        sock.stop()
    assert [record.getMessage() for record in caplog.records] == [
        f"listening on port {first}",
        f"listening on port {second}, and for a moment still on {first}",
        f"stopping; port {second} is free then",
    ]


def test_another_version_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet()
    net.node(A)
    body = packet.make_control_body(b"{}", 512)
    with caplog.at_level(logging.WARNING, "vault_udp"):
        net.outsider(B).send(A, body.replace(b"\xa1v\x02", b"\xa1v\x03"))
        net.run(1)
    assert "other_version" in caplog.text


def test_who_does_not_answer_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet()
    with caplog.at_level(logging.INFO):
        net.node(A, B)
        net.run(10)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{B}: no answer yet; is it running, are address and port right, ")


def test_nobody_asks_for_the_address_of_who_has_none_yet(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet()
    with caplog.at_level(logging.INFO):
        net.node(A, ("nowhere.example", 1000))
        net.run(10)
    assert "no answer yet" not in caplog.text
    assert "nowhere.example" in caplog.text


def test_who_answers_is_not(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet(loss=0.1)
    with caplog.at_level(logging.INFO):
        alice, bob = net.node(A, B), net.node(B, A)
        net.run(30)
    assert both_ready(alice, bob)
    assert "no answer" not in caplog.text


def test_another_key_than_the_one_given_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    net = FakeNet()
    alice = net.node(A)
    net.node(B, A)
    alice.add_peer(B, bytes(31) + b"\1")
    with caplog.at_level(logging.WARNING):
        net.run(30)
    assert alice.node.counters["identity_refused"] > 1
    assert (
        len([record for record in caplog.records if "not the one given for it" in record.getMessage()]) == 1
    )


def test_a_loss_is_told_once() -> None:
    """A peer that is killed, and later comes back as somebody new."""
    net = FakeNet(delay=0.01)
    alice, bob = net.node(A, B), net.node(B, A)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.every(1.0, lambda: alice.send(B, b"text"), until=net.now + 40)
    bob.kill()
    net.run(15)
    bob.restart(A, same_identity=False)
    net.run(20)
    assert alice.is_ready(B)
    kinds = [kind for kind in alice.kinds_of_events(B) if kind != "rejected"]
    assert kinds == ["ready", "lost", "ready"]


def test_a_line_removed_from_the_known_peers_file_binds_nobody_any_more(tmp_path: Path) -> None:
    known = tmp_path / "known"
    with UDPSocketClass(0, known_peers_file=known) as client:
        with UDPSocketClass(0, identity_file=tmp_path / "first") as server:
            address = address_of(server)
            client.add_peer(address)
            assert client.wait_ready(address, PATIENCE)
            eventually(
                lambda: known.exists() and server.own_public_key in known.read_text(), "it is written down"
            )
        with UDPSocketClass(address[1], identity_file=tmp_path / "second") as server:
            with pytest.raises(InvalidArgumentError, match="remove the line"):
                client.add_peer((*address, server.own_public_key))
            known.write_text("")
            client.remove_peer(address)
            client.add_peer((*address, server.own_public_key))
            assert client.wait_ready(address, PATIENCE)
            assert client.get_peer_key(address) == server.own_public_key


def test_what_a_killed_program_left_of_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "id.new").write_text("half of an ident")
    with UDPSocketClass(0, identity_file=tmp_path / "id") as sock:
        key = sock.own_public_key
    with UDPSocketClass(0, identity_file=tmp_path / "id") as sock:
        assert sock.own_public_key == key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["id", "id.lock"]


def test_a_port_is_freed_though_nothing_comes() -> None:
    with UDPSocketClass(0) as sock:
        old = sock.recv_port
        sock.update_recv_port(0)

        def is_free() -> bool:
            try:
                UDPSocketClass(old).stop()
            except BindError:
                return False
            return True

        eventually(is_free, "the old port is free")


def test_a_stopped_socket_is_freed_at_once() -> None:
    """Not when the collector comes: sockets that come and go would take memory until then."""
    gc.disable()
    try:
        sock = UDPSocketClass(0)
        sock.udp_recv_data.connect(print)
        sock.udp_recv_bytes.connect(print)
        sock.update_recv_port(0)
        freed = weakref.ref(sock)
        sock.stop()
        del sock
        eventually(lambda: freed() is None, "it is freed")
    finally:
        gc.enable()


def test_many_moves_in_a_row_lose_nothing() -> None:
    with UDPSocketClass(0, None) as mover, UDPSocketClass(0) as sender:
        got: list[bytes] = []
        mover.udp_recv_bytes.connect(lambda data, addr: got.append(data))
        address = address_of(mover)
        sender.add_peer(address)
        assert sender.wait_ready(address, PATIENCE)
        sent: list[bytes] = []

        def few_are_on_their_way() -> bool:
            return len(sent) - len(got) < 50

        for _ in range(4):
            mover.update_recv_port(0)
            for _ in range(100):
                sent.append(b"%d" % len(sent))
                sender.send_data(sent[-1], address)
                eventually(few_are_on_their_way, "what was sent arrives")
        eventually(lambda: len(got) == len(sent), "all of it")
        assert sorted(got) == sorted(sent)  # what goes to two ports may be overtaken


def test_what_the_system_refuses_is_counted_for_the_peer() -> None:
    with UDPSocketClass(0, bind_address="127.0.0.1") as sock:
        sock.add_peer(("::1", 8000))
        eventually(
            lambda: (sock.get_peer_info(("::1", 8000)) or {})["counters"].get("socket_EAFNOSUPPORT"),
            "it is named",
        )
        assert sock.get_stats()["counters"]["socket_EAFNOSUPPORT"] >= 1
