# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets: bytes in, and no exception out but the one.

    python fuzz/targets.py TARGET [CORPUS OR INPUT ...] [libFuzzer options]

`fuzz/run.py` runs them all for a fixed number of runs. To repeat what it has found, name the target and the
file that it left.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "fuzz")]

with atheris.instrument_imports(include=[path.stem for path in ROOT.glob("vault_udp_*.py")]):
    import make_vectors as vectors
    from world import MAX_STEPS, PAUSES, SOURCES, Steps, World, packed_control, step

    import vault_udp_control as control_format
    import vault_udp_layout as layouts
    import vault_udp_packet as packet
    from vault_udp_encryption import VaultAsymmetricEncryption
    from vault_udp_keys import proof_is_good, read_hello_untrusted
    from vault_udp_packet import PacketError

VECTORS = ROOT / "tests" / "vectors"


def cases(name: str) -> list[dict[str, Any]]:
    document: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return list(document["cases"])


def allowed(read: Callable[[Any], Any], data: Any) -> Any:
    """What a parser makes of the bytes; None for the one exception that it may raise."""
    try:
        return read(data)
    except PacketError:
        return None


# ------------------------------------------------------------------------------------------------ formats


def body(data: bytes) -> None:
    """Bodies, frames, v1 texts; the short cut for what most bodies are agrees with the parser."""
    content = allowed(packet.read_body, data)
    allowed(packet.read_frame, data)
    allowed(control_format.read_v1_text, data)
    frame = allowed(packet.read_frame, content.payload) if content is not None else None
    if frame is not None:
        allowed(control_format.read_v1_text, frame)
    read = layouts.read_messages(data)
    assert read is None or list(read[1]) == (list(content.messages) or [frame])


def body_seeds() -> Iterator[bytes]:
    for case in cases("bodies"):
        yield base64.b64decode(case["body"])
    for case in cases("frames"):
        frame = base64.b64decode(case["frame"])
        yield frame
        if len(frame) < 1300:
            yield packet.make_payload_body(frame, 1393)


def announcement(data: bytes) -> None:
    """Control JSON, announcements, hellos, signatures."""
    members = allowed(control_format.read_json, data)
    read = allowed(control_format.read_announcement, members) if members is not None else None
    if read is None:
        return
    if read.hello is not None:
        hello = allowed(read_hello_untrusted, read.hello)
        if hello is not None:
            hello.pack()
            proof_is_good(hello, read.hello, read.proof)
    allowed(VERIFIER.verify_announcement, read)


VERIFIER = VaultAsymmetricEncryption(60, *(vectors.b64(vectors.secret(name)) for name in ("base", "sign")))


def announcement_seeds() -> Iterator[bytes]:
    for case in [*cases("exchange"), *cases("refusals")]:
        datagram = base64.b64decode(case["datagram"] if "datagram" in case else case["datagrams"][-1])
        content = allowed(packet.read_body, datagram)
        if content is not None and content.control:
            yield content.control


# ------------------------------------------------------------------------------------------------- the node


def datagram(data: bytes) -> None:
    """Datagrams of anybody's, from several addresses, with time between them."""
    world, steps = World(), Steps(data)
    for _ in range(MAX_STEPS):
        if not steps:
            break
        head = steps.byte()
        world.wait(PAUSES[head >> 3 & 7])
        received = steps.some()
        world.arrive([received, received] if head & 64 else [received], SOURCES[head & 7])
    world.wait(20.0)


def datagram_seeds() -> Iterator[bytes]:
    for case in cases("refusals"):
        source = tuple(case["source"])
        index = SOURCES.index(source) if source in SOURCES else 2
        yield b"".join(step(index, base64.b64decode(text)) for text in case["datagrams"])
    everything = [step(0, base64.b64decode(case["datagram"])) for case in cases("exchange")]
    yield b"".join(everything[-MAX_STEPS:])
    yield from everything


def session(data: bytes) -> None:
    """What they say who hold keys: peers in a session, and strangers with perfect hellos.

    A step is what is done, who does it with which of his session keys, from where and how much later.
    """
    world, steps = World(), Steps(data)
    for _ in range(MAX_STEPS):
        if not steps:
            break
        kind, who, head = steps.byte(), steps.byte(), steps.byte()
        world.wait(PAUSES[head >> 3 & 7])
        ACTIONS[kind % len(ACTIONS)](world, steps, who, SOURCES[head & 7])
        world.check()
    world.wait(130.0)
    world.check()


IDENTITIES = [vectors.identity(name) for name in ("bob", "bob", "mallory", "carol")]
STAMPS = (0.0, 0.0, -59.0, -61.0, 61.0, float("nan"), float("inf"), -1e308)


def _send(world: World, who: int, content: bytes, source: Any, *, stamp: float = 0.0, times: int = 1) -> None:
    end = IDENTITIES[who & 3]
    world.arrive([world.sealed(end, who >> 2 & 7, content, stamp) for _ in range(times)], source)


def _body(world: World, steps: Steps, who: int, source: Any) -> None:
    _send(world, who, steps.some(), source, stamp=STAMPS[who >> 5], times=1 + (who >> 4 & 1))


def _control(world: World, steps: Steps, who: int, source: Any) -> None:
    text = steps.some()
    _send(world, who, packet.make_control_body(text, len(text) + 40), source)


def _payload(world: World, steps: Steps, who: int, source: Any) -> None:
    frame = steps.some()
    _send(world, who, packet.make_payload_body(frame, len(frame) + 40), source, times=1 + (who >> 4 & 1))


def _confirm(world: World, steps: Steps, who: int, source: Any) -> None:
    members: dict[str, Any] = {"type": "confirm", "got": bool(who & 128)}
    nonces = world.nonces()
    if nonces and who & 128:
        members.update(echo=vectors.b64(nonces[steps.byte() % len(nonces)]))
        members.update(time=int.from_bytes(steps.take(8), "big"))
    _send(world, who, packed_control(members), source)


def _rekey(world: World, steps: Steps, who: int, source: Any) -> None:
    new, alice = steps.byte(), world.node.local.sign_public
    members = world.hello(IDENTITIES[who & 3], new & 3, source, to_sign=alice, epoch=new >> 2)
    _send(world, who, packed_control({"type": "rekey", **members}), source)


def _goodbye(world: World, steps: Steps, who: int, source: Any) -> None:
    _send(world, who, packed_control({"type": "bye"}), source)


def _hello(world: World, steps: Steps, who: int, source: Any) -> None:
    end, flags = IDENTITIES[who & 3], steps.byte()
    holds = world.node.local.current.public if flags & 4 else bytes(32)
    members = world.hello(end, who >> 2 & 3, source, flags=flags & 3, holds=holds, epoch=who >> 4)
    if flags & 8:
        members.update(vectors.base_members(end, source[1]))
    world.arrive([vectors.clear(members, 1024)], source)


def _base_announcement(world: World, steps: Steps, who: int, source: Any) -> None:
    members = vectors.base_members(IDENTITIES[who & 3], source[1])
    make = vectors.clear_v1 if who & 128 else vectors.clear
    world.arrive([make(vectors.json_bytes(members) if who & 128 else members)], source)  # type: ignore[arg-type]


def _base_body(world: World, steps: Steps, who: int, source: Any) -> None:
    alice, nonce = vectors.identity("alice"), steps.take(16)
    stamp = vectors.WALL + world.now + STAMPS[who >> 5]
    world.arrive([vectors.seal_base(IDENTITIES[who & 3], alice.base_enc, stamp, steps.some(), nonce)], source)


def _program(world: World, steps: Steps, who: int, source: Any) -> None:
    """What Alice's program does meanwhile."""
    choice = who % 6
    if choice == 0:
        world.at(world.now, lambda node, now: node.add_peer(source, now))
    elif choice == 1:
        world.at(world.now, lambda node, now: node.remove_peer(source, now))
    elif choice == 2:
        world.at(world.now, vectors.send(source, b"message", b"another"))
    elif choice == 3:
        key = IDENTITIES[who >> 4 & 3].sign
        world.at(world.now, lambda node, now: node.add_peer(source, now, key))
    elif choice == 4:
        world.at(world.now, lambda node, now: node.moved(now))
    else:
        world.wait(1.0)


ACTIONS = [
    _body, _control, _payload, _confirm, _rekey, _goodbye, _hello, _base_announcement, _base_body, _program,
]  # fmt: skip


def session_seeds() -> Iterator[bytes]:
    for case in [*cases("bodies"), *cases("frames")]:
        content = base64.b64decode(case["body" if "body" in case else "frame"])
        kind = 0 if "body" in case else 2
        yield bytes([kind, 0]) + step(0, content)
        yield bytes([8, 3, 1]) + bytes(16) + step(0, content)[1:]
    for case in cases("exchange"):
        if "control" in case:
            yield bytes([1, 0]) + step(0, vectors.json_bytes(case["control"]))
    confirm, ping, bye = bytes([3, 128, 0, 0]) + bytes(8), bytes([3, 0, 0]), bytes([5, 0, 0])
    rekey, new = bytes([4, 0, 0, 5]), bytes([3, 4, 0])
    yield confirm + ping + rekey + new + bye
    stranger = bytes([6, 2, 2, 0]) + bytes([3, 2, 2])
    yield stranger + bytes([4, 2, 2, 5]) + bytes([3, 6, 2]) + bytes([5, 6, 2])
    yield bytes([7, 2, 2]) + stranger + bytes([9, 0, 3]) + bytes([6, 2, 3, 0]) + bytes([9, 1, 2])
    for kind in range(6):
        yield bytes([9, kind, 0]) + ping + bytes([9, kind, 3]) + bytes([9, kind, 1])
    yield bytes([6, 0, 4, 0]) + ping + bytes([3, 128, 4, 0]) + bytes(8)
    yield bytes([5, 0, 56]) + bytes([6, 0, 0, 0]) + ping + bytes([5, 0, 0])


TARGETS = {
    "body": (body, body_seeds),
    "announcement": (announcement, announcement_seeds),
    "datagram": (datagram, datagram_seeds),
    "session": (session, session_seeds),
}


def write_seeds(name: str, folder: Path) -> int:
    """Make the seed corpus of a target; returns how many inputs there are."""
    seeds = sorted(set(TARGETS[name][1]()))
    for number, seed in enumerate(seeds):
        (folder / f"{number:04d}").write_bytes(seed)
    return len(seeds)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"targets.py: no target {name!r}; there are {', '.join(TARGETS)}")
    corpus = os.environ.get("FUZZ_SEEDS_TO")
    if corpus:
        count = write_seeds(name, Path(corpus))
        assert count, "no seeds: the vectors are gone"
        print(f"{name}: {count} seeds", flush=True)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[name][0])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
