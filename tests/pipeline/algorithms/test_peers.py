"""Losses and gradients against those of TRL and Trinity-RFT, where they are installed.

The losses are the peers' own code. They are methods of trainers, so a stand-in holds the settings and hands them logprobs
in place of a model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum, TokenMean
from pipeline.algorithms.cells.regularizers import ForwardKL
from pipeline.algorithms.tokens import Tokens, Totals
from pipeline.config_data import ShapeConfig
from pipeline.shape.choices import shape_rows, shaped_table

MakeTokens = Callable[..., Tokens]
seeds = pytest.mark.parametrize("seed", range(3))
LENGTHS = (5, 2, 7, 1, 4, 3)


@dataclass(frozen=True)
class Step:
    """A random step, as flat tokens and as padded rows of the same values."""

    tokens: Tokens
    logprobs: Tensor
    behavior: Tensor
    reference: Tensor
    mask: Tensor
    advantage: Tensor

    def assert_same(self, algorithm: Algorithm, theirs: Tensor, *, values: bool = True) -> None:
        """Their loss and its gradient are ours. `values` false: the gradient alone."""
        totals = Totals(tokens=float(self.mask.sum()), sequences=float(len(self.mask)))
        ours = algorithm.loss(self.tokens, totals).value
        (found,) = torch.autograd.grad(ours, self.tokens.logprobs)
        (expected,) = torch.autograd.grad(theirs, self.logprobs)
        places = [row[:length] for row, length in zip(expected, LENGTHS, strict=True)]
        torch.testing.assert_close(found, torch.cat(places), rtol=1e-6, atol=1e-9)
        assert float(expected.abs().max()) > 0
        if values:
            assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-8)


@pytest.fixture
def step(make_tokens: MakeTokens) -> Callable[..., Step]:
    """step(seed, spread, holes): six completions whose log ratios have this standard deviation."""

    def make(seed: int, spread: float = 0.5, *, holes: bool = True) -> Step:
        random = torch.Generator().manual_seed(seed)
        shape = len(LENGTHS), max(LENGTHS)
        inside = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
        mask = inside & ((torch.rand(shape, generator=random) < 0.8) | (torch.arange(shape[1]) == 0)) if holes else inside
        logprobs, *noise = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3))
        logprobs = (-1.5 + 0.5 * logprobs).where(inside, torch.zeros((), dtype=torch.float64))
        behavior, reference = ((logprobs + spread * one).where(inside, logprobs) for one in noise)
        advantage = torch.tensor([1.0, -1.5, 0.5, 2.0, -0.3, -0.7], dtype=torch.float64)

        def rows(values: Tensor) -> list[list[Any]]:
            return [row[:length].tolist() for row, length in zip(values, LENGTHS, strict=True)]

        columns = {"behavior": rows(behavior), "reference": rows(reference), "mask": rows(mask)}
        tokens = make_tokens(rows(logprobs), advantage.tolist(), pairs=[[0, 3], [1, 4], [2, 5]], **columns)
        return Step(tokens, logprobs.clone().requires_grad_(), behavior, reference, mask.double(), advantage)

    return make


MakeStep = Callable[..., Step]


# TRL


@pytest.fixture(scope="module")
def trl() -> Any:
    reason = "the optional peer TRL is not installed (pip install trl)"
    pytest.importorskip("accelerate", reason=reason)
    return pytest.importorskip("trl", reason=reason)


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


def grpo_loss(trainer: Any, step: Step, **settings: Any) -> Tensor:
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
        "prompt_ids": torch.zeros(len(LENGTHS), 1), "prompt_mask": torch.ones(len(LENGTHS), 1),
        "completion_ids": torch.zeros_like(step.mask), "completion_mask": step.mask, "advantages": step.advantage,
        "old_per_token_logps": step.behavior, "ref_per_token_logps": step.reference, "num_items_in_batch": step.mask.sum(),
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(self, None, inputs)
    return loss


@seeds
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


@seeds
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


@seeds
def test_gradient_of_trls_gmpo(seed: int, step: MakeStep, trl: Any) -> None:
    module = pytest.importorskip("trl.experimental.gmpo", reason="this TRL has no GMPO")
    some = step(seed)
    theirs = grpo_loss(module.GMPOTrainer, some, epsilon_low=0.4, epsilon_high=0.4)
    some.assert_same(resolve("gmpo"), theirs, values=False)


def outputs_of(logprobs: Tensor) -> Any:
    """What a model hands to TRL's preference losses: prompts have one token here, which has no logprob."""
    zeros = torch.zeros_like(logprobs)
    return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros)


def with_prompt(mask: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


@seeds
@pytest.mark.parametrize(
    ("name", "ours", "loss_type"),
    [
        ("dpo", {}, "sigmoid"),
        ("dpo", {"length_normalized": True}, "sigmoid_norm"),
        ("ipo", {"length_normalized": True}, "ipo"),
        ("slic", {}, "hinge"),
    ],
)
def test_losses_of_trls_dpo_trainer(name: str, ours: dict[str, Any], loss_type: str, seed: int, step: MakeStep, trl: Any) -> None:
    some = step(seed)
    reference = (some.reference * some.mask).sum(1)
    self = stand_in(
        beta=0.1, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type],
        loss_weights=[1.0], use_weighting=False, label_smoothing=0.0,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(with_prompt(some.mask)), "completion_mask": with_prompt(some.mask),
        "attention_mask": with_prompt(some.mask), "ref_chosen_logps": reference[:3], "ref_rejected_logps": reference[3:],
    }  # fmt: skip
    model = lambda **given: outputs_of(some.logprobs * some.mask)  # noqa: E731
    some.assert_same(resolve(name, ours), trl.DPOTrainer._compute_loss(self, model, inputs, False))


@seeds
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


@seeds
def test_loss_of_trls_a_star_po_trainer(seed: int, step: MakeStep, trl: Any) -> None:
    module = pytest.importorskip("trl.experimental.a2po", reason="this TRL has no A*-PO")
    some = step(seed)
    sums = (some.logprobs * some.mask).sum(1)
    self = stand_in(args=SimpleNamespace(beta2=0.2), _get_sequence_logps=lambda *given: sums)
    inputs = dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
    inputs |= {"ref_logps": (some.reference * some.mask).sum(1), "rewards": some.advantage, "v_star": 0.0}
    theirs = module.A2POTrainer.compute_loss(self, None, inputs)
    some.assert_same(resolve("a*-po", {"target.beta": 0.2}), theirs)


# Trinity-RFT


@pytest.fixture(scope="module")
def trinity() -> Callable[..., Any]:
    """trinity(module, class, **settings): one of its losses or advantages."""
    reason = "the optional peer Trinity-RFT is not installed (pip install trinity-rft)"
    pytest.importorskip("trinity.algorithm.policy_loss_fn.ppo_policy_loss", reason=reason, exc_type=ImportError)

    def make(module: str, name: str, **settings: Any) -> Any:
        found = getattr(pytest.importorskip(f"trinity.algorithm.{module}", exc_type=ImportError), name)
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


@seeds
@pytest.mark.parametrize("case", TRINITY.values(), ids=TRINITY.keys())
def test_losses_of_trinity(
    case: tuple[Algorithm, tuple[str, str, dict[str, Any]]], seed: int, step: MakeStep, trinity: Callable[..., Any]
) -> None:
    algorithm, (module, name, settings) = case
    some = step(seed, spread=0.4)
    some.assert_same(algorithm, trinity_loss(trinity(f"policy_loss_fn.{module}", name, **settings), some))


def trinity_loss(loss: Any, step: Step, rows: tuple[int, ...] = tuple(range(len(LENGTHS)))) -> Tensor:
    """The value of one of its losses on some rows of a step."""
    columns = {
        "old_logprob": step.behavior, "ref_logprob": step.reference, "action_mask": step.mask,
        "advantages": step.advantage[:, None].expand_as(step.mask),
    }  # fmt: skip
    places = list(rows)
    value: Tensor = loss(step.logprobs[places], **{name: column[places] for name, column in columns.items()})[0]
    return value


@seeds
def test_loss_of_trinitys_dpo_a_pair_at_a_time(seed: int, step: MakeStep, trinity: Callable[..., Any]) -> None:
    # Given several pairs, version 0.6.0 sums their logprobs before it takes the margin.
    some = step(seed)
    dpo = trinity("policy_loss_fn.dpo_loss", "DPOLossFn")
    some.assert_same(resolve("dpo"), torch.stack([trinity_loss(dpo, some, pair) for pair in ((0, 3), (1, 4), (2, 5))]).mean())


@seeds
def test_gradient_of_trinitys_gspo_where_we_take_the_score_form(seed: int, step: MakeStep, trinity: Callable[..., Any]) -> None:
    some = step(seed, spread=0.2)
    theirs = trinity_loss(trinity("policy_loss_fn.gspo_policy_loss", "GSPOLossFn"), some)
    some.assert_same(resolve("gspo"), theirs, values=False)


@seeds
def test_loss_of_trinitys_sft(seed: int, step: MakeStep, trinity: Callable[..., Any]) -> None:
    some = step(seed)
    some.tokens.advantage.fill_(1.0)
    some.assert_same(resolve("sft"), trinity_loss(trinity("policy_loss_fn.sft_loss", "SFTLossFn"), some))


@pytest.mark.parametrize("rewards", [[1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [1] * 4, [1, 1, 1, 0], [0.2, 0.9, 0.2]])
@pytest.mark.parametrize(
    ("name", "module", "cls", "settings"),
    [
        ("reinforce", "rec_advantage", "RECGroupedAdvantage", {}),
        ("red-drop", "rec_advantage", "RECGroupedAdvantage", {"drop": "balance"}),
        ("grpo", "grpo_advantage", "GRPOGroupedAdvantage", {}),
        ("asymre", "asymre_advantage", "ASYMREGroupAdvantage", {}),
        ("oapl", "opmd_advantage", "OPMDGroupAdvantage", {"opmd_baseline": "logavgexp", "tau": 1.0}),
    ],
)
def test_advantages_of_trinity(
    name: str, module: str, cls: str, settings: dict[str, Any], rewards: list[float], trinity: Callable[..., Any]
) -> None:
    theirs = trinity(f"advantage_fn.{module}", cls, **settings)
    group = [SimpleNamespace(reward=float(reward), action_mask=torch.ones(1)) for reward in rewards]
    expected = sorted(one.advantages.item() for one in theirs.calculate_group_advantage("g", group)[0])
    rows = {"group_id": "g", "sample_index": range(len(rewards)), "status": "ok", "reward": [float(r) for r in rewards]}
    frame = pl.DataFrame(rows).with_columns(tokens=pl.lit(3), max_tokens=pl.lit(9))
    ours = shaped_table(shape_rows(frame, ShapeConfig(), resolve(name), seed=0), resolve(name))
    assert sorted(ours["advantage"].to_list()) == pytest.approx(expected, abs=2e-6)
