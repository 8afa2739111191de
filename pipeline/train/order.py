"""The next checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.algorithms import resolve
from pipeline.common.device import resolve_dtype
from pipeline.config.run import RunConfig
from pipeline.config.train import GUARDS, WORK_SETTINGS
from pipeline.run.order import STAGES, Job, Order
from pipeline.run.parts import Part
from pipeline.store import Artifact, Request


def train_order(
    config: RunConfig,
    iteration: int,
    policy: Artifact,
    parts: Sequence[Part],
    then: str | None = None,
    earlier: Sequence[Order] = (),
) -> Order:
    """A training of an iteration's policy on its rollouts (the first part) and on replayed ones (the others).

    Args:
        then: module of the stage that is asked next.
        earlier: the run's trainings before this one, first to last. If AdamW's moments are gone, they can be made again.
    """
    before = [job for order in earlier for job in order.jobs if job.told["train"]["optimizer_state"] == "carry"]
    told = {
        "policy": str(policy.path),
        "parts": [part.to_json() for part in parts],
        "train": config.train.model_dump(mode="json"),
        "trust_remote_code": config.model.trust_remote_code,
        "plugins": list(config.plugins),
        "earlier": [{**job.told, "earlier": [], "request": job.request.to_json()} for job in before if config.train.carries],
    }
    job = Job(request=train_request(config, iteration, policy, parts), told=told)
    return Order(title=f"train {iteration}", module="pipeline.train", jobs=(job,), then=then)


def train_request(config: RunConfig, iteration: int, policy: Artifact, parts: Sequence[Part]) -> Request:
    """The checkpoint after this iteration, trained on its own rollouts (the first part) and on replayed ones (the others)."""
    algorithm = resolve(config.train.algorithm, config.train.algorithm_args, config.plugins)
    recipe = {
        "iteration": iteration + 1,
        "seed": config.seed,
        "dtype": resolve_dtype(config.model.dtype),
        "algorithm": algorithm.recipe(),
        **config.train.model_dump(
            mode="json", exclude={"algorithm", "algorithm_args", "optimizer_state", *WORK_SETTINGS, *GUARDS}
        ),
    }
    if config.train.carries:
        if policy.manifest.content.stage.startswith("train/"):  # there are moments to go on from
            recipe["optimizer_state"] = "carry"
        if config.train.schedule != "constant":
            recipe["iterations"] = config.iterations
    parents = [policy.as_parent("policy")]
    for number, part in enumerate(parts):
        prefix = f"replay {number} " if number else ""
        parents += [artifact.as_parent(prefix + role) for role, artifact in part.artifacts.items()]
    return Request("checkpoint", STAGES["train"], recipe, tuple(parents))
