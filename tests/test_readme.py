# SPDX-License-Identifier: Apache-2.0
"""What the README says is so: its examples run, and its names, numbers and counters are those of the code.

Each python block is run as it stands, except that its ports are free ones and its 192.168 addresses those of
peers that live here. Which block a test runs is said by the heading above it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import logging
import queue
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Iterator

import pytest
from loopback import eventually

import dev
import vault_ip
import vault_udp_carrier
import vault_udp_control
import vault_udp_delivery
import vault_udp_encryption
import vault_udp_keys
import vault_udp_packet
import vault_udp_path
import vault_udp_socket
from benchmarks import report
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_socket import UDPSocketClass

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
# Only a failing test waits that long.
PATIENCE = 10.0
PLACEHOLDER_KEY = "RW5ZqHqTFrPs4cyhlVoc8ctTcLbJPtDTKH27rgxwE2M="


def test_the_figures_are_those_that_were_measured() -> None:
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert not results["quick"]
    assert report.markdown(results["rows"]) in README


def _blocks(language: str) -> dict[str, str]:
    """The code blocks of a language by the last heading above each."""
    blocks: dict[str, str] = {}
    heading = ""
    # A heading, or a whole block: a comment within a block is no heading.
    for match in re.finditer(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        elif match[2] == language:
            name = heading if heading not in blocks else f"{heading} ({match.start()})"
            blocks[name] = match[3]
    return blocks


def _section(heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", README, re.MULTILINE)
    assert match, f"the README has no section {heading!r}"
    end = re.compile(rf"^#{{1,{len(match[1])}}} ", re.MULTILINE).search(README, match.end())
    return README[match.end() : end.start() if end else len(README)]


def _rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without the line under the head."""
    lines = [line for line in text.splitlines() if line.startswith("|") and set(line) - set("|- ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


PYTHON = _blocks("python")
MODULES: list[ModuleType] = [importlib.import_module(path.stem) for path in sorted(ROOT.glob("vault_*.py"))]
RUN: set[str] = set()
"""The headings whose blocks are run by some test; filled as this file is read."""


class Remote:
    """A peer that lives here, and what has arrived there."""

    def __init__(self) -> None:
        self.sock = UDPSocketClass(0)
        self.received: queue.Queue[bytes] = queue.Queue()
        self.sock.udp_recv_bytes.connect(self.on_bytes)

    def on_bytes(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.put(data)

    def get(self) -> bytes:
        return self.received.get(timeout=PATIENCE)


class Remotes:
    """The peers that stand for the README's 192.168 addresses, made as they are met."""

    def __init__(self) -> None:
        self.by_address: dict[tuple[str, int], Remote] = {}

    def __getitem__(self, address: tuple[str, int]) -> Remote:
        if address not in self.by_address:
            self.by_address[address] = Remote()
        return self.by_address[address]

    def localize(self, code: str) -> str:
        def loopback(match: re.Match[str]) -> str:
            return f'("127.0.0.1", {self[match[1], int(match[2])].sock.recv_port})'

        code = re.sub(r'\("(192\.168[.\d]+)", (\d+)\)', loopback, code)
        code = re.sub(r"192\.168[.\d]+\d", "127.0.0.1", code)
        code = code.replace("recv_port=11000", "recv_port=0")
        if PLACEHOLDER_KEY in code:
            code = code.replace(PLACEHOLDER_KEY, self["192.168.1.100", 8000].sock.own_public_key)
        assert "192.168" not in code
        return code


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    remotes = Remotes()
    yield remotes
    for remote in remotes.by_address.values():
        remote.sock.stop()


def _example(heading: str) -> str:
    RUN.add(heading)
    return heading


def _run(heading: str, remotes: Remotes, **names: Any) -> dict[str, Any]:
    """Run the block under a heading; its global names."""
    code = remotes.localize(PYTHON[heading])
    names["__name__"] = "readme"
    exec(compile(code, f"README.md, {heading}", "exec"), names)
    return names


# ----------------------------------------------------------------------------------------------- examples

ECHO_SERVER, ECHO_CLIENT = _example("Echo server"), _example("Echo client")


def test_echo_server_and_client_are_two_processes_that_talk(free_port: int) -> None:
    server_code, client_code = (
        PYTHON[heading].replace("11000", str(free_port)) for heading in (ECHO_SERVER, ECHO_CLIENT)
    )
    command = [sys.executable, "-u", "-c"]
    with subprocess.Popen(
        [*command, server_code], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("my key is ")
            client = subprocess.run(
                [*command, client_code],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                timeout=60,
                check=True,
            )
            heard = server.stdout.readline()
        finally:
            server.kill()
    assert client.stdout == f"('127.0.0.1', {free_port}) answers: Echo: Hello, World!\n"
    assert re.fullmatch(r"\('127\.0\.0\.1', \d+\) says: Hello, World!\n", heard)


def test_echo_client_says_when_nobody_answers(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = PYTHON[ECHO_CLIENT].replace("11000", str(free_port)).replace("timeout=5", "timeout=0")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == "no answer; is the server running?\n"


BASIC = _example("Basic usage")


def test_basic_usage_sends_both_messages_and_stops(
    remotes: Remotes, capsys: pytest.CaptureFixture[str]
) -> None:
    names = _run(BASIC, remotes)
    remote = remotes["192.168.1.100", 8000]
    assert [remote.get(), remote.get()] == [b"Hello, World!", b"Direct message"]
    assert capsys.readouterr().out == ""
    with pytest.raises(vault_udp_socket.StoppedError):
        names["sock"].send_data("late")


def test_basic_usage_shows_what_it_receives(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    remote = remotes["192.168.1.100", 8000]
    told: queue.Queue[None] = queue.Queue()
    code = remotes.localize(PYTHON[BASIC]).replace("sock.stop()", "wait(sock)")

    def wait(sock: UDPSocketClass) -> None:
        sock.udp_recv_data.connect(lambda data, addr: told.put(None))
        remote.sock.send_data("hi", ("127.0.0.1", sock.recv_port))
        told.get(timeout=PATIENCE)
        sock.stop()

    exec(compile(code, "README.md", "exec"), {"__name__": "readme", "wait": wait})
    assert capsys.readouterr().out == f"Received: hi from ('127.0.0.1', {remote.sock.recv_port})\n"


CONTEXT_MANAGER = _example("Context manager")


def test_context_manager_sends_and_frees_the_port(remotes: Remotes, free_port: int) -> None:
    sock = _run(CONTEXT_MANAGER, remotes)["sock"]
    assert remotes["192.168.1.100", 8000].get() == b"Hello!"
    UDPSocketClass(sock.recv_port).stop()


BROADCAST = _example("Multiple peers and broadcast")


def test_broadcast_reaches_every_added_peer(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(BROADCAST, remotes)
    assert len(remotes.by_address) == 3
    for remote in remotes.by_address.values():
        assert remote.get() == b"Broadcast message"
    ports = [remote.sock.recv_port for remote in remotes.by_address.values()]
    assert capsys.readouterr().out == f"Peers there: {[('127.0.0.1', port) for port in ports]}\n"


def test_broadcast_does_not_reach_strangers(remotes: Remotes) -> None:
    added, stranger = remotes["added", 1], remotes["stranger", 1]
    arrived: queue.Queue[tuple[str, int]] = queue.Queue()
    with UDPSocketClass(0) as sock:
        sock.udp_recv_data.connect(lambda data, addr: arrived.put(addr))
        stranger.sock.send_data("hi", ("127.0.0.1", sock.recv_port))
        address = arrived.get(timeout=PATIENCE)
        sock.add_peer(("127.0.0.1", added.sock.recv_port))
        sock.send_data("for the added")
        assert added.get() == b"for the added"
        sock.send_data("for the stranger", address)
        assert stranger.get() == b"for the stranger"


BYTES = _example("Bytes")


def test_bytes_arrive_as_they_are(remotes: Remotes) -> None:
    names = _run(BYTES, remotes)
    assert remotes["192.168.1.100", 8000].get() == b"\x00\xff binary"
    assert names["received"].empty()


KNOWN_KEY = _example("A peer whose key you know")


def test_known_key_is_accepted(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(KNOWN_KEY, remotes)
    assert remotes["192.168.1.100", 8000].get() == b"only the owner of that key can read this"
    assert capsys.readouterr().out == ""


def test_another_key_is_rejected_and_told_by_the_counters_that_troubleshooting_names(
    remotes: Remotes,
) -> None:
    there, other = remotes["there", 1].sock, remotes["other", 1].sock
    rejected: queue.Queue[tuple[Any, str]] = queue.Queue()
    address = ("127.0.0.1", there.recv_port)
    with UDPSocketClass(0) as sock:
        sock.udp_peer_rejected.connect(lambda addr, key: rejected.put((addr, key)))
        sock.add_peer((*address, other.own_public_key))
        assert rejected.get(timeout=PATIENCE) == (address, there.own_public_key)
        stats = sock.get_stats()
    assert stats["peer_modes"] == {address: "waiting for keys"}
    assert stats["counters"]["identity_refused"] > 0
    assert there.get_stats()["counters"]["hello_without_echo"] > 0


IDENTITY_FILES = _example("Files of identities")


def test_files_keep_our_identity_and_remember_whom_we_met(
    remotes: Remotes, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (_run(IDENTITY_FILES, remotes)["sock"] for _ in range(2))
    printed = capsys.readouterr().out.splitlines()
    assert first.own_public_key == second.own_public_key
    assert printed[0] == printed[1]
    assert re.fullmatch(r"my fingerprint: (\d{5} ){7}\d{5}", printed[0])
    with UDPSocketClass(0, identity_file="other.json") as there:
        address = ("127.0.0.1", there.recv_port)
        with UDPSocketClass(0, identity_file="me.json", known_peers_file="known_peers.txt") as sock:
            sock.add_peer(address)
            assert sock.wait_ready(address, PATIENCE)
            line = f"127.0.0.1 {there.recv_port} {there.own_public_key}\n"
            eventually(Path("known_peers.txt").exists, "it is written down")
        assert Path("known_peers.txt").read_text(encoding="utf-8") == line


OWN_IDENTITY = _example("An identity that outlives the process")


def test_own_keys_become_the_identity(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(OWN_IDENTITY, remotes)
    assert capsys.readouterr().out == "True\n"


PEERS_COME_AND_GO = _example("Peers that come and go")


def test_peers_that_come_and_go_are_told(remotes: Remotes) -> None:
    told: queue.Queue[str] = queue.Queue()
    remote = remotes["192.168.1.100", 8000]
    address = ("127.0.0.1", remote.sock.recv_port)

    def while_it_waits_for_enter(prompt: str) -> None:
        assert told.get(timeout=PATIENCE) == f"{address} is ready"
        names["sock"].send_data("hi")
        assert remote.get() == b"hi"
        remote.sock.stop()
        assert told.get(timeout=PATIENCE) == f"{address} is gone: the peer said goodbye"

    names: dict[str, Any] = {"print": told.put, "input": while_it_waits_for_enter}
    exec(compile(remotes.localize(PYTHON[PEERS_COME_AND_GO]), "README.md", "exec"), names)


def test_a_peer_that_stops_and_starts_again_is_back_and_gets_what_waited(remotes: Remotes) -> None:
    events: queue.Queue[Any] = queue.Queue()
    first = Remote()
    address = ("127.0.0.1", first.sock.recv_port)
    with UDPSocketClass(0) as sock:
        sock.udp_peer_lost.connect(lambda addr, reason: events.put((addr, reason)))
        sock.add_peer(address)
        sock.send_data("one")
        assert first.get() == b"one"
        first.sock.stop()
        assert events.get(timeout=PATIENCE) == (address, "the peer said goodbye")
        sock.send_data("two")
        second = UDPSocketClass(address[1])
        with second:
            second.udp_recv_data.connect(lambda data, addr: events.put(data))
            assert events.get(timeout=PATIENCE) == "two"


RATE_LIMIT = _example("Rate limiting")


def test_rate_limit_is_shown(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(RATE_LIMIT, remotes)
    assert capsys.readouterr().out == "0 messages were too many\n"


def test_rate_limit_drops_what_is_too_much_at_the_receiver_for_each_peer(remotes: Remotes) -> None:
    talker, other = remotes["talker", 1].sock, remotes["other", 1].sock
    received: queue.Queue[str] = queue.Queue()
    with UDPSocketClass(0, rate_limit=0.001) as sock:  # so slow that nothing is added to the first one
        sock.udp_recv_data.connect(lambda data, addr: received.put(data))
        address = ("127.0.0.1", sock.recv_port)
        for end in (talker, other):
            end.add_peer(address)
            assert end.wait_ready(address, PATIENCE)
        for number in range(20):
            talker.send_data(str(number))
        talker.stop()
        other.send_data("the other one's first")
        assert [received.get(timeout=PATIENCE) for _ in range(2)] == ["0", "the other one's first"]
        assert sock.get_stats()["counters"]["rate_limited"] == 19
        assert talker.get_stats()["counters"]["sent"] == 20


STATISTICS = _example("Protocol version and statistics")


def test_statistics_are_there(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(STATISTICS, remotes)
    assert re.fullmatch(r"Protocol: v2\nMTU: \d+ bytes\nPeers: 0\n", capsys.readouterr().out)


ENCRYPTION = _example("VaultAsymmetricEncryption")


def test_encryption_opens_once(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(ENCRYPTION, remotes)
    opened, refused = capsys.readouterr().out.splitlines()
    assert opened == "b'secret'"
    assert "replayed" in refused


NETWORK = _example("vault_ip")


def test_network_info_is_printed(remotes: Remotes, capsys: pytest.CaptureFixture[str]) -> None:
    _run(NETWORK, remotes)
    assert set(ast.literal_eval(capsys.readouterr().out)) == set(vault_ip.get_network_info())


LIFETIME = _example("Key lifetime")


def test_lifetime_is_set(remotes: Remotes) -> None:
    sock = _run(LIFETIME, remotes)["sock"]
    assert sock.lifetime == sock.get_stats()["encryption_stats"]["key_lifetime_seconds"] == 120


LEGACY_PEERS = _example("Peers of the old releases")


def test_base_mode_is_refused(remotes: Remotes) -> None:
    assert not _run(LEGACY_PEERS, remotes)["sock"]._node.legacy_peers
    members = VaultAsymmetricEncryption().base_members(port=8000)
    announcement = vault_udp_control.make_announcement_body(members, 1024)
    with UDPSocketClass(0, legacy_peers=False) as sock:
        sock._node.receive([announcement], ("192.0.2.1", 8000), time.monotonic())
        assert sock.get_stats()["counters"]["base_refused"] == 1


REPLAY = _example("Replay protection")


def test_replay_settings_take_effect(remotes: Remotes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_MESSAGE_AGE_SECONDS", "NONCE_CACHE_SIZE"):
        default = getattr(vault_udp_encryption, name)
        assert re.search(rf"{name} = \d+  # {default} if not set", PYTHON[REPLAY])
        monkeypatch.setattr(vault_udp_encryption, name, default)
    _run(REPLAY, remotes)
    alice, bob = ("192.0.2.1", 1), ("192.0.2.2", 1)
    with VaultAsymmetricEncryption(wall=lambda: 1000.0) as early, VaultAsymmetricEncryption(
        wall=lambda: 1100.0
    ) as late:
        early.update_peer_keys(bob, late.enc_public_key, late.sign_public_key)
        late.update_peer_keys(alice, early.enc_public_key, early.sign_public_key)
        assert late.decrypt(early.encrypt(b"105 s old", bob), alice) == b"105 s old"


LOGGING = _example("Logging")


def test_the_logger_is_turned_up_as_told(remotes: Remotes, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vault_udp")
    level = logger.level
    try:
        _run(LOGGING, remotes)
        assert logger.level == logging.DEBUG
        with vault_udp_socket.UDPSocketClass(0) as sock:
            sock.add_peer(("127.0.0.1", 9))
        assert {record.levelno for record in caplog.records} >= {logging.DEBUG, logging.INFO}
    finally:
        logger.setLevel(level)


TROUBLESHOOTING = _example("Troubleshooting")


def test_troubleshooting_prints_modes_and_counters(
    remotes: Remotes, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(TROUBLESHOOTING, remotes)
    output = capsys.readouterr().out
    assert "'session'" in output
    assert {"sent: 0", "received: 0"} <= set(output.splitlines())


def test_every_python_block_is_run() -> None:
    assert set(PYTHON) == RUN


# ------------------------------------------------------------------------------------- commands and files


def test_every_command_exists() -> None:
    commands = [line for block in _blocks("bash").values() for line in block.splitlines() if line]
    assert commands
    for command in commands:
        words = command.split()
        if words[:2] == ["python3", "dev.py"]:
            assert f"python3 dev.py {words[2]} " in (dev.__doc__ or "")
        elif words[0] == "python3":
            assert "\nif __name__ == " in (ROOT / words[1]).read_text(encoding="utf-8")
        else:
            assert words[:2] == ["pip", "install"]
            assert (ROOT / words[-1]).exists()


def test_two_commands_are_told_first() -> None:
    assert _section("Two commands").count("python3 dev.py") == 2


def test_every_language_of_a_block_is_checked() -> None:
    fences = re.findall(r"^```(\w*)$", README, re.MULTILINE)
    assert set(fences[::2]) == {"python", "bash", "text"}
    assert set(fences[1::2]) == {""}


def test_tree_has_exactly_the_modules() -> None:
    tree = re.findall(r"(vault_\w+)\.py", _section("How it works"))
    assert sorted(tree) == [module.__name__ for module in MODULES]


def test_requirements_are_those_that_are_installed() -> None:
    section = _section("Installation")
    for requirement in (ROOT / "requirements.txt").read_text(encoding="utf-8").split():
        assert f"`{requirement}`" in section


def test_changelog_begins_with_the_version_of_the_project() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    newest = re.search(r"^## (\S+)$", CHANGELOG, re.MULTILINE)
    assert version
    assert newest
    assert newest[1] == version[1]


@pytest.mark.parametrize("text", [README, CHANGELOG], ids=["README", "CHANGELOG"])
def test_pages_name_only_files_that_exist(text: str) -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / name).exists(), name


# --------------------------------------------------------------------------------------- names and numbers


def _signatures(section: str) -> Iterator[tuple[str, str]]:
    """(name, parameters) of what the first cells, and lines of their own, show as a call."""
    for cell in [*(row[0] for row in _rows(section)), *re.findall(r"^`.+`$", section, re.MULTILINE)]:
        yield from re.findall(r"`(\w+)\((.*?)\)`", cell)


def _assert_signature_is_true(function: Callable[..., Any], parameters: str) -> None:
    """The README's parameters are the function's; it may leave out those that are for keywords only."""
    namespace: dict[str, Any] = {}
    exec(f"def documented({parameters}): pass", namespace)
    documented = inspect.signature(namespace["documented"]).parameters
    real = inspect.signature(function).parameters
    for name, parameter in documented.items():
        assert (parameter.kind, parameter.default) == (real[name].kind, real[name].default), name
    positional = [name for name, p in real.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [name for name in documented if name in positional] == positional


@pytest.mark.parametrize(
    ("heading", "owner"),
    [
        ("UDPSocketClass", UDPSocketClass),
        ("VaultAsymmetricEncryption", VaultAsymmetricEncryption),
        ("vault_ip", vault_ip),
    ],
)
def test_signatures_are_those_of_the_code(heading: str, owner: Any) -> None:
    signatures = list(_signatures(_section(heading)))
    assert len(signatures) >= 6
    for name, parameters in signatures:
        if inspect.isclass(owner) and name == owner.__name__:
            _assert_signature_is_true(owner, parameters)
        elif inspect.isclass(owner):
            prefix = "self, " if parameters else "self"
            _assert_signature_is_true(getattr(owner, name), prefix + parameters)
        else:
            _assert_signature_is_true(getattr(owner, name), parameters)


def test_every_public_name_of_the_socket_is_documented() -> None:
    section = _section("UDPSocketClass")
    with UDPSocketClass(0) as sock:
        names = {name for name in dir(sock) if not name.startswith("_")} - {"mtu"}
    assert {"udp_recv_data", "send_data", "own_public_key"} <= names
    for name in names:
        assert re.search(rf"^\| `{name}[`(]", section, re.MULTILINE), name
    for name in inspect.signature(UDPSocketClass).parameters:
        assert f"\n- `{name}`: " in section


def test_every_error_is_documented() -> None:
    section = _section("Errors")
    for name in vault_udp_socket.__all__:
        value = getattr(vault_udp_socket, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert f"`{name}`" in section
            for base in (ValueError, OSError):
                row = next((row for row in _rows(section) if f"`{name}`" in row[0]), ["", ""])
                assert issubclass(value, base) == (f"`{base.__name__}`" in row[1]), name


def test_every_function_of_vault_ip_is_documented() -> None:
    documented = {name for name, _ in _signatures(_section("vault_ip"))}
    assert documented == {
        name
        for name, value in vars(vault_ip).items()
        if inspect.isfunction(value) and value.__module__ == "vault_ip" and name[0] != "_" and name != "main"
    }


def test_constants_have_the_values_of_the_code() -> None:
    rows = _rows(_section("Constants"))
    assert len(rows) >= 18
    for name, value, _ in rows:
        found = [getattr(module, name.strip("`")) for module in MODULES if hasattr(module, name.strip("`"))]
        assert found, name
        assert set(found) == {int(value)}, name


def test_mtu_arithmetic_is_that_of_the_code() -> None:
    section = _section("MTU")
    numbers = [int(number) for number in re.findall(r"^\W*[\w ]+: (?:~)?(\d+)", section, re.MULTILINE)]
    mtu, *overheads, effective = numbers
    assert mtu == vault_ip.DEFAULT_MTU
    assert overheads == [
        vault_udp_socket.IP_HEADER_SIZE,
        vault_udp_socket.UDP_HEADER_SIZE,
        vault_udp_socket.NACL_BOX_OVERHEAD,
        vault_udp_socket.MSGPACK_OVERHEAD,
        vault_udp_socket.REPLAY_PROTECTION_OVERHEAD,
    ]
    assert mtu - sum(overheads) == effective == mtu - vault_udp_path.PACKET_OVERHEAD
    assert f"a message may have {vault_udp_packet.message_room(effective)} as it is" in section
    assert f"message may have {vault_udp_packet.MAX_MESSAGE_SIZE} bytes at most" in section


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    sizes = vault_udp_control.FULL_ANNOUNCEMENT_SIZE, vault_udp_control.SHORT_ANNOUNCEMENT_SIZE
    assert "exactly {} or {} bytes".format(*sizes) in README
    assert f"waits when {vault_udp_carrier.LANE_SIZE} messages" in README
    small = vault_udp_carrier.SMALL_LANE_SIZE, vault_udp_carrier.SMALL_MESSAGE
    assert "or {} of at most {} bytes".format(*small) in README
    assert f"up to {vault_udp_delivery.MAX_EARLY_MESSAGES} messages" in README
    header = vault_udp_keys.SEALED_OVERHEAD
    assert header == vault_udp_socket.NACL_BOX_OVERHEAD + vault_udp_socket.REPLAY_PROTECTION_OVERHEAD


# ------------------------------------------------------------------------------------------------ counters

REASON_ARGUMENT = {
    "PacketError": 0,
    "count_drop": 0,
    "count_loss": 0,
    "drop_waiting": 1,
    "_count_undelivered": 0,
}
"""Which argument of a call is a reason that is counted."""
# Made from names that are not in the source as such.
ALWAYS_THERE = {"sent", "received", "kernel_drops", "callback_errors", "socket_NAME"}


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _names_counted_in(source: str) -> set[str]:
    """The names under which a module counts: reasons that it gives, members of `counters` that it sets."""
    counted: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _name(node.func) in REASON_ARGUMENT:
            counted += node.args[REASON_ARGUMENT[_name(node.func)] :][:1]
        elif isinstance(node, ast.Subscript) and _name(node.value) == "counters":
            # Python 3.8 wraps it.
            counted.append(
                getattr(node.slice, "value", node.slice) if sys.version_info < (3, 9) else node.slice
            )
    return {node.value for node in counted if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_table_of_counters_has_exactly_those_of_the_code() -> None:
    counted = {name for module in MODULES for name in _names_counted_in(inspect.getsource(module))}
    assert {"forged", "queue_full", "rate_limited", "goodbyes"} <= counted
    named = [row[0].strip("`") for row in _rows(_section("Counters")) if row[0].startswith("`")]
    assert len(named) == len(set(named))
    assert set(named) == counted | ALWAYS_THERE


def test_counters_that_are_always_there_are() -> None:
    with UDPSocketClass(0) as sock:
        assert ALWAYS_THERE - {"socket_NAME"} <= set(sock.get_stats()["counters"])


def test_symptoms_name_only_counters_that_exist() -> None:
    named = {row[0].strip("`") for row in _rows(_section("Counters"))}
    symptoms = _section("Troubleshooting").split("### Counters")[0]
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", symptoms):
        known = hasattr(UDPSocketClass, name) or name in ("udp_recv_bytes", "add_peer")
        assert name in named or known, name
