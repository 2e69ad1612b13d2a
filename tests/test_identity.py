# SPDX-License-Identifier: Apache-2.0
"""Our own identity: the file that keeps it, its lock, its fingerprint, and who may take whose place."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any, Callable

import pytest
from base_peer import BasePeer
from fakenet import EPOCH, Datagram, FakeNet, Host, both_ready
from loopback import Collector, address_of, assert_free, on_posix, plain_socket

import vault_udp_identity
from vault_udp_identity import Identity, IdentityFile, fingerprint
from vault_udp_packet import looks_clear
from vault_udp_socket import BindError, IdentityFileError, InvalidArgumentError, UDPSocketClass

ROOT = Path(__file__).resolve().parent.parent
A, B, C, D = ((f"10.0.0.{number}", 1000 + number) for number in range(1, 5))
X = ("10.0.0.9", 9)
KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()
ZERO_KEY = base64.b64encode(bytes(32)).decode()
GOOD_FILE = json.dumps({"enc_private": KEY, "sign_private": OTHER_KEY})

KILLED_AT_EVERY_LINE = """
import json, os, pathlib, signal, sys
import vault_udp_identity

folder, action = pathlib.Path(sys.argv[1]), sys.argv[2]

def act(path):
    if action == "identity":
        vault_udp_identity.IdentityFile(path)
    else:
        vault_udp_identity.KnownPeers(path).remember(("10.0.0.1", 1), sys.argv[3])

def die_at(line):
    steps = 0
    def trace(frame, event, argument):
        nonlocal steps
        if not frame.f_code.co_filename.endswith("vault_udp_identity.py"):
            return None
        steps += event == "line"
        if steps > line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

left = []
for line in range(1000):
    path = folder / str(line) / "file"
    path.parent.mkdir()
    if action != "identity":
        path.write_bytes(b"# old\\n")
    child = os.fork()
    if not child:
        die_at(line)
        act(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    left.append(path.read_text() if path.exists() else None)
    if os.WIFEXITED(status):
        act(path)  # nothing that a killed one has left is in the way
        break
    act(path)
print(json.dumps(left))
"""

HOLD = """
import sys
from vault_udp_socket import UDPSocketClass

sock = UDPSocketClass(0, identity_file=sys.argv[1])
print(sock.own_public_key, flush=True)
sys.stdin.read()
"""


def private_file(path: Path, text: str = GOOD_FILE, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(mode)
    return path


def killed_at_every_line(folder: Path, *arguments: str) -> list[str | None]:
    """The file after its process was killed at its first, second … line; at last not killed."""
    command = [sys.executable, "-c", KILLED_AT_EVERY_LINE, str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    left: list[str | None] = json.loads(done.stdout)
    assert len(left) > 20
    return left


# -------------------------------------------------------------------------------------------------- first use


def test_it_is_made_on_first_use_for_our_eyes_only(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    before = os.umask(0)
    try:
        IdentityFile(path).close()
    finally:
        os.umask(before)
    assert set(json.loads(path.read_text())) == {"enc_private", "sign_private"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["identity", "identity.lock"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_own_public_key_is_the_same_after_a_restart_and_differs_between_files(tmp_path: Path) -> None:
    keys = []
    for name in ("one", "one", "two"):
        with UDPSocketClass(0, identity_file=tmp_path / name) as sock:
            keys.append((sock.own_public_key, sock.get_stats()["enc_public_key"]))
    assert keys[0] == keys[1]
    assert keys[0][0] != keys[2][0]
    assert keys[0][1] != keys[2][1]


def test_what_was_made_once_is_never_written_again(tmp_path: Path) -> None:
    path = private_file(tmp_path / "identity", GOOD_FILE + "  \n")
    before = path.stat()
    file = IdentityFile(str(path))
    file.close()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert file.path == str(path)


@on_posix
def test_killed_at_any_moment_of_first_use_there_is_no_file_or_a_whole_one(tmp_path: Path) -> None:
    left = killed_at_every_line(tmp_path, "identity")
    assert left[0] is None
    assert left[-1] is not None
    assert left[-2] is not None, "killed behind the rename"
    for text in left:
        assert text is None or set(json.loads(text)) == {"enc_private", "sign_private"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_the_system_refuses_leaves_no_file_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "identity"

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(IdentityFileError, match=r"identity.*No space left on device"):
        UDPSocketClass(0, identity_file=path)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.lock"]
    UDPSocketClass(0, identity_file=path).stop()


# ------------------------------------------------------------------------------------------------------- lock


def test_a_second_socket_of_the_same_process_is_refused_until_stop(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with UDPSocketClass(0, identity_file=path) as sock:
        for _ in range(2):
            with pytest.raises(IdentityFileError, match="in use by another socket") as caught:
                UDPSocketClass(0, identity_file=path)
            assert repr(str(path)) in str(caught.value)
        sock.stop()
        UDPSocketClass(0, identity_file=path).stop()
        sock.stop()


@on_posix
def test_a_link_to_a_file_in_use_is_refused(tmp_path: Path) -> None:
    path, link = tmp_path / "identity", tmp_path / "link"
    link.symlink_to(path)
    with UDPSocketClass(0, identity_file=path), pytest.raises(IdentityFileError, match="in use by another"):
        UDPSocketClass(0, identity_file=link)


def test_a_socket_that_cannot_bind_lets_the_file_go(tmp_path: Path, free_port: int) -> None:
    path = tmp_path / "identity"
    with plain_socket("0.0.0.0", free_port), pytest.raises(BindError):
        UDPSocketClass(free_port, identity_file=path)
    IdentityFile(path).close()


def test_a_socket_that_gets_no_thread_lets_file_and_port_go(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            UDPSocketClass(free_port, identity_file=tmp_path / "identity")
    assert_free(free_port)
    IdentityFile(tmp_path / "identity").close()


@on_posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("stopped", [True, False])
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, stopped: bool) -> None:
    """Neither when the parent stops, nor when it is killed and only lets go of its descriptors."""
    sock = UDPSocketClass(0, identity_file=tmp_path / "identity")
    end_reader, end_writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end_writer)
        os.write(ready_writer, b"x")
        os.read(end_reader, 1)
        os._exit(0)
    try:
        os.read(ready_reader, 1)
        if stopped:
            sock.stop()
        else:
            assert sock._identity_file is not None
            sock._identity_file._lock.abandon()
        IdentityFile(tmp_path / "identity").close()
    finally:
        for descriptor in (end_writer, end_reader, ready_reader, ready_writer):
            os.close(descriptor)
        os.waitpid(child, 0)
        sock.stop()


def test_an_argument_that_is_refused_comes_before_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with pytest.raises(InvalidArgumentError):
        UDPSocketClass(0, lifetime=1, identity_file=path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_refused_leaves_the_port_free(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(IdentityFileError):
        UDPSocketClass(free_port, identity_file=private_file(tmp_path / "identity", "junk"))
    assert_free(free_port)


@on_posix
def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        key = holder.stdout.readline().decode().strip()
        with pytest.raises(IdentityFileError, match="in use by another socket"):
            UDPSocketClass(0, identity_file=path)
        holder.kill()
        holder.wait()
    with UDPSocketClass(0, identity_file=path) as sock:
        assert sock.own_public_key == key


class FakeMsvcrt(types.ModuleType):
    """What `msvcrt.locking` does: a byte of a file is locked for one descriptor at a time."""

    LK_UNLCK, LK_LOCK, LK_NBLCK = 0, 1, 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.calls: list[tuple[int, int]] = []
        self.refusal: OSError | None = None

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        self.calls.append((mode, count))
        if self.refusal is not None and mode != self.LK_UNLCK:
            raise self.refusal


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> FakeMsvcrt:
    fake = FakeMsvcrt()
    monkeypatch.setattr(vault_udp_identity, "sys", types.SimpleNamespace(platform="win32"))
    monkeypatch.setattr(vault_udp_identity, "msvcrt", fake, raising=False)
    return fake


def test_on_windows_a_byte_of_the_lock_file_is_locked_without_waiting(
    tmp_path: Path, windows: FakeMsvcrt
) -> None:
    file = IdentityFile(tmp_path / "identity")
    assert windows.calls == [(FakeMsvcrt.LK_NBLCK, 1)]
    file.close()
    windows.refusal = PermissionError(13, "Permission denied")
    with pytest.raises(IdentityFileError, match="in use by another socket"):
        IdentityFile(tmp_path / "identity")


def test_on_windows_another_refusal_is_told_as_it_is(tmp_path: Path, windows: FakeMsvcrt) -> None:
    windows.refusal = OSError(36, "Resource deadlock avoided")
    with pytest.raises(IdentityFileError, match="Resource deadlock avoided"):
        IdentityFile(tmp_path / "identity")


# --------------------------------------------------------------------------------------------------- refusals


@on_posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = private_file(tmp_path / "identity", mode=mode)
    with pytest.raises(IdentityFileError, match=f"mode {mode:04o}.*0600") as caught:
        UDPSocketClass(0, identity_file=path)
    assert repr(str(path)) in str(caught.value)
    path.chmod(0o400)
    UDPSocketClass(0, identity_file=path).stop()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        GOOD_FILE[:-1],
        GOOD_FILE[: len(GOOD_FILE) // 2],
        "null",
        "5",
        "[]",
        "{}",
        json.dumps({"enc_private": KEY}),
        json.dumps({"enc_private": KEY, "sign_private": None}),
        json.dumps({"enc_private": KEY, "sign_private": 5}),
        json.dumps({"enc_private": KEY, "sign_private": OTHER_KEY[:-4]}),
        json.dumps({"enc_private": KEY + "AAAA", "sign_private": OTHER_KEY}),
        json.dumps({"enc_private": KEY, "sign_private": "!" + OTHER_KEY[1:]}),
        json.dumps({"enc_private": [KEY], "sign_private": OTHER_KEY}),
        json.dumps({"enc_private": ZERO_KEY, "sign_private": ZERO_KEY}),
        '{"enc_private": "\udcff"}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_file_is_refused_and_its_keys_are_not_quoted(tmp_path: Path, text: str) -> None:
    path = private_file(tmp_path / "identity", text)
    for _ in range(2):  # the refusal lets the lock go
        with pytest.raises(IdentityFileError, match="is damaged; restore it, or remove it") as caught:
            UDPSocketClass(0, identity_file=path)
        assert repr(str(path)) in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None, "it would quote the keys"
        assert not re.search("[A-Za-z0-9+]{12}=*", str(caught.value).replace(str(path), ""))
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.mkdir()
    with pytest.raises(IdentityFileError, match="identity"):
        UDPSocketClass(0, identity_file=path)


@pytest.mark.parametrize("where", ["missing/identity", "file/identity"])
def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(IdentityFileError, match="identity") as caught:
        UDPSocketClass(0, identity_file=tmp_path / where)
    assert ("make its folder first" in str(caught.value)) == (where == "missing/identity")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_folder_that_may_not_be_entered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(IdentityFileError, match="Permission denied"):
        IdentityFile(tmp_path / "identity")


def test_a_name_that_leads_nowhere_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    try:
        path.symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("no symbolic links here")
    with pytest.raises(IdentityFileError):
        IdentityFile(path)
    assert path.is_symlink()


# ------------------------------------------------------------------------------------------------ fingerprint


def test_a_fingerprint_is_eight_groups_of_five_digits_and_never_changes() -> None:
    assert fingerprint(KEY) == "51246 76064 67382 68337 76021 35634 91033 67588"
    assert re.fullmatch(r"\d{5}( \d{5}){7}", fingerprint(KEY))


def test_keys_that_differ_in_one_bit_have_other_fingerprints() -> None:
    keys = [bytes(31) + bytes([last]) for last in range(256)]
    prints = {fingerprint(base64.b64encode(key).decode()) for key in keys}
    assert len(prints) == 256
    assert all(re.fullmatch(r"\d{5}( \d{5}){7}", text) for text in prints)
    first_groups = {text[:5] for text in prints}
    assert len(first_groups) > 240, "they differ from the first digits on"


@pytest.mark.parametrize("junk", ["", "junk", KEY[:-4], KEY + "\n", KEY[:-1], None, 5, bytes(32)])
def test_a_fingerprint_of_junk_is_refused(junk: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="key is"):
        fingerprint(junk)


def test_get_stats_shows_our_fingerprint(tmp_path: Path) -> None:
    with UDPSocketClass(0, identity_file=tmp_path / "identity") as sock:
        assert sock.get_stats()["fingerprint"] == fingerprint(sock.own_public_key)


def test_an_identity_does_not_show_itself() -> None:
    identity = Identity(KEY, OTHER_KEY)
    for text in (repr(identity), str(identity), f"{identity}", f"{[identity]}"):
        assert KEY not in text
        assert OTHER_KEY not in text


# ------------------------------------------------------------------------------------------------------- pins


class Keeper(Host):
    """A host whose identity may outlive its process."""

    def __init__(self, *args: Any, persistent: bool = False, **options: Any) -> None:
        self._persistent = persistent
        super().__init__(*args, **options)

    def _start(self) -> None:
        self._options["persistent"] = self._persistent
        super()._start()


def in_session(persistent: bool = False, supplied: bool = False) -> tuple[FakeNet, Host, Keeper]:
    """Alice, who has added Bob, in a session with him."""
    net = FakeNet()
    bob = Keeper(net, B, persistent=persistent)
    alice = net.node(A)
    alice.add_peer(B, bob.sign_public if supplied else None)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    return net, alice, bob


def crash(bob: Keeper) -> None:
    bob.kill()


def stop(bob: Keeper) -> None:
    bob.stop()


@pytest.mark.parametrize("end", [crash, stop])
@pytest.mark.parametrize(("persistent", "supplied"), [(True, False), (False, True), (True, True)])
def test_an_identity_that_lasts_or_was_supplied_is_never_released(
    end: Callable[[Keeper], None], persistent: bool, supplied: bool
) -> None:
    net, alice, bob = in_session(persistent, supplied)
    honest = bob.sign_public
    end(bob)
    alice.send(B, b"for Bob only")
    bob.restart(A, same_identity=False)
    newcomer = bob.sign_public
    net.run(300)
    assert bob.received == []
    assert honest in (alice.peer(B).identity, alice.peer(B).supplied)
    assert newcomer != alice.peer(B).identity
    assert not alice.is_ready(B)
    told = [event for _, event in alice.events if event.kind == "rejected"]
    assert [event.detail for event in told] == [base64.b64encode(newcomer).decode()], "once, not each time"
    assert alice.node.counters["identity_refused"] > 1


@pytest.mark.parametrize("end", [crash, stop])
def test_an_identity_that_lasts_is_welcomed_back(end: Callable[[Keeper], None]) -> None:
    net, alice, bob = in_session(persistent=True)
    net.run(1)
    end(bob)
    alice.send(B, b"while he was away")
    net.run(20)
    bob.restart(A)
    assert net.run_until(lambda: both_ready(alice, bob), limit=5)
    alice.send(B, b"and now")
    net.run(1)
    assert bob.messages_from(A)[-1] == b"and now"


@pytest.mark.parametrize("peer_stays", [True, False])
def test_another_identity_of_our_own_is_a_loss_of_every_session(peer_stays: bool) -> None:
    net, alice, bob = in_session(persistent=True)
    stranger = net.node(C, A)
    assert net.run_until(lambda: both_ready(alice, stranger))
    if not peer_stays:
        bob.kill()
        stranger.kill()
    with alice._acting():
        alice.encryption.set_private_keys(KEY, OTHER_KEY)
    net.run(10)
    back = ["ready"] * peer_stays
    assert alice.kinds_of_events(B) == ["ready", "lost", *back]
    assert alice.kinds_of_events(C) == ["ready", "lost", *back]
    assert alice.is_ready(B) == peer_stays


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("away", [0.0, 0.5, 3.0])
def test_a_restart_is_told_though_it_is_faster_than_a_loss_is_noticed(adds: bool, away: float) -> None:
    """What the application had told the process that is gone, it tells the new one when that is ready."""
    net, alice, bob = in_session(persistent=True)
    net.every(0.5, lambda: alice.send(B, b"?"), until=net.now + 100)
    net.run(70)  # Bob's keys have been replaced
    bob.kill()
    net.run(away)
    bob.restart(*[A] if adds else [])
    net.run(20)
    told = [(event.kind, event.detail) for _, event in alice.events]
    assert told == [("ready", ""), ("lost", "it has restarted"), ("ready", "")]
    assert alice.is_ready(B)


def test_a_hello_for_new_keys_of_ours_is_no_restart() -> None:
    net, alice, bob = in_session(persistent=True)
    session = alice.peer(B).session
    alice.node.local.rotate()
    session.after_rotation(alice.now + 1000)
    with bob._acting():
        bob.node.start_announcing(bob.peer(A), bob.now)
    assert net.run_until(lambda: any(pair.from_hello for pair in session.pairs), limit=1)
    net.run(1)
    assert session.send is not None
    assert session.send.mine is alice.node.local.current
    assert alice.kinds_of_events(B) == ["ready"]


def test_a_restart_after_a_loss_that_was_noticed_is_no_other_loss() -> None:
    net, alice, bob = in_session(persistent=True)
    alice.send(B, b"?")
    bob.kill()
    net.run(20)
    bob.restart(A)
    net.run(5)
    assert alice.kinds_of_events(B) == ["ready", "lost", "ready"]
    assert "it has restarted" not in [event.detail for _, event in alice.events]


@pytest.mark.parametrize("added", [True, False])
def test_a_restart_that_shows_in_a_goodbye_is_a_goodbye(added: bool) -> None:
    net = FakeNet()
    alice, bob = net.node(A, *[B] * added), net.node(B, A, persistent=True)
    assert net.run_until(lambda: both_ready(alice, bob))
    bob.kill()
    bob.restart(A)
    net.hook = lambda sent: net.route(sent) if sent.dst == B or looks_clear(sent.data) else []
    assert net.run_until(lambda: bob.is_ready(A))
    net.hook = net.route
    bob.stop()
    net.run(5)
    told = [(event.kind, event.detail) for _, event in alice.events]
    assert told == [("ready", ""), ("lost", "the peer said goodbye")]


def test_a_restart_is_told_between_the_messages_of_the_old_process_and_those_of_the_new() -> None:
    net, alice, bob = in_session(persistent=True)
    old = list(bob.peer(A).session.seal_messages([b"old"], bob.now))
    bob.kill()
    bob.restart(A)
    net.hook = lambda sent: net.route(sent) if sent.dst == B or looks_clear(sent.data) else []
    assert net.run_until(lambda: bob.is_ready(A))
    new = list(bob.peer(A).session.seal_messages([b"new"], bob.now))
    alice.node.receive([*old, *new], B, alice.now)
    assert [messages for _, messages in alice.node.deliveries] == [(b"old",), (b"new",)]
    assert [(place, event.kind) for place, event in alice.node.between] == [(1, "lost"), (1, "ready")]
    assert alice.node.events == []


@pytest.mark.parametrize("seed", range(5))
def test_new_keys_of_the_same_process_are_no_restart(seed: int) -> None:
    net, alice, bob = in_session(persistent=True)
    net.rng.seed(seed)
    net.loss, net.jitter = 0.5, 0.5
    for host in (alice, bob):
        host.set_lifetime(5)
        net.every(1, lambda host=host: host.send(B if host is alice else A, b"?"), until=net.now + 200)  # type: ignore[misc]
    net.run(200)
    reasons = {event.detail for host in (alice, bob) for _, event in host.events if event.kind == "lost"}
    assert "it has restarted" not in reasons


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("away", [0.0, 1.0, 10.0, 100.0])
def test_a_crashed_peer_of_another_identity_is_back_within_5_seconds(adds: bool, away: float) -> None:
    net, alice, bob = in_session()
    bob.kill()
    net.every(0.5, lambda: alice.send(B, b"?"), until=net.now + away + 10)
    net.run(away)
    bob.restart(*[A] if adds else [], same_identity=False)
    newcomer = bob.sign_public

    def is_back() -> bool:
        return both_ready(alice, bob) and alice.peer(B).identity == newcomer

    assert net.run_until(is_back, limit=5)


def test_one_that_stopped_with_a_goodbye_gives_way_at_once() -> None:
    net, alice, bob = in_session()
    bob.stop()
    net.run(0.05)
    bob.restart(A, same_identity=False)
    assert net.run_until(lambda: both_ready(alice, bob), limit=0.5)
    assert alice.peer(B).identity == bob.sign_public


def read_and_speak_for(net: FakeNet, attacker: Host) -> None:
    """Let the attacker at X read what is sent to Bob, and speak from his address; it can drop nothing."""

    def read_and_speak(datagram: Datagram) -> list[tuple[float, bytes]]:
        if datagram.src == X:
            net.at(net.now, lambda: net.inject(B, A, datagram.data))
            return []
        if datagram.dst == B:
            net.at(net.now, lambda: net.inject(A, X, datagram.data))
        return net.route(datagram)

    net.hook = read_and_speak
    attacker.add_peer(A)


@pytest.mark.parametrize("busy", [True, False])
def test_who_cannot_silence_a_live_peer_does_not_take_its_place(busy: bool) -> None:
    net, alice, bob = in_session()
    honest = bob.sign_public
    attacker = Keeper(net, X)
    read_and_speak_for(net, attacker)
    sent = [b"%d" % number for number in range(60)]
    if busy:
        for number, message in enumerate(sent):
            net.at(net.now + number, lambda message=message: alice.send(B, message))  # type: ignore[misc]
    net.run(130)
    assert alice.node.counters["identity_refused"] >= 2, "the attacker did get as far as its identity"
    assert alice.peer(B).identity == honest
    assert both_ready(alice, bob)
    assert attacker.received == []
    assert bob.messages_from(A) == (sent if busy else [])
    assert "lost" not in alice.kinds_of_events(B)


@pytest.mark.parametrize("seed", range(8))
def test_a_live_peer_keeps_its_place_at_30_percent_loss(seed: int) -> None:
    """Each refusal is a chance for the attacker: one probe in seven would fail with three pings."""
    net = FakeNet(seed, loss=0.3)
    bob, alice = net.node(B), net.node(A, B)
    assert net.run_until(lambda: both_ready(alice, bob))
    honest = bob.sign_public
    read_and_speak_for(net, Keeper(net, X))
    net.run(120)
    assert alice.node.counters["identity_refused"] >= 2
    assert alice.peer(B).identity == honest


@pytest.mark.parametrize("seed", range(4))
def test_nor_do_forged_announcements_of_a_base_peer_help_to_take_it(seed: int) -> None:
    """They are a reason to ask a silent peer whether it is there, with three pings where sizes are fixed."""
    net = FakeNet(seed, loss=0.3)
    bob, alice = net.node(B, finds_sizes=False), net.node(A, B, finds_sizes=False)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(10)
    honest = bob.sign_public
    Keeper(net, X)

    def speak_when_he_is_looked_for(datagram: Datagram) -> list[tuple[float, bytes]]:
        if datagram.src == X:
            net.at(net.now, lambda: net.inject(B, A, datagram.data))
            return []
        if datagram.dst == B and looks_clear(datagram.data):
            net.at(net.now, lambda: net.inject(A, X, datagram.data))
        return net.route(datagram)

    net.hook = speak_when_he_is_looked_for
    forged = BasePeer(2, B[1], EPOCH).announcement()
    net.every(3.5, lambda: net.inject(B, A, forged), until=net.now + 300)
    assert not net.run_until(lambda: alice.peer(B).identity not in (honest, b""), limit=300)
    assert alice.node.counters["identity_refused"] >= 20


@pytest.mark.parametrize("end", [crash, stop])
def test_what_waits_for_one_identity_is_not_handed_to_the_next(end: Callable[[Keeper], None]) -> None:
    net, alice, bob = in_session()
    end(bob)
    if end is crash:
        alice.send(B, b"sealed, and lost on the wire")
        assert net.run_until(lambda: not alice.is_ready(B), limit=20)
        alice.send(B, b"in the queue")
        assert alice.peer(B).queue
    peer = alice.peer(B)
    peer.laned = True
    peer.lane.append(b"in the lane")
    net.run(0.05)
    bob.restart(A, same_identity=False)
    assert net.run_until(lambda: both_ready(alice, bob), limit=10)
    net.run(1)
    assert bob.received == []
    assert not peer.lane
    assert alice.node.counters["queued_for_another_identity"] == (2 if end is crash else 1)


def test_on_real_sockets_a_refused_identity_is_told_once_and_gets_nothing(free_port: int) -> None:
    with UDPSocketClass(0) as sock, UDPSocketClass(free_port) as impostor:
        rejected, inbox = Collector[Any](), Collector[Any]()
        sock.udp_peer_rejected.connect(rejected)
        impostor.udp_recv_bytes.connect(inbox)
        impostor.add_peer(address_of(sock))
        sock.add_peer((*address_of(impostor), KEY))
        sock.send_data(b"for the holder of the key", address_of(impostor))
        assert rejected.wait_for(1) == [(address_of(impostor), impostor.own_public_key)]
        assert not sock.wait_ready(address_of(impostor), 0)
        assert inbox.items == []
    assert len(rejected.items) == 1


# ------------------------------------------------------------------------------------- addresses left behind


def test_an_address_that_a_stranger_has_left_is_the_next_ones() -> None:
    """As behind a NAT, which gives a client another port, and its old one to somebody else."""
    net = FakeNet(seed=1, delay=0.02)
    server, former = net.node(A), net.node(B, A)
    assert net.run_until(lambda: both_ready(server, former))
    former.move(D, knowingly=False)
    net.every(0.5, lambda: former.send(A, b"from the former"), until=30)
    assert net.run_until(lambda: server.peer(B).session.endpoint == D, limit=5)
    server.send(B, b"to the former")
    net.run(1)
    assert server.kinds_of_events(D) == [], "as long as nobody else is there, it keeps its name"
    newcomer = net.node(B, A)
    net.every(0.5, lambda: newcomer.send(A, b"from the newcomer"), until=30)
    assert net.run_until(lambda: both_ready(server, newcomer), limit=1)
    assert server.kinds_of_events(B) == ["ready", "lost", "ready"]
    assert server.kinds_of_events(D) == ["ready"]
    server.received.clear()
    server.send(B, b"to the newcomer")
    server.send(D, b"to the former")
    net.run(10)
    assert set(server.received) == {(D, b"from the former"), (B, b"from the newcomer")}
    assert former.messages_from(A) == [b"to the former"] * 2
    assert newcomer.messages_from(A) == [b"to the newcomer"]
    assert server.node.counters["identity_refused"] == 0
    assert server.node.table.strangers == 2
    assert server.node.table.added_names() == []


@pytest.mark.parametrize("moves", [True, False])
def test_an_address_that_was_added_or_is_still_used_stays_its_peers(moves: bool) -> None:
    net = FakeNet(seed=1, delay=0.02)
    server, former = net.node(A, *([B] if moves else [])), net.node(B, A)
    assert net.run_until(lambda: both_ready(server, former))
    if moves:
        former.move(D, knowingly=False)
        net.every(0.5, lambda: former.send(A, b"from the former"), until=30)
        assert net.run_until(lambda: server.peer(B).session.endpoint == D, limit=5)
        net.node(B, A)
        net.run(5)
    else:
        net.detach(B)
        evil = net.node(B, A)
        net.run(1)
        assert evil.mode(A) != "session"
    assert server.kinds_of_events(B)[:2] == ["ready", "rejected"]
    assert server.peer(B).identity == former.sign_public


def test_a_stranger_that_has_moved_to_anothers_address_keeps_its_name() -> None:
    net = FakeNet(seed=1, delay=0.02)
    server, former, other = net.node(A), net.node(B, A), net.node(C, A)
    assert net.run_until(lambda: both_ready(server, former) and both_ready(server, other))
    other.kill()
    former.move(C, knowingly=False)
    net.every(0.5, lambda: former.send(A, b"from the former"), until=30)
    assert net.run_until(lambda: server.peer(B).session.endpoint == C, limit=5)
    newcomer = net.node(B, A)
    net.run(1)
    assert server.peer(B).identity == former.sign_public
    assert server.peer(C).identity == other.sign_public
    assert newcomer.mode(A) != "session"


def test_who_comes_back_to_its_former_address_is_who_it_was() -> None:
    net = FakeNet(seed=1, delay=0.02)
    server, client = net.node(A), net.node(B, A, persistent=True)
    assert net.run_until(lambda: both_ready(server, client))
    client.move(D, knowingly=False)
    net.every(0.5, lambda: client.send(A, b"from there"), until=10)
    assert net.run_until(lambda: server.peer(B).session.endpoint == D, limit=5)
    client.kill()
    client.address = B
    client.restart(A)
    assert net.run_until(lambda: client.mode(A) == "session", limit=2)
    net.run(1)
    server.send(B, b"to the client")
    net.run(1)
    assert client.messages_from(A) == [b"to the client"]
    assert set(server.node.table.by_name) == {B}


def test_a_stranger_with_another_name_is_counted_and_kept_as_before() -> None:
    server = FakeNet(seed=1).node(A)
    table = server.node.table
    pending, confirmed = server.node.new_peer(B), server.node.new_peer(C)
    table.heard(confirmed, confirmed=True)
    table.rename(pending, D)
    table.rename(confirmed, X)
    assert (list(table._pending), list(table._confirmed)) == ([D], [X])
    assert {peer.name: peer.names for peer in table.all()} == {D: [D], X: [X]}


def test_a_stranger_that_was_lost_is_not_told_ready_under_its_new_name() -> None:
    net = FakeNet(seed=1, delay=0.02)
    server, former = net.node(A), net.node(B, A)
    assert net.run_until(lambda: both_ready(server, former))
    former.move(D, knowingly=False)
    former.send(A, b"from there")
    assert net.run_until(lambda: server.peer(B).session.endpoint == D, limit=5)
    former.kill()
    server.send(B, b"nobody hears this")
    assert net.run_until(lambda: server.mode(B) == "lost", limit=10)
    newcomer = net.node(B, A)
    assert net.run_until(lambda: both_ready(server, newcomer), limit=1)
    assert server.kinds_of_events(B) == ["ready", "lost", "ready"]
    assert server.kinds_of_events(D) == []
