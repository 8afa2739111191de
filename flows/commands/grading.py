"""`rollbook grade`: stored rollouts graded again, by other graders, without generation; or a sheet for people to label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.reward import RewardConfig
    from pipeline.store import Artifact

TITLE = "grade"


def grade(
    rollouts: Annotated[str, typer.Argument(help="A rollouts artifact, from whatever run or import.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with a section `reward`, such as a run's.", show_default=False)
    ] = None,
    grader: Annotated[str | None, typer.Option(help="Or one grader by its name.", show_default=False)] = None,
    args: Annotated[str | None, typer.Option(help="Its arguments, as YAML: '{pattern: \"A:(.+)\"}'.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that grade.", show_default=False)] = None,
    max_failed: Annotated[
        float | None,
        typer.Option("--max-failed", min=0, max=1, help="Share of rewards that may fail. Default: 0.2, or as configured."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Where the new artifact goes. Default: the store of the graded one.", show_default=False)
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a sheet of completions to label (.csv) instead.", show_default=False)
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", "-n", min=1, help="Completions in the sheet, spread evenly. Default: all.")
    ] = None,
    annotators: Annotated[
        list[str] | None, typer.Option("--annotator", help="Who labels; one sheet row for each of them.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Grade stored rollouts again: a new rollouts artifact with the old one as its parent. Nothing is generated.

    Stopped or killed, the same command goes on from there. A second time it finds what is there.
    """
    from pipeline.regrade.plan import rollouts_at

    artifact = rollouts_at(rollouts)
    if sheet is not None:
        if config or grader:
            raise UserError("--sheet: writes completions to label, and needs no --config or --grader")
        _write_sheet(artifact, sheet, rows, annotators or [], as_json)
        return
    made = _graded(artifact, _reward(config, grader, args, workers, max_failed), store)
    _say(artifact, made, as_json)


def _reward(
    config: Path | None, grader: str | None, args: str | None, workers: int | None, max_failed: float | None
) -> RewardConfig:
    from pipeline.regrade.plan import reward_by_name, reward_of

    changes = {"workers": workers, "max_failed_share": max_failed}
    changes = {name: value for name, value in changes.items() if value is not None}
    if config is not None and (grader is not None or args is not None):
        raise UserError("--config and --grader are two ways to name graders; choose one")
    if config is not None:
        return reward_of(config).model_copy(update=changes)
    if grader is None:
        raise UserError("which graders? Name one with --grader (and --args), or a YAML file that has them with --config")
    return reward_by_name(grader, args, changes)


def _graded(artifact: Artifact, reward: RewardConfig, place: str | None) -> Artifact:
    """The artifact with the rewards of these graders, from the store or by grading."""
    from rich.console import Console

    from flows.commands.console import StageConsole
    from pipeline.regrade.plan import grade_request, job_of, store_of
    from pipeline.run.processes import Processes
    from pipeline.store import Store
    from pipeline.store.store import load_artifact

    source, store = Store(store_of(artifact)), Store(place or store_of(artifact))
    request = grade_request(artifact, reward)
    processes = Processes({})
    with StageConsole(Console(stderr=True)) as console:
        if (found := store.find(request)) is not None:
            console.tell(TITLE, {"event": "found"})
            return found
        job = job_of(artifact, request, [source, store])
        address = store.url if "://" in store.url else str(store.root)
        spec = {"store": address, "reward": reward.model_dump(mode="json"), "jobs": [job]}
        console.tell(TITLE, {"event": "started"})
        try:
            made = processes.run(
                "pipeline.regrade", spec, _log(store.root, request.key), lambda event: console.tell(TITLE, event)
            )
        except BaseException as error:
            console.tell(TITLE, {"event": "failed", "message": type(error).__name__})
            raise
        finally:
            processes.close()
        console.tell(TITLE, {"event": "finished"})
    return load_artifact(made["artifacts"][0])


def _log(store: Path, key: str) -> Path:
    """Beside the logs of the run that the store belongs to; else in the directory for temporary files."""
    import tempfile

    from pipeline.run.record import RECORD

    if (store.parent / RECORD).exists():
        return store.parent / "logs" / f"grade-{key[:16]}.log"
    return Path(tempfile.gettempdir()) / f"rollbook-grade-{key[:16]}.log"


def _say(before: Artifact, made: Artifact, as_json: bool) -> None:
    from pipeline.common.text import visible

    figures: dict[str, Any] = made.summary
    if as_json:
        said = made.manifest.provenance.notes.get("graders_said", [])
        fields = {"path": made.url, "id": made.id, "graded": before.id, "said": said, **figures}
        typer.echo(json.dumps(fields, indent=2))
        return
    statuses = ", ".join(f"{count:,} {status}" for status, count in figures["statuses"].items())
    was, now = (_number(artifact.summary.get("reward_mean")) for artifact in (before, made))
    typer.echo(visible(f"rewards:  mean {now}, was {was}"))
    typer.echo(visible(f"rows:     {figures['completions']:,} completions: {statuses}"))
    typer.echo(visible(f"artifact: {made.url}"))


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _write_sheet(artifact: Artifact, out: Path, rows: int | None, annotators: list[str], as_json: bool) -> None:
    from pipeline.common.text import visible
    from pipeline.regrade.sheet import write_sheet

    written = write_sheet(artifact, out, rows, annotators)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "rows": written}, indent=2))
        return
    command = f"rollbook grade {artifact.url} --grader human --args '{{path: {out}}}'"
    typer.echo(visible(f"{out}: {written:,} rows. Fill in the column label (and annotator), then:\n  {command}"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(grade)
