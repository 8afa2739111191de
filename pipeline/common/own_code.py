"""Modules of the user's own, such as one with a grader: found in the working directory, whatever their package is called.

A user's project may have folders `pipeline`, `flows` or `schemas`, which are packages of rollbook's too. Where the working
directory has one, its modules are loaded as parts of a package of another name, `_project_1a2b3c4d.pipeline.rewards` for
`pipeline/rewards.py`. Import statements in them find the project's modules first, with and without a leading dot, when they are
loaded and later when their functions run: they go through the `__import__` of the modules' own builtins. What the project does
not have is found as usual. In any other working directory a module has its own name, as in every Python program.
"""

from __future__ import annotations

import builtins
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pipeline
from pipeline.common.errors import UserError
from pipeline.common.limits import within

OURS = ("flows", "pipeline", "schemas")
"""Top-level packages of rollbook."""

IMPORT_SECONDS = 110.0
"""How long importing an own function may take: a little less than a worker may take to start."""

OWN_FUNCTION = "your own function is named 'package.module:function'"


def own_function(named: str, what: str) -> Callable[..., Any]:
    """A function, or a class, of the user's by its name, 'package.module:function'. Its module is imported.

    Args:
        what: such a function is, for who names one of Python's own.

    Raises:
        UserError: there is none; the message has the nearest name.
    """
    module_name, _, path = named.partition(":")
    if not module_name or not path:
        raise UserError(f"incomplete; {OWN_FUNCTION}")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # subprocess:run would run what a model writes
        raise UserError(f"{module_name} is part of Python; {what}")
    late = f"importing {module_name} took longer than {IMPORT_SECONDS:g} s; what a module does when it is imported must end"
    with within(IMPORT_SECONDS, late):
        found: Any = import_own(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"callable in it: {', '.join(sorted(names)) or 'nothing'}"
            raise UserError(f"module {module_name} has no {part!r}; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{path} is a {type(found).__name__}, expected a function")
    function: Callable[..., Any] = found
    return function


def source_sha256(function: Callable[..., Any]) -> str | None:
    """sha256 of the file that a function or class is written in; None where there is no such file."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def import_own(name: str) -> ModuleType:
    """A module of the working directory, or else of the installed packages. Its code is run.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    importlib.invalidate_caches()
    project = _project(os.getcwd())
    try:
        if project is not None and project.has(name):
            return importlib.import_module(f"{project.package}.{name}")
        with _working_directory_on_path():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name and error.name.removeprefix(f"{project.package}." if project else "")
        if missing and (name == missing or name.startswith(missing + ".")):
            place = f"in the working directory {os.getcwd()} or among the installed packages"
            raise UserError(f"no module {missing!r} {place}") from None
        raise UserError(_failure(name, project, f"{error}")) from error
    except (MemoryError, UserError):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_failure(name, project, f"{type(error).__name__}: {error}")) from error


def serve_from(directory: str) -> None:
    """Have this process find modules in a directory first, for good. The names of rollbook's packages stay rollbook's."""
    sys.meta_path.insert(0, _Ours())
    sys.path.insert(0, directory)


def _failure(name: str, project: _Project | None, error: str) -> str:
    return f"importing {name} failed: {error.replace(f'{project.package}.', '') if project else error}"


@functools.cache
def _root() -> Path:
    """The directory that rollbook's packages lie in."""
    return Path(next(iter(pipeline.__path__))).resolve().parent


def _project(directory: str) -> _Project | None:
    """The project of a directory that has packages named like rollbook's; None for any other, and for rollbook's checkout."""
    place = Path(directory).resolve()
    if place == _root() or not any((place / name).is_dir() or (place / f"{name}.py").is_file() for name in OURS):
        return None
    return _loaded(str(place))


@functools.cache
def _loaded(directory: str) -> _Project:
    return _Project(directory)


class _Project:
    """The modules of a directory, under a package of their own."""

    def __init__(self, directory: str) -> None:
        self.package = f"_project_{hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]}"
        self._path = [directory]
        root = ModuleType(self.package, f"Modules of {directory}.")
        root.__path__ = self._path
        sys.modules[self.package] = root
        sys.meta_path.insert(0, self)
        self._builtins = {**vars(builtins), "__import__": self._import}

    def has(self, name: str) -> bool:
        """Whether `import name` in one of the modules means one of them."""
        if f"{self.package}.{name}" in sys.modules:
            return True
        top, *rest = name.split(".")
        if top in sys.stdlib_module_names:
            return False
        spec = PathFinder.find_spec(f"{self.package}.{top}", self._path)
        if spec is None:
            return False
        if top not in OURS:  # a plain folder, such as datasets/, is no package where there is a real one
            return spec.loader is not None or getattr(PathFinder.find_spec(top), "loader", None) is None
        for part in rest:  # rollbook's package of that name may have modules that the project's does not
            path = spec.submodule_search_locations
            spec = PathFinder.find_spec(f"{spec.name}.{part}", path) if path else None
            if spec is None:
                return False
        return True

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Part of Python's import system: where a module of the project lies."""
        if not name.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader and spec.origin:
            spec.loader = _OwnCodeLoader(name, spec.origin, self._builtins)
        return spec

    def _import(
        self,
        name: str,
        variables: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """What an import statement does in a module of the project."""
        if level or not self.has(name):
            return builtins.__import__(name, variables, local, fromlist or (), level)
        module = builtins.__import__(f"{self.package}.{name}", variables, local, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{self.package}.{name.partition('.')[0]}"]


class _OwnCodeLoader(SourceFileLoader):
    """Runs a module of a project with the project's own `__import__`."""

    def __init__(self, name: str, path: str, names: Mapping[str, Any]) -> None:
        super().__init__(name, path)
        self._names = dict(names)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._names
        super().exec_module(module)


class _Ours:
    """Finds rollbook's packages where they lie, before any directory of `sys.path` is looked at."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(_root())]) if name in OURS else None


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    directory = os.getcwd()
    if directory in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)
