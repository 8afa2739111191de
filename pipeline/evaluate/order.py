"""Figures of a checkpoint."""

from __future__ import annotations

from typing import Any

from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Job, Order
from pipeline.run.state import Answers
from pipeline.store import Artifact, Request


def evaluate_order(config: RunConfig, iteration: int, policy: Artifact, answers: Answers, suffix: str = "") -> Order:
    """pass@k and the other figures of a policy's held-out answers.

    Args:
        suffix: what follows the iteration in the title.
    """
    told = {"sampled": str(answers.sampled.path), "greedy": str(answers.greedy.path) if answers.greedy else None}
    job = Job(request=evaluate_request(config, policy, answers.sampled, answers.greedy), told=told)
    return Order(title=f"evaluate {iteration}{suffix}", module="pipeline.evaluate", jobs=(job,))


def evaluate_request(config: RunConfig, policy: Artifact, sampled: Artifact, greedy: Artifact | None) -> Request:
    """Figures of one checkpoint from its graded held-out completions."""
    recipe: dict[str, Any] = {
        "k": sorted({1, *config.evaluate.k}),
        "solved_at": config.evaluate.solved_at,
        "bootstrap": config.evaluate.bootstrap,
        "seed": config.seed,
    }
    if config.evaluate.solved_by is not None:
        recipe["solved_by"] = config.evaluate.solved_by
    parents = [policy.as_parent("policy"), sampled.as_parent("sampled")]
    parents += [greedy.as_parent("greedy")] if greedy else []
    return Request("evaluation", STAGES["evaluate"], recipe, tuple(parents))
