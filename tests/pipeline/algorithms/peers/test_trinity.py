"""Losses, gradients and advantages against Trinity-RFT's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.aggregation import TokenMean
from pipeline.algorithms.cells.regularizers import ForwardKL
from pipeline.config.shape import ShapeConfig
from pipeline.shape.choices import finished, shape_rows, shaped_table

MakeStep = Callable[..., Any]
pytestmark = pytest.mark.needs("trinity", "ray", "msgpack", "omegaconf")


@pytest.fixture(scope="module")
def trinity() -> Callable[..., Any]:
    """trinity(module, class, **settings): one of its losses or advantages."""

    def make(module: str, name: str, **settings: Any) -> Any:
        found = getattr(importlib.import_module(f"trinity.algorithm.{module}"), name)
        return found(**{**found.default_args(), **settings})

    return make


def rec(**settings: Any) -> tuple[str, str, dict[str, Any]]:
    return "rec_policy_loss", "RECPolicyLossFn", settings


WIDE = {"epsilon_low": 0.6, "epsilon_high": 2.0}
IS = {"weight": "importance_sampling"}
GSPO_STYLE = {"clip_mode": "gspo-one-side", "epsilon_low": 3e-4, "epsilon_high": 4e-4}
OF_TOKENS = {"importance.level": "token"}
TRINITY: dict[str, tuple[Algorithm, tuple[str, str, dict[str, Any]]]] = {
    "reinforce": (resolve("reinforce"), rec()),
    "rec-oneside-nois": (resolve("rec-oneside-nois"), rec(clip_mode="one-side")),
    "rec-oneside-nois, wide": (resolve("rec-oneside-nois", {"low": 0.6, "high": 2.0}), rec(clip_mode="one-side", **WIDE)),
    "rec-oneside-is": (resolve("rec-oneside-is"), rec(clip_mode="one-side", **IS)),
    "rec-twoside-nois": (resolve("rec-twoside-nois"), rec(clip_mode="two-side")),
    "rec-twoside-is": (resolve("rec-twoside-is"), rec(clip_mode="two-side", **IS)),
    "rec-ring-nois": (resolve("rec-ring-nois"), rec(clip_mode="ring")),
    "rec-ring-is": (resolve("rec-ring-is"), rec(clip_mode="ring", **IS)),
    "rec-gspo-nois": (resolve("rec-gspo-nois"), rec(**GSPO_STYLE)),
    "rec-gspo-is": (resolve("rec-gspo-is"), rec(**GSPO_STYLE, weight="gspo_importance_sampling")),
    "opmd": (resolve("opmd"), rec(regularizer="k2", regularizer_coef=0.1)),
    "asymre": (
        resolve("reinforce").replace(regularizers=(ForwardKL(coefficient=0.1),)),
        rec(regularizer="forward-kl", regularizer_coef=0.1),
    ),
    "ppo, dual clip": (
        resolve("grpo", {"dual": 3.0}).replace(aggregation=TokenMean()),
        ("ppo_policy_loss", "PPOPolicyLossFn", {}),
    ),
    "cispo": (resolve("cispo"), ("cispo_policy_loss", "CISPOPolicyLossFn", {})),
    "topr of tokens": (
        resolve("topr", OF_TOKENS).replace(aggregation=TokenMean()),
        ("topr_policy_loss", "TOPRPolicyLossFn", {}),
    ),
}
"""Its SAPO is not here: it weighs by the objective f(r) itself, where TRL and we take the objective's gradient, r f'(r)."""


@pytest.mark.parametrize("case", TRINITY.values(), ids=TRINITY.keys())
def test_losses_of_trinity(
    case: tuple[Algorithm, tuple[str, str, dict[str, Any]]], seed: int, step: MakeStep, trinity: Callable[..., Any]
) -> None:
    algorithm, (module, name, settings) = case
    some = step(seed, spread=0.4)
    some.assert_same(algorithm, trinity_loss(trinity(f"policy_loss_fn.{module}", name, **settings), some))


def trinity_loss(loss: Any, step: Any, rows: tuple[int, ...] | None = None) -> Tensor:
    """The value of one of its losses on some rows of a step, or on all."""
    columns = {
        "old_logprob": step.behavior, "ref_logprob": step.reference, "action_mask": step.mask,
        "advantages": step.advantage[:, None].expand_as(step.mask),
    }  # fmt: skip
    places = list(range(len(step.lengths)) if rows is None else rows)
    value: Tensor = loss(step.logprobs[places], **{name: column[places] for name, column in columns.items()})[0]
    return value


@pytest.mark.parametrize("name", TRINITY)
def test_corners_of_trinity(name: str, cornered: Any, trinity: Callable[..., Any]) -> None:
    algorithm, (module, cls, settings) = TRINITY[name]
    some = cornered
    theirs = trinity_loss(trinity(f"policy_loss_fn.{module}", cls, **settings), some)
    some.assert_same(algorithm, theirs, corner=True)


def test_loss_of_trinitys_dpo_a_pair_at_a_time(seed: int, step: MakeStep, trinity: Callable[..., Any]) -> None:
    # Given several pairs, version 0.6.0 sums their logprobs before it takes the margin.
    some = step(seed)
    dpo = trinity("policy_loss_fn.dpo_loss", "DPOLossFn")
    some.assert_same(resolve("dpo"), torch.stack([trinity_loss(dpo, some, pair) for pair in ((0, 3), (1, 4), (2, 5))]).mean())


def test_gradient_of_trinitys_gspo_where_we_take_the_score_form(seed: int, step: MakeStep, trinity: Callable[..., Any]) -> None:
    some = step(seed, spread=0.2)
    theirs = trinity_loss(trinity("policy_loss_fn.gspo_policy_loss", "GSPOLossFn"), some)
    some.assert_same(resolve("gspo"), theirs, values=False)


def test_loss_of_trinitys_sft(seed: int, step: MakeStep, trinity: Callable[..., Any]) -> None:
    some = step(seed)
    some.tokens.advantage.fill_(1.0)
    some.assert_same(resolve("sft"), trinity_loss(trinity("policy_loss_fn.sft_loss", "SFTLossFn"), some))


ADVANTAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "reinforce": ("rec_advantage", "RECGroupedAdvantage", {}),
    "red-drop": ("rec_advantage", "RECGroupedAdvantage", {"drop": "balance"}),
    "grpo": ("grpo_advantage", "GRPOGroupedAdvantage", {}),
    "asymre": ("asymre_advantage", "ASYMREGroupAdvantage", {}),
    "oapl": ("opmd_advantage", "OPMDGroupAdvantage", {"opmd_baseline": "logavgexp", "tau": 1.0}),
}


def their_advantages(trinity: Callable[..., Any], name: str, rewards: list[float]) -> list[float]:
    module, cls, settings = ADVANTAGES[name]
    group = [SimpleNamespace(reward=float(reward), action_mask=torch.ones(1)) for reward in rewards]
    theirs = trinity(f"advantage_fn.{module}", cls, **settings).calculate_group_advantage("g", group)[0]
    return sorted(one.advantages.item() for one in theirs)


def our_advantages(name: str, rewards: list[float]) -> list[float]:
    rows = {"group_id": "g", "sample_index": range(len(rewards)), "status": "ok", "reward": [float(r) for r in rewards]}
    frame = pl.DataFrame(rows).with_columns(tokens=pl.lit(3), drawn=pl.lit(3), max_tokens=pl.lit(9))
    shaped = shaped_table(finished(shape_rows(frame, ShapeConfig(), resolve(name), seed=0), resolve(name)), resolve(name))
    return sorted(shaped["advantage"].to_list())


@pytest.mark.parametrize("rewards", [[1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [1] * 4, [1, 1, 1, 0], [0.2, 0.9, 0.2]])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_of_trinity(name: str, rewards: list[float], trinity: Callable[..., Any]) -> None:
    assert our_advantages(name, rewards) == pytest.approx(their_advantages(trinity, name, rewards), abs=2e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_one_has_no_baseline_there_and_no_advantage_here(name: str, trinity: Callable[..., Any]) -> None:
    assert our_advantages(name, [0.7]) == pytest.approx([0.1 if name == "asymre" else 0.0])
    if ADVANTAGES[name][0] == "rec_advantage":
        with pytest.raises(UnboundLocalError):
            their_advantages(trinity, name, [0.7])
    else:
        assert their_advantages(trinity, name, [0.7]) == pytest.approx([0.7], abs=2e-6)
