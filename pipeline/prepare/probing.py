"""A run's graders asked about its own prompts, before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from pipeline.config.run import RunConfig
from pipeline.rewards.probing.first_look import ROWS, first_look
from pipeline.rewards.probing.probe import Probed, probe
from pipeline.rewards.probing.rows import spread
from pipeline.rewards.registry import check_prompts, check_reward_config
from pipeline.sources import models as base_model
from pipeline.sources import prompts
from pipeline.sources.dialogues import asked_of
from pipeline.sources.rendering import Rendering, template_renderer


def look_at_graders(config: RunConfig, train: pl.DataFrame) -> list[tuple[str, str]]:
    """What graders give to right and empty answers to a few training prompts: `first_look`, and what it raises.

    Chat templates are not filled in, which would take a tokenizer: the text given to the model is then the user's message.

    Args:
        train: prompts, as `load_once` gives them.
    """
    chosen = spread(range(len(train)), ROWS)
    rows = train[chosen].to_dicts()
    texts = template_renderer(config.data.template)([row["question"] for row in rows])
    return first_look(config.reward, [{**row, "prompt_text": text} for row, text in zip(rows, texts, strict=True)])


def probe_run(config: RunConfig, *, rows: int, written: Sequence[str] = ()) -> Probed:
    """Ask a run's graders about answers of many kinds to its training prompts.

    Raises:
        UserError: what `check` would refuse of model, prompts and graders; none of the graders can be asked.
    """
    check_reward_config(config.reward)
    model = base_model.locate(config.model)
    rendering = Rendering.of(config, model)
    train, _ = prompts.load_once(config.data.train, rendering)
    check_prompts(config.reward.components, train.to_dicts, config.data.train.path)
    rendered = train.with_columns(prompt_text=pl.Series(rendering.renderer()(asked_of(train)), dtype=pl.String))
    worked = prompts.worked_solutions(config.data.train)
    found: list[dict[str, Any]] = rendered.to_dicts()
    return probe(config.reward, found, rows=rows, worked=worked, written=written)
