"""Padding, packing, the order of rows and micro-batches change no gradient, through the trainer's own passes (identity 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve
from pipeline.algorithms.tokens import Totals
from pipeline.config.train import TrainConfig
from pipeline.train.batch import Batch, collate, flatten
from pipeline.train.feed import Pass, Step
from pipeline.train.logprobs import KEPT_LOGITS
from pipeline.train.metrics import StepRecord
from pipeline.train.model import Policy
from pipeline.train.plan import CostModel, PackedRow, micro_batches, rows_of
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.step import Stepper
from pipeline.train.team import alone

VOCABULARY = 20
SHARE, SEPARATE = CostModel(attention_scale=1e9), CostModel(attention_scale=1e-9)
EVERY: dict[str, Algorithm] = {
    **ALGORITHMS,
    "bapo": resolve("bapo", {"target": 0.45}),
    "bapo, low first": resolve("bapo", {"target": 0.5, "contribution": "gradient", "order": "low_first"}),
    "spear": resolve("spear", {"lower": 0.1, "share": 0.1, "divisor": 4.0}),
    "ipo, normalized": resolve("ipo", {"length_normalized": True}),
    "grpo, truncated": resolve("grpo", {"mismatch": "TruncatedImportance", "mismatch.level": "sequence"}),
    "grpo, masked": resolve("grpo", {"mismatch": "MaskedImportance"}),
    "grpo, regularized": resolve("grpo", {"regularizers": ["EntropyBonus", "ForwardKL"], "regularizers.0.coefficient": 0.1}),
}
"""Those that search or choose within a step are set so that they have something to choose."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A random model."""
    path = tmp_path_factory.mktemp("model")
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, initializer_range=0.3, **sizes, **ends)).save_pretrained(path)
    return Policy(path, "float32", trust_remote_code=False, activation_checkpointing=False)


@pytest.fixture(scope="module")
def groups(policy: Policy) -> list[TrainingGroup]:
    """Groups of four, three and two completions whose stored logprobs are some way off the policy's."""
    return [group_of(policy, number, lengths) for number, lengths in enumerate([(3, 5, 1, 4), (2, 6, 2), (4, 1)])]


def group_of(policy: Policy, number: int, lengths: tuple[int, ...]) -> TrainingGroup:
    random = np.random.default_rng(number)
    prompt = random.integers(0, VOCABULARY, 2 + number).astype(np.int32)
    completions = []
    for sample, length in enumerate(lengths):
        tokens = random.integers(0, VOCABULARY, length).astype(np.int32)
        bare = TrainingCompletion(f"g{number}", sample, tokens, behavior=None, mask=np.ones(length, np.bool_))
        logprobs = policy.logprobs(collate([PackedRow(TrainingGroup(prompt, [bare]), [bare])], policy.device))[0].numpy()
        stored = [(logprobs + random.normal(0, 0.3, length)).astype(np.float32) for _ in range(3)]
        completions.append(
            dataclasses.replace(
                bare,
                mask=random.random(length) < 0.8,
                behavior=stored[0],
                reference=stored[1],
                proximal=stored[2],
                advantage=float(random.normal()),
                weight=1.0 + 0.5 * (sample % 2),
            )
        )
    pairs = [(0, sample, 1.0 / sample) for sample in range(1, len(lengths))]
    return TrainingGroup(prompt, completions, pairs)


def as_trained(policy: Policy, algorithm: Algorithm, parts: list[list[PackedRow]]) -> tuple[float, Tensor]:
    """Loss and gradient of a step as the train stage accumulates them: in two passes where the loss needs the whole step."""
    rows = [row for part in parts for row in part]
    completions = [completion for row in rows for completion in row.completions]
    step = Step(
        number=0,
        epoch=0,
        groups=len({completion.group_id for completion in completions}),
        completions=completions,
        totals=Totals(tokens=float(sum(int(c.mask.sum()) for c in completions)), sequences=float(len(completions))),
        passes=[Pass(batch=collate(part, policy.device), idle=False) for part in parts],
        whole=flatten(rows, policy.device) if algorithm.whole_step else None,
        start=0,
    )
    stepper = Stepper(policy, algorithm, TrainConfig(max_grad_norm=1e9), 1, alone(), lambda step: 0.0)
    policy.model.zero_grad()
    record, _ = stepper.gradient(step, StepRecord(True, 0))
    return record.loss, gradient_of(policy)


def one_graph(policy: Policy, algorithm: Algorithm, parts: list[list[PackedRow]]) -> tuple[float, Tensor]:
    """The same from one backward pass through one batch."""
    batch = collate([row for part in parts for row in part], policy.device)
    totals = Totals(tokens=float(batch.flat.mask.sum()), sequences=float(len(batch.flat.completions)))
    policy.model.zero_grad()
    return through(policy, algorithm, batch, totals), gradient_of(policy)


def through(policy: Policy, algorithm: Algorithm, batch: Batch, totals: Totals) -> float:
    """The loss of a batch in one piece, through logits that are all there at once; its gradient is added to what is there."""
    log_p = (policy.model.lm_head(policy.hidden(batch)) / batch.flat.temperature[:, None]).log_softmax(-1)
    logprobs, entropy = log_p.gather(-1, batch.flat.targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    loss = algorithm.loss(batch.flat.tokens(logprobs, entropy, 1), totals).value
    torch.autograd.backward(loss)
    return loss.item()


def gradient_of(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters.values() if p.grad is not None])


def parts_within(groups: list[TrainingGroup], budget: int, cost: CostModel) -> list[list[PackedRow]]:
    """As training cuts a step."""
    return micro_batches([row for group in groups for row in rows_of(group, cost)], budget, cost)


Cut = Callable[[list[TrainingGroup]], list[list[PackedRow]]]
CUTS: dict[str, Cut] = {
    "everything at once": lambda groups: parts_within(groups, 10_000, SEPARATE),
    "shared prompts, one by one": lambda groups: parts_within(groups, 16, SHARE),
    "groups over several rows": lambda groups: parts_within(groups, 16, SEPARATE),
    "a completion at a time, backwards": lambda groups: [
        [PackedRow(group, [one])] for group in groups[::-1] for one in group.completions[::-1]
    ],
}


@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY.keys())
def test_how_a_step_is_cut_changes_loss_and_gradient_by_rounding_only(
    algorithm: Algorithm, policy: Policy, groups: list[TrainingGroup]
) -> None:
    loss, gradient = one_graph(policy, algorithm, CUTS["everything at once"](groups))
    assert float(gradient.norm()) > 0
    for name, cut in CUTS.items():
        found = as_trained(policy, algorithm, cut(groups))
        assert found[0] == pytest.approx(loss, rel=1e-5, abs=1e-6), name
        assert float((found[1] - gradient).norm() / gradient.norm()) < 1e-5, name


@pytest.mark.parametrize("most", [1, 7])
@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY.keys())
def test_how_a_micro_batch_is_cut_for_its_loss_changes_nothing_but_rounding(
    algorithm: Algorithm, most: int, policy: Policy, groups: list[TrainingGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = CUTS["everything at once"](groups)
    loss, gradient = as_trained(policy, algorithm, together)
    monkeypatch.setitem(KEPT_LOGITS, "cpu", most * VOCABULARY)
    found = as_trained(policy, algorithm, together)
    assert found[0] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert float((found[1] - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("name", ["bapo", "m2po", "p3o", "spear"])
def test_the_whole_step_matters_to_them(name: str, policy: Policy, groups: list[TrainingGroup]) -> None:
    parts = CUTS["a completion at a time, backwards"](groups)
    completions = sum(len(row.completions) for part in parts for row in part)
    tokens = sum(int(c.mask.sum()) for part in parts for row in part for c in row.completions)
    policy.model.zero_grad()
    for part in parts:
        batch = collate(part, policy.device)
        through(policy, EVERY[name], batch, Totals(tokens=tokens, sequences=completions))
    piecewise = gradient_of(policy)
    gradient = as_trained(policy, EVERY[name], parts)[1]
    assert float((piecewise - gradient).norm() / gradient.norm()) > 1e-3
