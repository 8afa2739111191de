"""`rollbook diff`: what is compared with what."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from flows.commands.show import print_parts
from pipeline.common.errors import UserError
from pipeline.common.text import json_safe
from pipeline.config.load import load_config
from pipeline.config.run import RunConfig
from pipeline.look.diff.diff import ArtifactDifference, RunDifference, artifact_difference, run_difference, to_json
from pipeline.look.diff.diff_view import view
from pipeline.look.show.subject import Subject, find_subject


def show_difference(a: str, b: str, as_json: bool) -> bool:
    """Print what differs. Returns whether the two are equal.

    Raises:
        UserError: they cannot be compared: there is nothing, it is damaged, or they are of different sorts.
    """
    found = _difference(a, _side(a), b, _side(b))
    if as_json:
        typer.echo(json.dumps(json_safe(to_json(found)), indent=2))
    else:
        print_parts(view(found, (a, b)))
    return found.equal


def _side(path: str) -> Subject | RunConfig:
    if Path(path).suffix in (".yaml", ".yml"):
        return load_config(path)
    return find_subject(path)


def _difference(a: str, one: Subject | RunConfig, b: str, other: Subject | RunConfig) -> ArtifactDifference | RunDifference:
    sorts = [side.what if isinstance(side, Subject) else "configuration" for side in (one, other)]
    if isinstance(one, Subject) and isinstance(other, Subject) and sorts == ["artifact", "artifact"]:
        left, right = one.only(), other.only()
        if left.kind != right.kind:
            raise UserError(f"{a}: {left.kind}, but {b}: {right.kind}; two artifacts of one kind can be compared")
        return artifact_difference(left, right)
    if set(sorts) <= {"run", "configuration"}:
        return run_difference(one, other)
    raise UserError(
        f"{a}: a {sorts[0]}, but {b}: a {sorts[1]}. Two artifacts can be compared, or runs and configurations (.yaml)"
    )
