"""Scoring of imported rollouts: the score stage, and the artifact that its logprobs are filled into."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pipeline.common.device import resolve_dtype
from pipeline.common.errors import UserError
from pipeline.config.train import TrainConfig
from pipeline.exchange.imports.scored import missing, scored_request, with_scores
from pipeline.generate.engine import engine_environment
from pipeline.run.answers import Listener, Local
from pipeline.run.order import STAGES, Job, Order, only
from pipeline.run.processes import Processes
from pipeline.sources import models as base_model
from pipeline.sources.order import import_request
from pipeline.store import Artifact, Request, Store
from pipeline.store.store import load_artifact


def score_with(
    store: Store, rollouts: Artifact, checkpoint: Path, on_stage: Listener, *, trust_remote_code: bool = False
) -> tuple[Artifact, bool]:
    """Rollouts with the logprobs that they lack, scored with a checkpoint. Returns them, and whether they were there already.

    Args:
        checkpoint: a checkpoint artifact, or a model directory, which is then copied into the store as one.

    Raises:
        UserError: neither a checkpoint nor a model, or every completion has its logprobs.
    """
    if not missing(rollouts):
        raise UserError(f"{rollouts.url}: every completion has logprobs of a known mode; there is nothing to score")
    judge = _checkpoint(store, checkpoint, trust_remote_code)
    request = Request(
        "scores",
        STAGES["score"],
        {"dtype": resolve_dtype("auto")},
        (judge.as_parent("checkpoint"), rollouts.as_parent("rollouts")),
    )
    scores = store.find(request)
    if scores is None:
        scores = _score(store, request, rollouts, judge, on_stage, trust_remote_code)
    there = store.find(scored_request(rollouts, scores, judge)) is not None
    return with_scores(store, rollouts, scores, judge), there


def _checkpoint(store: Store, path: Path, trust_remote_code: bool) -> Artifact:
    if (path / "manifest.json").is_file():
        artifact = load_artifact(path)
        if artifact.kind != "checkpoint":
            raise UserError(f"--logprobs-from {path}: a {artifact.kind} artifact, expected a checkpoint")
        return artifact
    if not path.is_dir():
        raise UserError(f"--logprobs-from {path}: no such directory; name a checkpoint artifact or a model directory")
    files = base_model.model_files(path, trust_remote_code=trust_remote_code)
    request = import_request(base_model.hashes_of(files))
    return store.find(request) or base_model.import_model(store, request, files, str(path), None)


def _score(
    store: Store, request: Request, rollouts: Artifact, judge: Artifact, on_stage: Listener, trust_remote_code: bool
) -> Artifact:
    told = {
        "rollouts": str(rollouts.path),
        "checkpoint": str(judge.path),
        "train": TrainConfig().model_dump(mode="json"),
        "trust_remote_code": trust_remote_code,
        "plugins": [],
    }
    order = Order(title="score", module="pipeline.score", jobs=(Job(request=request, told=told),))
    logs, processes = Path(tempfile.mkdtemp(prefix="rollbook-")), Processes(engine_environment())
    try:
        made = only(Local(store, processes, logs, on_stage).answer(order))
    finally:
        processes.close()
    shutil.rmtree(logs, ignore_errors=True)  # kept where it failed: the refusal names it
    return made
