"""`rollbook compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.commands.algorithms import Plugins
from flows.commands.completion import algorithm_names
from flows.commands.options import AsJson, Overrides
from pipeline.common.text import visible


def compare(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a rollouts artifact inside one.")],
    algorithms: Annotated[
        list[str],
        typer.Option(
            "--algorithms",
            "-a",
            help="Such as grpo,rec-oneside-nois:low=0.6,high=2.0",
            show_default=False,
            autocompletion=algorithm_names,
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each algorithm; the first has the run's own seed.")] = 1,
    iteration: Annotated[
        int | None, typer.Option("--iteration", "-i", min=0, help="Whose rollouts. Default: 0, the base model's.")
    ] = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Judge a checkpoint after every epoch, not only after the last.")
    ] = False,
    baseline: Annotated[
        bool,
        typer.Option(help="Also train best-of-n (SFT on each group's best completion), and report every gain against it."),
    ] = True,
    out: Annotated[Path | None, typer.Option(help="The page to write. Default: comparison.html in the run directory.")] = None,
    as_json: AsJson = False,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="For rollouts from elsewhere: the run whose model and held-out prompts are used.", show_default=False
        ),
    ] = None,
) -> None:
    """Train many algorithms on one snapshot of rollouts and compare them. Finished trials are found, not redone."""
    order = {"place": str(place), "algorithms": algorithms, "seeds": seeds, "iteration": iteration, "run": run and str(run)}
    _compare(
        {**order, "overrides": overrides or [], "plugins": plugins or [], "curve": curve, "baseline": baseline}, out, as_json
    )


def _compare(order: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from flows.commands.console import answer_console
    from flows.trials import look
    from pipeline.compare.plan import make_plan
    from pipeline.compare.table import record
    from pipeline.store.store import load_artifact

    plan = make_plan(**order)
    trials = look(plan)
    found = record(trials) if trials.complete else load_artifact(_work_on_trials(plan.name, order))

    from pipeline.look.report.comparison import write_comparison
    from pipeline.look.report.comparison_table import as_json_rows, cautions, comparison_table, failures

    page = write_comparison(found, plan.snapshot.store, out or plan.snapshot.directory / "comparison.html")
    if as_json:
        typer.echo(json.dumps({"path": found.url, "page": str(page), **as_json_rows(found)}, indent=2))
    else:
        console = answer_console()
        console.print(comparison_table(found))
        if plan.snapshot.rollouts.kind == "revisions":
            console.print(
                f"trained on: an expert's revisions of iteration {plan.snapshot.iteration}, as in the run; name its rollouts "
                "artifact in place of the run to compare on completions as they were drawn",
                highlight=False,
                soft_wrap=True,
            )
        for caution in cautions(found, plan.snapshot.heldout):
            console.print(f"warning:  {caution}", highlight=False, soft_wrap=True, markup=False)
        for failure in failures(found):
            why = visible(failure.why).splitlines()[0]
            console.print(f"{failure.title}: {why}", markup=False, highlight=False)
        console.print(f"artifact: {found.url}", highlight=False, soft_wrap=True, markup=False)
        console.print(f"page:     {page}", highlight=False, soft_wrap=True, markup=False)
    if found.summary["failed"]:
        raise typer.Exit(1)


def _work_on_trials(name: str, order: dict[str, Any]) -> str:
    """Run the flow with a Prefect server that starts beside it. Returns the path of the comparison."""
    from flows.server import LocalServer

    server = LocalServer()
    try:
        from flows.commands.console import StageConsole
        from flows.compare import compare as compare_flow

        server.wait()
        with StageConsole(Console(stderr=True)) as console:
            return compare_flow(name, order, console.tell)
    finally:
        server.stop()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)
