"""What a checkpoint must answer: one start of the engine for all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.common.device import resolve_dtype
from pipeline.config.engine_args import of_the_key
from pipeline.config.run import RunConfig
from pipeline.environments.registry import recipe_of_environment
from pipeline.generate.mixture.order import MIXTURE, OTHER
from pipeline.rewards.registry import recipe_of
from pipeline.run.order import STAGES, Job, Order
from pipeline.store import Artifact, Request


def generator(config: RunConfig) -> str:
    """The module of the generate stage."""
    return "pipeline.generate.server" if config.engine.server else "pipeline.generate"


def generate_orders(
    config: RunConfig,
    iteration: int,
    policy: Artifact,
    train: Artifact | None,
    heldout: Artifact,
    drawn: RunConfig,
    other: Artifact | None,
) -> tuple[Order, ...]:
    """Everything that an iteration's policy is asked: in one order, or in two where training prompts are answered by a mixture.

    Args:
        drawn: settings that this iteration's training completions are drawn by.
        other: the answer of `other_of`. Held-out answers are the policy's own, whatever it is mixed with.
    """
    if train is None or other is None:
        return (generate_order(config, iteration, policy, train, heldout, drawn),)
    assert drawn.generate.mixture
    job = rollouts_job(rollouts_request(drawn, iteration, policy, train, other), train)
    mixed = answers_order(config, f"generate {iteration}", policy, job)
    mixture = {"other": str(other.path), "share": drawn.generate.mixture.share}
    return generate_order(config, iteration, policy, None, heldout), replace(mixed, told={**mixed.told, "mixture": mixture})


def generate_order(
    config: RunConfig,
    iteration: int,
    policy: Artifact,
    train: Artifact | None,
    heldout: Artifact,
    drawn: RunConfig | None = None,
    suffix: str = "",
) -> Order:
    """Held-out prompts, sampled and (if asked for) greedy, and with `train` this iteration's training prompts, in this order.

    Args:
        drawn: settings that this iteration's training completions are drawn by. Default: those of the run.
        suffix: what follows the iteration in the title.
    """
    jobs = [rollouts_job(heldout_request(config, policy, heldout, greedy=False), heldout)]
    if config.evaluate.greedy:
        jobs.append(rollouts_job(heldout_request(config, policy, heldout, greedy=True), heldout))
    if train is not None:
        jobs.append(rollouts_job(rollouts_request(drawn or config, iteration, policy, train), train))
    return answers_order(config, f"generate {iteration}{suffix}", policy, *jobs)


def answers_order(config: RunConfig, title: str, policy: Artifact, *jobs: Job) -> Order:
    """Rollouts of one policy, whatever is asked for."""
    told = {
        "engine": config.engine.model_dump(mode="json"),
        "cluster": config.cluster.model_dump(mode="json") if config.cluster else None,
        "reward": config.reward.model_dump(mode="json"),
        **({"environment": config.environment.model_dump(mode="json")} if config.environment else {}),
        "policy": str(policy.path),
        "trust_remote_code": config.model.trust_remote_code,
        "plugins": list(config.plugins),
    }
    return Order(title=title, module=generator(config), jobs=jobs, told=told)


def rollouts_job(request: Request, prompts: Artifact) -> Job:
    """Completions of these prompts, as a job of an order."""
    return Job(request=request, told={"prompts": str(prompts.path)})


def rollouts_request(
    config: RunConfig, iteration: int, policy: Artifact, prompts: Artifact, other: Artifact | None = None
) -> Request:
    """Completions of this iteration's training prompts, of the policy or of its mixture with another model."""
    section = config.generate
    selection = {"prompts": section.prompts, "iteration": iteration, "seed": config.seed}
    sampling = _sampling(config, temperature=section.temperature)
    request = _generate(config, "train", selection, section.samples, sampling, policy, prompts)
    if other is None or section.mixture is None:
        return request
    recipe = {**request.recipe, MIXTURE: {"share": section.mixture.share}}
    return replace(request, recipe=recipe, parents=(*request.parents, other.as_parent(OTHER)))


def heldout_request(config: RunConfig, policy: Artifact, prompts: Artifact, *, greedy: bool) -> Request:
    """Completions of the held-out prompts: the same seeds for every checkpoint, so that differences are the policy's."""
    selection = {"prompts": None, "iteration": None, "seed": config.seed}
    samples = 1 if greedy else config.evaluate.samples
    sampling = _sampling(config, temperature=0.0 if greedy else config.evaluate.temperature, whole_support=True)
    return _generate(config, "greedy" if greedy else "sampled", selection, samples, sampling, policy, prompts)


def _sampling(config: RunConfig, *, temperature: float, whole_support: bool = False) -> dict[str, Any]:
    section = config.generate
    cuts = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if not whole_support:
        cuts = {"top_p": section.top_p, "top_k": section.top_k, "min_p": section.min_p}
    drawn = {"temperature": temperature, **cuts, "max_tokens": section.max_tokens, "stop": list(section.stop)}
    return drawn | ({"keep_stop_text": True} if section.stop and section.keep_stop_text else {})


def _generate(
    config: RunConfig,
    purpose: str,
    selection: dict[str, Any],
    samples: int,
    sampling: dict[str, Any],
    policy: Artifact,
    prompts: Artifact,
) -> Request:
    recipe = {
        "purpose": purpose,
        "selection": selection,
        "samples": samples,
        "sampling": sampling,
        "dtype": resolve_dtype(config.model.dtype),
        "max_model_len": config.engine.max_model_len,
        "reward": [recipe_of(component) for component in config.reward.components],
        "shard_groups": config.generate.shard_groups,
    }
    if config.environment:
        recipe["environment"] = recipe_of_environment(config.environment)
    if args := of_the_key(config.engine.args):
        recipe["engine_args"] = args
    return Request("rollouts", STAGES["generate"], recipe, (policy.as_parent("policy"), prompts.as_parent("prompts")))
