"""One optimizer step: the gradient of its loss, added up over passes and ranks, and the update.

Denominators, statistics of the whole step and metrics do not depend on how the step was cut or on the number of ranks.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.algorithms import Algorithm
from pipeline.algorithms.tokens import Loss, Tokens
from pipeline.common.errors import StageFailed
from pipeline.config.train import TrainConfig
from pipeline.train.aside import AdamWAside
from pipeline.train.feed import Step
from pipeline.train.metrics import StepRecord
from pipeline.train.model import Policy
from pipeline.train.snapshot import TrainingCompletion
from pipeline.train.team import Team


class Stepper:
    """Takes optimizer steps. With several ranks, all of them take each step together."""

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        config: TrainConfig,
        iteration: int,
        team: Team,
        rate: Callable[[int], float],
        scratch: Path | None = None,
    ) -> None:
        """
        Args:
            iteration: version of the policy that is being made.
            rate: learning rate of each step.
            scratch: where moments go that are offloaded from a CPU; by default where the system has temporary files.
        """
        self.policy, self.algorithm, self.config, self.iteration, self.team = policy, algorithm, config, iteration, team
        self.rate = rate
        masters = policy.parameters.values()
        settings: dict[str, Any] = {
            "lr": config.learning_rate,
            "betas": config.betas,
            "eps": config.adam_epsilon,
            "weight_decay": config.weight_decay,
        }
        if config.offload_optimizer is True:
            self.optimizer: torch.optim.AdamW = AdamWAside(masters, scratch or Path(tempfile.gettempdir()), **settings)
        else:
            self.optimizer = torch.optim.AdamW(masters, fused=True, **settings)

    def gradient(self, step: Step, record: StepRecord) -> tuple[StepRecord, float]:
        """Compute the step's gradient, scaled down to max_grad_norm.

        Args:
            record: an empty one.

        Returns:
            What was seen of the whole step, and the norm of the gradient before scaling.

        Raises:
            StageFailed: the loss or the norm is not finite. The step must not be taken.
        """
        if step.whole is not None:
            suspects = self._accumulate_whole(step, record)
        else:
            suspects = self._accumulate(step, record)
            record = record.of_all_ranks(self.team)
        if not math.isfinite(record.loss):
            named = [name for names in self.team.gather_json(suspects) for name in names]
            raise StageFailed(_not_finite(step.number, "loss", record.loss, named))
        norm: Any = torch.nn.utils.clip_grad_norm_(self.policy.parameters.values(), self.config.max_grad_norm)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(value):
            raise StageFailed(_not_finite(step.number, "gradient norm", value, names_of(step.completions)))
        return record, value

    def update(self, step: int) -> None:
        """Take the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.masters.refresh()

    def _accumulate(self, step: Step, record: StepRecord) -> list[str]:
        """Add the gradient of every pass. Returns completions of chunks whose loss is not finite.

        Vocabulary projection and loss run forward and backward chunk by chunk, on hidden states that are cut off from the
        model: so there are never more logits than those of a chunk. What all chunks give goes back through the model once.
        """
        suspects: list[str] = []
        for one in step.passes:
            cut = self.policy.cut(one.batch)
            hidden = self.policy.hidden(one.batch, cut)
            projection = self.policy.projection(hidden, cut)
            for chunk in () if one.idle else cut.chunks:
                flat = one.batch.flat.of(chunk)
                logprobs, entropy = projection(chunk)
                tokens = flat.tokens(logprobs, entropy, self.iteration)
                loss = self.algorithm.loss(tokens, step.totals)
                if loss.value.requires_grad:
                    torch.autograd.backward(loss.value)
                record.add(tokens, loss, flat.completions)
                if not math.isfinite(loss.value.detach()):
                    suspects.extend(names_of(flat.completions))
            projection.backward(hidden)
        return suspects

    def _accumulate_whole(self, step: Step, record: StepRecord) -> list[str]:
        """Add the gradient of a loss that needs all tokens of the step at once, in two passes over them.

        The first computes every logprob without a graph; the loss over those of all ranks gives the derivative by each
        logprob and entropy; the second carries these derivatives back through the model, pass by pass.
        """
        assert step.whole is not None
        outputs = [self.policy.logprobs(one.batch) for one in step.passes]
        kept = [pair for pair, one in zip(outputs, step.passes, strict=True) if not one.idle]
        logprobs, entropy = (self._of_all_ranks(values).requires_grad_() for values in (_column(kept, 0), _column(kept, 1)))
        tokens, loss = self._whole_loss(step, logprobs, entropy)
        derivatives = torch.autograd.grad(loss.value, (logprobs, entropy), allow_unused=True, materialize_grads=True)
        record.add(tokens, loss, step.whole.completions)
        start = step.start
        for one in step.passes:
            cut = self.policy.cut(one.batch)
            hidden = self.policy.hidden(one.batch, cut)
            projection = self.policy.projection(hidden, cut)
            for chunk in () if one.idle else cut.chunks:
                here = slice(start + chunk.tokens.start, start + chunk.tokens.stop)
                torch.autograd.backward(projection(chunk), [values[here] for values in derivatives])
            projection.backward(hidden)
            start += 0 if one.idle else len(one.batch.flat.targets)
        return names_of(step.whole.completions) if self.team.leads else []

    def _of_all_ranks(self, values: Tensor) -> Tensor:
        return values if self.team.size == 1 else self.team.gather(values).to(self.team.device)

    def _whole_loss(self, step: Step, logprobs: Tensor, entropy: Tensor) -> tuple[Tokens, Loss]:
        assert step.whole is not None
        tokens = step.whole.tokens(logprobs, entropy, self.iteration)
        return tokens, self.algorithm.loss(tokens, step.totals)


def _column(pairs: list[tuple[Tensor, Tensor]], place: int) -> Tensor:
    return torch.cat([pair[place] for pair in pairs]) if pairs else torch.zeros(0)


def names_of(completions: list[TrainingCompletion]) -> list[str]:
    return [f"{c.group_id} sample {c.sample_index}" for c in completions]


def _not_finite(step: int, what: str, value: float, completions: list[str]) -> str:
    more = f" and {len(completions) - 8} more" if len(completions) > 8 else ""
    return (
        f"step {step}: the {what} is {value}, in a batch of these completions: {', '.join(completions[:8])}{more}. The step was "
        "not taken; the checkpoint before this training and the last resume point are kept. A lower learning rate or a smaller "
        "max_grad_norm may help"
    )
