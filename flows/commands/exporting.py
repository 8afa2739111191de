"""`rollbook export`: artifacts in the forms that other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

Form = Literal["dataset", "sft", "preference", "model", "verifiers", "atropos", "verl", "openai", "trl-tokens"]


def export(
    artifact: Annotated[
        str, typer.Argument(help="Rollouts, revisions, a shaped table of either, or a checkpoint.", show_default=False)
    ],
    to: Annotated[
        Form,
        typer.Option(
            help="dataset: a Hugging Face dataset with a card. sft: TRL's prompt and completion. preference: TRL's prompt, "
            "chosen and rejected. model: a Hugging Face model with a card. verifiers, atropos, verl, openai, "
            "trl-tokens: JSON lines with tokens and masks.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write. An earlier export there is replaced.", show_default=False)],
    min_reward: Annotated[
        float | None, typer.Option(help="Leave out completions (of pairs: the chosen one) with a lower reward, or none.")
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="With preference: every pair of a group, not the best with the worst.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Also copy Python code that ships with the model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write an artifact as a directory that other tools open as it is. It is whole or absent.

    Of a shaped table, the completions that shaping kept are exported, and the pairs that it made. docs/other-data.md has more.

    - `rollbook export runs/demo/artifacts/rollouts/77d0... --to dataset --out my-rollouts`
    - `rollbook export runs/demo/artifacts/rollouts/77d0... --to sft --min-reward 1 --out solved`
    - `rollbook export runs/demo/artifacts/rollouts/77d0... --to atropos --out groups`
    - `rollbook export runs/demo/artifacts/checkpoint/3f9c... --to model --out my-model`
    """
    from pipeline.algorithms.cells.pairing import RewardPairs
    from pipeline.common.errors import UserError
    from pipeline.exchange.exports import completions
    from pipeline.exchange.exports.dataset import write_dataset
    from pipeline.exchange.exports.folder import export_folder, refuse_foreign
    from pipeline.exchange.exports.foreign import foreign_forms, write_foreign
    from pipeline.exchange.exports.model import write_model
    from pipeline.store.store import verified

    refuse_foreign(out)
    if all_pairs and to != "preference":
        raise UserError("--all-pairs: for --to preference")
    if min_reward is not None and to == "model":
        raise UserError("--min-reward: a model has no rewards; leave it out")
    found = verified(artifact)
    if out.resolve().is_relative_to(found.path.resolve()):
        raise UserError(f"--out {out}: lies inside of the artifact, which must stay as it is. Name another place")
    what = {"form": to, "artifact": {"kind": found.kind, "id": found.id}, "min_reward": min_reward, "all_pairs": all_pairs}
    lost: list[str] = []
    with export_folder(out, what) as directory:
        if to == "model":
            count, unit = write_model(found, directory, trust_remote_code=trust_remote_code), "files"
        elif to == "dataset":
            if found.kind not in completions.ROWS:
                raise UserError(f"{found.url}: a {found.kind} artifact; --to dataset exports rollouts")
            count, unit = write_dataset(found, directory, min_reward), "completions"
        elif to in foreign_forms():
            written = write_foreign(completions.ExportSource.of(found, masked=True), directory, foreign_forms()[to], min_reward)
            count, unit, lost = written.completions, "completions", written.lost
        elif to == "sft":
            count, unit = completions.write_sft(completions.ExportSource.of(found), directory, min_reward), "completions"
        else:
            pairing = RewardPairs(strategy="all" if all_pairs else "best_worst")
            source = completions.ExportSource.of(found)
            count, unit = completions.write_preference(source, directory, min_reward, pairing), "pairs"
    if as_json:
        told = {"path": str(out), "form": to, "of": found.id, unit: count, **({"not_held": lost} if lost else {})}
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(f"{out}: {count:,} {unit} of {found.kind} {found.id[:16]}")
        for line in lost:
            typer.echo(f"  not held: {line}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)
