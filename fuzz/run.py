# SPDX-License-Identifier: Apache-2.0
"""Run the fuzz targets for a fixed number of runs from a fixed seed: the same runs each time.

    python fuzz/run.py [--runs N] [TARGET ...]

Needs what requirements.txt and requirements-fuzz.txt name. The seed corpus is made from tests/vectors. Exits
non-zero if a target fails; the input that did it is then kept in fuzz/found/.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RUNS = {"body": 400_000, "announcement": 400_000, "datagram": 4_000, "session": 2_000}
"""By target: together about a minute."""
SEED = 20261122
MAX_INPUT = 4096
SECONDS_FOR_ONE_INPUT = 30
"""Far more than any needs: only an endless loop takes that long."""


def run(target: str, runs: int) -> bool:
    """Run one target; False if it failed."""
    found = FOLDER / "found"
    found.mkdir(exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as corpus:
        command = [
            sys.executable, str(FOLDER / "targets.py"), target, corpus, f"-runs={runs}", f"-seed={SEED}",
            f"-max_len={MAX_INPUT}", f"-timeout={SECONDS_FOR_ONE_INPUT}",
            "-reload=0",  # reading the corpus again after a second would make the runs depend on speed
            f"-artifact_prefix={found}/{target}-",
        ]  # fmt: skip
        # Fixed hashes, so that a run can be repeated; UTF-8, whatever the machine's language.
        variables = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "FUZZ_SEEDS_TO": corpus}
        result = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = result.stdout.decode(errors="replace")
    seeds = re.search(r": (\d+) seeds", output)
    done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+)", output)
    took = time.monotonic() - started
    if result.returncode == 0 and seeds and done and int(done[1]) >= runs:
        print(f"{target}: {done[1]} runs from {seeds[1]} seeds, {done[2]} branches, {took:.0f} s", flush=True)
        return True
    print(f"{target}: FAILED after {took:.0f} s, exit code {result.returncode}\n{output}", flush=True)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the fuzz targets.")
    parser.add_argument(
        "--runs", type=int, help="runs of each target, instead of what fits a minute", metavar="N"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(RUNS))
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(RUNS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    if arguments.runs is not None and arguments.runs < 1:
        parser.error(f"--runs is {arguments.runs}; it must be at least 1")
    if importlib.util.find_spec("atheris") is None:
        print("fuzz/run.py: atheris is not installed here; pip install -r requirements-fuzz.txt")
        return 2
    results = [run(target, arguments.runs or RUNS[target]) for target in arguments.targets or RUNS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
