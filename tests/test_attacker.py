# SPDX-License-Identifier: Apache-2.0
"""Two honest peers, and between them an attacker to whom the wire belongs.

He reads everything, and drops, holds back, duplicates, reorders, corrupts, replays, re-addresses and reflects
it as he likes, forges announcements with echoes that he has read, and runs a node of his own which he may put
in the place of either end. Whatever he does:

- nothing is delivered that was not sent, nothing twice, nothing under another identity's name, nothing to
  another identity than the one that the sender's address was bound to;
- where the keys were supplied, nothing comes from him or goes to him under the names of the two;
- RECOVERY seconds after he stops, messages go both ways again.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import hypothesis.strategies as st
from fakenet import EPOCH, SEALED_SIZE, Address, Copies, Datagram, FakeNet, Host, flip_bit
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import vault_udp_control as control_format
import vault_udp_packet as packet
import vault_udp_socket_helper as crypto
from vault_udp_encryption import VaultAsymmetricEncryption
from vault_udp_keys import NO_KEY, Hello, LocalKeys, Pair, SessionKey, read_hello_untrusted

A, B, E = ("10.0.0.1", 1001), ("10.0.0.2", 1002), ("10.6.6.6", 666)
PLACES = [A, B, E, ("10.0.0.1", 1111), ("10.6.6.7", 667)]
RECOVERY = 30.0
"""Seconds after which messages flow again: 6 to find that nobody answers, 3.2 for a probe, and up to 16.5
until an end that has called in vain for long announces again."""
POLICIES = ["pass", "pass", "hold", "drop", "shuffle", "double", "corrupt"]
NUMBERS = st.integers(0, 10**6)


class Sent(NamedTuple):
    """One message: who sent it, as whom, and to which name."""

    sender: Host | None
    identity: bytes
    to: Address


class Attack(RuleBasedStateMachine):
    """The rules are what the attacker can do, and what the honest do meanwhile."""

    net: FakeNet

    # ------------------------------------------------------------------------------------- the honest

    @initialize(
        seed=st.integers(0, 99),
        supplied=st.booleans(),
        legacy=st.booleans(),
        lifetimes=st.sampled_from([(60, 60), (5, 7), (5, 60)]),
        policy=st.sampled_from(POLICIES),
    )
    def begin(
        self, seed: int, supplied: bool, legacy: bool, lifetimes: tuple[float, float], policy: str
    ) -> None:
        self.net = FakeNet(seed, delay=0.01)
        self.supplied, self.policy = supplied, policy
        self.in_place_of: Address | None = None
        self.held: list[Datagram] = []
        self.sent: dict[bytes, Sent] = {}
        self.delivered: set[bytes] = set()
        self.pins: set[tuple[Host, Address, bytes]] = set()
        self.net.hook = self._on_the_wire
        self.alice, self.bob, self.eve = (
            self.net.node(address, lifetime=lifetime, legacy_peers=legacy)
            for address, lifetime in ((A, lifetimes[0]), (B, lifetimes[1]), (E, 60))
        )
        for host in (self.alice, self.bob, self.eve):
            host.on_message = self._checker(host)
        self.rogue = LocalKeys(bytes(range(32)), 0.0, EPOCH)
        self.rogue_base = VaultAsymmetricEncryption(60)
        self._add_each_other(self.alice, self.bob)

    def _add_each_other(self, *hosts: Host) -> None:
        for host in hosts:
            other, address = (self.bob, B) if host is self.alice else (self.alice, A)
            host.add_peer(address, supplied=other.sign_public if self.supplied else None)

    def _say(self, host: Host, address: Address) -> bytes:
        message = b"message %d" % len(self.sent)
        self.sent[message] = Sent(host, host.sign_public, address)
        host.send(address, message)
        return message

    @rule(alice=st.booleans(), count=st.integers(1, 5))
    def talk(self, alice: bool, count: int) -> None:
        for _ in range(count):
            self._say(*((self.alice, B) if alice else (self.bob, A)))

    @rule(seconds=st.sampled_from([0.02, 0.3, 2, 6, 20, 70]))
    def wait(self, seconds: float) -> None:
        self.net.run(seconds)

    @rule(
        alice=st.booleans(), politely=st.booleans(), same_identity=st.booleans(), away=st.sampled_from([0, 1])
    )
    def restart(self, alice: bool, politely: bool, same_identity: bool, away: float) -> None:
        host = self.alice if alice else self.bob
        (host.stop if politely else host.kill)()
        self.net.run(away)
        host.restart(same_identity=same_identity or self.supplied)
        self._add_each_other(host)

    @rule(knowingly=st.booleans())
    def move(self, knowingly: bool) -> None:
        """Only Alice does, for Bob would have to be found again at a name that she does not know."""
        self.alice.move(("10.0.0.1", self.alice.address[1] + 1), knowingly=knowingly)

    # ----------------------------------------------------------------------------------- the invariants

    def _checker(self, host: Host) -> Callable[[Address, bytes], None]:
        def check(address: Address, message: bytes) -> None:
            assert message in self.sent, "it was never sent"
            sender, identity, to = self.sent[message]
            assert message not in self.delivered, "it was delivered before"
            self.delivered.add(message)
            assert sender is not host, "it is our own"
            assert host.peer(address).identity == identity, "it comes under another's name"
            if sender is not None:
                assert (sender, to, host.sign_public) in self.pins, "it was for another identity"
            if self.supplied:
                assert host is not self.eve or sender is None, "the attacker has it"
                for honest, name, other in ((self.alice, B, self.bob), (self.bob, A, self.alice)):
                    if host is honest and address == name:
                        assert identity == other.sign_public, "the attacker has sent it"

        return check

    def _note_pins(self) -> None:
        for host in (self.alice, self.bob, self.eve):
            for name, peer in host.node.table.by_name.items():
                self.pins.add((host, name, peer.identity))

    def teardown(self) -> None:
        """The attacker stops; what he holds is lost."""
        if not hasattr(self, "eve"):
            return
        self.eve.kill()
        self.net.hook = self._honest_wire
        arrived: dict[str, set[bytes]] = {"alice": set(), "bob": set()}
        last = len(self.sent)

        def talk() -> None:
            arrived["bob"].add(self._say(self.alice, B))
            known_as = [name for name, message in self.bob.received if self._is_from_alice(message, last)]
            arrived["alice"].add(self._say(self.bob, known_as[-1] if known_as else A))

        def both_ways() -> bool:
            return bool(arrived["alice"] & self.delivered and arrived["bob"] & self.delivered)

        self.net.every(0.5, talk, until=self.net.now + RECOVERY)
        assert self.net.run_until(both_ways, limit=RECOVERY), (
            self.alice.mode(B),
            self.bob.mode(A),
            dict(self.alice.node.counters),
            dict(self.bob.node.counters),
        )

    def _is_from_alice(self, message: bytes, last: int) -> bool:
        return self.sent[message].sender is self.alice and int(message.split()[1]) >= last

    # ------------------------------------------------------------------------------------ on the wire

    def _honest_wire(self, datagram: Datagram) -> Copies:
        self._note_pins()
        return self.net.route(datagram)

    def _on_the_wire(self, datagram: Datagram) -> Copies:
        self._note_pins()
        rng, data = self.net.rng, datagram.data
        if self.in_place_of is not None and datagram.src == E:
            self.net.at(
                self.net.now + 0.01, lambda: self.net.inject(self.in_place_of or E, datagram.dst, data)
            )
            return []
        if self.in_place_of is not None and datagram.dst == self.in_place_of:
            self.net.at(self.net.now + 0.01, lambda: self.net.inject(datagram.src, E, data))
            return []
        if self.policy == "hold" or (self.policy == "drop" and rng.random() < 0.5):
            self.held.append(datagram)
            return []
        if self.policy == "shuffle":
            return [(2 * rng.random(), data)]
        if self.policy == "double":
            return [(0.01, data), (0.01, data), (3 * rng.random(), data)]
        if self.policy == "corrupt" and rng.random() < 0.3:
            return [(0.01, flip_bit(data, rng.randrange(8 * len(data))))]
        return [(0.01, data)]

    @rule(policy=st.sampled_from(POLICIES))
    def change_policy(self, policy: str) -> None:
        self.policy = policy

    @precondition(lambda self: self.held)
    @rule(count=st.integers(1, 20), backwards=st.booleans())
    def release(self, count: int, backwards: bool) -> None:
        chosen, self.held = self.held[-count:], self.held[:-count]
        for datagram in chosen[::-1] if backwards else chosen:
            self.net.inject(datagram.src, datagram.dst, datagram.data)

    @precondition(lambda self: self.net.sent)
    @rule(back=NUMBERS, count=st.integers(1, 200))
    def replay(self, back: int, count: int) -> None:
        for datagram in self._recorded(back, count):
            self.net.inject(datagram.src, datagram.dst, datagram.data)

    @precondition(lambda self: self.net.sent)
    @rule(
        back=NUMBERS, count=st.integers(1, 50), source=st.sampled_from(PLACES), to=st.sampled_from(PLACES[:3])
    )
    def readdress(self, back: int, count: int, source: Address, to: Address) -> None:
        """From anywhere, to anyone: who sent it included."""
        for datagram in self._recorded(back, count):
            self.net.inject(source, to, datagram.data)

    @precondition(lambda self: self.net.sent)
    @rule(back=NUMBERS, bit=NUMBERS)
    def corrupt(self, back: int, bit: int) -> None:
        for datagram in self._recorded(back, 5):
            data = flip_bit(datagram.data, bit % (8 * len(datagram.data)))
            self.net.inject(datagram.src, datagram.dst, data)

    def _recorded(self, back: int, count: int) -> list[Datagram]:
        start = len(self.net.sent) - 1 - back % len(self.net.sent)
        return self.net.sent[start : start + count]

    # ------------------------------------------------------------------------------ the attacker's own

    @rule(place=st.sampled_from([None, A, B]))
    def put_own_node(self, place: Address | None) -> None:
        """His node takes the place of one end towards the other, or goes back to its own."""
        self.in_place_of = place
        for address in (A, B):
            if address != place:
                self.eve.add_peer(address)

    @rule(alice=st.booleans())
    def own_node_talks(self, alice: bool) -> None:
        self._say(self.eve, A if alice else B)

    @rule(
        claimed=st.sampled_from(["own", "alice", "bob"]),
        source=st.sampled_from(PLACES),
        to_alice=st.booleans(),
        own_key=st.booleans(),
        named=st.booleans(),
        wait=st.booleans(),
    )
    def forge_hello(
        self, claimed: str, source: Address, to_alice: bool, own_key: bool, named: bool, wait: bool
    ) -> None:
        """A hello with a valid echo, in anybody's name, with his key or another's, and data sealed for it."""
        victim = self.alice if to_alice else self.bob
        theirs = self._last_hello(victim.address, source)
        if theirs is None:
            blob = self._hello(NO_KEY, theirs)
            self.net.inject(source, victim.address, self._announcement(blob))
            theirs = self._last_hello(victim.address, source)
            if theirs is None:
                return
        signs = {"own": self.rogue.sign_public, "alice": self.alice.sign_public, "bob": self.bob.sign_public}
        key = SessionKey(self.rogue.current.epoch)
        known = [hello.enc for hello in map(_hello_in, self.net.sent[-200:]) if hello is not None]
        enc = key.public if own_key or not known else self.net.rng.choice(known)
        hello = self._hello(enc, theirs, sign=signs[claimed])
        hello = hello._replace(to_sign=theirs.sign if named else NO_KEY, holds=theirs.enc)
        self.net.inject(source, victim.address, self._announcement(hello))
        self._seal_for(victim, source, signs[claimed], key, theirs)
        if wait:
            self.net.run(0.05)

    def _seal_for(self, victim: Host, source: Address, sign: bytes, key: SessionKey, theirs: Hello) -> None:
        own, self.rogue.sign_public = self.rogue.sign_public, sign
        pair = Pair(self.rogue, theirs.sign, key, theirs.enc)
        self.rogue.sign_public = own
        message = b"message %d" % len(self.sent)
        # In his own name he may be believed, where nobody else's was expected.
        sender = Sent(None, sign if sign == own else b"nobody", B)
        self.sent[message] = sender
        bodies = [
            packet.make_control_body(
                control_format.write_json({"type": "confirm", "got": True}), SEALED_SIZE - 64
            ),
            packet.make_payload_body(packet.store_frame(message), SEALED_SIZE - 64),
            packet.make_control_body(control_format.write_json({"type": "bye"}), SEALED_SIZE - 64),
        ]
        for datagram in pair.seal(bodies, EPOCH + self.net.now):
            self.net.inject(source, victim.address, datagram)

    @rule(source=st.sampled_from(PLACES), to_alice=st.booleans())
    def forge_base_announcement(self, source: Address, to_alice: bool) -> None:
        body = control_format.make_announcement_body(self.rogue_base.base_members(source[1]), 1024)
        self.net.inject(source, self.alice.address if to_alice else B, body)

    def _hello(self, enc: bytes, theirs: Hello | None, sign: bytes = b"") -> Hello:
        nonce, echo = (bytes(16), bytes(16)) if theirs is None else (theirs.echo, theirs.nonce)
        sign = sign or self.rogue.sign_public
        return Hello(2, 0, EPOCH + self.net.now, sign, enc, NO_KEY, NO_KEY, nonce, echo)

    def _announcement(self, hello: Hello) -> bytes:
        blob = hello.pack()
        proof = crypto.sign_detached(self.rogue.sign_seed, blob)
        members = {"hello": crypto.bytes_to_b64_str(blob), "proof": crypto.bytes_to_b64_str(proof)}
        return control_format.make_announcement_body(members, 512)

    def _last_hello(self, src: Address, dst: Address) -> Hello | None:
        for datagram in reversed(self.net.sent[-500:]):
            if (datagram.src, datagram.dst) == (src, dst):
                hello = _hello_in(datagram)
                if hello is not None:
                    return hello
        return None


def _hello_in(datagram: Datagram) -> Hello | None:
    if len(datagram.data) not in (512, 1024) or not packet.looks_clear(datagram.data):
        return None
    try:
        announcement = control_format.read_announcement(
            control_format.read_json(packet.read_body(datagram.data).control)
        )
    except packet.PacketError:
        return None
    return read_hello_untrusted(announcement.hello) if announcement.hello else None


TestAttack = Attack.TestCase
# A failure is shown as it was found: making it smaller takes minutes.
TestAttack.settings = settings(max_examples=150, stateful_step_count=25, phases=[Phase.generate])
