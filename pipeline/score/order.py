"""Cached logprobs of stored completions, by the checkpoints that an algorithm needs them of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.algorithms import resolve
from pipeline.algorithms.cells.cell import PROXIMAL, REFERENCE
from pipeline.common.device import resolve_dtype
from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Answerer, Job, Order, only
from pipeline.run.parts import Part
from pipeline.sources.order import other_model_order
from pipeline.store import Artifact, Request


def reference_of(config: RunConfig, answers: Answerer, policies: Sequence[Artifact]) -> Artifact | None:
    """The model that an iteration's algorithm reads beside the policy, as `reference` says; None if it reads none.

    Args:
        policies: the checkpoints that the iterations draw with, the base model first, this iteration's own last.
    """
    if REFERENCE not in _needs(config):
        return None
    version = config.reference.version(len(policies) - 1)
    if version is not None:
        return policies[version]
    assert config.reference.path is not None
    return only(answers.answer(other_model_order(config, config.reference.path)))


def scored(
    config: RunConfig,
    answers: Answerer,
    iteration: int,
    reference: Artifact | None,
    policy: Artifact,
    parts: Sequence[Part],
) -> list[Part]:
    """The parts with the scores that the algorithm needs, by role.

    Args:
        reference: the answer of `reference_of`.
        policy: the proximal policy, which the training starts from.
    """
    needs = _needs(config)
    by = {role: judge for column, role, judge in _roles(reference, policy) if judge is not None and column in needs}
    if not by:
        return list(parts)
    found = [answers.answer(score_order(config, iteration, part.rollouts, list(by.values()))) for part in parts]
    return [replace(part, scores=dict(zip(by, scores, strict=True))) for part, scores in zip(parts, found, strict=True)]


def _needs(config: RunConfig) -> tuple[str, ...]:
    return resolve(config.train.algorithm, config.train.algorithm_args, config.plugins).needs


def _roles(reference: Artifact | None, policy: Artifact) -> tuple[tuple[str, str, Artifact | None], ...]:
    return (REFERENCE, "reference", reference), (PROXIMAL, "proximal", policy)


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
