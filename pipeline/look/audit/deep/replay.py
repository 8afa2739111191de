"""The first steps of a training taken again from its parent, and their metrics compared with the recorded ones."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from pipeline.look.audit.deep.declared import trained_by
from pipeline.look.audit.deep.rerun import CannotRerun, parent_path, refuse_other_version
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from pipeline.run.process import Reporter
from pipeline.store.provenance import describe_process
from schemas import Metrics

ELSEWHERE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""Relative difference of a step's figures that another machine, device or version may make, by number format."""
SMALL = 1e-5
"""Absolute difference that counts for nothing there: some figures are sums that nearly cancel."""
PLAN = ("step", "epoch", "groups", "completions", "computed", "left_out", "tokens", "learning_rate")
"""Figures that follow from lengths and the seed, and so are the same everywhere."""
LIBRARIES = ("python", "torch", "transformers", "rollbook", "polars")
REMEDY = "The checkpoint was not made by this training, or its metrics are not its own: restore both from a copy."


def check_replay(held: Held, world: World, scratch: Path, steps: int) -> tuple[int, str | None]:
    """Take a training's first steps again and report figures that differ.

    Args:
        scratch: directory for the snapshot.
        steps: how many, at most.

    Returns:
        How many steps were compared, and why not exactly; None if exactly.

    Raises:
        CannotRerun: the training cannot be taken again here.
    """
    refuse_other_version(held)
    recorded = world.columns(held, Metrics, {name: pl.col(name) for name in Metrics.columns()})
    if recorded is None:
        raise CannotRerun("its metrics are not whole")
    elsewhere = _elsewhere(held)
    rows = _replayed(held, world, scratch, min(steps, len(recorded), _steps_without_moments(held.recipe)))
    file = held.tables(Metrics.title())[0].path
    tolerance = ELSEWHERE.get(str(held.recipe.get("dtype")), 0.0) if elsewhere else 0.0
    for row, stored in zip(rows, recorded.iter_rows(named=True), strict=False):
        for name, expected, found in _differing(row, stored, tolerance):
            within = "exactly" if name in PLAN or not elsewhere else f"within {tolerance:g} relative"
            held.spot(world.ledger, file).error(
                "derivation",
                "replay",
                expected=f"{expected!r} {within}",
                found=found,
                remedy=REMEDY,
                row=row["step"],
                column=name,
            )
    return len(rows), elsewhere


def _steps_without_moments(recipe: Mapping[str, Any]) -> int:
    """How many steps can be taken again: of a training that went on from moments, which are gone, one, before they count.

    Raises:
        CannotRerun: its learning rate depends on how many steps had been taken before.
    """
    if recipe.get("optimizer_state") != "carry":
        return 1 << 62
    if recipe.get("schedule") != "constant" or recipe.get("warmup_steps"):
        raise CannotRerun("it went on from an optimizer's state that is kept for the newest checkpoint only")
    return 1


class _Enough(Exception):
    """The steps that were wanted are taken."""


class _Limit(Reporter):
    """Ends a training after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self._steps = steps

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        if unit == "steps" and done >= self._steps:
            raise _Enough


def _replayed(held: Held, world: World, scratch: Path, steps: int) -> list[dict[str, Any]]:
    """Rows of the metrics table for the first steps."""
    import torch

    from pipeline.algorithms import resolve
    from pipeline.run.parts import Part
    from pipeline.train.layout import open_snapshot
    from pipeline.train.team import alone
    from pipeline.train.training import Training

    recipe, config = held.recipe, _config(held)
    algorithm = resolve(config.algorithm, config.algorithm_args)
    parent_path(held, world, "policy")
    parent = world.shelf.parent(held, "policy")
    assert parent is not None
    parts = [Part.opened(places) for places in _parts(held, world)]
    before = torch.get_num_threads()
    torch.set_num_threads(int(held.manifest.provenance.notes.get("threads") or before))
    try:
        training = Training(
            parent=parent.artifact,
            snapshot=open_snapshot(scratch / "snapshot", parts, algorithm, parent.id),
            algorithm=algorithm,
            config=config,
            recipe=recipe,
            trust_remote_code=False,
            team=alone(),
            reporter=_Limit(steps),
            scratch=scratch,
        )
        with contextlib.suppress(_Enough):
            training.run(None)
        return training.records.metrics
    except UserError as error:
        raise CannotRerun(str(error)) from None
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


def _config(held: Held) -> Any:
    """The training's settings: those that decide the result from its recipe, those of the work from its notes."""
    from pipeline.config.train import TrainConfig

    named = next(trained_by(held.recipe.get("algorithm") or {}), None)
    if named is None:
        raise CannotRerun("its algorithm is not a built-in one of this version")
    notes = held.manifest.provenance.notes
    chosen = notes.get("memory") or {}
    work = {
        "tokens_per_micro_batch": chosen.get("tokens"),
        "activation_checkpointing": chosen.get("checkpointing"),
        "offload_optimizer": chosen.get("offload"),
    }
    settings = {**(notes.get("settings") or {}), **{k: v for k, v in work.items() if v is not None}, **held.recipe}
    known = {name: value for name, value in settings.items() if name in TrainConfig.model_fields and name != "algorithm"}
    try:
        return TrainConfig.model_validate(
            {**known, "algorithm": named[0], "algorithm_args": named[1], "processes": 1, "save_every_steps": 10**9}
        )
    except ValueError as error:
        raise CannotRerun(f"its settings are not those of this version: {' '.join(str(error).split())[:200]}") from None


def _parts(held: Held, world: World) -> Iterator[dict[str, Any]]:
    """Places of what was trained on, as of `Part.to_json`: roles are rollouts, replay 1 rollouts, ..."""
    prefixes = dict.fromkeys(
        parent.role.removesuffix("rollouts") for parent in held.manifest.content.parents if parent.role.endswith("rollouts")
    )
    for prefix in prefixes:
        roles = [p.role for p in held.manifest.content.parents if p.role in (f"{prefix}reference", f"{prefix}proximal")]
        yield {
            "rollouts": parent_path(held, world, f"{prefix}rollouts"),
            "shaped": parent_path(held, world, f"{prefix}shaped"),
            "scores": {role.removeprefix(prefix): parent_path(held, world, role) for role in roles},
        }


def _elsewhere(held: Held) -> str | None:
    """Why the training's figures need not be met exactly; None on its own machine, with its own software."""
    import torch

    provenance, here = held.manifest.provenance, describe_process()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    others = [name for name in LIBRARIES if provenance.versions.get(name) != here["versions"].get(name)]
    ranks = {rank.get("processes") for rank in provenance.notes.get("ranks") or ()}
    commit = provenance.git_commit or ""
    reasons = {
        f"another machine: {provenance.host}": provenance.host != here["host"],
        f"another device: {provenance.notes.get('device')}": provenance.notes.get("device") != device,
        f"another version of {', '.join(others)}": bool(others),
        "several processes": ranks > {1},
        f"other source: {commit}": commit != (here["git_commit"] or ""),
        "a source with local changes, which nobody recorded": commit.endswith("+"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _differing(row: Mapping[str, Any], stored: Mapping[str, Any], tolerance: float) -> Iterator[tuple[str, Any, Any]]:
    for name in Metrics.columns():
        again, there = row.get(name), stored[name]
        allowed = 0.0 if name in PLAN else tolerance
        if isinstance(again, float) and isinstance(there, float):
            close = math.isclose(again, there, rel_tol=allowed, abs_tol=SMALL if allowed else 0.0)
            if close or (math.isnan(again) and math.isnan(there)):
                continue
        if again != there:
            yield name, again, there
