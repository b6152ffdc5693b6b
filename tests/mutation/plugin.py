"""Makes a process import a mutant instead of a module.

As a pytest plugin (PYTEST_PLUGINS), it reads the name of the mutant from the environment of a rank.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType
from typing import Final

from tests.mutation.mutants import mutated, path_of

VARIABLE: Final = "PIPEPAR_MUTANT"
"""Environment variable with the name of a mutant, MODULE:INDEX."""


class _Loader(SourceFileLoader):
    """Compiles the mutant; the source file and its cached bytecode do not change."""

    def __init__(self, module: str, index: int) -> None:
        super().__init__(module, str(path_of(module)))
        self._index = index

    def get_code(self, fullname: str) -> CodeType:
        return compile(mutated(fullname, self._index), self.path, "exec")


class _Finder(MetaPathFinder):
    """Finds the mutant before any other finder finds the module."""

    def __init__(self, module: str, index: int) -> None:
        self._module = module
        self._index = index

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        loader = _Loader(fullname, self._index)
        return spec_from_file_location(fullname, loader.path, loader=loader)


def install(name: str) -> None:
    """Make later imports of a mutant's module return the mutant.

    Args:
        name: MODULE:INDEX.

    Raises:
        RuntimeError: the module has been imported already.
    """
    module, _, index = name.rpartition(":")
    if module in sys.modules:
        raise RuntimeError(
            f"{module} has been imported already, without the mutant; install the mutant first"
        )
    sys.meta_path.insert(0, _Finder(module, int(index)))


if VARIABLE in os.environ:
    install(os.environ[VARIABLE])
