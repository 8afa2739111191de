"""One rank's training: from the last resume point to the last step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pipeline.algorithms import Algorithm
from pipeline.algorithms.tokens import Loss
from pipeline.common.room import resident
from pipeline.config.train import TrainConfig
from pipeline.run.process import Reporter
from pipeline.store import Artifact, Work
from pipeline.train import resume
from pipeline.train.aside import forget
from pipeline.train.batch import collate
from pipeline.train.check import check_difference, make_ready
from pipeline.train.feed import Feed, Step
from pipeline.train.fit import fitted, halved, record, settled
from pipeline.train.memory import give_back
from pipeline.train.metrics import StepRecord
from pipeline.train.model import Policy
from pipeline.train.needs import TrainingFit
from pipeline.train.plan import Packing
from pipeline.train.snapshot import TrainingSnapshot
from pipeline.train.step import Stepper
from pipeline.train.team import Team


class Training:
    """What one rank holds. All ranks call the same methods in the same order."""

    def __init__(
        self,
        *,
        parent: Artifact,
        snapshot: TrainingSnapshot,
        algorithm: Algorithm,
        config: TrainConfig,
        recipe: dict[str, Any],
        trust_remote_code: bool,
        team: Team,
        reporter: Reporter,
        scratch: Path,
        nothing: Mapping[str, int] | None = None,
        state: Artifact | None = None,
    ) -> None:
        """
        Args:
            parent: the checkpoint to start from.
            scratch: where resume points lie.
            recipe: of the checkpoint that is made.
            reporter: told what the user should see; heard from the leading rank only.
            state: moments of the optimizer to go on from.
            nothing: where nothing is trained, how many completions are left out by reason, for the checkpoint's summary.
        """
        torch.use_deterministic_algorithms(True, warn_only=True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which matrix products on a GPU are not
        # It would fill new memory with NaN before use, to show who reads what nobody wrote; that is 2 to 3 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.parent, self.snapshot, self.config, self.team, self.reporter = parent, snapshot, config, team, reporter
        self.fit: TrainingFit | None = None
        """How passes are cut; None where there are none."""
        self.iteration: int = recipe["iteration"]
        self.nothing = nothing
        self.policy = Policy(
            parent.path,
            recipe["dtype"],
            trust_remote_code=trust_remote_code,
            activation_checkpointing=config.activation_checkpointing is True,
            attention=config.attention,
            compiled=config.compile,
            lora=config.lora,
            seed=recipe["seed"] + self.iteration,
            team=team,
        )
        if snapshot.completions:
            make_ready(self.policy, snapshot[0], snapshot.longest, config.attention, reporter.note)
        if self.policy.attention == "alone" and snapshot.live:
            reporter.note(f"one completion a row: {snapshot.times_alone:.1f} times the tokens of rows that share their prompts")
        self._scratch = scratch
        if snapshot.live:
            config, self.fit = fitted(self.policy, config, scratch, team, snapshot.longest, reporter.note)
        cost = self.policy.cost_model()
        self.feed = Feed(snapshot, config, recipe["seed"], cost, team, whole_step=algorithm.whole_step)
        self.state, before = state, state.summary["steps"] if state else 0
        part = (self.iteration - 1, recipe["iterations"]) if "iterations" in recipe else (0, 1)
        rate = learning_rate(config, len(self.feed.plan), before=before, part=part)
        self.optimizer_steps: int = before + len(self.feed.plan)
        """Of the optimizer, over all trainings whose moments went on to the next."""
        self.stepper = Stepper(self.policy, algorithm, config, self.iteration, team, rate, scratch)
        self.records = resume.Records()
        self.packing = Packing()
        """Of the steps that this process took."""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.policy.model.parameters())

    @property
    def trained_parameters(self) -> int:
        return sum(master.numel() for master in self.policy.parameters.values())

    def run(self, work: Work | None) -> None:
        """Take every step that is still to be taken.

        Args:
            work: the leading rank's artifact in the making.

        Raises:
            UserError: a GPU's memory does not hold the longest sequence.
        """
        done, self.records = resume.load(self._scratch, self.policy.parameters, self.stepper.optimizer, self.team)
        if not done and self.state:
            resume.load_moments(self.state.path, self.policy.parameters, self.stepper.optimizer, self.team)
        if done:  # whoever was told of a step may not have heard it
            self.reporter.send("resumed", steps=[self._figures(number) for number in range(done)])
        self.policy.masters.refresh()
        self.records.ranks.append({"from_step": done, "processes": self.team.size})
        print(f"attention: {self.policy.attention}, processes: {self.team.size}, device: {self.team.device}", flush=True)
        started = time.monotonic()
        while not self._take_steps(len(self.records.metrics), work, started):
            self._halve()

    def _take_steps(self, first: int, work: Work | None, started: float) -> bool:
        """Take steps from a number on. False if a GPU's memory ran out in one; it is as if that had not been begun."""
        tokens, total = 0, len(self.feed.plan)
        with closing(self.feed.steps(first)) as steps:
            while True:
                began = time.monotonic()
                step = next(steps, None)
                if step is None:
                    return True
                try:
                    self._take(step, began, time.monotonic() - began)
                except torch.OutOfMemoryError:
                    if self.team.size > 1 or len(self.records.metrics) > step.number:
                        raise  # others wait within an exchange, or the step was taken
                    return False
                tokens += step.tokens
                speed = tokens / (time.monotonic() - started)
                figures = self._figures(step.number)
                self.reporter.progress(step.number + 1, total, "steps", tokens_per_second=speed, figures=figures)
                if (step.number + 1) % self.config.save_every_steps == 0 and step.number + 1 < total:
                    self._save(self._scratch, step.number + 1, work)

    def _halve(self) -> None:
        """Begin the step anew with smaller passes."""
        assert self.fit is not None
        self.fit = halved(self.fit, self.snapshot.longest)
        record(self.fit, self._scratch)
        self.stepper.optimizer.zero_grad(set_to_none=True)
        for parameter in self.policy.model.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()
        self.reporter.note(f"the GPU ran out of memory: the step is begun anew with {self.fit.tokens:,} tokens a pass")
        self.feed = self.feed.with_budget(settled(self.config, self.fit))

    def _take(self, step: Step, began: float, waited: float) -> None:
        """Take a step and record it."""
        record, norm = self.stepper.gradient(step, self._record())
        self.packing += step.packing
        row = record.row(step.groups, step.completions)
        if step.number == 0 and self.snapshot.has_behavior and self.config.check_logprobs:
            row |= self._check_difference(record)
        self.stepper.update(step.number)
        row = {
            "step": step.number,
            "epoch": step.epoch,
            "grad_norm": norm,
            "learning_rate": self.stepper.rate(step.number),
            **row,
        }
        seconds = time.monotonic() - began
        timing = {"seconds": seconds, "tokens_per_second": step.tokens / seconds, "data_seconds": waited}
        if self._is_full_of_holes():
            give_back()
        self.records.metrics.append(row)
        self.records.timing.append({"step": step.number, **timing})

    def _figures(self, number: int) -> dict[str, Any]:
        """The rows of a step that was taken, of both tables."""
        return {**self.records.metrics[number], **self.records.timing[number]}

    def _is_full_of_holes(self) -> bool:
        """Whether this process has more memory between two steps than one should need within."""
        return self.fit is not None and self.team.device.type == "cpu" and resident() > self.fit.bytes

    def leave_moments(self, directory: Path) -> None:
        """Have every rank write its part of what the optimizer knows in the end."""
        resume.save_moments(directory, self.policy.parameters, self.stepper.optimizer, self.team)

    def forget_moments(self) -> None:
        """No step follows: what the optimizer holds makes room for the checkpoint that is written."""
        forget(self.stepper.optimizer)
        give_back()

    def _save(self, scratch: Path, step: int, work: Work | None) -> None:
        point = resume.save(scratch, step, self.policy.parameters, self.stepper.optimizer, self.records, self.team)
        if work is not None:
            work.keep(point)

    def _record(self) -> StepRecord:
        return StepRecord(self.snapshot.has_behavior, self.iteration - 1)

    def _check_difference(self, record: StepRecord) -> dict[str, float]:
        found = check_difference(record, self.config)
        if found is None and any(self.snapshot.from_parent):
            found = check_difference(self._record_of_parent(), self.config)
        if found is None:
            self.reporter.note(
                "the stored logprobs are not compared with the trainer's: no completion is by the policy that training starts "
                f"from (policy_id {self.parent.id[:16]}), or by it alone"
            )
        return found or {}

    def _record_of_parent(self) -> StepRecord:
        """What the model makes of the first group that the parent drew; the snapshot has one."""
        record = self._record()
        first = next(number for _, numbers in self.feed.plan for number in numbers if self.snapshot.from_parent[number])
        batch = collate(self.feed.rows(first), self.team.device)
        tokens = batch.flat.tokens(*self.policy.logprobs(batch), self.iteration)
        record.add(tokens, Loss(value=tokens.logprobs.sum(), stopped=~tokens.mask), batch.flat.completions)
        return record


def learning_rate(config: TrainConfig, steps: int, *, before: int = 0, part: tuple[int, int] = (0, 1)) -> Callable[[int], float]:
    """The learning rate of each step: linear warm-up, then the schedule, which ends at 0 after the last step.

    Args:
        steps: of this training.
        before: steps of earlier trainings that this one goes on from.
        part: number of this training, from 0, and how many there are; all are taken to have as many steps as this one.
    """
    number, trainings = part

    def rate(step: int) -> float:
        if before + step < config.warmup_steps:
            return config.learning_rate * (before + step + 1) / config.warmup_steps
        warmed = config.warmup_steps
        share = min((number * steps + step - warmed) / max(trainings * steps - warmed, 1), 1.0)
        factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
        return config.learning_rate * factor[config.schedule]

    return rate
