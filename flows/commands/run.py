"""`rollbook run`, and `generate`, `evaluate`, `shape` and `train`, which go as far as their stage of an iteration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from flows.commands.algorithms import Plugins
from flows.commands.options import AsJson, Config, IterationOption, Overrides, Stage
from pipeline.common.errors import IntegrityError, RunStopped, UserError


def run(config: Config, overrides: Overrides = None, plugins: Plugins = None, as_json: AsJson = False) -> None:
    """Do a whole run: generate, evaluate, shape and train, N times. Finished work is found, not redone."""
    _run(config, overrides, plugins, None, as_json)


def generate(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the rollouts of an iteration."""
    _run(config, overrides, plugins, ("generate", iteration), as_json)


def evaluate(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the evaluation of a checkpoint (iteration 0 is the base model)."""
    _run(config, overrides, plugins, ("evaluate", iteration), as_json)


def shape(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the advantages of an iteration."""
    _run(config, overrides, plugins, ("shape", iteration), as_json)


def train(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the checkpoint that an iteration trains."""
    _run(config, overrides, plugins, ("train", iteration), as_json)


def _run(
    path: Path, overrides: list[str] | None, plugins: list[str] | None, until: tuple[Stage, int] | None, as_json: bool
) -> None:
    from flows.answers import looking
    from flows.chain import chain
    from pipeline.config.load import load_config, with_plugins
    from pipeline.config.run import RunConfig
    from pipeline.prepare.check import check_algorithms, check_config, named
    from pipeline.run.record import save_run

    config: RunConfig = with_plugins(load_config(path, overrides or ()), plugins or ())
    check_algorithms(config)
    if until and until[1] > config.iterations - (until[0] not in ("generate", "evaluate")):
        raise UserError(f"--iteration {until[1]}: this run has iterations={config.iterations}")
    _tell_of_later_rounds(config)
    found = chain(config, looking(config), until=until)
    done = found.missing is None or (until is not None and _reached(found, until))
    if not done:
        for what, text in named(check_config(config)):
            if what == "warning":
                typer.echo(f"rollbook: {text}", err=True)
        found = _work(config, until)
    elif until is None:
        save_run(found, config.directory)
    _conclude(found, until, as_json)
    _refuse_wrong_stop(found)


def _refuse_wrong_stop(found: Any) -> None:
    """End with a message and a status of its own where a rule of `stop` ended the run, and not because it reached its goal."""
    stop = found.stopped
    if stop is not None and not stop.healthy:
        raise RunStopped(f"{found.config.directory}: stop.{stop.rule} ended it after iteration {stop.iteration}: {stop.why}")


def _tell_of_later_rounds(config: Any) -> None:
    """Say so where the run's record is about to name fewer rounds than it does: what no record names, `rollbook gc` removes."""
    from pipeline.run.record import recorded_config

    try:
        recorded = recorded_config(config.directory)
    except IntegrityError:  # it is written anew
        return
    if recorded and recorded.iterations > config.iterations:
        typer.echo(
            f"rollbook: {config.directory} is recorded with iterations={recorded.iterations}, this is for {config.iterations}. "
            "Later rounds stay in the store, but no record will name them until it is run with "
            f"--set iterations={recorded.iterations}",
            err=True,
        )


def _reached(found: Any, until: tuple[Stage, int]) -> bool:
    from flows.chain import AFTER

    stage, number = until
    return bool(found.missing == f"{AFTER[stage]} {number + (stage == 'train')}" and len(found.iterations) == number + 1)


def _work(config: Any, until: tuple[Stage, int] | None) -> Any:
    """Run the flow with a Prefect server that starts beside it."""
    from flows.server import LocalServer

    warn = lambda text: typer.echo(f"rollbook: {text}", err=True)  # noqa: E731
    server = LocalServer()
    try:
        from flows.commands.console import StageConsole
        from flows.iterate import iterate
        from pipeline.run.record import load_run
        from pipeline.run.telling import tell_of_end, telling_of_failure

        server.wait()
        with telling_of_failure(config, warn), StageConsole(Console(stderr=True)) as console:
            iterate(config.name, config.model_dump(mode="json"), list(until) if until else None, console.tell)
    finally:
        server.stop()
    found = load_run(config.directory)
    tell_of_end(found, warn)
    return found


def _conclude(found: Any, until: tuple[Stage, int] | None, as_json: bool) -> None:
    from flows.commands.console import answer_console, print_closing
    from pipeline.look.report.terminal import iteration_table

    console = answer_console(quiet=as_json)
    console.print(iteration_table(found))
    print_closing(console, found)
    directory = found.config.directory
    console.print(f"artifacts: {found.config.store_url}", highlight=False, soft_wrap=True, markup=False)
    if until is None:
        from pipeline.look.report.page import write_report

        page = directory / "report.html"
        record = (directory / "run.json").stat()
        if not page.exists() or page.stat().st_mtime_ns != record.st_mtime_ns:
            write_report(found, page)
            os.utime(page, ns=(record.st_mtime_ns, record.st_mtime_ns))  # it belongs to that record, whatever clocks say
        console.print(f"report:    {page}", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        from pipeline.run.status import status as status_of

        typer.echo(json.dumps(status_of(found), indent=2))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(generate)
    app.command()(evaluate)
    app.command()(shape)
    app.command()(train)
