"""`rollbook repair`: say what is damaged, and do what was asked for about it."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from flows.answers import hands, working
from flows.chain import chain
from flows.commands.console import StageConsole
from pipeline.common.errors import UserError
from pipeline.common.text import visible
from pipeline.look.show.subject import Use, find_subject, store_around, uses_of
from pipeline.look.upkeep.repair import (
    Damage,
    doubted,
    drop_shards,
    find_damage,
    is_made_by_a_run,
    remedy,
    rows_of,
    set_aside,
    to_json,
)
from pipeline.run.record import RECORD, load_run
from pipeline.run.state import Run
from pipeline.sources.order import BASE, HELDOUT_PROMPTS, TRAIN_PROMPTS
from pipeline.store import Artifact
from pipeline.store.store import load_artifact

STAGE_OF = {"evaluation": "evaluate", "revised": "shape", "shaped": "shape", "checkpoint": "train"}
"""Roles of an iteration whose stage is not generate. Everything else that has no place here is made on the way to training."""
ANSWERS = ("rollouts", "sampled", "greedy", "policy", "training prompts", "held-out prompts")


def repair_artifact(path: str, drop: bool, regenerate: bool, everything: bool, run_directory: Path | None, as_json: bool) -> bool:
    """Look, and mend if asked to. Returns whether all is well now.

    Raises:
        UserError: there is no artifact, or what was asked for cannot be done.
    """
    if drop and regenerate:
        raise UserError("--drop-shards and --regenerate are two ways; choose one")
    if everything and not regenerate:
        raise UserError("--all: for --regenerate")
    artifact = find_subject(path).only()
    damage = doubted(artifact) if everything else find_damage(artifact)
    if as_json:
        typer.echo(json.dumps(to_json(damage), indent=2))
    else:
        _say(damage)
    if drop:
        new = drop_shards(damage)
        typer.echo(f"written: {new.url}  ({new.summary['completions']:,} completions)", err=as_json)
        return True
    if regenerate:
        typer.echo(_regenerate(damage, run_directory), err=as_json)
        return True
    if damage.broken and not as_json:
        typer.echo(_ways(damage))
    return not damage.broken and not damage.unlisted


def _say(damage: Damage) -> None:
    artifact = damage.artifact
    for broken in damage.broken:
        rows = f" ({broken.file.rows:,} rows)" if broken.file.rows is not None else ""
        typer.echo(visible(f"damaged   {broken.file.path}{rows}: {broken.why}"))
    for name in damage.unlisted:
        typer.echo(visible(f"unlisted  {name}: not in the manifest; take it out of {artifact.url}"))
    state = f"{len(damage.whole)} of {len(artifact.files)} files are whole"
    typer.echo(visible(f"{artifact.kind} {artifact.id[:16]} at {artifact.url}: {state}"))


def _ways(damage: Damage) -> str:
    """What can be done."""
    artifact, url, left = damage.artifact, damage.artifact.url, damage.rows_left
    ways = [visible(f"  {remedy(artifact)}")]
    if is_made_by_a_run(artifact):
        ways = [f"  rollbook repair {url} --regenerate    makes the damaged files anew; the same seeds give the same bytes"]
    if artifact.kind == "rollouts" and left:
        lost = rows_of(artifact.files, "rollouts") - left
        what = f"writes a new artifact of the other {left:,} rows; {lost:,} are lost"
        ways.append(f"  rollbook repair {url} --drop-shards   {what}")
    return "\n".join(["nothing was changed. What can be done:", *ways])


def _given(run: Run, damaged: Artifact) -> dict[str, Artifact]:
    """The model and the prompts of a run, which are in the store already wherever they came from, but for the damaged one."""
    base = run.iterations[0].policy if run.iterations else None
    train, heldout = run.train_prompts, run.heldout_prompts
    given = {BASE: base} if base is not None and base.id != damaged.id else {}
    if train is not None and heldout is not None and damaged.id not in (train.id, heldout.id):
        given |= {TRAIN_PROMPTS: train, HELDOUT_PROMPTS: heldout}
    return given


def _regenerate(damage: Damage, run_directory: Path | None) -> str:
    """Set the damaged artifact aside and do its run as far as the stage that makes it. Returns what is to be said of it."""
    artifact = damage.artifact
    if not is_made_by_a_run(artifact):
        raise UserError(f"{artifact.url}: cannot be made anew here. {remedy(artifact)}")
    directory, run = _run_of(artifact, run_directory)
    use = next((use for use in uses_of(run) if use.artifact.id == artifact.id), None)
    if use is None:
        raise UserError(f"{artifact.url}: not made by the run in {directory}. Name the run that made it with --run")
    run.config = run.config.model_copy(update={"store": store_around(artifact).url, "run_dir": str(directory)})
    aside = set_aside(damage)
    typer.echo(f"kept: {aside}", err=True)
    with StageConsole(Console(stderr=True)) as console, hands() as processes:
        answers = working(run.config, processes, console.tell)
        chain(run.config, answers, until=stage_of(use), given=_given(run, artifact))
    made = load_artifact(artifact.url)
    if made.id == artifact.id:
        return f"made anew: {made.url}. It has the id it had: every byte is as it was"
    return (
        f"made anew: {made.url}. It is not what it was: {artifact.id[:16]} became {made.id[:16]} (another machine, or "
        f"other versions; see `rollbook diff {made.url} {aside}`). The next `rollbook run` makes anew what depends on it"
    )


def _run_of(artifact: Artifact, directory: Path | None) -> tuple[Path, Run]:
    if directory is not None:
        return directory, load_run(directory, damaged=True)
    for parent in artifact.path.absolute().parents:
        if (parent / RECORD).exists():
            return parent, load_run(parent, damaged=True)
    raise UserError(f"{artifact.url}: lies in no run directory. Name the run that made it with --run")


def stage_of(use: Use) -> tuple[str, int]:
    """The stage that makes an artifact, and its iteration."""
    number = use.iteration or 0
    if use.role in ANSWERS:
        return ("train", number - 1) if use.role == "policy" and number else ("generate", number)
    return STAGE_OF.get(use.role, "train"), number
