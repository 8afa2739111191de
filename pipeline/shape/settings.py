"""What the `shape` settings ask for, as cells; and what they cannot ask of an algorithm that declares it itself.

Filters of both compose: each sees what those before it kept. What an algorithm decides itself (row weights, the mix of
classes, what counts as solved) is refused as a setting, so that nothing is applied twice or overruled in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.algorithms import Algorithm
from pipeline.algorithms.algorithm import cells_of
from pipeline.algorithms.cells.advantages import Constant, Signed
from pipeline.algorithms.cells.shaping import (
    AnnaKarenina,
    BalanceNegatives,
    BalancePositives,
    BestOfN,
    ClassWeights,
    Filter,
    OnlySolved,
    PassRate,
    Uniform,
    ZeroVariance,
)
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.preference import Preference, UnpairedPreference
from pipeline.common.errors import UserError
from pipeline.config.environment import EnvironmentConfig
from pipeline.config.shape import ShapeConfig
from pipeline.shape.credit import has_credits
from pipeline.shape.labels import check_labels


def filters_on_grades(choices: ShapeConfig) -> tuple[Filter, ...]:
    """Filters that judge rewards as they were graded, before the algorithm changes them."""
    found: list[Filter] = []
    if choices.pass_rate is not None:
        low, high = choices.pass_rate
        found.append(PassRate(low=low, high=high, solved_at=choices.solved_at))
    if choices.anna_karenina:
        found.append(AnnaKarenina(solved_at=choices.solved_at))
    return tuple(found)


def filters_on_rewards(choices: ShapeConfig, algorithm: Algorithm) -> tuple[Filter, ...]:
    """Filters that judge the algorithm's rewards, in order: whole groups, the algorithm's own, classes within groups."""
    groups: tuple[Filter, ...] = (ZeroVariance(),) if choices.zero_variance == "drop" else ()
    classes: dict[str, tuple[Filter, ...]] = {
        "drop_negatives": (BalanceNegatives(),),
        "drop_surplus": (BalanceNegatives(), BalancePositives()),
    }
    return (*groups, *algorithm.filters, *classes.get(choices.class_balance, ()))


def draws(choices: ShapeConfig, algorithm: Algorithm) -> bool:
    """Whether shaping draws random numbers."""
    by_class = choices.positive_fraction is not None and choices.positive_fraction_by == "drop"
    return by_class or any(cell.seeded for cell in filters_on_rewards(choices, algorithm))


def class_weights(choices: ShapeConfig) -> ClassWeights | None:
    """Weights of the classes, if the settings give any."""
    weights = ClassWeights(positive=choices.positive_weight, negative=choices.negative_weight)
    return None if weights == ClassWeights() else weights


def check_shape(choices: ShapeConfig, algorithm: Algorithm) -> None:
    """Raise if a setting contradicts what the algorithm declares.

    Raises:
        DataError: `labels` is no file of labels.
        UserError: names the setting, what the algorithm does itself, and the remedy.
    """
    for setting, why in _clashes(choices, algorithm):
        raise UserError(f"shape.{setting}: {algorithm.name} {why}")
    if choices.labels is not None:
        check_labels(Path(choices.labels))


def check_history(environment: EnvironmentConfig | None, algorithm: Algorithm) -> None:
    """
    Raises:
        UserError: episodes of several rows, and an algorithm that takes completions whole.
    """
    if environment and environment.history == "rendered" and not isinstance(algorithm, PolicyGradient):
        raise UserError(
            f'environment.history: {algorithm.name} takes completions whole, and "rendered" makes several rows of an episode. '
            'Use history: "drawn", or a policy gradient, such as grpo'
        )


def _clashes(choices: ShapeConfig, algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if has_credits(choices) and not isinstance(algorithm, PolicyGradient):
        setting = "credit" if choices.credit == "turn" else "void_turns"
        yield setting, "takes completions whole, so that turns have no part of their own. Use a policy gradient, such as grpo"
    if choices.labels is not None and not isinstance(algorithm, Preference):
        yield "labels", "learns from rewards, not from pairs that were compared. Use a method on pairs, such as ipo or dpo"
    fraction = choices.positive_fraction is not None
    by_weight = fraction and choices.positive_fraction_by == "weight"
    balance = choices.class_balance != "keep"
    if class_weights(choices) is not None or by_weight:
        setting = "positive_fraction" if by_weight else "positive_weight and negative_weight"
        if why := _own_weights(algorithm):
            yield setting, why + ("; or set positive_fraction_by: drop" if by_weight and _has_classes(algorithm) else "")
    if (fraction or balance) and not _has_classes(algorithm):
        setting = "positive_fraction" if fraction else "class_balance"
        yield setting, "learns from chosen completions alone, so there are no classes to balance. Leave it out"
    if fraction and isinstance(algorithm, Preference):
        yield "positive_fraction", "compares pairs, in which the classes are equal already. Leave it out"
    if fraction or balance or choices.anna_karenina:
        setting = "positive_fraction" if fraction else "class_balance" if balance else "anna_karenina"
        if any(isinstance(cell, BalanceNegatives | BalancePositives) for cell in algorithm.filters):
            yield setting, "decides itself how many completions of each class stay. Leave it out"
    if choices.anna_karenina and any(isinstance(cell, BestOfN) for cell in algorithm.filters):
        yield "anna_karenina", "keeps one completion of each group itself. Leave it out"
    if choices.pass_rate is not None and any(isinstance(cell, PassRate) for cell in algorithm.filters):
        yield "pass_rate", "has a band of its own. Change that, in train.algorithm_args, and leave this out"
    if choices.pass_rate is not None or choices.anna_karenina:
        for slot, place, cell in cells_of(algorithm, algorithm.shaping_cells):
            if (own := getattr(cell, "solved_at", choices.solved_at)) != choices.solved_at:
                name = f"{slot}.solved_at" if place is None else f"{slot}.{place}.solved_at"
                yield (
                    "solved_at",
                    f"counts rewards from {own:g} as solved ({name}), not from {choices.solved_at:g}. Set both alike",
                )


def _own_weights(algorithm: Algorithm) -> str | None:
    """What decides how heavily a completion counts, if it is the algorithm."""
    if isinstance(algorithm, Preference):
        return "compares pairs and has no weights of completions. Leave it out"
    if isinstance(algorithm, UnpairedPreference):
        return "weighs the classes itself. Set `desirable` and `undesirable` in train.algorithm_args"
    if not isinstance(algorithm.weighting, Uniform):
        return f"weighs completions itself ({type(algorithm.weighting).__name__}). Leave it out"
    if isinstance(algorithm.advantage, Signed) and algorithm.advantage.positive != algorithm.advantage.negative:
        return "weighs the classes itself. Set `positive` and `negative` in train.algorithm_args"
    if not _has_classes(algorithm):
        return "learns from chosen completions alone and has no classes to weigh. Leave it out"
    return None


def _has_classes(algorithm: Algorithm) -> bool:
    """Whether an algorithm tells good completions from bad ones after its filters."""
    one_sided = any(isinstance(cell, OnlySolved | BestOfN) for cell in algorithm.filters)
    return not one_sided and not isinstance(algorithm.advantage, Constant)
