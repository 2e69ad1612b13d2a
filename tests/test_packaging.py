# SPDX-License-Identifier: Apache-2.0
"""The modules as their users get them: installed with pip, vendored in a folder, run as self-tests.

Everything runs in subprocesses, with neither this repository nor PYTHONPATH on their module path.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SELF_TESTS = ["vault_ip", "vault_udp_encryption", "vault_udp_socket", "vault_udp_socket_helper"]
# Only a hang takes that long; no test depends on how fast a command is.
HANG_SECONDS = 300


def _declared_modules() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r"^py-modules = (\[.*?\])", text, re.DOTALL | re.MULTILINE)
    assert match, "pyproject.toml has no py-modules"
    modules: list[str] = ast.literal_eval(match[1])  # a TOML list of strings is a Python one too
    return modules


MODULES = _declared_modules()


def run(*command: object, cwd: Path) -> str:
    """Run a command as in a shell that knows nothing of this repository; return what it printed."""
    leaking = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "MYPYPATH")
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in leaking},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=HANG_SECONDS,
        check=False,
    )
    assert process.returncode == 0, f"{command} exited with {process.returncode}:\n{process.stdout}"
    return process.stdout


def test_pyproject_lists_exactly_the_modules_that_are_there() -> None:
    assert sorted(path.stem for path in ROOT.glob("vault_*.py")) == sorted(MODULES)


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")], ids=lambda path: path.name)
def test_every_file_names_its_license(path: Path) -> None:
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first_line == "# SPDX-License-Identifier: Apache-2.0"


@pytest.fixture(scope="module")
def installed_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment into which `pip install .` has put the project."""
    folder = tmp_path_factory.mktemp("installed")
    # A copy, because pip builds inside the source folder and several suites may run in it at once.
    source = folder / "source"
    source.mkdir()
    for pattern in ("vault_*.py", "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, source)
    # Dependencies and setuptools come from the environment that runs the tests: no network.
    venv.create(folder / "venv", with_pip=False)
    python = folder / ("venv/Scripts/python.exe" if os.name == "nt" else "venv/bin/python")
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, source, cwd=folder)
    shutil.rmtree(source)
    return python


def test_installed_modules_are_importable_from_anywhere(installed_python: Path, tmp_path: Path) -> None:
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {MODULES}]"
    files = run(installed_python, "-c", code, cwd=tmp_path).splitlines()
    assert [Path(file).stem for file in files] == MODULES
    assert all(installed_python.parent.parent in Path(file).parents for file in files), files


def test_type_checker_accepts_and_uses_the_hints_of_installed_modules(
    installed_python: Path, tmp_path: Path
) -> None:
    lines = [f"import {name}" for name in MODULES]
    lines += [
        "mtu: int = vault_ip.get_min_mtu()",
        "right: vault_udp_socket.UDPSocketClass = vault_udp_socket.UDPSocketClass(0)",
        "wrong: None = vault_ip.get_min_mtu()  # type: ignore[assignment]",
        "vault_udp_socket.UDPSocketClass(recv_prt=0)  # type: ignore[call-arg]",
    ]
    # Under --strict an ignore that nothing needs is an error: the hints must make the last two lines wrong.
    (tmp_path / "app.py").write_text("\n".join(lines), encoding="utf-8")
    options = ("--strict", "--config-file=", "--python-executable", installed_python)
    run(sys.executable, "-m", "mypy", *options, "app.py", cwd=tmp_path)


@pytest.fixture(params=["namespace", "package"])
def application(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of an application that has the modules in libs/udp, without or with __init__.py files."""
    vendored = tmp_path / "app" / "libs" / "udp"
    vendored.mkdir(parents=True)
    for name in MODULES:
        shutil.copy(ROOT / f"{name}.py", vendored)
    if request.param == "package":
        for folder in (vendored, vendored.parent):
            (folder / "__init__.py").touch()
    return tmp_path / "app"


def test_vendored_modules_import_each_other_inside_their_folder(application: Path) -> None:
    code = f"""
import importlib, importlib.util, sys
path = list(sys.path)
import libs.udp.vault_udp_socket
for name in {MODULES}:
    assert importlib.util.find_spec(name) is None, name + " is importable without libs.udp"
    importlib.import_module("libs.udp." + name)
assert sys.path == path, sys.path
assert not [name for name in sys.modules if name.startswith("vault_")]
print(libs.udp.vault_udp_socket.UDPSocketClass.__module__)
"""
    assert run(sys.executable, "-c", code, cwd=application).split() == ["libs.udp.vault_udp_socket"]


def test_vendored_module_runs_as_main(application: Path) -> None:
    assert run(sys.executable, "-m", "libs.udp.vault_ip", cwd=application).strip()


@pytest.mark.parametrize("name", SELF_TESTS)
def test_self_test_of_the_readme_passes(name: str) -> None:
    assert run(sys.executable, f"{name}.py", cwd=ROOT).strip(), "it says what it checks"
