"""Algorithms: one small file per family, each a declaration of cells with its paper. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.algorithms import (
    grpo,
    imitation,
    mirror_descent,
    nash,
    off_policy,
    plugins,
    preference,
    rec,
    reinforce,
    reuse,
)
from pipeline.algorithms.algorithm import Algorithm
from pipeline.algorithms.settings import nearest, settings_of, with_settings
from pipeline.common.errors import UserError

__all__ = ["ALGORITHMS", "Algorithm", "known", "resolve", "settings_of"]

MODULES = (reinforce, grpo, rec, off_policy, reuse, imitation, mirror_descent, preference, nash)
ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for module in MODULES for algorithm in cast("tuple[Algorithm, ...]", module.ALGORITHMS)
}
"""The built-in ones."""


def known(files: Sequence[str] = ()) -> dict[str, Algorithm]:
    """The built-in algorithms and those of the user's own files.

    Raises:
        UserError: a file cannot be used, or names an algorithm as another is named.
    """
    found = dict(ALGORITHMS)
    for file in {Path(name).resolve(): name for name in files}.values():
        for algorithm in plugins.from_file(file):
            if algorithm.name in found:
                whose = "a built-in algorithm" if algorithm.name in ALGORITHMS else "another one of a plugin"
                raise UserError(f"plugin {file}: {algorithm.name!r} is the name of {whose}; give yours a name of its own")
            found[algorithm.name] = algorithm
    return found


def resolve(name: str, settings: Mapping[str, Any] | None = None, files: Sequence[str] = ()) -> Algorithm:
    """An algorithm by name: built in, of a file of the user's own, or of an installed package.

    Args:
        settings: changes to it, as for `with_settings`.
        files: the user's own (`plugins` of a config).

    Raises:
        UserError: no such algorithm or setting (with the nearest name), or a value that the setting does not take.
    """
    algorithms = known(files)
    algorithm = algorithms.get(name) or plugins.from_package(name)
    if algorithm is None:
        names = [*algorithms, *plugins.installed()]
        near = nearest(name, names)
        stop = "" if near.endswith("?") else "."
        hint = near if files else f"{near}{stop} Your own is found with --plugin FILE.py or `plugins`"
        raise UserError(f"train.algorithm: no algorithm {name!r}; {hint}")
    return with_settings(algorithm, settings or {})
