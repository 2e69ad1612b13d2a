# SPDX-License-Identifier: Apache-2.0
"""The public names of vault_udp_socket: defaults, types, statistics and what is said about bad input."""

from __future__ import annotations

import base64
import inspect
import os
import re
import threading
from typing import Any

import pytest
from loopback import (
    LOOPBACKS,
    PATIENCE,
    Collector,
    Inbox,
    address_of,
    eventually,
    has_ipv6,
    pair,
    plain_socket,
)

import vault_udp_socket as api
import vault_udp_socket_helper as crypto
from vault_udp_socket import MessageTooLargeError, UDPSocketClass, UDPSocketError

BAD_PORTS = [-1, 65_536, 10**9, "8000", 80.5, None, float("nan"), True, b"80"]
BAD_ADDRESSES: list[Any] = [
    None,
    "127.0.0.1:8000",
    8000,
    (),
    ("127.0.0.1",),
    ("", 8000),
    (None, 8000),
    (b"127.0.0.1", 8000),
    ("127.0.0.256", 8000),
    ("no such host", 8000),
    ("127.0.0.1\0", 8000),
    ("\ud800", 8000),
    ("::1::", 8000),
    ("127.0.0.1", 8000, "key", "more"),
]


def new_key() -> str:
    """An identity of nobody."""
    return crypto.generate_keys_asym()[2]


# Names and defaults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROTOCOL_VERSION", 2),
        ("DEFAULT_RECV_PORT", 11000),
        ("DEFAULT_RATE_LIMIT", 100),
        ("DEFAULT_KEY_LIFETIME", 60),
        ("IP_HEADER_SIZE", 20),
        ("UDP_HEADER_SIZE", 8),
        ("NACL_BOX_OVERHEAD", 40),
        ("MSGPACK_OVERHEAD", 15),
        ("REPLAY_PROTECTION_OVERHEAD", 24),
    ],
)
def test_constants(name: str, value: int) -> None:
    assert getattr(api, name) == value


@pytest.mark.parametrize(
    "name",
    [
        "MessageTooLargeError",
        "InvalidPortError",
        "RateLimitExceededError",
        "ProtocolVersionError",
        "BindError",
        "InvalidArgumentError",
        "StoppedError",
    ],
)
def test_every_error_is_a_udp_socket_error(name: str) -> None:
    assert issubclass(getattr(api, name), UDPSocketError)
    assert issubclass(UDPSocketError, Exception)


def test_errors_for_bad_values_are_value_errors_too() -> None:
    assert issubclass(api.InvalidPortError, ValueError)
    assert issubclass(api.InvalidArgumentError, ValueError)
    assert issubclass(api.BindError, OSError)


def test_defaults_of_the_constructor() -> None:
    parameters = inspect.signature(UDPSocketClass).parameters
    assert parameters["recv_port"].default == 11000
    assert parameters["rate_limit"].default == 100
    assert parameters["lifetime"].default == 60
    assert parameters["lifetime"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(parameters)[:2] == ["recv_port", "rate_limit"]


def test_the_port_that_was_asked_for_is_used(free_port: int) -> None:
    with UDPSocketClass(recv_port=free_port, rate_limit=50) as sock:
        assert sock.recv_port == free_port
        assert sock.get_stats()["recv_port"] == free_port


def test_port_0_lets_the_system_choose() -> None:
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        assert 0 < a.recv_port <= 65_535
        assert a.recv_port != b.recv_port


# Statistics


def test_stats_of_a_new_socket() -> None:
    with UDPSocketClass(0) as sock:
        stats = sock.get_stats()
        assert stats["protocol_version"] == 2
        assert stats["recv_port"] == sock.recv_port
        assert stats["peer_count"] == 0
        assert stats["unique_ips"] == 0
        assert stats["peers"] == []
        assert stats["peers_by_ip"] == {}
        assert stats["counters"]["sent"] == 0
        assert stats["counters"]["received"] == 0
        assert stats["encryption_stats"] == {
            "active_peer_keys": 0,
            "key_lifetime_seconds": 60,
            "has_enc_private_key": True,
            "has_sign_private_key": True,
            "total_tracked_nonces": 0,
            "peers_with_nonces": 0,
        }


@pytest.mark.parametrize(("interface_mtu", "mtu"), [(1500, 1393), (1400, 1293), (9000, 8893)])
def test_mtu_is_that_of_the_interface_less_every_overhead(
    monkeypatch: pytest.MonkeyPatch, interface_mtu: int, mtu: int
) -> None:
    monkeypatch.setattr("vault_ip.get_min_mtu", lambda: interface_mtu)
    with UDPSocketClass(0) as sock:
        assert sock.get_stats()["mtu"] == mtu


def test_stats_name_the_peers_by_ip() -> None:
    with UDPSocketClass(0) as sock:
        peers = [("127.0.0.1", 8000), ("127.0.0.1", 8001), ("127.0.0.2", 8000)]
        for peer in peers:
            sock.add_peer(peer)
        stats = sock.get_stats()
        assert stats["peer_count"] == 3
        assert stats["unique_ips"] == 2
        assert sorted(stats["peers"]) == peers
        by_ip = {ip: sorted(addresses) for ip, addresses in stats["peers_by_ip"].items()}
        assert set(by_ip) == {"127.0.0.1", "127.0.0.2"}
        assert len(by_ip["127.0.0.1"]) == 2


def test_stats_count_what_was_exchanged() -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        a.send_data("one")
        a.send_data("two", address_of(b))
        inbox.wait_for(2)
        eventually(lambda: a.get_stats()["counters"]["sent"] == 2, "the sender counts 2 messages")
        assert b.get_stats()["counters"]["received"] == 2


def test_stats_show_keys_cut_and_no_private_ones() -> None:
    with UDPSocketClass(0) as sock:
        stats = sock.get_stats()
        shown = stats["sign_public_key"].rstrip("….")
        assert sock.own_public_key.startswith(shown)
        assert 8 <= len(shown) < len(sock.own_public_key)
        assert 8 <= len(stats["enc_public_key"]) < len(sock.own_public_key)
        assert sock.own_public_key not in repr(stats)


def test_stats_are_a_copy() -> None:
    with UDPSocketClass(0) as sock:
        stats = sock.get_stats()
        stats["peers"].append(("127.0.0.1", 1))
        stats["counters"]["sent"] = 99
        assert sock.get_stats()["peers"] == []
        assert sock.get_stats()["counters"]["sent"] == 0


def test_stats_tell_that_two_of_ours_are_in_a_session() -> None:
    with pair() as (a, b):
        modes = a.get_stats()["peer_modes"]
        assert modes == {address_of(b): "session"}


# Peers


def test_peers_are_added_listed_and_removed() -> None:
    with UDPSocketClass(0) as sock:
        peers = [("127.0.0.1", 8000), ("127.0.0.1", 8001), ("127.0.0.2", 8000)]
        for peer in peers:
            sock.add_peer(peer)
        assert sock.get_peers() == peers
        assert sock.get_peers_by_ip("127.0.0.1") == peers[:2]
        assert sock.get_peers_by_ip("127.0.0.3") == []
        assert sock.has_peer(peers[0])
        sock.remove_peer(peers[0])
        assert not sock.has_peer(peers[0])
        assert sock.get_peers() == peers[1:]


def test_adding_a_peer_again_changes_nothing() -> None:
    with UDPSocketClass(0) as sock:
        sock.add_peer(("127.0.0.1", 8000))
        sock.add_peer(("127.0.0.1", 8000))
        assert sock.get_peers() == [("127.0.0.1", 8000)]


def test_removing_an_unknown_peer_does_nothing() -> None:
    with UDPSocketClass(0) as sock:
        sock.remove_peer(("127.0.0.1", 8000))
        assert sock.get_peers() == []


def test_lists_of_peers_are_copies() -> None:
    with UDPSocketClass(0) as sock:
        sock.get_peers().append(("127.0.0.1", 1))
        sock.get_peers_by_ip("127.0.0.1").append(("127.0.0.1", 1))
        sock.get_all_peer_keys()[("127.0.0.1", 1)] = "key"
        assert sock.get_peers() == []
        assert sock.get_all_peer_keys() == {}


@pytest.mark.parametrize(
    ("given", "canonical"),
    [("::ffff:127.0.0.1", "127.0.0.1"), ("0:0:0:0:0:0:0:1", "::1"), ("2001:DB8::0001", "2001:db8::1")],
)
def test_forms_of_one_address_are_one_peer(given: str, canonical: str) -> None:
    with UDPSocketClass(0) as sock:
        sock.add_peer((given, 8000))
        assert sock.has_peer((canonical, 8000))
        assert sock.has_peer((given, 8000))
        assert sock.get_peers() == [(canonical, 8000)]
        assert len(sock.get_peers_by_ip(given)) == 1
        sock.remove_peer((canonical, 8000))
        assert sock.get_peers() == []


# Keys


def test_own_public_key_is_a_signing_key_of_its_own() -> None:
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        assert len(base64.b64decode(a.own_public_key, validate=True)) == 32
        assert a.own_public_key != b.own_public_key
        assert a.own_public_key == a._encryption.sign_public_key


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_peer_keys_are_the_identities_that_peers_proved(ip: str) -> None:
    with pair(ip) as (a, b):
        assert a.get_peer_key(address_of(b, ip)) == b.own_public_key
        assert a.get_all_peer_keys() == {address_of(b, ip): b.own_public_key}


def test_no_key_is_told_of_peers_that_have_not_proved_one() -> None:
    with UDPSocketClass(0) as sock, plain_socket() as nobody:
        address = nobody.getsockname()
        sock.add_peer(address)
        assert sock.get_peer_key(address) is None
        assert sock.get_peer_key(("127.0.0.9", 9)) is None
        assert sock.get_all_peer_keys() == {}


def test_a_supplied_key_is_not_a_proven_one() -> None:
    with UDPSocketClass(0) as sock, plain_socket() as nobody:
        sock.add_peer((*nobody.getsockname(), new_key()))
        assert sock.get_peer_key(nobody.getsockname()) is None


def test_private_keys_of_the_application_become_the_identity() -> None:
    _, enc_private, sign_public, sign_private = crypto.generate_keys_asym()
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        a.encryption.set_private_keys(enc_private, sign_private)
        assert a.own_public_key == sign_public
        inbox = Inbox(b)
        a.add_peer(address_of(b))
        a.send_data("mine")
        address = inbox.wait_for_text("mine")
        assert b.get_peer_key(address) == sign_public


def test_keys_handed_out_by_the_application_are_enough() -> None:
    """Both ends get their keys by hand, again and again, as applications in the field do it."""
    keys = [crypto.generate_keys_asym() for _ in range(2)]
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        inboxes = Inbox(a), Inbox(b)
        for _ in range(3):
            for (sock, other), (own, peer) in zip(((a, b), (b, a)), (keys, keys[::-1])):
                sock.encryption.set_private_keys(own[1], own[3])
                sock.encryption.update_peer_keys(address_of(other), peer[0], peer[2])
        a.add_peer(address_of(b))
        b.add_peer(address_of(a))
        a.send_data("from a", address_of(b))
        b.send_data("from b", address_of(a))
        assert inboxes[1].wait_for_text("from a") == address_of(a)
        assert inboxes[0].wait_for_text("from b") == address_of(b)
        assert a.get_peer_key(address_of(b)) == keys[1][2]


# Bad input: the error names the value and the limit, and nothing is lost by it


@pytest.mark.parametrize("port", BAD_PORTS)
def test_bad_ports_are_named_with_the_limit(port: Any) -> None:
    with pytest.raises(api.InvalidPortError, match="65535") as caught:
        UDPSocketClass(port)
    assert repr(port) in str(caught.value)


@pytest.mark.parametrize("port", [0, *BAD_PORTS])
@pytest.mark.parametrize("method", ["add_peer", "send_data"])
def test_bad_ports_of_peers_are_named_with_the_limit(method: str, port: Any) -> None:
    with UDPSocketClass(0) as sock:
        arguments: tuple[Any, ...] = (("127.0.0.1", port),)
        with pytest.raises(api.InvalidPortError, match="65535") as caught:
            getattr(sock, method)(*(("data", *arguments) if method == "send_data" else arguments))
        assert repr(port) in str(caught.value)
        assert sock.get_peers() == []


@pytest.mark.parametrize("port", BAD_PORTS)
def test_a_bad_new_port_changes_nothing(port: Any) -> None:
    with UDPSocketClass(0) as sock:
        before = sock.recv_port
        with pytest.raises(api.InvalidPortError, match="65535"):
            sock.update_recv_port(port)
        assert sock.recv_port == before


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=repr)
def test_malformed_addresses_are_refused(address: Any) -> None:
    with UDPSocketClass(0) as sock:
        with pytest.raises(UDPSocketError) as caught:
            sock.add_peer(address)
        assert isinstance(caught.value, ValueError)
        culprit = address[0] if isinstance(address, tuple) and len(address) == 2 else address
        assert repr(culprit) in str(caught.value)
        if address is not None:
            with pytest.raises(UDPSocketError) as caught:
                sock.send_data("data", address)
            assert isinstance(caught.value, ValueError)
        assert sock.get_peers() == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "no Base64!",
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        b"bytes",
        7,
    ],
    ids=repr,
)
def test_malformed_keys_are_refused(key: Any) -> None:
    with UDPSocketClass(0) as sock:
        with pytest.raises(UDPSocketError) as caught:
            sock.add_peer(("127.0.0.1", 8000, key))
        assert isinstance(caught.value, ValueError)
        assert "32" in str(caught.value) or repr(key) in str(caught.value)
        assert sock.get_peers() == []


def test_our_own_key_is_nobody_elses() -> None:
    with UDPSocketClass(0) as sock:
        with pytest.raises(ValueError, match="own"):
            sock.add_peer(("127.0.0.1", 8000, sock.own_public_key))
        assert sock.get_peers() == []


@pytest.mark.parametrize(
    "data", [None, 5, 1.5, ["text"], {"a": 1}, object()], ids=lambda data: type(data).__name__
)
def test_data_of_a_wrong_type_is_a_type_error(data: Any) -> None:
    with UDPSocketClass(0) as sock, pytest.raises(TypeError) as caught:
        sock.send_data(data)
    assert type(data).__name__ in str(caught.value)
    assert "bytes" in str(caught.value)


def test_text_that_is_not_utf8_is_a_clear_error() -> None:
    with UDPSocketClass(0) as sock, pytest.raises(ValueError, match=r"surrogate|UTF-8"):
        sock.send_data("lone surrogate: \ud800")


@pytest.mark.parametrize("with_peer", [False, True], ids=["no peer", "peer"])
def test_too_large_a_message_names_size_and_limit(with_peer: bool) -> None:
    with UDPSocketClass(0) as sock:
        if with_peer:
            sock.add_peer(("127.0.0.1", 8000))
        with pytest.raises(MessageTooLargeError) as caught:
            sock.send_data(os.urandom(50_000))
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", str(caught.value))]
        assert 50_000 in numbers
        assert any(sock.get_stats()["mtu"] - 60 <= number <= sock.get_stats()["mtu"] for number in numbers)


def test_a_bad_call_loses_nothing() -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        a.send_data("before")
        with pytest.raises(TypeError):
            a.send_data(5)  # type: ignore[arg-type]
        with pytest.raises(MessageTooLargeError):
            a.send_data(os.urandom(50_000))
        with pytest.raises(ValueError, match="nonsense"):
            a.send_data("lost", ("nonsense", 1))
        a.send_data("after")
        assert inbox.wait_for_texts(2) == ["before", "after"]


@pytest.mark.parametrize("rate_limit", [0, -1, "100", float("nan"), True], ids=repr)
def test_bad_rate_limits_are_named(rate_limit: Any) -> None:
    with pytest.raises(UDPSocketError, match=re.escape(repr(rate_limit))) as caught:
        UDPSocketClass(0, rate_limit)
    assert isinstance(caught.value, ValueError)
    assert "above 0" in str(caught.value)


# Lifetime


def test_lifetime_by_every_way() -> None:
    with UDPSocketClass(0, lifetime=30) as sock:
        assert sock.lifetime == 30
        sock.lifetime = 120
        assert sock.lifetime == 120
        assert sock.get_stats()["encryption_stats"]["key_lifetime_seconds"] == 120
        sock.update_lifetime(5)
        assert sock.lifetime == 5
        assert sock.get_stats()["encryption_stats"]["key_lifetime_seconds"] == 5


@pytest.mark.parametrize("lifetime", [4.9, 0, -60, "60", None, float("nan"), float("inf"), True], ids=repr)
def test_bad_lifetimes_are_named_with_the_limit(lifetime: Any) -> None:
    with pytest.raises(ValueError, match="5") as caught:
        UDPSocketClass(0, lifetime=lifetime)
    assert isinstance(caught.value, UDPSocketError)
    with UDPSocketClass(0) as sock:
        with pytest.raises(ValueError, match="5") as caught:
            sock.lifetime = lifetime
        assert isinstance(caught.value, UDPSocketError)
        assert repr(lifetime) in str(caught.value)
        with pytest.raises(ValueError, match="5"):
            sock.update_lifetime(lifetime)
        assert sock.lifetime == 60


# Ports in use


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1",
        "0.0.0.0",
        *(
            pytest.param(ip, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"))
            for ip in ("::1", "::")
        ),
    ],
)
def test_a_port_in_use_is_an_error(ip: str) -> None:
    with plain_socket(ip) as other:
        port = other.getsockname()[1]
        with pytest.raises(api.BindError, match=str(port)) as caught:
            UDPSocketClass(port)
        assert isinstance(caught.value, UDPSocketError)
        assert isinstance(caught.value, OSError)


def test_a_port_in_use_by_another_of_ours_is_an_error() -> None:
    with UDPSocketClass(0) as sock, pytest.raises(api.BindError, match=str(sock.recv_port)):
        UDPSocketClass(sock.recv_port)


# Context manager and stop


def test_the_context_manager_stops_also_after_an_error(free_port: int) -> None:
    with pytest.raises(KeyError), UDPSocketClass(free_port) as sock:  # noqa: PT012
        assert isinstance(sock, UDPSocketClass)
        raise KeyError
    with UDPSocketClass(free_port):
        pass


def test_after_stop_what_needs_the_socket_says_so() -> None:
    sock = UDPSocketClass(0)
    peer = ("127.0.0.1", 8000)
    sock.add_peer(peer)
    sock.stop()
    for call in (
        lambda: sock.send_data("data"),
        lambda: sock.send_data("data", peer),
        lambda: sock.add_peer(peer),
        lambda: sock.remove_peer(peer),
        lambda: sock.update_recv_port(0),
        lambda: sock.update_lifetime(60),
        lambda: sock.wait_ready(peer, 0),
    ):
        with pytest.raises(api.StoppedError, match="stop"):
            call()


def test_after_stop_questions_are_still_answered() -> None:
    sock = UDPSocketClass(0)
    port, key = sock.recv_port, sock.own_public_key
    sock.stop()
    assert sock.recv_port == port
    assert sock.own_public_key == key
    assert sock.get_stats()["recv_port"] == port
    assert sock.get_peers() == []
    assert not sock.has_peer(("127.0.0.1", 8000))
    assert sock.lifetime == 60


# wait_ready


def test_wait_ready_tells_that_nobody_answered() -> None:
    with UDPSocketClass(0) as sock, plain_socket() as silent:
        sock.add_peer(silent.getsockname())
        assert sock.wait_ready(silent.getsockname(), 0) is False
        assert sock.wait_ready(silent.getsockname(), 0.01) is False
        assert sock.wait_ready(("127.0.0.9", 9), 0.01) is False


def test_wait_ready_ends_when_the_keys_are_there() -> None:
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        a.add_peer(address_of(b))
        assert a.wait_ready(address_of(b), PATIENCE) is True
        assert a.wait_ready(address_of(b), 0) is True
        a.remove_peer(address_of(b))
        assert a.wait_ready(address_of(b), 0) is False


def test_wait_ready_ends_when_the_socket_is_stopped() -> None:
    with UDPSocketClass(0) as sock, plain_socket() as silent:
        address = silent.getsockname()
        sock.add_peer(address)
        raised = Collector[Exception]()

        def wait() -> None:
            try:
                sock.wait_ready(address, 10 * PATIENCE)
            except UDPSocketError as error:
                raised(error)

        thread = threading.Thread(target=wait)
        thread.start()
        sock.stop()
        assert isinstance(raised.wait_for(1)[0], api.StoppedError)
        thread.join(PATIENCE)


# Signals


def test_udp_send_data_sends() -> None:
    with pair() as (a, b):
        inbox = Inbox(b)
        a.udp_send_data.emit("to all")
        a.udp_send_data.emit("to one", address_of(b))
        assert inbox.wait_for_texts(2) == ["to all", "to one"]


def test_signals_tell_that_a_peer_is_ready_and_lost() -> None:
    with UDPSocketClass(0) as a, UDPSocketClass(0) as b:
        ready, lost = Collector[Any](), Collector[Any]()
        a.udp_peer_ready.connect(ready)
        a.udp_peer_lost.connect(lost)
        a.add_peer(address_of(b))
        b.add_peer(address_of(a))
        assert ready.wait_for(1) == [address_of(b)]
        assert b.wait_ready(address_of(a), PATIENCE)
        address = address_of(b)
        b.stop()
        (lost_address, reason) = lost.wait_for(1)[0]
        assert lost_address == address
        assert "goodbye" in reason


# RateLimiter


def test_rate_limiter_lets_a_burst_pass_and_refuses_more() -> None:
    limiter = api.RateLimiter(5)
    addresses = [("127.0.0.1", 1), ("127.0.0.1", 2)]
    for address in addresses:
        allowed = [limiter.allow_request(address) for _ in range(6)]
        # A slow machine may earn some more meanwhile.
        assert allowed[:5] == [True] * 5
    limiter.cleanup_old_entries()


@pytest.mark.parametrize("limit", [0, -5, "5", None])
def test_rate_limiter_refuses_what_is_no_rate(limit: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(limit))):
        api.RateLimiter(limit)
