"""Algorithms of the user's own. A plugin is the user's code, and is run only because they named it.

A file is run because `plugins` or --plugin names it; a package's module is imported because `train.algorithm` is the name of
one of its entry points. Stages run in processes of their own and do the same again; the hash of the source is part of every
key, so that a changed file, or another version of a package, is another algorithm.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, get_type_hints

from pipeline.algorithms.algorithm import Algorithm, cells_of
from pipeline.algorithms.cells.cell import BEHAVIOR, PROXIMAL, REFERENCE
from pipeline.common.errors import UserError

ENTRY_POINTS = "rollbook.algorithms"
"""Entry-point group of packages: the algorithm's name = package.module:VARIABLE."""
COLUMNS = (BEHAVIOR, REFERENCE, PROXIMAL)


def from_file(name: str) -> tuple[Algorithm, ...]:
    """The ALGORITHMS of a Python file.

    Args:
        name: path of the file, relative to the working directory.

    Raises:
        UserError: no such file, it cannot be run, or its ALGORITHMS is not a tuple of sound algorithms.
    """
    if not name.endswith(".py"):
        raise UserError(f"plugin {name}: expected a Python file, such as my_algorithms.py")
    return _run(Path(name).resolve(), name)


def from_package(name: str) -> Algorithm | None:
    """The algorithm that an installed package has under this name; None if there is no such entry point.

    Raises:
        UserError: it cannot be imported, or is not a sound algorithm.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
    if not points:
        return None
    if len(points) > 1:
        raise UserError(f"{name}: several installed packages have this algorithm: {', '.join(sorted(map(_package, points)))}")
    point = next(iter(points))
    where = f"{_package(point)} ({point.value})"
    try:
        digest = _digest(_package(point), _roots(point.module.partition(".")[0]))
        found = point.load()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        _refuse(where, error)
    algorithm = _checked(found, where, digest)
    if algorithm.name != name:
        raise UserError(f"{where}: its entry point is {name!r}, but the algorithm's name is {algorithm.name!r}")
    return algorithm


def installed() -> dict[str, str]:
    """Names of installed packages' algorithms, and the package of each. Nothing is imported."""
    return {point.name: _package(point) for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def unchanged(algorithm: Algorithm, recipe: Mapping[str, Any]) -> Algorithm:
    """The algorithm, if it is of the source that a stage's key was made from.

    Raises:
        UserError: the plugin was edited since the run started.
    """
    if recipe.get("source", "") != algorithm.source:
        raise UserError(f"{algorithm.name}: its plugin was edited since the command started. Run the same command again")
    return algorithm


@functools.cache
def _run(path: Path, name: str) -> tuple[Algorithm, ...]:
    """Run a file once per process: what was hashed is what runs, whatever becomes of the file."""
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"plugin {name}: no such file ({path})") from None
    except OSError as error:
        raise UserError(f"plugin {name}: cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(source).hexdigest()
    module = ModuleType(f"rollbook_plugin_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        _refuse(f"plugin {name}", error, path)
    found = getattr(module, "ALGORITHMS", None)
    if not isinstance(found, list | tuple) or not found:
        what = "has no ALGORITHMS" if found is None else f"ALGORITHMS is {found!r}"
        raise UserError(f"plugin {name}: {what}. End it with a tuple of what it adds, such as ALGORITHMS = (MY_ALGORITHM,)")
    return tuple(_checked(one, f"plugin {name}", digest) for one in found)


def _checked(found: Any, where: str, source: str) -> Algorithm:
    """The algorithm with the hash of its source, if everything that reads its declaration can."""
    if not isinstance(found, Algorithm) or type(found).loss is Algorithm.loss:
        raise UserError(
            f"{where}: {found!r:.80} is of type {type(found).__name__}; expected a PolicyGradient, Regression, Preference or "
            "another Algorithm with a loss"
        )
    where = f"{where}: {found.name!r:.80}"
    if not isinstance(found.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+*_-]*", found.name):
        raise UserError(f"{where} is no name of an algorithm; use letters, digits and . + * _ -, such as my-algorithm")
    try:
        json.dumps([found.recipe(), found.shaping_recipe()], allow_nan=False)
        for _, _, cell in cells_of(found):
            get_type_hints(type(cell), include_extras=True)
        found.whole_step, found.advantage.whole_snapshot  # noqa: B018
        unknown = [need for need in found.needs if need not in COLUMNS]
    except Exception as error:
        raise UserError(
            f"{where}: a cell is not sound: {error}. Cells are frozen dataclasses whose fields are plain values; those of a loss "
            "derive from Cell"
        ) from None
    if unknown:
        raise UserError(f"{where}: a cell needs {unknown[0]!r}; a cell can need {', '.join(COLUMNS)}")
    return found.replace(source=source)


def _roots(top: str) -> tuple[Path, ...]:
    """Directories of a top-level package, or the file of a module. Nothing is imported."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {top!r}")
    return tuple(map(Path, spec.submodule_search_locations or filter(None, [spec.origin])))


@functools.cache
def _digest(package: str, roots: tuple[Path, ...]) -> str:
    """sha256 of a package's name, its version and all its Python files, taken once per process: before any of it runs."""
    found = hashlib.sha256(package.encode())
    for root in roots:
        files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")} if root.is_dir() else {root.name: root}
        for name in sorted(files):
            found.update(f"\0{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}".encode())
    return found.hexdigest()


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _refuse(where: str, error: BaseException, path: Path | None = None) -> NoReturn:
    """Turn what running a plugin raised into an answer with the line of the plugin that it comes from."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        raise UserError(f"{where}, line {error.lineno}: {error.msg}") from None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f", line {lines[-1]}" if lines else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = ". A plugin imports installed packages only, so that its one file is all there is to it"
    raise UserError(f"{where}{place}: {type(error).__name__}: {error}{hint}") from None
