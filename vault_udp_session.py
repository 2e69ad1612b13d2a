# SPDX-License-Identifier: Apache-2.0
"""The state machine of one session: confirmation, liveness, rotation, clocks. No sockets, threads or clocks.

Rotation makes before it breaks: the previous key opens until the next rotation, and data moves to a new pair
only once the peer has shown that it has it. PROTOCOL.md has the table of states.

Times are seconds of the monotonic clock (`now`), addresses are (ip, port).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING or not __package__:
    import vault_udp_socket_helper as crypto
    from vault_udp_address import Address
    from vault_udp_channel import MIN_PING_BODY, PING_VALID, Channel
    from vault_udp_control import member, read_hello_members, read_json
    from vault_udp_keys import (
        FLAG_COALESCE,
        FLAG_PERSISTENT,
        Hello,
        LocalKeys,
        Pair,
        SessionKey,
        proof_is_good,
        read_hello_untrusted,
    )
    from vault_udp_layout import make_bodies, stored_layout
    from vault_udp_packet import PacketError
    from vault_udp_path import NEVER
else:
    from . import vault_udp_socket_helper as crypto
    from .vault_udp_address import Address
    from .vault_udp_channel import MIN_PING_BODY, PING_VALID, Channel
    from .vault_udp_control import member, read_hello_members, read_json
    from .vault_udp_keys import (
        FLAG_COALESCE,
        FLAG_PERSISTENT,
        Hello,
        LocalKeys,
        Pair,
        SessionKey,
        proof_is_good,
        read_hello_untrusted,
    )
    from .vault_udp_layout import make_bodies, stored_layout
    from .vault_udp_packet import PacketError
    from .vault_udp_path import NEVER


MAX_PAIRS = 4
MAX_UNOPENED_PAIRS = 2
MAX_SUPERSEDED = 8
MAX_RETIRED_PAIRS = 8192
MIN_REKEY_INTERVAL = 1.0
CONFIRM_TRIES = 12
CONFIRMS_BEFORE_DOUBT = 2
PINGS_BEFORE_DOUBT = 1
"""So many unanswered CONFIRMs of a new pair, or pings of a silent peer, and further ones go with smaller
ones: the path may be small."""
SILENCE_BEFORE_PING = 3.0
PINGS_BEFORE_LOST = 3
PING_INTERVAL = 1.0
ACKNOWLEDGE_AFTER = 2.0
MOVE_PINGS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)


def retry_delay(attempt: int) -> float:
    """Seconds until the next confirm or rekey: 0.25 s, growing by half each time, at most 2 s."""
    return min(0.25 * 1.5 ** min(attempt, 6), 2.0)  # the power of a large one would overflow


class Session(Channel):
    """One remote end: its identity, the pairs with it, and the timers that keep it reachable.

    What is to be sent is appended to `outgoing` as (address, datagram). Methods that open datagrams raise
    PacketError for those that are to be dropped.

    Args:
        local: our keys, and whether sizes are found out.
        tags: the table that leads from a datagram's tag to its pair; this session keeps its own pairs in it.
        retired: opened pairs that were closed while our key of theirs lives. They come back as they were, so
            that closing and making a pair again never forgets which counters were accepted.
        endpoint: where to send.
        body_size: bytes of a datagram's body towards IPv4 addresses.
    """

    __slots__ = (
        "_left",
        "_may_ping_at",
        "_may_take_key_at",
        "_move_pings",
        "_pings_unanswered",
        "_rekey_at",
        "_rekeys",
        "_retired",
        "_superseded",
        "_suspect_at",
        "_tags",
        "enc",
        "epoch",
        "flags",
        "last_opened",
        "peer_nonce",
        "restarted",
        "sign",
    )

    def __init__(
        self,
        local: LocalKeys,
        tags: dict[bytes, Pair],
        retired: dict[bytes, Pair],
        outgoing: list[tuple[Address, bytes]],
        endpoint: Address,
        body_size: int,
    ) -> None:
        super().__init__(local, outgoing, endpoint, body_size)
        self.sign = b""
        self.enc = b""
        self.epoch = -1
        self.flags = 0
        self.peer_nonce = b""
        self._superseded: tuple[bytes, ...] = ()
        """Session keys that this identity has replaced: it never goes back to them."""
        self._left: tuple[bytes, ...] = ()
        """Those with which sessions ended: it may come back with one, but not while another session is up."""
        self.last_opened = -NEVER
        self.restarted = False
        """The peer has turned out to be a new process of the same identity; for the caller to clear."""
        self._tags = tags
        self._retired = retired
        self._suspect_at = NEVER
        """When the next step is due with a peer that does not answer: a ping, or to give it up."""
        self._pings_unanswered = 0
        self._rekey_at = NEVER
        self._rekeys = 0
        self._move_pings: tuple[float, ...] = ()
        """When to ping because we have moved, the next one last."""
        self._may_take_key_at = -NEVER
        self._may_ping_at = -NEVER

    # ------------------------------------------------------------------------------------- what users see

    @property
    def up(self) -> bool:
        """Data can be sent and something has been heard recently enough."""
        return self.send is not None and not self.lost

    @property
    def coming_up(self) -> bool:
        """Keys were just exchanged: an answer under them may be on its way."""
        return any(
            not pair.opened and pair.confirm_at < NEVER and pair.confirms < CONFIRMS_BEFORE_DOUBT
            for pair in self.pairs
        )

    @property
    def coalesce(self) -> bool:
        """The peer understands several messages in one body."""
        return bool(self.flags & self.local.flags & FLAG_COALESCE)

    @property
    def persistent(self) -> bool:
        """The peer says that its identity outlives its process."""
        return bool(self.flags & FLAG_PERSISTENT)

    # ----------------------------------------------------------------------------------- keys and pairs

    def accept_hello(self, hello: Hello, source: Address, now: float) -> None:
        """Take a hello whose proof and echo are good and whose identity is allowed here.

        Args:
            source: where it has come from, and an answer with the echo.

        Raises:
            PacketError: ``bad_announcement`` (its session key is not usable), ``stale_hello``,
                ``too_many_keys``, ``pair_of_another``.
        """
        if hello.sign != self.sign:
            self.close()
            self.sign = hello.sign
            self._superseded = self._left = ()
        if hello.enc in self._superseded:
            raise PacketError("stale_hello")  # recorded before a rotation
        if hello.enc != self.enc and self.send is not None:
            if hello.enc in self._left:
                raise PacketError("stale_hello")  # recorded before a goodbye
            self._check_key_rate(now)
        pair = self._pair_with(self.local.current, hello.enc, order=-1, from_hello=True)
        # What is sealed under it goes to the endpoint, where the peer need not be any more.
        pair.needs_pong = pair.needs_pong or source != self.endpoint
        if hello.enc != self.enc:
            self._offset_error = NEVER
            for other in self.pairs:
                other.outdated = other is not pair
        self._take_key(hello)
        self.peer_nonce = hello.nonce
        if self._offset_error == NEVER:
            self.clock_offset = hello.time - self.local.session_time(now)
        if not pair.opened and pair.confirm_at == NEVER:
            pair.confirms, pair.confirm_at = 0, now + retry_delay(0)
        self._confirm(pair, pair.opened, now)

    def _check_key_rate(self, now: float) -> None:
        # Each key of the peer's leaves a replay window behind until two rotations of ours.
        if now < self._may_take_key_at:
            raise PacketError("too_many_keys")
        self._may_take_key_at = now + MIN_REKEY_INTERVAL

    def _take_key(self, hello: Hello) -> None:
        if hello.enc != self.enc and self.enc:
            superseded = [key for key in self._superseded if key != hello.enc]
            self._superseded = (*superseded[1 - MAX_SUPERSEDED :], self.enc)
        self.enc, self.epoch, self.flags = hello.enc, hello.epoch, hello.flags

    def _pair_with(self, mine: SessionKey, theirs: bytes, order: int, from_hello: bool = False) -> Pair:
        for pair in self.pairs:
            if pair.mine is mine and pair.theirs == theirs:
                return pair
        try:
            pair = Pair(self.local, self.sign, mine, theirs)
        except crypto.CryptoError as error:
            raise PacketError("bad_announcement") from error
        holder = self._tags.get(pair.open_tag)
        if holder is not None:
            # A session with the same process at another address. If nothing has opened there, somebody may
            # only have shown the hello, while the peer itself names the key here.
            if from_hello or holder.opened:
                raise PacketError("pair_of_another")
            holder.owner._drop(holder)
        pair.order, pair.from_hello = order, from_hello
        known = self._retired.pop(pair.open_tag, holder)
        if known is not None:
            # Same keys as before: go on with the counters.
            pair.window, pair.counters = known.window, known.counters
        # A hello has just echoed our nonce. Else only an answer shows that the peer is still at the endpoint;
        # and what opens under a pair that we had may have been on its way since then.
        pair.needs_pong = not from_hello or known is not None
        self._make_room()
        self.pairs.append(pair)
        pair.owner = self
        self._tags[pair.open_tag] = pair
        return pair

    def _make_room(self) -> None:
        unopened = [pair for pair in self.pairs if not pair.opened]
        if len(unopened) >= MAX_UNOPENED_PAIRS:
            self._drop(unopened[0])
        if len(self.pairs) >= MAX_PAIRS:
            self._drop(next(pair for pair in self.pairs if pair is not self.send))

    def _drop(self, pair: Pair) -> None:
        self.pairs.remove(pair)
        pair.owner = None
        del self._tags[pair.open_tag]
        if pair is self.send:
            self.send = None
        if pair.window.highest >= 0 and pair.mine in (self.local.current, self.local.previous):
            self._retired[pair.open_tag] = pair

    def close(self) -> None:
        """Forget every pair and all that was measured; the identity is the caller's to change."""
        for pair in list(self.pairs):
            self._drop(pair)
        self._leave_key()
        self.epoch, self.lost, self.restarted = -1, False, False
        self._offset_error = NEVER
        self._pings.clear()
        self._move_pings = ()
        self._suspect_at = self._acknowledge_at = self._rekey_at = NEVER
        self._pings_unanswered = 0

    def after_rotation(self, rekey_at: float) -> None:
        """Our keys have rotated: drop the pairs of the wiped key; offer the new one at `rekey_at` if up."""
        for pair in list(self.pairs):
            if pair.mine not in (self.local.current, self.local.previous):
                self._drop(pair)
        self._rekeys, self._rekey_at = 0, rekey_at if self.send is not None else NEVER
        if not self.pairs:
            # Nothing that the peer knows of us is alive any more: announce anew, and let it do so too.
            self._leave_key()

    def _leave_key(self) -> None:
        if self.enc:
            self._left = (*self._left[1 - MAX_SUPERSEDED :], self.enc)
        self.enc, self.peer_nonce = b"", b""

    def _rekey(self, now: float) -> None:
        assert self.send is not None
        try:
            self._pair_with(self.local.current, self.enc, self.local.current.epoch + self.epoch)
        except PacketError:
            # Another session has this pair: its peer is in both. This one ends with the key that it has.
            self._rekey_at = NEVER
            return
        members: dict[str, object] = {"type": "rekey"}
        members.update(self.local.hello_members(self.endpoint, now, to_sign=self.sign, holds=self.enc))
        self._control(self.send, members, now)
        self._rekey_at = now + retry_delay(self._rekeys)
        self._rekeys += 1

    # ---------------------------------------------------------------------------------------- receiving

    def heard(self, pair: Pair, source: Address, size: int, is_newest: bool, now: float) -> None:
        """A datagram of `size` bytes has opened under `pair`; `is_newest`: by its counter."""
        self.last_opened = now
        self._suspect_at = NEVER
        if source != self.endpoint:
            # What comes from there has opened, but only the answer to a ping shows that the peer is there:
            # somebody may have shown its hello at his own address. What waits for it goes to the endpoint.
            if is_newest:
                self.validate(source, size, now, pair)
            return
        self.lost = False
        if pair.opened:
            return
        if not pair.needs_pong:
            self._first_opened(pair, now)
        elif pair.confirm_at == NEVER:
            # The peer may have nothing but this pair: what is sealed under another one is lost to it.
            pair.confirms, pair.confirm_at = 0, now

    def _first_opened(self, pair: Pair, now: float) -> None:
        pair.opened = True
        if pair.mine is self.local.current:
            self._rekey_at = NEVER
        elif self.send is None:
            self._rekey_at = now  # our keys have rotated since the hello, without a pair to tell so under
        if self.send is None or pair.from_hello or pair.order > self.send.order:
            if pair.from_hello:
                if pair.theirs != self.enc:
                    # A hello that came meanwhile was a recorded one: it is this key that somebody has now.
                    superseded = [key for key in self._superseded if key != pair.theirs]
                    self._superseded = (*superseded[1 - MAX_SUPERSEDED :], self.enc)
                    self.enc, self.epoch, pair.outdated = pair.theirs, -1, False
                pair.order, pair.from_hello = pair.mine.epoch + self.epoch, False
                if self.send is not None and pair.theirs != self.send.theirs:
                    # A process counts its keys from 0, and never goes back.
                    self.restarted = self.epoch <= self.send.order - self.send.mine.epoch
                # What is of another key of the peer's is of a process that may be gone: nothing of it that is
                # still on its way may take over or say goodbye.
                for other in [other for other in self.pairs if other.theirs != self.enc]:
                    self._drop(other)
            self.send = pair
        # Due at once; what opened the pair may be a CONFIRM, which is answered anyway, or needs no answer.
        pair.confirm_at = now

    def _answered(self, pair: Pair, now: float) -> None:
        """The peer has the pair, and is where we asked for it."""
        if not pair.opened:
            self._first_opened(pair, now)
            pair.confirm_at = NEVER

    def suspect(self, now: float) -> None:
        """There are signs that the peer is gone: ping it as if it had left data unanswered."""
        if self._suspect_at == NEVER:
            self._suspect_at, self._pings_unanswered = now + SILENCE_BEFORE_PING, 0

    def receive_control(
        self, pair: Pair, control: bytes, source: Address, size: int, fresh: bool, now: float
    ) -> bool:
        """Act on a control message that opened under `pair` in a body of `size` bytes; True for a goodbye.

        A CONFIRM is judged by the nonce it echoes, not by its timestamp: it is what mends a clock that has
        jumped. Everything else must be fresh.

        Raises:
            PacketError: ``bad_control``, ``outside_window``, ``stale_hello``, ``bad_announcement``,
                ``bad_proof``, ``too_many_keys``, ``too_many_sessions``, ``pair_of_another``.
        """
        members = read_json(control)
        kind = member(members, "type", str)
        if kind == "confirm":
            self._receive_confirm(pair, members, source, size, now)
            return False
        if not fresh:
            self.outside_window(pair, now)
        if pair.outdated:
            raise PacketError("stale_hello")  # of a process that has announced itself anew since
        if kind == "rekey":
            self._receive_rekey(*read_hello_members(members), now)
        if kind == "bye" and self.send is not None and pair.order < self.send.order:
            raise PacketError("stale_hello")  # of an earlier session: this one's comes under its own pairs
        return bool(kind == "bye")

    def outside_window(self, pair: Pair, now: float) -> None:
        """An authentic datagram is too old or too new by the clocks: ask for the time, then drop it."""
        if now >= self._may_ping_at:
            self._may_ping_at = now + PING_INTERVAL
            self._confirm(pair, False, now)
        raise PacketError("outside_window")

    def _receive_confirm(
        self, pair: Pair, members: dict[str, object], source: Address, size: int, now: float
    ) -> None:
        got, silent = member(members, "got", bool), member(members, "silent", bool)
        nonce = _nonce_member(members, "nonce")
        if got is None:
            raise PacketError("bad_control")
        if pair.opened:
            pair.confirm_at = NEVER
        echo = _nonce_member(members, "echo")
        if not got:
            if echo and source == self.endpoint and self.local.is_own_nonce(echo, source, now):
                self._answered(pair, now)  # our REKEY
            # No longer than the ping: it is to come through where that came through.
            self._confirm(pair, True, now, nonce, min(self.body_size, max(size, MIN_PING_BODY)))
            if silent and source == self.endpoint:
                self._question_size(size, now)
            return
        ping = self._pings.pop(echo, None)
        peer_time = member(members, "time", int)
        if peer_time is not None and not 0 <= peer_time < 1 << 64:
            raise PacketError("bad_control")
        if ping is None or peer_time is None or now - ping.sent_at > PING_VALID:
            return
        self._measure(peer_time / 1000, ping.sent_at, now)
        if ping.address == source:
            self._answered(pair, now)
            self.lost = False
            self.move_to(source)
        if ping.address == self.endpoint and self._path is not None:
            self._path.answered(ping.size, now - ping.sent_at, now)
            self._follow(self._path)

    def _receive_rekey(self, blob: bytes, proof: bytes, now: float) -> None:
        hello = read_hello_untrusted(blob)
        if hello.sign != self.sign or hello.to_sign != self.local.sign_public:
            raise PacketError("bad_announcement")
        if hello.enc != self.enc:
            if hello.epoch <= self.epoch:
                return
            self._check_key_rate(now)
            if not proof_is_good(hello, blob, proof):
                raise PacketError("bad_proof")
            if len(self._retired) >= MAX_RETIRED_PAIRS:
                raise PacketError("too_many_sessions")
            order = self.local.current.epoch + hello.epoch
            pair = self._pair_with(self.local.current, hello.enc, order)
            self._take_key(hello)
            if not pair.opened:
                pair.confirms, pair.confirm_at = 0, now + retry_delay(0)
        else:
            pair = self._pair_with(self.local.current, hello.enc, self.local.current.epoch + self.epoch)
        pair.rekey_nonce = hello.nonce
        self._ask(pair, now)

    # ------------------------------------------------------------------------------------------ sending

    def seal(self, bodies: Sequence[bytes], now: float) -> Sequence[bytes]:
        """Datagrams around bodies of user data, under the send pair, which must exist."""
        return self._pair_for_data(now).seal(bodies, self.local.session_time(now))

    def seal_messages(self, messages: Sequence[bytes], now: float) -> Sequence[bytes]:
        """Datagrams that carry `messages`, as `make_bodies` takes them.

        Raises:
            TooLargeError: one of them does not fit.
        """
        if len(messages) == 1 and messages[0].__class__ is bytes:
            layout = stored_layout(len(messages[0]), self.body_size)
            pair, time = self._pair_for_data(now), self.local.session_time(now)
            return (pair.seal_one(layout, messages[0], time),)
        return self.seal(make_bodies(messages, self.body_size, self.coalesce), now)

    def _pair_for_data(self, now: float) -> Pair:
        """The send pair; what is sealed under it now wants an answer."""
        assert self.send is not None
        self._acknowledge_at, self._sent_at = NEVER, now
        self.suspect(now)
        return self.send

    def moved(self, now: float) -> None:
        """We send from another address now: ping until the peer must have noticed, whatever else opens."""
        if self.send is not None:
            self._move_pings = tuple(now + delay for delay in reversed(MOVE_PINGS))

    def note_data(self, now: float) -> None:
        """User data has arrived: if nothing goes back within 2 s, say so."""
        if self._acknowledge_at == NEVER:
            self._acknowledge_at = now + ACKNOWLEDGE_AFTER

    def say_goodbye(self, now: float) -> None:
        """Tell the peer that this session is over, also if only the peer has seen it begin, or rotate."""
        for pair in [pair for pair in self.pairs if pair is self.send or not pair.opened]:
            self._control(pair, {"type": "bye"}, now)

    def ping(self, now: float) -> None:
        """Ask the peer to show that it is there, under the send pair."""
        if self.send is not None:
            self._confirm(self.send, False, now)

    def confirm_unopened(self, now: float) -> None:
        """Repeat CONFIRM under the pairs that nothing has opened under yet."""
        for pair in self.pairs:
            if not pair.opened:
                self._ask(pair, now)

    # ------------------------------------------------------------------------------------------- timers

    def deadline(self) -> float:
        """When `run_timers` has something to do next."""
        due = [self._acknowledge_at, self._rekey_at, self._keepalive_at]
        due += [pair.confirm_at for pair in self.pairs]
        if self.up:
            due.append(self._suspect_at)
        if self._move_pings:
            due.append(self._move_pings[-1])
        if self._path is not None:
            due.append(self._path.due_at)
        return min(due)

    @property
    def _keepalive_at(self) -> float:
        return self._sent_at + self.local.keepalive if self.send is not None else NEVER

    def run_timers(self, now: float) -> None:
        """Do what is due: repeat confirms and rekeys, ping a silent peer and give it up, acknowledge."""
        for pair in list(self.pairs):
            if pair.opened and pair.confirm_at <= now:
                pair.confirm_at = NEVER
                self._confirm(pair, True, now)
            elif pair.confirm_at <= now:
                pair.confirms += 1
                if pair.confirms > CONFIRM_TRIES:
                    self._drop(pair)
                    continue
                pair.confirm_at = now + retry_delay(pair.confirms)
                self._ask(pair, now)
                if pair.confirms >= CONFIRMS_BEFORE_DOUBT:
                    self._doubt_size(pair, now)
        if self._rekey_at <= now:
            self._rekey(now)
        if self._path is not None and self._path.due_at <= now:
            self._run_path(self._path, now)
        if self._move_pings and self._move_pings[-1] <= now:
            self._move_pings = self._move_pings[:-1]
            self.ping(now)
        if self._keepalive_at <= now:
            self.ping(now)
            self.suspect(now)
        elif self._acknowledge_at <= now:
            self._acknowledge_at = NEVER
            if self.send is not None:
                self._confirm(self.send, True, now)
        if self.up and self._suspect_at <= now:
            # A step at a time, however late: after a pause of our own the answers must be read first.
            if self._pings_unanswered >= PINGS_BEFORE_LOST:
                self.lost = True
                return
            self._pings_unanswered += 1
            self._suspect_at = now + PING_INTERVAL
            assert self.send is not None
            self._ask_silent(self.send, self.body_size, now)
            if self._pings_unanswered > PINGS_BEFORE_DOUBT:
                self._doubt_size(self.send, now)


def _nonce_member(members: dict[str, object], name: str) -> bytes:
    text = member(members, name, str)
    if text is None:
        return b""
    try:
        nonce = crypto.b64_str_to_bytes(text)
    except crypto.EncodingError as error:
        raise PacketError("bad_control") from error
    if len(nonce) != 16:
        raise PacketError("bad_control")
    return nonce
