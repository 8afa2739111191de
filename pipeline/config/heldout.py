"""A run as one of its held-out sets sees it."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.evaluate import HeldoutSet
from pipeline.config.run import RunConfig


def config_of(config: RunConfig, one: HeldoutSet) -> RunConfig:
    """The settings by which a set's prompts are rendered, answered, graded and judged: those of the run, but for its own."""
    rendering = {name: value for name in ("template", "system") if (value := getattr(one, name)) is not None}
    sampling = {"max_tokens": one.max_tokens} if one.max_tokens else {}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"heldout": one.prompts, **rendering}),
            "generate": config.generate.model_copy(update=sampling),
            "reward": one.reward or config.reward,
            "evaluate": config.evaluate.of(one),
        }
    )


def by_set(config: RunConfig) -> Iterator[tuple[HeldoutSet, RunConfig]]:
    """Every set of a run with its settings."""
    for one in config.evaluate.sets:
        yield one, config_of(config, one)
