"""The policy on packed rows of tiny random models: against the model alone, and cut in every way."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.algorithms import resolve
from pipeline.algorithms.tokens import Totals
from pipeline.common.errors import UserError
from pipeline.train.batch import Batch, Flat, collate
from pipeline.train.check import make_ready, self_check
from pipeline.train.model import Policy
from pipeline.train.plan import SEEN, CostModel, deal
from pipeline.train.snapshot import TrainingGroup
from pipeline.train.tree import PackedRow

MakeGroup = Callable[..., TrainingGroup]
MakePolicy = Callable[..., Policy]
Cut = Callable[[list[TrainingGroup]], list[list[PackedRow]]]
CPU = torch.device("cpu")
SHARE, SEPARATE = CostModel(attention_scale=1e9), CostModel(attention_scale=1e-9)


def one_by_one(groups: list[TrainingGroup]) -> list[list[PackedRow]]:
    """Every completion in a row and a micro-batch of its own: no padding, nothing shared."""
    return [[PackedRow.of(group, [completion])] for group in groups for completion in group.completions]


def all_together(groups: list[TrainingGroup]) -> list[list[PackedRow]]:
    """Every completion in a row of its own, all rows in one padded micro-batch."""
    return [[row for (row,) in one_by_one(groups)]]


def backwards(groups: list[TrainingGroup]) -> list[list[PackedRow]]:
    return [[PackedRow.of(group, group.completions[::-1]) for group in groups[::-1]]]


def in_parts(size: int) -> Cut:
    """Prompts shared by `size` completions each."""

    def cut(groups: list[TrainingGroup]) -> list[list[PackedRow]]:
        return [[PackedRow.of(g, g.completions[i : i + size]) for g in groups for i in range(0, len(g.completions), size)]]

    return cut


def within(budget: int, cost: CostModel) -> Cut:
    """As training cuts a step."""
    return lambda groups: deal(groups, 1, budget, cost)[0]


CUTS = {
    "padded": all_together,
    "backwards": backwards,
    "rows of one": in_parts(1),
    "rows of two": in_parts(2),
    "rows of all": in_parts(100),
    "shared, small budget": within(24, SHARE),
    "shared, large budget": within(10_000, SHARE),
    "in lines, small budget": within(24, SEEN),
    "in a line": within(10_000, SEEN),
    "separate, small budget": within(24, SEPARATE),
    "separate, large budget": within(10_000, SEPARATE),
}


@pytest.fixture(scope="module")
def fp64_policy(model_path: Callable[..., Path]) -> MakePolicy:
    """fp64_policy(name): the policy in fp64; one for all tests of this file, none of which changes it."""

    @cache
    def load(name: str) -> Policy:
        policy = Policy(model_path(name), "float32", trust_remote_code=False, activation_checkpointing=False)
        policy.model.double()
        return policy

    return load


@pytest.fixture(scope="module")
def groups(make_group: MakeGroup) -> list[TrainingGroup]:
    """Three prompts with six completions, some of whose tokens are masked out."""
    return [make_group(5, [3, 1, 6], 0, masked=True), make_group(2, [4, 4], 1), make_group(9, [7], 2, masked=True)]


def in_fp64(batch: Batch) -> Batch:
    values = {field.name: getattr(batch.flat, field.name) for field in dataclasses.fields(batch.flat)}
    doubled = {name: value.double() for name, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return dataclasses.replace(batch, flat=dataclasses.replace(batch.flat, **doubled))


Step = Callable[[Policy, str, list[list[PackedRow]]], tuple[float, Tensor]]


@pytest.fixture(scope="module")
def loss_and_gradient(add_gradient: Callable[..., Tensor]) -> Step:
    """loss_and_gradient(policy, algorithm, micro-batches): of the step that they make, the gradient in all weights."""

    def find(policy: Policy, algorithm: str, batches: list[list[PackedRow]]) -> tuple[float, Tensor]:
        completions = [completion for rows in batches for row in rows for completion in row.completions]
        totals = Totals(tokens=float(sum(int(c.mask.sum()) for c in completions)), sequences=float(len(completions)))

        def loss_of(flat: Flat, logprobs: Tensor, entropy: Tensor) -> Tensor:
            return resolve(algorithm).loss(flat.tokens(logprobs, entropy, version=1), totals).value

        policy.model.zero_grad()
        value = sum(add_gradient(policy, in_fp64(collate(rows, policy.device)), loss_of).item() for rows in batches)
        return value, torch.cat([p.grad.flatten() for p in policy.parameters.values() if p.grad is not None])

    return find


@pytest.fixture(scope="module")
def uncut(
    groups: list[TrainingGroup], fp64_policy: MakePolicy, loss_and_gradient: Step
) -> Callable[[str, str], tuple[float, Tensor]]:
    """uncut(model, algorithm): loss and gradient of the groups, every completion alone."""
    return cache(lambda name, algorithm: loss_and_gradient(fp64_policy(name), algorithm, one_by_one(groups)))


Uncut = Callable[[str, str], tuple[float, Tensor]]


def assert_same_step(found: tuple[float, Tensor], expected: tuple[float, Tensor], tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < tolerance


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_how_a_step_is_cut_changes_neither_loss_nor_gradient(
    name: str, cut: Cut, groups: list[TrainingGroup], fp64_policy: MakePolicy, uncut: Uncut, loss_and_gradient: Step
) -> None:
    # Qwen2 computes its norms in fp32 whatever the type of its weights.
    tolerance = {"qwen2": 2e-6, "gpt2": 1e-11}[name]
    found = loss_and_gradient(fp64_policy(name), "rec-oneside-is", cut(groups))
    assert_same_step(found, uncut(name, "rec-oneside-is"), tolerance)


@pytest.mark.parametrize("algorithm", ["reinforce", "rec-oneside-nois", "grpo", "opmd", "gspo", "decoupled-ppo", "oapl", "a*-po"])
def test_other_methods_do_not_see_the_cut_either(
    algorithm: str, groups: list[TrainingGroup], fp64_policy: MakePolicy, uncut: Uncut, loss_and_gradient: Step
) -> None:
    for cut in (backwards, within(24, SHARE), within(40, SEPARATE)):
        assert_same_step(loss_and_gradient(fp64_policy("gpt2"), algorithm, cut(groups)), uncut("gpt2", algorithm), 1e-11)


def test_groups_with_zero_advantage_give_no_gradient_but_count_as_tokens(
    make_group: MakeGroup, fp64_policy: MakePolicy, loss_and_gradient: Step
) -> None:
    policy, group = fp64_policy("gpt2"), make_group(4, [3, 3])
    flat = TrainingGroup(group.prompt, [dataclasses.replace(c, advantage=0.0) for c in group.completions])
    _, alone = loss_and_gradient(policy, "grpo", one_by_one([group]))
    _, diluted = loss_and_gradient(policy, "grpo", one_by_one([group, flat]))
    torch.testing.assert_close(2 * diluted, alone, rtol=1e-11, atol=1e-14)
    assert not loss_and_gradient(policy, "grpo", one_by_one([flat]))[1].any()


def test_tokens_that_the_policy_did_not_draw_have_no_effect_as_targets(
    make_group: MakeGroup, fp64_policy: MakePolicy, loss_and_gradient: Step
) -> None:
    policy, group = fp64_policy("gpt2"), make_group(4, [5])
    one = dataclasses.replace(group.completions[0], mask=np.array([True, True, True, True, False]))
    tokens, behavior = one.tokens.copy(), one.behavior.copy()  # type: ignore[union-attr]
    tokens[-1], behavior[-1] = (tokens[-1] + 1) % 40, -np.inf
    other = dataclasses.replace(one, tokens=tokens, behavior=behavior)
    (loss, gradient), (other_loss, other_gradient) = (
        loss_and_gradient(policy, "rec-oneside-is", [[PackedRow.of(group, [completion])]]) for completion in (one, other)
    )
    assert loss == other_loss
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["qwen2", "tied", "gpt2", "phi"])
def test_packed_logprobs_are_those_of_the_model_alone(
    name: str, groups: list[TrainingGroup], make_policy: MakePolicy, logprobs_alone: Callable[..., list[float]]
) -> None:
    policy = make_policy(name)
    batch = collate([PackedRow.of(group, group.completions) for group in groups], policy.device)
    found, entropy = policy.logprobs(batch)
    expected = [
        value
        for group in groups
        for one in PackedRow.of(group, group.completions).completions
        for value in logprobs_alone(name, group.prompt.tolist(), one.tokens.tolist(), one.temperature)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert float(entropy.min()) > 0
    assert float(entropy.max()) < math.log(40)
    for group in groups:
        self_check(policy, collate([PackedRow.of(group, group.completions)], policy.device))


def test_activation_checkpointing_changes_nothing(
    groups: list[TrainingGroup], make_policy: MakePolicy, uncut: Uncut, loss_and_gradient: Step
) -> None:
    checkpointed = make_policy("gpt2", double=True, checkpointing=True)
    assert_same_step(loss_and_gradient(checkpointed, "grpo", all_together(groups)), uncut("gpt2", "grpo"), 1e-11)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "dropout"), [("qwen2", {"attention_dropout": 0.5}), ("gpt2", {"resid_pdrop": 0.5, "attn_pdrop": 0.5})]
)
def test_a_model_with_dropout_is_trained_without_it(
    name: str, dropout: dict[str, float], checkpointing: bool, groups: list[TrainingGroup], make_policy: MakePolicy
) -> None:
    policy, plain = make_policy(name, checkpointing=checkpointing, **dropout), make_policy(name)
    batch = collate([PackedRow.of(group, group.completions) for group in groups], policy.device)
    found, expected = policy.logprobs(batch)[0], plain.logprobs(batch)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_bf16_keeps_fp32_master_weights_and_logprobs(
    groups: list[TrainingGroup], make_policy: MakePolicy, add_gradient: Callable[..., Tensor]
) -> None:
    exact, policy = make_policy(), make_policy(dtype="bfloat16")
    batch = collate([PackedRow.of(group, group.completions) for group in groups], policy.device)
    logprobs, entropy = policy.logprobs(batch)
    assert {tensor.dtype for tensor in (logprobs, entropy, *policy.parameters.values())} == {torch.float32}
    assert (logprobs - exact.logprobs(batch)[0]).abs().mean().item() < 0.05
    add_gradient(policy, batch, lambda _, logprobs, entropy: logprobs.sum() + entropy.sum())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.parameters.values())


def test_a_model_whose_logits_are_something_else_is_refused(
    groups: list[TrainingGroup], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    monkeypatch.setattr(type(policy.model), "forward", squared(type(policy.model).forward))
    with pytest.raises(UserError, match="qwen2: packed rows give logprobs that differ"):
        self_check(policy, collate([PackedRow.of(groups[0], groups[0].completions)], policy.device))
    with pytest.raises(UserError, match="The trainer does not compute what this model computes"):
        make_ready(policy, groups[0], 20, "auto", lambda note: None)


def squared(forward: Any) -> Any:
    def changed(*args: Any, **given: Any) -> Any:
        found = forward(*args, **given)
        found.logits = found.logits * found.logits.abs()
        return found

    return changed


def test_a_model_that_ignores_who_sees_whom_is_refused(
    groups: list[TrainingGroup], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    inner: Any = policy.model.base_model
    whole = inner.forward
    monkeypatch.setattr(inner, "forward", lambda **given: whole(**{**given, "attention_mask": None}))
    with pytest.raises(UserError, match="cannot be trained with prompts shared in a row"):
        self_check(policy, collate([PackedRow.of(groups[0], groups[0].completions)], policy.device))


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match="transformers cannot load this model"):
        Policy(tmp_path, "float32", trust_remote_code=False, activation_checkpointing=False)


def test_tied_weights_are_trained_once(make_policy: MakePolicy) -> None:
    names = make_policy("tied").parameters
    assert sum("embed_tokens" in name or "lm_head" in name for name in names) == 1


def test_cost_of_attention_is_measured_against_the_layers_weights(make_policy: MakePolicy) -> None:
    policy = make_policy()
    weights = sum(p.numel() for name, p in policy.parameters.items() if "embed" not in name and "lm_head" not in name)
    # A row of n tokens: 2 n flops a weight, and 4 n^2 width flops of attention a layer. They are equal at this length.
    length = policy.cost_model().attention_scale
    assert 2 * length * weights == pytest.approx(4 * length**2 * 16 * 2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_layers_give_the_same_loss_and_gradients(
    make_group: MakeGroup, model_path: Callable[..., Path], add_gradient: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # as the environment of stages does on a CPU
    counters.clear()
    found = []
    for compiled in (False, True):
        policy = Policy(model_path("qwen2"), "float32", trust_remote_code=False, compiled=compiled)
        groups = [make_group(5, [3, 7, 1], 0), make_group(2, [4], 1)]
        batches = [collate([PackedRow.of(group, group.completions)], CPU) for group in groups]
        losses = [add_gradient(policy, batch, lambda _, logprobs, entropy: (logprobs * entropy).sum()) for batch in batches]
        gradients = [parameter.grad for parameter in policy.parameters.values()]
        found.append([*losses, *(gradient / gradient.norm() for gradient in gradients)])
    assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_without_a_compiler_the_remedy_is_named(
    make_group: MakeGroup, model_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # as the environment of stages does on a CPU
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    policy = Policy(model_path("qwen2"), "float32", trust_remote_code=False, compiled=True)
    notes: list[str] = []
    with pytest.raises(UserError, match=r"train\.compile: torch cannot compile the model here: .*or leave `compile` out"):
        make_ready(policy, make_group(5, [3], 0), 10, "auto", notes.append)
    assert not notes
