"""The train stage: N epochs over a frozen snapshot, resumable at any saved step, by one process or several.

Rank 0 holds the artifact's lock, lays the snapshot out, writes and reports. Other ranks read what it laid out and hold their
share of the weights.
"""

from __future__ import annotations

import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch

from pipeline.algorithms import resolve
from pipeline.algorithms.plugins import unchanged
from pipeline.common.other_work import OtherWork
from pipeline.config.train import GUARDS, WORK_SETTINGS, TrainConfig
from pipeline.run.estimates import training_bytes
from pipeline.run.parts import Part
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.layout import SCRATCH
from pipeline.store.store import load_artifact, verified
from pipeline.train import carried
from pipeline.train.export import export
from pipeline.train.launch import team_of
from pipeline.train.layout import left_out, open_snapshot
from pipeline.train.likely import likelihood_of_pairs
from pipeline.train.memory import memory_kept
from pipeline.train.snapshot import reopened
from pipeline.train.team import Team, is_rank, join, rank_of_this
from pipeline.train.training import Training
from schemas import Metrics, Timing

AGAIN = "again"
"""In the scratch directory: a store for earlier trainings that are done once more."""


def train(spec: Event, reporter: Reporter) -> Event:
    """Make the checkpoint artifact of a spec, going on from the last resume point.

    Args:
        spec: store, request, policy (path of an artifact), parts (places as of `Part.to_json`), train (a TrainConfig),
            trust_remote_code, earlier (specs of the run's trainings before it), moments (a store to look for them in, too).

    Returns:
        {"artifact": path}.

    Raises:
        UserError: the algorithm cannot train on these rollouts, or the stored logprobs are not the trainer's.
        StageFailed: a loss or gradient became infinite or NaN, or a rank ended.
    """
    request, store = Request.from_json(spec["request"]), Store(spec["store"], reporter.note)
    path = store.path_of(request)
    if rank_of_this() > 0:
        team = join()
        if not team.gather_json(None)[0]["finished"]:
            _train(spec, request, path / SCRATCH, None, team, reporter)
        team.leave()
        return {"artifact": str(path)}
    with store.work(request) as work:
        if isinstance(work, Artifact) and not is_rank():
            return {"artifact": str(work.path)}
        if isinstance(work, Work) and not is_rank() and request.recipe.get("optimizer_state") == "carry":
            carried.made_again(spec, store, work.scratch / AGAIN, train, reporter)
        with team_of(spec["train"]["processes"], "pipeline.train", spec, path / SCRATCH) as team:
            team.gather_json({"finished": isinstance(work, Artifact)})
            if isinstance(work, Work):
                others = OtherWork()
                training = _train(spec, request, work.scratch, work, team, reporter)
                _finish(work, spec, training, store, {"other_work": others.cores()})
        return {"artifact": str(path)}


def _train(spec: Event, request: Request, scratch: Path, work: Work | None, team: Team, reporter: Reporter) -> Training:
    """A rank's part of the training, to the written checkpoint. `work` is given to the leading rank."""
    config, recipe = TrainConfig.model_validate(spec["train"]), request.recipe
    algorithm = resolve(config.algorithm, config.algorithm_args, spec.get("plugins", ()))
    algorithm = unchanged(algorithm, recipe.get("algorithm", {}))
    snapshot_at = scratch / "snapshot"
    goes_on = recipe.get("optimizer_state") == "carry"
    stores = [Store(url) for url in (spec["store"], spec.get("moments")) if url]
    state = carried.state_of(load_artifact(spec["policy"]), *stores) if goes_on else None
    if state is not None:
        state.verify()
    if work is not None:
        parent = verified(spec["policy"])
        if warning := algorithm.warning(config.epochs):
            reporter.note(f"warning: {warning}")
        parts = [Part.opened(places) for places in spec["parts"]]
        work.require_space(training_bytes(parent, parts, config), "training with its resume points")
        snapshot = open_snapshot(snapshot_at, parts, algorithm, parent.id)
        nothing = None if snapshot.live else left_out(parts, snapshot)
        if nothing is not None:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in nothing.items()) or "no completions"
            so = "every gradient is 0" if snapshot.completions else "the weights stay as they are"
            reporter.note(f"{algorithm.name} has nothing to train on ({counts}): {so}")
        if (likely := likelihood_of_pairs(snapshot)) and likely.warning:
            reporter.note(f"warning: {likely.warning}")
    team.wait_for_all()
    if work is None:
        parent, snapshot, nothing = load_artifact(spec["policy"]), reopened(snapshot_at), None
    training = Training(
        parent=parent,
        snapshot=snapshot,
        algorithm=algorithm,
        config=config,
        recipe=recipe,
        trust_remote_code=spec["trust_remote_code"],
        team=team,
        reporter=reporter,
        scratch=scratch,
        nothing=nothing,
        state=state,
    )
    with memory_kept():
        training.run(work)
    if config.carries:
        training.leave_moments(scratch / carried.DIRECTORY)
    training.forget_moments()
    trusted: bool = spec["trust_remote_code"]
    export(training.policy, parent.path, scratch.parent, scratch, config.lora, team, trust_remote_code=trusted)
    return training


def _finish(work: Work, spec: Event, training: Training, store: Store, notes: Event) -> None:
    """Write the tables and the manifest. The optimizer's moments first: what is finished can be gone on from."""
    metrics = training.records.metrics_frame()
    work.write_table("metrics.parquet", metrics, Metrics)
    work.write_table("timing.parquet", training.records.timing_frame(), Timing)
    if training.config.carries:
        carried.keep(store, work.request, work.scratch / carried.DIRECTORY, training.optimizer_steps)
    work.finish(_summary(metrics, training), outside_id=("timing.parquet",), notes=_notes(spec, training) | notes)
    if training.config.carries:
        carried.forget(training.parent, store)


def _notes(spec: Event, training: Training) -> dict[str, Any]:
    """How the work was done: settings and surroundings that change the result by rounding at most."""
    timing, likely = training.records.timing_frame(), likelihood_of_pairs(training.snapshot)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "parameters": training.parameters,
        "trained_parameters": training.trained_parameters,
        "settings": {name: spec["train"][name] for name in sorted(WORK_SETTINGS | GUARDS)},
        "attention": training.policy.attention,
        "memory": _memory(training),
        "packing": training.packing.shares() | {"passes": training.packing.passes},
        "ranks": training.records.ranks,
        **({} if training.state is None else {"optimizer_state": training.state.id}),
        **({} if likely is None else {"reference_logprobs_of_pairs": asdict(likely)}),
        "seconds": {"steps": float(timing["seconds"].sum()), "waiting_for_data": float(timing["data_seconds"].sum())},
    }


def _memory(training: Training) -> dict[str, Any]:
    """What was chosen for the memory there was, and the most that this process has taken."""
    on_gpu = training.team.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {**(training.fit.to_json() if training.fit else {}), "peak": peak}


def _summary(metrics: pl.DataFrame, training: Training) -> dict[str, Any]:
    last = metrics.filter(pl.col("epoch") == pl.col("epoch").max())
    names = ("kl_behavior", "entropy", "clip_fraction_positive", "clip_fraction_negative", "ess", "grad_norm")
    first = metrics.row(0, named=True) if len(metrics) else dict.fromkeys(metrics.columns)
    snapshot = training.snapshot
    return {
        "iteration": training.iteration,
        "steps": len(metrics),
        "epochs": training.config.epochs,
        "completions": snapshot.completions,
        "computed": snapshot.live,
        "left_out": snapshot.completions - snapshot.live,
        "tokens": int(metrics["tokens"].sum()),
        **{name: last[name].mean() for name in names},
        "logprob_difference_mean": first["logprob_difference_mean"],
        "logprob_difference_max": first["logprob_difference_max"],
        **({} if training.state is None else {"optimizer_steps": training.optimizer_steps}),
        **({} if training.nothing is None else {"nothing_to_train": training.nothing}),
    }
