"""Padding, packing, the order of rows and micro-batches change no gradient, through the trainer's own passes (identity 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve
from pipeline.algorithms.tokens import Totals
from pipeline.config.train import TrainConfig
from pipeline.train.batch import Batch, collate, flatten
from pipeline.train.feed import Feed, Pass, Step
from pipeline.train.head import KEPT_LOGITS
from pipeline.train.metrics import StepRecord
from pipeline.train.model import Policy
from pipeline.train.plan import SEEN, CostModel, deal
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.step import Stepper
from pipeline.train.team import alone
from pipeline.train.tree import PackedRow

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
        logprobs = policy.logprobs(collate([PackedRow.of(TrainingGroup(prompt, [bare]), [bare])], policy.device))[0].numpy()
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
    cut = policy.cut(batch)
    hidden = policy.hidden(batch, cut)[cut.following.row[cut.following.edge]]
    log_p = (policy.model.lm_head(hidden) / batch.flat.temperature[:, None]).log_softmax(-1)
    logprobs, entropy = log_p.gather(-1, batch.flat.targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    loss = algorithm.loss(batch.flat.tokens(logprobs, entropy, 1), totals).value
    torch.autograd.backward(loss)
    return loss.item()


def gradient_of(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters.values() if p.grad is not None])


def parts_within(groups: list[TrainingGroup], budget: int, cost: CostModel) -> list[list[PackedRow]]:
    """As training cuts a step."""
    return deal(groups, 1, budget, cost)[0]


Cut = Callable[[list[TrainingGroup]], list[list[PackedRow]]]
CUTS: dict[str, Cut] = {
    "everything at once": lambda groups: parts_within(groups, 10_000, SEPARATE),
    "shared prompts, one by one": lambda groups: parts_within(groups, 16, SHARE),
    "groups over several rows": lambda groups: parts_within(groups, 16, SEPARATE),
    "a completion at a time, backwards": lambda groups: [
        [PackedRow.of(group, [one])] for group in groups[::-1] for one in group.completions[::-1]
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


def forked(policy: Policy, given: list[tuple[list[int], list[list[int]]]], seed: int) -> list[TrainingGroup]:
    """Groups of these prompts and completions. What is stored differs where tokens are shared, and so do masks."""
    random = np.random.default_rng(seed)
    groups = []
    for number, (prompt, completions) in enumerate(given):
        made = []
        for sample, tokens in enumerate(completions):
            stored = [random.exponential(2.0, len(tokens)).astype(np.float32) for _ in range(3)]
            mask = random.random(len(tokens)) < 0.7
            mask[random.integers(len(mask))] = True
            one = TrainingCompletion(
                group_id=f"g{number}",
                sample_index=sample,
                tokens=np.array(tokens, np.int32),
                behavior=-stored[0],
                mask=mask,
                reference=-stored[1],
                proximal=-stored[2],
                advantage=float(random.normal()),
                weight=float(random.choice([0.5, 1.0])),
                temperature=float(random.choice([0.7, 1.0])),
            )
            made.append(one)
        pairs = [(0, sample, 1.0 / sample) for sample in range(1, len(made))]
        groups.append(TrainingGroup(np.array(prompt, np.int32), made, pairs))
    return groups


NESTED: list[tuple[list[int], list[list[int]]]] = [
    ([1, 2, 3], [[4, 5, 6, 7], [4, 5, 6], [4, 5, 6, 7], [4, 8], [9], [4, 5, 6, 7, 8, 9]]),
    ([1, 2, 3, 4, 5], [[6, 7, 1, 1], [6, 2]]),
    ([1], [[2, 3], [3]]),
]
"""Equal completions, one from which others go on, single tokens, and a prompt that goes on from another group's completion."""
completions = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=5)
FORKED = st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=3), completions), min_size=1, max_size=3)


def assert_trees_are_separate_rows(policy: Policy, algorithm: Algorithm, groups: list[TrainingGroup]) -> None:
    alone = [[PackedRow.of(group, [one])] for group in groups for one in group.completions]
    loss, gradient = as_trained(policy, algorithm, alone)
    for budget in (10_000, 9):
        parts = parts_within(groups, budget, SEEN)
        found = as_trained(policy, algorithm, parts)
        assert found[0] == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert float((found[1] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), 1.0)


@pytest.mark.parametrize("kept", [None, 3])
@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY.keys())
def test_a_step_in_trees_is_that_of_separate_rows(
    algorithm: Algorithm, kept: int | None, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where several chunks of a micro-batch have the same prefixes."""
    if kept:
        monkeypatch.setitem(KEPT_LOGITS, "cpu", kept * VOCABULARY)
    groups = forked(policy, NESTED, seed=0)
    (part,) = parts_within(groups, 10_000, SEEN)
    assert (part[0].length, part[0].separate) == (9, 49)
    assert_trees_are_separate_rows(policy, algorithm, groups)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(algorithm=st.sampled_from(list(EVERY)), given=FORKED, seed=st.integers(0, 1000), kept=st.sampled_from([2, 5, 1000]))
def test_random_trees_are_separate_rows(
    algorithm: str, given: list[tuple[list[int], list[list[int]]]], seed: int, kept: int, policy: Policy
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KEPT_LOGITS, "cpu", kept * VOCABULARY)
        assert_trees_are_separate_rows(policy, EVERY[algorithm], forked(policy, given, seed))


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


def with_dead(groups: list[TrainingGroup], algorithm: Algorithm) -> list[TrainingGroup]:
    """The same with completions of advantage 0, of weight 0 and, in pairs, in none; marked as the snapshot marks them."""
    zeros = {(0, 1): "advantage", (0, 3): "weight", (1, 0): "weight", (2, 0): "advantage", (2, 1): "advantage"}
    found = []
    for number, group in enumerate(groups):
        pairs = [pair for pair in group.pairs if number != 2 and 1 not in pair[:2]]
        paired = {sample for pair in pairs for sample in pair[:2]}
        completions = []
        for one in group.completions:
            zero = zeros.get((number, one.sample_index))
            reasons = {zero, None if one.sample_index in paired else "pairs"}
            changed = dataclasses.replace(one, live=not reasons & set(algorithm.dead_at), **({zero: 0.0} if zero else {}))
            completions.append(changed)
        found.append(TrainingGroup(group.prompt, completions, pairs))
    return found


def revived(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    """All computed."""
    return [
        dataclasses.replace(group, completions=[dataclasses.replace(one, live=True) for one in group.completions])
        for group in groups
    ]


DEAD = {
    "bapo": 3, "m2po": 3, "p3o": 0, "spear": 0, "opmd": 0, "grpo": 5, "grpo, regularized": 0, "grpo, masked": 5, "oapl": 2,
    "dpo": 4, "kto": 0, "remix": 0, "reinforce": 5, "rec-gspo-is": 5, "sft": 5, "opmd-pairwise": 0,
}  # fmt: skip
"""How many of the nine completions these leave out."""


class Groups(list[TrainingGroup]):
    """What a feed asks of a snapshot."""

    @property
    def groups(self) -> list[str]:
        return [group.completions[0].group_id for group in self]

    @property
    def sizes(self) -> list[int]:
        return [len(group.completions) for group in self]

    @property
    def live(self) -> int:
        return sum(len(group.live) for group in self)


def as_fed(policy: Policy, algorithm: Algorithm, groups: list[TrainingGroup], **settings: Any) -> tuple[float, Tensor]:
    """Loss and gradient of the one step that the feed makes of groups."""
    snapshot: Any = Groups(groups)
    config = TrainConfig(epochs=1, batch_completions=100, tokens_per_micro_batch=16, max_grad_norm=1e9, **settings)
    feed = Feed(snapshot, config, 0, SHARE, alone(), whole_step=algorithm.whole_step)
    (step,) = feed.steps(0)
    policy.model.zero_grad()
    record, _ = Stepper(policy, algorithm, config, 1, alone(), lambda step: 0.0).gradient(step, StepRecord(True, 0))
    row = record.row(step.groups, step.completions)
    assert (row["completions"], row["computed"]) == (sum(snapshot.sizes), snapshot.live)
    return record.loss, gradient_of(policy)


@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY.keys())
def test_what_is_dead_may_be_left_out(algorithm: Algorithm, policy: Policy, groups: list[TrainingGroup]) -> None:
    marked = with_dead(groups, algorithm)
    everything, found = as_fed(policy, algorithm, revived(marked)), as_fed(policy, algorithm, marked)
    assert float(everything[1].norm()) > 0
    assert found[0] == pytest.approx(everything[0], rel=1e-5, abs=1e-6)
    assert float((found[1] - everything[1]).norm() / everything[1].norm()) < 1e-5


@pytest.mark.parametrize(("name", "count"), DEAD.items())
def test_how_many_are_dead(name: str, count: int, groups: list[TrainingGroup]) -> None:
    algorithm = EVERY[name]
    assert sum(not one.live for group in with_dead(groups, algorithm) for one in group.completions) == count


def test_the_denominator_may_be_of_what_is_live(policy: Policy, groups: list[TrainingGroup]) -> None:
    marked = with_dead(groups, EVERY["reinforce"])
    (_, over_all), (_, over_live) = (as_fed(policy, EVERY["reinforce"], marked, denominator=of) for of in ("all", "live"))
    tokens = [
        sum(int(one.mask.sum()) for group in marked for one in some(group))
        for some in (lambda g: g.completions, lambda g: g.live)
    ]
    torch.testing.assert_close(over_live, over_all * tokens[0] / tokens[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["reinforce", "bapo"])
def test_a_step_in_which_all_is_dead_has_a_gradient_of_zero(name: str, policy: Policy, groups: list[TrainingGroup]) -> None:
    dead = [
        TrainingGroup(group.prompt, [dataclasses.replace(one, advantage=0.0, live=False) for one in group.completions])
        for group in groups
    ]
    config = TrainConfig(epochs=1, batch_completions=5, max_grad_norm=1.0)
    snapshot: Any = Groups([groups[0], *dead[1:]])
    for step in Feed(snapshot, config, 0, SHARE, alone(), whole_step=EVERY[name].whole_step).steps(0):
        policy.model.zero_grad()
        record, norm = Stepper(policy, EVERY[name], config, 1, alone(), lambda step: 0.0).gradient(step, StepRecord(True, 0))
        some = any(one.live for one in step.completions)
        assert (norm > 0, record.row(1, step.completions)["entropy"] is not None) == (some, some)
        assert (
            gradient_of(policy).shape == gradient_of(policy).new_zeros(sum(p.numel() for p in policy.parameters.values())).shape
        )


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
