"""The command line. Heavy libraries are imported by the commands that need them, so that help and checks answer at once.

Exit status: 0 done, 1 a stage failed (run the same command again to go on), 2 something the user can mend, 3 a rule of
`stop` ended a run that went wrong, 130 and 143 stopped by Ctrl-C and SIGTERM (the same command goes on).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from flows.commands import (
    algorithms,
    audit,
    check,
    compare,
    doctor,
    exporting,
    grading,
    importing,
    init,
    labelling,
    looking,
    probe,
    report,
    rewarding,
    run,
    scheduling,
    spec,
    status,
    tracking,
    view,
)
from flows.commands.streams import outlive_readers
from pipeline.common.command import COMMAND
from pipeline.common.errors import UserError, as_answer
from pipeline.common.text import visible

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Offline reinforcement learning for language models: rollouts that outlive the run.",
)
COMMANDS = (
    init,
    run,
    check,
    probe,
    status,
    report,
    compare,
    algorithms,
    scheduling,
    tracking,
    audit,
    doctor,
    looking,
    view,
    importing,
    exporting,
    grading,
    labelling,
    rewarding,
    spec,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from pipeline.store.provenance import git_commit

        commit = git_commit()
        typer.echo(f"rollbook {metadata.version('rollbook')}" + (f", commit {commit[:12]}" if commit else ""))
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is, of which commit.")
]


@app.callback()
def _options(version: Version = False) -> None:
    pass


GROUPS = {
    "To begin": ("init", "check", "probe", "doctor", "algorithms"),
    "Runs": ("run", "generate", "evaluate", "shape", "train", "schedule", "deploy", "spec"),
    "Figures": ("status", "report", "compare", "track"),
    "Artifacts": ("show", "view", "diff", "audit", "lineage", "repair", "gc", "sign", "verify"),
    "Data from elsewhere, and for elsewhere": ("import", "export", "grade", "label", "reward"),
}
"""How `rollbook --help` lists the commands."""


def _gather() -> None:
    for command in COMMANDS:
        command.register(app)
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    for info in app.registered_commands:
        info.rich_help_panel = group_of[info.name or str(getattr(info.callback, "__name__", ""))]


_gather()


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
            if "unexpected extra argument" in str(error):
                _say("a text with spaces, * or braces needs quotes, such as --template 'Q: {question} A:' or --cron '0 2 * * *'")
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
