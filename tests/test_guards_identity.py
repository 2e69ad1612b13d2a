# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: the files of identities."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback import on_posix
from test_identity import GOOD_FILE, KEY, OTHER_KEY, B, private_file

import vault_udp_identity
from vault_udp_errors import IdentityFileError, KnownPeersFileError
from vault_udp_identity import MAX_IDENTITY_FILE, IdentityFile, KnownPeers

if sys.platform != "win32":
    import fcntl


@pytest.mark.parametrize("text", ["[" * MAX_IDENTITY_FILE, GOOD_FILE * 100])
def test_a_file_that_is_long_or_deep_is_damaged(tmp_path: Path, text: str) -> None:
    with pytest.raises(IdentityFileError, match="damaged"):
        IdentityFile(private_file(tmp_path / "identity", text))


def test_no_more_of_a_file_is_read_than_an_identity_has(tmp_path: Path) -> None:
    path = private_file(tmp_path / "identity", GOOD_FILE.replace("{", "{" + " " * MAX_IDENTITY_FILE))
    with pytest.raises(IdentityFileError, match="damaged"):
        IdentityFile(path)


def test_keys_that_nobody_took_are_forgotten_at_the_end(tmp_path: Path) -> None:
    file = IdentityFile(private_file(tmp_path / "identity"))
    assert file._identity is not None
    file.close()
    assert file._identity is None
    file.close()


@on_posix
def test_a_forked_child_forgets_the_keys_and_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    path = private_file(tmp_path / "identity")
    file = IdentityFile(path)
    of_the_parent = os.dup(file._lock._descriptor)
    try:
        file.abandon()
        assert file._identity is None
        assert file._lock._descriptor == -1
        with pytest.raises(IdentityFileError, match="in use"):
            IdentityFile(path)
    finally:
        os.close(of_the_parent)
    IdentityFile(path).close()


@on_posix
def test_a_link_into_a_folder_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    link = tmp_path / "known"
    link.symlink_to(tmp_path / "missing" / "known")
    with pytest.raises(KnownPeersFileError, match="no folder"):
        KnownPeers(link)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_new_line_ends_as_the_others_do(tmp_path: Path, newline: bytes) -> None:
    path = tmp_path / "known"
    path.write_bytes(b"# mine" + newline + b"# the last one")
    KnownPeers(path).remember(B, KEY)
    added = b"10.0.0.2 1002 %b" % KEY.encode()
    assert path.read_bytes() == newline.join([b"# mine", b"# the last one", added, b""])


def test_without_its_lock_a_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known"
    peers = KnownPeers(path)
    monkeypatch.setattr(vault_udp_identity._Lock, "acquire", lambda self, *, blocking: not blocking)
    with pytest.raises(KnownPeersFileError, match="lock"):
        peers.remember(B, OTHER_KEY)
    assert not path.exists()
    assert peers.key_of(B) is None


@on_posix
def test_nobody_else_can_take_the_locks(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        IdentityFile(tmp_path / "identity").close()
        KnownPeers(tmp_path / "known").remember(B, KEY)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["identity", "identity.lock", "known", "known.lock"], 0o600)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that have been opened since."""
    descriptors: list[int] = []
    actual = os.open

    def recorded(*args: Any) -> int:
        descriptors.append(actual(*args))
        return descriptors[-1]

    monkeypatch.setattr(os, "open", recorded)
    return descriptors


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@on_posix
def test_who_does_not_get_the_lock_leaves_nothing_open(
    tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = private_file(tmp_path / "identity")
    file = IdentityFile(path)
    held = list(opened)
    with pytest.raises(IdentityFileError, match="in use"):
        IdentityFile(path)
    file.close()

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(IdentityFileError, match="no locks available"):
        IdentityFile(path)
    assert len(opened) == len(held) + 2
    assert not any(map(is_open, opened))


@on_posix
def test_a_lock_is_given_up_although_a_child_has_a_copy_of_it(tmp_path: Path) -> None:
    file = IdentityFile(private_file(tmp_path / "identity"))
    of_a_child = os.dup(file._lock._descriptor)
    try:
        file.close()
        IdentityFile(tmp_path / "identity").close()
    finally:
        os.close(of_a_child)


@on_posix
def test_what_is_written_is_on_the_disk_before_it_takes_the_name_and_its_folder_afterwards(
    tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "known"
    steps: list[tuple[str, object]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        steps.append(("folder", None) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size))
        fsync(descriptor)

    def replaced(source: str, destination: str) -> None:
        steps.append(("replace", destination))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    KnownPeers(path).remember(B, KEY)
    assert steps == [("file", path.stat().st_size), ("replace", str(path)), ("folder", None)]
    assert not any(map(is_open, opened))


@on_posix
def test_nothing_is_written_through_a_link_that_somebody_puts_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, victim = tmp_path / "known", tmp_path / "victim"
    victim.write_text("precious")
    path.write_text("# mine\n")
    peers, unlink = KnownPeers(path), os.unlink
    (tmp_path / "known.new").write_text("left over")

    def then_linked(name: str) -> None:
        unlink(name)
        os.symlink(victim, name)

    monkeypatch.setattr(os, "unlink", then_linked)
    with pytest.raises(KnownPeersFileError):
        peers.remember(B, KEY)
    assert victim.read_text() == "precious"
    assert path.read_text() == "# mine\n"
