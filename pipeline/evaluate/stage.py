"""The evaluate stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.evaluate.estimators import bootstrap_interval, pass_at_k
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store, read_table
from pipeline.store.store import verified
from schemas import Evaluation, Rollouts
from schemas.rollouts import FAILED, ends_episode

COLUMNS = ["prompt_id", "sample_index", "reward", "completion_token_ids", "status", "finish_reason"]


def evaluate(spec: Event, reporter: Reporter) -> Event:
    """Make the evaluation artifact of a spec.

    Args:
        spec: store, request, sampled, greedy (paths of rollouts artifacts; greedy may be null).

    Returns:
        {"artifact": path}.
    """
    request = Request.from_json(spec["request"])
    with Store(spec["store"], reporter.note).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        frames = [_graded(verified(spec["sampled"]), "sampled", request.recipe)]
        if spec["greedy"]:
            frames.append(_graded(verified(spec["greedy"]), "greedy", request.recipe))
        frame = pl.concat(frames)
        work.write_table("evaluation.parquet", frame, Evaluation)
        return {"artifact": str(work.finish(summarize(frame, request.recipe)).path)}


def _graded(rollouts: Artifact, mode: str, recipe: dict[str, Any]) -> pl.DataFrame:
    score = deciding(recipe)
    answers = read_table(rollouts, Rollouts, list(dict.fromkeys([*COLUMNS, score]))).filter(ends_episode())
    return answers.select(
        "prompt_id",
        "sample_index",
        "reward",
        "status",
        mode=pl.lit(mode),
        solved=(pl.col(score) >= recipe["solved_at"]).fill_null(False),
        completion_tokens=pl.col("completion_token_ids").list.len().cast(pl.Int32),
    )


def deciding(recipe: Mapping[str, Any]) -> str:
    """The column of the rollouts that says what is solved."""
    component = recipe.get("solved_by")
    return f"reward_{component}" if component else "reward"


def summarize(frame: pl.DataFrame, recipe: dict[str, Any]) -> dict[str, Any]:
    """Figures of an evaluation table: pass@k and greedy accuracy with 95 % bootstrap intervals over prompts."""
    sampled = frame.filter(pl.col("mode") == "sampled")
    greedy = frame.filter(pl.col("mode") == "greedy").sort("prompt_id")
    prompts = sampled.group_by("prompt_id").agg(solved=pl.col("solved").sum().cast(pl.Int64), samples=pl.len().cast(pl.Int64))
    prompts = prompts.sort("prompt_id")

    def figure(values: Any) -> dict[str, float]:
        low, high = bootstrap_interval(values, recipe["bootstrap"], recipe["seed"])
        return {"value": float(values.mean()), "low": low, "high": high}

    counts = prompts["solved"].to_numpy(), prompts["samples"].to_numpy()
    return {
        "prompts": len(prompts),
        "samples": int(prompts["samples"][0]),
        "pass_at": {str(k): figure(pass_at_k(*counts, k)) for k in recipe["k"]},
        "greedy": None if greedy.is_empty() else figure(greedy["solved"].cast(pl.Float64).to_numpy()),
        "reward_mean": sampled["reward"].mean(),
        "completion_tokens_mean": sampled["completion_tokens"].mean(),
        "failed": int(frame["status"].is_in(FAILED).sum()),
    }
