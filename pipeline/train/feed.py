"""What each optimizer step reads: its groups, cut into rows, dealt to the ranks, and laid out as tensors ahead of time.

Which groups make a step follows from lengths and the seed; how its completions are dealt follows from those, the tokens and the
number of ranks. So every rank knows what the others do, and nothing has to be exchanged.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from copy import copy
from dataclasses import dataclass, field

from pipeline.algorithms.tokens import Totals
from pipeline.common.ahead import ahead
from pipeline.config.train import TrainConfig
from pipeline.train.batch import Batch, Flat, collate, flatten
from pipeline.train.plan import CostModel, Packing, deal, packing, runs, steps_of_epoch
from pipeline.train.snapshot import TrainingCompletion, TrainingSnapshot
from pipeline.train.team import Team
from pipeline.train.tree import Branch, PackedRow


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward pass of a rank."""

    batch: Batch
    idle: bool
    """Whether the rank only keeps the others company: weights are gathered by all ranks together, so all make as many passes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step as one rank sees it."""

    number: int
    epoch: int
    groups: int
    completions: list[TrainingCompletion]
    """Of the whole step, dead ones too."""
    totals: Totals
    """Sizes of the whole step: of all its completions, or of the live ones."""
    passes: list[Pass]
    """This rank's share."""
    whole: Flat | None
    """All tokens of the step that are computed, in order of ranks and passes, for losses that need them at once."""
    start: int
    """Where this rank's tokens start in `whole`."""
    packing: Packing = field(default_factory=Packing)
    """How the rows of all ranks are packed."""

    @property
    def tokens(self) -> int:
        """Completion tokens that carry loss and are computed."""
        return sum(int(completion.mask.sum()) for completion in self.completions if completion.live)


class Feed:
    """The steps of a training, in order."""

    def __init__(
        self, snapshot: TrainingSnapshot, config: TrainConfig, seed: int, cost: CostModel, team: Team, *, whole_step: bool
    ) -> None:
        self._snapshot, self._config, self._cost, self._team, self._whole_step = snapshot, config, cost, team, whole_step
        sizes, per_step = snapshot.sizes, config.batch_completions
        if config.batch_tokens is not None:
            sizes, per_step = snapshot.tokens_of_groups, config.batch_tokens
        self.plan: list[tuple[int, list[int]]] = [
            (epoch, groups)
            for epoch in range(config.epochs)
            for groups in steps_of_epoch(snapshot.groups, sizes, per_step, seed, epoch)
        ]
        """Epoch and groups of every step. There is none if nothing is kept."""

    def with_budget(self, config: TrainConfig) -> Feed:
        """The same steps, cut into passes as other settings say."""
        other = copy(self)
        other._config = config
        return other

    def steps(self, start: int) -> Generator[Step]:
        """Every step from a number on. The next one is read and laid out in a thread while the caller works on the last."""
        return ahead(self._step(number) for number in range(start, len(self.plan)))

    def rows(self, group: int) -> list[PackedRow]:
        """Completions of one group, dead ones too, as many as one pass takes."""
        row = PackedRow.of(self._snapshot[group], self._snapshot[group].completions)
        return runs(row, 1, self._config.pass_tokens)[:1]

    def _step(self, number: int) -> Step:
        epoch, numbers = self.plan[number]
        groups = [self._snapshot[group] for group in numbers]
        completions = [completion for group in groups for completion in group.completions]
        shares = deal(groups, self._team.size, self._config.pass_tokens, self._cost)
        rows = [row for share in shares for part in share for row in part]
        if not rows:  # A step without a gradient still lets the optimizer decay.
            shares = [[[]] for _ in shares]
        own, device = shares[self._team.rank], self._team.device
        shortest = min((Branch(group, group.completions[0]) for group in groups), key=lambda branch: branch.length)
        idle = [PackedRow([shortest], [0])]
        before = [row for share in shares[: self._team.rank] for part in share for row in part]
        return Step(
            number=number,
            epoch=epoch,
            groups=len(groups),
            completions=completions,
            totals=_totals([c for c in completions if c.live or self._config.denominator == "all"]),
            passes=[Pass(batch=collate(part or idle, device), idle=not part) for part in own],
            whole=flatten(rows, device) if self._whole_step and rows else None,
            start=sum(len(completion.tokens) for row in before for completion in row.completions),
            packing=packing([part for share in shares for part in share], self._cost),
        )


def _totals(completions: Sequence[TrainingCompletion]) -> Totals:
    return Totals(tokens=float(sum(int(c.mask.sum()) for c in completions)), sequences=float(len(completions)))
