# SPDX-License-Identifier: Apache-2.0
"""Throughput and round trips between two processes, each as a ratio to plain sockets in the same run."""

from __future__ import annotations

import os
from statistics import median
from typing import NamedTuple, Sequence

from .ends import Flood, RawLink, VaultLink, raw_link, vault_link
from .report import Row

BIG, SMALL, PING = 1200, 20, 64
THREADS = (1, 2, 4, 8)
LARGEST_RAW = 65_507
"""Bytes that fit into a datagram of IPv4."""
WARM_UP_SECONDS = 0.2
WARM_UP_ROUNDS = 300


class Settings(NamedTuple):
    """How long to measure: seconds of a flood, round trips, repetitions, and sizes for the plot."""

    seconds: float
    rounds: int
    repetitions: int
    sizes: Sequence[int]


def settings(quick: bool) -> Settings:
    if quick:
        return Settings(0.4, 1000, 1, [16, 256, 1024, 4096, 65536])
    return Settings(1.5, 5000, 5, [2**power for power in range(4, 17)])


class Speed(NamedTuple):
    """The rows, and what the plots show."""

    rows: list[Row]
    latencies: dict[str, list[float]]
    """Microseconds of each round trip, sorted, by kind."""
    sizes: dict[str, list[tuple[int, float, float]]]
    """(bytes of a message, messages a second, million bytes a second), by kind."""


def measure(quick: bool) -> Speed:
    """All rows of this module."""
    times = settings(quick)
    with raw_link() as raw, vault_link() as vault:
        for link in (raw, vault):
            link.flood(os.urandom(BIG), WARM_UP_SECONDS)
        rows = [
            *_flood_rows(raw, vault, BIG, 1.0, 1.25, times),
            *_flood_rows(raw, vault, SMALL, 8.0, 11.0, times),
        ]
        rows.append(_threads_row(vault, times))
        sizes = _sizes(raw, vault, times)
    latency_row, latencies = _latencies(times)
    return Speed([*rows, latency_row], latencies, sizes)


def _flood_rows(
    raw: RawLink, vault: VaultLink, size: int, must: float, aims: float, times: Settings
) -> list[Row]:
    message = os.urandom(size)
    pairs = [
        (raw.flood(message, times.seconds), vault.sustained_flood(message, times.seconds))
        for _ in range(times.repetitions)
    ]
    ours = [flood for _, flood in pairs]
    details = {
        "messages/s": median(flood.rate for flood in ours),
        "raw/s": median(flood.rate for flood, _ in pairs),
        "loss %": 100 * median(flood.loss for flood in ours),
        "raw loss %": 100 * median(flood.loss for flood, _ in pairs),
    }
    rows = [
        Row(
            f"throughput, {size} bytes",
            median(flood.rate / plain.rate for plain, flood in pairs),
            "x raw",
            must,
            aims,
            at_least=True,
            details=details,
        )
    ]
    if size == BIG:
        rows.append(Row("loss, 1200 bytes", details["loss %"], "%", 1.0))
        rows += [_cpu_row("send", ours, 4.4), _cpu_row("receive", ours, 4.0)]
    return rows


def _cpu_row(direction: str, floods: Sequence[Flood], must: float) -> Row:
    cpu = median(flood.send_cpu if direction == "send" else flood.receive_cpu for flood in floods)
    return Row(f"processor time to {direction} 1200 bytes", cpu, "us", must, 3.5)


def _latencies(times: Settings) -> tuple[Row, dict[str, list[float]]]:
    message = os.urandom(PING)
    found: dict[str, list[float]] = {"raw": [], "vault": []}
    ratios = []
    for _ in range(times.repetitions):
        with raw_link(apart=True) as raw:
            raw.ping(message, WARM_UP_ROUNDS)
            plain = raw.ping(message, times.rounds)
        with vault_link(apart=True) as vault:
            vault.ping(message, WARM_UP_ROUNDS)
            ours = vault.ping(message, times.rounds)
        ratios.append(median(ours) / median(plain))
        found["raw"] += plain
        found["vault"] += ours
    latencies = {kind: sorted(values) for kind, values in found.items()}
    details = {
        f"{kind} {name} us": values[int(share * (len(values) - 1))]
        for kind, values in latencies.items()
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }
    return Row("round trip, 64 bytes, median", median(ratios), "x raw", 1.3, 1.1, details=details), latencies


def _threads_row(vault: VaultLink, times: Settings) -> Row:
    message = os.urandom(BIG)
    rates: dict[int, float] = {}
    for threads in THREADS:
        floods = [vault.flood(message, times.seconds, threads) for _ in range(min(3, times.repetitions))]
        rates[threads] = median(flood.rate for flood in floods)
    worst = min(rates.values()) / rates[1]
    details = {f"{threads} threads": rate for threads, rate in rates.items()}
    return Row(
        "throughput, 1 to 8 sending threads, lowest", worst, "x of 1", 0.8, at_least=True, details=details
    )


def _sizes(
    raw: RawLink, vault: VaultLink, times: Settings
) -> dict[str, list[tuple[int, float, float]]]:  # fmt: skip
    found: dict[str, list[tuple[int, float, float]]] = {"raw": [], "vault": []}
    for size in times.sizes:
        message = compressible(size)
        for kind, rate in (
            ("raw", raw.flood(message[:LARGEST_RAW], times.seconds).rate),
            ("vault", vault.flood(message, times.seconds).rate),
        ):
            found[kind].append((size, rate, rate * size / 1e6))
    return found


def compressible(size: int) -> bytes:
    """A message that is short when compressed, as logs and telemetry are."""
    lines = "".join(
        f'{{"sensor": {index % 7}, "state": "ok", "value": 20.5}}\n' for index in range(size // 40 + 1)
    )
    return lines.encode()[:size]
