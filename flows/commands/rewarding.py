"""`rollbook reward`: a reward learned from preferences."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import AsJson, Overrides

if TYPE_CHECKING:
    from pipeline.config.reward_model import RewardModelConfig
    from pipeline.store import Artifact


def reward(
    config: Annotated[str, typer.Argument(help="The reward model's YAML file.", show_default=False)],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a reward model on pairs of completions: labels, imported preferences or graded groups.

    The `reward_model` grader takes what is made. A second time the same command finds what is there.
    """
    from pipeline.config.load import load_reward_model

    settings = load_reward_model(config, overrides or ())
    made = _made(settings)
    if as_json:
        typer.echo(json.dumps({"path": made.url, "id": made.id, **made.summary}, indent=2))
    else:
        _say(made)


def _made(config: RewardModelConfig) -> Artifact:
    from rich.console import Console

    from flows.commands.console import StageConsole
    from pipeline.regrade.plan import rollouts_at
    from pipeline.reward_models.order import reward_order
    from pipeline.run.answers import Local
    from pipeline.run.order import only
    from pipeline.run.processes import Processes
    from pipeline.sources.order import import_order
    from pipeline.store import Store

    rollouts = [rollouts_at(place) for place in config.pairs.rollouts]
    processes = Processes({})
    with StageConsole(Console(stderr=True)) as console:
        answers = Local(Store(config.store_url), processes, config.directory / "logs", console.tell)
        try:
            base = only(answers.answer(import_order(config)))
            return only(answers.answer(reward_order(config, base, rollouts)))
        finally:
            processes.close()


def _say(made: Artifact) -> None:
    from pipeline.common.text import interval, number, visible

    for name in ("heldout", "training"):
        found: dict[str, Any] = made.summary[name]
        accuracy = interval(found["accuracy"], found["accuracy_low"], found["accuracy_high"])
        typer.echo(f"{name + ':':10} {accuracy} of {found['pairs'] - found['ties']:,} pairs are ordered as they were labelled")
    found = made.summary["heldout"]
    typer.echo(f"{'':10} log loss {number(found['log_loss'])}, calibration error {number(found['calibration_error'])}")
    length, longer = found["length_correlation"], found["longer_is_better"]
    typer.echo(f"length:    correlation {number(length)}; the longer one was preferred in {number(longer)} of the pairs")
    typer.echo(visible(f"artifact:  {made.url}"))
    typer.echo(visible(f"use:       {{grader: reward_model, args: {{path: {made.url}}}}}"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reward)
