"""What every algorithm declares: its name, its paper, and how rollouts are shaped for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pipeline.algorithms.cells.advantages import Advantage, GroupMean
from pipeline.algorithms.cells.shaping import AsIs, Filter, RewardShaping, Uniform, Weighting
from pipeline.algorithms.tokens import Loss, Tokens, Totals


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """A composition of cells. Subclasses are the kernels: they add the cells of their loss."""

    name: str
    summary: str
    """What it is, in a sentence."""
    formula: str
    """Loss of a token or of a completion."""
    paper: str
    """Where it is from."""
    reward: RewardShaping = dataclasses.field(default_factory=AsIs)
    filters: tuple[Filter, ...] = ()
    advantage: Advantage = dataclasses.field(default_factory=GroupMean)
    weighting: Weighting = dataclasses.field(default_factory=Uniform)
    source: str = ""
    """sha256 of the file or the package that declares it, if that is not ours (see `plugins`)."""

    kernel: ClassVar[str] = ""
    loss_cells: ClassVar[tuple[str, ...]] = ()
    """Fields that hold the loss's cells."""
    shaping_cells: ClassVar[tuple[str, ...]] = ("reward", "filters", "advantage", "weighting")
    """Fields that hold the cells of shaping."""

    def replace(self, **changes: Any) -> Self:
        """The same algorithm with other cells."""
        return dataclasses.replace(self, **changes)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns beyond tokens and rewards that its cells read."""
        return tuple(dict.fromkeys((*self.shaping_needs, *_needs(self, self.loss_cells))))

    @property
    def shaping_needs(self) -> tuple[str, ...]:
        """Of these, those that are read before training."""
        return _needs(self, self.shaping_cells)

    @property
    def settled(self) -> tuple[str, ...]:
        """Fields whose cells have no settings here: the loss holds what they say already."""
        return ()

    @property
    def whole_step(self) -> bool:
        """Whether the loss needs every token of the optimizer step at once."""
        return any(cell.whole_step for _, _, cell in cells_of(self, self.loss_cells) if _is_active(cell))

    @property
    def dead_at(self) -> tuple[str, ...]:
        """What makes a completion dead: its loss has no gradient, whatever the policy, and no other completion's reads it.

        Of ADVANTAGE and WEIGHT, which kill where they are 0, and PAIRS, which kills what is in no pair. Dead completions are
        not computed. A kernel that does not say so has none.
        """
        return ()

    @property
    def weighs_tokens(self) -> bool:
        """Whether the loss reads the weights that an expert's revision gives to tokens."""
        return False

    def warning(self, epochs: int) -> str | None:
        """Why these settings may collapse on a frozen snapshot, or None."""
        return None

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        """This part's share of the optimizer step's loss.

        Args:
            tokens: whole sequences of the step, any number of them (all of them if `whole_step`).
            totals: sizes of the whole step. Shares of a partition of the step add up to the loss of the step.
        """
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the loss, as JSON."""
        return {"kernel": self.kernel, **_recipes(self, self.loss_cells)}

    def shaping_recipe(self) -> dict[str, Any]:
        """Everything that decides advantages and weights, as JSON; the seed of draws apart."""
        return _recipes(self, self.shaping_cells)


def cells_of(algorithm: Algorithm, slots: tuple[str, ...] | None = None) -> Iterator[tuple[str, int | None, Any]]:
    """Every cell: its field, its place there if the field holds several, and the cell."""
    for slot in algorithm.shaping_cells + algorithm.loss_cells if slots is None else slots:
        value = getattr(algorithm, slot)
        if isinstance(value, tuple):
            yield from ((slot, place, cell) for place, cell in enumerate(value))
        else:
            yield slot, None, value


def _needs(algorithm: Algorithm, slots: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for _, _, cell in cells_of(algorithm, slots) if _is_active(cell) for n in getattr(cell, "needs", ()))


def _is_active(cell: Any) -> bool:
    """A regularizer with coefficient 0 is not there."""
    return getattr(cell, "coefficient", 1.0) != 0.0


def _recipes(algorithm: Algorithm, slots: tuple[str, ...]) -> dict[str, Any]:
    recipe: dict[str, Any] = {"source": algorithm.source} if algorithm.source else {}
    for slot, place, cell in cells_of(algorithm, slots):
        entry = {"cell": type(cell).__name__, **dataclasses.asdict(cell)}
        if place is None:
            recipe[slot] = entry
        elif _is_active(cell):
            recipe.setdefault(slot, []).append(entry)
    return recipe
