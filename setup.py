# SPDX-License-Identifier: Apache-2.0
"""Ship the modules' type hints where type checkers look for them; all other settings are in pyproject.toml.

PEP 561 knows `py.typed` for packages only: an installed single-file module has no place for it, and mypy
reports it as untyped. A stub package `NAME-stubs` is what PEP 561 offers instead. Each module is its own
stub, so the two cannot disagree.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStubs(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable installation copies nothing
            return
        for name in self.distribution.py_modules or []:
            stubs = Path(self.build_lib, f"{name}-stubs")
            self.mkpath(str(stubs))
            self.copy_file(f"{name}.py", str(stubs / "__init__.pyi"))


setup(cmdclass={"build_py": BuildWithStubs})
