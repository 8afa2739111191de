"""The score stage: one forward pass over stored completions, file by file, so that training never holds a second model."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch

from pipeline.common.lengths import length
from pipeline.config.train import TrainConfig
from pipeline.run.estimates import scores_bytes
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.layout import SCRATCH
from pipeline.store.store import load_artifact, verified
from pipeline.store.tables import scan_table
from pipeline.train.batch import collate
from pipeline.train.check import make_ready
from pipeline.train.fit import scoring_tokens
from pipeline.train.launch import team_of
from pipeline.train.memory import memory_kept
from pipeline.train.model import Policy
from pipeline.train.plan import deal
from pipeline.train.rows import groups_of, longest_of
from pipeline.train.team import Team, alone, join, rank_of_this
from pipeline.train.tree import Branch, PackedRow
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
    store = Store(spec["store"], reporter.note)
    if rank_of_this() > 0:
        team = join()
        _score([Path(name) for name in team.gather_json(None)[0]], spec, request, config, None, team, reporter)
        team.leave()
        return {"artifact": str(store.path_of(request))}
    with store.work(request) as work:
        missing, files = ([], []) if isinstance(work, Artifact) else _files(spec, work)
        with team_of(config.processes if missing else 1, "pipeline.score", spec, store.path_of(request) / SCRATCH) as team:
            team.gather_json([str(path) for path in missing])
            if isinstance(work, Artifact):
                return {"artifact": str(work.path)}
            _score(missing, spec, request, config, work, team, reporter)
        rows = pl.scan_parquet([work.path / path.name for path in files], glob=False).select(
            pl.len(), tokens=length("logprobs").sum(), mean=pl.col("logprobs").explode().mean()
        )
        count, tokens, mean = rows.collect().row(0)
        return {"artifact": str(work.finish({"completions": count, "tokens": tokens, "logprob_mean": mean}).path)}


def _files(spec: Event, work: Work) -> tuple[list[Path], list[Path]]:
    """Files of the rollouts that are still to be scored, and all of them."""
    rollouts = verified(spec["rollouts"])
    work.require_space(scores_bytes(rollouts), "scores")
    scan_table(rollouts, Rollouts)
    files = rollouts.tables("rollouts")
    return [path for path in files if not work.has_table(path.name, Scores)], files


@memory_kept()
def _score(
    files: list[Path], spec: Event, request: Request, config: TrainConfig, work: Work | None, team: Team, reporter: Reporter
) -> None:
    """A rank's part of the scoring. `work` is given to the leading rank, which writes."""
    if not files:
        return
    checkpoint = verified(spec["checkpoint"]) if team.leads else load_artifact(spec["checkpoint"])
    trusted: bool = spec["trust_remote_code"]
    policy = Policy(
        checkpoint.path,
        request.recipe["dtype"],
        trust_remote_code=trusted,
        trains=False,
        attention=config.attention,
        team=team,
    )
    example = next((group for path in files for group in groups_of(path)), None)
    if example is not None:
        make_ready(policy, example, longest_of(files), config.attention, reporter.note)
    tokens = config.pass_tokens if example is None else scoring_tokens(policy, config, longest_of(files), team)
    for number, path in enumerate(files):
        frame = score_file(policy, path, tokens, team)
        if work is not None:
            work.write_table(path.name, frame, Scores)
            reporter.progress(number + 1, len(files), "files")


def score_file(policy: Policy, path: Path, token_budget: int, team: Team | None = None) -> pl.DataFrame:
    """The rows of a `Scores` table for one rollouts file. All ranks of a team must come here, and get the same."""
    team = team or alone()
    cost = policy.cost_model()
    groups = list(groups_of(path))
    schema = {name: column.dtype for name, column in Scores.columns().items()}
    if not groups:
        return pl.DataFrame(schema=schema)
    shares = deal(groups, team.size, token_budget, cost)
    idle = [PackedRow([Branch(groups[0], groups[0].completions[0])], [0])]
    own = [torch.zeros(0)]
    for part in shares[team.rank]:
        logprobs = policy.logprobs(collate(part or idle, policy.device))[0]
        own += [logprobs.clamp(max=0.0).cpu()] if part else []
    completions = [completion for share in shares for part in share for row in part for completion in row.completions]
    pieces = torch.split(team.gather(torch.cat(own)), [len(completion.tokens) for completion in completions])
    columns = {
        "group_id": [completion.group_id for completion in completions],
        "sample_index": [completion.sample_index for completion in completions],
        "logprobs": [piece.tolist() for piece in pieces],
    }
    return pl.DataFrame(columns, schema=schema).sort("group_id", "sample_index")
