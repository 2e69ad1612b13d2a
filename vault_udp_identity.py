# SPDX-License-Identifier: Apache-2.0
"""Identities that outlive a process: our own in a file, those of peers we know in another.

    identity file       JSON: our two private keys; mode 0600; locked while a socket uses it
    known-peers file    a line each, ``ip port key``, for people to read and edit; `#` starts a comment

Both are replaced as a whole (written beside, flushed, renamed): a crash leaves the old or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Iterator, NamedTuple, Union

if TYPE_CHECKING or not __package__:
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address
    from vault_udp_errors import (
        IdentityFileError,
        KnownPeersFileError,
        UDPSocketError,
        check_address,
        check_identity,
    )
else:
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address
    from .vault_udp_errors import (
        IdentityFileError,
        KnownPeersFileError,
        UDPSocketError,
        check_address,
        check_identity,
    )

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Path = Union[str, "os.PathLike[str]"]

FINGERPRINT_GROUPS = 8
MAX_IDENTITY_FILE = 4096


def fingerprint(key: str) -> str:
    """Forty digits in groups of five, for people to compare aloud: 132 bits of BLAKE2b of the identity.

    Args:
        key: an identity, Base64: `own_public_key`, or what `get_peer_key` returns.

    Raises:
        InvalidArgumentError: it is not one.
    """
    digest = crypto.derive(b"", check_identity(key), 64)
    number = int.from_bytes(digest, "big") % 10 ** (5 * FINGERPRINT_GROUPS)
    digits = f"{number:0{5 * FINGERPRINT_GROUPS}d}"
    return " ".join(digits[start : start + 5] for start in range(0, len(digits), 5))


class Identity(NamedTuple):
    """Private keys, Base64."""

    enc_private: str
    sign_private: str

    def __repr__(self) -> str:
        return "<Identity>"


class IdentityFile:
    """The identity kept at `path`, made on first use; locked for everybody else until `close`.

    Raises:
        IdentityFileError: others may read it, it is damaged, it is in use, or the system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self._lock = _Lock(self.path)
        try:
            if not self._lock.acquire(blocking=False):
                raise IdentityFileError(
                    f"identity file {self.path!r} is in use by another socket; give each its own file"
                )
            if not os.path.lexists(self.path):
                _write(self.path, _new_identity())
            self._identity: Identity | None = self._read()
        except OSError as error:
            self.close()
            hint = "; make its folder first" if error.errno == errno.ENOENT else ""
            raise IdentityFileError(f"identity file {self.path!r}: {error.strerror}{hint}") from error
        except BaseException:
            self.close()
            raise

    def take_identity(self) -> Identity:
        """The private keys, once: they are not kept here."""
        identity, self._identity = self._identity, None
        assert identity is not None
        return identity

    def _read(self) -> Identity:
        with open(self.path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise IdentityFileError(
                    f"identity file {self.path!r} has mode {mode:04o}: others may read or change it; make it "
                    "0600, and a new identity if it was ever readable to anybody else"
                )
            identity = _parse_identity(file.read(MAX_IDENTITY_FILE))
        if identity is None:
            raise IdentityFileError(
                f"identity file {self.path!r} is damaged; restore it, or remove it to begin as somebody new"
            )
        return identity

    def close(self) -> None:
        """Unlock; may be repeated."""
        self._identity = None
        self._lock.release()

    def abandon(self) -> None:
        """In a forked child: let go of the lock, which stays the parent's."""
        self._identity = None
        self._lock.abandon()


def _parse_identity(content: bytes) -> Identity | None:
    # None instead of an error: the error's chain would quote the keys.
    try:
        members = json.loads(content.decode("utf-8"))
        identity = Identity(members["enc_private"], members["sign_private"])
        crypto.enc_public_of(crypto.b64_str_to_bytes(identity.enc_private))
        crypto.sign_public_of(crypto.b64_str_to_bytes(identity.sign_private))
    except (ValueError, TypeError, KeyError, RecursionError, crypto.CryptoError):
        return None
    return identity


def _new_identity() -> str:
    _, enc_private, _, sign_private = crypto.generate_keys_asym()
    return json.dumps({"enc_private": enc_private, "sign_private": sign_private}, indent=1) + "\n"


class KnownPeers:
    """Identities of peers by the addresses that they were added under, kept at `path`.

    The file is read again before each change, and by `reload`, so programs may share it.

    Raises:
        KnownPeersFileError: a line is not ``ip port key``, its folder does not exist, or the system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        folder = os.path.dirname(os.path.realpath(self.path))
        if not os.path.isdir(folder):
            raise KnownPeersFileError(
                f"known-peers file {self.path!r} is to be in {folder!r}, which is no folder; make that first"
            )
        self._reading = threading.RLock()
        """Held from reading the file until `_keys` says what is there; reentrant for handlers of signals."""
        self._keys = self._read()

    def key_of(self, address: Address) -> bytes | None:
        """The identity known for this address."""
        key = self._keys.get(address)
        return check_identity(key) if key is not None else None

    def reload(self) -> None:
        """Read the file again: a line that the user has removed binds nobody any more.

        Raises:
            KnownPeersFileError: a line is not ``ip port key``, or the system refuses.
        """
        with self._reading:
            self._keys = self._read()

    def remember(self, address: Address, key: str) -> None:
        """Add a line, unless it is there.

        Raises:
            KnownPeersFileError: another key is there by now, or the system refuses.
        """
        with self._reading, self._locked():
            self._keys = self._read()
            known = self._keys.get(address)
            if known == key:
                return
            if known is not None:
                raise KnownPeersFileError(
                    f"known-peers file {self.path!r} has another key for {address} by now; remove one"
                )
            text = self._text()
            newline = "\r\n" if "\r\n" in text else "\n"
            if text and not text.endswith("\n"):
                text += newline
            try:
                _write(self.path, f"{text}{address[0]} {address[1]} {key}{newline}")
            except OSError as error:
                raise KnownPeersFileError(f"known-peers file {self.path!r}: {error.strerror}") from error
            self._keys[address] = key

    def _text(self) -> str:
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise KnownPeersFileError(f"known-peers file {self.path!r} cannot be read: {error}") from error

    def _read(self) -> dict[Address, str]:
        keys: dict[Address, str] = {}
        for number, line in enumerate(self._text().lstrip("\ufeff").split("\n"), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                ip, port, key = words
                address = check_address((ip, int(port)))
                check_identity(key)
            except (ValueError, UDPSocketError) as error:
                raise KnownPeersFileError(
                    f"known-peers file {self.path!r}, line {number}: not `ip port key`; mend or remove it"
                ) from error
            if keys.setdefault(address, key) != key:
                raise KnownPeersFileError(
                    f"known-peers file {self.path!r}, line {number}: another key for {address}; remove one"
                )
        return keys

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = _Lock(self.path)
        try:
            if not lock.acquire(blocking=True):
                raise PermissionError(errno.EACCES, "its lock file cannot be locked")
        except OSError as error:
            raise KnownPeersFileError(f"known-peers file {self.path!r}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()


class _Lock:
    """A lock file beside `path` that the system releases when the process dies, however it dies."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path) + ".lock"  # the same, whatever link leads to the file
        self._descriptor = -1

    def acquire(self, *, blocking: bool) -> bool:
        """Take the lock; False if somebody has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if blocking else msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except (
            BlockingIOError,
            PermissionError,
        ):  # PermissionError: what Windows says of a lock that is taken
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock up; may be repeated. The file stays: removing it would race with who opens it."""
        if self._descriptor >= 0:
            # Closing would not do if a forked child has a copy of the descriptor.
            if sys.platform == "win32":
                msvcrt.locking(self._descriptor, msvcrt.LK_UNLCK, 1)
            else:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """Close our descriptor; a copy that another process has keeps the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write(path: str, text: str) -> None:
    """Replace a file as a whole; it keeps its mode, and is its owner's alone if it is new."""
    path = os.path.realpath(path)  # what a link leads to, not the link
    folder = os.path.dirname(path)
    # Its lock is ours: what is there was left by who was killed while writing.
    temporary = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if os.name == "posix":
        # The new name survives a power cut only once its folder is on the disk, too.
        folder_descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system does so for folders
                raise
        finally:
            os.close(folder_descriptor)
