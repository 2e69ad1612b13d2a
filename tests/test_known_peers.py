# SPDX-License-Identifier: Apache-2.0
"""The known-peers file: whom we met is known after a restart, and people may edit what stands there."""

from __future__ import annotations

import base64
import errno
import logging
import os
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any, Callable

import pytest
from fakenet import FakeNet, Host, both_ready
from loopback import PATIENCE, Collector, address_of, eventually, on_posix
from test_identity import FakeMsvcrt, killed_at_every_line

import vault_udp_identity
from vault_udp_identity import KnownPeers
from vault_udp_socket import InvalidArgumentError, KnownPeersFileError, UDPSocketClass

ROOT = Path(__file__).resolve().parent.parent
A, B, C = ("10.0.0.1", 1001), ("10.0.0.2", 1002), ("10.0.0.3", 1003)
V6 = ("fd00::2", 1002)
KEY, OTHER_KEY = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
LINE = f"10.0.0.2 1002 {KEY}\n"

REMEMBER_MANY = """
import sys
from vault_udp_identity import KnownPeers

path, ip, key = sys.argv[1:]
peers = KnownPeers(path)
sys.stdin.readline()
for port in range(1, 26):
    peers.remember((ip, port), key)
"""


class Program(Host):
    """A host with the options of the two files."""

    def __init__(self, *args: Any, persistent: bool = False, remember: bool = False, **options: Any) -> None:
        self._more = {"persistent": persistent, "remember_peers": remember}
        super().__init__(*args, **options)

    def _start(self) -> None:
        self._options.update(self._more)
        super()._start()

    @property
    def met(self) -> list[tuple[Any, str]]:
        """What is to be written down: (address, key)."""
        return [(event.address, event.detail) for _, event in self.events if event.kind == "met"]

    @property
    def key(self) -> str:
        return base64.b64encode(self.sign_public).decode()


# --------------------------------------------------------------------------------------------- who is written


def test_an_identity_that_lasts_is_met_once_at_the_address_that_was_added() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True, lifetime=5)
    alice = Program(net, A, remember=True, lifetime=5)
    alice.add_peer(B)
    net.run(60)
    alice.add_peer(B)
    bob.kill()
    net.run(30)
    bob.restart()
    net.run(30)
    assert both_ready(alice, bob)
    assert alice.met == [(B, bob.key)]
    kinds = alice.kinds_of_events(B)
    assert kinds[:2] == ["met", "ready"], "written before anybody is told that it is ready"


@pytest.mark.parametrize(
    ("persistent", "remember", "added"), [(False, True, True), (True, False, True), (True, True, False)]
)
def test_others_are_not_met(persistent: bool, remember: bool, added: bool) -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=persistent)
    alice = Program(net, A, remember=remember)
    if added:
        alice.add_peer(B)
    bob.add_peer(A)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(5)
    assert alice.met == []


def test_who_was_supplied_is_not_met() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True)
    alice = Program(net, A, remember=True)
    alice.add_peer(B, bob.sign_public)
    assert net.run_until(lambda: both_ready(alice, bob))
    assert alice.met == []


def test_both_names_of_one_program_are_met() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True, alias=V6)
    alice = Program(net, A, remember=True, alias=("fd00::1", 1001))
    alice.add_peer(B)
    alice.add_peer(V6)
    assert net.run_until(lambda: alice.is_ready(B) and alice.is_ready(V6))
    net.run(10)
    assert {key for _, key in alice.met} == {bob.key}
    assert alice.peer(B).supplied == alice.peer(V6).supplied == bob.sign_public


def test_a_stranger_that_is_added_in_a_session_is_met() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True)
    alice = Program(net, A, remember=True)
    bob.add_peer(A)
    assert net.run_until(lambda: both_ready(alice, bob))
    alice.add_peer(B)
    assert alice.met == [(B, bob.key)]


def test_a_second_name_of_a_known_program_is_met() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True, alias=V6)
    alice = Program(net, A, remember=True, alias=("fd00::1", 1001))
    alice.add_peer(B)
    assert net.run_until(lambda: both_ready(alice, bob))
    alice.add_peer(V6)
    net.run(10)
    assert alice.peer(B) is alice.peer(V6)
    alice.add_peer(B)
    assert alice.met == [(B, bob.key), (V6, bob.key)], "each once"


def test_who_was_met_is_pinned_for_good() -> None:
    net = FakeNet()
    bob = Program(net, B, persistent=True)
    alice = Program(net, A, remember=True)
    alice.add_peer(B)
    assert net.run_until(lambda: both_ready(alice, bob))
    bob.stop()
    net.run(0.1)
    bob.restart(A, same_identity=False)
    net.run(200)
    assert not alice.is_ready(B)
    assert alice.kinds_of_events(B).count("rejected") == 1


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return tmp_path / "known peers"


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def meet(client: UDPSocketClass, *servers: UDPSocketClass) -> None:
    """Add the servers, and wait until what is to be written about them is."""
    ready = Collector[Any]()
    client.udp_peer_ready.connect(ready)
    for server in servers:
        client.add_peer(address_of(server))
    assert set(ready.wait_for(len(servers))) == {address_of(server) for server in servers}
    client.udp_peer_ready.disconnect(ready)


def test_one_line_each_is_written_for_those_that_last(known: Path, tmp_path: Path) -> None:
    with UDPSocketClass(0, identity_file=tmp_path / "1") as one, UDPSocketClass(
        0, identity_file=tmp_path / "2"
    ) as two, UDPSocketClass(0) as ephemeral, UDPSocketClass(0, identity_file=tmp_path / "3") as stranger:
        with UDPSocketClass(0, known_peers_file=known) as client:
            met_stranger = Collector[Any]()
            client.udp_peer_ready.connect(met_stranger)
            stranger.add_peer(address_of(client))
            met_stranger.wait_for(1)
            meet(client, one, two, ephemeral)
        expected = {f"127.0.0.1 {sock.recv_port} {sock.own_public_key}" for sock in (one, two)}
    assert sorted(lines_of(known)) == sorted(expected)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith("known")) == [
        "known peers",
        "known peers.lock",
    ]
    if os.name == "posix":
        assert known.stat().st_mode & 0o777 == 0o600


def test_after_a_restart_a_changed_key_is_refused_and_told_once(
    known: Path, tmp_path: Path, free_port: int
) -> None:
    with UDPSocketClass(free_port, identity_file=tmp_path / "1") as server:
        key = server.own_public_key
        with UDPSocketClass(0, known_peers_file=known) as client:
            meet(client, server)
    before = known.read_bytes()

    with UDPSocketClass(0, known_peers_file=known) as client:
        rejected, got = Collector[Any](), Collector[Any]()
        client.udp_peer_rejected.connect(rejected)
        with UDPSocketClass(free_port, identity_file=tmp_path / "2") as changed:
            changed.udp_recv_bytes.connect(got)
            client.add_peer(address_of(changed))
            client.send_data(b"for the known one", address_of(changed))
            assert rejected.wait_for(1) == [(address_of(changed), changed.own_public_key)]
            eventually(
                lambda: client.get_stats()["counters"]["identity_refused"] >= 3, "it is refused each time"
            )
            assert not client.wait_ready(address_of(changed), 0)
        assert len(rejected.items) == 1
        assert got.items == []
        with UDPSocketClass(free_port, identity_file=tmp_path / "1") as server:
            server.udp_recv_bytes.connect(got)
            assert got.wait_for(1)[0][0] == b"for the known one"
            assert client.get_peer_key(address_of(server)) == key
    assert known.read_bytes() == before


def test_who_was_met_is_written_although_the_program_stops_at_once(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_back = UDPSocketClass._call_back

    def after_stop(self: UDPSocketClass, deliveries: Any, between: Any) -> None:
        if any(event.kind == "met" for event in self._for_callbacks):
            eventually(lambda: self._stopped, "stop is called")
        call_back(self, deliveries, between)

    monkeypatch.setattr(UDPSocketClass, "_call_back", after_stop)
    with UDPSocketClass(0, identity_file=tmp_path / "identity") as server:
        with UDPSocketClass(0, known_peers_file=known) as client:
            client.add_peer(address_of(server))
            assert client.wait_ready(address_of(server), PATIENCE)
        assert lines_of(known) == [f"127.0.0.1 {server.recv_port} {server.own_public_key}"]


@pytest.mark.parametrize("we_begin", [True, False])
def test_nobody_else_is_accepted_at_a_known_address_that_was_not_added(known: Path, we_begin: bool) -> None:
    with UDPSocketClass(0) as impostor:
        known.write_text(f"127.0.0.1 {impostor.recv_port} {KEY}\n")
        with UDPSocketClass(0, known_peers_file=known) as sock:
            inbox, rejected = Collector[Any](), Collector[Any]()
            for end in (impostor, sock):
                end.udp_recv_bytes.connect(inbox)
            sock.udp_peer_rejected.connect(rejected)
            sender, other = (sock, impostor) if we_begin else (impostor, sock)
            sender.send_data("for the known one", address_of(other))
            assert rejected.wait_for(1) == [(address_of(impostor), impostor.own_public_key)]
            assert inbox.items == []


# ------------------------------------------------------------------------------------------------ people edit


def test_what_a_person_wrote_survives(known: Path) -> None:
    text = (
        "# my peers\n\n"
        f"   10.0.0.3\t1003   {KEY}   # the printer\n"
        "\t\n"
        f"#10.0.0.4 1004 {KEY}\n"
        "# Grüße, without an end of line"
    )
    known.write_text(text, encoding="utf-8")
    peers = KnownPeers(known)
    assert peers.key_of(C) == base64.b64decode(KEY)
    assert peers.key_of(("10.0.0.4", 1004)) is None
    peers.remember(B, OTHER_KEY)
    assert known.read_text(encoding="utf-8") == f"{text}\n10.0.0.2 1002 {OTHER_KEY}\n"
    assert peers.key_of(B) == base64.b64decode(OTHER_KEY)


def test_lines_end_as_windows_editors_end_them(known: Path) -> None:
    written = b"# mine\r\n\r\n" + LINE.replace("\n", "\r\n").encode()
    known.write_bytes(written)
    peers = KnownPeers(known)
    assert peers.key_of(B) == base64.b64decode(KEY)
    peers.remember(C, OTHER_KEY)
    assert known.read_bytes().startswith(written)
    assert lines_of(known) == ["# mine", "", LINE.strip(), f"10.0.0.3 1003 {OTHER_KEY}"]


def test_the_byte_order_mark_of_windows_editors_is_no_part_of_a_line(known: Path) -> None:
    known.write_bytes(b"\xef\xbb\xbf" + LINE.encode())
    assert KnownPeers(known).key_of(B) == base64.b64decode(KEY)


@on_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_that_a_person_gave_survives(known: Path, mode: int) -> None:
    known.write_text(LINE)
    known.chmod(mode)
    KnownPeers(known).remember(C, KEY)
    assert known.stat().st_mode & 0o777 == mode


def test_what_another_program_has_written_is_not_written_again(known: Path) -> None:
    one, two = KnownPeers(known), KnownPeers(known)
    one.remember(B, KEY)
    two.remember(B, KEY)
    assert known.read_text() == LINE


def test_a_removed_line_does_not_come_back(known: Path) -> None:
    peers = KnownPeers(known)
    peers.remember(B, KEY)
    known.write_text("# changed his identity\n")
    peers.remember(C, KEY)
    assert lines_of(known) == ["# changed his identity", f"10.0.0.3 1003 {KEY}"]
    assert peers.key_of(B) is None
    peers.remember(B, OTHER_KEY)
    assert KnownPeers(known).key_of(B) == base64.b64decode(OTHER_KEY)


def test_a_line_that_a_person_changed_meanwhile_stays(known: Path) -> None:
    peers = KnownPeers(known)
    known.write_text(LINE)
    with pytest.raises(KnownPeersFileError, match="another key"):
        peers.remember(B, OTHER_KEY)
    assert known.read_text() == LINE
    assert peers.key_of(B) == base64.b64decode(KEY)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("fd00:0:0::2 1002", V6),
        ("FD00::2 1002", V6),
        ("::ffff:10.0.0.2 1002", B),
    ],
)
def test_addresses_may_be_written_in_any_form(known: Path, written: str, address: Any) -> None:
    known.write_text(f"{written} {KEY}\n")
    assert KnownPeers(known).key_of(address) == base64.b64decode(KEY)


def test_what_is_written_for_ipv6_can_be_read(known: Path) -> None:
    KnownPeers(known).remember(V6, KEY)
    assert KnownPeers(known).key_of(V6) == base64.b64decode(KEY)


@pytest.mark.parametrize(
    "line",
    [
        "10.0.0.3",
        "10.0.0.3 1003",
        f"10.0.0.3 1003 {KEY} more",
        f"10.0.0.3:1003 {KEY}",
        f"10.0.0 1003 {KEY}",
        f"-printer.example 1003 {KEY}",
        f"10.0.0.3 0 {KEY}",
        f"10.0.0.3 65536 {KEY}",
        f"10.0.0.3 port {KEY}",
        f"10.0.0.3 1003 {KEY[:-4]}",
        f"10.0.0.3 1003 !{KEY[1:]}",
        "10.0.0.3 1003 junk",
        "<<<<<<< mine",
    ],
)
def test_a_line_that_is_none_is_told_by_its_number(known: Path, line: str) -> None:
    text = f"# mine\n\n{LINE}{line}\n"
    known.write_text(text)
    with pytest.raises(KnownPeersFileError, match="line 4: not `ip port key`") as caught:
        UDPSocketClass(0, known_peers_file=known)
    assert repr(str(known)) in str(caught.value)
    assert known.read_text() == text


def test_two_keys_for_one_address_are_told_by_the_number_of_the_second(known: Path) -> None:
    known.write_text(f"{LINE}{LINE}\n::ffff:10.0.0.2 1002 {OTHER_KEY}\n")
    with pytest.raises(KnownPeersFileError, match=r"line 4: another key for .*10\.0\.0\.2.*remove one"):
        UDPSocketClass(0, known_peers_file=known)


def test_a_file_that_is_no_text_and_a_folder_are_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff\xfe\x00")
    for path in (junk, tmp_path):
        with pytest.raises(KnownPeersFileError, match="cannot be read"):
            UDPSocketClass(0, known_peers_file=path)


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_a_folder_that_is_none_is_told_at_once(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KnownPeersFileError, match=rf"{folder}.* is no folder; make that first"):
        UDPSocketClass(0, known_peers_file=tmp_path / folder / "known")


def test_another_key_for_a_known_address_is_refused(known: Path) -> None:
    known.write_text(LINE)
    with UDPSocketClass(0, known_peers_file=known) as sock:
        with pytest.raises(
            InvalidArgumentError, match=r"not the one in the known-peers file.*remove the line"
        ):
            sock.add_peer((*B, OTHER_KEY))
        assert sock.get_peers() == []
        sock.add_peer((*B, KEY))
        sock.add_peer((*C, OTHER_KEY))
        assert sock.get_peers() == [B, C]


# ----------------------------------------------------------------------------------------- sharing and faults


def test_two_programs_write_into_one_file_at_the_same_time(known: Path) -> None:
    ips = ("10.1.0.1", "10.1.0.2", "10.1.0.3")
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", REMEMBER_MANY, str(known), ip, KEY], cwd=ROOT, stdin=subprocess.PIPE
        )
        for ip in ips
    ]
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(b"go\n")
        program.stdin.flush()
    for program in programs:
        program.communicate(timeout=60)
        assert program.returncode == 0
    assert sorted(lines_of(known)) == sorted(f"{ip} {port} {KEY}" for ip in ips for port in range(1, 26))


def test_what_another_program_wrote_is_known_after_the_next_change(known: Path) -> None:
    one, two = KnownPeers(known), KnownPeers(known)
    two.remember(B, KEY)
    one.remember(C, OTHER_KEY)
    assert one.key_of(B) == base64.b64decode(KEY)


def test_the_lock_is_waited_for(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl: Any = pytest.importorskip("fcntl", reason="locks of POSIX")
    lock, actual, waits = vault_udp_identity._Lock(str(known)), fcntl.flock, threading.Event()
    assert lock.acquire(blocking=False)

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            with pytest.raises(BlockingIOError):  # somebody has it, so to ask for it is to wait
                actual(descriptor, operation | fcntl.LOCK_NB)
            waits.set()
        actual(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    thread = threading.Thread(target=KnownPeers(known).remember, args=(B, KEY))
    thread.start()
    assert waits.wait(PATIENCE)
    assert not known.exists()
    lock.release()
    thread.join(PATIENCE)
    assert known.read_text() == LINE


def test_on_windows_the_lock_is_waited_for_too(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMsvcrt()
    monkeypatch.setattr(vault_udp_identity, "sys", types.SimpleNamespace(platform="win32"))
    monkeypatch.setattr(vault_udp_identity, "msvcrt", fake, raising=False)
    KnownPeers(known).remember(B, KEY)
    assert fake.calls[0] == (FakeMsvcrt.LK_LOCK, 1)
    fake.refusal = OSError(36, "Resource deadlock avoided")  # what Windows says after ten tries
    with pytest.raises(KnownPeersFileError, match="Resource deadlock avoided"):
        KnownPeers(known).remember(C, KEY)
    assert known.read_text() == LINE


@on_posix
def test_killed_at_any_moment_the_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    left = killed_at_every_line(tmp_path, "known", KEY)
    old, new = "# old\n", f"# old\n10.0.0.1 1 {KEY}\n"
    assert set(left) == {old, new}
    assert left == [old] * left.count(old) + [new] * left.count(new), "once new, it stays so"


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_what_the_system_refuses_leaves_the_old_file(
    known: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    known.write_text(LINE)
    peers = KnownPeers(known)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(KnownPeersFileError, match=r"known peers.*No space left on device"):
        peers.remember(C, KEY)
    monkeypatch.undo()
    assert known.read_text() == LINE
    assert sorted(entry.name for entry in known.parent.iterdir()) == ["known peers", "known peers.lock"]
    KnownPeers(known).remember(C, KEY)


def folder_gone(known: Path) -> None:
    known.parent.rmdir()


def person_errs(known: Path) -> None:
    known.write_text("10.0.0.3 oops\n")


def lock_is_a_folder(known: Path) -> None:
    known.with_name(known.name + ".lock").mkdir()


@pytest.mark.parametrize("spoil", [folder_gone, person_errs, lock_is_a_folder])
def test_a_file_that_cannot_be_written_is_counted_and_logged_and_harms_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    known = tmp_path / "folder" / "known"
    known.parent.mkdir()
    with UDPSocketClass(0, identity_file=tmp_path / "id") as server:
        got = Collector[Any]()
        server.udp_recv_data.connect(got)
        with UDPSocketClass(0, known_peers_file=known) as client:
            spoil(known)
            before = known.read_bytes() if known.exists() else b""
            with caplog.at_level(logging.ERROR):
                meet(client, server)
            client.send_data("all the same")
            assert got.wait_for(1)[0][0] == "all the same"
            assert client.get_stats()["counters"]["known_peer_not_written"] == 1
        assert (known.read_bytes() if known.exists() else b"") == before
    (record,) = [record for record in caplog.records if "could not be written down" in record.getMessage()]
    assert str(server.recv_port) in record.getMessage()
    assert str(known) in record.getMessage()


def test_what_is_met_while_the_file_is_read_again_is_known(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = KnownPeers(known)
    read, remembered = threading.Event(), threading.Event()
    real = peers._read

    def read_slowly() -> Any:
        keys = real()
        read.set()
        remembered.wait(0.2)  # in vain: whoever remembers waits for us
        return keys

    monkeypatch.setattr(peers, "_read", read_slowly)
    reader = threading.Thread(target=peers.reload)
    reader.start()
    assert read.wait(PATIENCE)
    monkeypatch.setattr(peers, "_read", real)
    peers.remember(B, KEY)
    remembered.set()
    reader.join()
    assert peers.key_of(B) is not None


@on_posix
def test_a_link_stays_one(known: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(known)
    KnownPeers(tmp_path / "link").remember(B, KEY)
    assert (tmp_path / "link").is_symlink()
    assert lines_of(known) == [LINE.strip()]


@on_posix
@pytest.mark.parametrize("refuses", [True, False])
def test_a_folder_that_cannot_be_flushed_is_no_fault_of_the_file(
    known: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO if refuses else errno.EINVAL, "refused")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if refuses:
        with pytest.raises(KnownPeersFileError, match="refused"):
            KnownPeers(known).remember(B, KEY)
    else:
        KnownPeers(known).remember(B, KEY)
    assert lines_of(known) == [LINE.strip()]
