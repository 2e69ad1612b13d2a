# SPDX-License-Identifier: Apache-2.0
"""Measure everything, print one table, write it as JSON and as pictures; 1 if a figure misses its limit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from . import cpu, memory, report, speed

RESULTS = Path(__file__).resolve().parent / "results.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="less of everything, under a minute; rough figures"
    )
    parser.add_argument("--only", choices=["speed", "cpu", "memory"], help="one part, without files")
    arguments = parser.parse_args()
    from . import plots  # not in the processes that this one starts

    began = time.perf_counter()
    rows: list[report.Row] = []
    by_peers: dict[str, list[tuple[int, float]]] = {}
    measured = None
    if arguments.only in (None, "speed"):
        measured = speed.measure(arguments.quick)
        rows += measured.rows
    if arguments.only in (None, "cpu"):
        cpu_rows, by_peers = cpu.measure(arguments.quick)
        rows += cpu_rows
    if arguments.only in (None, "memory"):
        rows += memory.measure(arguments.quick)
    print(report.format_table(rows))
    print("\n" + ", ".join(report.machine().values()))
    print(f"{time.perf_counter() - began:.0f} s")
    if measured is not None and arguments.only is None:
        plots.throughput(measured.sizes)
        plots.latency(measured.latencies)
        plots.peers(by_peers)
        result = {
            "quick": arguments.quick,
            "machine": report.machine(),
            "rows": [report.as_dict(row) for row in rows],
            "sizes": measured.sizes,
            "peers": by_peers,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {RESULTS.name} and the pictures in {plots.FOLDER.name}/")
    return 0 if all(row.meets(row.must) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
