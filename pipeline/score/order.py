"""Cached logprobs of stored completions, by the checkpoints that an algorithm needs them of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.algorithms import resolve
from pipeline.algorithms.cells.cell import PROXIMAL, REFERENCE
from pipeline.common.device import resolve_dtype
from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Answerer, Job, Order
from pipeline.run.parts import Part
from pipeline.store import Artifact, Request


def scored(
    config: RunConfig, answers: Answerer, iteration: int, base: Artifact, policy: Artifact, parts: Sequence[Part]
) -> list[Part]:
    """The parts with the scores that the algorithm needs, by role: reference (the base model), proximal (the policy)."""
    needs = resolve(config.train.algorithm, config.train.algorithm_args, config.plugins).needs
    by = {role: judge for column, role, judge in _roles(base, policy) if column in needs}
    if not by:
        return list(parts)
    found = [answers.answer(score_order(config, iteration, part.rollouts, list(by.values()))) for part in parts]
    return [replace(part, scores=dict(zip(by, scores, strict=True))) for part, scores in zip(parts, found, strict=True)]


def _roles(base: Artifact, policy: Artifact) -> tuple[tuple[str, str, Artifact], ...]:
    return (REFERENCE, "reference", base), (PROXIMAL, "proximal", policy)


def score_order(config: RunConfig, iteration: int, rollouts: Artifact, checkpoints: Sequence[Artifact]) -> Order:
    """Logprobs of one rollouts artifact under each of the checkpoints, in their order."""
    jobs = [
        Job(request=score_request(config, rollouts, checkpoint), told={"checkpoint": str(checkpoint.path)})
        for checkpoint in checkpoints
    ]
    told = {
        "rollouts": str(rollouts.path),
        "train": config.train.model_dump(mode="json"),
        "trust_remote_code": config.model.trust_remote_code,
        "plugins": list(config.plugins),
    }
    return Order(title=f"score {iteration}", module="pipeline.score", jobs=tuple(jobs), told=told)


def score_request(config: RunConfig, rollouts: Artifact, checkpoint: Artifact) -> Request:
    """Logprobs of stored completions under a checkpoint."""
    recipe = {"dtype": resolve_dtype(config.model.dtype)}
    return Request("scores", STAGES["score"], recipe, (checkpoint.as_parent("checkpoint"), rollouts.as_parent("rollouts")))
