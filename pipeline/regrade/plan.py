"""What `rollbook grade` is asked for: stored rollouts, and graders from a file of settings or by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import IntegrityError, UserError
from pipeline.common.near import did_you_mean
from pipeline.config.load import describe_errors
from pipeline.config.plain_yaml import parse_yaml
from pipeline.config.reward import RewardConfig
from pipeline.rewards.registry import check_reward_config, recipe_of
from pipeline.store import Artifact, Request, Store
from pipeline.store.store import load_artifact

STAGE = "grade/1"
"""Stage and version. The version is part of every key: raise it when the stage's result changes for the same recipe."""
GRADED = "graded"
"""Role of the artifact whose completions were graded."""


def rollouts_at(path: str) -> Artifact:
    """The rollouts artifact at a place.

    Raises:
        UserError: there is none.
    """
    artifact = load_artifact(path)
    if artifact.kind != "rollouts":
        raise UserError(f"{path}: a {artifact.kind} artifact; name a directory in rollouts/ of a store")
    return artifact


def store_of(artifact: Artifact) -> str:
    """The address of the store that an artifact lies in."""
    return artifact.url.rstrip("/").rpartition("/")[0].rpartition("/")[0] or "."


def reward_of(path: Path) -> RewardConfig:
    """The section `reward` of a run's YAML file, or of a file that has nothing else.

    Raises:
        UserError: no such file, no such section, an unknown key or a value out of range.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{did_you_mean(path)}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("reward"), dict):
        raise UserError(f"{path}: has no section `reward`; expected reward: {{components: [{{grader: exact_match}}]}}")
    return _validated(tree["reward"], str(path))


def reward_by_name(grader: str, args: str | None, changes: dict[str, Any]) -> RewardConfig:
    """One grader.

    Args:
        args: its arguments, a YAML mapping.
        changes: other settings of the section `reward`.
    """
    try:
        values = parse_yaml(args) if args else {}
    except ValueError as error:
        raise UserError(f"--args {args}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--args {args}: expected a mapping such as '{{pattern: \"A:(.+)\"}}'")
    return _validated({"components": [{"grader": grader, "args": values}], **changes}, "--grader")


def _validated(tree: dict[str, Any], origin: str) -> RewardConfig:
    try:
        reward = RewardConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{origin}: reward.{line}" for line in describe_errors(error, RewardConfig))) from None
    check_reward_config(reward)
    return reward


def grade_request(rollouts: Artifact, reward: RewardConfig) -> Request:
    """Stored completions with other rewards. The recipe says how they were made, as that of the graded artifact does."""
    recipe = {**rollouts.recipe, "reward": [recipe_of(component) for component in reward.components]}
    kept = tuple(parent for parent in rollouts.manifest.content.parents if parent.role != GRADED)
    return Request("rollouts", STAGE, recipe, (*kept, rollouts.as_parent(GRADED)))


def job_of(rollouts: Artifact, request: Request, stores: Sequence[Store]) -> dict[str, Any]:
    """A job of the grade stage. The prompts are looked for in the stores; without them graders see what the rows have."""
    return {"request": request.to_json(), "rollouts": rollouts.url, "prompts": _prompts_of(rollouts, stores)}


def _prompts_of(rollouts: Artifact, stores: Sequence[Store]) -> str | None:
    parent = next((parent for parent in rollouts.manifest.content.parents if parent.role == "prompts"), None)
    for store in stores if parent else ():
        assert parent is not None
        try:
            return store.get(parent).url
        except IntegrityError:
            continue
    return None
