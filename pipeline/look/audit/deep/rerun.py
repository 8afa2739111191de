"""Stages that only compute are done again from their parents, and what they make is compared exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from pipeline.look.audit.deep.declared import shaped_by
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from pipeline.run.order import STAGES
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store
from pipeline.store.store import load_artifact
from schemas import TABLES

ROUNDING = 1e-6
"""Relative difference that another version of a library may make. Above it a value is wrong."""
MAKE_ANEW = "Have it made anew by its run."


class CannotRerun(Exception):
    """A stage that cannot be done again here; says why."""


def rerun(held: Held, world: World, scratch: Path) -> bool:
    """Do a shape, mix, evaluate or revise stage again and report what comes out otherwise.

    Args:
        scratch: a store for what is made.

    Returns:
        Whether it was done.

    Raises:
        CannotRerun: it cannot be done here.
    """
    stage = held.manifest.content.stage.partition("/")[0]
    make = {"shape": _shape, "mix": _mix, "evaluate": _evaluate, "revise": _revise}.get(stage)
    if make is None:
        return False
    refuse_other_version(held)
    made = make(held, world, scratch)
    if made.id != held.id:
        _compare(held, made, world)
    return True


def refuse_other_version(held: Held) -> None:
    """Raises CannotRerun if another version of the stage made the artifact: the same recipe then means something else."""
    stage = held.manifest.content.stage
    if (known := STAGES[stage.partition("/")[0]]) != stage:
        raise CannotRerun(f"{stage} made it, and this version of rollbook has {known}")


def request_of(held: Held) -> Request:
    """What the artifact was the answer to."""
    content = held.manifest.content
    return Request(content.kind, content.stage, content.recipe, content.parents)


def parent_path(held: Held, world: World, role: str) -> str:
    """Where a parent lies. Raises CannotRerun if it is not here whole."""
    parent = world.shelf.parent(held, role)
    if parent is None or not world.intact(parent):
        raise CannotRerun(f"its {role} is not here whole")
    return str(parent.folder.place.path)


def silent() -> Reporter:
    """A reporter that nobody hears."""
    return Reporter(os.open(os.devnull, os.O_WRONLY))


def _shape(held: Held, world: World, scratch: Path) -> Artifact:
    from pipeline.shape.stage import shape

    if "source" in held.recipe:
        raise CannotRerun("its algorithm is the user's own")
    spec = {"store": str(scratch), "request": request_of(held).to_json(), "rollouts": parent_path(held, world, "rollouts")}
    if "labels" in held.recipe:
        spec["pairs"] = str(held.folder.place.path)
    why = "no algorithm of this version shapes as its recipe says"
    for name, settings in shaped_by(held.recipe):
        chosen = {"algorithm": name, "algorithm_args": settings, "shape": held.recipe.get("choices") or {}}
        try:
            return load_artifact(shape({**spec, **chosen}, silent())["artifact"])
        except UserError as error:  # the settings contradict what this algorithm declares; another may be meant
            why = str(error)
    raise CannotRerun(why)


def _mix(held: Held, world: World, scratch: Path) -> Artifact:
    from pipeline.shape.mix.stage import mix

    job = {"request": request_of(held).to_json(), "shaped": parent_path(held, world, "shaped")}
    return load_artifact(mix({"store": str(scratch), "jobs": [job]}, silent())["artifacts"][0])


def _evaluate(held: Held, world: World, scratch: Path) -> Artifact:
    from pipeline.evaluate.stage import evaluate

    greedy = any(parent.role == "greedy" for parent in held.manifest.content.parents)
    spec: Event = {
        "store": str(scratch),
        "request": request_of(held).to_json(),
        "sampled": parent_path(held, world, "sampled"),
        "greedy": parent_path(held, world, "greedy") if greedy else None,
    }
    return load_artifact(evaluate(spec, silent())["artifact"])


def _revise(held: Held, world: World, scratch: Path) -> Artifact:
    """All that follows from what the expert said. Whoever it was is not asked again: it may be code, and may be gone."""
    from pipeline.revise.experts import ByPattern, Revised, Reviser
    from pipeline.revise.stage import revised_by
    from pipeline.store import Work, read_table
    from schemas import Revisions

    spec = {role: parent_path(held, world, role) for role in ("rollouts", "policy", "prompts")}
    pattern = held.recipe["by"].get("pattern")
    name = next((name for name in _engines(held)), "")
    expert: Reviser = ByPattern(pattern) if pattern else Revised(read_table(held.artifact, Revisions), name)
    with Store(str(scratch)).work(request_of(held)) as work:
        if not isinstance(work, Work):
            return work
        return revised_by(expert, work, {**spec, "trust_remote_code": False}, silent())


def _engines(held: Held) -> list[str]:
    """What the rows say of who revised, each once."""
    rows = pl.scan_parquet([held.folder.local(file) for file in held.tables("rollouts")], glob=False)
    return sorted(rows.filter(pl.col("source") == "expert").select("engine").unique().collect()["engine"].to_list())


def _compare(held: Held, made: Artifact, world: World) -> None:
    """Report rows and figures that differ. Files may differ without them: libraries write the same table differently."""
    for file in held.manifest.content.files:
        table = TABLES.get((file.table or "").partition("/")[0])
        again = made.path / file.path
        spot = held.spot(world.ledger, file.path)
        if table is None:
            continue
        if not again.exists():
            spot.error("derivation", "recomputed", expected="no such file", found="a table", remedy=MAKE_ANEW)
            continue
        stored, found = (pl.read_parquet(path, glob=False) for path in (held.folder.local(file), again))
        for said in _differing_rows(stored, found, table.primary_key()):
            severity = said.pop("severity")
            spot.report(severity, "derivation", "recomputed", remedy=MAKE_ANEW, **said)
    spot = held.spot(world.ledger, "manifest.json")
    for name, expected, found in _differing_figures(made.summary, held.summary, "content.summary"):
        severity = _severity(expected, found)
        spot.report(severity, "derivation", "recomputed", expected=expected, found=found, remedy=MAKE_ANEW, column=name)


def _differing_rows(stored: pl.DataFrame, again: pl.DataFrame, key: list[str]) -> Iterator[dict[str, Any]]:
    """For each column that differs: the first row in which it does, what was expected and found, and how many rows."""
    if not stored.select(key).equals(again.select(key)):
        expected, found = f"{len(again)} rows with the recomputed keys", f"{len(stored)} rows, not the same"
        yield {"severity": "error", "expected": expected, "found": found}
        return
    for name in again.columns:
        if name not in stored.columns:
            continue
        differ = stored[name].ne_missing(again[name])
        if differ.any():
            row = int(differ.arg_max() or 0)
            pairs = zip(again[name].filter(differ), stored[name].filter(differ), strict=True)
            severity = "error" if any(_severity(*pair) == "error" for pair in pairs) else "note"
            said = {"expected": again[name][row], "found": stored[name][row], "row": row, "column": name}
            yield {"severity": severity, "count": int(differ.sum()), **said}


def _differing_figures(again: Any, stored: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(again, dict) and isinstance(stored, dict):
        for name in again.keys() & stored.keys():
            yield from _differing_figures(again[name], stored[name], f"{path}.{name}")
    elif again != stored:
        yield path, again, stored


def _severity(expected: Any, found: Any) -> Any:
    """A difference that rounding explains is worth a note."""
    numbers = isinstance(expected, float) and isinstance(found, float)
    return "note" if numbers and abs(expected - found) <= ROUNDING * max(abs(expected), abs(found)) else "error"
