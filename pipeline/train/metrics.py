"""Figures of an optimizer step, over all of its tokens whatever the micro-batches were."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithms.cells.drift import bounded_exp
from pipeline.algorithms.tokens import Loss, Tokens
from pipeline.train.snapshot import TrainingCompletion
from pipeline.train.team import Team
from schemas.metrics import QUANTILES


@dataclass
class StepRecord:
    """Collects what every chunk of a step saw. Dead completions are not computed, so it sees none of them."""

    has_behavior: bool
    iteration: int = 0
    """Version of the policy that training started from."""
    loss: float = 0.0
    _columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, tokens: Tokens, loss: Loss, completions: list[TrainingCompletion]) -> None:
        self.loss += float(loss.value.detach())
        log_ratio = tokens.logprobs.detach() - tokens.behavior if tokens.behavior is not None else tokens.logprobs.detach() * 0
        kept = tokens.mask
        self._append("log_ratio", log_ratio[kept])
        self._append("entropy", tokens.entropy.detach()[kept])
        self._append("advantage", tokens.advantages[kept])
        self._append("stopped", loss.stopped[kept])
        self._append("sequence_log_ratio", tokens.per_sequence(log_ratio))
        from_parent = torch.tensor([c.from_parent for c in completions], device=kept.device)
        self._append("from_parent", tokens.per_token(from_parent)[kept])

    def _append(self, name: str, values: Tensor) -> None:
        self._columns.setdefault(name, []).append(values.cpu())

    def of_all_ranks(self, team: Team) -> StepRecord:
        """What all ranks saw together. Every rank must ask."""
        if team.size == 1:
            return self
        columns = {name: [team.gather(self._column(name))] for name in _COLUMNS}
        return StepRecord(self.has_behavior, self.iteration, team.sum(self.loss), columns)

    def _column(self, name: str) -> Tensor:
        return torch.cat([torch.zeros(0, dtype=_COLUMNS[name]), *self._columns.get(name, ())])

    def row(self, groups: int, completions: list[TrainingCompletion]) -> dict[str, Any]:
        """The step's row of the metrics table, less what the caller knows (step, epoch, grad_norm, learning_rate).

        Args:
            completions: of the whole step, dead ones too.
        """
        columns = {name: self._column(name).double() for name in _COLUMNS}
        rewards = [c.reward for c in completions if not math.isnan(c.reward)]
        ages = [self.iteration - c.policy_version for c in completions]
        count, computed = len(completions), sum(c.live for c in completions)
        advantage, stopped = columns["advantage"], columns["stopped"]
        return {
            "groups": groups,
            "completions": count,
            "computed": computed,
            "left_out": count - computed,
            "tokens": sum(int(c.mask.sum()) for c in completions),
            "loss": self.loss,
            "reward_mean": sum(rewards) / len(rewards) if rewards else None,
            "advantage_mean": sum(c.advantage for c in completions) / count,
            "completion_tokens_mean": sum(len(c.tokens) for c in completions) / count,
            "age_mean": sum(ages) / count,
            "age_max": max(ages),
            "entropy": _mean(columns["entropy"]),
            "clip_fraction_positive": _mean(stopped[advantage > 0]),
            "clip_fraction_negative": _mean(stopped[advantage < 0]),
            **(self._ratio_figures(columns) if self.has_behavior and computed else _NO_RATIO),
            "logprob_difference_mean": None,
            "logprob_difference_max": None,
        }

    def _ratio_figures(self, columns: dict[str, Tensor]) -> dict[str, float | None]:
        log_ratio = columns["log_ratio"].clamp(-20, 20)
        ratio = log_ratio.exp()
        quantiles = torch.quantile(_sample(ratio), torch.tensor(QUANTILES, dtype=ratio.dtype))
        log_weight = columns["sequence_log_ratio"]
        weight = bounded_exp(log_weight - log_weight.max())
        return {
            "kl_behavior": float((ratio - 1 - log_ratio).mean()),
            **{f"ratio_q{round(100 * q):02d}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
            "ratio_max": float(ratio.max()),
            "ess": float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())),
        }

    def logprob_difference(self) -> tuple[float, float] | None:
        """Mean and largest |trainer - stored| logprob of what the policy that training starts from drew; None if it drew none."""
        log_ratio, from_parent = (self._column(name) for name in ("log_ratio", "from_parent"))
        difference = log_ratio[from_parent].double().abs()
        return (float(difference.mean()), float(difference.max())) if len(difference) else None


_COLUMNS = {
    "log_ratio": torch.float32,
    "entropy": torch.float32,
    "advantage": torch.float32,
    "stopped": torch.bool,
    "sequence_log_ratio": torch.float32,
    "from_parent": torch.bool,
}
"""What is kept of every token that is computed and counts; of every completion, the log ratio."""

_NO_RATIO: dict[str, float | None] = dict.fromkeys(
    ("kl_behavior", "ratio_max", "ess", *(f"ratio_q{round(100 * q):02d}" for q in QUANTILES))
)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _sample(values: Tensor, limit: int = 1 << 23) -> Tensor:
    """Every n-th value, so that torch.quantile (at most 16M elements) can take it."""
    return values[:: -(-len(values) // limit)]
