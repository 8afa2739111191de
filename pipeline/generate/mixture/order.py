"""Which model an iteration's completions are drawn by beside its policy."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.run import RunConfig
from pipeline.run.order import Answerer, only
from pipeline.sources.order import other_model_order
from pipeline.store import Artifact

MIXTURE = "mixture"
"""In the recipe of rollouts: the other model's share. Their behavior_logprobs are then of the mixture, not of the policy."""
OTHER = "other"
"""The other model, as a parent of rollouts."""


def other_of(config: RunConfig, answers: Answerer, policies: Sequence[Artifact]) -> Artifact | None:
    """The other model, as `generate.mixture` says; None where completions are drawn by the policy alone.

    That is so without a mixture, with a share of 0, and where the other model is the policy itself, as a reference that is the
    base model is in iteration 0.

    Args:
        policies: the checkpoints that the iterations draw with, the base model first, this iteration's own last.
    """
    mixture = config.generate.mixture
    if mixture is None or mixture.share == 0:
        return None
    version, path = version_of(config, len(policies) - 1), mixture.with_
    if path == "reference" and config.reference.path:
        path = config.reference.path
    other = policies[version] if version is not None else only(answers.answer(other_model_order(config, path)))
    return None if other.id == policies[-1].id else other


def version_of(config: RunConfig, iteration: int) -> int | None:
    """The iteration whose policy is the other model; None for a model from elsewhere."""
    assert config.generate.mixture
    match config.generate.mixture.with_:
        case "reference":
            return config.reference.version(iteration)
        case "behavior":
            return max(iteration - 1, 0)
        case _:
            return None
