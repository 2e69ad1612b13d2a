# SPDX-License-Identifier: Apache-2.0
"""The pictures of the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parent / "plots"
NAMES = {"raw": "plain sendto / recvfrom", "vault": "UDPSocketClass, sealed"}


def throughput(sizes: dict[str, list[tuple[int, float, float]]]) -> None:
    """Messages and bytes a second against the size of a message."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for kind, points in sizes.items():
        left.plot([size for size, _, _ in points], [rate for _, rate, _ in points], "o-", label=NAMES[kind])
        right.plot([size for size, _, _ in points], [mega for _, _, mega in points], "o-", label=NAMES[kind])
    for axes, label in ((left, "messages/s received"), (right, "MB/s received")):
        axes.set(xscale="log", yscale="log", xlabel="bytes of a message, compressible", ylabel=label)
        axes.set_xscale("log", base=2)
    _save(figure, "throughput.png", left, right)


def latency(latencies: dict[str, list[float]]) -> None:
    """The share of round trips that took longer than so many microseconds."""
    figure, axes = pyplot.subplots(figsize=(6.5, 4.2))
    for kind, values in latencies.items():
        shares = [1 - index / len(values) for index in range(len(values))]
        axes.plot(values, shares, label=NAMES[kind])
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="round trip of 64 bytes, µs",
        ylabel="share of round trips that took longer",
    )
    _save(figure, "latency.png", axes)


def peers(costs: dict[str, list[tuple[int, float]]]) -> None:
    """Microseconds a datagram against the number of peers."""
    figure, axes = pyplot.subplots(figsize=(6.5, 4.2))
    for what, points in costs.items():
        axes.plot([count for count, _ in points], [cost for _, cost in points], "o-", label=what)
    axes.set(xscale="log", xlabel="peers", ylabel="µs of processor time a datagram of 1,200 bytes")
    axes.set_ylim(bottom=0)
    _save(figure, "peers.png", axes)


def _save(figure: Any, name: str, *all_axes: Any) -> None:
    for axes in all_axes:
        axes.grid(True, which="major", alpha=0.3)
        axes.legend()
    figure.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / name, dpi=110)
    pyplot.close(figure)
