"""A reward model, from a checkpoint and from rollouts whose completions are compared."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.common.device import resolve_dtype
from pipeline.config.reward_model import RewardModelConfig
from pipeline.run.order import Job, Order
from pipeline.store import Artifact, Request

STAGE = "reward/2"
"""Stage and version. No stage of a run: `rollbook gc` keeps what somebody asked for by itself."""
WORK_SETTINGS = {"pass_tokens", "save_every_steps"}
"""How the work is done: they change the result by rounding at most."""


def reward_order(config: RewardModelConfig, model: Artifact, rollouts: Sequence[Artifact]) -> Order:
    """One training.

    Args:
        model: the checkpoint that gets the head.
        rollouts: those that the config names.
    """
    told = {
        "model": str(model.path),
        "rollouts": [str(one.path) for one in rollouts],
        "pass_tokens": config.train.pass_tokens,
        "save_every_steps": config.train.save_every_steps,
        "trust_remote_code": config.model.trust_remote_code,
    }
    job = Job(request=reward_request(config, model, rollouts), told=told)
    return Order(title="reward", module="pipeline.reward_models", jobs=(job,))


def reward_request(config: RewardModelConfig, model: Artifact, rollouts: Sequence[Artifact]) -> Request:
    """What decides the reward model."""
    recipe = {
        "seed": config.seed,
        "dtype": resolve_dtype(config.model.dtype),
        "pairs": config.pairs.model_dump(mode="json", exclude={"rollouts"}),
        **config.train.model_dump(mode="json", exclude=WORK_SETTINGS),
    }
    parents = [one.as_parent(f"pairs {number}" if number else "pairs") for number, one in enumerate(rollouts)]
    return Request("reward_model", STAGE, recipe, (model.as_parent("model"), *parents))
