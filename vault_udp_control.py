# SPDX-License-Identifier: Apache-2.0
"""What is in a body's control, and in the texts of v1: JSON, announcements. No keys, no sockets, no clocks.

As in `vault_udp_packet`, whatever comes from the network passes through functions that start with ``read_``,
and `PacketError` is the one exception that they raise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

import pyzstd

if TYPE_CHECKING or not __package__:
    import vault_udp_socket_helper as crypto
    from vault_udp_packet import PacketError, make_control_body, make_v1_body
else:
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_packet import PacketError, make_control_body, make_v1_body

FULL_ANNOUNCEMENT_SIZE = 1024
"""Bytes of our clear announcement: base members, hello and proof."""
SHORT_ANNOUNCEMENT_SIZE = 512
"""Bytes of the short form: hello and proof alone, which base peers ignore."""
MAX_CONTROL_SIZE = 8192
MAX_CONTROL_BRACKETS = 16


class Announcement(NamedTuple):
    """The members of a key announcement as they arrived: typed, nothing verified.

    The first four are those of base mode; ``None`` where the short form leaves them out. ``hello`` and
    ``proof`` are raw bytes (PROTOCOL.md, 1.4), ``None`` from a peer that speaks base mode only.
    """

    enc_key: str | None
    sign_key: str | None
    signature: str | None
    port: int | None
    hello: bytes | None
    proof: bytes | None
    answers: bool = False
    """It is itself the answer to one: two ends that answered each other's would never cease."""


# -------------------------------------------------------------------------------------------------- control


def write_json(members: dict[str, Any]) -> bytes:
    """Control JSON, as compact as it gets."""
    return _encode_json(members).encode()


def read_json(text: bytes) -> dict[str, Any]:
    """A flat JSON object; nesting, duplicate members and constants outside JSON are refused.

    Raises:
        PacketError: ``bad_control``.
    """
    if len(text) > MAX_CONTROL_SIZE or text.count(b"[") + text.count(b"{") > MAX_CONTROL_BRACKETS:
        raise PacketError("bad_control")
    try:
        members = _decode_json(text.decode("utf-8"))
    except PacketError:
        raise
    except ValueError as error:
        raise PacketError("bad_control") from error
    if not isinstance(members, dict):
        raise PacketError("bad_control")
    return members


def _object_without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise PacketError("bad_control")
    return members


def _no_constant(name: str) -> None:
    raise PacketError("bad_control")


# Made once: `json.dumps` and `json.loads` make them for each call that asks for anything special.
_encode_json = json.JSONEncoder(separators=(",", ":")).encode
_decode_json = json.JSONDecoder(
    object_pairs_hook=_object_without_duplicates, parse_constant=_no_constant
).decode


def member(members: dict[str, Any], name: str, kind: type) -> Any:
    """`members[name]` if it is of exactly that type, `None` if it is missing.

    Raises:
        PacketError: ``bad_control``: another type (a bool is not an int here).
    """
    value = members.get(name)
    if value is not None and type(value) is not kind:
        raise PacketError("bad_control")
    return value


# -------------------------------------------------------------------------------------------- announcements


def make_announcement_body(members: dict[str, Any], body_size: int) -> bytes:
    """A v2 announcement body of exactly `body_size` bytes.

    Raises:
        TooLargeError: the members do not fit.
    """
    return make_control_body(write_json(members), body_size)


def make_v1_announcement_body(members: dict[str, Any], body_size: int) -> bytes:
    """A v1 announcement body of exactly `body_size` bytes."""
    return make_v1_body(pyzstd.compress(write_json(members)), body_size)


def read_announcement(members: dict[str, Any]) -> Announcement:
    """Check the types of an announcement's members.

    Raises:
        PacketError: ``bad_announcement``: wrong types, junk Base64, a port outside 1-65535, or neither the
            base members nor a hello with its proof.
    """
    has_hello = not (members.get("hello") is members.get("proof") is None)
    hello, proof = read_hello_members(members) if has_hello else (None, None)
    try:
        announcement = Announcement(
            enc_key=member(members, "enc_key", str),
            sign_key=member(members, "sign_key", str),
            signature=member(members, "signature", str),
            port=member(members, "port", int),
            hello=hello,
            proof=proof,
            answers=members.get("answers") is True,
        )
    except PacketError as error:
        raise PacketError("bad_announcement") from error
    base = (announcement.enc_key, announcement.sign_key, announcement.signature)
    has_base = None not in base
    if (not has_base and base != (None, None, None)) or not (has_base or has_hello):
        raise PacketError("bad_announcement")
    if announcement.port is not None and not 1 <= announcement.port <= 65535:
        raise PacketError("bad_announcement")
    return announcement


def read_hello_members(members: dict[str, Any]) -> tuple[bytes, bytes]:
    """Hello and proof of an announcement or a REKEY.

    Raises:
        PacketError: ``bad_announcement``: not both there, or no Base64.
    """
    try:
        hello, proof = members["hello"], members["proof"]
        return crypto.b64_str_to_bytes(hello), crypto.b64_str_to_bytes(proof)
    except (KeyError, TypeError, crypto.EncodingError) as error:
        raise PacketError("bad_announcement") from error


# ------------------------------------------------------------------------------------------------------- v1


def make_v1_text(message: bytes) -> bytes:
    """The envelope in which v1 peers get every message: ``{"data": text}``.

    Raises:
        UnicodeDecodeError: v1 carries text only.
    """
    return json.dumps({"data": message.decode("utf-8")}, separators=(",", ":"), ensure_ascii=False).encode()


def read_v1_text(text: bytes) -> bytes | dict[str, Any]:
    """What a v1 text means: a message (bytes), or the members of an announcement (dict).

    v1 has one channel for both: JSON with ``enc_key`` announces, JSON with ``data`` is an envelope,
    anything else is the user's text.

    Raises:
        PacketError: ``bad_body``: an envelope around what is no text.
    """
    if text[:1] != b"{":
        return text
    try:
        members = read_json(text)
    except PacketError:
        return text
    if "enc_key" in members:
        return members
    if set(members) == {"data"} and isinstance(members["data"], str):
        try:
            return members["data"].encode()
        except UnicodeEncodeError as error:  # JSON can name half a character, UTF-8 cannot
            raise PacketError("bad_body") from error
    return text
