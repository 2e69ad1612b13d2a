# SPDX-License-Identifier: Apache-2.0
"""dev.py installs once, again when something changed, and says what is wrong; pip itself is never called."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

import dev


class FakeRun:
    """Stands in for dev.run: keeps the commands, makes what `python -m venv` would, fails where told to."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.failing = ""

    def __call__(self, python: Path, *arguments: object) -> int:
        module = str(arguments[arguments.index("-m") + 1])
        self.modules.append(module)
        if module == "venv":
            for name in ("bin/python", "Scripts/python.exe"):
                path = Path(str(arguments[-1]), name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        return int(module == self.failing)


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRun:
    fake = FakeRun()
    monkeypatch.setattr(dev, "run", fake)
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    (tmp_path / "needs.txt").write_text("a\n", encoding="utf-8")
    return fake


def test_second_use_installs_nothing(fake_run: FakeRun) -> None:
    assert dev.environment("x", "needs.txt") == dev.environment("x", "needs.txt")
    assert fake_run.modules == ["venv", "pip"]


def test_changed_requirements_are_installed(fake_run: FakeRun, tmp_path: Path) -> None:
    dev.environment("x", "needs.txt")
    (tmp_path / "needs.txt").write_text("b\n", encoding="utf-8")
    dev.environment("x", "needs.txt")
    assert fake_run.modules == ["venv", "pip"] * 2


def test_changed_interpreter_is_installed_for(fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.environment("x", "needs.txt")
    monkeypatch.setattr("sys.version", "another build of the same version")
    dev.environment("x", "needs.txt")
    assert fake_run.modules == ["venv", "pip"] * 2


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_failed_installation_is_told_and_tried_again(fake_run: FakeRun, step: str) -> None:
    fake_run.failing = step
    with pytest.raises(SystemExit, match="its message is above"):
        dev.environment("x", "needs.txt")
    fake_run.failing = ""
    fake_run.modules.clear()
    dev.environment("x", "needs.txt")
    assert fake_run.modules == ["venv", "pip"]


def test_missing_venv_says_what_to_install(fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == "ensurepip" else importlib.machinery.ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(SystemExit, match=r"has no module ensurepip\. .*apt-get install python3-venv"):
        dev.environment("x", "needs.txt")
    assert fake_run.modules == []


def test_settings_of_the_callers_shell_do_not_leak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in dev.LEAKING_VARIABLES:
        # PYTHONHOME and the like would keep the child from starting, were they passed on.
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    code = f"import os; print([name for name in {dev.LEAKING_VARIABLES} if name in os.environ])"
    assert dev.run(sys.executable, "-c", code) == 0
    assert capfd.readouterr().out.strip() == "[]"


def test_unknown_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main(["tset"]) == 2
    assert "dev.py test" in capsys.readouterr().out
