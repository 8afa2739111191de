"""The command line. Heavy libraries are imported by the commands that need them, so that help and checks answer at once.

Exit status: 0 done, 1 a stage failed (run the same command again to go on), 2 something the user can mend, 130 and 143
stopped by Ctrl-C and SIGTERM (the same command goes on).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from flows.commands import algorithms, audit, doctor, exporting, grading, importing, init, scheduling, spec, tracking
from flows.commands import lineage as inspect
from flows.commands.algorithms import Plugins
from flows.commands.completion import algorithm_names
from flows.commands.streams import outlive_readers
from pipeline.common.errors import IntegrityError, UserError, as_answer
from pipeline.common.text import visible
from pipeline.store.provenance import COMMAND

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Offline reinforcement learning for language models: rollouts that outlive the run.",
)
init.register(app)

Config = Annotated[Path, typer.Argument(help="A run's YAML file, such as configs/demo.yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set train.epochs=4", show_default=False)
]
IterationOption = Annotated[
    int, typer.Option("--iteration", "-i", min=0, help="Which round; earlier ones must be there or are done.")
]
Stage = Literal["generate", "evaluate", "shape", "train"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def run(config: Config, overrides: Overrides = None, plugins: Plugins = None, as_json: AsJson = False) -> None:
    """Do a whole run: generate, evaluate, shape and train, N times. Finished work is found, not redone."""
    _run(config, overrides, plugins, None, as_json)


@app.command()
def generate(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the rollouts of an iteration."""
    _run(config, overrides, plugins, ("generate", iteration), as_json)


@app.command()
def evaluate(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the evaluation of a checkpoint (iteration 0 is the base model)."""
    _run(config, overrides, plugins, ("evaluate", iteration), as_json)


@app.command()
def shape(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the advantages of an iteration."""
    _run(config, overrides, plugins, ("shape", iteration), as_json)


@app.command()
def train(
    config: Config,
    iteration: IterationOption = 0,
    overrides: Overrides = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Go as far as the checkpoint that an iteration trains."""
    _run(config, overrides, plugins, ("train", iteration), as_json)


@app.command()
def check(config: Config, overrides: Overrides = None, plugins: Plugins = None, as_json: AsJson = False) -> None:
    """Say whether a config is sound: settings, algorithm, graders, model files and prompts. Starts nothing."""
    from pipeline.config.load import load_config, with_plugins
    from pipeline.prepare.check import check_config, named

    lines = check_config(with_plugins(load_config(config, overrides or ()), plugins or ()))
    if as_json:
        found = [{"what": what, "found": text} for what, text in named(lines)]
        typer.echo(json.dumps({"ok": True, "found": found}, indent=2))
        return
    for line in lines:
        typer.echo(line)


@app.command()
def status(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")], as_json: AsJson = False
) -> None:
    """Show how far a run is, and its figures per iteration."""
    from flows.commands.console import answer_console
    from pipeline.look.report.terminal import closing_lines, iteration_table
    from pipeline.run.record import load_run
    from pipeline.run.status import status as status_of

    found = load_run(run_directory)
    if as_json:
        typer.echo(json.dumps(status_of(found), indent=2))
        return
    console = answer_console()
    console.print(iteration_table(found))
    for line in closing_lines(found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def report(
    run_directories: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: report.html in the run directory, or runs.html here.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown for a pull request instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page with a run's curves, rollouts, settings and lineage, or one that compares runs."""
    from pipeline.look.report.markdown import markdown
    from pipeline.look.report.page import write_report
    from pipeline.look.report.runs import labels_of, write_runs
    from pipeline.run.record import directory_of, load_run
    from pipeline.store.files import write_text

    runs = [load_run(directory) for directory in run_directories]
    if as_markdown and as_json:
        raise UserError("--markdown and --json: choose one")
    if as_markdown:
        text = "\n".join(markdown(run) for run in runs)
        typer.echo(text, nl=False) if out is None else write_text(out, text)
    elif len(runs) > 1:
        labels = labels_of(run_directories, runs)
        _say_page(write_runs(dict(zip(labels, runs, strict=True)), out or Path("runs.html")), runs, as_json)
    else:
        _say_page(write_report(runs[0], out or directory_of(run_directories[0]) / "report.html"), runs, as_json)


@app.command()
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
    _compare({**order, "overrides": overrides or [], "plugins": plugins or [], "curve": curve}, out, as_json)


algorithms.register(app)
scheduling.register(app)
tracking.register(app)
audit.register(app)
doctor.register(app)
inspect.register(app)
importing.register(app)
exporting.register(app)
grading.register(app)
spec.register(app)


def _say_page(page: Path, runs: list[Any], as_json: bool) -> None:
    if as_json:
        from pipeline.run.status import status as status_of

        typer.echo(json.dumps({"page": str(page), "runs": [status_of(run) for run in runs]}, indent=2))
    else:
        typer.echo(str(page))


def _run(
    path: Path, overrides: list[str] | None, plugins: list[str] | None, until: tuple[Stage, int] | None, as_json: bool
) -> None:
    from flows.answers import looking
    from flows.chain import chain
    from pipeline.config.load import load_config, with_plugins
    from pipeline.config.run import RunConfig
    from pipeline.prepare.check import check_algorithm, check_config, named
    from pipeline.run.record import save_run

    config: RunConfig = with_plugins(load_config(path, overrides or ()), plugins or ())
    check_algorithm(config)
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

    server = LocalServer()
    try:
        from flows.commands.console import StageConsole
        from flows.iterate import iterate
        from pipeline.run.record import load_run

        server.wait()
        with StageConsole(Console(stderr=True)) as console:
            iterate(config.name, config.model_dump(mode="json"), list(until) if until else None, console.tell)
    finally:
        server.stop()
    return load_run(config.directory)


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
    from pipeline.look.report.comparison_table import as_json_rows, comparison_table, failures

    page = write_comparison(found, plan.snapshot.store, out or plan.snapshot.directory / "comparison.html")
    if as_json:
        typer.echo(json.dumps({"path": found.url, "page": str(page), **as_json_rows(found)}, indent=2))
    else:
        console = answer_console()
        console.print(comparison_table(found))
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


def _conclude(found: Any, until: tuple[Stage, int] | None, as_json: bool) -> None:
    from flows.commands.console import answer_console
    from pipeline.look.report.terminal import closing_lines, iteration_table

    console = answer_console(quiet=as_json)
    console.print(iteration_table(found))
    for line in closing_lines(found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
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


def main() -> NoReturn:
    """Entry point of the `rollbook` command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outlive_readers()
    os.environ[COMMAND] = json.dumps(["rollbook", *sys.argv[1:]])
    code = answer(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        _say(f"standard output: {error.strerror}")
        os._exit(code or 1)
    sys.stderr.flush()
    if "prefect" in sys.modules:
        os._exit(code)  # Prefect's threads would hold the process up for a second.
    sys.exit(code)


def answer(arguments: list[str]) -> int:
    """Do one command. Returns its exit status; what the user can mend is told on standard error in one message."""
    try:
        code = app(arguments, standalone_mode=False) or 0  # typer returns the status of an Exit, and 130 for Ctrl-C
    except UserError as error:
        _say(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception as error:
        if (refusal := as_answer(error)) is not None:
            _say(str(refusal))
            code = refusal.exit_code
        elif hasattr(error, "format_message"):
            error.show()  # type: ignore[attr-defined]
            code = 2
        else:
            raise
    if code in (130, 143):
        _say("stopped; the same command goes on from here")
    return int(code)


def _say(message: str) -> None:
    print(f"rollbook: {visible(message)}", file=sys.stderr)


if __name__ == "__main__":
    main()
