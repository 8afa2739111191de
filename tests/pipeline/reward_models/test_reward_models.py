"""A reward learned from preferences: its pairs, its loss, its figures, and the model that the `reward_model` grader takes."""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.common.errors import DataError, UserError
from pipeline.config.load import load_reward_model
from pipeline.config.reward_model import PairsConfig, RewardModelConfig
from pipeline.reward_models.figures import calibration_error, figures
from pipeline.reward_models.model import ScalarModel
from pipeline.reward_models.order import reward_order, reward_request
from pipeline.reward_models.packing import Tokens, filled_up, in_passes
from pipeline.reward_models.stage import bradley_terry, train_reward_model
from pipeline.reward_models.texts import TextPair, split, text_pairs
from pipeline.rewards.graders.reward_model import reward_model
from pipeline.rewards.items import RewardItem
from pipeline.run.order import STAGES
from pipeline.run.process import Reporter
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Rollouts
from schemas.example import example

BASE = Path(__file__).parents[3] / "data" / "base"
Write = Callable[..., Artifact]


@pytest.fixture
def rollouts(store: Store) -> Write:
    """rollouts([("12+7", "A:19", 1.0), …]): completions of prompts, those of one prompt a group."""

    def write(rows: list[tuple[str, str, float | None]], name: str = "") -> Artifact:
        shown: dict[str, Any] = ast.literal_eval(example(Rollouts))
        frame = pl.DataFrame(
            [
                {
                    **shown,
                    "group_id": prompt,
                    "sample_index": number,
                    "prompt_id": prompt,
                    "prompt_text": f"Q:{prompt}=",
                    "completion_text": completion,
                    "reward": reward,
                    "reward_regex": reward,
                    "completion_token_ids": list(range(1, len(completion) + 1)),
                    "behavior_logprobs": [-1.0] * len(completion),
                    "status": "ok" if reward is not None else "reward_error",
                    "error": None if reward is not None else "no grade",
                }
                for number, (prompt, completion, reward) in enumerate(rows)
            ],
            schema_overrides={name: column.dtype for name, column in Rollouts.columns().items()},
        )
        with store.work(Request("rollouts", "generate/1", {"rows": str(rows), "name": name})) as work:
            assert isinstance(work, Work)
            work.write_table("part-00000.parquet", frame.select(*Rollouts.columns(), "reward_regex"), Rollouts)
            return work.finish({"completions": len(rows)})

    return write


@pytest.fixture
def model(store: Store) -> Artifact:
    with store.work(Request("checkpoint", "import/1", {})) as work:
        assert isinstance(work, Work)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BASE / name, work.path)
        return work.finish({"iteration": 0})


def config_of(*rollouts: Artifact, pairs: dict[str, Any] | None = None, **train: Any) -> RewardModelConfig:
    named = {"rollouts": [str(one.path) for one in rollouts], **(pairs or {})}
    return RewardModelConfig.model_validate({"name": "small", "model": {"path": str(BASE)}, "pairs": named, "train": train})


def trained(
    store: Store, config: RewardModelConfig, model: Artifact, *rollouts: Artifact, reporter: Reporter | None = None
) -> Artifact:
    reporter = reporter or Reporter(os.open(os.devnull, os.O_WRONLY))
    return load_artifact(train_reward_model(spec_of(store, config, model, *rollouts), reporter)["artifact"])


def spec_of(store: Store, config: RewardModelConfig, model: Artifact, *rollouts: Artifact) -> dict[str, Any]:
    order = reward_order(config, model, rollouts)
    (job,) = order.spec()["jobs"]
    return {"store": str(store.root), **order.told, **job}


def test_graded_groups_give_pairs_ties_among_them(rollouts: Write) -> None:
    made = rollouts([("1+1", "A:2", 1.0), ("1+1", "A:3", 0.0), ("1+1", "A:4", 0.0), ("1+1", "A:3", 0.0), ("2+2", "?", None)])
    found = text_pairs([made], PairsConfig(rollouts=("x",)))
    assert [(pair.chosen, pair.rejected, pair.preference) for pair in found] == [
        ("Q:1+1=A:2", "Q:1+1=A:3", 1.0),
        ("Q:1+1=A:2", "Q:1+1=A:4", 1.0),
        ("Q:1+1=A:2", "Q:1+1=A:3", 1.0),
        ("Q:1+1=A:3", "Q:1+1=A:4", 0.5),
        ("Q:1+1=A:4", "Q:1+1=A:3", 0.5),
    ]  # equal texts are no pair
    assert found[0].tokens == (3, 3)
    soft = text_pairs([made], PairsConfig(rollouts=("x",), soft=1.0, ties=False, cap=1))
    assert [pair.preference for pair in soft] == pytest.approx([1 / (1 + math.exp(-1))])


def test_rollouts_that_prefer_nothing_are_refused(rollouts: Write) -> None:
    with pytest.raises(DataError, match="no two completions of one prompt have rewards that differ by 1e-06"):
        text_pairs([rollouts([("1+1", "A:2", 1.0), ("1+1", "A:3", 1.0), ("2+2", "A:4", 0.0)])], PairsConfig(rollouts=("x",)))


def test_all_pairs_of_a_prompt_are_held_out_or_none(rollouts: Write) -> None:
    pairs = [TextPair(f"p{n // 4}", f"a{n}", "b", 1.0, 1.0, (1, 1)) for n in range(400)]
    train, heldout = split(pairs, 0.2, seed=0)
    assert len(train) + len(heldout) == 400 and 40 < len(heldout) < 120
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in heldout}
    assert split(pairs, 0.2, seed=1)[1] != heldout
    with pytest.raises(DataError, match=r"leaves 4 pairs for training and 0 to judge by|leaves 0 pairs for training and 4"):
        split(pairs[:4], 0.2, seed=0)


def test_the_loss_of_a_pair() -> None:
    def loss(difference: float, preference: float, margin: float) -> float:
        return float(bradley_terry(*(torch.tensor([value]) for value in (difference, preference, margin)))[0])

    assert loss(2.0, 1.0, 0.0) == pytest.approx(0.126928, abs=1e-6)
    assert loss(2.0, 0.0, 0.0) == pytest.approx(2.126928, abs=1e-6)
    assert loss(2.0, 0.7, 2.0) == pytest.approx(math.log(2))
    difference = torch.tensor([0.8473], requires_grad=True)  # log(.7/.3): sigmoid is the preference, and the loss is at rest
    bradley_terry(difference, torch.tensor([0.7]), torch.tensor([0.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert difference.grad is not None and abs(float(difference.grad[0])) < 1e-4


def test_figures_by_hand() -> None:
    pairs = [
        TextPair("p", "a", "b", 1.0, 1.0, (4, 2)),
        TextPair("p", "a", "c", 1.0, 1.0, (4, 6)),
        TextPair("q", "d", "e", 1.0, 1.0, (3, 3)),
        TextPair("q", "d", "f", 0.5, 0.0, (3, 5)),
    ]
    found = figures(pairs, np.array([[2.0, 1.0], [2.0, 3.0], [0.5, 0.5], [0.5, 0.5]]), seed=0)
    assert (found["pairs"], found["ties"], found["accuracy"]) == (4, 1, 0.5)  # right, wrong, equal scores
    assert found["longer_is_better"] == pytest.approx(0.5)
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1)), math.log(2), math.log(2)]
    assert found["log_loss"] == pytest.approx(sum(losses) / 4)
    assert found["accuracy_low"] <= 0.5 <= found["accuracy_high"]


def test_predictions_that_come_true_as_often_as_they_say_are_calibrated() -> None:
    assert calibration_error(np.full(10, 0.8), np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx(0)
    assert calibration_error(np.full(10, 0.8), np.array([1.0] * 10)) == pytest.approx(0.2)


def test_a_reward_model_learns_what_was_preferred_and_the_grader_scores_with_it(
    rollouts: Write, model: Artifact, store: Store
) -> None:
    """Completions that end with a full stop are preferred; prompts that were not trained on show it too."""
    rows = [(f"{n}+{m}", f"A:{n + m}{end}", float(end == ".")) for n in range(8) for m in range(8) for end in (".", ",")]
    made = rollouts(rows)
    config = config_of(made, epochs=2, batch_pairs=8, learning_rate=5e-4)
    learned = trained(store, config, model, made)
    heldout = learned.summary["heldout"]
    assert heldout["accuracy"] > 0.95 and heldout["accuracy_low"] > 0.8 and heldout["ties"] == 0
    assert learned.kind == "reward_model" and [parent.role for parent in learned.manifest.content.parents] == ["model", "pairs"]
    pairs = split(text_pairs([made], config.pairs), 0.2, seed=0)[1]
    grader = reward_model(path=str(learned.path), template="{completion}")
    scores = grader.grade([RewardItem(text, None, {}) for pair in pairs for text in (pair.chosen, pair.rejected)])
    again = figures(pairs, np.array([score.score for score in scores], np.float64).reshape(-1, 2), seed=0)
    assert again["log_loss"] == pytest.approx(heldout["log_loss"], abs=1e-5) and again["accuracy"] == heldout["accuracy"]


def test_passes_of_any_size_give_the_same_model_up_to_rounding(rollouts: Write, model: Artifact, store: Store) -> None:
    rows = [(f"{n}+1", text, float(len(text) % 2)) for n in range(12) for text in (f"A:{n}", f"A:{n}..")]
    rows = [(prompt, text, float(".." in text)) for prompt, text, _ in rows]
    made = rollouts(rows)
    found = []
    for number, tokens in enumerate((16, 4096)):
        config = config_of(made, batch_pairs=8, learning_rate=1e-4, pass_tokens=tokens, weight_decay=number * 1e-12)
        found.append(trained(store, config, model, made).summary["heldout"]["log_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


PAIRS: list[tuple[Tokens, Tokens]] = [
    ((5, 6, 7, 8), (5, 6, 7, 9, 10)),  # start alike
    ((5, 6, 7, 8), (5, 6, 7)),  # one is the beginning of the other, and a text is there twice
    ((11,), (12, 13, 14, 15, 16, 17)),
    ((5, 20, 21), (30, 31, 32, 33, 34, 35, 36, 37, 38)),
]


@pytest.fixture
def scalar() -> ScalarModel:
    return ScalarModel(BASE, "float32", 0, trust_remote_code=False)


def test_packed_texts_score_and_learn_as_texts_alone_do(scalar: ScalarModel) -> None:
    def of(attention: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert scalar.attention == attention
        scores = scalar.scores(PAIRS)
        loss = bradley_terry(scores[:, 0] - scores[:, 1], torch.tensor([1.0, 0.5, 0.8, 0.0]), torch.zeros(4)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        found = {name: weight.grad.clone() for name, weight in scalar.model.named_parameters() if weight.grad is not None}
        scalar.model.zero_grad()
        return scores.detach(), found

    scores, gradients = of("alone")
    scalar.make_ready(PAIRS, pytest.fail)
    packed, of_packed = of("segments")
    torch.testing.assert_close(packed, scores, rtol=0, atol=1e-5)
    assert gradients.keys() == of_packed.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_packed[name], gradient, rtol=1e-4, atol=1e-5)
    parted = torch.cat([scalar.scores([PAIRS[number] for number in part]) for part in ([2], [0, 3], [1])])
    torch.testing.assert_close(parted, scores[[2, 0, 3, 1]], rtol=0, atol=1e-5)


def test_packed_texts_are_not_filled_up_and_share_how_they_start(scalar: ScalarModel) -> None:
    scalar.make_ready(PAIRS, pytest.fail)
    tried = scalar.packing
    scalar.scores(PAIRS)
    # 5 6 7 8 | 9 10, 5 20 21, 11, 12 to 17, 30 to 38: a beginning of a text, and a text that is there twice, take nothing
    unshared = sum(len(text) for pair in PAIRS for text in pair)
    taken = scalar.packing
    positions = taken.tokens - tried.tokens
    assert positions == taken.laid_out - tried.laid_out and 4 + 2 + 2 + 1 + 6 + 9 <= positions < unshared == 35


def test_a_model_whose_attention_ignores_the_rows_has_its_texts_one_by_one(
    scalar: ScalarModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scalar.scores(PAIRS).detach()
    monkeypatch.setattr("pipeline.train.segments.table", lambda end: None)  # every position sees all before it
    said: list[str] = []
    scalar.make_ready(PAIRS, said.append)
    assert scalar.attention == "alone" and "texts that share rows do not work here (it is" in said[0]
    torch.testing.assert_close(scalar.scores(PAIRS).detach(), expected)


def test_a_pair_that_is_longer_than_a_pass_goes_alone() -> None:
    assert list(in_passes(PAIRS, most=7)) == [[1, 0], [3], [2]]
    assert list(in_passes(PAIRS, most=100)) == [[1, 0, 3, 2]]
    assert list(filled_up([8, 8, 12, 18], most=16)) == [[0, 1], [2], [3]]


class Stopped(Exception):
    """What ends a training in the middle."""


class Stopping(Reporter):
    """Ends the training after a step."""

    def __init__(self, after: int) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.seen: list[int] = []
        self._after = after

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        self.seen.append(int(done))
        if done == self._after:
            raise Stopped


def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(
    rollouts: Write, model: Artifact, store: Store, tmp_path: Path
) -> None:
    made = rollouts([(f"{n}+{n}", f"A:{n}{end}", float(end == ".")) for n in range(24) for end in (".", ",", ";")])
    config = config_of(made, epochs=2, batch_pairs=12, learning_rate=5e-4, save_every_steps=2)
    for after in (5, 7):
        with pytest.raises(Stopped):
            trained(store, config, model, made, reporter=Stopping(after))
    last = Stopping(-1)
    there = trained(store, config, model, made, reporter=last)
    assert last.seen[0] == 7 and last.seen[-1] == there.summary["steps"] == 8  # after step 6, the last resume point
    whole = trained(Store(tmp_path / "other"), config, model, made)
    assert there.id == whole.id
    assert (there.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_bytes(
    rollouts: Write, model: Artifact, store: Store, tmp_path: Path
) -> None:
    made = rollouts([(f"{n}+{n}", f"A:{n}{end}", float(end == ".")) for n in range(64) for end in (".", ",", ";")])
    config = config_of(made, epochs=4, batch_pairs=8, learning_rate=5e-4, save_every_steps=1)
    spec = spec_of(store, config, model, made)
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "jobs": [{"request": spec["request"]}]}))
    command = [sys.executable, "-m", "pipeline.reward_models", str(tmp_path / "spec.json")]
    for steps in (1, 9, 30):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "progress" and event["done"] > steps:
                    process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    there = trained(store, config, model, made, reporter=Stopping(1))  # finds it
    assert there.id == trained(Store(tmp_path / "other"), config, model, made).id


def test_steps_do_not_depend_on_the_order_of_rows_and_hold_whole_prompts(
    rollouts: Write, model: Artifact, store: Store, tmp_path: Path
) -> None:
    rows = [(f"{n}+{n}", f"A:{n}{end}", float(end == ".")) for n in range(12) for end in (".", ",", ";")]
    found = []
    for place, made in ((store, rollouts(rows)), (Store(tmp_path / "other"), rollouts([*rows[18:], *rows[:18]], "moved"))):
        found.append(trained(place, config_of(made, batch_pairs=6, learning_rate=1e-3), model, made).summary)
    assert found[0] == found[1]


def test_how_the_work_is_cut_is_no_part_of_the_key(rollouts: Write, model: Artifact) -> None:
    made = rollouts([("1+1", "A:2", 1.0), ("1+1", "A:3", 0.0)])
    keys = [
        reward_request(config_of(made, **train), model, [made]).key
        for train in ({}, {"pass_tokens": 99, "save_every_steps": 3}, {"epochs": 2}, {"margin_scale": 0.5})
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert reward_request(config_of(made), model, [made]).stage.partition("/")[0] not in STAGES  # so that gc keeps it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodel: {path: m}\n", r"pairs: missing"),
        ("name: a\nmodel: {path: m}\npairs: {rollouts: []}\n", r"pairs\.rollouts: Tuple should have at least 1 item"),
        ("name: a\nmodel: {path: m}\npairs: {rolouts: [x]}\n", r"pairs\.rolouts: unknown key; did you mean `rollouts`\?"),
        ("name: a\nmodel: {path: m}\npairs: {rollouts: [x], heldout: 1}\n", r"pairs\.heldout: Input should be less than 1"),
    ],
)
def test_wrong_settings_are_answered(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reward.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_reward_model(tmp_path / "reward.yaml")
