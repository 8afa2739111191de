"""The train stage: N epochs over a frozen snapshot, resumable at any saved step."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.tokens import Loss, Tokens, Totals
from pipeline.artifacts import Artifact, Request, Store, Work
from pipeline.artifacts.store import verified
from pipeline.base_model import model_files
from pipeline.config import TrainConfig
from pipeline.errors import StageFailed, UserError
from pipeline.process import Event, Reporter
from pipeline.train import resume
from pipeline.train.batch import Batch, collate, flatten
from pipeline.train.metrics import StepRecord
from pipeline.train.model import Policy
from pipeline.train.plan import Row, micro_batches, rows_of, steps_of_epoch
from pipeline.train.snapshot import Completion, Snapshot, open_snapshot
from schemas import Metrics, Timing


def train(spec: Event, reporter: Reporter) -> Event:
    """Make the checkpoint artifact of a spec, going on from the last resume point.

    Args:
        spec: store, request, policy, rollouts, shaped (paths of artifacts), scores (paths by role), train (a TrainConfig),
            trust_remote_code.

    Returns:
        {"artifact": path}.

    Raises:
        UserError: the algorithm cannot train on these rollouts, or the stored logprobs are not the trainer's.
        StageFailed: a loss or gradient became infinite or NaN.
    """
    request = Request.from_json(spec["request"])
    with Store(spec["store"]).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        run = _Training(spec, work, reporter)
        run.train()
        return {"artifact": str(run.finish().path)}


class _Training:
    def __init__(self, spec: Event, work: Work, reporter: Reporter) -> None:
        self.spec, self.work, self.reporter = spec, work, reporter
        self.config = TrainConfig.model_validate(spec["train"])
        self.recipe = work.request.recipe
        self.algorithm: Algorithm = resolve(self.config.algorithm, self.config.algorithm_args)
        self.parent = verified(spec["policy"])
        torch.use_deterministic_algorithms(True, warn_only=True)
        if warning := self.algorithm.warning(self.config.epochs):
            reporter.note(f"warning: {warning}")
        scores = {role: verified(path) for role, path in spec["scores"].items()}
        self.snapshot: Snapshot = open_snapshot(
            work.scratch / "snapshot", verified(spec["rollouts"]), verified(spec["shaped"]), scores, self.algorithm
        )
        self.policy = Policy(
            self.parent.path,
            self.recipe["dtype"],
            trust_remote_code=spec["trust_remote_code"],
            activation_checkpointing=self.config.activation_checkpointing,
        )
        self.cost = self.policy.cost_model()
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters.values(),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            eps=self.config.adam_epsilon,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self.plan = [
            (epoch, groups)
            for epoch in range(self.config.epochs)
            for groups in steps_of_epoch(
                self.snapshot.groups, self.snapshot.sizes, self.config.batch_completions, self.recipe["seed"], epoch
            )
        ]
        self.rate = learning_rate(self.config, len(self.plan))

    def train(self) -> None:
        done, self.records = resume.load(self.work.scratch, self.policy.parameters, self.optimizer)
        if done == 0:
            self._self_check()
        tokens, started = 0, time.monotonic()
        for step in range(done, len(self.plan)):
            row = self._step(step)
            self.records.metrics.append(row)
            tokens += row["tokens"]
            speed = tokens / (time.monotonic() - started)
            self.reporter.progress(step + 1, len(self.plan), "steps", tokens_per_second=speed, loss=row["loss"])
            if (step + 1) % self.config.save_every_steps == 0 and step + 1 < len(self.plan):
                resume.save(self.work.scratch, step + 1, self.policy.parameters, self.optimizer, self.records)

    def _self_check(self) -> None:
        group = self.snapshot[self.plan[0][1][0]]
        with torch.no_grad():
            self.policy.self_check(collate(rows_of(group, self.cost), self.policy.device))

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step. Returns its row of the metrics table."""
        started = time.monotonic()
        epoch, numbers = self.plan[step]
        groups = [self.snapshot[number] for number in numbers]
        completions = [completion for group in groups for completion in group.completions]
        totals = Totals(tokens=float(sum(int(c.mask.sum()) for c in completions)), sequences=float(len(completions)))
        rows = [row for group in groups for row in rows_of(group, self.cost)]
        parts = micro_batches(rows, self.config.tokens_per_micro_batch)
        waited = time.monotonic() - started
        record = StepRecord(self.snapshot.has_behavior)
        if self.algorithm.whole_step:
            self._accumulate_whole(step, parts, totals, record)
        else:
            for part in parts:
                self._accumulate(step, collate(part, self.policy.device), totals, record)
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters.values(), self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise StageFailed(self._not_finite(step, "gradient norm", norm, completions))
        row = record.row(len(groups))
        if step == 0 and self.snapshot.has_behavior and self.config.check_logprobs:
            row["logprob_difference_mean"], row["logprob_difference_max"] = self._check_difference(record)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - started
        self.records.timing.append(
            {"step": step, "seconds": seconds, "tokens_per_second": row["tokens"] / seconds, "data_seconds": waited}
        )
        return {"step": step, "epoch": epoch, "grad_norm": norm, "learning_rate": self.rate(step), **row}

    def _accumulate(self, step: int, batch: Batch, totals: Totals, record: StepRecord) -> None:
        """Add the gradient of one micro-batch."""
        tokens = batch.flat.tokens(*self.policy.logprobs(batch), self.recipe["iteration"])
        loss = self._loss(step, tokens, totals, batch.flat.completions)
        torch.autograd.backward(loss.value)
        record.add(tokens, loss, batch.flat.completions)

    def _accumulate_whole(self, step: int, parts: list[list[Row]], totals: Totals, record: StepRecord) -> None:
        """Add the gradient of a loss that needs all tokens of the step at once, in two passes.

        The first pass computes every logprob without a graph; the loss over all of them gives the derivative by each
        logprob and entropy; the second pass carries those derivatives back through the model, micro-batch by micro-batch.
        """
        whole = flatten([row for part in parts for row in part], self.policy.device)
        with torch.no_grad():
            passes = [self.policy.logprobs(collate(part, self.policy.device)) for part in parts]
        logprobs, entropy = (torch.cat(columns).requires_grad_() for columns in zip(*passes, strict=True))
        tokens = whole.tokens(logprobs, entropy, self.recipe["iteration"])
        loss = self._loss(step, tokens, totals, whole.completions)
        by_logprob, by_entropy = torch.autograd.grad(loss.value, (logprobs, entropy), allow_unused=True, materialize_grads=True)
        record.add(tokens, loss, whole.completions)
        start = 0
        for part in parts:
            outputs = self.policy.logprobs(collate(part, self.policy.device))
            here = slice(start, start + len(outputs[0]))
            torch.autograd.backward(outputs, (by_logprob[here], by_entropy[here]))
            start = here.stop

    def _loss(self, step: int, tokens: Tokens, totals: Totals, completions: list[Completion]) -> Loss:
        loss = self.algorithm.loss(tokens, totals)
        value = float(loss.value.detach())
        if not math.isfinite(value):
            raise StageFailed(self._not_finite(step, "loss", value, completions))
        return loss

    def _not_finite(self, step: int, what: str, value: float, completions: list[Completion]) -> str:
        rows = ", ".join(f"{c.group_id} sample {c.sample_index}" for c in completions[:8])
        more = f" and {len(completions) - 8} more" if len(completions) > 8 else ""
        return (
            f"step {step}: the {what} is {value}, in a batch of these completions: {rows}{more}. The step was not taken; "
            f"the checkpoint before this training ({self.parent.path}) and the last resume point are kept. A lower "
            "learning rate or a smaller max_grad_norm may help"
        )

    def _check_difference(self, record: StepRecord) -> tuple[float, float]:
        mean, largest = record.logprob_difference()
        if mean > self.config.max_logprob_difference:
            raise UserError(
                f"the trainer's logprobs differ from the stored ones by {mean:.4f} nats per token on average (largest "
                f"{largest:.4f}), more than train.max_logprob_difference={self.config.max_logprob_difference}. Likely causes: "
                "the rollouts are not from this checkpoint; they hold raw logprobs at a temperature other than 1; the text was "
                "tokenised again; engine and trainer use other number formats or model code"
            )
        return mean, largest

    def finish(self) -> Artifact:
        """Write the model as a Hugging Face directory, the metrics, and the manifest."""
        with tempfile.TemporaryDirectory(dir=self.work.scratch) as building:
            model: Any = self.policy.model
            model.config.use_cache = True
            model.save_pretrained(building, safe_serialization=True)
            self._copy_tokenizer(Path(building))
            for path in Path(building).iterdir():
                path.replace(self.work.path / path.name)
        metrics = self.records.metrics_frame()
        self.work.write_table("metrics.parquet", metrics, Metrics)
        self.work.write_table("timing.parquet", self.records.timing_frame(), Timing)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        notes = {"device": device, "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in model.parameters())}
        return self.work.finish(self._summary(metrics), outside_id=("timing.parquet",), notes=notes)

    def _copy_tokenizer(self, building: Path) -> None:
        """What the parent has beside its weights: tokenizer, chat template, generation settings, code."""
        for name, path in model_files(self.parent.path, trust_remote_code=self.spec["trust_remote_code"]).items():
            weights = name.endswith((".safetensors", ".safetensors.index.json"))
            if not weights and name not in ("manifest.json", "config.json"):
                shutil.copyfile(path, building / name)

    def _summary(self, metrics: pl.DataFrame) -> dict[str, Any]:
        last = metrics.filter(pl.col("epoch") == metrics["epoch"].max())
        names = ("kl_behavior", "entropy", "clip_fraction_positive", "clip_fraction_negative", "ess", "grad_norm")
        first = metrics.row(0, named=True)
        return {
            "iteration": self.recipe["iteration"],
            "steps": len(metrics),
            "epochs": self.config.epochs,
            "completions": self.snapshot.completions,
            "tokens": int(metrics["tokens"].sum()),
            **{name: last[name].mean() for name in names},
            "logprob_difference_mean": first["logprob_difference_mean"],
            "logprob_difference_max": first["logprob_difference_max"],
        }


def learning_rate(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """The learning rate of each step: linear warm-up, then the schedule, which ends at 0 after the last step."""

    def rate(step: int) -> float:
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        share = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
        return config.learning_rate * factor[config.schedule]

    return rate
