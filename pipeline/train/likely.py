"""How likely preferred and rejected completions are under the reference, before anything is trained.

A margin against a reference is also a penalty for leaving it: preferred answers that the reference hardly knows, such as those
that another model wrote, are not learned that way. Source: OPA-DPO, arXiv:2501.09695.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.train.snapshot import TrainingCompletion, TrainingSnapshot

FAR = 0.5
"""Nats per token that the preferred may lie below the rejected ones before that is told."""


@dataclass(frozen=True)
class PairLikelihood:
    """Mean over pairs, ties apart, of a completion's mean reference logprob per token, in nats."""

    chosen: float
    rejected: float

    @property
    def warning(self) -> str | None:
        """What is told if the preferred completions are far less likely than the rejected ones."""
        if self.chosen >= self.rejected - FAR:
            return None
        return (
            f"the reference gives preferred completions {self.chosen:.2f} nats a token and rejected ones {self.rejected:.2f}; "
            "what it hardly knows is not learned by a margin against it. Train on the preferred ones first (sft, raft, "
            "best-of-n), and make that checkpoint the reference, as the recipe opa-dpo does"
        )


def likelihood_of_pairs(snapshot: TrainingSnapshot) -> PairLikelihood | None:
    """The figures of a snapshot; None without pairs or without the logprobs of a reference."""
    found: list[tuple[float, float]] = []
    for number in range(len(snapshot.groups)):
        group = snapshot[number]
        by_index = {completion.sample_index: completion for completion in group.completions}
        for chosen, rejected, preference in group.pairs:
            if preference != 0.5 and chosen in by_index and rejected in by_index:
                found.append((_mean(by_index[chosen]), _mean(by_index[rejected])))
    values = np.array(found).reshape(-1, 2)
    values = values[np.isfinite(values).all(axis=1)]
    return PairLikelihood(*values.mean(axis=0).tolist()) if len(values) else None


def _mean(completion: TrainingCompletion) -> float:
    """NaN where nothing is known."""
    logprobs = completion.reference if completion.reference is not None else completion.proximal
    if logprobs is None or not completion.mask.any():
        return float("nan")
    return float(logprobs[completion.mask].mean(dtype=np.float64))
