"""The score stage: one forward pass over stored completions, file by file, so that training never holds a second model."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch

from pipeline.artifacts import Artifact, Request, Store
from pipeline.artifacts.store import verified
from pipeline.artifacts.tables import scan_table
from pipeline.config import TrainConfig
from pipeline.estimates import scores_bytes
from pipeline.process import Event, Reporter
from pipeline.train.batch import collate
from pipeline.train.check import settle_attention
from pipeline.train.model import Policy
from pipeline.train.plan import Row, micro_batches, rows_of
from pipeline.train.snapshot import Completion, groups_of
from schemas import Rollouts, Scores


def score(spec: Event, reporter: Reporter) -> Event:
    """Make the scores artifact of a spec.

    Args:
        spec: store, request, rollouts and checkpoint (paths of artifacts), train (a TrainConfig: how the work is done),
            trust_remote_code.

    Returns:
        {"artifact": path}.
    """
    request, config = Request.from_json(spec["request"]), TrainConfig.model_validate(spec["train"])
    with Store(spec["store"], reporter.note).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        rollouts = verified(spec["rollouts"])
        work.room(scores_bytes(rollouts), "scores")
        scan_table(rollouts, Rollouts)
        files = rollouts.tables("rollouts")
        missing = [path for path in files if not work.has_table(path.name, Scores)]
        if missing:
            policy = Policy(
                verified(spec["checkpoint"]).path,
                request.recipe["dtype"],
                trust_remote_code=spec["trust_remote_code"],
                trains=False,
                attention=config.attention,
            )
            if first := _first_rows(policy, missing[0]):
                settle_attention(policy, collate(first, policy.device), config, reporter.note)
        for number, path in enumerate(missing):
            work.write_table(path.name, score_file(policy, path, config.tokens_per_micro_batch), Scores)
            reporter.progress(number + 1, len(missing), "files")
        rows = pl.scan_parquet([work.path / path.name for path in files]).select(
            pl.len(), tokens=pl.col("logprobs").list.len().sum(), mean=pl.col("logprobs").explode().mean()
        )
        length, tokens, mean = rows.collect().row(0)
        return {"artifact": str(work.finish({"completions": length, "tokens": tokens, "logprob_mean": mean}).path)}


def _first_rows(policy: Policy, path: Path) -> list[Row]:
    return next((rows_of(group, policy.cost_model()) for group in groups_of(path)), [])


def score_file(policy: Policy, path: Path, token_budget: int) -> pl.DataFrame:
    """The rows of a `Scores` table for one rollouts file."""
    cost = policy.cost_model()
    rows = [row for group in groups_of(path) for row in rows_of(group, cost)]
    scored: list[tuple[Completion, list[float]]] = []
    with torch.no_grad():
        for part in micro_batches(rows, token_budget):
            batch = collate(part, policy.device)
            logprobs = policy.logprobs(batch)[0].clamp(max=0.0).cpu()
            lengths = [len(completion.tokens) for completion in batch.flat.completions]
            pieces = [piece.tolist() for piece in torch.split(logprobs, lengths)]
            scored += zip(batch.flat.completions, pieces, strict=True)
    columns = {
        "group_id": [completion.group_id for completion, _ in scored],
        "sample_index": [completion.sample_index for completion, _ in scored],
        "logprobs": [logprobs for _, logprobs in scored],
    }
    schema = {name: column.dtype for name, column in Scores.columns().items()}
    return pl.DataFrame(columns, schema=schema).sort("group_id", "sample_index")
