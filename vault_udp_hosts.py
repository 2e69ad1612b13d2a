# SPDX-License-Identifier: Apache-2.0
"""Peers that were added by the name of their host: where to look for them, and when to ask the name again.

    look up -> addresses -> announced to one after the other -> the first with a valid hello is where it is

A name server is believed in where to look, never in who is there. No sockets, threads or clocks.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Callable, Sequence

if TYPE_CHECKING or not __package__:
    from vault_udp_address import Address, is_host
    from vault_udp_path import NEVER
    from vault_udp_peer import Peer
    from vault_udp_state import NodeState
else:
    from .vault_udp_address import Address, is_host
    from .vault_udp_path import NEVER
    from .vault_udp_peer import Peer
    from .vault_udp_state import NodeState

MAX_PLACES = 8
"""Addresses of a host that are tried."""
MAX_LOOKUP_DELAY = 60.0
"""Seconds between attempts to resolve a name that has no addresses: 1, 2, 4 … so many."""


class Hosts:
    """Decides about peers with a `Peer.host`; `on_merged` is told of those that we know already."""

    def __init__(self, state: NodeState, on_merged: Callable[[Peer, Address | None, float], None]) -> None:
        self._state = state
        self._on_merged = on_merged

    def look_up(self, peer: Peer) -> None:
        """Ask for the addresses of a host, unless its peer has been found meanwhile."""
        host = peer.host
        assert host is not None
        host.look_up_at = NEVER
        if peer.announce_at != NEVER and not host.asked:
            host.asked = True
            self._state.lookups.append(peer.name)

    def resolved(self, name: Address, addresses: Sequence[Address], why: str, now: float) -> None:
        """The answer to `look_up`; see `Node.resolved`."""
        peer = self._state.table.by_name.get(name)
        host = peer.host if peer is not None and peer.name == name else None
        if peer is None or host is None:
            return  # removed meanwhile, or found to be another peer
        host.asked = False
        before, session = set(host.places), peer.session
        if addresses:
            host.failures = 0
            self._state.table.set_places(peer, list(dict.fromkeys(addresses))[:MAX_PLACES])
        else:
            self._not_resolved(peer, why, now)
        if peer.announce_at == NEVER:
            return
        if session.endpoint in before.difference(host.places):
            session.move_to(host.places[0])
        if host.places and before.isdisjoint(host.places):
            peer.announced_since, peer.announcements, host.reach = now, 0, 0
        if now < host.held_until or not before.issuperset(host.places):
            peer.announce_at, host.held_until = now, now
        self._state.schedule(peer)

    def _not_resolved(self, peer: Peer, why: str, now: float) -> None:
        host = peer.host
        assert host is not None
        self._state.counters["name_not_resolved"] += 1
        if not host.failures:
            self._state.log(
                logging.WARNING,
                "%s cannot be resolved (%s); check the name, and the name server of this machine; it is "
                "tried again until the peer is found or removed",
                peer.name,
                why,
            )
        host.failures += 1
        host.look_up_at = now + min(2.0 ** min(host.failures - 1, 10), MAX_LOOKUP_DELAY)

    def may_announce(self, peer: Peer, now: float) -> bool:
        """Whether to announce to a host's peer now: not while its name is asked for, nor if we know it."""
        host = peer.host
        assert host is not None
        if now < host.held_until:
            peer.announce_at = host.held_until
            return False
        return not self._join(peer, now)

    def where_to_look(self, peer: Peer) -> list[Address]:
        """Where the peer was last, and the addresses of its host, one more with every second call."""
        endpoint, host = peer.session.endpoint, peer.host
        assert host is not None
        # As RFC 8305 has it, the preferred address gets a head start, but no more: two announcements each.
        host.reach += peer.announcements % 2 == 0
        # Who is at an address already keeps it, until it turns out to be the same peer, or leaves.
        places = [place for place in host.places[: host.reach] if self._state.table.at(place) is peer]
        return list(dict.fromkeys(places if is_host(endpoint[0]) else [endpoint, *places]))

    def _join(self, peer: Peer, now: float) -> bool:
        """Make one peer of this and of whom we know at an address of its host; True if there was one."""
        state, host = self._state, peer.host
        assert host is not None
        if host.place is not None and not peer.session.pairs and state.link_of(peer) is None:
            host.place = None  # somebody answered there, and nothing came of it
        if host.place is not None:
            return False
        for place in host.places:
            other = state.table.settled_at(place)
            if other is None:
                continue
            if state.is_ready(other, now) and self._may_join(peer, other):
                self._merge(peer, other, now)
                return True
            # A stranger in no session can begin anew, as this peer. In base mode only we can, if we must.
            in_base, wanted = state.link_of(other) is not None, other.announce_at != NEVER
            if not other.added and not other.session.up and (peer.supplied if in_base else not wanted):
                state.table.forget(other)
        return False

    def _may_join(self, peer: Peer, other: Peer) -> bool:
        # Name servers may lie. So nothing is joined to a peer that has not shown who it is.
        bound = peer.supplied or (peer.identity if peer.session.persistent else b"")
        return bound in (b"", other.identity) and (other.session.up or peer.supplied is None)

    def _merge(self, peer: Peer, other: Peer, now: float) -> None:
        name = peer.name
        if peer.identity not in (b"", other.identity):
            self._state.drop_waiting(peer, "queued_for_another_identity")
        self._state.table.merge(peer, other)
        self._on_merged(other, name, now)
