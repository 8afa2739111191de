"""What `rollbook check` looks at: everything that can be wrong before a process is started."""

from __future__ import annotations

import json

from pipeline import base_model, prompts
from pipeline.algorithms import Algorithm, resolve
from pipeline.config import RunConfig
from pipeline.errors import DataError, UserError
from pipeline.rewards.registry import check_reward_config


def check_algorithm(config: RunConfig) -> Algorithm:
    """The run's algorithm, if it fits the run's sampling and graders.

    Raises:
        UserError: an unknown algorithm, setting or grader, or sampling that the algorithm cannot use.
    """
    algorithm = resolve(config.train.algorithm, config.train.algorithm_args)
    check_reward_config(config.reward)
    if algorithm.needs and config.generate.cuts_support:
        raise UserError(
            f"generate: {algorithm.name} needs the ratio pi/mu, and top_p, top_k or min_p cut the distribution that mu is. "
            "Use top_p: 1, top_k: 0, min_p: 0, or a method without a ratio (such as reinforce)"
        )
    if algorithm.needs and config.generate.temperature == 0:
        raise UserError(f"generate.temperature: {algorithm.name} cannot learn from greedy completions; use a value above 0")
    return algorithm


def check_config(config: RunConfig) -> list[str]:
    """Look at everything a run will need. Returns what was found, a line each.

    Raises:
        UserError: the first thing that is wrong.
    """
    algorithm = check_algorithm(config)
    files = base_model.model_files(base_model.locate(config.model), trust_remote_code=config.model.trust_remote_code)
    architecture = json.loads(files["config.json"].read_text(encoding="utf-8")).get("architectures") or ["unknown architecture"]
    train = prompts.load(config.data.train)
    heldout = prompts.load(config.data.heldout)
    if not config.data.chat:
        prompts.template_renderer(config.data.template)
    shared = heldout.join(train, on="question", how="semi")
    if len(shared) and not config.data.allow_overlap:
        raise DataError(f"{config.data.heldout.path}: {len(shared)} held-out questions are also in {config.data.train.path}")
    lines = [
        f"model      {config.model.path} ({architecture[0]})",
        f"prompts    {len(train)} for training, {len(heldout)} held out",
        f"rewards    {', '.join(component.column for component in config.reward.components)}",
        f"algorithm  {algorithm.name}: {algorithm.summary}",
        f"run        {config.iterations} x {config.generate.prompts} x {config.generate.samples} in {config.directory}",
    ]
    if warning := algorithm.warning(config.train.epochs):
        lines.append(f"warning    {warning}")
    return [*lines, "ok"]
