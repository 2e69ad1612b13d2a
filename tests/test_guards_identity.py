# SPDX-License-Identifier: Apache-2.0
"""Guards that only these tests miss when they are gone: the files of identities."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from loopback import on_posix
from test_identity import GOOD_FILE, KEY, OTHER_KEY, B, private_file

import vault_udp_identity
from vault_udp_errors import IdentityFileError, KnownPeersFileError
from vault_udp_identity import MAX_IDENTITY_FILE, IdentityFile, KnownPeers


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
