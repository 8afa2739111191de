"""Losses and gradients against TRL's."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum, TokenMean

MakeStep = Callable[..., Any]
pytestmark = pytest.mark.needs("trl", "accelerate")


@pytest.fixture(scope="module")
def trl() -> Any:
    return importlib.import_module("trl")


ACCELERATOR = SimpleNamespace(
    num_processes=1,
    device=torch.device("cpu"),
    gather=lambda value: value,
    gather_for_metrics=lambda value: value,
    reduce=lambda value, reduction: value,
)


def stand_in(**settings: Any) -> Any:
    """A trainer as far as a loss asks for one."""
    metrics: Any = defaultdict(lambda: defaultdict(list))
    common = {"model": SimpleNamespace(training=False), "accelerator": ACCELERATOR, "_metrics": metrics}
    return SimpleNamespace(**common, aux_loss_enabled=False, _total_train_tokens=0, **settings)


def grpo_loss(trainer: Any, step: Any, **settings: Any) -> Tensor:
    """The loss of TRL's GRPO trainer, or of one derived from it."""
    args = {"delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    args |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
    known = {
        "loss_type": "grpo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "max_completion_length": 9, "use_vllm": False,
        "vllm_importance_sampling_correction": False, "_entropy_bonus_enabled": False, "use_adaptive_entropy": False,
    }  # fmt: skip
    known |= {name: value for name, value in settings.items() if name not in args}
    outputs = step.logprobs, torch.zeros_like(step.logprobs), None
    self = stand_in(
        args=SimpleNamespace(**{**args, **{name: value for name, value in settings.items() if name in args}}),
        get_gamma_weights=getattr(trainer, "get_gamma_weights", None),
        _get_per_token_logps_and_entropies=lambda *given, **named: outputs,
        **known,
    )
    inputs = {
        "prompt_ids": torch.zeros(len(step.lengths), 1), "prompt_mask": torch.ones(len(step.lengths), 1),
        "completion_ids": torch.zeros_like(step.mask), "completion_mask": step.mask, "advantages": step.advantage,
        "old_per_token_logps": step.behavior, "ref_per_token_logps": step.reference, "num_items_in_batch": step.mask.sum(),
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(self, None, inputs)
    return loss


@pytest.mark.parametrize(
    ("name", "ours", "aggregation", "theirs"),
    [
        ("grpo", {}, SequenceMean(), {}),
        ("grpo", {"coefficient": 0.3}, SequenceMean(), {"beta": 0.3}),
        ("grpo", {"dual": 1.7}, SequenceMean(), {"delta": 1.7}),
        ("dr-grpo", {"divisor": 9.0}, SequenceSum(divisor=9.0), {"loss_type": "dr_grpo"}),
        ("dapo", {}, TokenMean(), {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("rloo", {}, TokenMean(), {"loss_type": "bnpo"}),
        ("cispo", {}, TokenMean(), {"loss_type": "cispo", "epsilon_high": 1.28}),
        ("vespo", {}, TokenMean(), {"loss_type": "vespo"}),
    ],
)
def test_losses_of_trls_grpo_trainer(
    name: str, ours: dict[str, float], aggregation: Any, theirs: dict[str, Any], seed: int, step: MakeStep, trl: Any
) -> None:
    some = step(seed)
    algorithm = resolve(name, ours)
    assert algorithm.aggregation == aggregation  # type: ignore[attr-defined]
    some.assert_same(algorithm, grpo_loss(trl.GRPOTrainer, some, **theirs))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("gspo", {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
        ("sapo", {"loss_type": "sapo"}),
    ],
)
def test_gradients_of_trls_grpo_trainer_where_we_take_the_score_form(
    name: str, theirs: dict[str, Any], seed: int, step: MakeStep, trl: Any
) -> None:
    some = step(seed, spread=0.2)
    some.assert_same(resolve(name), grpo_loss(trl.GRPOTrainer, some, **theirs), values=False)


WIDE_CLIP = {"trust_region.low": 0.5, "trust_region.high": 1.0}
TRL_CORNERS: dict[str, tuple[Algorithm, dict[str, Any], bool]] = {
    "grpo": (resolve("grpo", WIDE_CLIP), {"epsilon_low": 0.5, "epsilon_high": 1.0}, True),
    "grpo, reference": (resolve("grpo", {"coefficient": 0.3}), {"beta": 0.3}, True),
    "dr-grpo": (resolve("dr-grpo", {"divisor": 9.0}), {"loss_type": "dr_grpo"}, True),
    "dapo": (resolve("dapo", WIDE_CLIP), {"loss_type": "dapo", "epsilon_low": 0.5, "epsilon_high": 1.0}, True),
    "cispo": (resolve("cispo", {"positive_high": 2.0, "negative_high": 2.0}), {"loss_type": "cispo", "epsilon_high": 2.0}, True),
    "sapo": (resolve("sapo"), {"loss_type": "sapo"}, False),
    "vespo": (resolve("vespo"), {"loss_type": "vespo"}, True),
    "gspo": (
        resolve("gspo", WIDE_CLIP), {"importance_sampling_level": "sequence", "epsilon_low": 0.5, "epsilon_high": 1.0}, False,
    ),
}  # fmt: skip
"""Ours, their settings, and whether values are compared too."""


@pytest.mark.parametrize("name", TRL_CORNERS)
def test_corners_of_trls_grpo_trainer(name: str, cornered: Any, trl: Any) -> None:
    algorithm, settings, values = TRL_CORNERS[name]
    some = cornered
    some.assert_same(algorithm, grpo_loss(trl.GRPOTrainer, some, **settings), values=values, corner=True)


def test_gradient_of_trls_gmpo(seed: int, step: MakeStep, trl: Any) -> None:
    module = importlib.import_module("trl.experimental.gmpo")
    some = step(seed)
    theirs = grpo_loss(module.GMPOTrainer, some, epsilon_low=0.4, epsilon_high=0.4)
    some.assert_same(resolve("gmpo"), theirs, values=False)


def outputs_of(logprobs: Tensor) -> Any:
    """What a model hands to TRL's preference losses: prompts have one token here, which has no logprob."""
    zeros = torch.zeros_like(logprobs)
    return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros)


def with_prompt(mask: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


PREFERENCES: dict[str, tuple[Algorithm, str]] = {
    "dpo": (resolve("dpo"), "sigmoid"),
    "dpo, normalized": (resolve("dpo", {"length_normalized": True}), "sigmoid_norm"),
    "ipo, normalized": (resolve("ipo", {"length_normalized": True}), "ipo"),
    "slic": (resolve("slic"), "hinge"),
}


def dpo_loss(trainer: Any, step: Any, loss_type: str) -> Tensor:
    """The loss of TRL's DPO trainer."""
    reference, half = (step.reference * step.mask).sum(1), len(step.lengths) // 2
    self = stand_in(
        beta=0.1, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type],
        loss_weights=[1.0], use_weighting=False, label_smoothing=0.0,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(with_prompt(step.mask)), "completion_mask": with_prompt(step.mask),
        "attention_mask": with_prompt(step.mask), "ref_chosen_logps": reference[:half], "ref_rejected_logps": reference[half:],
    }  # fmt: skip
    model = lambda **given: outputs_of(step.logprobs * step.mask)  # noqa: E731
    loss: Tensor = trainer._compute_loss(self, model, inputs, False)
    return loss


@pytest.mark.parametrize("name", PREFERENCES)
def test_losses_of_trls_dpo_trainer(name: str, seed: int, step: MakeStep, trl: Any) -> None:
    algorithm, loss_type = PREFERENCES[name]
    some = step(seed)
    some.assert_same(algorithm, dpo_loss(trl.DPOTrainer, some, loss_type))


@pytest.mark.parametrize("name", PREFERENCES)
def test_corners_of_trls_dpo_trainer(name: str, cornered: Any, trl: Any) -> None:
    some = cornered
    if len(some.lengths) > 1:  # one completion makes no pair
        algorithm, loss_type = PREFERENCES[name]
        some.assert_same(algorithm, dpo_loss(trl.DPOTrainer, some, loss_type), corner=True)


def test_loss_of_trls_kto_trainer(seed: int, step: MakeStep, trl: Any) -> None:
    some = step(seed)
    reference = (some.reference * some.mask).sum(1)
    self = stand_in(
        beta=0.1, desirable_weight=1.3, undesirable_weight=0.7, loss_type="kto", calculate_KL=True, precompute_ref_logps=True,
        _compute_kl_logps=lambda model, batch: (some.logprobs * some.mask).sum(1).detach(),
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(with_prompt(some.mask)), "completion_mask": with_prompt(some.mask),
        "attention_mask": with_prompt(some.mask), "label": some.advantage > 0, "ref_logps": reference,
        "ref_KL_logps": reference,
    }  # fmt: skip
    model = lambda **given: outputs_of(some.logprobs * some.mask)  # noqa: E731
    theirs = trl.KTOTrainer._compute_loss(self, model, inputs, False)
    some.assert_same(resolve("kto", {"desirable": 1.3, "undesirable": 0.7}), theirs)


def test_loss_of_trls_a_star_po_trainer(seed: int, step: MakeStep, trl: Any) -> None:
    module = importlib.import_module("trl.experimental.a2po")
    some = step(seed)
    sums = (some.logprobs * some.mask).sum(1)
    self = stand_in(args=SimpleNamespace(beta2=0.2), _get_sequence_logps=lambda *given: sums)
    inputs = dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
    inputs |= {"ref_logps": (some.reference * some.mask).sum(1), "rewards": some.advantage, "v_star": 0.0}
    theirs = module.A2POTrainer.compute_loss(self, None, inputs)
    some.assert_same(resolve("a*-po", {"target.beta": 0.2}), theirs)
