"""Advantages and weights of one rollouts artifact."""

from __future__ import annotations

from pathlib import Path

from pipeline.algorithms import resolve
from pipeline.config.run import RunConfig
from pipeline.config.shape import ShapeConfig
from pipeline.run.order import STAGES, Job, Order
from pipeline.shape.labels import labels_of
from pipeline.shape.settings import draws
from pipeline.store import Artifact, Request

LATER = ("credit", "discount", "void_turns", "truncated_by")
"""Settings that recipes hold only where they are set."""


def shape_order(config: RunConfig, iteration: int, rollouts: Artifact, title: str | None = None) -> Order:
    """What the config's algorithm makes of the rewards.

    Args:
        title: default: "shape" and the iteration.
    """
    told = {
        "algorithm": config.train.algorithm,
        "algorithm_args": config.train.algorithm_args,
        "shape": config.shape.model_dump(mode="json"),
        "rollouts": str(rollouts.path),
        "plugins": list(config.plugins),
    }
    job = Job(request=shape_request(config, iteration, rollouts), told=told)
    return Order(title=title or f"shape {iteration}", module="pipeline.shape", jobs=(job,))


def shape_request(config: RunConfig, iteration: int, rollouts: Artifact) -> Request:
    """Advantages and weights for one rollouts artifact; algorithms that shape alike share it, and iterations without max_age."""
    algorithm = resolve(config.train.algorithm, config.train.algorithm_args, config.plugins)
    unused = {"max_age", "labels", *(set() if config.shape.tool_bonus else {"tool_bonus", "tool_bonus_calls"})}
    unused |= {name for name in LATER if getattr(config.shape, name) == ShapeConfig.model_fields[name].default}
    recipe = {"choices": config.shape.model_dump(mode="json", exclude=unused), **algorithm.shaping_recipe()}
    if config.shape.labels is not None:
        recipe["labels"] = labels_of(Path(config.shape.labels), rollouts).sha256
    if config.shape.max_age is not None:
        recipe["oldest_version"] = max(iteration - config.shape.max_age, 0)
    if draws(config.shape, algorithm):
        recipe["seed"] = config.seed
    return Request("shaped", STAGES["shape"], recipe, (rollouts.as_parent("rollouts"),))
