"""Corrections of an iteration's own completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.common.device import resolve_dtype
from pipeline.common.errors import UserError
from pipeline.common.near import did_you_mean
from pipeline.common.own_code import own_function, source_sha256
from pipeline.config.revise import ReviseConfig
from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Answerer, Job, Order, only
from pipeline.sources.order import other_model_order
from pipeline.store import Artifact, Request
from pipeline.store.files import sha256_of

A_REVISER = "a reviser is a function of your own"
ASKED_OF_A_MODEL = ("template", "system", "max_tokens")
REVISER = "reviser"
"""Role of the judge model among the parents of revisions."""


def revised(
    config: RunConfig, answers: Answerer, iteration: int, policy: Artifact, prompts: Artifact, rollouts: Artifact
) -> Artifact | None:
    """The corrections of an iteration's rollouts; None where nobody is to correct them."""
    section = config.revise
    if not section.is_on:
        return None
    reviser = only(answers.answer(other_model_order(config, str(section.model)))) if section.by == "model" else None
    return only(answers.answer(revise_order(config, iteration, policy, prompts, rollouts, reviser)))


def revise_order(
    config: RunConfig, iteration: int, policy: Artifact, prompts: Artifact, rollouts: Artifact, reviser: Artifact | None
) -> Order:
    """Corrections of one rollouts artifact.

    Args:
        policy: who drew them, and in whose tokens corrections are written.
        reviser: the judge model, if one is named that vLLM runs.
    """
    request = revise_request(config, policy, prompts, rollouts, reviser, source_of(config.revise))
    told = {
        "rollouts": str(rollouts.path),
        "policy": str(policy.path),
        "prompts": str(prompts.path),
        "reviser": str(reviser.path) if reviser else None,
        "revise": config.revise.model_dump(mode="json"),
        "engine": config.engine.model_copy(update={"server": None}).model_dump(mode="json"),
        "trust_remote_code": config.model.trust_remote_code,
    }
    return Order(title=f"revise {iteration}", module="pipeline.revise", jobs=(Job(request=request, told=told),))


def revise_request(
    config: RunConfig, policy: Artifact, prompts: Artifact, rollouts: Artifact, reviser: Artifact | None, source: str | None
) -> Request:
    """What decides the corrections.

    Args:
        source: hash of the function's or the file's bytes.
    """
    section = config.revise
    recipe: dict[str, Any] = {
        "by": _expert(section, source) | ({"dtype": resolve_dtype(config.model.dtype)} if reviser else {}),
        **section.model_dump(
            mode="json", include={"samples", "solved_at", "reference", "most_change", "kept_weight", "changed_weight"}
        ),
    }
    if config.generate.stop:
        recipe["sampling"] = {"stop": list(config.generate.stop), "keep_stop_text": config.generate.keep_stop_text}
    parents = [rollouts.as_parent("rollouts"), policy.as_parent("policy"), prompts.as_parent("prompts")]
    parents += [reviser.as_parent(REVISER)] if reviser else []
    return Request("revisions", STAGES["revise"], recipe, tuple(parents))


def _expert(section: ReviseConfig, source: str | None) -> dict[str, Any]:
    """Who corrects, without places of files, addresses and time limits."""
    asked = section.model_dump(mode="json", include=set(ASKED_OF_A_MODEL))
    match section.by:
        case "pattern":
            return {"pattern": section.pattern}
        case "function":
            return {"function": section.function, "args": section.args, "source": source}
        case "file":
            return {"file": source}
        case "url":
            return {"server": section.model, **asked}
        case _:
            return {"model": "the reviser among the parents", **asked}


def source_of(section: ReviseConfig) -> str | None:
    """sha256 of the function's file, or of the file of corrections; None for other experts.

    Raises:
        UserError: there is none.
    """
    try:
        if section.function is not None:
            return source_sha256(own_function(section.function, A_REVISER))
        if section.file is not None:
            path = Path(section.file)
            if not path.is_file():
                raise UserError(f"{path}: no such file{did_you_mean(path)}")
            return sha256_of(path)
    except UserError as error:
        raise UserError(f"revise.{section.by}: {error}") from None
    return None
