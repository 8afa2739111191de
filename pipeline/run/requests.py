"""What each stage of a run is asked for. A request's key is known before any work, so finished work is found, not redone.

Recipes hold what decides the result and nothing else: no paths, none of the settings that say how the work is done and change
the result by rounding at most (processes, micro-batches, attention: `WORK_SETTINGS`), and none that only say when to refuse
(`GUARDS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.algorithms import resolve
from pipeline.common.device import resolve_dtype
from pipeline.config.data import PromptSource
from pipeline.config.run import RunConfig
from pipeline.config.train import GUARDS, WORK_SETTINGS
from pipeline.rewards.registry import recipe_of
from pipeline.run.parts import Part
from pipeline.shape.settings import draws
from pipeline.store import Artifact, Request
from schemas.manifest import ORIGINAL

STAGES = {name: f"{name}/1" for name in ("prompts", "import", "generate", "shape", "mix", "score", "train", "evaluate")}
STAGES |= {name: f"{name}/2" for name in ("prompts", "shape")} | {name: f"{name}/3" for name in ("score", "train")}
"""Stage and version. The version is part of every key: raise it when a stage's result changes for the same recipe."""


def prompts_request(
    config: RunConfig, source: PromptSource, source_hash: str, *, model: Artifact | None, disjoint_from: Artifact | None
) -> Request:
    """Prompts of one source, rendered. `model` is given if its chat template renders them."""
    decides_nothing = {"path"} if source.bad_rows == "set_aside" else {"path", "bad_rows"}
    recipe = {
        "source": source.model_dump(mode="json", exclude=decides_nothing) | {"hash": source_hash},
        "template": config.data.template,
        "chat": config.data.chat,
        "system": config.data.system,
    }
    parents = [model.as_parent("tokenizer")] if model else []
    parents += [disjoint_from.as_parent("disjoint_from")] if disjoint_from else []
    return Request("prompts", STAGES["prompts"], recipe, tuple(parents))


def import_request(hashes: dict[str, str], original: Artifact | None = None) -> Request:
    """A base model, by the sha256 of its files. Of a checkpoint artifact's, that is its parent: where it comes from counts."""
    parents = (original.as_parent(ORIGINAL),) if original else ()
    return Request("checkpoint", STAGES["import"], {"files": hashes, "iteration": 0}, parents)


def rollouts_request(config: RunConfig, iteration: int, policy: Artifact, prompts: Artifact) -> Request:
    """Completions of this iteration's training prompts."""
    section = config.generate
    selection = {"prompts": section.prompts, "iteration": iteration, "seed": config.seed}
    sampling = _sampling(config, temperature=section.temperature)
    return _generate(config, "train", selection, section.samples, sampling, policy, prompts)


def heldout_request(config: RunConfig, policy: Artifact, prompts: Artifact, *, greedy: bool) -> Request:
    """Completions of the held-out prompts: the same seeds for every checkpoint, so that differences are the policy's."""
    selection = {"prompts": None, "iteration": None, "seed": config.seed}
    samples = 1 if greedy else config.evaluate.samples
    sampling = _sampling(config, temperature=0.0 if greedy else config.evaluate.temperature, whole_support=True)
    return _generate(config, "greedy" if greedy else "sampled", selection, samples, sampling, policy, prompts)


def shape_request(config: RunConfig, iteration: int, rollouts: Artifact) -> Request:
    """Advantages and weights for one rollouts artifact; algorithms that shape alike share it, and iterations without max_age."""
    algorithm = resolve(config.train.algorithm, config.train.algorithm_args, config.plugins)
    recipe = {"choices": config.shape.model_dump(mode="json", exclude={"max_age"}), **algorithm.shaping_recipe()}
    if config.shape.max_age is not None:
        recipe["oldest_version"] = max(iteration - config.shape.max_age, 0)
    if draws(config.shape, algorithm):
        recipe["seed"] = config.seed
    return Request("shaped", STAGES["shape"], recipe, (rollouts.as_parent("rollouts"),))


def mix_request(config: RunConfig, iteration: int, rollouts: Artifact, shaped: Artifact, groups: int) -> Request:
    """The shaped rows of replayed rollouts, less the groups that are not drawn for this iteration."""
    recipe = {"groups": groups, "loss_weight": config.replay.loss_weight, "iteration": iteration, "seed": config.seed}
    return Request("shaped", STAGES["mix"], recipe, (rollouts.as_parent("rollouts"), shaped.as_parent("shaped")))


def score_request(config: RunConfig, rollouts: Artifact, checkpoint: Artifact) -> Request:
    """Logprobs of stored completions under a checkpoint."""
    recipe = {"dtype": resolve_dtype(config.model.dtype)}
    return Request("scores", STAGES["score"], recipe, (checkpoint.as_parent("checkpoint"), rollouts.as_parent("rollouts")))


def train_request(config: RunConfig, iteration: int, policy: Artifact, parts: Sequence[Part]) -> Request:
    """The checkpoint after this iteration, trained on its own rollouts (the first part) and on replayed ones (the others)."""
    algorithm = resolve(config.train.algorithm, config.train.algorithm_args, config.plugins)
    recipe = {
        "iteration": iteration + 1,
        "seed": config.seed,
        "dtype": resolve_dtype(config.model.dtype),
        "algorithm": algorithm.recipe(),
        **config.train.model_dump(mode="json", exclude={"algorithm", "algorithm_args", *WORK_SETTINGS, *GUARDS}),
    }
    parents = [policy.as_parent("policy")]
    for number, part in enumerate(parts):
        prefix = f"replay {number} " if number else ""
        parents += [artifact.as_parent(prefix + role) for role, artifact in part.artifacts.items()]
    return Request("checkpoint", STAGES["train"], recipe, tuple(parents))


def evaluate_request(config: RunConfig, policy: Artifact, sampled: Artifact, greedy: Artifact | None) -> Request:
    """Figures of one checkpoint from its graded held-out completions."""
    recipe = {
        "k": sorted({1, *config.evaluate.k}),
        "solved_at": config.evaluate.solved_at,
        "bootstrap": config.evaluate.bootstrap,
        "seed": config.seed,
    }
    parents = [policy.as_parent("policy"), sampled.as_parent("sampled")]
    parents += [greedy.as_parent("greedy")] if greedy else []
    return Request("evaluation", STAGES["evaluate"], recipe, tuple(parents))


def _sampling(config: RunConfig, *, temperature: float, whole_support: bool = False) -> dict[str, Any]:
    section = config.generate
    cuts = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if not whole_support:
        cuts = {"top_p": section.top_p, "top_k": section.top_k, "min_p": section.min_p}
    return {"temperature": temperature, **cuts, "max_tokens": section.max_tokens, "stop": list(section.stop)}


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
    return Request("rollouts", STAGES["generate"], recipe, (policy.as_parent("policy"), prompts.as_parent("prompts")))
