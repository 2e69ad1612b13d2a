# SPDX-License-Identifier: Apache-2.0
"""What must not get out: secrets and user data in logs, `repr`, errors; time that tells; keys that stay."""

from __future__ import annotations

import ast
import base64
import binascii
import gc
import json
import re
import types
from pathlib import Path
from typing import Any, Iterator

import pytest
from fakenet import FakeNet, Host, both_ready, flip_bit
from loopback import Collector, address_of, eventually, pair, plain_socket

import vault_udp_socket_helper as crypto
from vault_udp_encryption import PeerKeys, VaultAsymmetricEncryption
from vault_udp_identity import Identity, IdentityFile
from vault_udp_keys import Hello, LocalKeys, Pair, SessionKey, read_hello_untrusted
from vault_udp_peer import Peer
from vault_udp_session import Session
from vault_udp_socket import MessageTooLargeError, UDPSocketClass

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(ROOT.glob("vault_*.py"))
A, B = ("10.0.0.1", 1001), ("10.0.0.2", 1002)
USER_DATA = b"attack at dawn \xe2\x98\x80 and tell nobody"
SIZE_OF_NONCES_THAT_ARE_SENT_IN_CLEAR = 16
HOLDERS_OF_KEYS = (
    UDPSocketClass,
    VaultAsymmetricEncryption,
    PeerKeys,
    LocalKeys,
    SessionKey,
    Pair,
    Session,
    Peer,
    Identity,
    IdentityFile,
)


class Secrets:
    """Every secret that the library makes while it is watched, and what the user sends."""

    def __init__(self) -> None:
        self.values: set[bytes] = {USER_DATA}

    def add(self, value: bytes) -> bytes:
        """Watch for this value, too."""
        self.values.add(bytes(value))
        return value

    @staticmethod
    def forms_of(value: bytes) -> Iterator[str]:
        # Inner pieces, too: a text that is cut short or stands within a longer one is a leak all the same.
        yield base64.b64encode(value).decode()[:20]
        yield base64.urlsafe_b64encode(value).decode()[:20]
        yield binascii.hexlify(value).decode()[:24]
        yield repr(value)[2:-1][:24]
        yield value.decode("latin-1")[:12]
        yield value.decode("utf-8", "replace")[:12]
        yield str(list(value))[1:40]

    def leaks_into(self, text: str) -> list[str]:
        return [form for value in self.values for form in self.forms_of(value) if form in text]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Secrets:
    found = Secrets()
    for name in ("new_enc_private", "new_sign_seed", "shared_key", "derive"):
        function = getattr(crypto, name)

        def record(*arguments: Any, function: Any = function) -> Any:
            made = function(*arguments)
            if len(made) != SIZE_OF_NONCES_THAT_ARE_SENT_IN_CLEAR:
                found.add(made)
            return made

        monkeypatch.setattr(crypto, name, record)
    return found


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that any handler could print: texts with tracebacks, and what they were made of."""
    arguments = [repr(argument) for record in caplog.records for argument in (record.args or ())]
    return "\n".join([caplog.text, *arguments])


OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType)


def reachable(*roots: object) -> list[object]:
    """Every object that can be reached from these, classes, modules and functions aside."""
    found: dict[int, object] = {}
    todo = list(roots)
    while todo:
        item = todo.pop()
        if id(item) in found or isinstance(item, OPAQUE):
            continue
        found[id(item)] = item
        todo.extend(gc.get_referents(item))
    return list(found.values())


def bytes_in(*roots: object) -> set[bytes]:
    return {bytes(item) for item in reachable(*roots) if isinstance(item, (bytes, bytearray))}


# ---------------------------------------------------------------------------------------------- logs and repr


def test_the_check_itself_finds_leaks() -> None:
    found = Secrets()
    secret = found.add(bytes(range(100, 132)))
    for text in (
        base64.b64encode(secret).decode(),
        secret.hex(),
        repr(secret),
        repr(bytearray(secret)),
        secret.decode("latin-1"),
        USER_DATA.decode(),
        repr(USER_DATA.decode()),
        base64.b64encode(secret).decode()[:24] + "…",
    ):
        assert found.leaks_into(f"... {text} ..."), text
    assert not found.leaks_into("nothing of it")
    assert secret in bytes_in(types.SimpleNamespace(inner=[{"key": (secret,)}]))


def two_in_session(lifetime: float = 60) -> tuple[FakeNet, Host, Host]:
    net = FakeNet()
    bob = net.node(B, lifetime=lifetime)
    alice = net.node(A, B, lifetime=lifetime)
    assert net.run_until(lambda: both_ready(alice, bob))
    net.run(1)
    return net, alice, bob


def live_through_everything() -> tuple[Host, Host]:
    """A session with rotations, refused datagrams of all kinds, full queues, a lost and a changed peer."""
    net, alice, bob = two_in_session(lifetime=5)
    net.every(0.5, lambda: alice.send(B, USER_DATA), until=net.now + 15)
    net.every(0.5, lambda: bob.send(A, USER_DATA), until=net.now + 15)
    net.run(16)
    assert alice.node.local.current.epoch >= 2
    (datagram,) = alice.data_sent[-1:]
    for number in range(0, 8 * len(datagram), 97):
        net.inject(A, B, flip_bit(datagram, number))
    net.inject(A, B, datagram)
    net.inject(B, A, datagram)
    net.inject(("10.9.9.9", 9), B, datagram)
    for sent in list(net.sent)[:20]:
        net.inject(("10.9.9.9", 9), sent.dst, sent.data[:700])
        net.inject(sent.src, sent.dst, sent.data.replace(b"{", b"}"))
    bob.kill()
    for _ in range(300):
        alice.send(B, USER_DATA)
    net.run(20)
    for _ in range(300):
        alice.send(B, USER_DATA)
    bob.restart(A, same_identity=False)
    net.run(5)
    for _ in range(2):
        alice.send(B, USER_DATA)
    alice.encryption.generate_keys()
    net.run(5)
    reasons = {reason for _, reason, _, _ in alice.refused + bob.refused} | set(alice.node.counters)
    assert {"forged", "replayed", "unknown_tag", "bad_body", "queue_full"} <= reasons
    assert "queued_for_another_identity" in reasons
    return alice, bob


def test_no_secret_and_no_user_data_is_logged(secrets: Secrets, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(1):
        live_through_everything()
    assert len(secrets.values) > 20
    assert caplog.records
    assert secrets.leaks_into(logged(caplog)) == []


def test_no_repr_shows_a_secret(secrets: Secrets) -> None:
    alice, bob = live_through_everything()
    holders = [item for item in reachable(alice.node, bob.node) if isinstance(item, HOLDERS_OF_KEYS)]
    shown = {type(item) for item in holders}
    assert {VaultAsymmetricEncryption, LocalKeys, SessionKey, Pair, Session, Peer} <= shown
    keys = PeerKeys(("192.0.2.1", 1), b"e" * 32, b"s" * 32, secrets.add(b"shared" * 5), True, 0.0)
    hello = read_hello_untrusted(base64.b64decode(alice.node.local.hello_members(B, alice.now)["hello"]))
    assert isinstance(hello, Hello)
    for item in [*holders, keys, hello]:
        assert secrets.leaks_into(f"{item!r} {item} {[item]!r}") == []


def test_a_socket_with_everything_shows_nothing(
    secrets: Secrets, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "identity"
    texts = []

    def fail(*_: object) -> None:
        raise RuntimeError("the callback's own words")

    with caplog.at_level(1), UDPSocketClass(0, identity_file=path) as a, UDPSocketClass(0) as b:
        received = Collector[Any]()
        b.udp_recv_data.connect(fail)
        b.udp_recv_bytes.connect(received)
        a.add_peer(address_of(b))
        for _ in range(3):
            a.send_data(USER_DATA)
        a.send_data(USER_DATA.decode())
        received.wait_for(4)
        eventually(lambda: b.get_stats()["counters"]["callback_errors"] == 4, "the callback has failed")
        with pytest.raises(MessageTooLargeError) as caught:
            a.send_data(USER_DATA + crypto.random_bytes(2000))
        texts.append(str(caught.value))
        with plain_socket() as plain:
            plain.sendto(USER_DATA * 20, address_of(b))
            plain.sendto(USER_DATA, address_of(b))
            eventually(lambda: b.get_stats()["counters"].get("bad_length"), "both have come")
        for sock in (a, b):
            stats = sock.get_stats()
            texts += [repr(sock), str(sock), repr(stats), repr(sock._node), repr(sock._encryption)]
            texts += [repr(item) for item in reachable(sock) if isinstance(item, HOLDERS_OF_KEYS)]
    for secret in re.findall('"([A-Za-z0-9+/]{43}=)"', path.read_text()):
        secrets.add(base64.b64decode(secret))
    assert "the callback's own words" in caplog.text
    assert secrets.leaks_into(logged(caplog)) == []
    assert secrets.leaks_into("\n".join(texts)) == []


def test_errors_about_keys_do_not_quote_private_ones() -> None:
    private = base64.b64encode(bytes(range(31))).decode()
    good = base64.b64encode(bytes(range(32))).decode()
    encryption = VaultAsymmetricEncryption()
    for enc, sign in ((private, good), (good, private), (good[:-1], good), (good, good + "\n")):
        with pytest.raises(ValueError, match="key") as caught:
            encryption.set_private_keys(enc, sign)
        shown: BaseException | None = caught.value
        while shown is not None:
            assert private[:12] not in str(shown)
            assert good[:12] not in str(shown)
            shown = shown.__cause__ or shown.__context__


# ---------------------------------------------------------------------------------------------- constant time

SECRET_NAME = re.compile(
    r"private|secret|seed|shared|seal_key|open_key|nonce_prefix|echo|own_nonce|slot_nonce|proof|enc_bytes"
)
NOT_ABOUT_SECRETS = {
    # Both sides are our own; nothing that came from outside takes part.
    ("vault_udp_replay.py", "shared not in in_use"),
    ("vault_udp_replay.py", "shared in self._caches"),
    # Public keys that an application gives again; the name is that of a public key's derivation.
    ("vault_udp_upkeep.py", "self.local.sign_public == crypto.sign_public_of(sign_seed)"),
    # The self-test, of keys made for it.
    ("vault_udp_socket_helper.py", "generate_public_key(private) == public"),
    ("vault_udp_socket_helper.py", "decrypt_asym(other_private, public, sealed) == text"),
}


def comparisons_of_secrets(source: str) -> list[str]:
    """The comparisons by ==, !=, in and not in with a secret's name on either side."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(
            isinstance(operator, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)) for operator in node.ops
        ):
            names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
            names += [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
            if any(SECRET_NAME.search(name) for name in names):
                found.append(ast.get_source_segment(source, node) or "")
    return found


def test_the_search_for_comparisons_finds_them() -> None:
    assert comparisons_of_secrets("if hello.echo == expected: pass") == ["hello.echo == expected"]
    assert comparisons_of_secrets("x = a != keys.shared[:8]") == ["a != keys.shared[:8]"]
    assert comparisons_of_secrets("if crypto.equal(echo, nonce): pass") == []


def test_secrets_are_never_compared_byte_by_byte() -> None:
    assert len(MODULES) > 10
    found = {
        (path.name, comparison)
        for path in MODULES
        for comparison in comparisons_of_secrets(path.read_text(encoding="utf-8"))
    }
    assert found == NOT_ABOUT_SECRETS


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[set[bytes]]:
    """What has been compared in constant time."""
    calls: list[set[bytes]] = []
    equal = crypto.equal

    def record(one: bytes, other: bytes) -> bool:
        calls.append({bytes(one), bytes(other)})
        return equal(one, other)

    monkeypatch.setattr(crypto, "equal", record)
    return calls


def test_an_echo_is_compared_in_constant_time(compared: list[set[bytes]]) -> None:
    local = LocalKeys(bytes(range(32)), 0.0, 0.0)
    nonce = local.nonce_for(A, 0.0)
    assert local.is_own_nonce(nonce, A, 0.0)
    assert not local.is_own_nonce(b"x" * 16, A, 0.0)
    assert {nonce} in compared
    assert {nonce, b"x" * 16} in compared


def test_private_keys_and_nonce_prefixes_are_compared_in_constant_time(compared: list[set[bytes]]) -> None:
    with VaultAsymmetricEncryption() as alice, VaultAsymmetricEncryption() as bob:
        enc, sign = bytes(range(32)), bytes(range(1, 33))
        texts = [base64.b64encode(key).decode() for key in (enc, sign)]
        alice.set_private_keys(*texts)
        alice.set_private_keys(*texts)
        assert {enc} in compared
        assert {sign} in compared
        alice.update_peer_keys(B, bob.enc_public_key, bob.sign_public_key)
        bob.update_peer_keys(A, alice.enc_public_key, alice.sign_public_key)
        bob.decrypt(alice.encrypt(b"x", B), A)
        assert {alice._nonce_prefix, bob._nonce_prefix} in compared


def test_a_supplied_identity_is_compared_in_constant_time(compared: list[set[bytes]]) -> None:
    net = FakeNet()
    bob, alice = net.node(B), net.node(A)
    alice.add_peer(B, bob.sign_public)
    assert net.run_until(lambda: both_ready(alice, bob))
    assert {bob.sign_public} in compared


# ----------------------------------------------------------------------------------------- keys that are gone


def test_a_rotated_private_key_is_overwritten_and_gone() -> None:
    net, alice, _ = two_in_session(lifetime=5)
    local = alice.node.local
    first, first_private = local.current, bytes(local.current.private)
    buffer = first.private
    derived = {bytes(key) for pair in alice.peer(B).session.pairs for key in (pair._seal_key, pair._open_key)}
    assert derived <= bytes_in(alice.node)
    assert net.run_until(lambda: local.current.epoch == 1)
    assert bytes(buffer) == first_private, "what is on its way still opens"
    assert net.run_until(lambda: local.current.epoch == 2)
    assert bytes(buffer) == bytes(32)
    assert net.run_until(lambda: local.current.epoch == 3)
    left = bytes_in(alice.node)
    assert first_private not in left
    assert not derived & left
    assert first not in reachable(alice.node)


def test_after_close_no_session_key_is_left() -> None:
    net, alice, _ = two_in_session(lifetime=5)
    net.run(6)
    local = alice.node.local
    assert local.previous is not None
    privates = [local.current.private, local.previous.private]
    secret = {bytes(private) for private in privates}
    for pair_of_keys in alice.peer(B).session.pairs:
        secret |= {pair_of_keys._seal_key, pair_of_keys._open_key}
    assert secret <= bytes_in(alice.node)
    alice.node.close(alice.now)
    alice.node.outgoing.clear()
    assert privates == [bytes(32), bytes(32)]
    assert not secret & bytes_in(alice.node)
    assert alice.node.local.sign_seed == b""


def test_new_private_keys_overwrite_the_old_ones() -> None:
    encryption = VaultAsymmetricEncryption()
    for change in (
        lambda: encryption.set_private_keys(
            *(base64.b64encode(bytes([number]) * 32).decode() for number in (7, 8))
        ),
        encryption.generate_keys,
    ):
        buffers = [encryption._enc_private, encryption._sign_seed]
        before = {bytes(buffer) for buffer in buffers}
        change()
        assert buffers == [bytes(32), bytes(32)]
        assert not before & bytes_in(encryption)
    buffers = [encryption._enc_private, encryption._sign_seed]
    before = {bytes(buffer) for buffer in buffers}
    encryption.stop()
    assert buffers == [b"", b""]
    assert not before & bytes_in(encryption)


def test_a_change_of_identity_overwrites_the_session_keys() -> None:
    net, alice, _ = two_in_session()
    buffer = alice.node.local.current.private
    seed = bytes(alice.encryption.sign_seed)
    alice.encryption.generate_keys()
    net.run(1)
    assert bytes(buffer) == bytes(32)
    assert seed not in bytes_in(alice.node)


def test_a_socket_does_not_keep_the_text_of_its_identity_file(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with UDPSocketClass(0, identity_file=path) as sock:
        keys = list(json.loads(path.read_text()).values())
        for stopped in (False, True):
            texts = [item for item in reachable(sock._identity_file) if isinstance(item, str)]
            assert not [text for text in texts if any(key in text for key in keys)], stopped
            sock.stop()


def test_a_stopped_socket_holds_no_keys() -> None:
    with pair() as (a, b):
        local, encryption = a._node.local, a._encryption
        privates = [local.current.private, encryption._enc_private, encryption._sign_seed]
        secret = {bytes(private) for private in privates}
        for peer in a._node.table.all():
            for pair_of_keys in peer.session.pairs:
                secret |= {pair_of_keys._seal_key, pair_of_keys._open_key}
        assert len(secret) >= 5
        assert secret <= bytes_in(a)
        a.stop()
        assert all(not any(private) for private in privates)
        # The threads have ended, and with them what stood on their stacks.
        assert not secret & bytes_in(a._node, a._encryption, a._datagrams)
        assert b.get_stats()
