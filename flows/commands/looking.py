"""`rollbook show`, `diff`, `repair`, `gc`, `sign` and `verify`: tools for the hands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Signatures = Annotated[
    Path | None, typer.Option(help="Directory for signatures. Default: beside each artifact.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def show(
    path: Annotated[str, typer.Argument(help="An artifact, a run directory or a store.", show_default=False)],
    prompt: Annotated[str | None, typer.Option(help="A prompt's or a group's id, or a part of the prompt.")] = None,
    contains: Annotated[str | None, typer.Option(help="A part of the completion.")] = None,
    reward: Annotated[str | None, typer.Option(help="Such as '>0.5', '=1', '>0,<1' or null.")] = None,
    status: Annotated[str | None, typer.Option(help="ok, truncated, reward_error or engine_error.")] = None,
    iteration: Annotated[
        list[int] | None,
        typer.Option("--iteration", "-i", min=0, help="Whose answers. Twice, with --prompt: side by side.", show_default=False),
    ] = None,
    of: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a run: rollouts, sampled or greedy (the held-out answers), revised (beside what was revised).",
            show_default=False,
        ),
    ] = None,
    shaped: Annotated[str | None, typer.Option(help="The shaped artifact whose advantages are shown.")] = None,
    table: Annotated[str | None, typer.Option(help="Another table, such as prompts, metrics or evaluation.")] = None,
    sort: Annotated[str | None, typer.Option(help="reward, advantage, tokens or logprob; -reward: the largest first.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=1_000_000, help="How many to show.")] = 10,
    full: Annotated[bool, typer.Option("--full", "-f", help="Whole texts, not a line each. As with --prompt.")] = False,
    by: Annotated[Literal["logprob", "advantage", "none"], typer.Option("--color", help="What colors the tokens.")] = "logprob",
    as_json: AsJson = False,
) -> None:
    """Look at completions, or at any table, in the terminal."""
    from flows.commands.show import Wanted, show_place
    from pipeline.look.show.query import Query

    filters = {"prompt": prompt, "contains": contains, "reward": reward, "status": status, "sort": sort}
    query = Query(**filters, iterations=tuple(dict.fromkeys(iteration or ())), rows=rows)  # type: ignore[arg-type]
    sets = tuple(name for text in of or () for name in text.split(","))
    show_place(path, Wanted(query, sets, shaped, table, full or prompt is not None, by, as_json))


def diff(
    a: Annotated[str, typer.Argument(help="An artifact, a run directory or a configuration (.yaml).", show_default=False)],
    b: Annotated[str, typer.Argument(help="The other.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what differs: settings, parents, figures, rows. Exit status 0: equal, 1: they differ, 2: it cannot be told."""
    from flows.commands.diff import show_difference

    if not show_difference(a, b, as_json):
        raise typer.Exit(1)


def gc(
    path: Annotated[str, typer.Argument(help="A run directory, or a store.", show_default=False)],
    delete: Annotated[bool, typer.Option("--delete", help="Delete it. Without this, only say what could be.")] = False,
    runs: Annotated[
        list[Path] | None, typer.Option("--run", help="A run that uses the store; its artifacts stay.", show_default=False)
    ] = None,
    no_other_runs: Annotated[bool, typer.Option("--no-other-runs", help="No run but those named uses the store.")] = False,
    abandon: Annotated[bool, typer.Option("--abandon", help="Also what an unfinished run could go on from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what can be deleted: leftovers of killed processes, artifacts that nothing uses, old locks.

    Artifacts and unfinished work go only with --no-other-runs: a store does not say which runs use it. Nothing is deleted while
    a process works in the store.
    """
    from flows.commands.garbage import collect

    collect(path, delete, runs or [], no_other_runs, abandon, as_json)


def sign(
    path: Annotated[str, typer.Argument(help="An artifact, a run directory or a store.", show_default=False)],
    key: Annotated[Path, typer.Option(help="Private key: elliptic curve, PEM.", show_default=False)],
    signatures: Signatures = None,
    as_json: AsJson = False,
) -> None:
    """Sign artifacts in the format of OpenSSF Model Signing. A signature lies beside its artifact, as <key>.sig."""
    from flows.commands.signing import sign_place

    sign_place(path, key, signatures, as_json)


def verify(
    path: Annotated[str, typer.Argument(help="An artifact, a run directory or a store.", show_default=False)],
    key: Annotated[Path, typer.Option(help="Public key of who signed, PEM.", show_default=False)],
    signatures: Signatures = None,
    as_json: AsJson = False,
) -> None:
    """Compare artifacts with their signatures. Exit status 0: all signed and unchanged, 1: not so, 2: it cannot be told."""
    from flows.commands.signing import verify_place

    if not verify_place(path, key, signatures, as_json):
        raise typer.Exit(1)


def repair(
    artifact: Annotated[str, typer.Argument(help="A damaged artifact.", show_default=False)],
    drop_shards: Annotated[
        bool, typer.Option("--drop-shards", help="Write a new rollouts artifact without the damaged shards.")
    ] = False,
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="Make the damaged files anew, as the run made them. The damaged ones are kept.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="With --regenerate: every file, also those that are as the manifest says.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(help="The run that made it, if it does not lie in the run's directory.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for damaged files, and say what can be done. Without an option nothing is changed.

    Exit status 0: whole or mended, 1: damaged, 2: it cannot be told or done.
    """
    from flows.commands.repair import repair_artifact

    if not repair_artifact(artifact, drop_shards, regenerate, everything, run, as_json):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (show, diff, repair, gc, sign, verify):
        app.command()(command)
