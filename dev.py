# SPDX-License-Identifier: Apache-2.0
"""Set up what a fresh machine needs, then run the demo, the tests or the checks.

python3 dev.py demo                             two peers exchange messages
python3 dev.py test [--coverage] [PYTEST ARGS]  the test suite
python3 dev.py check                            ruff, and mypy --strict

Needs Python 3.8 or newer with its venv module, and nothing else. What is installed goes into
environments beside this file (.venv-*), which are rebuilt when the interpreter or the requirements change.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# Settings of the caller's shell that would send our interpreter or pip to other files than our own.
LEAKING_VARIABLES = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSAFEPATH",
    "PYTHONOPTIMIZE",
    "VIRTUAL_ENV",
    "__PYVENV_LAUNCHER__",
    "PIP_PREFIX",
    "PIP_TARGET",
)


def run(*command: str | Path) -> int:
    """Run a command in the project's folder, without the caller's Python settings; return its exit code."""
    variables = {name: value for name, value in os.environ.items() if name not in LEAKING_VARIABLES}
    variables["PIP_USER"] = "0"  # also overrides `user = true` in a pip.conf, which pip refuses in a venv
    return subprocess.call([str(part) for part in command], cwd=ROOT, env=variables)


def environment(purpose: str, *requirement_files: str) -> Path:
    """Return the Python of the environment for this purpose, installed first if it is missing or outdated."""
    folder = ROOT / f".venv-{purpose}-{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed-for.txt"
    contents = [(ROOT / name).read_text(encoding="utf-8") for name in requirement_files]
    wanted = "\n".join([sys.version, sys.base_prefix, *contents])
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python

    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"dev.py: {sys.executable} cannot create virtual environments, it has no module "
            f"{' and no module '.join(missing)}. On Debian and Ubuntu: apt-get install python3-venv "
            f"(or python{sys.version_info[0]}.{sys.version_info[1]}-venv); elsewhere install Python "
            "with pip and venv included."
        )
    print(f"dev.py: installing {' and '.join(requirement_files)} into {folder.name}", flush=True)
    if run(sys.executable, "-I", "-m", "venv", "--clear", folder):
        sys.exit(f"dev.py: {sys.executable} could not create {folder}; its message is above.")
    options = [option for name in requirement_files for option in ("-r", name)]
    if run(python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options):
        sys.exit(f"dev.py: pip could not install {' and '.join(requirement_files)}; its message is above.")
    # Last, so that an interrupted installation is never taken for a finished one.
    stamp.write_text(wanted, encoding="utf-8")
    return python


def demo() -> int:
    return run(environment("demo", "requirements.txt"), "vault_udp_socket.py")


def test(arguments: list[str]) -> int:
    python = environment("dev", "requirements.txt", "requirements-dev.txt")
    # Tests on real networks wait more than they work, so three processes share them.
    pytest = ["-m", "pytest", "-n", "3", "--dist", "worksteal", *arguments]
    if "--coverage" not in arguments:
        return run(python, *pytest)
    pytest.remove("--coverage")
    run(python, "-m", "coverage", "erase")
    tests = run(python, "-m", "coverage", "run", *pytest)
    # Those processes, and the self-tests that run in ones of their own, leave data files.
    combined = run(python, "-m", "coverage", "combine", "--quiet")
    return tests or combined or run(python, "-m", "coverage", "report")


def check() -> int:
    python = environment("dev", "requirements.txt", "requirements-dev.txt")
    commands = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
    # All of them run even if one finds something: one round shows everything that is to mend.
    return max([run(python, "-m", *command) for command in commands], key=abs)


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 8):  # noqa: UP036 - says why, where pip would only fail
        sys.exit(f"dev.py: Python 3.8 or newer is needed, this is {sys.version.split()[0]}.")
    if arguments == ["demo"]:
        return demo()
    if arguments[:1] == ["test"]:
        return test(arguments[1:])
    if arguments == ["check"]:
        return check()
    print(__doc__)
    return 0 if arguments in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
